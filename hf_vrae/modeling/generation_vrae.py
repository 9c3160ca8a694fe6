"""How a VRAE over tokens generates: transformers' `generate`, told what to decode."""

import copy

import torch
from transformers import LogitsProcessorList
from transformers.generation import GenerationMixin

from .cache_name import CACHE, rename_cache
from .encoders import VRAEEncoderOutput, as_encoder_output
from .generation import Draw, Guidance, copy_of, decode, num_unread
from .kernels import PackedLinear, is_plain
from .modeling_conditional import CONDITIONS, is_target
from .modeling_latent import check_finite, check_ids


class VRAEGenerationMixin(GenerationMixin):
    """z, and of a conditional model c, take the place of what an encoder gives; all else is transformers'."""

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config=None,
        *args,
        latents: torch.Tensor | None = None,
        labels=None,
        guidance_scale: float | None = None,
        **kwargs,
    ):
        """transformers' `generate`: from an input (its posterior mean is decoded), from `latents` [B, D], or from
        `encoder_outputs`; in every decoding mode. What the caller passes in stays as it is.

        Without any of these z is drawn from the prior: one, or of a conditional model from p(z|c) one for each of the
        labels.

        Args:
            latents: z to decode, [B, D]. For several z of one input draw them first,
                `model.encode(**x).sample((n,)).flatten(0, 1)`: `num_return_sequences` decodes one z several times.
            decoder_input_ids: a beginning to go on from, [B, S] or [1, S]; padding in it is skipped.
            cache: the state an earlier call returned, or `past_key_values` as it was called before transformers 5.24;
                `decoder_input_ids` are then all its tokens.
            labels: what to decode under, by name or id: one for all rows or a list of one per row, of several labels a
                dictionary of these. What is not said here is as in `class_ids`, `attributes` and `condition`, those
                of the input (see [`ConditionalModel.condition`]), or missing.
            guidance_scale: s of log p = log p(without c) + s (log p(with c) - log p(without c)), classifier-free
                guidance (Ho & Salimans 2022) of a model trained with `condition_dropout`; both read the same z.
            inputs, generation_config, args, kwargs: as in transformers. Processors that look at the encoder's tokens
                need an input.
        """
        kwargs["generation_config"] = generation_config
        rename_cache(kwargs)
        if inputs is not None and kwargs.get("input_ids") is None:
            kwargs["input_ids"], inputs = inputs, None
        if latents is not None:
            for name in ("input_ids", "inputs_embeds", "encoder_outputs"):
                if kwargs.get(name) is not None:
                    raise ValueError(f"`latents` take the place of the encoder: pass them or `{name}`, not both.")
            self._check_latents(latents)
            check_finite(latents[:, : self.config.latent_size])
            kwargs.pop("attention_mask", None)
        self._prepare_what_is_decoded(labels, latents, kwargs)
        # transformers' own refusal is of what has a state.
        assisted = kwargs.get("assistant_model") is not None and not self._is_stateful
        if assisted and kwargs.get("encoder_outputs") is not None:
            raise ValueError(
                "An `assistant_model` reads the input itself, and no condition: pass `input_ids` in place of "
                "`latents` or `encoder_outputs`, or take `prompt_lookup_num_tokens`, as under a condition."
            )
        if kwargs.get("decoder_inputs_embeds") is not None:
            raise ValueError("`generate` goes on from tokens: pass `decoder_input_ids`, not `decoder_inputs_embeds`.")
        if kwargs.get(CACHE) is not None:
            kwargs[CACHE] = copy_of(kwargs[CACHE], self._is_stateful)
        if kwargs.get("decoder_input_ids") is not None:
            self._prepare_beginning(kwargs)
        cache_implementation = self._option(kwargs, "cache_implementation")
        if cache_implementation not in (None, "dynamic", "dynamic_full"):
            raise ValueError(
                f"`cache_implementation` must be dynamic, or left out, got {cache_implementation}: the decoder makes "
                "its own cache, a state of one size where it is recurrent and a `DynamicCache` where it attends."
            )
        if self._option(kwargs, "prefill_chunk_size") is not None:
            raise ValueError(
                "`prefill_chunk_size` takes a beginning apart, which is read in one go here. Leave it out."
            )
        if self._option(kwargs, "assistant_early_exit") is not None:
            raise ValueError(
                "`assistant_early_exit` drafts by the first layers, and the decoder runs all. Leave it out, or take "
                "`prompt_lookup_num_tokens` where it attends."
            )
        if kwargs.get("negative_prompt_ids") is not None:
            raise ValueError(
                "`negative_prompt_ids` are read by no one: guidance is away from the same z without c. Leave them out."
            )
        configured_scale = self._option(kwargs, "guidance_scale")
        if configured_scale not in (None, 1):  # transformers' own would decode without z
            guidance_scale = configured_scale if guidance_scale is None else guidance_scale
            kwargs["generation_config"] = copy.copy(kwargs["generation_config"] or self.generation_config)
            kwargs["generation_config"].guidance_scale = 1.0
        if guidance_scale not in (None, 1):
            processors = kwargs.pop("logits_processor", None) or []
            kwargs["logits_processor"] = LogitsProcessorList([self._guidance(guidance_scale, kwargs), *processors])
        return super().generate(inputs, kwargs.pop("generation_config"), *args, **kwargs)

    def _option(self, kwargs: dict, name: str):
        """What a call says of an option of decoding, or the configuration it brings, or the model's own, which
        transformers takes where that leaves it out."""
        brought = getattr(kwargs["generation_config"], name, None)
        return kwargs.get(name, getattr(self.generation_config, name) if brought is None else brought)

    def _prepare_what_is_decoded(self, labels, latents: torch.Tensor | None, kwargs: dict) -> None:
        """Put z, of a conditional model with c behind it, where `generate` looks for what an encoder gave."""
        conditions = {name: kwargs.pop(name, None) for name in CONDITIONS}
        beginning = kwargs.get("decoder_input_ids")
        rows = 1 if beginning is None else len(beginning)  # each beginning has a z of its own
        if kwargs.get("encoder_outputs") is not None:
            self._check_decoded_as_is(None if is_target(labels) else labels, *conditions.values())
            # A copy: `generate` repeats rows in place.
            kwargs["encoder_outputs"] = as_encoder_output(copy.copy(kwargs["encoder_outputs"]))
        elif self.config.condition_width:
            given = {name: kwargs.get(name) for name in ("input_ids", "attention_mask", "inputs_embeds")}
            with torch.no_grad():
                seen = self._decoded_of(labels, latents, conditions | given, rows)
                outputs = kwargs["encoder_outputs"] = VRAEEncoderOutput(last_hidden_state=seen.unsqueeze(1))
                wanted = self._option(kwargs, "output_hidden_states")
                if wanted and any(tensor is not None for tensor in given.values()):
                    given_c = self.condition(**conditions, **given)
                    outputs.hidden_states = self._encoder_outputs(given_c, *given.values(), True).hidden_states
            for name, tensor in given.items():
                if tensor is not None:  # one input under several labels
                    kwargs[name] = tensor.expand(len(seen), *tensor.shape[1:])
        else:
            self.condition(labels=labels, **conditions)  # there can be none
            given = latents, kwargs.get("input_ids"), kwargs.get("inputs_embeds")
            if self.config.latent_size and all(tensor is None for tensor in given):
                latents = self.prior().sample((rows,))
            if latents is not None:
                kwargs["encoder_outputs"] = VRAEEncoderOutput(last_hidden_state=latents.to(self.device).unsqueeze(1))

    def _guidance(self, scale: float, kwargs: dict) -> Guidance:
        """What moves the scores away from those of the same z without c."""
        seen = kwargs["encoder_outputs"].last_hidden_state[:, 0] if self.config.condition_width else None
        seen = self._without_condition(seen, scale)
        return Guidance(self, scale, VRAEEncoderOutput(seen.unsqueeze(1)), kwargs.get("decoder_attention_mask"))

    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        """transformers' list with guidance in front, where its own would stand: what else changes scores changes the
        guided ones."""
        processors = super()._get_logits_processor(*args, **kwargs)
        return LogitsProcessorList(sorted(processors, key=lambda processor: not isinstance(processor, Guidance)))

    def _sample(
        self,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus=False,
        streamer=None,
        **model_kwargs,
    ):
        """Greedy decoding and sampling on a CPU: in place of `torch.multinomial`, the larger part of a step there,
        [`Draw`], the same distribution by another random stream; and where nothing but tokens is asked for, our own
        loop in place of transformers', whose 0.7 ms a token are more than the model's."""
        plain = self._is_plain(input_ids, generation_config)
        more = generation_config.return_dict_in_generate or streamer or synced_gpus or self.training
        # Where a cache holds what was masked, each step needs the mask.
        more = more or not (self._is_stateful or model_kwargs.get("decoder_attention_mask") is None)
        # Our loop calls neither of these, whose hooks count on it.
        more = more or any(part._forward_hooks or part._forward_pre_hooks for part in (self, self.model))
        if plain or more or not model_kwargs["use_cache"]:
            return self._sample_with_draw(
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                synced_gpus,
                streamer,
                **model_kwargs,
            )
        outputs = self._prefill(input_ids, generation_config, model_kwargs)
        decoder, seen = self.model.decoder, outputs.encoder_last_hidden_state[:, 0]
        step = decoder.stepper(seen, outputs[CACHE])
        head = PackedLinear.here(self.lm_head.weight, len(input_ids)) if is_plain(self.lm_head) else self.lm_head

        def next_scores(tokens):
            hidden = step(decoder.read_tokens(tokens)).unsqueeze(1)  # [B, 1, H]
            return head(self.features(hidden, seen).squeeze(1))

        scores = outputs.logits[:, -1]
        return decode(next_scores, scores, input_ids, logits_processor, stopping_criteria, generation_config)

    def _is_plain(self, input_ids, generation_config) -> bool:
        """Whether sampling is left to transformers as it is; one who asks for scores wants none of [`Draw`]."""
        return self.config.kernels == "plain" or input_ids.device.type != "cpu" or generation_config.output_scores

    def _sample_with_draw(
        self, input_ids, logits_processor, stopping_criteria, generation_config, *args, **model_kwargs
    ):
        """transformers' loop, with [`Draw`] unless it is to be plain."""
        if generation_config.do_sample and not self._is_plain(input_ids, generation_config):
            generation_config = copy.copy(generation_config)
            generation_config.do_sample = False
            logits_processor = LogitsProcessorList([*logits_processor, Draw()])
        return super()._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, *args, **model_kwargs
        )

    def _prepare_beginning(self, kwargs: dict) -> None:
        """Give every row its beginning and what it lacks of a start, and mask the padding of beginnings of different
        lengths, but for columns of padding alone: in front of a beginning transformers would take them for one without
        its start."""
        beginning = kwargs["decoder_input_ids"] = self._one_for_each_row(kwargs)
        pad_token_id, start = self._option(kwargs, "pad_token_id"), self._option(kwargs, "decoder_start_token_id")
        start = self._option(kwargs, "bos_token_id") if start is None else start
        if start is not None:  # one id, or one per row
            start = torch.as_tensor(start).to(beginning).view(-1, 1).expand(len(beginning), 1)
        mask = kwargs.get("decoder_attention_mask")
        given = mask is not None
        if given and len(mask) == 1:  # as the beginning may be
            mask = kwargs["decoder_attention_mask"] = mask.expand(len(beginning), -1)
        if not given:
            mask = torch.ones_like(beginning) if pad_token_id is None else (beginning != pad_token_id).long()
            if start is not None:
                mask[:, :1] |= start == pad_token_id  # which starts the row as well
        if mask.shape != beginning.shape or kwargs.get(CACHE) is not None:
            if not given and not mask.all():
                kwargs["decoder_attention_mask"] = mask
            return
        if start is not None:  # each row by itself: transformers would add it to all rows or to none
            lacks = beginning.gather(1, mask.long().argmax(1, keepdim=True)) != start
            if lacks.any():  # others get padding, which is none too when they are a beginning again
                first = start if pad_token_id is None else torch.where(lacks, start, pad_token_id)
                beginning, mask = torch.cat([first, beginning], dim=1), torch.cat([lacks.to(mask), mask], dim=1)
        if not self._is_stateful:  # a sliding window counts what is masked: padding goes before the start
            order = mask.bool().sort(dim=1, stable=True).indices
            beginning, mask = beginning.gather(1, order), mask.gather(1, order)
        empty = int((~mask.bool().any(0)).long().cumprod(0).sum())
        kwargs["decoder_input_ids"] = beginning[:, empty:]
        if given or not mask.all():
            kwargs["decoder_attention_mask"] = mask[:, empty:]

    def _one_for_each_row(self, kwargs: dict) -> torch.LongTensor:
        """The beginning [B, S] of each of the rows that are to be decoded, of one for all or one for each."""
        beginning = kwargs["decoder_input_ids"]
        check_ids("decoder_input_ids", beginning)
        inputs = [kwargs.get(name) for name in ("input_ids", "inputs_embeds")]
        if kwargs.get("encoder_outputs") is not None:
            inputs = [kwargs["encoder_outputs"][0]]
        for rows in (len(given) for given in inputs if given is not None):
            if len(beginning) not in (1, rows):
                raise ValueError(
                    f"`decoder_input_ids` must have a row for each of the {rows} sequences, or one for all; got "
                    f"{len(beginning)}."
                )
            beginning = beginning.expand(rows, -1)
        return beginning

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, **kwargs):
        cache = kwargs.get(CACHE)
        if cache is not None and next_sequence_length is None:
            next_sequence_length = num_unread(cache, input_ids.shape[1], "decoder_input_ids")
        return super().prepare_inputs_for_generation(input_ids, next_sequence_length, **kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the decoder makes its own

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        """Assisted decoding wants the cache, which can be rolled back, before the first step."""
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get(CACHE)
        if cache is None and generation_config.use_cache is not False and not self._is_stateful:
            cache = model_kwargs[CACHE] = self.model.decoder.new_cache()
            if generation_config.is_assistant:
                cache.activate_past_recording()
