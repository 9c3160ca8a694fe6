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
from .independent import PositionwiseMLP
from .kernels import Dropout
from .modeling_latent import check_mask, check_token_ids, real_positions
from .posteriors import BatchNormPosterior, CommittedRatePosterior, GaussianPosterior, VonMisesFisherPosterior
from .pretrained import make_body, most_positions
from .recurrent import RecurrentEncoder, left_align, take_time
from .transformer import Transformer, check_positions, positions_of


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


def as_encoder_output(outputs) -> VRAEEncoderOutput:
    """What a caller gave as `encoder_outputs`: a tuple, or what any encoder gives, its `last_hidden_state` the z."""
    if isinstance(outputs, VRAEEncoderOutput):
        return outputs
    if isinstance(outputs, ModelOutput):
        names = VRAEEncoderOutput.__dataclass_fields__.keys() & outputs.keys()
        return VRAEEncoderOutput(**{name: outputs[name] for name in names})
    # A tuple leaves out what is None: of a vMF posterior the layers, or the summary, follow its direction.
    layers = next((part for part in outputs if isinstance(part, tuple)), None)
    seen, mean, logvar = [*(part for part in outputs if isinstance(part, torch.Tensor)), None, None][:3]
    if logvar is not None and logvar.shape != mean.shape:
        logvar = None
    return VRAEEncoderOutput(seen, mean, logvar, layers)


class VRAEEncoder(nn.Module):
    """Parameterises q(z|x) by a summary of x: a subclass makes its layers, and gives `summarise`."""

    main_input_name = "input_ids"  # `generate` asks its encoder for it

    def __init__(self, config: VRAEConfig):
        super().__init__()
        self.config = config
        self.make_inputs(config)
        self.dropout = Dropout(config.encoder_dropout, config.kernels, config.variational_dropout)
        self.make_layers(config)
        self.posterior = make_posterior(config)

    def make_inputs(self, config: VRAEConfig) -> None:
        """The table of words, or what embeds frames."""
        if config.input_size is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        else:
            self.embed_frames = make_frame_embedding(config)

    def make_layers(self, config: VRAEConfig) -> None:
        """Between the inputs and the summary; of a model of transformers the inputs are its own."""

    def set_embed_tokens(self, table: nn.Embedding) -> None:
        self.embed_tokens = table

    def read(self, input_ids, attention_mask, inputs_embeds) -> tuple[torch.Tensor, torch.Tensor]:
        """What is encoded, embedded [B, T, E], and where it is real, [B, T]; arguments as of [`forward`]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "Pass one of `input_ids` and `inputs_embeds` to the encoder, or give it `latents` instead."
            )
        if inputs_embeds is None:
            check_token_ids("input_ids", input_ids, self.config.vocab_size)
            inputs_embeds = self.embed_tokens(input_ids)  # [B, T, E]
        check_mask("attention_mask", attention_mask, inputs_embeds)
        if input_ids is not None:
            attention_mask = real_positions(input_ids, attention_mask, self.config.pad_token_id)
        elif attention_mask is None:
            attention_mask = torch.ones_like(inputs_embeds[..., 0])
        return inputs_embeds, attention_mask

    def summarise(
        self, inputs: torch.Tensor, mask: torch.Tensor, output_hidden_states: bool
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            inputs: embedded, [B, T, E].
            mask: nonzero where a position is real, [B, T].
            output_hidden_states: whether to return each layer's outputs.

        Returns:
            the summary [B, H], and each layer's outputs [B, T, H] where asked for.
        """
        raise NotImplementedError

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
        inputs_embeds, attention_mask = self.read(input_ids, attention_mask, inputs_embeds)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        inputs = self.dropout(inputs_embeds)
        summary, hidden_states = self.summarise(inputs, attention_mask, output_hidden_states)  # [B, H]
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


class VRAERecurrentEncoder(VRAEEncoder):
    """The summary is the state at the last token of x."""

    def make_layers(self, config: VRAEConfig) -> None:
        self.rnn = RecurrentEncoder(
            config.rnn_type,
            config.layer_norm,
            config.embedding_size,
            config.encoder_hidden_size,
            config.encoder_layers,
            config.bidirectional_encoder,
            config.kernels,
        )

    def summarise(self, inputs, mask, output_hidden_states):
        return self.rnn(inputs, mask, output_hidden_states)


class VRAETransformerEncoder(VRAEEncoder):
    """The summary is the mean over x of a transformer's outputs."""

    def make_layers(self, config: VRAEConfig) -> None:
        self.transformer = Transformer(
            config,
            config.embedding_size,
            config.encoder_hidden_size,
            config.encoder_layers,
            config.encoder_dropout,
            is_causal=False,
        )

    def summarise(self, inputs, mask, output_hidden_states):
        outputs, hidden_states = self.transformer(
            inputs, positions_of(mask), mask, output_hidden_states=output_hidden_states
        )
        return mean_over_time(outputs, mask), hidden_states


class VRAEIndependentEncoder(VRAEEncoder):
    """The summary is the mean of MLP([x_t; t]): no step of x meets another."""

    def make_layers(self, config: VRAEConfig) -> None:
        self.mlp = PositionwiseMLP(
            config.embedding_size,
            config.encoder_hidden_size,
            config.encoder_layers,
            config.max_position_embeddings,
            config.encoder_dropout,
            config.kernels,
            config.variational_dropout,
        )

    def summarise(self, inputs, mask, output_hidden_states):
        outputs, hidden_states = self.mlp(inputs, positions_of(mask))
        return mean_over_time(outputs, mask), hidden_states[1:]


class VRAEPretrainedEncoder(VRAEEncoder):
    """The summary is the mean over x of the last layer of a model of transformers (`encoder_config`)."""

    def make_inputs(self, config: VRAEConfig) -> None:
        self.body = make_body(config, "encoder_config")

    @property
    def embed_tokens(self) -> nn.Embedding:
        return self.body.get_input_embeddings()

    def set_embed_tokens(self, table: nn.Embedding) -> None:
        self.body.set_input_embeddings(table)

    def summarise(self, inputs, mask, output_hidden_states):
        # With padding behind them tokens have the positions that every model counts by itself.
        room = most_positions(self.body)
        order, back, lengths = left_align(mask, room)
        positions = torch.arange(order.shape[1], device=inputs.device)
        check_positions(positions, room)
        real = positions < lengths.unsqueeze(1)
        outputs = self.body(
            inputs_embeds=take_time(inputs, order),
            attention_mask=real.long(),
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        layers = outputs.hidden_states[1:] if output_hidden_states else ()
        return mean_over_time(outputs.last_hidden_state, real), [take_time(layer, back) for layer in layers]


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


def make_encoder(config: VRAEConfig) -> nn.Module:
    """The kind of encoder that the configuration names."""
    if not config.latent_size:
        return NoEncoder()
    if config.encoder_config is not None:
        return VRAEPretrainedEncoder(config)
    if config.encoder_type == "transformer":
        return VRAETransformerEncoder(config)
    if config.encoder_type == "independent":
        return VRAEIndependentEncoder(config)
    return VRAERecurrentEncoder(config)


def mean_over_time(outputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over real positions: [B, H] of outputs [B, T, H] and a mask [B, T]."""
    real = mask.to(outputs.dtype).unsqueeze(-1)
    return (outputs * real).sum(1) / real.sum(1).clamp(min=1)
