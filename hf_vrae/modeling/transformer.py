"""Transformers of GPT-2's shape: layer norms first, learnt positions, GELU (Vaswani et al. 2017; Radford et al. 2019).

One stack serves the decoder, which looks back and may attend to a memory, and the encoder, which looks to both sides.
Letters in shapes: B batch, T time, S time with what the cache holds, M memory tokens, H hidden size, A heads.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cache_name import CACHE, takes_cache
from .kernels import Dropout, is_plain


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """softmax(q k^T / sqrt(H / A) + mask) v, [B, T, A, H / A] of q [B, A, T, H / A] and k, v [B, A, S, H / A]."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = nn.functional.dropout(weights.to(value.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself.

    Args:
        config: of the model; its attention implementation says how this is computed.
        hidden_size: H.
        dropout: share of the weights that training drops.
        layer_idx: which layer of the cache is its.
        is_causal: whether a position sees none behind itself.
    """

    def __init__(self, config, hidden_size: int, dropout: float, layer_idx: int, is_causal: bool):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, is_causal
        self.num_heads, self.dropout = config.num_attention_heads, dropout
        self.scaling = (hidden_size // self.num_heads) ** -0.5
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: torch.Tensor, attention_mask=None, cache: Cache | None = None) -> torch.Tensor:
        """[B, T, H] of hidden [B, T, H]."""
        query, key, value = (self.heads(x) for x in self.qkv(hidden).chunk(3, dim=-1))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        return self.attend(query, key, value, attention_mask)

    def attend(self, query, key, value, attention_mask=None) -> torch.Tensor:
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        outputs, _ = attention(self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout)
        return self.out(outputs.flatten(2))  # [B, T, H]

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, A, T, H / A]


class MemoryAttention(Attention):
    """Multi-head attention of a sequence to a memory."""

    def __init__(self, config, hidden_size: int, dropout: float):
        super().__init__(config, hidden_size, dropout, layer_idx=0, is_causal=False)

    def forward(self, hidden: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """[B, T, H] of hidden [B, T, H] and memory [B, M, H]."""
        if not is_plain(self.qkv):
            query, (_, *of_memory) = self.qkv(hidden).chunk(3, dim=-1)[0], self.qkv(memory).chunk(3, dim=-1)
            return self.attend(*(self.heads(x) for x in (query, *of_memory)))
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        parts = zip((hidden, memory, memory), weights, biases, strict=True)
        return self.attend(*(self.heads(nn.functional.linear(*part)) for part in parts))


class TransformerLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), where there is a memory + its attention, then + feed-forward(norm(x))."""

    def __init__(self, config, hidden_size: int, dropout: float, layer_idx: int, is_causal: bool, has_memory: bool):
        super().__init__()
        inside = config.intermediate_size or 4 * hidden_size
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = Attention(config, hidden_size, dropout, layer_idx, is_causal)
        if has_memory:
            self.memory_norm = nn.LayerNorm(hidden_size)
            self.memory_attention = MemoryAttention(config, hidden_size, dropout)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        layers = nn.Linear(hidden_size, inside), nn.GELU(approximate="tanh"), nn.Linear(inside, hidden_size)
        self.feed_forward = nn.Sequential(*layers)
        self.dropout = Dropout(dropout, config.kernels, config.variational_dropout)

    @takes_cache
    def forward(self, x: torch.Tensor, memory: torch.Tensor | None, attention_mask=None, cache=None):
        x = x + self.dropout(self.attention(self.attention_norm(x), attention_mask, cache))
        if memory is not None:
            x = x + self.dropout(self.memory_attention(self.memory_norm(x), memory))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Transformer(nn.Module):
    """Positions added, layers, and a norm at the end.

    Args:
        config: of the model: heads, the width inside the feed-forward blocks, the most positions.
        input_size: E; inputs of another width than H are projected.
        hidden_size, num_layers, dropout: of the layers.
        is_causal: whether a position sees none behind itself.
        has_memory: whether the layers attend to a memory too.
    """

    def __init__(self, config, input_size, hidden_size, num_layers, dropout, is_causal, has_memory=False):
        super().__init__()
        self.config, self.is_causal = config, is_causal
        self.projection = nn.Identity()
        if input_size != hidden_size:
            self.projection = nn.Linear(input_size, hidden_size, bias=False)
        self.positions = nn.Embedding(config.max_position_embeddings, hidden_size)
        self.dropout = Dropout(dropout, config.kernels, config.variational_dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(config, hidden_size, dropout, i, is_causal, has_memory) for i in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def forward(
        self,
        inputs: torch.Tensor,
        positions: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        memory: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            inputs: [B, T, E].
            positions: of each input, [B, T] or [1, T].
            attention_mask: nonzero where a position is real, [B, S]; all by default.
            cache: keys and values of what was read before; those of `inputs` are added.
            memory: [B, M, H].
            output_hidden_states: whether to return each layer's outputs.

        Returns:
            the outputs [B, T, H], and each layer's where asked for, the last one's normalised.

        Raises:
            ValueError: for a sequence longer than `max_position_embeddings`.
        """
        check_positions(positions, self.positions.num_embeddings)
        x = self.dropout(self.projection(inputs) + self.positions(positions))
        if self.is_causal:
            mask = create_causal_mask(self.config, x, attention_mask, cache)
        else:
            mask = create_bidirectional_mask(self.config, x, attention_mask)
        hidden_states = []
        for layer in self.layers:
            x = layer(x, memory, attention_mask=mask, **{CACHE: cache})  # by the name that checkpointing knows
            hidden_states.append(x)
        hidden_states[-1] = self.norm(x)
        return hidden_states[-1], hidden_states if output_hidden_states else []


def positions_of(mask: torch.Tensor) -> torch.LongTensor:
    """Which of its row's real positions each is, or the latest one before it, from 0: [B, T] of a mask [B, T]."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def check_positions(positions: torch.LongTensor, most: int | None) -> None:
    """Name a sequence that no table of positions holds. On an accelerator its kernels check: asking costs a wait."""
    if most is None or positions.device.type != "cpu" or torch.compiler.is_compiling():
        return
    longest = 1 + positions.max().item()
    if longest > most:
        raise ValueError(
            f"`max_position_embeddings` gives room for {most} steps, and a sequence has {longest} or more. Cut the "
            "sequence, or train a model with more positions."
        )
