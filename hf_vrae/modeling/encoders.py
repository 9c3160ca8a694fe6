"""q(z|x): from what is encoded to the posterior.

Letters in shapes: B batch, T time, D latent size, E embedding size, H hidden size.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .conditioning import join
from .configuration_vrae import VRAEConfig
from .distributions import DiagonalGaussian
from .heads import make_frame_embedding
from .kernels import Dropout
from .modeling_latent import check_token_ids
from .posteriors import BatchNormPosterior, CommittedRatePosterior, GaussianPosterior, VonMisesFisherPosterior
from .recurrent import RecurrentEncoder


@dataclass
class VRAEEncoderOutput(ModelOutput):
    """
    Args:
        last_hidden_state: what the decoder will see, [B, 1, D]: the posterior mean, or the latents that were given;
            of a conditional model [B, 1, D + C], z and behind it c.
        mean, logvar: of the posterior q(z|x), float32 [B, D]; of a vMF posterior its direction, and None.
        hidden_states: embeddings [B, T, E] and each layer's outputs [B, T, H].
        summary: what the posterior and `label_classifier` read of x, [B, H]; of a model with the latter.
    """

    last_hidden_state: torch.FloatTensor | None = None
    mean: torch.FloatTensor | None = None
    logvar: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    summary: torch.FloatTensor | None = None


class VRAEEncoder(nn.Module):
    """Parameterises q(z|x) by the encoder's state at the last token of x."""

    main_input_name = "input_ids"  # `generate` asks its encoder for it

    def __init__(self, config: VRAEConfig):
        super().__init__()
        self.config = config
        if config.input_size is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        else:
            self.embed_frames = make_frame_embedding(config)
        self.dropout = Dropout(config.encoder_dropout, config.kernels)
        self.rnn = RecurrentEncoder(
            config.rnn_type,
            config.layer_norm,
            config.embedding_size,
            config.encoder_hidden_size,
            config.encoder_layers,
            config.bidirectional_encoder,
            config.kernels,
        )
        self.posterior = make_posterior(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,  # `generate` passes it to every encoder; there are none here
        condition: torch.FloatTensor | None = None,
    ) -> VRAEEncoderOutput:
        """
        Args:
            input_ids: [B, T]; or `inputs_embeds` [B, T, E] in its place, as always for frames.
            attention_mask: nonzero where a token is real, [B, T]; by default all but `pad_token_id`.
            condition: c, [B, C] or one for all [C]; of a conditional model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "Pass one of `input_ids` and `inputs_embeds` to the encoder, or give it `latents` instead."
            )
        if inputs_embeds is None:
            check_token_ids("input_ids", input_ids, self.embed_tokens.num_embeddings)
            inputs_embeds = self.embed_tokens(input_ids)  # [B, T, E]
        if attention_mask is None:
            attention_mask = torch.ones_like(inputs_embeds[..., 0])
            if input_ids is not None and self.config.pad_token_id is not None:
                attention_mask = input_ids != self.config.pad_token_id
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        inputs = self.dropout(inputs_embeds)
        summary, hidden_states = self.rnn(inputs, attention_mask, output_hidden_states)  # [B, H]
        mean, logvar = self.moments(summary, condition)  # [B, D]
        return VRAEEncoderOutput(
            last_hidden_state=join(mean, condition).unsqueeze(1),
            mean=mean,
            logvar=logvar,
            hidden_states=(inputs_embeds, *hidden_states) if output_hidden_states else None,
            summary=summary if self.config.label_classifier else None,
        )

    def moments(self, summary: torch.Tensor, condition: torch.Tensor | None = None):
        """Mean and log-variance of q(z|x, c), float32 [B, D] each, of the summary of x [B, H] and of c [B, C]."""
        return self.posterior(join(self.dropout(summary), condition))

    def distribution(self, mean: torch.Tensor, logvar: torch.Tensor | None) -> torch.distributions.Distribution:
        """q(z|x) of the moments that `forward` gave."""
        return self.posterior.distribution(mean, logvar)


class NoEncoder(nn.Module):
    """What stands for the encoder in a language model without z: vectors of no dimension for every input."""

    main_input_name = "input_ids"

    def __init__(self):
        super().__init__()
        self.embed_frames = nn.Identity()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        inputs_embeds=None,
        output_hidden_states=None,
        output_attentions=None,
        condition=None,
    ) -> VRAEEncoderOutput:
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None:
            raise ValueError("Pass `input_ids` or `inputs_embeds`: they tell how many rows there are.")
        nothing = torch.zeros(len(given), 0, device=given.device)
        layers = () if output_hidden_states else None
        seen = join(nothing, condition).unsqueeze(1)
        return VRAEEncoderOutput(seen, mean=nothing, logvar=nothing, hidden_states=layers)

    def distribution(self, mean: torch.Tensor, logvar: torch.Tensor) -> DiagonalGaussian:
        """q(z|x) = p(z), in which there is nothing to draw: batch shape [B], event shape [0]."""
        return DiagonalGaussian(mean, logvar)


def make_posterior(config: VRAEConfig) -> GaussianPosterior:
    """The family of q(z|x) that the configuration names."""
    sizes = config.encoder_hidden_size + config.condition_width, config.latent_size
    if config.posterior == "batch_norm":
        return BatchNormPosterior(*sizes, config.batch_norm_gamma, config.learn_batch_norm_scale)
    if config.posterior == "delta":
        return CommittedRatePosterior(*sizes, config.committed_rate)
    if config.posterior == "vmf":
        return VonMisesFisherPosterior(*sizes, config.concentration)
    return GaussianPosterior(*sizes)
