"""How a VRNN over tokens generates: transformers' `generate`, and a z for each token."""

import torch
from transformers.generation import GenerationMixin
from transformers.utils import logging

from .cache_name import CACHE, rename_cache
from .generation import copy_of, num_unread
from .modeling_latent import check_finite, check_token_ids

logger = logging.get_logger(__name__)


class LatentNoise(dict):
    """Standard normal [B, D] of each column, drawn when first asked for: without a cache a z is made again at each
    step, and must be the same. The beams of a sequence share it, so that it stays theirs when they change places."""

    def __init__(self, rows: int, beams: int, latent_size: int, device: torch.device):
        self.shape, self.beams, self.device = (rows // beams, latent_size), beams, device

    def __missing__(self, column: int) -> torch.Tensor:
        self[column] = torch.randn(self.shape, device=self.device).repeat_interleave(self.beams, dim=0)
        return self[column]


class VRNNGenerationMixin(GenerationMixin):
    """The z of given tokens are inferred from them; that of a new one is the prior's, its mean or a draw."""

    def generate(self, inputs: torch.Tensor | None = None, *args, latents: torch.Tensor | None = None, **kwargs):
        """transformers' `generate`, a continuation of the given tokens, by default of the start mark alone.

        In greedy decoding and with beams each z is the prior's mean, so that what is searched is one distribution of
        tokens; in sampling it is drawn. The z of given tokens are inferred from them.

        Args:
            latents: z of each token but the first in place of the prior's, [B, S, D]; further ones are the prior's.
            inputs, args, kwargs: as in transformers. With a cache, `inputs` are the tokens that it has read and at
                least one more, whose z is the prior's, as it was when `generate` chose that token.
        """
        labels, scale = kwargs.get("labels"), kwargs.get("guidance_scale")
        of_tokens = isinstance(labels, torch.Tensor) and labels.dim() == 2  # what a collator gives
        if (labels is not None and not of_tokens) or scale not in (None, 1):
            raise ValueError(
                f"`labels` and `guidance_scale` are of a conditional model, which a vrnn is not; got {labels} and "
                f"{scale}. Leave them out."
            )
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        if latents is not None:
            given = kwargs.get("inputs_embeds") if inputs is None else inputs
            self._check_latents(latents, None if given is None else len(given))
            check_finite(latents)
            if inputs is None and kwargs.get("inputs_embeds") is None:
                if self.config.bos_token_id is None:
                    raise ValueError("`latents` alone begin with `bos_token_id`, which is None. Pass `inputs` too.")
                inputs = torch.full((len(latents), 1), self.config.bos_token_id, device=self.device)
            kwargs["latents"] = latents.to(self.device)
        rename_cache(kwargs)
        if kwargs.get(CACHE) is not None:
            kwargs[CACHE] = copy_of(kwargs[CACHE], recurrent=True)
        elif inputs is not None:
            check_token_ids("inputs", inputs, self.config.vocab_size)
            self._warn_of_marks(inputs, self._mask(inputs, None, kwargs.get("attention_mask")))
        given = kwargs.get("inputs_embeds") if inputs is None else inputs
        kwargs["num_observed"] = 1 if given is None else given.shape[1]
        if kwargs.get(CACHE) is not None:
            num_unread(kwargs[CACHE], kwargs["num_observed"], "inputs")
        return super().generate(inputs, *args, **kwargs)

    def _warn_of_marks(self, input_ids: torch.LongTensor, mask: torch.Tensor) -> None:
        """A tokenizer that writes `<s> w1 .. wn </s>`, as training wants it, leaves nothing to go on with."""
        first, last = input_ids.gather(1, mask.long().argmax(1, keepdim=True)), input_ids[:, -1]
        begin, end = self.config.bos_token_id, self.config.eos_token_id
        if (begin is not None and (first != begin).any()) or (end is not None and (last == end).any()):
            logger.warning_once(
                "A sequence to go on with should be `<s> w1 .. wn`: its first token only starts it and is not read, "
                "and behind `</s>` nothing was ever learnt. Tokenize `<s> w1 .. wn` with `add_special_tokens=False`; "
                'in a pipeline set `prefix="<s>"` and `add_special_tokens=False`.'
            )

    def _sample(self, input_ids, logits_processor, stopping_criteria, generation_config, *args, **model_kwargs):
        if generation_config.do_sample:
            model_kwargs["latent_noise"] = LatentNoise(len(input_ids), 1, self.config.latent_size, self.device)
        return super()._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, *args, **model_kwargs
        )

    def _beam_search(self, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        if generation_config.do_sample:
            shape = len(input_ids), generation_config.num_beams, self.config.latent_size
            model_kwargs["latent_noise"] = LatentNoise(*shape, self.device)
        return super()._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the model makes its own, of fixed size
