"""The variational recurrent autoencoder (Fabius & van Amersfoort 2014; Bowman et al. 2016) as a transformers model.

    z ~ q(z|x) = N(mean(x), diag(variance(x)))      encoder: state at the last token of x
    log p(x|z) = sum_t log p(x_t | x_<t, z)         decoder: recurrent, sees z where `latent_conditioning` says
    log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || p(z)),   p(z) = N(0, I)

Of a conditional model all stands under c, and `modeling_conditional` says how.

Letters in shapes: B batch, T time, K samples, D latent size, E embedding size, H hidden size, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.cache_utils import Cache
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import can_return_tuple

from .cache_name import CACHE, takes_cache
from .conditioning import ConditionEmbedding, join
from .configuration_vrae import VRAEConfig
from .decoders import make_decoder
from .encoders import VRAEEncoderOutput, as_encoder_output, make_encoder
from .generation_vrae import VRAEGenerationMixin
from .kernels import IGNORE_INDEX, at_least_float32, draw, linear_cross_entropy, linear_nll
from .modeling_conditional import ConditionalModel
from .modeling_latent import (
    LatentSequenceModel,
    check_ids,
    check_latents,
    check_mask,
    check_no_attentions,
    check_token_ids,
    real_positions,
    token_nll,
)
from .posteriors import ConditionalPrior, CorrelatedPrior
from .pretrained import copy_head, copy_weights, fields_of
from .recurrent import predecessors


@dataclass
class VRAEOutput(Seq2SeqLMOutput):
    """transformers' output of a sequence-to-sequence model, whose attentions are None here, and what a VAE adds to it.

    Args:
        loss: mean over the examples of reconstruction + kl_weight * KL, in nats per sequence; in training what the
            configuration makes of it: the KL that is charged for, further terms, or the importance-weighted bound.
        logits: [B, T, V], of the token that follows each decoder position.
        cache: decoder state after the last token, for the next call; see `cache_name.py`.
        decoder_hidden_states: embeddings [B, T, E] and each layer's outputs [B, T, H].
        encoder_last_hidden_state, encoder_hidden_states: see [`VRAEEncoderOutput`].
        reconstruction_loss: mean of -log p(x|z), summed over tokens, in nats per sequence.
        kl: mean of KL(q(z|x) || p(z)), neither weighted nor clamped, in nats per sequence.
        last_hidden_state: decoder outputs, [B, T, H]; of the model without head only.
        latents: the z that was decoded, [B, D]; of the model without head with c behind it, [B, D + C].
        posterior_mean, posterior_logvar: of q(z|x), float32 [B, D], the first of a vMF posterior its direction; None
            where z was given. The second is not there in training with several samples, nor are both with
            `label_classifier`; `logits` are not in training with labels.
    """

    reconstruction_loss: torch.FloatTensor | None = None
    kl: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    posterior_mean: torch.FloatTensor | None = None
    posterior_logvar: torch.FloatTensor | None = None


class VRAEPreTrainedModel(LatentSequenceModel):
    """What every class of the VRAE is to transformers."""

    config: VRAEConfig
    main_input_name = "input_ids"

    def __init__(self, config: VRAEConfig):
        # What transformers asks about follows from the configuration: it is said of this model, not of its class.
        attends = "transformer" in (config.encoder_type, config.decoder_type)
        self._supports_sdpa = self._supports_flash_attn = self._supports_flex_attn = attends
        self._supports_attention_backend = self.supports_gradient_checkpointing = attends
        self._is_stateful = config.decoder_type != "transformer"
        super().__init__(config)

    def _check_latents(self, latents: torch.Tensor, behind: int = 0) -> None:
        """Of z, with so many numbers behind it."""
        check_latents(latents, self.config.latent_size + behind)


class VRAEModel(VRAEPreTrainedModel):
    """Encoder and decoder without the projection to the vocabulary."""

    _tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}

    def __init__(self, config: VRAEConfig):
        super().__init__(config)
        self.encoder = make_encoder(config)
        if config.tables_are_apart or config.input_size is not None or config.decoder_type == "independent":
            self._tied_weights_keys = {}  # there is one table, or none, or two tokenizers' worth of them
        self.decoder = make_decoder(config)
        if config.condition_width:
            self.embed_condition = ConditionEmbedding(config)
            if config.learn_prior and config.latent_size:
                sizes = config.condition_width, config.encoder_hidden_size, config.latent_size
                self.conditional_prior = ConditionalPrior(*sizes)
        if config.correlated_prior:
            self.correlated_prior = CorrelatedPrior(config.latent_size)
        if config.label_classifier:
            self.classifier = nn.Linear(config.encoder_hidden_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        part = self.encoder if self.config.latent_size else self.decoder
        return part.embed_tokens if self.config.input_size is None else part.embed_frames

    def set_input_embeddings(self, value: nn.Embedding):
        if self.config.latent_size:
            self.encoder.set_embed_tokens(value)
        if not self.config.latent_size or "decoder.embed_tokens.weight" in self.get_expanded_tied_weights_keys():
            self.decoder.set_embed_tokens(value)

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        latents: torch.FloatTensor | None = None,
        encoder_outputs: VRAEEncoderOutput | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        condition: torch.FloatTensor | None = None,
    ) -> VRAEOutput:
        """Arguments as in [`VRAEForSequenceGeneration.forward`]; `condition` is c, [B, C] or [C]."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if encoder_outputs is None and latents is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, inputs_embeds, output_hidden_states, condition=condition, return_dict=True
            )
            if self.training:
                latents = self.encoder.distribution(encoder_outputs.mean, encoder_outputs.logvar).rsample()
        if encoder_outputs is None:
            if input_ids is not None or inputs_embeds is not None:
                raise ValueError(
                    "`latents` take the place of the encoder: pass them or the encoder's input, not both."
                )
            self._check_latents(latents)
            encoder_outputs = VRAEEncoderOutput(last_hidden_state=join(latents, condition).unsqueeze(1))
        else:
            encoder_outputs = as_encoder_output(encoder_outputs)
        seen = encoder_outputs.last_hidden_state[:, 0] if latents is None else join(latents, condition)
        self._check_latents(seen, self.config.condition_width)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError("The decoder needs `decoder_input_ids`, or `labels` to make them from.")
        rows = len(decoder_input_ids if decoder_inputs_embeds is None else decoder_inputs_embeds)
        if len(seen) % max(rows, 1):  # K latents of each row, in the rows k * B + b, share what is read
            raise ValueError(
                "What the decoder reads (`decoder_input_ids`, `decoder_inputs_embeds`, or `labels`) must have a row "
                f"for each of the {len(seen)} latents, got {rows}."
            )
        hidden, cache, decoder_hidden_states = self.decoder(
            seen,
            decoder_input_ids,
            decoder_attention_mask,
            cache,
            decoder_inputs_embeds,
            self.config.use_cache if use_cache is None else use_cache,
            output_hidden_states,
        )
        return VRAEOutput(
            last_hidden_state=hidden,
            **{CACHE: cache},
            decoder_hidden_states=decoder_hidden_states,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            latents=seen,
            posterior_mean=encoder_outputs.mean,
            posterior_logvar=encoder_outputs.logvar,
        )


class VRAEForSequenceGeneration(VRAEPreTrainedModel, ConditionalModel, VRAEGenerationMixin):
    """The VRAE over token sequences: encodes text, decodes latents, and bounds log p(x).

    Example:

    ```python
    >>> q = model.encode(**tokenizer(["the company said it would close the plant"], return_tensors="pt"))
    >>> z = q.mean
    >>> tokenizer.batch_decode(model.generate(latents=z), skip_special_tokens=True)
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.encoder.embed_tokens.weight"}
    other_auto_classes = ("AutoModelForSeq2SeqLM",)
    inner_class = VRAEModel

    def __init__(self, config: VRAEConfig):
        super().__init__(config)
        if config.input_size is not None:
            raise ValueError(
                f"`input_size` {config.input_size} is of frames: take `VRAEForFrameGeneration`, or leave it out."
            )
        self.model = self.inner_class(config)
        size = self.model.decoder.output_size
        self.projection = nn.Identity()
        if config.tie_word_embeddings and size != self._tied_table().embedding_dim:
            self.projection = nn.Linear(size, self._tied_table().embedding_dim, bias=False)
            size = self.projection.out_features
        self.lm_head = nn.Linear(size, config.vocab_size, bias=False)
        if config.tie_word_embeddings and config.tables_are_apart:
            table = next(name for name, module in self.named_modules() if module is self._tied_table())
            self._tied_weights_keys = {"lm_head.weight": f"{table}.weight"}
        if config.bag_of_words_weight:
            # Zhao et al. 2017, released code: one hidden layer of 400 units.
            layers = nn.Linear(config.latent_size, 400), nn.Tanh(), nn.Linear(400, config.vocab_size)
            self.bag_of_words = nn.Sequential(*layers)
        self.post_init()

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder_pretrained_model_name_or_path: str | None = None,
        decoder_pretrained_model_name_or_path: str | None = None,
        freeze_decoder: bool = False,
        **config_kwargs,
    ) -> "VRAEForSequenceGeneration":
        """A VAE with transformers' models, and their weights, as encoder, decoder, or both (Optimus, Li et al. 2020).

        But for the prefix it begins, at z = 0, as the decoder's language model; what z goes through is new.

        Args:
            encoder_pretrained_model_name_or_path: as of `AutoModel.from_pretrained`; by default the encoder is ours.
            decoder_pretrained_model_name_or_path: as of `AutoModelForCausalLM.from_pretrained`; the same. Both read
                the tokens of one tokenizer.
            freeze_decoder: train of p(x|z) no more than what z goes through, and the projection where it is not tied.
            config_kwargs: further fields of the configuration. The marks are by default the decoder's; with another
                `vocab_size` the tables are resized.

        Example:

        ```python
        >>> model = VRAEForSequenceGeneration.from_encoder_decoder_pretrained("gpt2", "gpt2", latent_size=32)
        ```
        """
        if freeze_decoder and decoder_pretrained_model_name_or_path is None:
            raise ValueError("`freeze_decoder` is of `decoder_pretrained_model_name_or_path`, which is not given.")
        encoder = decoder = None
        if encoder_pretrained_model_name_or_path is not None:
            encoder = AutoModel.from_pretrained(encoder_pretrained_model_name_or_path)
        if decoder_pretrained_model_name_or_path is not None:
            decoder = AutoModelForCausalLM.from_pretrained(decoder_pretrained_model_name_or_path)
        model = cls(cls.config_class(**fields_of(encoder, decoder, config_kwargs)))
        if encoder is not None:
            copy_weights(encoder, model.model.encoder.body)
        if decoder is not None:
            copy_weights(decoder.base_model, model.model.decoder.body)
            copy_head(decoder, model.lm_head, model.projection, model.config.tie_word_embeddings)
            model.model.decoder.body.requires_grad_(not freeze_decoder)
        return model.to(model.config.dtype or torch.float32).eval()

    def _tied_table(self) -> nn.Embedding:
        """The table of words that the projection shares where they are tied."""
        part = self.model.decoder if self.config.tables_are_apart else self.model.encoder
        return part.embed_tokens

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        latents: torch.FloatTensor | None = None,
        encoder_outputs: VRAEEncoderOutput | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int = 0,
        class_ids: torch.LongTensor | None = None,
        attributes: torch.FloatTensor | None = None,
        condition: torch.FloatTensor | None = None,
    ) -> VRAEOutput:
        """
        Args:
            input_ids: what to encode, `<s> w1 .. wn </s>`, [B, T]; or `inputs_embeds` [B, T, E] in its place.
            attention_mask: nonzero where an input token is real, [B, T]; by default all but `pad_token_id`.
            decoder_input_ids: what the decoder reads, [B, S]; by default `labels` moved one step on, behind
                `decoder_start_token_id`. Or `decoder_inputs_embeds` [B, S, E] in its place.
            decoder_attention_mask: nonzero where a decoder token is real, [B, S] or, with a cache, [B, past + S]; by
                default all, beside `labels` all but padding.
            latents: z to decode in place of an input, [B, D]. By default a sample of q(z|x) in training and with
                `labels` (in evaluation always the same noise), and the mean of q(z|x) otherwise.
            encoder_outputs: an earlier output of the encoder, whose `last_hidden_state` [B, 1, D] is decoded as is.
            cache: decoder state to go on from; or, by its name before transformers 5.24, `past_key_values`.
            labels: `w1 .. wn </s>` with -100 where there is none, [B, S].
            output_attentions: must not be asked for: none are kept.
            logits_to_keep: compute only the last so many logits; 0 is all.
            class_ids, attributes, condition: of a conditional model, as in [`ConditionalModel.condition`].

        Returns:
            [`VRAEOutput`]; `loss` and its parts only with `labels`, `kl` only where there is a posterior.
        """
        check_no_attentions(output_attentions)
        posterior = c = None
        given_to_decoder = decoder_input_ids is not None or decoder_inputs_embeds is not None
        encodes = encoder_outputs is None and latents is None
        if labels is not None and encodes and given_to_decoder and self.training:
            self._check_reads_what_is_given()
        if encoder_outputs is None:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
            inputs |= {"class_ids": class_ids, "attributes": attributes, "condition": condition}
            if labels is not None and encodes and self.training and self.config.label_classifier:
                return VRAEOutput(**self._semi_supervised_loss(labels, **inputs))
            c = self.condition(**inputs)
        else:
            encoder_outputs = as_encoder_output(encoder_outputs)
            self._check_decoded_as_is(class_ids, attributes, condition)
        if labels is not None:
            check_token_ids("labels", labels, self.config.vocab_size, ignore=IGNORE_INDEX)
            use_cache = False
            if not given_to_decoder:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
                decoder_attention_mask = labels != IGNORE_INDEX
            elif decoder_attention_mask is None and cache is None and decoder_input_ids is not None:
                decoder_attention_mask = self._read_beside(labels, decoder_input_ids)
            if encodes:
                encoder_outputs = self._encoder_outputs(
                    c, input_ids, attention_mask, inputs_embeds, output_hidden_states
                )
                posterior = self._posterior_of(encoder_outputs)
                if self.training and self.config.num_train_samples > 1:
                    return VRAEOutput(**self._importance_weighted_loss(posterior, labels, c))
                posterior, latents = self._draw_latents(posterior, labels, c)
            mixes = self.training and self.sampling_probability > 0 and decoder_input_ids is not None
            if mixes and decoder_input_ids.shape == labels.shape:
                seen = encoder_outputs.last_hidden_state[:, 0] if latents is None else join(latents, c)
                decoder_input_ids = self._mix_in_own_words(decoder_input_ids, decoder_attention_mask, labels, seen)
        elif decoder_attention_mask is not None and given_to_decoder:
            read = decoder_input_ids if decoder_inputs_embeds is None else decoder_inputs_embeds
            decoder_attention_mask = self._mask_of_what_is_read(decoder_attention_mask, read, cache)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            latents=latents,
            encoder_outputs=encoder_outputs,
            cache=cache,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            condition=c,
            return_dict=True,
        )
        latents, in_it = self._split(outputs.latents)
        c = in_it if c is None else c  # of `encoder_outputs`, which have it
        features = self.features(outputs.last_hidden_state[:, -logits_to_keep:], outputs.latents)  # [B, T, H]
        loss = logits = reconstruction = kl = None
        if labels is None:
            logits = self.lm_head(features)  # [B, T, V]
        else:
            if logits_to_keep:
                raise ValueError(
                    f"`logits_to_keep` {logits_to_keep} leaves out what `labels` score. Leave out one of them."
                )
            logits, reconstruction = self._logits_and_reconstruction(features, labels)
            if posterior is None:
                posterior = self._posterior_of(encoder_outputs)
            loss, kl = self._bound(reconstruction, posterior, latents, c)
            if self.training:
                loss = loss + self._auxiliary_losses(latents, labels, c)
        return VRAEOutput(
            loss=loss,
            logits=logits,
            reconstruction_loss=reconstruction,
            kl=kl,
            **{CACHE: outputs.get(CACHE)},
            decoder_hidden_states=outputs.decoder_hidden_states,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            latents=latents,
            posterior_mean=outputs.posterior_mean,
            posterior_logvar=outputs.posterior_logvar,
        )

    def _mask_of_what_is_read(self, mask: torch.Tensor, read: torch.Tensor, cache) -> torch.Tensor | None:
        """A given `decoder_attention_mask`, checked, as the decoder takes it; None where all is real, as at every step
        of `generate`."""
        check_mask("decoder_attention_mask", mask, read, 0 if cache is None else cache.get_seq_length())
        if self._is_stateful:
            mask = mask[:, -read.shape[1] :]
        return None if not torch.compiler.is_compiling() and mask.all() else mask

    def _logits_and_reconstruction(self, features: torch.Tensor, labels: torch.LongTensor) -> tuple:
        """Logits [B, T, V] of features [B, T, H], and the mean of -log p(labels | features) in nats per sequence; in
        training no logits, which the loss then takes part by part."""
        if labels.shape != features.shape[:2]:
            raise ValueError(
                f"`labels` must say what follows each step that the decoder reads, {list(features.shape[:2])}, got "
                f"{list(labels.shape)}. Leave `decoder_input_ids` out, and they are made of `labels`."
            )
        if self.training and self._head_is_plain:
            weight, scale = self.lm_head.weight, 1 / len(labels)
            return None, linear_cross_entropy(features.flatten(0, 1), weight, labels.flatten(), scale)
        logits = self.lm_head(features)
        return logits, token_nll(logits, labels).sum(-1).mean()

    def _check_reads_what_is_given(self) -> None:
        """Refuse decoder inputs where a loss makes its own, of the labels."""
        for name, most in (("num_train_samples", 1), ("svi_steps", 0), ("label_classifier", 0)):
            if getattr(self.config, name) > most:
                raise ValueError(
                    f"`{name}` {getattr(self.config, name)} trains a loss that reads the labels, moved one step on: "
                    "leave out `decoder_input_ids` and `decoder_inputs_embeds` (of a collator its `model`), or set it "
                    "to its default."
                )

    def _auxiliary_losses(self, latents: torch.Tensor, target: torch.LongTensor, condition=None):
        config, loss = self.config, super()._auxiliary_losses(latents, target, condition)
        if config.bag_of_words_weight:
            # -log p(each word | z) without its place; of the marks the bag knows none.
            words = target
            if config.eos_token_id is not None:
                words = target.masked_fill(target == config.eos_token_id, IGNORE_INDEX)
            log_p = at_least_float32(self.bag_of_words(latents.to(self.dtype))).log_softmax(-1)  # [B, V]
            nll = -log_p.gather(1, words.clamp(min=0)) * (words != IGNORE_INDEX)  # [B, T]
            loss += config.bag_of_words_weight * nll.sum(-1).mean()
        return loss

    def _weighable_log_likelihood(self, latents: torch.Tensor, target: torch.LongTensor):
        """As in [`OneLatentModel`], in two passes over the logits, of which none are kept."""
        if not self._head_is_plain:
            return super()._weighable_log_likelihood(latents, target)
        features = self._features_of(latents, target).flatten(0, 1)  # [K * B * T, H]
        repeated = target.repeat(len(latents), 1)  # [K * B, T]
        with torch.no_grad():
            nll = linear_nll(features, self.lm_head.weight, repeated.flatten()).view_as(repeated).sum(-1)

        def weighted_nll(weights):
            scale = (weights / len(target)).reshape(-1, 1).expand(repeated.shape)
            return linear_cross_entropy(features, self.lm_head.weight, repeated.flatten(), scale.flatten())

        return -nll.view(latents.shape[:2]), weighted_nll

    @torch.no_grad()
    def _mix_in_own_words(self, decoder_input_ids, decoder_attention_mask, labels, latents) -> torch.LongTensor:
        """Replace inputs [B, T] by what the model would have said there, each with the scheduled probability.

        Scheduled sampling (Bengio et al. 2015) with one teacher-forced pass for all steps (Duckworth et al. 2019)
        in place of a step after the other.
        """
        hidden, _, _ = self.model.decoder(latents, decoder_input_ids, decoder_attention_mask)
        real = labels != IGNORE_INDEX
        scores = self.lm_head(self.features(hidden, latents)[real])  # [N, V]
        drawn = draw(at_least_float32(scores)).to(decoder_input_ids.dtype)
        said = decoder_input_ids.masked_scatter(real, drawn)  # what follows each input
        said, first = predecessors(said, real)  # the word read at a step was said at the real step before it
        chosen = torch.rand(labels.shape, device=labels.device) < self.sampling_probability
        return torch.where(chosen & real & ~first, said, decoder_input_ids)

    def features(self, hidden: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """What `lm_head` projects: h, or [h; z], of decoder outputs `hidden` [B, T, H] and `latents` [B, D]."""
        return self.projection(self.model.decoder.beside_latents(hidden, latents))

    def _parts_of_likelihood(self) -> list[nn.Module]:
        head = [] if self.config.tie_word_embeddings else [self.lm_head]
        return [self.model.decoder, self.projection, *head]

    def encode(
        self, input_ids=None, attention_mask=None, inputs_embeds=None, **batch
    ) -> torch.distributions.Distribution:
        """q(z|x), with batch shape [B] and event shape [D], in float32.

        Args:
            input_ids, attention_mask, inputs_embeds: as in [`forward`]; of the rest of the batch only conditions are
                looked at.
        """
        self._check_fields(batch)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        outputs = self._encoder_outputs(self.condition(**inputs, **batch), **inputs)
        return self._posterior_of(outputs)

    def _encoder_outputs(
        self,
        condition=None,
        input_ids=None,
        attention_mask=None,
        inputs_embeds=None,
        output_hidden_states=None,
        **batch,
    ) -> VRAEEncoderOutput:
        inputs = input_ids, attention_mask, inputs_embeds, output_hidden_states
        return self.model.encoder(*inputs, condition=condition, return_dict=True)

    def _rows_of(self, target: torch.LongTensor, rows: torch.LongTensor) -> torch.LongTensor:
        return target[rows]

    def target(self, labels: torch.LongTensor | None = None, **batch) -> torch.LongTensor:
        """The labels, by default the input tokens but the start token."""
        if labels is not None:
            return labels
        if batch.get("input_ids") is None:
            raise ValueError("Pass `input_ids`, or with `inputs_embeds` the `labels`: what the likelihood is of.")
        return self.labels_from_input_ids(batch["input_ids"], batch.get("attention_mask"))

    def num_steps(self, target: torch.LongTensor) -> torch.LongTensor:
        """Tokens that are scored, [B]; `</s>` is one."""
        return (target != IGNORE_INDEX).sum(-1)

    def _width(self, target: torch.LongTensor) -> int:
        width = self.model.decoder.width
        return target.numel() * (width if self._without_logits else max(width, self.config.vocab_size))

    def _features_of(self, latents: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
        """What `lm_head` projects, [K * B, T, H], of latents [K, B, D] and labels [B, T]."""
        hidden, _, _ = self.model.decoder(
            latents.flatten(0, 1), self.prepare_decoder_input_ids_from_labels(labels), labels != IGNORE_INDEX
        )
        return self.features(hidden, latents.flatten(0, 1))

    @torch.no_grad()
    def teacher_forced(self, latents: torch.Tensor, **batch) -> torch.LongTensor:
        """The likeliest token at each place of the labels [B, T], given the true ones before it and `latents` [B, D];
        for `batch` as [`forward`] takes it."""
        return self.lm_head(self._features_of(self._seen(latents, batch).unsqueeze(0), self.target(**batch))).argmax(
            -1
        )

    def _log_likelihood(self, latents: torch.Tensor, target: torch.LongTensor) -> torch.Tensor:
        rows, features = len(latents), self._features_of(latents, target)
        labels = target.repeat(rows, 1)
        if self._without_logits:
            nll = linear_nll(features.flatten(0, 1), self.lm_head.weight, labels.flatten()).view_as(labels)
        else:
            nll = token_nll(self.lm_head(features), labels)
        return -nll.sum(-1).view(rows, -1)

    @property
    def _without_logits(self) -> bool:
        """Whether likelihoods are taken chunk by chunk, which has no gradient."""
        return self._head_is_plain and not torch.is_grad_enabled()

    def labels_from_input_ids(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None):
        """Labels [B, T] of an autoencoder: the input itself, with -100 at padding and at the start token."""
        real = real_positions(input_ids, attention_mask, self.config.pad_token_id)
        start = (real.cumsum(1) == 1) & (input_ids == self.config.decoder_start_token_id)
        return input_ids.masked_fill(~real | start, IGNORE_INDEX)

    def _read_beside(self, labels: torch.LongTensor, decoder_input_ids: torch.LongTensor) -> torch.Tensor | None:
        """Which decoder inputs that a collator made of `labels` are no padding, [B, S]; what is not scored may be read
        all the same, as a prompt is."""
        if self.config.pad_token_id is None or decoder_input_ids.shape != labels.shape:
            return None
        return (labels != IGNORE_INDEX) | (decoder_input_ids != self.config.pad_token_id)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Each label's predecessor, [B, T]: `decoder_start_token_id` for the first, padding where a label is -100."""
        config = self.config
        if config.decoder_start_token_id is None:
            raise ValueError(
                "`config.decoder_start_token_id` must be set to make decoder inputs from labels; got None."
            )
        check_ids("labels", labels)
        real = labels != IGNORE_INDEX
        moved, first = predecessors(labels, real)
        padding = config.decoder_start_token_id if config.pad_token_id is None else config.pad_token_id
        return moved.masked_fill(first, config.decoder_start_token_id).masked_fill(~real, padding)

    def resize_token_embeddings(
        self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True
    ) -> nn.Embedding:
        """As in transformers, for the encoder's table, the decoder's and the output projection."""
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.config.decoder_type != "independent":
            decoder_embeddings = self.model.decoder.embed_tokens
            self._get_resized_embeddings(decoder_embeddings, embeddings.weight.shape[0], mean_resizing=mean_resizing)
        if self.config.bag_of_words_weight:
            size = embeddings.weight.shape[0]
            self.bag_of_words[-1] = self._get_resized_lm_head(self.bag_of_words[-1], size, mean_resizing=mean_resizing)
        return embeddings


__all__ = ["VRAEForSequenceGeneration", "VRAEModel", "VRAEPreTrainedModel"]
