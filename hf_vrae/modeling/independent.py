"""Steps that do not meet: the network of a VAE without time.

Letters in shapes: B batch, T time, K samples, I input size, H hidden size.
"""

import torch
from torch import nn

from .kernels import Dropout
from .transformer import check_positions


class PositionwiseMLP(nn.Module):
    """h_t = MLP([v; t]) with t one-hot: what a step is depends on v and on its place, and on no other step.

    Args:
        input_size, hidden_size, num_layers: of v, and of each hidden layer.
        num_positions: the most steps.
        dropout: between the layers.
        kernels: "auto", or "plain" for torch's own operations.
        variational_dropout: one mask for all steps of a sequence.
    """

    def __init__(
        self, input_size, hidden_size, num_layers, num_positions, dropout, kernels="auto", variational_dropout=False
    ):
        super().__init__()
        self.input = nn.Linear(input_size, hidden_size, bias=False)
        self.positions = nn.Embedding(num_positions, hidden_size)
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_layers - 1))
        self.dropout = Dropout(dropout, kernels, variational_dropout)

    def forward(self, inputs: torch.Tensor, positions: torch.LongTensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            inputs: v, [B, T, I]; or [K * B, 1, I] where it is the same at every step, K of each row in turn.
            positions: [B, T].

        Returns:
            the outputs [K * B, T, H], and what the layers begin with and each one's.

        Raises:
            ValueError: for a sequence longer than there are positions.
        """
        check_positions(positions, self.positions.num_embeddings)
        places = self.positions(positions)  # [B, T, H]
        embedded = self.input(inputs).unflatten(0, (-1, len(places))) + places  # [K, B, T, H]
        hidden_states = [embedded.flatten(0, 1)]
        hidden_states.append(nn.functional.gelu(hidden_states[0]))
        for layer in self.layers:
            hidden_states.append(nn.functional.gelu(layer(self.dropout(hidden_states[-1]))))
        return hidden_states[-1], hidden_states
