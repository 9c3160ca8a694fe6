"""Recurrent layers, encoder and decoder: state in, state out, batch first.

A state is a tuple of [B, H] tensors: (h, c) for an LSTM, (h,) for a GRU. Masked positions may lie anywhere in a row;
they leave the state as it was, so padding changes nothing.
"""

import contextlib
import functools

import torch
from torch import nn

from .kernels import MKL_IS_SLOW, PACKED_DTYPES, Dropout, PackedLinear, RecurrentProjection, product_dtype

State = tuple[torch.Tensor, ...]


class FusedCell:
    """What the two layers of torch's own share."""

    kernels = "auto"
    weight_dropout = 0.0
    input_weight = property(lambda self: self.weight_ih_l0)
    recurrent_weight = property(lambda self: self.weight_hh_l0)
    norm_gates = staticmethod(lambda gates_x: gates_x)

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size, batch_first=True)

    def forward(self, inputs, state, lengths=None, constant=None):
        """See [`run_layer`]."""
        if prefers_loop(self, inputs, state):
            return run_loop(self, *input_gates(self, inputs, constant), state, lengths)
        return run_fused(self, super().forward, append(inputs, constant), state, lengths)


class LSTM(FusedCell, nn.LSTM):
    """One LSTM layer in one direction (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

    number_of_states = 2
    input_bias = property(lambda self: self.bias_ih_l0 + self.bias_hh_l0)

    def step(self, gates_x: torch.Tensor, gates_h: torch.Tensor, state: State) -> State:
        return self.step_of_sum(gates_x + gates_h, state)

    def step_of_sum(self, gates: torch.Tensor, state: State) -> State:
        i, f, g, o = gates.chunk(4, dim=-1)
        c = torch.addcmul(f.sigmoid() * state[1], i.sigmoid(), g.tanh())
        return o.sigmoid() * c.tanh(), c


class GRU(FusedCell, nn.GRU):
    """One GRU layer in one direction (Cho et al. 2014, with cuDNN's reset gate after the recurrent product)."""

    number_of_states = 1
    input_bias = property(lambda self: self.bias_ih_l0)

    def step(self, gates_x: torch.Tensor, gates_h: torch.Tensor, state: State) -> State:
        r_x, u_x, n_x = gates_x.chunk(3, dim=-1)
        r_h, u_h, n_h = (gates_h + self.bias_hh_l0.to(gates_h.dtype)).chunk(3, dim=-1)
        u = (u_x + u_h).sigmoid()
        n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
        return (torch.lerp(n, state[0], u),)


class LayerNormCell(nn.Module):
    """What the two layer-normalised layers share: weights, and the norms of both products.

    Gates are LN(W_ih x) + LN(W_hh h) + b (Ba et al. 2016, supplement); subclasses give `step`.
    """

    number_of_states: int
    number_of_gates: int
    kernels = "auto"
    weight_dropout = 0.0
    input_weight = property(lambda self: self.weight_ih)
    recurrent_weight = property(lambda self: self.weight_hh)
    input_bias = None  # it is added after the norm

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        gates = self.number_of_gates * hidden_size
        self.hidden_size = hidden_size
        self.weight_ih = nn.Parameter(torch.empty(gates, input_size))
        self.weight_hh = nn.Parameter(torch.empty(gates, hidden_size))
        self.bias = nn.Parameter(torch.empty(gates))
        self.norm_ih = nn.LayerNorm(gates, bias=False)
        self.norm_hh = nn.LayerNorm(gates, bias=False)

    def forward(self, inputs, state, lengths=None, constant=None):
        """See [`run_layer`]."""
        gates = self.norm_gates(nn.functional.linear(append(inputs, constant), self.weight_ih))
        return run_loop(self, gates.transpose(0, 1), None, state, lengths)

    def norm_gates(self, gates_x: torch.Tensor) -> torch.Tensor:
        return self.norm_ih(gates_x) + self.bias


class LayerNormLSTM(LayerNormCell):
    """Layer-normalised LSTM (Ba et al. 2016, supplement): the cell is normalised on its way out."""

    number_of_states = 2
    number_of_gates = 4

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.norm_c = nn.LayerNorm(hidden_size)

    def step(self, gates_x: torch.Tensor, gates_h: torch.Tensor, state: State) -> State:
        i, f, g, o = (gates_x + self.norm_hh(gates_h)).chunk(4, dim=-1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.norm_c(c).tanh(), c


class LayerNormGRU(LayerNormCell):
    """Layer-normalised GRU (Ba et al. 2016, supplement), one norm for the three gates."""

    number_of_states = 1
    number_of_gates = 3

    def step(self, gates_x: torch.Tensor, gates_h: torch.Tensor, state: State) -> State:
        r_x, u_x, n_x = gates_x.chunk(3, dim=-1)
        r_h, u_h, n_h = self.norm_hh(gates_h).chunk(3, dim=-1)
        u = (u_x + u_h).sigmoid()
        n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
        return ((1 - u) * n + u * state[0],)


def drop_weights(layer: nn.Module) -> torch.Tensor:
    """The recurrent weight [G * H, H] as training sees it: elements dropped for a whole batch, the same at every step,
    which leaves the state itself alone (weight-dropped LSTM, Merity et al. 2018, sec. 2)."""
    if not layer.training or layer.weight_dropout == 0:  # as at every step of a generation
        return layer.recurrent_weight
    return Dropout(layer.weight_dropout, layer.kernels)(layer.recurrent_weight)


@contextlib.contextmanager
def weights_dropped(layer: nn.LSTM | nn.GRU):
    """Within it, torch's layer runs with [`drop_weights`]."""
    weights = layer._flat_weights
    if layer.training and layer.weight_dropout > 0:
        layer._flat_weights = [weights[0], drop_weights(layer), *weights[2:]]
    try:
        yield
    finally:
        layer._flat_weights = weights


def append(inputs: torch.Tensor, constant: torch.Tensor | None) -> torch.Tensor:
    """`constant` [K * B, D] at every step of `inputs` [B, T, I], which are repeated K times: [K * B, T, I + D]."""
    if constant is None:
        return inputs
    if len(constant) > len(inputs):
        inputs = inputs.repeat(len(constant) // len(inputs), 1, 1)
    return torch.cat([inputs, constant.to(inputs.dtype).unsqueeze(1).expand(-1, inputs.shape[1], -1)], dim=-1)


def input_gates(layer: nn.Module, inputs: torch.Tensor, constant: torch.Tensor | None):
    """W [x; z] + b of all steps as W_x x + b [T, B, G * H] and W_z z [K * B, G * H], each computed once."""
    weight_x, weight_z = layer.input_weight.tensor_split([inputs.shape[-1]], dim=1)
    # Without a gradient torch would multiply what is not contiguous step by step, by as many copies of the weights.
    gates_x = nn.functional.linear(inputs.transpose(0, 1).contiguous(), weight_x, layer.input_bias)
    return gates_x, None if constant is None else nn.functional.linear(constant.to(inputs.dtype), weight_z)


def autocast_fails(inputs: torch.Tensor) -> bool:
    """Whether autocast is no good to torch's layers here. On a CPU whose oneDNN lacks the type (bfloat16 without
    AVX512) its LSTM raises (torch 2.13), and float32 is faster anyway. On a GPU those of cuDNN and MIOpen run in
    float16 even where bfloat16 is asked for (ATen/cudnn/AutocastRNN.cpp), which without a GradScaler loses small
    gradients; in float32 they take its tensor cores too, by TF32. Apple's take all types from the inputs'."""
    device = inputs.device.type
    if not torch.is_autocast_enabled(device):
        return False
    dtype = product_dtype(inputs)
    if device == "cpu":
        return dtype not in PACKED_DTYPES
    return device == "mps" or device == "cuda" and dtype == torch.bfloat16


def run_fused(layer, forward, inputs, state, lengths):
    """Run `forward`, torch's own, of a layer with its weights dropped, as [`run_layer`] says."""
    hx, autocast = tuple(s.unsqueeze(0).contiguous() for s in state), contextlib.nullcontext()  # [1, B, H] each
    if autocast_fails(inputs):
        autocast, dtype = torch.autocast(inputs.device.type, enabled=False), layer.recurrent_weight.dtype
        inputs, hx = inputs.to(dtype), tuple(s.to(dtype) for s in hx)
    time = inputs.shape[1]
    with weights_dropped(layer), autocast:
        if lengths is not None:
            inputs = nn.utils.rnn.pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, hx = forward(inputs, hx if len(hx) > 1 else hx[0])
        if lengths is not None:
            outputs, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=time)
    return outputs, tuple(h.squeeze(0) for h in (hx if isinstance(hx, tuple) else (hx,)))


def stepwise_product(kernels: str, weight: torch.Tensor, steps: int, rows: int, like: torch.Tensor):
    """h -> h W^T at each of so many steps, for `rows` rows; how, this decides.

    Args:
        kernels: "auto" or "plain".
        weight: [G, H].
        like: of the data type of the gates.
    """
    if kernels == "plain" or torch.compiler.is_compiling() or steps == 1 or weight.numel() < SMALL:
        return functools.partial(nn.functional.linear, weight=weight)
    # Not the data type of the gates: on a GPU autocast normalises in float32.
    return RecurrentProjection(weight, steps, rows, product_dtype(like))


def run_loop(layer, gates_x, gates_z, state, lengths):
    """Run a layer by its equations, a `step` at a time.

    Args:
        layer: gives `step` and `recurrent_weight`, [G * H, H].
        gates_x: what the inputs add to the gates, [T, B, G * H].
        gates_z: what is the same at every step, [K * B, G * H], or None.
        state, lengths: as in [`run_layer`], of K * B rows.
    """
    state = tuple(s.to(gates_x.dtype) for s in state)
    project = stepwise_product(layer.kernels, drop_weights(layer), len(gates_x), len(state[0]), gates_x)
    states = []
    for gates in gates_x.unbind(0):
        if gates_z is not None:
            gates = (gates_z.view(-1, *gates.shape) + gates).flatten(0, 1)
        state = layer.step(gates, project(state[0]), state)
        states.append(state)
    if lengths is not None:
        last = lengths.to(gates_x.device) - 1
        state = tuple(select_time(torch.stack(s, dim=1), last) for s in zip(*states, strict=True))
    return torch.stack([s[0] for s in states], dim=1), state


def prefers_loop(layer: nn.Module, inputs: torch.Tensor, state: State) -> bool:
    """Whether [`run_loop`] is faster than torch's fused layer: the one place where this is decided.

    Measured on two cores (`benchmarks/`): the loop shares one product among the K states of an input, and large layers
    gain by its packed weights, but an LSTM, whose fused kernel is good, only in training at 16 bits.
    """
    if layer.kernels == "plain" or inputs.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if len(state[0]) > len(inputs):
        return True
    if layer.hidden_size < LARGE or inputs.shape[1] == 1:
        return False
    if isinstance(layer, GRU):
        return True
    return torch.is_grad_enabled() and product_dtype(inputs) == torch.bfloat16 and not autocast_fails(inputs)


LARGE = 512 if MKL_IS_SLOW else 1024  # hidden units
SMALL = 2**16  # weights, below which what [`RecurrentProjection`] saves is less than its own calls take


LAYERS = {
    ("lstm", False): LSTM,
    ("gru", False): GRU,
    ("lstm", True): LayerNormLSTM,
    ("gru", True): LayerNormGRU,
}


def run_layer(
    layer: nn.Module,
    inputs: torch.Tensor,
    state: State | None = None,
    lengths: torch.Tensor | None = None,
    constant: torch.Tensor | None = None,
):
    """Run one layer over time.

    Args:
        layer: one of [`LAYERS`].
        inputs: [B, T, I].
        state: initial state, each [K * B, H]; zeros by default.
        lengths: [K * B], each in [0, T]: how many leading steps count for the returned state; all by default.
        constant: a further input that is the same at every step, [K * B, D]; row k * B + b goes with input b.

    Returns:
        the outputs at every step [K * B, T, H], and the state after `lengths` steps.
    """
    if state is None:
        rows = len(inputs if constant is None else constant)
        state = (inputs.new_zeros(rows, layer.hidden_size),) * layer.number_of_states
    if lengths is None:
        return layer(inputs, state, None, constant)
    outputs, last = layer(inputs, state, lengths.clamp(min=1), constant)
    moved = (lengths > 0).unsqueeze(-1).to(inputs.device)
    return outputs, tuple(torch.where(moved, new, old) for new, old in zip(last, state, strict=True))


def predecessors(values: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each real step the real one before it, of values [B, T] or [B, T, F]; and where a row's first one is, [B, T],
    which has none."""
    order, back, _ = left_align(real)
    take = torch.gather if values.dim() == 2 else lambda values, _, index: take_time(values, index)
    return take(take(values, 1, order).roll(1, dims=1), 1, back), real & (real.cumsum(1) == 1)


def left_align(mask: torch.Tensor, room: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How to move the real positions of each row to its left end, and back.

    Args:
        mask: nonzero where a position is real, [B, T].
        room: how many positions there are; where T is more, what is padding in all rows is left out of `order`.

    Returns:
        `order` [B, T], the indices that align a row; `back` [B, T], for each position the aligned index of the latest
        real position up to it; `lengths` [B].
    """
    mask = mask.bool()
    order = mask.sort(dim=1, descending=True, stable=True).indices
    count = mask.cumsum(dim=1)
    lengths = count[:, -1]
    if room is not None and mask.shape[1] > room:  # only then: on an accelerator this waits
        order = order[:, : lengths.max().clamp(min=1)]
    return order, (count - 1).clamp(min=0), lengths


def take_time(inputs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Pick time steps `index` [B, T] out of `inputs` [B, S, F], row by row: [B, T, F]."""
    rows = torch.arange(inputs.shape[0], device=inputs.device).unsqueeze(1) * inputs.shape[1]
    # One index over rows and time: `gather` is three times slower, in its backward pass above all.
    taken = inputs.flatten(0, 1).index_select(0, (rows + index).flatten())
    return taken.view(*index.shape, inputs.shape[-1])


def one_step_back(inputs: torch.Tensor) -> torch.Tensor:
    """At each step that of the one before, 0 at the first: [B, T, F] of `inputs` [B, T, F]."""
    return torch.cat([torch.zeros_like(inputs[:, :1]), inputs[:, :-1]], dim=1)


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
        kernels: "auto", or "plain" for torch's own operations.
    """

    def __init__(self, rnn_type, layer_norm, input_size, hidden_size, num_layers, bidirectional, kernels="auto"):
        super().__init__()
        layer_class = LAYERS[rnn_type, layer_norm]
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        width = hidden_size // 2 if bidirectional else hidden_size
        self.layers = nn.ModuleList(layer_class(size, width) for size in sizes)
        self.reverse_layers = nn.ModuleList(layer_class(size, width) for size in sizes if bidirectional)
        for layer in [*self.layers, *self.reverse_layers]:
            layer.kernels = kernels

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
            summary = summary.masked_fill(lengths.unsqueeze(1) == 0, 0)  # of a row without a token: the first state
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
        weight_dropout: probability of [`drop_weights`].
        skip_connections: add to the output of each layer but the first what it was given.
        kernels: "auto", or "plain" for torch's own operations.
        variational_dropout: one mask between layers for all steps of a sequence.
    """

    def __init__(
        self,
        rnn_type,
        layer_norm,
        input_size,
        hidden_size,
        num_layers,
        dropout,
        weight_dropout=0.0,
        skip_connections=False,
        kernels="auto",
        variational_dropout=False,
    ):
        super().__init__()
        layer_class = LAYERS[rnn_type, layer_norm]
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(layer_class(size, hidden_size) for size in sizes)
        for layer in self.layers:
            layer.kernels, layer.weight_dropout = kernels, weight_dropout
        self.dropout = Dropout(dropout, kernels, variational_dropout)
        self.skip_connections = skip_connections
        self.number_of_states = layer_class.number_of_states

    def forward(
        self,
        inputs: torch.Tensor,
        states: list[State | None],
        constant: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        return_states: bool = True,
        output_hidden_states: bool = False,
    ) -> tuple[torch.Tensor, list[State], list[torch.Tensor]]:
        """
        Args:
            inputs: [B, T, I].
            states: initial state of each layer, each tensor [K * B, H], or None for zeros.
            constant: a further input that is the same at every step, [K * B, D], as in [`run_layer`].
            mask: nonzero where a position is real, [B, T]; all by default. Output at a masked position is that at
                the latest real one.
            return_states: whether the returned states must be right; under a mask that costs a packing of the rows.
            output_hidden_states: whether to return each layer's outputs.

        Returns:
            the outputs [K * B, T, H], each layer's state after the last real position, and each layer's outputs
            where asked for.
        """
        back = lengths = None
        if mask is not None:
            order, back, lengths = left_align(mask)
            inputs = take_time(inputs, order)
            if constant is not None:
                repeats = len(constant) // len(inputs)
                back, lengths = back.repeat(repeats, 1), lengths.repeat(repeats)
        new_states, hidden_states = [], []
        for i, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            given = inputs if i == 0 else self.dropout(inputs)
            outputs, state = run_layer(
                layer, given, state, lengths if return_states else None, constant if i == 0 else None
            )
            inputs = inputs + outputs if self.skip_connections and i > 0 else outputs
            new_states.append(state)
            if output_hidden_states:
                hidden_states.append(inputs if back is None else take_time(inputs, back))
        return inputs if back is None else take_time(inputs, back), new_states, hidden_states


class RecurrentStep:
    """One step of a decoder after the other, with what stays the same computed once: z's part of the gates, and the
    weights laid out for small products. There is no gradient and no dropout.

    Args:
        rnn: the layers.
        constant: what the first layer sees at every step beside its input, [B, D].
        states: of each layer, or None for zeros.
    """

    def __init__(self, rnn: RecurrentDecoder, constant: torch.Tensor, states: list[State | None]):
        self.skip_connections = rnn.skip_connections
        self.layers, self.states = [], []
        for i, layer in enumerate(rnn.layers):
            zeros = (constant.new_zeros(len(constant), layer.hidden_size),) * layer.number_of_states
            self.states.append(zeros if states[i] is None else states[i])
            weight, recurrent_weight = layer.input_weight, layer.recurrent_weight
            seen = (constant if i == 0 else constant[:, :0]).to(weight.dtype)  # [B, D], or nothing
            weight, weight_z = weight.tensor_split([weight.shape[1] - seen.shape[1]], dim=1)
            gates_z = nn.functional.linear(seen, weight_z, layer.input_bias)  # [B, G * H]
            products = [PackedLinear(w.to(product_dtype(w)), len(constant)) for w in (weight, recurrent_weight)]
            self.layers.append((layer, gates_z, *products))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """From inputs [B, I] to outputs [B, H]."""
        for i, (layer, gates_z, product, recurrent_product) in enumerate(self.layers):
            gates_x = layer.norm_gates(product(inputs) + gates_z)
            state = tuple(s.to(gates_x.dtype) for s in self.states[i])
            self.states[i] = layer.step(gates_x, recurrent_product(state[0]), state)
            outputs = self.states[i][0]
            inputs = inputs + outputs if self.skip_connections and i > 0 else outputs
        return inputs
