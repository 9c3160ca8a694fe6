"""Recurrent layers, encoder and decoder: state in, state out, batch first.

A state is a tuple of [B, H] tensors: (h, c) for an LSTM, (h,) for a GRU. Masked positions may lie anywhere in a row;
they leave the state as it was, so padding changes nothing.
"""

import torch
from torch import nn

State = tuple[torch.Tensor, ...]


class LSTM(nn.LSTM):
    """One LSTM layer in one direction (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

    number_of_states = 2

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size, batch_first=True)

    def forward(self, inputs: torch.Tensor, state: State, lengths: torch.Tensor | None = None):
        """See [`run_layer`]."""
        hx = tuple(s.unsqueeze(0).contiguous() for s in state)  # [1, B, H]
        outputs, (h, c) = _run_packed(super().forward, inputs, hx, lengths)
        return outputs, (h.squeeze(0), c.squeeze(0))


class GRU(nn.GRU):
    """One GRU layer in one direction (Cho et al. 2014, with cuDNN's reset gate after the recurrent product)."""

    number_of_states = 1

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size, batch_first=True)

    def forward(self, inputs: torch.Tensor, state: State, lengths: torch.Tensor | None = None):
        """See [`run_layer`]."""
        outputs, h = _run_packed(super().forward, inputs, state[0].unsqueeze(0).contiguous(), lengths)
        return outputs, (h.squeeze(0),)


def _run_packed(forward, inputs, hx, lengths):
    """Run a fused torch layer so that its final state is that after `lengths` tokens."""
    if lengths is None:
        return forward(inputs, hx)
    packed = nn.utils.rnn.pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
    outputs, hx = forward(packed, hx)
    outputs, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=inputs.shape[1])
    return outputs, hx


class LayerNormCell(nn.Module):
    """What the two layer-normalised layers share: weights, the norms of both products, the loop over time.

    Gates are LN(W_ih x) + LN(W_hh h) + b (Ba et al. 2016, supplement); subclasses give `step`.
    """

    number_of_states: int
    number_of_gates: int

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        gates = self.number_of_gates * hidden_size
        self.hidden_size = hidden_size
        self.weight_ih = nn.Parameter(torch.empty(gates, input_size))
        self.weight_hh = nn.Parameter(torch.empty(gates, hidden_size))
        self.bias = nn.Parameter(torch.empty(gates))
        self.norm_ih = nn.LayerNorm(gates, bias=False)
        self.norm_hh = nn.LayerNorm(gates, bias=False)

    def forward(self, inputs: torch.Tensor, state: State, lengths: torch.Tensor | None = None):
        """See [`run_layer`]."""
        gates_x = self.norm_ih(nn.functional.linear(inputs, self.weight_ih)) + self.bias  # [B, T, G * H]
        states = []
        for t in range(inputs.shape[1]):
            gates_h = self.norm_hh(nn.functional.linear(state[0], self.weight_hh))
            state = self.step(gates_x[:, t], gates_h, state)
            states.append(state)
        if lengths is not None:
            last = lengths.to(inputs.device) - 1
            state = tuple(select_time(torch.stack(s, dim=1), last) for s in zip(*states, strict=True))
        return torch.stack([s[0] for s in states], dim=1), state


class LayerNormLSTM(LayerNormCell):
    """Layer-normalised LSTM (Ba et al. 2016, supplement): the cell is normalised on its way out."""

    number_of_states = 2
    number_of_gates = 4

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.norm_c = nn.LayerNorm(hidden_size)

    def step(self, gates_x: torch.Tensor, gates_h: torch.Tensor, state: State) -> State:
        i, f, g, o = (gates_x + gates_h).chunk(4, dim=-1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.norm_c(c).tanh(), c


class LayerNormGRU(LayerNormCell):
    """Layer-normalised GRU (Ba et al. 2016, supplement), one norm for the three gates."""

    number_of_states = 1
    number_of_gates = 3

    def step(self, gates_x: torch.Tensor, gates_h: torch.Tensor, state: State) -> State:
        r_x, u_x, n_x = gates_x.chunk(3, dim=-1)
        r_h, u_h, n_h = gates_h.chunk(3, dim=-1)
        u = (u_x + u_h).sigmoid()
        n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
        return ((1 - u) * n + u * state[0],)


LAYERS = {
    ("lstm", False): LSTM,
    ("gru", False): GRU,
    ("lstm", True): LayerNormLSTM,
    ("gru", True): LayerNormGRU,
}


def run_layer(layer: nn.Module, inputs: torch.Tensor, state: State | None = None, lengths: torch.Tensor | None = None):
    """Run one layer over time.

    Args:
        layer: one of [`LAYERS`].
        inputs: [B, T, I].
        state: initial state, each [B, H]; zeros by default.
        lengths: [B], each in [0, T]: how many leading steps count for the returned state; all of them by default.

    Returns:
        the outputs at every step [B, T, H], and the state after `lengths` steps.
    """
    if state is None:
        state = (inputs.new_zeros(inputs.shape[0], layer.hidden_size),) * layer.number_of_states
    if lengths is None:
        return layer(inputs, state)
    outputs, last = layer(inputs, state, lengths.clamp(min=1))
    moved = (lengths > 0).unsqueeze(-1).to(inputs.device)
    return outputs, tuple(torch.where(moved, new, old) for new, old in zip(last, state, strict=True))


def left_align(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How to move the real positions of each row to its left end, and back.

    Args:
        mask: nonzero where a position is real, [B, T].

    Returns:
        `order` [B, T], the indices that align a row; `back` [B, T], for each position the aligned index of the latest
        real position up to it; `lengths` [B].
    """
    mask = mask.bool()
    order = mask.sort(dim=1, descending=True, stable=True).indices
    count = mask.cumsum(dim=1)
    return order, (count - 1).clamp(min=0), count[:, -1]


def take_time(inputs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Pick time steps `index` [B, T] out of `inputs` [B, S, F], row by row: [B, T, F]."""
    rows = torch.arange(inputs.shape[0], device=inputs.device).unsqueeze(1) * inputs.shape[1]
    # One index over rows and time: `gather` is three times slower, in its backward pass above all.
    taken = inputs.flatten(0, 1).index_select(0, (rows + index).flatten())
    return taken.view(*index.shape, inputs.shape[-1])


def select_time(inputs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Pick time step `index` [B] out of `inputs` [B, S, F]: [B, F]."""
    return take_time(inputs, index.clamp(min=0).unsqueeze(1)).squeeze(1)


class RecurrentEncoder(nn.Module):
    """Reads a sequence and summarises it by the state at its last real position, in one direction or both.

    Args:
        rnn_type: "lstm" or "gru".
        layer_norm: layer-normalised cells.
        input_size, hidden_size, num_layers: sizes.
        bidirectional: half of `hidden_size` reads from the first real position to the last, half the other way.
    """

    def __init__(self, rnn_type, layer_norm, input_size, hidden_size, num_layers, bidirectional):
        super().__init__()
        layer_class = LAYERS[rnn_type, layer_norm]
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        width = hidden_size // 2 if bidirectional else hidden_size
        self.layers = nn.ModuleList(layer_class(size, width) for size in sizes)
        self.reverse_layers = nn.ModuleList(layer_class(size, width) for size in sizes if bidirectional)

    def forward(
        self, inputs: torch.Tensor, mask: torch.Tensor, output_hidden_states: bool = False
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            inputs: [B, T, I].
            mask: nonzero where a position is real, [B, T].
            output_hidden_states: whether to return each layer's outputs.

        Returns:
            the summary [B, H], and each layer's outputs [B, T, H] where asked for.
        """
        order, back, lengths = left_align(mask)
        outputs = take_time(inputs, order)
        steps = torch.arange(inputs.shape[1], device=inputs.device)
        flipped = (lengths.unsqueeze(1) - 1 - steps).clamp(min=0)  # [B, T]
        hidden_states = []
        for i, layer in enumerate(self.layers):
            directions = [run_layer(layer, outputs)[0]]
            if self.reverse_layers:
                directions.append(run_layer(self.reverse_layers[i], take_time(outputs, flipped))[0])
            summary = torch.cat([select_time(d, lengths - 1) for d in directions], dim=-1)
            directions[1:] = [take_time(d, flipped) for d in directions[1:]]
            outputs = torch.cat(directions, dim=-1)
            if output_hidden_states:
                hidden_states.append(take_time(outputs, back))
        return summary, hidden_states


class RecurrentDecoder(nn.Module):
    """Reads its own past, one state a layer, with dropout between the layers.

    Args:
        rnn_type: "lstm" or "gru".
        layer_norm: layer-normalised cells.
        input_size, hidden_size, num_layers: sizes.
        dropout: probability between layers.
    """

    def __init__(self, rnn_type, layer_norm, input_size, hidden_size, num_layers, dropout):
        super().__init__()
        layer_class = LAYERS[rnn_type, layer_norm]
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(layer_class(size, hidden_size) for size in sizes)
        self.dropout = nn.Dropout(dropout)
        self.number_of_states = layer_class.number_of_states

    def forward(
        self,
        inputs: torch.Tensor,
        states: list[State | None],
        mask: torch.Tensor | None = None,
        return_states: bool = True,
        output_hidden_states: bool = False,
    ) -> tuple[torch.Tensor, list[State], list[torch.Tensor]]:
        """
        Args:
            inputs: [B, T, I].
            states: initial state of each layer, each tensor [B, H], or None for zeros.
            mask: nonzero where a position is real, [B, T]; all by default. Output at a masked position is that at
                the latest real one.
            return_states: whether the returned states must be right; under a mask that costs a packing of the rows.
            output_hidden_states: whether to return each layer's outputs.

        Returns:
            the outputs [B, T, H], each layer's state after the last real position, and each layer's outputs where
            asked for.
        """
        back = lengths = None
        if mask is not None:
            order, back, lengths = left_align(mask)
            inputs = take_time(inputs, order)
        new_states, hidden_states = [], []
        for i, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            if i > 0:
                inputs = self.dropout(inputs)
            inputs, state = run_layer(layer, inputs, state, lengths if return_states else None)
            new_states.append(state)
            if output_hidden_states:
                hidden_states.append(inputs if back is None else take_time(inputs, back))
        return inputs if back is None else take_time(inputs, back), new_states, hidden_states
