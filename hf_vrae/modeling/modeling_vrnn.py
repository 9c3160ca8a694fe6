"""The variational recurrent neural network (Chung et al. 2015) as a transformers model: one latent per step.

    log p(x) >= E_q[sum_t log p(x_t | z_t, h_{t-1}) - KL(q(z_t | x_t, h_{t-1}) || p(z_t | h_{t-1}))]    eq. 11

`vrnn` has the four distributions; here are the bounds of log p(x) that follow from them, and the model of tokens.

Letters in shapes: B batch, T time, K samples or particles, D latent size, E embedding size, P feature size, H hidden
size, V vocabulary, F channels of a frame.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .cache_name import CACHE, takes_cache
from .configuration_vrnn import VRNNConfig
from .distributions import DiagonalGaussian, generators_of_rows, kl_per_dimension, to_float64
from .generation import RecurrentCache
from .generation_vrnn import LatentNoise, VRNNGenerationMixin
from .heads import make_frame_embedding
from .kernels import IGNORE_INDEX, Dropout, at_least_float32, draw, linear_cross_entropy, linear_nll
from .modeling_latent import (
    LatentSequenceModel,
    check_floats,
    check_mask,
    check_no_attentions,
    check_num_samples,
    check_samples,
    check_token_ids,
    real_positions,
    token_nll,
)
from .objectives import importance_weighted_bound, negative_elbo, particle_filter_bound
from .recurrent import left_align, take_time
from .vrnn import Resampling, Trajectory, VRNNLayer

MAX_AT_ONCE = 2**24  # features, or parameters of p(x_t), of all particles, sequences and steps at once in evaluation


@dataclass
class VRNNOutput(CausalLMOutputWithPast):
    """transformers' output of a causal language model, whose attentions are None here, and what a VRNN adds to it.

    Args:
        loss: mean over the sequences of reconstruction + kl_weight * KL in nats, in training what the configuration
            makes of it: the KL that is charged for, or the importance-weighted or particle filter's bound.
        logits: [B, T, V], of the token that follows each position, with the prior's z there (its mean, or a sample).
        cache: the state after the last token, and the z of the next one; see `cache_name.py`.
        hidden_states: the embedded inputs [B, T, E] and h_t [B, T, H]; where they are of the path that was sampled,
            in training with `labels` and of frames, left-aligned phi_x(x_t) [B, T, P] in place of the former.
        reconstruction_loss: mean of -sum_t log p(x_t | z_t, h_{t-1}), in nats per sequence.
        kl: mean of sum_t KL(q(z_t | x_t, h_{t-1}) || p(z_t | h_{t-1})), neither weighted nor clamped.
        latents: the z of each token that follows a position, [B, T, D]; with `labels` the path that was sampled.
            None where `latent_size` is 0.
        posterior_mean, posterior_logvar: of q along that path, float32 [B, T, D]; only with `labels`.
    """

    reconstruction_loss: torch.FloatTensor | None = None
    kl: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    posterior_mean: torch.FloatTensor | None = None
    posterior_logvar: torch.FloatTensor | None = None


@dataclass
class Observed:
    """Sequences as the layer takes them.

    Args:
        phi_x: [B, T, P], left-aligned.
        lengths: real steps, [B].
        target: what the emission is scored on, left-aligned, in the form of the model.
        order: position of each aligned step, [B, T].
        back: index of each position's step in the aligned order, [B, T].
    """

    phi_x: torch.Tensor
    lengths: torch.Tensor
    target: object
    order: torch.Tensor
    back: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        """[B, T]"""
        return torch.arange(self.phi_x.shape[1], device=self.phi_x.device) < self.lengths.unsqueeze(1)


@dataclass
class Reading:
    """What [`VRNNForSequenceGeneration._read`] leaves of each column.

    Args:
        features: of the emission of the next token, [B, T, P].
        z: of the next token: where that is among the columns, the one it was read with, [B, T, D].
        hidden: h, [B, T, H].
        cache: the state after the last column, and the last z.
    """

    features: torch.Tensor
    z: torch.Tensor
    hidden: torch.Tensor
    cache: RecurrentCache


class VRNNPreTrainedModel(LatentSequenceModel):
    """What the VRNN over tokens and that over frames share: the bounds of log p(x).

    A subclass says what x is. By a *target*, what of x is scored, left-aligned and in a form of its own, it gives:

    - `_observe(labels, **batch)`: the sequences of a batch and their target, see [`Observed`];
    - `_score(features, target)`: log p(x_t | features), 0 where nothing is scored, [K, B, T] of [K, B, T, P];
    - `_score_width()`: how many numbers that holds at once of a step;
    - `_at_step(target, t)`: the target of one step;
    - `_drawn_steps(features)`: phi_x of a sample of p(x_t | features), [B, T, P] of [B, T, P];
    - `_likeliest(features)`: its mode, as the model gives it out;
    - `num_steps(target)`: how many steps are scored, [B].
    """

    config: VRNNConfig

    def get_encoder(self, modality=None) -> nn.Module:
        """What gives q(z_t | x_t, h_{t-1}) and nothing else."""
        layer = self.model.layer
        if not self.config.latent_size:
            return nn.ModuleList()
        smoothing = [layer.backward_rnn] if self.config.smoothing_posterior else []
        return nn.ModuleList([layer.posterior_network, *smoothing])

    def encode(self, **batch) -> DiagonalGaussian:
        """q(z_t | x_t, h_{t-1}) of each step, along the path of its own means: batch shape [B, T], event shape [D].

        Of tokens step t is that of token t + 1: the start mark has none. At padded steps it says nothing.
        """
        return self._along_the_means(batch)[0]

    def prior(self, **batch) -> DiagonalGaussian:
        """p(z_t | h_{t-1}) along the same path, batch shape [B, T]; without a batch p(z_1), batch shape []."""
        if not batch:
            layer = self.model.layer
            return layer.prior(torch.zeros(self.config.hidden_size, dtype=self.dtype, device=self.device))
        return self._along_the_means(batch)[1]

    def _along_the_means(self, batch: dict) -> tuple[DiagonalGaussian, DiagonalGaussian]:
        observed = self._observe(**batch)
        noise = observed.phi_x.new_zeros(1, *observed.phi_x.shape[:2], self.config.latent_size)
        path = self.model.layer.unroll(observed.phi_x, observed.lengths, noise)
        return tuple(
            DiagonalGaussian(take_time(d.mean, observed.back), take_time(d.logvar, observed.back))
            for d in (path.posterior, path.prior)
        )

    def _check_latents(self, latents: torch.Tensor, rows: int | None = None) -> None:
        check_floats(latents)
        if latents.dim() != 3 or latents.shape[-1] != self.config.latent_size:
            raise ValueError(
                "`latents` must have shape [batch, time, latent_size] with `latent_size` "
                f"{self.config.latent_size}, got {list(latents.shape)}."
            )
        if rows is not None and len(latents) != rows:
            raise ValueError(f"`latents` must have a row for each of the {rows} sequences, got {len(latents)}.")

    @torch.no_grad()
    def teacher_forced(self, latents: torch.Tensor, **batch) -> torch.Tensor:
        """The likeliest x_t given z_t and the true steps before it: ids [B, T - 1] of each token but the first, or
        raw frames [B, T, F].

        Args:
            latents: z of each step, [B, T - 1, D] or [B, T, D], by columns of the batch, as [`encode`] gives them.
            batch: what [`forward`] takes.
        """
        observed = self._observe(**batch)
        z = take_time(latents, observed.order).unsqueeze(0)
        path = self.model.layer.follow(observed.phi_x, observed.lengths, z)
        return self._likeliest(take_time(path.features, observed.back))

    def log_importance_weights(
        self,
        num_samples: int = 1,
        latents: torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **batch,
    ) -> torch.Tensor:
        """log p(x, z_k) - log q(z_k|x) of K paths z_k = z_k1 .. z_kT, in nats: [K, B].

        Their mean is the ELBO, their logsumexp - log K the importance-weighted bound (Burda et al. 2016, eq. 8).

        Args:
            num_samples: K.
            latents: the paths themselves, where the caller drew them, [K, B, T, D], by columns of the batch as
                [`encode`] gives them.
            generator: of the noise; a list has one for each sequence, whose noise is then its own in any batch.
            batch: what [`forward`] takes.
        """
        check_num_samples(num_samples)
        observed = self._observe(**batch)
        if latents is not None:
            check_samples(latents, (*observed.phi_x.shape[:2], self.config.latent_size))
            z = torch.stack([take_time(sample, observed.order) for sample in latents])
            path = self.model.layer.follow(observed.phi_x, observed.lengths, z)
            return self._log_weights(path, observed).view(len(latents), -1)
        parts = [
            self._log_weights(self.model.layer.unroll(observed.phi_x, observed.lengths, noise), observed)
            for noise in self._noise(num_samples, observed, generator).split(self._samples_at_once(observed))
        ]
        return torch.cat(parts).view(num_samples, -1)

    def particle_filter(
        self, num_samples: int, generator: torch.Generator | list[torch.Generator] | None = None, **batch
    ) -> torch.Tensor:
        """A particle filter's estimate of log p(x), [B], in expectation a lower bound (Maddison et al. 2017, FIVO).

        Args:
            num_samples: particles, at least 2.
            generator, batch: as in [`log_importance_weights`].
        """
        if num_samples < 2 and self.config.latent_size:
            raise ValueError(f"`num_samples` must be at least 2, of which a filter chooses; got {num_samples}.")
        observed = self._observe(**batch)
        noise = self._noise(num_samples, observed, generator)
        if not self.config.latent_size:  # all particles are one
            path = self.model.layer.unroll(observed.phi_x, observed.lengths, noise[:1])
            return self._log_likelihood(path, observed).sum(1)
        path, resampling = self._filter(observed, noise, generator)
        terms = resampling.terms()
        if torch.is_grad_enabled():  # the same, with one
            terms = self._log_likelihood(path, observed) - self._log_ratio(path, observed)
        return particle_filter_bound(terms.view(noise.shape[:3]), resampling.segments())

    def _filter(self, observed: Observed, noise: torch.Tensor, generator=None) -> tuple[Trajectory, Resampling]:
        """The path of the particles as they were drawn, and how they were chosen."""

        def log_likelihood(features, t):
            features = features.unflatten(0, noise.shape[:2]).unsqueeze(2)  # [K, B, 1, P]
            return self._score(features, self._at_step(observed.target, t)).flatten()

        layer, points = self.model.layer, self._points(observed, generator)
        resampling = Resampling(layer, observed.lengths, noise, points, log_likelihood)
        return layer.unroll(observed.phi_x, observed.lengths, noise, choose=resampling), resampling

    def _noise(self, num_samples: int, observed: Observed, generator=None) -> torch.Tensor:
        """Standard normal, [K, B, T, D]."""
        return self._drawn(torch.randn, num_samples, self.config.latent_size, observed, generator)

    def _points(self, observed: Observed, generator=None) -> torch.Tensor:
        """Uniform in [0, 1), [B, T]."""
        return self._drawn(torch.rand, 1, 1, observed, generator).squeeze(-1).squeeze(0)

    def _drawn(self, random, samples: int, size: int, observed: Observed, generator) -> torch.Tensor:
        """Random numbers, [samples, B, T, size]; of a generator a row only as many as the row's own steps take."""
        count, time = observed.phi_x.shape[:2]
        device = observed.phi_x.device
        if not isinstance(generator, list):
            place = device if generator is None else generator.device
            return random(samples, count, time, size, generator=generator, device=place, dtype=torch.float32).to(
                device
            )
        drawn = torch.zeros(samples, count, time, size)
        for row, (length, own) in enumerate(zip(observed.lengths.tolist(), generator, strict=True)):
            drawn[:, row, :length] = random(samples, length, size, generator=own, dtype=torch.float32)
        return drawn.to(device)

    def _samples_at_once(self, observed: Observed) -> int:
        width = max(self.config.feature_size, self.config.hidden_size, self._score_width())
        return max(1, MAX_AT_ONCE // (observed.phi_x[..., 0].numel() * width))

    def _log_likelihood(self, path: Trajectory, observed: Observed) -> torch.Tensor:
        """log p(x_t | z_t, h_{t-1}) of each step along a path, [K * B, T]."""
        return self._score(path.features.unflatten(0, (-1, len(observed.phi_x))), observed.target).flatten(0, 1)

    def _log_ratio(self, path: Trajectory, observed: Observed) -> torch.Tensor:
        """log q(z_t | x_t, h_{t-1}) - log p(z_t | h_{t-1}) of each step along a path, [K * B, T]."""
        log_ratio = path.posterior.log_prob(path.z) - path.prior.log_prob(path.z)
        return log_ratio * observed.real.repeat(len(path.z) // len(observed.phi_x), 1)

    def _log_weights(self, path: Trajectory, observed: Observed) -> torch.Tensor:
        """[K * B]"""
        return (self._log_likelihood(path, observed) - self._log_ratio(path, observed)).sum(1)

    def _kl(self, path: Trajectory, observed: Observed) -> torch.Tensor:
        """KL(q || p) of each latent dimension, summed over the real steps: [K * B, D]."""
        real = observed.real.repeat(len(path.z) // len(observed.phi_x), 1).unsqueeze(-1)
        return (kl_per_dimension(path.posterior, path.prior) * real).sum(1)

    @torch.no_grad()
    def evaluation_terms(
        self, num_samples: int, generators: list[torch.Generator] | None = None, svi_steps: int = 0, **batch
    ):
        """What evaluation takes of a batch, a row per sequence, in nats.

        Args:
            num_samples: K.
            generators: a sequence's each, as in [`log_importance_weights`].
            svi_steps: must be 0: the posterior of a step depends on the samples before it.

        Returns:
            `log_weights` [K, B], `reconstruction` and `kl` [B] (means over the K paths), `num_steps` [B], `mean`
            [B, D] (of the posterior means over the steps), and `log_fivo` [B], the particle filter's estimate, K > 1.
        """
        if svi_steps:
            raise ValueError(
                f"`svi_steps` {svi_steps} refines one posterior per sequence; a VRNN has one per step. Set it to 0."
            )
        observed = self._observe(**batch)
        noise = self._noise(num_samples, observed, generators)
        parts = []
        for part in noise.split(self._samples_at_once(observed)):
            path = self.model.layer.unroll(observed.phi_x, observed.lengths, part)
            log_p = to_float64(self._log_likelihood(path, observed)).sum(1)
            real = observed.real.repeat(len(part), 1).unsqueeze(-1)
            mean = (path.posterior.mean * real).sum(1) / real.sum(1).clamp(min=1)
            terms = (
                log_p,
                to_float64(self._log_ratio(path, observed)).sum(1),
                to_float64(self._kl(path, observed)).sum(1),
                mean,
            )
            parts.append([term.view(len(part), len(observed.phi_x), *term.shape[1:]) for term in terms])
        log_p, log_ratio, kl, mean = (torch.cat(part) for part in zip(*parts, strict=True))  # [K, B] each
        terms = {
            "log_weights": log_p - log_ratio,
            "reconstruction": -log_p.mean(0),
            "kl": kl.mean(0),
            "num_steps": self.num_steps(observed.target),
            "mean": mean.mean(0),
        }
        if num_samples > 1 and self.config.latent_size:
            _, resampling = self._filter(observed, noise, generators)
            weights = to_float64(resampling.terms())
            terms["log_fivo"] = particle_filter_bound(weights, resampling.segments().to(weights.device))
        return terms

    def _bound(self, observed: Observed) -> dict:
        """Loss and its parts for [`_output`], of one sampled path in evaluation, always with the same noise, and as
        configured in training."""
        config = self.config
        samples = config.num_train_samples if self.training else 1
        if samples > 1:
            bound = f"the bound of `num_train_samples` {samples}{' with `resampling`' if config.resampling else ''}"
            self._check_schedules(bound, "train with one sample", weighs_kl=not config.resampling)
        rows = len(observed.phi_x)
        noise = self._noise(samples, observed, None if self.training else generators_of_rows(rows))
        if config.resampling and self.training:
            path, resampling = self._filter(observed, noise)
        else:
            read = self._mix_in_own_steps(observed, noise) if self.training and self.sampling_probability > 0 else None
            path = self.model.layer.unroll(observed.phi_x, observed.lengths, noise, read)
        kl_of_dimensions = self._kl(path, observed)  # [K * B, D]
        kl = kl_of_dimensions.sum(1).mean()
        if samples == 1:
            reconstruction = self._reconstruction(path, observed)
            loss = negative_elbo(reconstruction, self._charged_kl(kl, lambda: kl_of_dimensions), self.kl_weight)
        else:
            log_p, log_ratio = self._log_likelihood(path, observed), self._log_ratio(path, observed)  # [K * B, T]
            reconstruction = -log_p.sum(1).mean()
            if config.resampling:
                bound = particle_filter_bound((log_p - log_ratio).view(noise.shape[:3]), resampling.segments())
            else:
                log_weights = log_p.sum(1) - self.kl_weight * log_ratio.sum(1)
                bound = importance_weighted_bound(log_weights.view(samples, -1))
            loss = -bound.mean()
        return {
            "loss": loss,
            "reconstruction_loss": reconstruction,
            "kl": kl,
            # Of several paths through each sequence the first.
            "latents": take_time(path.z[:rows], observed.back),
            "posterior_mean": take_time(path.posterior.mean[:rows], observed.back),
            "posterior_logvar": take_time(path.posterior.logvar[:rows], observed.back),
            "hidden_states": (observed.phi_x, path.hidden[:rows]),
        }

    def _mix_in_own_steps(self, observed: Observed, noise: torch.Tensor) -> torch.Tensor:
        """phi_x of what the recurrence reads, [B, T, P]: x_t, or with the scheduled probability a sample of
        p(x_t | z_t, h_{t-1}) from a first pass, which has read the true steps.

        Scheduled sampling (Bengio et al. 2015) in two passes, as in the VRAE (Duckworth et al. 2019). The posterior
        still sees the true x_t: what it is to infer is the cause of x_t, whatever was said before.
        """
        with torch.no_grad():
            path = self.model.layer.unroll(observed.phi_x, observed.lengths, noise)
            chosen = torch.rand(observed.phi_x.shape[:2], device=observed.phi_x.device) < self.sampling_probability
        return torch.where(chosen.unsqueeze(-1), self._drawn_steps(path.features), observed.phi_x)

    def _output(self, output_hidden_states: bool | None, **fields) -> VRNNOutput:
        """Of the fields those that are asked for and are there. An output is made whole: set later, a field of it
        would be missing from its tuple, or stay there as None."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        left_out = [] if output_hidden_states else ["hidden_states"]
        if not self.config.latent_size:
            left_out += ["latents", "posterior_mean", "posterior_logvar"]
        return VRNNOutput(**(fields | dict.fromkeys(left_out)))

    def _reconstruction(self, path: Trajectory, observed: Observed) -> torch.Tensor:
        """-log p(x|z), its mean over the sequences, a scalar."""
        return -self._log_likelihood(path, observed).sum(1).mean()


class VRNNModel(VRNNPreTrainedModel):
    """Embedding and recurrence, without the projection to tokens or frames."""

    def __init__(self, config: VRNNConfig):
        super().__init__(config)
        if config.input_size is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        else:
            self.embed_frames = make_frame_embedding(config)
        self.dropout = Dropout(config.dropout, config.kernels)
        self.layer = VRNNLayer(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens if self.config.input_size is None else self.embed_frames

    def set_input_embeddings(self, value: nn.Embedding):
        self.embed_tokens = value

    def embed(self, inputs: torch.Tensor) -> torch.Tensor:
        """phi_x(x), [..., P], of what was embedded, [..., E]."""
        return self.layer.phi_x(self.dropout(inputs))


class VRNNForSequenceGeneration(VRNNPreTrainedModel, VRNNGenerationMixin):
    """The VRNN over token sequences `<s> w1 .. wn </s>`; each token but the first has a latent of its own.

    Example:

    ```python
    >>> ids = tokenizer(["<s> the company said"], add_special_tokens=False, return_tensors="pt").input_ids
    >>> model.generate(ids, do_sample=True, top_k=0)  # a continuation, with each z_t drawn from the prior
    >>> pipe = pipeline("text-generation", model, tokenizer=tokenizer, prefix="<s>", add_special_tokens=False)
    >>> pipe("the company said")
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    other_auto_classes = ("AutoModelForCausalLM",)

    def __init__(self, config: VRNNConfig):
        super().__init__(config)
        if config.input_size is not None:
            raise ValueError(
                f"`input_size` {config.input_size} is of frames: take `VRNNForFrameGeneration`, or leave it out."
            )
        self.model = VRNNModel(config)
        self.lm_head = nn.Linear(config.feature_size, config.vocab_size, bias=False)
        self.post_init()

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        cache: RecurrentCache | None = None,
        latents: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int = 0,
        num_observed: int | None = None,
        latent_noise: LatentNoise | None = None,
    ) -> VRNNOutput:
        """
        Args:
            input_ids: `<s> w1 .. wn </s>`, [B, T]; or `inputs_embeds` [B, T, E] in its place. The first real token
                only starts the row: it is neither predicted nor read.
            attention_mask: nonzero where a token is real, [B, T] or, with a cache, [B, past + T].
            cache: state to go on from; or, by its name before transformers 5.24, `past_key_values`.
            latents: z of the token in column t + 1 at [:, t], [B, S, D]; further ones are the prior's.
            labels: the input tokens, with -100 where none is scored, [B, T]. With them the bound of log p(x) is
                computed, its path sampled from the posterior (in evaluation always with the same noise).
            output_attentions: must not be asked for: there are none.
            logits_to_keep: compute only the last so many logits; 0 is all.
            num_observed: columns whose tokens were given; the z of a later token is that which generated it, the
                prior's. By default all: the z of each is the posterior's mean.
            latent_noise: standard normal [B, D] of each column, by which the prior's z are drawn in place of its mean.

        Returns:
            [`VRNNOutput`]; `loss` and its parts only with `labels`. Without, `logits` never depend on later tokens,
            but with `smoothing_posterior`: there the z of each has seen them.
        """
        check_no_attentions(output_attentions)
        inputs_embeds = self._embedded(input_ids, inputs_embeds)
        if latents is not None:
            self._check_latents(latents, len(inputs_embeds))
        past = 0 if cache is None else cache.get_seq_length()
        check_mask("attention_mask", attention_mask, inputs_embeds, past)
        # `generate` looks for padding itself and passes no mask where it found none: a <pad> it drew is a token.
        mask = self._mask(input_ids if num_observed is None else None, inputs_embeds, attention_mask)
        fields = {}
        if labels is not None:
            check_token_ids("labels", labels, self.config.vocab_size, ignore=IGNORE_INDEX)
            if latents is not None or cache is not None:
                raise ValueError(
                    f"With `labels` the bound is of whole sequences, its z drawn from the posterior: leave out "
                    f"`latents` and `{CACHE}`, or `labels`."
                )
            fields = self._bound(self._align(inputs_embeds, mask, labels))
            if self.training:
                return self._output(output_hidden_states, **fields)
            use_cache = False
        path = self._read(inputs_embeds, mask, cache, latents, num_observed, latent_noise)
        fields.setdefault("latents", path.z)
        fields["logits"] = self.lm_head(path.features[:, -logits_to_keep:])
        fields["hidden_states"] = inputs_embeds, path.hidden
        if self.config.use_cache if use_cache is None else use_cache:
            fields[CACHE] = path.cache
        return self._output(output_hidden_states, **fields)

    def _embedded(self, input_ids, inputs_embeds) -> torch.Tensor:
        """[B, T, E], of ids or as given."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            check_token_ids("input_ids", input_ids, self.config.vocab_size)
            inputs_embeds = self.model.embed_tokens(input_ids)
        return inputs_embeds

    def _mask(self, input_ids, inputs_embeds, attention_mask) -> torch.Tensor:
        """Real columns of the inputs at hand and, where it says so, of those before them, [B, T or past + T]."""
        if input_ids is None and attention_mask is None:
            return torch.ones_like(inputs_embeds[..., 0], dtype=torch.bool)
        return real_positions(input_ids, attention_mask, self.config.pad_token_id)

    def _align(self, inputs_embeds: torch.Tensor, mask: torch.Tensor, labels: torch.LongTensor | None) -> Observed:
        """The tokens behind the first of each row."""
        if labels is not None and labels.shape != mask.shape:
            raise ValueError(
                f"`labels` must be the input tokens, with -100 where none is scored, of shape {list(mask.shape)}; got "
                f"{list(labels.shape)}."
            )
        if mask.shape[1] < 2:
            raise ValueError(f"A sequence is `<s>` and what follows it, two tokens at least; got {list(mask.shape)}.")
        order, back, lengths = left_align(mask)
        phi_x = self.model.embed(take_time(inputs_embeds, order)[:, 1:])
        targets = None if labels is None else labels.masked_fill(~mask, IGNORE_INDEX).gather(1, order)[:, 1:]
        order, back = ((index[:, 1:] - 1).clamp(min=0) for index in (order, back))
        return Observed(phi_x, (lengths - 1).clamp(min=0), targets, order, back)

    def _observe(self, labels=None, input_ids=None, attention_mask=None, inputs_embeds=None) -> Observed:
        inputs_embeds = self._embedded(input_ids, inputs_embeds)
        check_mask("attention_mask", attention_mask, inputs_embeds)
        mask = self._mask(input_ids, inputs_embeds, attention_mask)
        return self._align(inputs_embeds, mask, input_ids if labels is None else labels)

    def _score(self, features: torch.Tensor, target: torch.LongTensor | None) -> torch.Tensor:
        if target is None:
            raise ValueError("A likelihood is of tokens: pass `input_ids`, or beside `inputs_embeds` the `labels`.")
        labels = target.expand(features.shape[:-1])  # [K, B, T]
        if self._head_is_plain and not torch.is_grad_enabled():
            return -linear_nll(features.flatten(0, -2), self.lm_head.weight, labels.flatten()).view_as(labels)
        return -token_nll(self.lm_head(features).flatten(0, 1), labels.flatten(0, 1)).view_as(labels)

    def _score_width(self) -> int:
        # Without a gradient `linear_nll` takes the logits part by part.
        return 0 if self._head_is_plain and not torch.is_grad_enabled() else self.config.vocab_size

    def _at_step(self, target: torch.LongTensor | None, t: int) -> torch.LongTensor | None:
        return None if target is None else target[:, t : t + 1]

    def _drawn_steps(self, features: torch.Tensor) -> torch.Tensor:
        words = draw(at_least_float32(self.lm_head(features).flatten(0, 1).detach()))
        return self.model.embed(self.model.embed_tokens(words.view(features.shape[:2])))

    def _likeliest(self, features: torch.Tensor) -> torch.LongTensor:
        return self.lm_head(features).argmax(-1)

    def num_steps(self, target: torch.LongTensor) -> torch.LongTensor:
        """Tokens that are scored, [B]."""
        return (target != IGNORE_INDEX).sum(1)

    def _reconstruction(self, path: Trajectory, observed: Observed) -> torch.Tensor:
        if not (self.training and self._head_is_plain):
            return super()._reconstruction(path, observed)
        features, labels = path.features.flatten(0, 1), observed.target.flatten()
        return linear_cross_entropy(features, self.lm_head.weight, labels, scale=1 / len(observed.target))

    def _read(self, inputs_embeds, mask, cache, latents, num_observed, latent_noise) -> Reading:
        """Go through the columns one by one; see [`forward`] for which z each is read with."""
        layer, phi_x = self.model.layer, self.model.embed(inputs_embeds)
        count, time = phi_x.shape[:2]
        past = 0 if cache is None else cache.get_seq_length()
        if past:
            *state, z = cache.states(count)[0]
        else:
            state = layer.first_state(count, phi_x)
        # The first real token only starts its row. Where the mask leaves out what came before, it came before.
        started = mask.cumsum(1) + (past > 0 and mask.shape[1] == time)
        reads = (mask & (started > 1))[:, -time:]
        generating = num_observed is not None
        num_observed = past + time if num_observed is None else num_observed
        columns = torch.arange(past, past + time, device=mask.device)
        order, back, lengths = left_align(reads & (columns < num_observed))
        seen = take_time(layer.what_the_posterior_sees(take_time(phi_x, order), lengths), back)
        given = 0 if latents is None else latents.shape[1]
        features, used, hidden = [], [], []
        for i in range(time):
            column = past + i
            if column > 0:
                if column <= given:
                    z = latents[:, column - 1]
                elif column < num_observed and not (generating and past and i == 0):
                    z = layer.posterior(seen[:, i], state[0], layer.prior(state[0])).mean
                if i > 0:
                    used.append(z)
                moved = layer.advance(phi_x[:, i], z, state)
                state = tuple(torch.where(reads[:, i : i + 1], new, s) for new, s in zip(moved, state, strict=True))
            prior = layer.prior(state[0])
            if column < given:
                z = latents[:, column]
            else:
                z = prior.mean if latent_noise is None else prior.mean + prior.stddev * latent_noise[column]
            features.append(layer.emission(z, state[0]))
            hidden.append(state[0])
        if cache is None:
            cache = RecurrentCache(1, layer.rnn.number_of_states + 1)
        cache.update_states([(*state, z)], time)
        return Reading(*(torch.stack(path, dim=1) for path in (features, [*used, z], hidden)), cache)


__all__ = ["VRNNForSequenceGeneration", "VRNNModel", "VRNNPreTrainedModel"]
