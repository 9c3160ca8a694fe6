"""The variational recurrent neural network (Chung et al. 2015) as a transformers model: one latent a step.

    prior        z_t ~ p(z_t | h_{t-1}) = N(mean(h), diag(variance(h)))     eq. 5
    emission     x_t ~ p(x_t | z_t, h_{t-1})                                eq. 6
    recurrence   h_t = f(phi_x(x_t), phi_z(z_t), h_{t-1})                   eq. 7
    posterior    q(z_t | x_t, h_{t-1})                                      eq. 9

    log p(x) >= E_q[sum_t log p(x_t | z_t, h_{t-1}) - KL(q(z_t | x_t, h_{t-1}) || p(z_t | h_{t-1}))]    eq. 11

Letters in shapes: B batch, T time, K samples or particles, D latent size, E embedding size, P feature size, H hidden
size, V vocabulary, F channels of a frame.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple, logging

from .configuration_vrnn import VRNNConfig
from .distributions import DiagonalGaussian, kl_per_dimension
from .generation import RecurrentCache
from .heads import make_frame_embedding
from .kernels import IGNORE_INDEX, Dropout, linear_cross_entropy, linear_nll
from .modeling_latent import LatentSequenceModel, check_token_ids, token_nll
from .objectives import capacity_gap, free_bits, importance_weighted_bound, negative_elbo
from .posteriors import MAX_LOGVAR, MIN_LOGVAR
from .recurrent import LAYERS, drop_weights, left_align, run_layer, stepwise_product, take_time
from .recurrent_latent import sample_path

logger = logging.get_logger(__name__)
MAX_AT_ONCE = 2**24  # emission features, of a particle, a sequence and a step each, held at once in evaluation


class FeatureExtractor(nn.Sequential):
    """phi: ReLU layers (Chung et al. 2015, sec. 3.1), from [..., I] to [..., P]."""

    def __init__(self, input_size: int, feature_size: int, feature_layers: int):
        sizes = [input_size] + [feature_size] * feature_layers
        layers = [(nn.Linear(i, o), nn.ReLU()) for i, o in zip(sizes[:-1], sizes[1:], strict=True)]
        super().__init__(*(module for layer in layers for module in layer))


class GaussianNetwork(nn.Module):
    """N(mean(i), diag(variance(i))) of an input i [..., I]."""

    def __init__(self, input_size: int, feature_size: int, feature_layers: int, latent_size: int):
        super().__init__()
        self.features = FeatureExtractor(input_size, feature_size, feature_layers)
        self.moments = nn.Linear(feature_size, 2 * latent_size)

    def forward(self, *inputs: torch.Tensor) -> DiagonalGaussian:
        return gaussian(self.moments(self.features(torch.cat(inputs, dim=-1))))


def gaussian(moments: torch.Tensor) -> DiagonalGaussian:
    """Of mean and log-variance [..., 2 D], in float32 at least."""
    mean, logvar = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, dim=-1)
    return DiagonalGaussian(mean, logvar.clamp(MIN_LOGVAR, MAX_LOGVAR))


@dataclass
class Trajectory:
    """One path of latents through each sequence; rows are K * B, sample k of sequence b in row k * B + b.

    Args:
        z: [K * B, T, D].
        posterior, prior: q(z_t | x_t, h_{t-1}) and p(z_t | h_{t-1}), batch shape [K * B, T].
        features: of the emission p(x_t | z_t, h_{t-1}), [K * B, T, P].
        hidden: h_t, [K * B, T, H].
    """

    z: torch.Tensor
    posterior: DiagonalGaussian
    prior: DiagonalGaussian
    features: torch.Tensor
    hidden: torch.Tensor


class VRNNLayer(nn.Module):
    """The four distributions, and the ways to go through a sequence with them.

    Sequences are embedded, [B, T, E], and left-aligned: real steps first.
    """

    def __init__(self, config: VRNNConfig):
        super().__init__()
        sizes = config.feature_size, config.feature_layers
        self.config = config
        self.phi_x = FeatureExtractor(config.embedding_size, *sizes)
        self.rnn = LAYERS[config.rnn_type, config.layer_norm](
            config.feature_size * (2 if config.latent_size else 1), config.hidden_size
        )
        self.rnn.kernels, self.rnn.weight_dropout = config.kernels, config.weight_dropout
        self.emission_features = FeatureExtractor(
            config.feature_size * bool(config.latent_size) + config.hidden_size, *sizes
        )
        self.dropout = Dropout(config.dropout, config.kernels)
        if config.latent_size:
            self.phi_z = FeatureExtractor(config.latent_size, *sizes)
            self.prior_network = GaussianNetwork(config.hidden_size, *sizes, config.latent_size)
            self.posterior_network = GaussianNetwork(
                config.feature_size + config.hidden_size, *sizes, config.latent_size
            )
        if config.smoothing_posterior:
            self.backward_rnn = LAYERS[config.rnn_type, config.layer_norm](config.feature_size, config.feature_size)
            self.backward_rnn.kernels = config.kernels

    # The four distributions.

    def prior(self, h: torch.Tensor) -> DiagonalGaussian:
        """p(z_t | h_{t-1}), of h [..., H]: it never sees x_t."""
        if not self.config.latent_size:
            return gaussian(h[..., :0])
        return self.prior_network(h)

    def posterior(self, seen: torch.Tensor, h: torch.Tensor, prior: DiagonalGaussian) -> DiagonalGaussian:
        """q(z_t | x_t, h_{t-1}), of what [`what_the_posterior_sees`] gives [..., P] and h [..., H]."""
        if not self.config.latent_size:
            return gaussian(h[..., :0])
        q = self.posterior_network(seen, h)
        # The posterior is as far from the prior as x_t makes it (Fraccaro et al. 2016, sec. 3.2).
        return DiagonalGaussian(q.mean + prior.mean, q.logvar) if self.config.residual_posterior else q

    def emission(self, z: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """The features [..., P] from which the head makes p(x_t | z_t, h_{t-1})."""
        return self.dropout(self.emission_features(torch.cat([*self.of_latents(z), h], dim=-1)))

    def advance(self, phi_x: torch.Tensor, z: torch.Tensor, state: tuple) -> tuple:
        """The state with h_t, of phi_x(x_t) [B, P], z_t [B, D] and the state with h_{t-1}."""
        inputs = torch.cat([phi_x, *self.of_latents(z)], dim=-1).unsqueeze(1)
        return run_layer(self.rnn, inputs, state)[1]

    def of_latents(self, z: torch.Tensor) -> list[torch.Tensor]:
        """phi_z(z), [..., P], as a list that is empty where there is no z."""
        return [self.phi_z(z.to(self.phi_z[0].weight.dtype))] if self.config.latent_size else []

    def what_the_posterior_sees(self, phi_x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Of each step [B, T, P]: phi_x(x_t), or a_t, which a recurrence from the end has made of x_t to x_T."""
        if not self.config.smoothing_posterior:
            return phi_x
        steps = torch.arange(phi_x.shape[1], device=phi_x.device)
        # The real steps backwards, then the padding as it is: its own inverse.
        flip = torch.where(steps < lengths.unsqueeze(1), lengths.unsqueeze(1) - 1 - steps, steps)
        return take_time(run_layer(self.backward_rnn, take_time(phi_x, flip))[0], flip)

    def first_state(self, rows: int, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """h_0, and c_0 of an LSTM: zeros [rows, H]."""
        return (like.new_zeros(rows, self.config.hidden_size),) * self.rnn.number_of_states

    # Ways through a sequence.

    def unroll(self, phi_x: torch.Tensor, lengths: torch.Tensor, noise: torch.Tensor) -> Trajectory:
        """Sample a path, z_t = mean + stddev * noise_t of q(z_t | x_t, h_{t-1}), K for each sequence.

        In the loop over time is only what must be there: prior and emission follow for all steps at once, what is
        linear in x_t comes before, and the gradient of each weight is one product for all steps.

        Args:
            phi_x: [B, T, P].
            lengths: [B], real steps.
            noise: standard normal, [K, B, T, D].
        """
        if not self.config.latent_size:
            return self.follow(phi_x, lengths, noise)
        layer, gates_x, features_x, weight_z, weight_h = self.rnn, *self._of_inputs(phi_x, lengths)
        # One product serves all that reads h_{t-1}.
        reads_h = [drop_weights(layer), weight_h]
        if self.config.residual_posterior:
            reads_h.append(self.prior_network.features[0].weight)
        noise = noise.flatten(0, 1).transpose(0, 1)  # [T, K * B, D]
        walk = self._walk_by_kernel if self._has_kernel(gates_x) else self._walk
        z, features_z, moments, hidden = walk(gates_x, features_x, noise, reads_h, weight_z)
        hidden = hidden.transpose(0, 1)  # [K * B, T + 1, H]
        z, features_z, moments = (path.transpose(0, 1) for path in (z, features_z, moments))
        before = hidden[:, :-1]
        features = self.dropout(self.emission_features(torch.cat([features_z, before], dim=-1)))
        return Trajectory(z, gaussian(moments), self.prior(before), features, hidden[:, 1:])

    def _of_inputs(self, phi_x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What x_t adds to the gates [T, B, G * H] and to the first features from which z_t is read [T, B, P], and
        the rest of those weights: of phi_z(z) in the gates, of h in the features."""
        first, size = self.posterior_network.features[0], phi_x.shape[-1]
        seen = self.what_the_posterior_sees(phi_x, lengths)
        weight_x, weight_z = self.rnn.input_weight.tensor_split([size], dim=1)
        gates_x = nn.functional.linear(phi_x.transpose(0, 1), weight_x, self.rnn.input_bias)
        weight_seen, weight_h = first.weight.tensor_split([size], dim=1)
        return gates_x, nn.functional.linear(seen.transpose(0, 1), weight_seen, first.bias), weight_z, weight_h

    def _has_kernel(self, gates_x: torch.Tensor) -> bool:
        config = self.config
        plain = config.kernels == "plain" or torch.compiler.is_compiling()
        exact = gates_x.dtype in (torch.float32, torch.float64)  # not under autocast
        return exact and not plain and not config.layer_norm and config.feature_layers == 1

    def _walk_by_kernel(self, gates_x, features_x, noise, reads_h, weight_z):
        """[`_walk`] by [`sample_path`]."""
        layer, prior, size = self.rnn, self.prior_network, self.config.latent_size
        of_gates, *of_features = [features_x.new_zeros(len(weight)) for weight in reads_h]
        if self.config.rnn_type == "gru":
            of_gates = layer.bias_hh_l0
        weight, bias = self.posterior_network.moments.weight, self.posterior_network.moments.bias
        if self.config.residual_posterior:
            # One network does it, of both networks' features, which adds the prior's mean to that of the posterior.
            of_features[1] = prior.features[0].bias
            features_x = nn.functional.pad(features_x, (0, len(of_features[1])))
            weight = torch.cat([weight, nn.functional.pad(prior.moments.weight[:size], (0, 0, 0, size))], dim=1)
            bias = bias + nn.functional.pad(prior.moments.bias[:size], (0, size))
        read = torch.cat(reads_h), torch.cat([of_gates, *of_features])
        phi = self.phi_z[0].weight, self.phi_z[0].bias
        return sample_path(layer, gates_x, features_x, noise.to(gates_x.dtype), read, (weight, bias), phi, weight_z)

    def _walk(self, gates_x, features_x, noise, reads_h, weight_z):
        """The loop over time.

        Args:
            gates_x: what x_t adds to the gates, [T, B, G * H].
            features_x: what it adds to the first features from which z is read, [T, B, P].
            noise: [T, K * B, D].
            reads_h: weights of what reads h_{t-1}: the gates, the posterior's first features and, with
                `residual_posterior`, the prior's.
            weight_z: of the gates, [G * H, P].

        Returns:
            z, phi_z(z), mean and log-variance of the posterior, [T, K * B, ...], and h, [T + 1, K * B, H].
        """
        time, rows = noise.shape[:2]
        samples = rows // gates_x.shape[1]

        product, stepwise = self._products(time, rows, gates_x)
        layer, net = self.rnn, self.posterior_network
        if self.config.residual_posterior:
            prior_rest = stepwise([*list(self.prior_network.features)[1:], self.prior_network.moments])
        from_h = product(torch.cat(reads_h))
        rest = stepwise([*list(net.features)[1:], net.moments])
        phi_z = stepwise(self.phi_z)
        from_z = product(weight_z)
        widths = [len(weight) for weight in reads_h]
        state = self.first_state(rows, gates_x)
        hidden, z, features_z, moments = [state[0]], [], [], []
        for gates, features, epsilon in zip(gates_x.unbind(0), features_x.unbind(0), noise.unbind(0), strict=True):
            gates_h, features_h, *prior_h = from_h(state[0]).split(widths, dim=-1)
            read = rest(features_h + over_samples(features, samples))  # [K * B, 2 D]
            if self.config.residual_posterior:
                prior_moments = prior_rest(prior_h[0] + self.prior_network.features[0].bias)
                mean = prior_moments[..., : self.config.latent_size]
                read = read + nn.functional.pad(mean, (0, self.config.latent_size))
            q = gaussian(read)
            z_t = q.mean + q.stddev * epsilon
            phi = phi_z(z_t)
            gates = layer.norm_gates(over_samples(gates, samples) + from_z(phi))
            state = layer.step(gates, gates_h, state)
            for path, value in ((hidden, state[0]), (z, z_t), (features_z, phi), (moments, read)):
                path.append(value)
        return tuple(torch.stack(path) for path in (z, features_z, moments, hidden))

    def _products(self, time: int, rows: int, like: torch.Tensor):
        """Of a weight, its product at each of so many steps, and of a list of modules, all of them at each step."""

        def product(weight):
            return stepwise_product(self.config.kernels, weight, time, rows, like)

        def stepwise(modules):
            steps = [
                (product(module.weight), module.bias) if isinstance(module, nn.Linear) else (module, None)
                for module in modules
            ]

            def apply(x):
                for step, bias in steps:
                    x = step(x) if bias is None else step(x) + bias
                return x

            return apply

        return product, stepwise

    def follow(self, phi_x: torch.Tensor, lengths: torch.Tensor, z: torch.Tensor) -> Trajectory:
        """The path with given latents, [K, B, T, D]: nothing waits for a sample, so the recurrence runs as one."""
        samples = len(z)
        seen = self.what_the_posterior_sees(phi_x, lengths).repeat(samples, 1, 1)
        z = z.flatten(0, 1)  # [K * B, T, D]
        features_z = self.of_latents(z)
        hidden, _ = run_layer(self.rnn, torch.cat([phi_x.repeat(samples, 1, 1), *features_z], dim=-1))
        before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)
        prior = self.prior(before)
        features = self.dropout(self.emission_features(torch.cat([*features_z, before], dim=-1)))
        return Trajectory(z, self.posterior(seen, before, prior), prior, features, hidden)

    def filter(self, phi_x, lengths, noise, points, log_likelihood) -> tuple[torch.Tensor, Trajectory]:
        """A particle filter with q as proposal, resampled where the effective sample size falls below K / 2.

        The logarithm of its estimate of p(x) is in expectation a lower bound of log p(x) (FIVO, Maddison et al. 2017,
        algorithm 1). What a gradient would say of the resampling itself is left out, as there (sec. 4).

        Args:
            phi_x, lengths, noise: as in [`unroll`], K at least 2.
            points: uniform in [0, 1), by which systematic resampling chooses, [B, T].
            log_likelihood: from features [K * B, P] and a step t to log p(x_t | z_t, h_{t-1}), [K * B].

        Returns:
            the estimate of log p(x), [B], and the path of the particles as they were drawn.
        """
        samples, count, time = noise.shape[:3]
        if not self.config.latent_size:  # all particles are one
            path = self.follow(phi_x, lengths, noise)
            terms = [log_likelihood(features, t)[:count] for t, features in enumerate(path.features.unbind(1))]
            real = torch.arange(time, device=phi_x.device).unsqueeze(1) < lengths
            return (torch.stack(terms) * real).sum(0), path
        layer, prior, net = self.rnn, self.prior_network, self.posterior_network
        gates_x, features_x, weight_z, weight_h = self._of_inputs(phi_x, lengths)
        product, stepwise = self._products(time, samples * count, gates_x)
        out = self.emission_features[0]
        out_z, out_h = out.weight.tensor_split([self.config.feature_size], dim=1)
        reads_h, reads_z = [drop_weights(layer), weight_h, prior.features[0].weight, out_h], [weight_z, out_z]
        from_h, from_z = product(torch.cat(reads_h)), product(torch.cat(reads_z))
        of_h, of_z = ([len(weight) for weight in weights] for weights in (reads_h, reads_z))
        posterior_rest, prior_rest = (stepwise([*list(n.features)[1:], n.moments]) for n in (net, prior))
        phi_z, emission_rest = stepwise(self.phi_z), stepwise(list(self.emission_features)[1:])
        noise_lengths = noise.square().sum(-1)  # [K, B, T]
        state = self.first_state(samples * count, gates_x)
        log_weights = noise.new_zeros(samples, count)
        estimate = noise.new_zeros(count)
        first_rows = torch.arange(count, device=phi_x.device)
        paths = []
        for t in range(time):
            gates_h, q_h, p_h, out_h = from_h(state[0]).split(of_h, dim=-1)
            p = gaussian(prior_rest(p_h + prior.features[0].bias))
            q = gaussian(posterior_rest(q_h + over_samples(features_x[t], samples)))
            if self.config.residual_posterior:
                q = DiagonalGaussian(q.mean + p.mean, q.logvar)
            z = q.mean + q.stddev * noise[:, :, t].flatten(0, 1)
            gates_z, out_z = from_z(phi_z(z)).split(of_z, dim=-1)
            features = self.dropout(emission_rest(out_z + out_h + out.bias))
            # log p(z) - log q(z), where z - mean of q is its deviation times the noise
            distance = ((z - p.mean).square() * torch.exp(-p.logvar) + p.logvar - q.logvar).sum(-1)
            term = log_likelihood(features, t) - 0.5 * (distance - noise_lengths[:, :, t].flatten())
            real = t < lengths  # [B]
            log_weights = log_weights + torch.where(real, term.view(samples, count), 0.0)
            state = layer.step(layer.norm_gates(over_samples(gates_x[t], samples) + gates_z), gates_h, state)
            paths.append((z, q.mean, q.logvar, p.mean, p.logvar, features, state[0]))
            weights = log_weights.detach().softmax(0)  # [K, B]
            poor = (weights.square().sum(0) * samples > 2) & (t + 1 < lengths)  # ESS = 1 / sum_k w_k^2 < K / 2
            if poor.any():
                own = torch.arange(samples, device=phi_x.device).unsqueeze(1)
                places = ((own + points[:, t]) / samples).t().contiguous()  # [B, K]
                chosen = torch.searchsorted(weights.cumsum(0).t().contiguous(), places).clamp(max=samples - 1).t()
                chosen = torch.where(poor, chosen, own)  # [K, B]
                rows = (chosen * count + first_rows).flatten()
                state = tuple(s[rows] for s in state)
                mean_weight = log_weights.logsumexp(0) - math.log(samples)
                estimate = estimate + torch.where(poor, mean_weight, 0.0)
                log_weights = torch.where(poor, 0.0, log_weights)
        estimate = estimate + log_weights.logsumexp(0) - math.log(samples)
        z, q_mean, q_logvar, p_mean, p_logvar, features, hidden = (
            torch.stack(path, dim=1) for path in zip(*paths, strict=True)
        )
        q, p = DiagonalGaussian(q_mean, q_logvar), DiagonalGaussian(p_mean, p_logvar)
        return estimate, Trajectory(z, q, p, features, hidden)


def over_samples(x: torch.Tensor, samples: int) -> torch.Tensor:
    """`x` [B, ...] for each of K samples, [K * B, ...]."""
    return x if samples == 1 else x.repeat(samples, *[1] * (x.dim() - 1))


@dataclass
class VRNNOutput(ModelOutput):
    """
    Args:
        loss: mean over the sequences of reconstruction + kl_weight * KL in nats, in training what the configuration
            makes of it: the KL that is charged for, or the importance-weighted or particle filter's bound.
        logits: [B, T, V], of the token that follows each position, with the prior's z there (its mean, or a sample).
        reconstruction_loss: mean of -sum_t log p(x_t | z_t, h_{t-1}), in nats a sequence.
        kl: mean of sum_t KL(q(z_t | x_t, h_{t-1}) || p(z_t | h_{t-1})), neither weighted nor clamped.
        past_key_values: the state after the last token, and the z of the next one.
        hidden_states: the embedded inputs [B, T, E] and h_t [B, T, H]; where they are of the path that was sampled,
            in training with `labels` and of frames, left-aligned phi_x(x_t) [B, T, P] in place of the former.
        latents: the z of each token that follows a position, [B, T, D]; with `labels` the path that was sampled.
            None where `latent_size` is 0.
        posterior_mean, posterior_logvar: of q along that path, float32 [B, T, D]; only with `labels`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    kl: torch.FloatTensor | None = None
    past_key_values: RecurrentCache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
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
        back: index of each position's step in the aligned order, [B, T].
    """

    phi_x: torch.Tensor
    lengths: torch.Tensor
    target: object
    back: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        """[B, T]"""
        return torch.arange(self.phi_x.shape[1], device=self.phi_x.device) < self.lengths.unsqueeze(1)


class VRNNPreTrainedModel(LatentSequenceModel):
    """What the VRNN over tokens and that over frames share: the bounds of log p(x).

    A subclass says what x is. By a *target*, what of x is scored, left-aligned and in a form of its own, it gives:

    - `_observe(labels, **batch)`: the sequences of a batch and their target, see [`Observed`];
    - `_score(features, target)`: log p(x_t | features), 0 where nothing is scored, [K, B, T] of [K, B, T, P];
    - `_at_step(target, t)`: the target of one step;
    - `num_steps(target)`: how many steps are scored, [B].
    """

    config: VRNNConfig
    _no_split_modules = ["VRNNLayer"]

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
            return layer.prior(layer.first_state(1, next(self.parameters()))[0][0])
        return self._along_the_means(batch)[1]

    def _along_the_means(self, batch: dict) -> tuple[DiagonalGaussian, DiagonalGaussian]:
        observed = self._observe(**batch)
        path = self.model.layer.unroll(
            observed.phi_x, observed.lengths, observed.phi_x.new_zeros(1, *observed.phi_x.shape[:2], self.latent_size)
        )
        return tuple(
            DiagonalGaussian(take_time(d.mean, observed.back), take_time(d.logvar, observed.back))
            for d in (path.posterior, path.prior)
        )

    @property
    def latent_size(self) -> int:
        return self.config.latent_size

    def _check_latents(self, latents: torch.Tensor) -> None:
        if latents.dim() != 3 or latents.shape[-1] != self.latent_size:
            raise ValueError(
                f"`latents` must have shape [batch, time, latent_size] with `latent_size` {self.latent_size}, got "
                f"{list(latents.shape)}."
            )

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
            latents: the paths themselves, left-aligned [K, B, T, D], where the caller drew them.
            generator: of the noise; a list has one for each sequence, whose noise is then its own in any batch.
            batch: what [`forward`] takes.
        """
        observed = self._observe(**batch)
        if latents is not None:
            path = self.model.layer.follow(observed.phi_x, observed.lengths, latents)
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
        observed = self._observe(**batch)
        noise = self._noise(num_samples, observed, generator)
        return self._filter(observed, noise, generator)[0]

    def _filter(self, observed: Observed, noise: torch.Tensor, generator=None) -> tuple[torch.Tensor, Trajectory]:
        points = self._points(observed, generator)

        def log_likelihood(features, t):
            features = features.unflatten(0, noise.shape[:2]).unsqueeze(2)  # [K, B, 1, P]
            return self._score(features, self._at_step(observed.target, t)).flatten()

        return self.model.layer.filter(observed.phi_x, observed.lengths, noise, points, log_likelihood)

    def _noise(self, num_samples: int, observed: Observed, generator=None) -> torch.Tensor:
        """Standard normal, [K, B, T, D]; of a generator a row only as much as the row's own steps take."""
        count, time = observed.phi_x.shape[:2]
        like = {"device": observed.phi_x.device, "dtype": torch.float32}
        if not isinstance(generator, list):
            return torch.randn(num_samples, count, time, self.latent_size, generator=generator, **like)
        noise = torch.zeros(num_samples, count, time, self.latent_size)
        for row, (length, own) in enumerate(zip(observed.lengths.tolist(), generator, strict=True)):
            noise[:, row, :length] = torch.randn(num_samples, length, self.latent_size, generator=own)
        return noise.to(**like)

    def _points(self, observed: Observed, generator=None) -> torch.Tensor:
        """Uniform in [0, 1), [B, T], drawn as [`_noise`] is."""
        count, time = observed.phi_x.shape[:2]
        device = observed.phi_x.device
        if not isinstance(generator, list):
            return torch.rand(count, time, generator=generator, device=device)
        points = torch.zeros(count, time)
        for row, (length, own) in enumerate(zip(observed.lengths.tolist(), generator, strict=True)):
            points[row, :length] = torch.rand(length, generator=own)
        return points.to(device)

    def _samples_at_once(self, observed: Observed) -> int:
        width = max(self.config.feature_size, self.config.hidden_size)
        return max(1, MAX_AT_ONCE // (observed.phi_x[..., 0].numel() * width))

    def _log_likelihood(self, path: Trajectory, observed: Observed) -> torch.Tensor:
        """log p(x_t | z_t, h_{t-1}) of each step along a path, [K * B, T]."""
        return self._score(path.features.unflatten(0, (-1, len(observed.phi_x))), observed.target).flatten(0, 1)

    def _log_ratio(self, path: Trajectory, observed: Observed) -> torch.Tensor:
        """log q(z|x) - log p(z|x) of each path, summed over its steps: [K * B]."""
        log_ratio = path.posterior.log_prob(path.z) - path.prior.log_prob(path.z)
        return (log_ratio * observed.real.repeat(len(path.z) // len(observed.phi_x), 1)).sum(1)

    def _log_weights(self, path: Trajectory, observed: Observed) -> torch.Tensor:
        """[K * B]"""
        return self._log_likelihood(path, observed).sum(1) - self._log_ratio(path, observed)

    def _kl(self, path: Trajectory, observed: Observed) -> torch.Tensor:
        """KL(q || p) of each latent dimension, summed over the real steps: [K * B, D]."""
        real = observed.real.repeat(len(path.z) // len(observed.phi_x), 1).unsqueeze(-1)
        return (kl_per_dimension(path.posterior, path.prior) * real).sum(1)

    def evaluation_terms(
        self, num_samples: int, generators: list[torch.Generator] | None, svi_steps: int = 0, **batch
    ):
        """What evaluation takes of a batch, a row a sequence, in nats.

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
                f"`svi_steps` {svi_steps} refines one posterior a sequence; a VRNN has one a step. Set it to 0."
            )
        observed = self._observe(**batch)
        noise = self._noise(num_samples, observed, generators)
        parts = []
        for part in noise.split(self._samples_at_once(observed)):
            path = self.model.layer.unroll(observed.phi_x, observed.lengths, part)
            log_p = self._log_likelihood(path, observed).double().sum(1)
            real = observed.real.repeat(len(part), 1).unsqueeze(-1)
            mean = (path.posterior.mean * real).sum(1) / real.sum(1).clamp(min=1)
            terms = (log_p, self._log_ratio(path, observed).double(), self._kl(path, observed).double().sum(1), mean)
            parts.append([term.view(len(part), len(observed.phi_x), *term.shape[1:]) for term in terms])
        log_p, log_ratio, kl, mean = (torch.cat(part) for part in zip(*parts, strict=True))  # [K, B] each
        terms = {
            "log_weights": log_p - log_ratio,
            "reconstruction": -log_p.mean(0),
            "kl": kl.mean(0),
            "num_steps": self.num_steps(observed.target),
            "mean": mean.mean(0),
        }
        if num_samples > 1 and self.latent_size:
            terms["log_fivo"] = self._filter(observed, noise, generators)[0].double()
        return terms

    def _bound(self, observed: Observed) -> dict:
        """Loss and its parts for [`_output`], of one sampled path in evaluation, always with the same noise, and as
        configured in training."""
        config = self.config
        samples = config.num_train_samples if self.training else 1
        generator = None if self.training else torch.Generator(observed.phi_x.device).manual_seed(0)
        noise = self._noise(samples, observed, generator)
        if config.resampling and self.training:
            estimate, path = self._filter(observed, noise)
        else:
            path = self.model.layer.unroll(observed.phi_x, observed.lengths, noise)
        kl_of_dimensions = self._kl(path, observed)  # [K * B, D]
        kl = kl_of_dimensions.sum(1).mean()
        if samples == 1:
            reconstruction = self._reconstruction(path, observed)
            loss = negative_elbo(reconstruction, self._charged_kl(kl_of_dimensions, kl), self.kl_weight)
        else:
            log_p = self._log_likelihood(path, observed).sum(1)  # [K * B]
            reconstruction = -log_p.mean()
            if not config.resampling:
                log_weights = log_p - self.kl_weight * self._log_ratio(path, observed)
                estimate = importance_weighted_bound(log_weights.view(samples, -1))
            loss = -estimate.mean()
        return {
            "loss": loss,
            "reconstruction_loss": reconstruction,
            "kl": kl,
            "latents": path.z[: len(observed.phi_x)],
            "posterior_mean": path.posterior.mean,
            "posterior_logvar": path.posterior.logvar,
            "hidden_states": (observed.phi_x, path.hidden),
        }

    def _output(self, output_hidden_states: bool | None, **fields) -> VRNNOutput:
        """Of the fields those that are asked for and are there. An output is made whole: set later, a field of it
        would be missing from its tuple, or stay there as None."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        left_out = [] if output_hidden_states else ["hidden_states"]
        if not self.latent_size:
            left_out += ["latents", "posterior_mean", "posterior_logvar"]
        return VRNNOutput(**(fields | dict.fromkeys(left_out)))

    def _reconstruction(self, path: Trajectory, observed: Observed) -> torch.Tensor:
        """-log p(x|z), its mean over the sequences, a scalar."""
        return -self._log_likelihood(path, observed).sum(1).mean()

    def _charged_kl(self, kl_of_dimensions: torch.Tensor, kl: torch.Tensor) -> torch.Tensor:
        """The KL term of the loss, a scalar, of each dimension's KL over the sequence [B, D] and of the KL itself."""
        if self.training and self.kl_capacity is not None:
            return capacity_gap(kl, self.kl_capacity)
        if self.training and self.config.free_bits:
            return free_bits(kl_of_dimensions, self.config.free_bits, self.config.free_bits_form)
        return kl


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


class VRNNForSequenceGeneration(VRNNPreTrainedModel, GenerationMixin):
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

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        past_key_values: RecurrentCache | None = None,
        latents: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        num_observed: int | None = None,
        latent_noise: "LatentNoise | None" = None,
    ) -> VRNNOutput:
        """
        Args:
            input_ids: `<s> w1 .. wn </s>`, [B, T]; or `inputs_embeds` [B, T, E] in its place. The first real token
                only starts the row: it is neither predicted nor read.
            attention_mask: nonzero where a token is real, [B, T] or, with a cache, [B, past + T].
            past_key_values: state to go on from.
            latents: z of the token in column t + 1 at [:, t], [B, S, D]; further ones are the prior's.
            labels: the input tokens, with -100 where none is scored, [B, T]. With them the bound of log p(x) is
                computed, its path sampled from the posterior (in evaluation always with the same noise).
            logits_to_keep: compute only the last so many logits; 0 is all.
            num_observed: columns whose tokens were given; the z of a later token is that which generated it, the
                prior's. By default all: the z of each is the posterior's mean.
            latent_noise: standard normal [B, D] of each column, by which the prior's z are drawn in place of its mean.

        Returns:
            [`VRNNOutput`]; `loss` and its parts only with `labels`. Without, `logits` never depend on later tokens.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            check_token_ids("input_ids", input_ids, self.config.vocab_size)
            inputs_embeds = self.model.embed_tokens(input_ids)  # [B, T, E]
        # `generate` looks for padding itself and passes no mask where it found none: a <pad> it drew is a token.
        mask = self._mask(input_ids if num_observed is None else None, inputs_embeds, attention_mask)
        fields = {}
        if labels is not None:
            check_token_ids("labels", labels, self.config.vocab_size, ignore=IGNORE_INDEX)
            fields = self._bound(self._align(inputs_embeds, mask, labels))
            if self.training:
                return self._output(output_hidden_states, **fields)
            past_key_values, use_cache = None, False
        path = self._read(inputs_embeds, mask, past_key_values, latents, num_observed, latent_noise)
        fields.setdefault("latents", path.z)
        fields["logits"] = self.lm_head(path.features[:, -logits_to_keep:])
        fields["hidden_states"] = inputs_embeds, path.hidden
        if self.config.use_cache if use_cache is None else use_cache:
            fields["past_key_values"] = path.cache
        return self._output(output_hidden_states, **fields)

    def _mask(self, input_ids, inputs_embeds, attention_mask) -> torch.Tensor:
        """Real columns of the inputs at hand and, where it says so, of those before them, [B, T or past + T]."""
        if attention_mask is not None:
            return attention_mask.bool()
        if input_ids is None or self.config.pad_token_id is None:
            return torch.ones_like(inputs_embeds[..., 0], dtype=torch.bool)
        return input_ids != self.config.pad_token_id

    def _align(self, inputs_embeds: torch.Tensor, mask: torch.Tensor, labels: torch.LongTensor) -> Observed:
        """The tokens behind the first of each row."""
        if labels.shape != mask.shape:
            raise ValueError(
                f"`labels` must be the input tokens, with -100 where none is scored, of shape {list(mask.shape)}; got "
                f"{list(labels.shape)}."
            )
        order, back, lengths = left_align(mask)
        phi_x = self.model.embed(take_time(inputs_embeds, order)[:, 1:])
        targets = labels.masked_fill(~mask, IGNORE_INDEX).gather(1, order)[:, 1:]
        return Observed(phi_x, (lengths - 1).clamp(min=0), targets, (back[:, 1:] - 1).clamp(min=0))

    def _observe(self, labels=None, input_ids=None, attention_mask=None, inputs_embeds=None) -> Observed:
        if inputs_embeds is None:
            check_token_ids("input_ids", input_ids, self.config.vocab_size)
            inputs_embeds = self.model.embed_tokens(input_ids)
        mask = self._mask(input_ids, inputs_embeds, attention_mask)
        if labels is None:
            labels = input_ids if input_ids is not None else torch.full_like(mask, IGNORE_INDEX, dtype=torch.long)
        return self._align(inputs_embeds, mask, labels)

    def _score(self, features: torch.Tensor, target: torch.LongTensor) -> torch.Tensor:
        labels = target.expand(features.shape[:-1])  # [K, B, T]
        if self.config.kernels == "auto" and not torch.is_grad_enabled():
            return -linear_nll(features.flatten(0, -2), self.lm_head.weight, labels.flatten()).view_as(labels)
        return -token_nll(self.lm_head(features).flatten(0, 1), labels.flatten(0, 1)).view_as(labels)

    def _at_step(self, target: torch.LongTensor, t: int) -> torch.LongTensor:
        return target[:, t : t + 1]

    def num_steps(self, target: torch.LongTensor) -> torch.LongTensor:
        """Tokens that are scored, [B]."""
        return (target != IGNORE_INDEX).sum(1)

    def _reconstruction(self, path: Trajectory, observed: Observed) -> torch.Tensor:
        if not self.training or self.config.kernels == "plain":
            return super()._reconstruction(path, observed)
        features, labels = path.features.flatten(0, 1), observed.target.flatten()
        return linear_cross_entropy(features, self.lm_head.weight, labels, scale=1 / len(observed.target))

    def _read(self, inputs_embeds, mask, cache, latents, num_observed, latent_noise) -> "Reading":
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

    def generate(self, inputs: torch.Tensor | None = None, *args, latents: torch.Tensor | None = None, **kwargs):
        """transformers' `generate`, a continuation of the given tokens, by default of the start mark alone.

        In greedy decoding and with beams each z is the prior's mean, so that what is searched is one distribution of
        tokens; in sampling it is drawn. The z of given tokens are inferred from them.

        Args:
            latents: z of each token but the first in place of the prior's, [B, S, D]; further ones are the prior's.
            inputs, args, kwargs: as in transformers.
        """
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        if latents is not None:
            self._check_latents(latents)
            if inputs is None and kwargs.get("inputs_embeds") is None:
                inputs = torch.full((len(latents), 1), self.config.bos_token_id, device=self.device)
            kwargs["latents"] = latents.to(self.device)
        if kwargs.get("past_key_values") is not None:
            kwargs["past_key_values"] = kwargs["past_key_values"].copy()
        elif inputs is not None:
            self._warn_of_marks(inputs, self._mask(inputs, None, kwargs.get("attention_mask")))
        given = kwargs.get("inputs_embeds") if inputs is None else inputs
        kwargs["num_observed"] = 1 if given is None else given.shape[1]
        return super().generate(inputs, *args, **kwargs)

    def _warn_of_marks(self, input_ids: torch.LongTensor, mask: torch.Tensor) -> None:
        """A tokenizer that writes `<s> w1 .. wn </s>`, as training wants it, leaves nothing to go on with."""
        first = input_ids.gather(1, mask.long().argmax(1, keepdim=True))
        if (first != self.config.bos_token_id).any() or (input_ids[:, -1] == self.config.eos_token_id).any():
            logger.warning_once(
                "A sequence to go on with should be `<s> w1 .. wn`: its first token only starts it and is not read, "
                "and behind `</s>` nothing was ever learnt. Tokenize `<s> w1 .. wn` with `add_special_tokens=False`; "
                'in a pipeline set `prefix="<s>"` and `add_special_tokens=False`.'
            )

    def _sample(self, input_ids, logits_processor, stopping_criteria, generation_config, *args, **model_kwargs):
        if generation_config.do_sample:
            model_kwargs["latent_noise"] = LatentNoise(len(input_ids), 1, self.latent_size, self.device)
        return super()._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, *args, **model_kwargs
        )

    def _beam_search(self, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        if generation_config.do_sample:
            shape = len(input_ids), generation_config.num_beams, self.latent_size
            model_kwargs["latent_noise"] = LatentNoise(*shape, self.device)
        return super()._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the model makes its own, of fixed size


class LatentNoise(dict):
    """Standard normal [B, D] of each column, drawn when first asked for: without a cache a z is made again at each
    step, and must be the same. The beams of a sequence share it, so that it stays theirs when they change places."""

    def __init__(self, rows: int, beams: int, latent_size: int, device: torch.device):
        self.shape, self.beams, self.device = (rows // beams, latent_size), beams, device

    def __missing__(self, column: int) -> torch.Tensor:
        self[column] = torch.randn(self.shape, device=self.device).repeat_interleave(self.beams, dim=0)
        return self[column]


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


__all__ = ["VRNNForSequenceGeneration", "VRNNModel", "VRNNPreTrainedModel"]
