"""The variational recurrent autoencoder over sequences of vectors.

    z ~ q(z|x)                                      encoder: state at the last frame of x
    log p(x|z) = sum_t log p(x_t | x_<t, z)         decoder: recurrent, reads the frame before; p(x_t | ...) is a head
    log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || p(z))

Letters in shapes: B batch, T time, K samples, D latent size, E embedding size, H hidden size, F channels of a frame.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .conditioning import join
from .configuration_vrae import VRAEConfig
from .encoders import VRAEEncoderOutput, as_encoder_output
from .generation import GeneratedFrames
from .modeling_conditional import ConditionalModel
from .modeling_frames import FrameGenerationMixin, FrameModel, ScoredFrames
from .modeling_latent import check_finite
from .modeling_vrae import VRAEModel, VRAEPreTrainedModel
from .recurrent import predecessors


@dataclass
class VRAEFrameOutput(ModelOutput):
    """
    Args:
        loss: mean over the examples of reconstruction + kl_weight * KL, in nats per sequence; in training what the
            configuration makes of it: the KL that is charged for, further terms, or the importance-weighted bound.
        reconstruction_loss: mean of -log p(x|z), summed over frames, in nats per sequence, a density of scaled frames;
            `heads.raw_log_prob_offset` says what raw ones add to log p.
        kl: mean of KL(q(z|x) || p(z)), neither weighted nor clamped, in nats per sequence.
        predictions: the mean of p(x_t | x_<t, z) for each frame of the labels, in raw units, 0 at padding,
            [B, T, F]; None in training with labels, where nobody looks.
        decoder_hidden_states: embeddings [B, T, E] and each layer's outputs [B, T, H].
        encoder_last_hidden_state: z where none was sampled: the posterior mean, [B, 1, D]; of a conditional model
            [B, 1, D + C], z and behind it c.
        encoder_hidden_states: embeddings [B, T, E] and each layer's outputs [B, T, H].
        latents: the z that was decoded, [B, D].
        posterior_mean, posterior_logvar: of q(z|x), float32 [B, D], the first of a vMF posterior its direction; None
            where z was given. The second is not there in training with several samples, nor are both with
            `label_classifier`.
    """

    loss: torch.FloatTensor | None = None
    predictions: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    kl: torch.FloatTensor | None = None
    decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    encoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    latents: torch.FloatTensor | None = None
    posterior_mean: torch.FloatTensor | None = None
    posterior_logvar: torch.FloatTensor | None = None


class VRAEForFrameGeneration(VRAEPreTrainedModel, ConditionalModel, FrameModel, FrameGenerationMixin):
    """The VRAE over sequences of vectors: encodes series, decodes latents, and bounds log p(x).

    Frames come and go in raw units; losses and likelihoods are of scaled ones (see `modeling_frames`).

    Example:

    ```python
    >>> model = VRAEForFrameGeneration(VRAEConfig(input_size=12, head="gaussian"))
    >>> z = model.encode(input_features=series).mean  # of series [B, T, 12]
    >>> model.generate(latents=z, max_length=50).sequences
    ```
    """

    main_input_name = "input_features"
    inner_class = VRAEModel

    def __init__(self, config: VRAEConfig):
        super().__init__(config)
        self.model = self.inner_class(config)
        self._make_head(self.model.decoder.output_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.FloatTensor | None = None,
        latents: torch.FloatTensor | None = None,
        encoder_outputs: VRAEEncoderOutput | None = None,
        output_hidden_states: bool | None = None,
        class_ids: torch.LongTensor | None = None,
        attributes: torch.FloatTensor | None = None,
        condition: torch.FloatTensor | None = None,
        segment_ids: torch.LongTensor | None = None,
    ) -> VRAEFrameOutput:
        """
        Args:
            input_features: what to encode, [B, T, F], raw; NaN where a value is missing.
            attention_mask: nonzero where a frame is real, [B, T], of input and labels alike; all by default.
            labels: frames to score, [B, T, F], raw; NaN where nothing is scored. The decoder reads them too, each
                one before the next; without labels it reads the input.
            latents: z to decode in place of an input, [B, D]. By default a sample of q(z|x) with `labels` (in
                evaluation always the same noise), and the mean of q(z|x) otherwise.
            encoder_outputs: an earlier output of the encoder, whose `last_hidden_state` [B, 1, D] is decoded as is.
            class_ids, attributes, condition: of a conditional model, as in [`ConditionalModel.condition`].
            segment_ids: of each frame, [B, T], in the families that have segments; not looked at in the others.

        Returns:
            [`VRAEFrameOutput`]; `loss` and its parts only with `labels`, `kl` only where there is a posterior.

        Raises:
            ValueError: for frames of a wrong shape, a mask that disagrees with them, a row without a frame, and on a
                CPU for values that are infinite or that the head does not know.
        """
        if input_features is None and labels is None:
            raise ValueError("Pass `input_features`, or with `latents` the `labels` that the decoder reads.")
        if latents is not None and (input_features is not None or encoder_outputs is not None):
            raise ValueError("`latents` take the place of the encoder: pass them or its input, not both.")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        target = self.target(labels, input_features, attention_mask, segment_ids=segment_ids)
        c, encodes = None, encoder_outputs is None and latents is None
        if encoder_outputs is None:
            given = {"class_ids": class_ids, "attributes": attributes, "condition": condition}
            given |= {"input_features": input_features, "attention_mask": attention_mask}
            if labels is not None and encodes and self.training and self.config.label_classifier:
                return VRAEFrameOutput(**self._semi_supervised_loss(target, **given))
            c = self.condition(**given)
        else:
            self._check_decoded_as_is(class_ids, attributes, condition)
        if latents is None:
            if encodes:
                encoder_outputs = self._encoder_outputs(
                    c, input_features, attention_mask, output_hidden_states, segment_ids=segment_ids
                )
            else:
                encoder_outputs = as_encoder_output(encoder_outputs)
            latents, c = self._split(encoder_outputs.last_hidden_state[:, 0])
        posterior = self._posterior_of(encoder_outputs)
        if labels is not None and encodes:
            if self.training and self.config.num_train_samples > 1:
                return VRAEFrameOutput(**self._importance_weighted_loss(posterior, target, c))
            posterior, latents = self._draw_latents(posterior, target, c)
        self._check_latents(latents)
        if len(target.mask) not in (1, len(latents)):
            raise ValueError(
                f"`labels` must have a row for each of the {len(latents)} latents, got {len(target.mask)}."
            )
        features, hidden_states = self._features(join(latents, c), target, output_hidden_states)
        loss = reconstruction = kl = predictions = None
        if labels is not None:
            reconstruction = -self._score(features, target).sum(-1).mean()
            loss, kl = self._bound(reconstruction, posterior, latents, c)
            if self.training:
                loss = loss + self._auxiliary_losses(latents, target, c)
        if labels is None or not self.training:
            predictions = self._predictions(features, target)
        given = encoder_outputs or VRAEEncoderOutput(join(latents, c).unsqueeze(1))
        return VRAEFrameOutput(
            loss=loss,
            predictions=predictions,
            reconstruction_loss=reconstruction,
            kl=kl,
            decoder_hidden_states=hidden_states,
            encoder_last_hidden_state=given.last_hidden_state,
            encoder_hidden_states=given.hidden_states,
            latents=latents,
            posterior_mean=given.mean,
            posterior_logvar=given.logvar,
        )

    def _encoder_outputs(
        self, condition=None, input_features=None, attention_mask=None, output_hidden_states=False, **batch
    ) -> VRAEEncoderOutput:
        frames, mask, _ = self._scaled(input_features, attention_mask, "input_features")
        embedded = self.model.encoder.embed_frames(frames)  # [B, T, E]
        return self.model.encoder(
            None, mask, embedded, output_hidden_states=output_hidden_states, condition=condition, return_dict=True
        )

    def _rows_of(self, target: ScoredFrames, rows: torch.LongTensor) -> ScoredFrames:
        return ScoredFrames(*(part[rows] for part in target))

    def encode(self, input_features=None, attention_mask=None, **batch) -> torch.distributions.Distribution:
        """q(z|x), with batch shape [B] and event shape [D], in float32.

        Args:
            input_features, attention_mask: as in [`forward`]; of the rest of the batch only conditions are looked at,
                and in the families that have segments `segment_ids`.
        """
        self._check_fields(batch)
        inputs = {"input_features": input_features, "attention_mask": attention_mask}
        condition, segment_ids = self.condition(**inputs, **batch), batch.get("segment_ids")
        outputs = self._encoder_outputs(condition, **inputs, segment_ids=segment_ids)
        return self._posterior_of(outputs)

    def _features(self, latents: torch.Tensor, target: ScoredFrames, output_hidden_states: bool = False):
        """What `head` reads, [K * B, T, H], of latents [K * B, D] and a target of B rows; and the hidden states."""
        frames, first = predecessors(target.values, target.mask)
        read = self.model.decoder.read_frames
        if not self.config.reads_the_past:
            frames = torch.full_like(frames, torch.nan)
        elif self.training and self.sampling_probability > 0:
            hidden, _, _ = self._decode(latents, target, read(frames, first))
            frames = self._mix_in_own_frames(frames, self.model.decoder.beside_latents(hidden, latents), target)
        if self.training and self.config.word_dropout:
            dropped = torch.rand(first.shape, device=first.device) < self.config.word_dropout
            frames = frames.masked_fill(dropped.unsqueeze(-1), torch.nan)
        hidden, _, hidden_states = self._decode(latents, target, read(frames, first), output_hidden_states)
        return self.model.decoder.beside_latents(hidden, latents), hidden_states

    def _decode(self, latents: torch.Tensor, target: ScoredFrames, embedded: torch.Tensor, output_hidden_states=False):
        return self.model.decoder(
            latents,
            attention_mask=target.mask,
            inputs_embeds=embedded,
            output_hidden_states=output_hidden_states,
        )

    @torch.no_grad()
    def teacher_forced(self, latents: torch.Tensor, **batch) -> torch.Tensor:
        """The likeliest x_t given the frames before it and `latents` [B, D], raw, [B, T, F]; for `batch` as
        [`forward`] takes it."""
        return self._likeliest(self._features(self._seen(latents, batch), self.target(**batch))[0])

    def _embed_chosen(self, frame: torch.Tensor | None, latents: torch.Tensor) -> torch.Tensor:
        """What a step of generation reads, [B, E], of the frame just chosen, scaled [B, F], None at the start."""
        first = torch.full((len(latents),), frame is None, device=self.device)
        if frame is None or not self.config.reads_the_past:
            frame = latents.new_full((len(latents), self.config.input_size), torch.nan)
        return self.model.decoder.read_frames(frame, first)

    def _log_likelihood(self, latents: torch.Tensor, target: ScoredFrames) -> torch.Tensor:
        features, _ = self._features(latents.flatten(0, 1), target)
        return self._score(features.unflatten(0, latents.shape[:2]), target).sum(-1)  # [K, B]

    def evaluation_terms(self, num_samples, generators=None, svi_steps=0, **batch):
        """As in [`OneLatentModel`], and where frames are scaled `raw_offset` [B]: it makes log p one of raw ones."""
        terms = super().evaluation_terms(num_samples, generators, svi_steps, **batch)
        return terms | self._raw_offset(self.target(**batch))

    def _width(self, target: ScoredFrames) -> int:
        return target.mask.numel() * max(self.model.decoder.width, self.head.projection.out_features)

    def _parts_of_likelihood(self) -> list[nn.Module]:
        return [self.model.decoder, self.head, *([self.length_head] if self.config.predict_length else [])]

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        latents: torch.FloatTensor | None = None,
        max_length: int | None = None,
        do_sample: bool = False,
        lengths: torch.LongTensor | None = None,
        beginning: torch.FloatTensor | None = None,
        labels=None,
        class_ids: torch.LongTensor | None = None,
        attributes: torch.FloatTensor | None = None,
        condition: torch.FloatTensor | None = None,
        guidance_scale: float | None = None,
    ) -> GeneratedFrames:
        """Frames from an input (its posterior mean is decoded) or from `latents`, one step of the decoder after the
        other. A conditional model also decodes neither: z is then drawn from p(z|c), one for each of the labels.

        Args:
            input_features, attention_mask: as in [`forward`].
            latents: z to decode in place of an input, [B, D].
            max_length: how many frames; with `predict_length` at most so many, and each row ends where the model says.
                By default as many as the input's row has, and with `predict_length` at most as its longest.
            do_sample: sample each frame from p(x_t | x_<t, z). Otherwise its mode is taken, which for the Gaussian
                heads is the mean, for a mixture the place of its likeliest component, and for the others the likeliest
                value.
            lengths: how many frames of each row, [B], in place of all that.
            beginning: frames to go on from, [B, S, F] or [1, S, F], raw. The model fills in what is NaN there, given
                the frames before; beginnings of different lengths have NaN frames at their ends.
            labels, class_ids, attributes, condition: of a conditional model, as in
                [`VRAEForSequenceGeneration.generate`].
            guidance_scale: as there, of the heads bernoulli and categorical: their logits are linear in what they
                read, so that it is guided itself. Of the others p(x|c)^s p(x)^(1 - s) is not in the family.

        Returns:
            [`GeneratedFrames`]: `sequences` [B, T, F], raw, beginnings included, and the `lengths` [B] of its rows.
        """
        conditional, neither = self.config.condition_width > 0, input_features is None and latents is None
        if (input_features is not None and latents is not None) or (neither and not conditional):
            raise ValueError("Pass one of `input_features`, whose posterior mean is decoded, and `latents`.")
        if input_features is not None:
            attention_mask = self._mask(input_features, attention_mask)
        batch = {"input_features": input_features, "attention_mask": attention_mask}
        conditions = {"class_ids": class_ids, "attributes": attributes, "condition": condition}
        if conditional:
            of_rows = beginning if lengths is None else torch.as_tensor(lengths).flatten()
            rows = 1 if of_rows is None else len(of_rows)
            latents = self._decoded_of(labels, latents, batch | conditions, rows)
        else:
            self.condition(labels=labels, **conditions)  # says what is wrong
            latents = self.encode(**batch).mode if latents is None else latents
        self._check_latents(latents, self.config.condition_width)
        check_finite(latents[:, : self.config.latent_size])
        rows, latents = len(latents), latents.to(self.device, self.dtype)
        if attention_mask is not None:
            attention_mask = attention_mask.expand(rows, -1)  # one input under several labels
        next_features = self._reader(latents)
        if guidance_scale not in (None, 1):
            next_features = self._guided(next_features, latents, guidance_scale)
        return self._generate(next_features, rows, attention_mask, max_length, do_sample, lengths, beginning)

    def _reader(self, latents: torch.Tensor) -> Callable[[torch.Tensor | None], torch.Tensor]:
        """From the frames just chosen, [B, F], to what the head reads of the next ones, [B, H], given `latents`."""
        step = self.model.decoder.stepper(latents)

        def next_features(frame):
            hidden = step(self._embed_chosen(frame, latents))
            return self.model.decoder.beside_latents(hidden.unsqueeze(1), latents).squeeze(1)

        return next_features

    def _guided(self, with_condition: Callable, latents: torch.Tensor, scale: float) -> Callable:
        """u + s (h - u), with h what is read with the condition and u what is read without (Ho & Salimans 2022)."""
        if self.config.head not in ("bernoulli", "categorical"):
            raise ValueError(
                f"`guidance_scale` is of the heads bernoulli and categorical, got {self.config.head}, whose "
                "distributions guidance would leave. Leave it out."
            )
        without = self._reader(self._without_condition(latents, scale))

        def next_features(frame):
            u = without(frame)
            return u + scale * (with_condition(frame) - u)

        return next_features


__all__ = ["VRAEForFrameGeneration"]
