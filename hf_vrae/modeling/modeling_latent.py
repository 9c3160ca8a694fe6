"""What latent-variable sequence models share as transformers models: `LatentSequenceModel` is under all of them, and
`OneLatentModel` adds the bounds and losses of those with one z for the whole sequence, whatever the sequence is of.

Letters in shapes: B batch, T time, K samples, D latent size, H hidden size.
"""

import difflib
import inspect
from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .conditioning import join
from .distributions import (
    DiagonalGaussian,
    HypersphericalUniform,
    VonMisesFisher,
    generators_of_rows,
    kl_divergence,
    kl_per_dimension,
    to_float64,
)
from .inference import refine
from .kernels import IGNORE_INDEX, at_least_float32, float_dtype, is_plain, weights_of
from .objectives import (
    capacity_gap,
    doubly_reparameterised_weights,
    free_bits,
    importance_weighted_bound,
    maximum_mean_discrepancy,
    negative_elbo,
)
from .posteriors import BatchNormPosterior, CorrelatedPrior, GaussianPosterior
from .recurrent import LAYERS, LSTM, LayerNormLSTM

MAX_AT_ONCE = 2**22  # decoder outputs, or parameters of p(x_t), held at once for importance weights: 16 MiB in float32


class LatentSequenceModel(PreTrainedModel):
    """Loading, saving, initialisation, and what a schedule may set while a model learns."""

    base_model_prefix = "model"
    _is_stateful = True  # a recurrent state cannot be rolled back: `generate` then refuses assisted decoding
    # Trainer would divide the summed loss by a count of tokens; ours is complete as it stands, KL included.
    accepts_loss_kwargs = False
    other_auto_classes: tuple[str, ...] = ()  # that find exported code beside `AutoModel`

    # beta; C of a KL capacity; how much of what the decoder reads is its own.
    kl_weight: float = 1.0
    kl_capacity: float | None = None
    sampling_probability: float = 0.0

    def __init__(self, config, *inputs, **kwargs):
        config.validate_architecture()  # anew: `from_pretrained` sets what its caller overrides one by one
        super().__init__(config, *inputs, **kwargs)
        # `device_map="auto"` then finds room for the whole on one device: see `from_pretrained`.
        self._no_split_modules = {type(self).__name__}

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, but on one device: whole parts are computed at once from the weights of several modules,
        which hooks around each of them do not bring there.

        Raises:
            ValueError: where `device_map` spreads the model.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
        if len(places) > 1 or "disk" in places:
            raise ValueError(
                f"`device_map` must keep a {cls.__name__} on one device; got {', '.join(sorted(places))}. Say "
                'device_map="auto" without `max_memory`, or one device, as in device_map="cuda:0".'
            )
        for part in model.modules():
            if isinstance(part, nn.RNNBase):
                part.flatten_parameters()  # `device_map` puts weights on a GPU one by one, and cuDNN wants one piece
        return loaded

    def _check_schedules(self, loss: str, remedy: str, weighs_kl: bool = True) -> None:
        """Refuse of what schedules set that for which a loss has no term."""
        for name, value, usual in (
            ("kl_capacity", self.kl_capacity, None),
            ("sampling_probability", self.sampling_probability, 0.0),
            ("kl_weight", 1.0 if weighs_kl else self.kl_weight, 1.0),
        ):
            if value != usual:
                raise ValueError(f"`{name}` {value} says nothing to {loss}. Leave it at {usual}, or {remedy}.")

    def _check_fields(self, batch: dict) -> None:
        """Refuse what [`forward`] does not take either: a misspelt name would go unread."""
        if "token_type_ids" in batch:  # by default BERT's tokenizer gives them
            raise TypeError(
                "`token_type_ids` tell apart the texts of a pair, and here each stands alone. Set "
                '`tokenizer.model_input_names = ["input_ids", "attention_mask"]`, which is saved with it.'
            )
        known = {}
        for base in type(self).__mro__:  # all of them: a subclass may pass on what it is given
            if issubclass(base, LatentSequenceModel) and "forward" in vars(base):
                known |= inspect.signature(base.forward).parameters
        for name in batch.keys() - known.keys():
            names = [*known, "num_samples", "latents", "generator", "posterior"]
            (nearest,) = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            raise TypeError(f"`{name}` is of no batch of a {type(self).__name__}. Did you mean `{nearest}`?")

    @property
    def device(self) -> torch.device:
        """As in transformers, and of a replica that nn.DataParallel makes."""
        return next(weights_of(self)).device

    @property
    def dtype(self) -> torch.dtype:
        """As in transformers, and of a replica that nn.DataParallel makes."""
        return float_dtype(self)

    @property
    def _head_is_plain(self) -> bool:
        """Whether our kernels may read the weight of `lm_head` in place of calling it."""
        return self.config.kernels == "auto" and is_plain(self.lm_head)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Uniform weights, zero biases but those of forget gates; every tensor that was loaded is left as it is."""
        bound = self.config.initializer_range
        if isinstance(module, nn.Embedding):
            bound = self.config.embedding_initializer_range
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.Linear):
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, GaussianPosterior):
            init.uniform_(module.weight, -bound, bound)
            if isinstance(module, BatchNormPosterior):
                init.zeros_(module.shift)
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
                if module.scale is not None:
                    init.ones_(module.scale)
        elif isinstance(module, tuple(LAYERS.values())):
            for name, parameter in module.named_parameters(recurse=False):
                if "weight" in name:
                    init.uniform_(parameter, -bound, bound)
                else:
                    init.zeros_(parameter)
            if isinstance(module, (LSTM, LayerNormLSTM)):
                forget = torch.zeros(4, module.hidden_size)  # torch's order: i, f, g, o
                forget[1] = self.config.forget_bias
                init.copy_(module.bias_ih_l0 if isinstance(module, LSTM) else module.bias, forget.flatten())
        elif isinstance(module, CorrelatedPrior):
            init.zeros_(module.weight)
        else:
            super()._init_weights(module)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers. Where the code is exported too, `other_auto_classes` find it as `AutoModel` does."""
        if self.is_remote_code():
            name = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
            auto_map = getattr(self.config, "auto_map", None) or {}
            self.config.auto_map = auto_map | dict.fromkeys(self.other_auto_classes, name)
        super().save_pretrained(save_directory, *args, **kwargs)

    def _charged_kl(self, kl: torch.Tensor, of_each_dimension: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The KL term of the loss, a scalar.

        Args:
            kl: the KL itself, its mean.
            of_each_dimension: gives that of each sequence and latent dimension, [B, D]; asked where it is charged by.
        """
        if self.training and self.kl_capacity is not None:
            return capacity_gap(kl, self.kl_capacity)
        if self.training and self.config.free_bits:
            return free_bits(of_each_dimension(), self.config.free_bits, self.config.free_bits_form)
        return kl


class OneLatentModel(LatentSequenceModel):
    """A model with one z for the whole sequence: log p(x) >= E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z)).

    A subclass says what x is. It gives `encode`, and by a *target*, what of x is scored, in a form of its own:

    - `target(labels, **batch)`: the target of a batch;
    - `_log_likelihood(latents, target)`: log p(x|z_k), [K, B], of latents [K, B, D], with c behind z where there is
      one;
    - `_width(target)`: how many numbers that holds at once for one z of each row;
    - `num_steps(target)`: how many steps are scored, [B];
    - `teacher_forced(latents, **batch)`: the likeliest x_t given z and the true steps before it;
    - `_parts_of_likelihood()`: the modules of p(x|z).

    What training minimises is made by `_bound`, which weighs the reconstruction and the KL, and `_auxiliary_losses`,
    which adds to it: a loss of one's own overrides one of these, with a configuration of its own if it is to be saved.

    Everything may stand under a condition c, which [`ConditionalModel`] makes of a batch; here there is none.
    """

    def prior(self, **batch) -> torch.distributions.Distribution:
        """p(z) = N(0, I), or with a `correlated_prior` N(0, R), beside a vMF posterior the uniform one on the sphere;
        event shape [D], for every batch."""
        self._check_fields(batch)
        return self._prior(self.condition(**batch))

    def condition(self, **batch) -> torch.Tensor | None:
        """c of a batch, [B, C], or one for all rows, [C]; None: there is none."""
        return None

    def _prior(self, condition: torch.Tensor | None) -> torch.distributions.Distribution:
        """p(z|c)."""
        if self.config.posterior == "vmf":
            return HypersphericalUniform(self.config.latent_size, self.device)
        if self.config.correlated_prior:
            return self.model.correlated_prior()
        zeros = torch.zeros(self.config.latent_size, device=self.device)
        return DiagonalGaussian(zeros, zeros)

    def _prior_beside(self, posterior, condition: torch.Tensor | None = None) -> torch.distributions.Distribution:
        """p(z|c) of the sequences whose posterior this is."""
        return self._prior(condition)

    def _kl(self, posterior, prior, latents: torch.Tensor) -> torch.Tensor:
        """KL(q(z|x) || p(z)), [B], in closed form; where there is none, samples of q [K, B, D] help."""
        return kl_divergence(posterior, prior)

    def log_importance_weights(
        self,
        num_samples: int = 1,
        latents: torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        labels: torch.Tensor | None = None,
        posterior: torch.distributions.Distribution | None = None,
        **batch,
    ) -> torch.Tensor:
        """log p(x, z_k) - log q(z_k|x) of K samples z_k ~ q(z|x), in nats: [K, B].

        Their mean is the ELBO, their logsumexp - log K the importance-weighted bound (Burda et al. 2016, eq. 8).

        Args:
            num_samples: K.
            latents: the samples themselves, [K, B, D], where the caller drew them.
            generator: as in [`DiagonalGaussian.rsample`].
            labels: as in [`forward`]; by default the input itself.
            posterior: q(z|x), where it is not what [`encode`] gives, or is there already.
            batch: what [`encode`] takes.
        """
        check_num_samples(num_samples)
        target = self.target(labels, **batch)
        q = self.encode(**batch) if posterior is None else posterior
        z = q.rsample((num_samples,), generator) if latents is None else latents  # [K, B, D]
        check_samples(z, (*q.batch_shape, *q.event_shape))
        return self._log_joint_of(z, target, q, **batch) - q.log_prob(z)

    def _log_joint_of(self, latents: torch.Tensor, target, posterior, **batch) -> torch.Tensor:
        """log p(x, z_k|c) of a batch, [K, B], of latents [K, B, D] of its posterior."""
        condition = self.condition(**batch)
        return self._log_joint(latents, target, condition, self._prior_beside(posterior, condition))

    def _log_joint(self, latents: torch.Tensor, target, condition: torch.Tensor | None, prior) -> torch.Tensor:
        """log p(x, z_k|c), [K, B], of latents [K, B, D] under their prior p(z|c)."""
        at_once = max(1, MAX_AT_ONCE // self._width(target))
        parts = join(latents, condition).split(at_once)
        log_likelihood = torch.cat([self._log_likelihood(part, target) for part in parts])
        return log_likelihood + prior.log_prob(latents)

    @torch.no_grad()
    def evaluation_terms(
        self, num_samples: int, generators: list[torch.Generator] | None = None, svi_steps: int = 0, **batch
    ) -> dict[str, torch.Tensor | torch.distributions.Distribution]:
        """What an evaluation needs of a batch, each row's noise from a generator of its own.

        Args:
            num_samples: K.
            generators: one for each row.
            svi_steps: of [`refine`] from the encoder's posterior; all terms are then of the refined one.
            batch: what [`forward`] takes, with `labels`.

        Returns:
            in nats and float64, `log_weights` [K, B] of [`log_importance_weights`], `reconstruction` [B] (the mean of
            -log p(x|z_k)) and `kl` [B] in closed form; `num_steps` [B]; of q its `mean` [B, D] and a sample, `latents`
            [B, D]; and `posterior`, q itself.
        """
        condition, q, target = self.condition(**batch), self.encode(**batch), self.target(**batch)
        if svi_steps:
            q = self.refine(q, target, svi_steps, generators, condition=condition)
        p = self._prior_beside(q, condition)
        z = q.rsample((num_samples,), generators)  # [K, B, D]
        log_weights = to_float64(self.log_importance_weights(latents=z, posterior=q, **batch))
        log_ratio = to_float64(q.log_prob(z) - p.log_prob(z))  # [K, B]; what the KL is the mean of
        return {
            "log_weights": log_weights,
            "reconstruction": -(log_weights + log_ratio).mean(0),
            **{name: to_float64(term) for name, term in self._kl_terms(q, p, z).items()},
            "num_steps": self.num_steps(target),
            "mean": q.mean,
            "latents": z[0],
            "posterior": q,
        }

    def _kl_terms(self, posterior, prior, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """`kl` [B], and what of it shall be told apart."""
        return {"kl": self._kl(posterior, prior, latents)}

    def refine(
        self,
        posterior: DiagonalGaussian,
        target,
        num_steps: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        differentiable: bool = False,
        condition: torch.Tensor | None = None,
    ) -> DiagonalGaussian:
        """A posterior nearer to the true one, by gradient steps on the -ELBO of each sequence: see [`refine`].

        Args:
            posterior: the encoder's, of as many sequences.
            target: what is scored: labels [B, T] of tokens, or what `target` makes of frames.
            num_steps, generator, differentiable: as in [`refine`].
            condition: c, [B, C], of a conditional model.
        """
        if self.config.latent_size == 0:
            raise ValueError("`svi_steps` refines a posterior, and `latent_size` 0 has none. Set it to 0.")
        if self.config.posterior != "gaussian":
            raise ValueError(
                f"`svi_steps` would move the posterior out of the family {self.config.posterior}, and its floor of "
                "the KL with it. Take a model whose `posterior` is gaussian."
            )

        def sequence_negative_elbo(q, z):
            beta = self.kl_weight if self.training else 1.0
            nll = -self._log_likelihood(join(z.unsqueeze(0), condition), target)[0]
            return nll + beta * self._kl(q, self._prior_beside(q, condition), z.unsqueeze(0))

        return refine(posterior, sequence_negative_elbo, num_steps, generator, differentiable)

    def _draw_latents(self, posterior: torch.distributions.Distribution, target, condition=None):
        """The posterior that the loss is of, and a sample of it, [B, D]."""
        if not self.training:
            # At the mean the reconstruction would bound nothing: z is sampled, but repeatably.
            return posterior, posterior.rsample(generator=generators_of_rows(len(posterior.mean)))
        if self.config.svi_steps:
            posterior = self.refine(posterior, target, self.config.svi_steps, differentiable=True, condition=condition)
        return posterior, posterior.rsample()

    def _bound(
        self,
        reconstruction: torch.Tensor,
        posterior: torch.distributions.Distribution | None,
        latents: torch.Tensor,
        condition: torch.Tensor | None = None,
    ):
        """The -ELBO with the KL that is charged for, and the KL, both scalars; without a posterior there is none.

        Args:
            reconstruction: the mean of -log p(x|z).
            latents: the z that was decoded, [B, D].
        """
        if posterior is None:
            return reconstruction, None
        p = self._prior_beside(posterior, condition)
        kl = self._kl(posterior, p, latents.unsqueeze(0)).mean()
        charged = self._charged_kl(kl, lambda: kl_per_dimension(posterior, p))
        return negative_elbo(reconstruction, charged, self.kl_weight), kl

    def _auxiliary_losses(self, latents: torch.Tensor, target, condition=None) -> torch.Tensor | float:
        """What training minimises beside the bound, weighted."""
        if self.config.mmd_weight and len(latents) > 1:  # the last batch of an epoch may be a single sequence
            p = self._prior(condition)
            # One prior, of the model or of a condition that stands for all rows, is drawn from as often.
            one = p.batch_shape != latents.shape[:1]
            prior_latents = p.sample((len(latents),)).view_as(latents) if one else p.sample()
            return self.config.mmd_weight * maximum_mean_discrepancy(latents, prior_latents)
        return 0.0

    def _importance_weighted_loss(self, posterior: torch.distributions.Distribution, target, condition=None) -> dict:
        """The importance-weighted bound with K samples (Burda et al. 2016), by the gradient of Tucker et al., as the
        fields of an output.

        `kl_weight` is that of log q - log p in each weight.
        """
        bound = f"the bound of `num_train_samples` {self.config.num_train_samples}"
        self._check_schedules(bound, "train with one sample")
        z = posterior.rsample((self.config.num_train_samples,))  # [K, B, D]
        p = self._prior_beside(posterior, condition)
        log_likelihood, weighted_nll = self._weighable_log_likelihood(join(z, condition), target)
        # log q with its parameters held fixed: the encoder's gradient flows through z alone.
        log_ratio = posterior.detach().log_prob(z) - p.log_prob(z)
        log_weights = log_likelihood - self.kl_weight * log_ratio.detach()
        if isinstance(posterior, VonMisesFisher):
            # z turns with the mean, and log q(z) stays the same: its gradient is 0, and a part of it noise.
            weights, log_ratio = log_weights.detach().softmax(0), log_ratio.detach()
        else:
            weights = doubly_reparameterised_weights(log_weights, z, self.kl_weight)
        surrogate = weighted_nll(weights) + self.kl_weight * (weights * log_ratio).sum(0).mean()
        loss = -importance_weighted_bound(log_weights).mean()
        return {
            "loss": surrogate + (loss - surrogate).detach(),
            "reconstruction_loss": -log_likelihood.mean(),
            "kl": self._kl(posterior, p, z).mean(),
            "latents": z[0],
            "posterior_mean": posterior.mode,  # as the encoder says it: of a von Mises-Fisher its direction
        }

    def _weighable_log_likelihood(self, latents: torch.Tensor, target):
        """log p(x|z_k) without a gradient, [K, B], and a function of weights w, [K, B], which gives the mean over the
        batch of -sum_k w_k log p(x|z_k) with one."""
        log_likelihood = self._log_likelihood(latents, target)  # [K, B]
        return log_likelihood.detach(), lambda weights: -(weights * log_likelihood).sum(0).mean()

    @torch.no_grad()
    def reset_decoder(self) -> None:
        """Make p(x|z) anew, as at the start, and keep the rest: after training as an autoencoder (Li et al. 2019).

        A table of words that the encoder shares (`tie_word_embeddings`) is kept with it.
        """
        shared = self.get_input_embeddings().weight if self.config.tie_word_embeddings else None
        for part in self._parts_of_likelihood():
            bodies = [module for module in part.modules() if isinstance(module, PreTrainedModel)]
            owners = {id(module): body for body in bodies for module in body.modules()}
            for module in part.modules():
                if isinstance(module, nn.Embedding) and module.weight is shared:
                    continue
                for parameter in module.parameters(recurse=False):
                    parameter._is_hf_initialized = False
                owners.get(id(module), self)._init_weights(module)


def check_floats(latents: torch.Tensor) -> None:
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        kind = latents.dtype if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"`latents` must be a tensor of floats, got {kind}. Use `torch.as_tensor(z).float()`.")


def check_latents(latents: torch.Tensor, latent_size: int) -> None:
    check_floats(latents)
    if latents.dim() != 2 or latents.shape[-1] != latent_size:
        raise ValueError(
            f"`latents` must have shape [batch, latent_size] with `latent_size` {latent_size}, got "
            f"{list(latents.shape)}."
        )


def check_finite(latents: torch.Tensor) -> None:
    """Of z given to `generate`: NaN would be decoded, to something."""
    rows = latents.isfinite().flatten(1).all(-1)
    if not rows.all():
        raise ValueError(
            f"`latents` must be finite numbers; row {int(rows.long().argmin())} has NaN or infinity. Did the model "
            "that made them diverge?"
        )


def check_no_attentions(asked: bool | None) -> None:
    """transformers and peft say this to every model."""
    if asked:
        raise ValueError(
            "`output_attentions` cannot be had: recurrent layers have none, and those that attend keep none. Leave it "
            "out."
        )


def check_num_samples(num_samples: int) -> None:
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be 1 or more, got {num_samples}.")


def check_samples(latents: torch.Tensor, shape: tuple[int, ...]) -> None:
    check_floats(latents)
    if latents.dim() != 1 + len(shape) or latents.shape[1:] != shape:
        sizes = ", ".join(map(str, shape))
        raise ValueError(f"`latents` must be K samples of q(z|x), [K, {sizes}], got {list(latents.shape)}.")


def token_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log p(label) in nats, 0 where the label is -100: [B, T] of logits [B, T, V] and labels [B, T]."""
    return nn.functional.cross_entropy(
        at_least_float32(logits).flatten(0, 1), labels.flatten().long(), ignore_index=IGNORE_INDEX, reduction="none"
    ).view_as(labels)


def check_ids(name: str, ids: torch.LongTensor) -> None:
    if not isinstance(ids, torch.Tensor):
        raise ValueError(
            f'`{name}` must be a tensor of token ids, got {type(ids).__name__}. Tokenize with `return_tensors="pt"`.'
        )
    if ids.dim() != 2 or ids.is_floating_point():
        raise ValueError(f"`{name}` must be token ids [batch, time], integers; got {list(ids.shape)} of {ids.dtype}.")
    if ids.shape[1] == 0:
        raise ValueError(f"`{name}` must hold a token at least in each row, got {list(ids.shape)}.")


def check_mask(name: str, mask: torch.Tensor | None, inputs: torch.Tensor, past: int = 0) -> None:
    """Of inputs [B, T, E], behind `past` ones that a mask may tell of too: a shorter mask would shorten them."""
    rows, steps = inputs.shape[:2]
    if mask is not None and tuple(mask.shape) not in ((rows, steps), (rows, past + steps)):
        raise ValueError(
            f"`{name}` must say of each position whether it is real, {[rows, steps]}, got {list(mask.shape)}."
        )


def real_positions(ids: torch.LongTensor, mask: torch.Tensor | None, pad_token_id: int | None) -> torch.Tensor:
    """Which tokens [B, T] are real, bool [B, T]: what the mask says, by default all but `pad_token_id`."""
    if mask is not None:
        return mask.bool()
    return torch.ones_like(ids, dtype=torch.bool) if pad_token_id is None else ids != pad_token_id


def check_token_ids(name: str, ids: torch.LongTensor, vocab_size: int, ignore: int | None = None) -> None:
    """Name the id that no table holds, or the lack of any. On an accelerator ids are not looked at, which would cost a
    synchronisation: its kernels check."""
    check_ids(name, ids)
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    real = ids if ignore is None else ids[ids != ignore]
    for bad in (real.min().item(), real.max().item()) if real.numel() else ():
        if not 0 <= bad < vocab_size:
            allowed = "" if ignore is None else f" or {ignore}"
            raise ValueError(
                f"`{name}` must be in [0, {vocab_size}){allowed}, got {bad}. Does the tokenizer belong to the model?"
            )
