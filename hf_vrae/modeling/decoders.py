"""The state of p(x_t | x_<t, z): what its distributions are read from.

Letters in shapes: B batch, T time, K samples, D latent size, E embedding size, H hidden size.
"""

import torch
from torch import nn

from .configuration_vrae import VRAEConfig
from .generation import RecurrentCache
from .heads import make_frame_embedding
from .kernels import Dropout
from .modeling_latent import check_token_ids
from .recurrent import RecurrentDecoder


class VRAEDecoder(nn.Module):
    """Carries the state of p(x_t | x_<t, z): z sets the first state, enters every step, or both."""

    def __init__(self, config: VRAEConfig):
        super().__init__()
        self.config = config
        if config.input_size is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        else:
            self.embed_frames = make_frame_embedding(config)
            self.embed_start = nn.Embedding(1, config.embedding_size)  # what is read before the first frame
        self.dropout = Dropout(config.dropout, config.kernels)
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
        )
        self.output_size = config.decoder_hidden_size + config.decoder_latent_size * (
            "output" in config.latent_conditioning
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

    def beside_latents(self, hidden: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """What p(x_t | ...) is read from: h, or [h; z], of outputs `hidden` [B, T, H] and `latents` [B, D]."""
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
        past_key_values: RecurrentCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[torch.Tensor, RecurrentCache | None, tuple[torch.Tensor, ...] | None]:
        """
        Args:
            latents: z, [B, D]; or [K * B, D], K of each row in turn, which costs less than K * B rows of tokens.
            input_ids: [B, T]; or `inputs_embeds` [B, T, E] in its place.
            attention_mask: nonzero where a token is real, [B, T]; all by default.
            past_key_values: state to go on from; by default the first state.
            use_cache: whether to return the state after the last real token.
            output_hidden_states: whether to return the embeddings and each layer's outputs.

        Returns:
            the outputs [K * B, T, H], the cache, and the hidden states.
        """
        latents = latents.to(self.rnn.layers[0].input_weight.dtype)
        if inputs_embeds is None:
            check_token_ids("decoder_input_ids", input_ids, self.embed_tokens.num_embeddings)
            if self.training and self.config.word_dropout > 0:
                input_ids = self.drop_words(input_ids)
            inputs_embeds = self.embed_tokens(input_ids)  # [B, T, E]
        inputs = self.dropout(inputs_embeds)
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            states = past_key_values.states(latents.shape[0])
        else:
            states = self.first_states(latents)
        outputs, states, hidden_states = self.rnn(
            inputs, states, self.seen_at_every_step(latents), attention_mask, use_cache, output_hidden_states
        )
        if use_cache:
            if past_key_values is None:
                past_key_values = RecurrentCache(self.config.decoder_layers, self.rnn.number_of_states)
            past_key_values.update_states(states, inputs.shape[1])
        hidden_states = (inputs_embeds, *hidden_states) if output_hidden_states else None
        return outputs, past_key_values if use_cache else None, hidden_states
