"""The VRAE with latents at several scales over token sequences, and what it shares with that over frames.

    log p(x) >= E_q[log p(x|z) - KL(q(z_g|x) || p(z_g)) - sum_s KL(q(z_s|x) || p(z_s | z_g, z_<s))]

`hierarchical` has the network, `hierarchical_latents` what the flat vector of all z is; all else is as in
`modeling_vrae`.

Letters in shapes: B batch, K samples, N segments and sections, D size of z_g, W of the flat vector.
"""

import copy

import torch
from torch import nn

from .configuration_hierarchical import HierarchicalVRAEConfig
from .distributions import DiagonalGaussian, kl_per_dimension
from .generation_vrae import VRAEGenerationMixin  # named among the bases, where transformers looks for it
from .hierarchical import HierarchicalDecoder, HierarchicalEncoder
from .hierarchical_latents import JointGaussian, JointPrior, complete, first_segments, scales_of_a_node
from .modeling_latent import OneLatentModel, check_finite, check_floats, check_latents
from .modeling_vrae import VRAEForSequenceGeneration, VRAEModel, VRAEPreTrainedModel
from .objectives import capacity_gap, free_bits, negative_elbo


class HierarchicalVRAEPreTrainedModel(VRAEPreTrainedModel):
    """What every class of this family is to transformers."""

    config: HierarchicalVRAEConfig

    def _check_latents(self, latents: torch.Tensor, behind: int = 0) -> None:
        """Of the flat vector z_g must be there; behind it NaN is what is not given."""
        config = self.config
        check_floats(latents)
        check_latents(latents[..., : config.latent_size], config.latent_size)
        width = len(first_segments(config, config.segments_of_a_node))  # of a section with all that is in it
        below = latents.shape[1] - config.latent_size
        if below and (width == 0 or below % width):
            raise ValueError(
                f"`latents` must be {config.latent_size} numbers of z of the whole and {width} of each "
                f"{'section' if config.section_sizes else 'segment'}, got {latents.shape[1]}. `join_latents` makes "
                "them."
            )


class HierarchicalVRAEModel(HierarchicalVRAEPreTrainedModel, VRAEModel):
    """Encoder and decoder without the projection to the vocabulary or to frames."""

    def __init__(self, config: HierarchicalVRAEConfig):
        VRAEPreTrainedModel.__init__(self, config)
        self.encoder = HierarchicalEncoder(config)
        self.decoder = HierarchicalDecoder(config)
        if config.input_size is not None:
            self._tied_weights_keys = {}
        self.post_init()


class ScalesOfLatents(OneLatentModel):
    """The bounds of a model whose one flat vector z is of several scales with conditional priors."""

    def prior(self, num_segments: int | None = None, **batch) -> torch.distributions.Distribution:
        """p(z_g) = N(0, I), event shape [D]; of `num_segments` p(z) of all scales, event shape [W]; and of a batch
        that of its sequences, batch shape [B]."""
        if batch and num_segments is not None:
            raise ValueError(f"`num_segments` {num_segments} or a batch, whose sequences say how many; not both.")
        if batch:
            return self._prior_beside(self.encode(**batch))
        if num_segments is None:
            return super().prior()
        if num_segments < 1:
            raise ValueError(f"`num_segments` must be at least 1, got {num_segments}.")
        config = self.config
        whole = num_segments + -num_segments % config.segments_of_a_node
        first = first_segments(config, whole).to(self.device)
        present = torch.cat([first.new_ones(config.latent_size, dtype=torch.bool), first < num_segments])
        return JointPrior(self.model.decoder.conductor, present, config.latent_size)

    def _prior_beside(self, posterior: JointGaussian, condition=None) -> JointPrior:
        return JointPrior(self.model.decoder.conductor, posterior.present, self.config.latent_size)

    def _kl(self, posterior: JointGaussian, prior: JointPrior, latents: torch.Tensor) -> torch.Tensor:
        return self._kl_terms(posterior, prior, latents)["kl"]

    def _kl_terms(self, posterior: JointGaussian, prior: JointPrior, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """[B]: of each z in closed form, given those above and before it, which samples `latents` [K, B, W] are of."""
        parts = [kl_per_dimension(posterior, prior.along(part)).sum(0) for part in prior.parts(latents)]
        of_each = sum(parts) / len(latents)  # [B, W]
        sections = len(self.config.section_sizes)
        of_sections = ["kl_sections"] if sections == 1 else [f"kl_sections_{i}" for i in range(sections)]
        of_scales = zip(["kl_global", *of_sections, "kl_segments"], self._by_scale(of_each), strict=True)
        return {"kl": of_each.sum(1)} | {name: kl.sum(1) for name, kl in of_scales}

    def _bound(self, reconstruction, posterior: JointGaussian | None, latents: torch.Tensor, condition=None):
        """As in [`OneLatentModel`], with each scale's own free bits, and the segments' own weight, in training."""
        if posterior is None:
            return reconstruction, None
        config = self.config
        of_each = kl_per_dimension(posterior, self._prior_beside(posterior).along(latents))  # [B, W]
        kl = of_each.sum(1).mean()
        if not self.training:
            return negative_elbo(reconstruction, kl, self.kl_weight), kl
        if self.kl_capacity is not None:
            return negative_elbo(reconstruction, capacity_gap(kl, self.kl_capacity), self.kl_weight), kl

        def charged(kl, amount, present=None):
            return free_bits(kl, amount, config.free_bits_form, present) if amount else kl.sum(1).mean()

        of_whole, *below = self._by_scale(of_each)
        _, *present = self._by_scale(posterior.present)
        loss = charged(of_whole, config.free_bits)
        for (weight, free), of_scale, here in zip(config.prices_below, below, present, strict=True):
            loss = loss + weight * charged(of_scale, free, here)
        return negative_elbo(reconstruction, loss, self.kl_weight), kl

    def evaluation_terms(self, num_samples, generators=None, svi_steps=0, **batch):
        """As in [`OneLatentModel`], where `mean`, `latents` and `posterior` are z_g's; `kl_global`, `kl_segments` and,
        where there are some, `kl_sections` [B] (of several scales `kl_sections_0`, the largest, and so on) are parts
        of `kl`."""
        terms = super().evaluation_terms(num_samples, generators, svi_steps, **batch)
        q, latents = terms["posterior"].global_scale, terms["latents"][:, : self.config.latent_size]
        return terms | {"mean": q.mean, "latents": latents, "posterior": q}

    def refine(self, *args, **kwargs):
        raise ValueError("`svi_steps` refines one z with a fixed prior, and a segment's prior is learnt. Set it to 0.")

    def _places(self, width: int) -> list[torch.LongTensor]:
        """Where in a flat vector of `width`, behind z_g, the z of each scale below the whole stand."""
        of_a_node = torch.tensor(scales_of_a_node(self.config), dtype=torch.long)
        scales = of_a_node.repeat((width - self.config.latent_size) // max(1, len(of_a_node)))
        # Found on the CPU: to look on an accelerator would cost a synchronisation.
        return [(scales == i).nonzero().squeeze(1).to(self.device) for i in range(len(self.config.prices_below))]

    def _by_scale(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The dimensions [.., n] of each scale, the whole first, of what is of all of them, [.., W]."""
        of_whole, below = flat.tensor_split([self.config.latent_size], dim=-1)
        return [of_whole, *(below[..., places.to(flat.device)] for places in self._places(flat.shape[-1]))]

    def split_latents(self, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """z_g [.., D] and z of each scale below it, [.., N, segment size]: of the sections, if there are any, the
        largest first, and last of the segments. To draw a scale anew, put NaN in its place."""
        of_whole, *below = self._by_scale(latents)
        return of_whole, *(z.unflatten(-1, (-1, max(1, self.config.segment_latent_size))) for z in below)

    def join_latents(self, of_whole: torch.Tensor, *below: torch.Tensor) -> torch.Tensor:
        """The flat vector [.., W] of what [`split_latents`][ScalesOfLatents.split_latents] gives; or of z_g alone."""
        if not below:
            return of_whole
        parts = [z.flatten(-2) for z in below]
        places = self._places(of_whole.shape[-1] + sum(part.shape[-1] for part in parts))
        if [part.shape[-1] for part in parts] != [len(of_scale) for of_scale in places]:
            raise ValueError(
                f"z of the scales below the whole must be of as many nodes as `section_sizes` "
                f"{self.config.section_sizes} make of them, got {[list(z.shape) for z in below]}."
            )
        order = torch.cat(places).argsort().to(of_whole.device)
        flat = torch.cat([part.to(of_whole.dtype) for part in parts], dim=-1)[..., order]
        return torch.cat([of_whole, flat], dim=-1)

    def complete_latents(
        self,
        latents: torch.Tensor,
        num_segments: int = 0,
        do_sample: bool = True,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Fill in what is not given, which is NaN or not there, from the priors given what is.

        Args:
            latents: flat, [B, W], z_g among them.
            num_segments: of which there shall be z at least.
            do_sample: draw it; otherwise it is the mean.
            generator: of the draw.

        Returns:
            [B, W] without NaN.
        """
        self._check_latents(latents)
        config, conductor = self.config, self.model.decoder.conductor
        if latents[:, : config.latent_size].isnan().any():
            raise ValueError("`latents` must give z of the whole, which all else hangs on: the first numbers are NaN.")
        check_finite(latents.nan_to_num(0, torch.inf, -torch.inf))  # NaN is what is not given
        count = -(-num_segments // config.segments_of_a_node)
        lacking = config.latent_size + count * conductor.width - latents.shape[1]
        latents = nn.functional.pad(latents, (0, max(0, lacking)), value=torch.nan)
        zeros = torch.zeros_like(latents)
        noise = DiagonalGaussian(zeros, zeros).sample(generator=generator) if do_sample else zeros
        return complete(conductor, latents, noise)


class HierarchicalVRAEForSequenceGeneration(
    HierarchicalVRAEPreTrainedModel, ScalesOfLatents, VRAEForSequenceGeneration, VRAEGenerationMixin
):
    """The VRAE with latents at several scales over token sequences.

    Its segments are of `segment_length` tokens, or end behind `segment_separator_ids`.

    Example:

    ```python
    >>> q = model.encode(**tokenizer(["the king sold a letter . the queen did not ."], return_tensors="pt"))
    >>> z_g, z_s = model.split_latents(q.mode)  # [1, D], [1, S, D_s]
    >>> z = model.join_latents(z_g, z_s * torch.nan)  # the same whole, of other segments
    >>> tokenizer.batch_decode(model.generate(latents=z, do_sample=True), skip_special_tokens=True)
    ```
    """

    inner_class = HierarchicalVRAEModel

    def generate(self, inputs: torch.Tensor | None = None, *args, latents: torch.Tensor | None = None, **kwargs):
        """As in [`VRAEForSequenceGeneration`].

        Args:
            latents: z of the whole alone, [B, D], or the flat vector of all scales, [B, W]. What is not given, NaN or
                not there, is drawn from its prior given the rest where tokens are drawn, and its mean otherwise.
            inputs, args, kwargs: as there.
        """
        return super().generate(inputs, *args, latents=latents, **kwargs)

    def _draw_segments(self, generation_config, model_kwargs: dict, beams: int = 1) -> None:
        """Give all segments that there can be their z; the beams of a sequence share them."""
        outputs = copy.copy(model_kwargs["encoder_outputs"])
        length = 1 if self.config.segment_separator_ids is not None else self.config.segment_length
        count = -(-generation_config.max_length // length)
        given = outputs.last_hidden_state[::beams, 0]
        latents = self.complete_latents(given, count, generation_config.do_sample)
        outputs.last_hidden_state = latents.repeat_interleave(beams, dim=0).unsqueeze(1)
        model_kwargs["encoder_outputs"] = outputs

    def _sample(self, input_ids, logits_processor, stopping_criteria, generation_config, *args, **model_kwargs):
        self._draw_segments(generation_config, model_kwargs)
        return self._sample_with_draw(
            input_ids, logits_processor, stopping_criteria, generation_config, *args, **model_kwargs
        )

    def _beam_search(self, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        self._draw_segments(generation_config, model_kwargs, generation_config.num_beams)
        return super()._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)


__all__ = ["HierarchicalVRAEForSequenceGeneration", "HierarchicalVRAEModel", "HierarchicalVRAEPreTrainedModel"]
