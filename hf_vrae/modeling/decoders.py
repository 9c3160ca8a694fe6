"""The state of p(x_t | x_<t, z): what its distributions are read from.

Letters in shapes: B batch, T time, K samples, D latent size, E embedding size, H hidden size.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from .cache_name import CACHE
from .configuration_vrae import VRAEConfig
from .generation import RecurrentCache, repeat_rows
from .heads import make_frame_embedding
from .independent import PositionwiseMLP
from .kernels import Dropout, float_dtype
from .modeling_latent import check_mask, check_token_ids
from .pretrained import make_body, most_positions
from .recurrent import RecurrentDecoder, RecurrentStep, left_align, take_time
from .transformer import Transformer, check_positions, positions_of


class VRAEDecoder(nn.Module):
    """What all kinds share: what is read of x_<t, and what p(x_t | ...) is read from. A subclass makes its layers, and
    gives `decode`.

    Attributes:
        output_size: of what p(x_t | ...) is read from.
        width: numbers that a step holds at once, at most.
    """

    output_size: int
    width: int

    def __init__(self, config: VRAEConfig):
        super().__init__()
        self.config = config
        self.make_inputs(config)
        self.dropout = Dropout(config.dropout, config.kernels, config.variational_dropout)
        self.output_size = self.width = config.decoder_hidden_size
        if "output" in config.latent_conditioning:
            self.output_size += config.decoder_latent_size

    def make_inputs(self, config: VRAEConfig) -> None:
        """The table of words, or what embeds frames."""
        if config.input_size is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        else:
            self.embed_frames = make_frame_embedding(config)
            if "prefix" not in config.latent_conditioning:
                self.embed_start = nn.Embedding(1, config.embedding_size)  # what is read before the first frame

    def set_embed_tokens(self, table: nn.Embedding) -> None:
        self.embed_tokens = table

    def read_tokens(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """What the decoder reads, [B, T, E], of tokens [B, T]."""
        return self.embed_tokens(input_ids)

    def read_dropped(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """The same after a check, and in training with words dropped."""
        check_token_ids("decoder_input_ids", input_ids, self.config.vocab_size)
        if self.training and self.config.word_dropout > 0 and self.config.reads_the_past:
            input_ids = self.drop_words(input_ids)
        return self.read_tokens(input_ids)

    def read_frames(self, frames: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """What the decoder reads, [..., E]: scaled frames [..., F], where `first` [...] the learnt start."""
        embedded = self.embed_frames(frames)
        if "prefix" in self.config.latent_conditioning:
            return embedded  # z takes the place of the start
        return torch.where(first.unsqueeze(-1), self.embed_start.weight[0], embedded)

    def beside_latents(self, hidden: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """What p(x_t | ...) is read from: h, or [h; z], of outputs `hidden` [B, T, H] and `latents` [B, D]; dropout is
        of h alone."""
        hidden = self.dropout(hidden)
        if "output" not in self.config.latent_conditioning:
            return hidden
        z = latents.to(hidden.dtype).unsqueeze(1).expand(-1, hidden.shape[1], -1)
        return torch.cat([hidden, z], dim=-1)  # [B, T, H + D]

    def drop_words(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """Replace each word, but no mark, by <unk> with probability `word_dropout` (Bowman et al. 2016, sec. 3.1)."""
        config = self.config
        drop = torch.rand(input_ids.shape, device=input_ids.device) < config.word_dropout
        for mark in (config.pad_token_id, config.bos_token_id, config.eos_token_id, config.decoder_start_token_id):
            if mark is not None:
                drop &= input_ids != mark
        return input_ids.masked_fill(drop, config.unk_token_id)

    def forward(
        self,
        latents: torch.FloatTensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[torch.Tensor, Cache | None, tuple[torch.Tensor, ...] | None]:
        """
        Args:
            latents: z, [B, D]; or [K * B, D], K of each row in turn, which costs less than K * B rows of tokens.
            input_ids: [B, T]; or `inputs_embeds` [B, T, E] in its place.
            attention_mask: nonzero where a token is real, [B, T] or [B, past + T], which a decoder that attends needs;
                all by default.
            cache: state to go on from; by default the first state.
            use_cache: whether to return the state after the last real token.
            output_hidden_states: whether to return the embeddings and each layer's outputs.

        Returns:
            the outputs [K * B, T, H], at a masked position that of the latest real one; the cache; and the hidden
            states.
        """
        latents = latents.to(float_dtype(self))
        if inputs_embeds is None:
            inputs_embeds = self.read_dropped(input_ids)  # [B, T, E]
        attention_mask = self.mask_of_read(attention_mask, inputs_embeds, cache)
        outputs, cache, hidden_states = self.decode(
            latents, inputs_embeds, attention_mask, cache, use_cache, output_hidden_states
        )
        hidden_states = tuple(hidden_states) if output_hidden_states else None
        return outputs, cache if use_cache else None, hidden_states

    def mask_of_read(self, attention_mask, inputs_embeds: torch.Tensor, cache: Cache | None) -> torch.Tensor | None:
        """The mask after a check: of what is read now, [B, T], where what is past is in the state."""
        past = 0 if cache is None else cache.get_seq_length()
        check_mask("decoder_attention_mask", attention_mask, inputs_embeds, past)
        if attention_mask is None or self.config.decoder_type == "transformer":
            return attention_mask
        return attention_mask[:, -inputs_embeds.shape[1] :]

    def decode(self, latents, inputs_embeds, attention_mask, cache, use_cache, output_hidden_states):
        """The rest of [`forward`], whose arguments these are: outputs, cache, and hidden states where asked for."""
        raise NotImplementedError

    def stepper(self, latents: torch.Tensor, cache: Cache | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
        """One step after the other, from what is read [B, E] to outputs [B, H].

        Args:
            latents: z, [B, D].
            cache: state to go on from, of rows without padding; it may be changed.
        """

        def step(inputs: torch.Tensor) -> torch.Tensor:
            nonlocal cache
            outputs, cache, _ = self(latents, inputs_embeds=inputs.unsqueeze(1), cache=cache, use_cache=True)
            return outputs.squeeze(1)

        return step


class VRAERecurrentDecoder(VRAEDecoder):
    """Carries the state of p(x_t | x_<t, z): z sets the first state, enters every step, or both."""

    def __init__(self, config: VRAEConfig):
        super().__init__(config)
        if "initial_state" in config.latent_conditioning:
            size = config.decoder_layers * config.decoder_hidden_size
            self.initial_state = nn.Linear(config.decoder_latent_size, size, bias=False)
        self.rnn = RecurrentDecoder(
            config.rnn_type,
            config.layer_norm,
            config.embedding_size + config.decoder_latent_size * ("input" in config.latent_conditioning),
            config.decoder_hidden_size,
            config.decoder_layers,
            config.dropout,
            config.weight_dropout,
            config.skip_connections,
            config.kernels,
            config.variational_dropout,
        )

    def first_states(self, latents: torch.Tensor) -> list:
        """c0 = W z, h0 = tanh(c0) of each layer (He et al. 2019); zeros where z does not set the first state."""
        if "initial_state" not in self.config.latent_conditioning:
            return [None] * self.config.decoder_layers
        c0 = self.initial_state(latents).chunk(self.config.decoder_layers, dim=-1)
        return [(c.tanh(), c)[: self.rnn.number_of_states] for c in c0]

    def seen_at_every_step(self, latents: torch.Tensor) -> torch.Tensor:
        """What of `latents` [B, D] the first layer reads at every step: all, or nothing."""
        return latents if "input" in self.config.latent_conditioning else latents[:, :0]

    def states(self, latents: torch.Tensor, cache: RecurrentCache | None) -> list:
        """Each layer's state to go on from."""
        if cache is not None and cache.get_seq_length() > 0:
            return cache.states(latents.shape[0])
        return self.first_states(latents)

    def decode(self, latents, inputs_embeds, attention_mask, cache, use_cache, output_hidden_states):
        inputs, states = self.dropout(inputs_embeds), self.states(latents, cache)
        outputs, states, hidden_states = self.rnn(
            inputs, states, self.seen_at_every_step(latents), attention_mask, use_cache, output_hidden_states
        )
        if use_cache:
            if cache is None:
                cache = RecurrentCache(self.config.decoder_layers, self.rnn.number_of_states)
            cache.update_states(states, inputs.shape[1])
        return outputs, cache, [inputs_embeds, *hidden_states]

    def stepper(self, latents, cache=None):
        if any(part._forward_hooks or part._forward_pre_hooks for part in self.modules()):  # a step calls none of them
            return super().stepper(latents, cache)
        return RecurrentStep(self.rnn, self.seen_at_every_step(latents), self.states(latents, cache))


class VRAETransformerDecoder(VRAEDecoder):
    """Attends to what it read, and sees z in up to four places: it attends to a memory made of z, reads W z in place
    of the start (the first real position), and W z beside every input, added (Li et al. 2020, sec. 3.2); the fourth is
    `beside_latents`."""

    def __init__(self, config: VRAEConfig):
        super().__init__(config)
        self.make_layers(config)

    def make_layers(self, config: VRAEConfig) -> None:
        self.make_places(config.embedding_size)
        if "memory" in config.latent_conditioning:
            size = config.memory_tokens * config.decoder_hidden_size
            self.memory = nn.Linear(config.decoder_latent_size, size, bias=False)
        self.transformer = Transformer(
            config,
            config.embedding_size,
            config.decoder_hidden_size,
            config.decoder_layers,
            config.dropout,
            is_causal=True,
            has_memory="memory" in config.latent_conditioning,
        )
        self.width = config.intermediate_size or 4 * config.decoder_hidden_size

    @property
    def room(self) -> int | None:
        """How many positions there are; None where any number."""
        return self.transformer.positions.num_embeddings

    def make_places(self, size: int) -> None:
        """Where z enters what is read, of this width."""
        if "prefix" in self.config.latent_conditioning:
            self.prefix = nn.Linear(self.config.decoder_latent_size, size, bias=False)
        if "input" in self.config.latent_conditioning:
            self.beside_input = nn.Linear(self.config.decoder_latent_size, size, bias=False)

    def decode(self, latents, inputs_embeds, attention_mask, cache, use_cache, output_hidden_states):
        repeats, length, read = len(latents) // len(inputs_embeds), inputs_embeds.shape[1], inputs_embeds
        past = 0 if cache is None else cache.get_seq_length()
        back = None
        if attention_mask is None:
            positions = torch.arange(past, past + length, device=latents.device).unsqueeze(0)
        elif use_cache or past:
            if attention_mask.shape[1] != past + length:
                raise ValueError(
                    f"`decoder_attention_mask` must also say which of the {past} tokens before are real, where the "
                    f"decoder attends to them: {[len(attention_mask), past + length]}, got "
                    f"{list(attention_mask.shape)}."
                )
            positions = positions_of(attention_mask)[:, past:]
            latest = torch.arange(length, device=latents.device) * attention_mask[:, past:].bool()
            back = latest.cummax(1).values  # [B, T]
        else:
            # Padding behind a row's end changes nothing that looks back: its mask is spared.
            order, back, _ = left_align(attention_mask, self.room)
            inputs_embeds, attention_mask = take_time(inputs_embeds, order), None
            positions = torch.arange(order.shape[1], device=latents.device).unsqueeze(0)
        if repeats > 1:
            inputs_embeds = inputs_embeds.repeat(repeats, 1, 1)
            back, attention_mask = (t if t is None else t.repeat(repeats, 1) for t in (back, attention_mask))
            positions = positions if len(positions) == 1 else positions.repeat(repeats, 1)
        if use_cache and cache is None:
            cache = self.new_cache()
        if past:
            repeat_rows(cache, len(latents))
        outputs, hidden_states = self.attend(
            self.with_latents(inputs_embeds, latents, positions),
            positions,
            attention_mask,
            cache if use_cache or past else None,
            latents,
            output_hidden_states,
        )
        if back is not None:
            outputs, hidden_states = take_time(outputs, back), [take_time(h, back) for h in hidden_states]
        return outputs, cache, [read, *hidden_states]

    def with_latents(self, inputs: torch.Tensor, latents: torch.Tensor, positions: torch.LongTensor) -> torch.Tensor:
        """What is read, [B, T, E], with z in it."""
        if "prefix" in self.config.latent_conditioning:
            inputs = torch.where((positions == 0).unsqueeze(-1), self.prefix(latents).unsqueeze(1), inputs)
        if "input" in self.config.latent_conditioning:
            inputs = inputs + self.beside_input(latents).unsqueeze(1)
        return inputs

    def new_cache(self) -> DynamicCache:
        return DynamicCache()

    def attend(self, inputs, positions, attention_mask, cache, latents, output_hidden_states):
        """Outputs, and each layer's, of inputs [B, T, E] that hold z where they should."""
        memory = None
        if "memory" in self.config.latent_conditioning:
            memory = self.memory(latents).unflatten(-1, (self.config.memory_tokens, -1))  # [B, M, H]
        return self.transformer(inputs, positions, attention_mask, cache, memory, output_hidden_states)


class VRAEPretrainedDecoder(VRAETransformerDecoder):
    """A causal language model of transformers (`decoder_config`): z is added to its embeddings, as in Optimus (Li
    et al. 2020, sec. 3.2), and in place of the start every layer attends to it, as there to a memory."""

    def make_inputs(self, config: VRAEConfig) -> None:
        self.body = make_body(config, "decoder_config")

    def make_layers(self, config: VRAEConfig) -> None:
        self.make_places(self.embed_tokens.embedding_dim)
        self.width = 4 * config.decoder_hidden_size

    @property
    def room(self) -> int | None:
        return most_positions(self.body)

    @property
    def embed_tokens(self) -> nn.Embedding:
        return self.body.get_input_embeddings()

    def set_embed_tokens(self, table: nn.Embedding) -> None:
        self.body.set_input_embeddings(table)

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.body.config)

    def attend(self, inputs, positions, attention_mask, cache, latents, output_hidden_states):
        check_positions(positions, self.room)
        # Positions that every model would count so itself are left to it: some of them begin at another number.
        counted = {} if attention_mask is None else {"position_ids": positions}
        outputs = self.body(
            inputs_embeds=inputs,
            attention_mask=attention_mask,
            **{CACHE: cache},
            use_cache=cache is not None,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **counted,
        )
        return outputs.last_hidden_state, list(outputs.hidden_states[1:]) if output_hidden_states else []


class VRAEIndependentDecoder(VRAEDecoder):
    """p(x_t | z, t): MLP([z; t]), and of x_<t nothing is read. Its state is how many steps each row has had."""

    def __init__(self, config: VRAEConfig):
        super().__init__(config)
        self.mlp = PositionwiseMLP(
            config.decoder_latent_size,
            config.decoder_hidden_size,
            config.decoder_layers,
            config.max_position_embeddings,
            config.dropout,
            config.kernels,
            config.variational_dropout,
        )

    def make_inputs(self, config: VRAEConfig) -> None:
        """There are none."""

    def read_tokens(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """Nothing, [B, T, 0]."""
        return torch.empty(*input_ids.shape, 0, dtype=float_dtype(self), device=input_ids.device)

    def read_frames(self, frames: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Nothing, [..., 0]."""
        return self.mlp.input.weight.new_empty(*first.shape, 0)

    def decode(self, latents, inputs_embeds, attention_mask, cache, use_cache, output_hidden_states):
        real = inputs_embeds.new_ones(inputs_embeds.shape[:2]) if attention_mask is None else attention_mask
        positions = positions_of(real)  # [B, T]
        if cache is not None and cache.get_seq_length() > 0:
            (had,) = cache.states(len(latents))[0]  # [B, 1]
            positions = positions + had
        else:
            had = torch.zeros_like(positions[:, :1])
        outputs, hidden_states = self.mlp(latents.unsqueeze(1), positions)
        if use_cache:
            if cache is None:
                cache = RecurrentCache(1, 1)
            cache.update_states([(had + real.long().sum(1, keepdim=True),)], inputs_embeds.shape[1])
        return outputs, cache, hidden_states


def make_decoder(config: VRAEConfig) -> VRAEDecoder:
    """The kind of decoder that the configuration names."""
    if config.decoder_config is not None:
        return VRAEPretrainedDecoder(config)
    if config.decoder_type == "transformer":
        return VRAETransformerDecoder(config)
    if config.decoder_type == "independent":
        return VRAEIndependentDecoder(config)
    return VRAERecurrentDecoder(config)
