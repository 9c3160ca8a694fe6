"""The variational recurrent neural network (Chung et al. 2015): its four distributions, and ways through a sequence.

    prior        z_t ~ p(z_t | h_{t-1}) = N(mean(h), diag(variance(h)))     eq. 5
    emission     x_t ~ p(x_t | z_t, h_{t-1})                                eq. 6
    recurrence   h_t = f(phi_x(x_t), phi_z(z_t), h_{t-1})                   eq. 7
    posterior    q(z_t | x_t, h_{t-1})                                      eq. 9

Letters in shapes: B batch, T time, K samples or particles, D latent size, E embedding size, P feature size, H hidden
size.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .configuration_vrnn import VRNNConfig
from .distributions import DiagonalGaussian
from .kernels import (
    Dropout,
    PackedLinear,
    as_weight_of,
    at_least_float32,
    is_exact,
    is_plain,
    not_rounded,
    weight_and_bias,
)
from .posteriors import MAX_LOGVAR, MIN_LOGVAR
from .recurrent import GRU, LAYERS, LSTM, drop_weights, one_step_back, run_layer, stepwise_product, take_time
from .recurrent_latent import sample_path


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
        return gaussian(not_rounded(self.moments)(self.features(torch.cat(inputs, dim=-1))))


def gaussian(projected: torch.Tensor) -> DiagonalGaussian:
    """Of mean and log-variance [..., 2 D], in float32 at least."""
    return DiagonalGaussian(*mean_and_logvar(projected))


def mean_and_logvar(projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and bounded log-variance, in float32 at least, [..., D] each of [..., 2 D]."""
    mean, logvar = at_least_float32(projected).chunk(2, dim=-1)
    return mean, logvar.clamp(MIN_LOGVAR, MAX_LOGVAR)


@dataclass
class Trajectory:
    """One path of latents through each sequence; rows are K * B, sample k of sequence b in row k * B + b.

    Args:
        z: [K * B, T, D].
        posterior, prior: q(z_t | x_t, h_{t-1}) and p(z_t | h_{t-1}), batch shape [K * B, T].
        features: of the emission p(x_t | z_t, h_{t-1}), [K * B, T, P].
        hidden: h_t, of a particle filter as the next step finds it, [K * B, T, H].
    """

    z: torch.Tensor
    posterior: DiagonalGaussian
    prior: DiagonalGaussian
    features: torch.Tensor
    hidden: torch.Tensor


class VRNNLayer(nn.Module):
    """The four distributions, and the ways to go through a sequence with them.

    Sequences come as phi_x(x), [B, T, P], and left-aligned: real steps first.
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
        return [self.phi_z(as_weight_of(self.phi_z[0], z))] if self.config.latent_size else []

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

    def unroll(self, phi_x, lengths, noise, read=None, choose: "Resampling | None" = None) -> Trajectory:
        """Sample a path, z_t = mean + stddev * noise_t of q(z_t | x_t, h_{t-1}), K for each sequence.

        In the loop over time is only what must be there: prior and emission follow for all steps at once, what is
        linear in x_t comes before, and the gradient of each weight is one product for all steps.

        Args:
            phi_x: [B, T, P].
            lengths: [B], real steps.
            noise: standard normal, [K, B, T, D].
            read: phi_x of what the recurrence reads, [B, T, P], where that is not what the posterior sees.
            choose: of a particle filter, which particles go on.
        """
        if not self.config.latent_size:
            return self.follow(phi_x, lengths, noise, read)
        layer, gates_x, features_x, weight_z, weight_h = self.rnn, *self._of_inputs(phi_x, lengths, read)
        # One product serves all that reads h_{t-1}.
        reads_h = [drop_weights(layer), weight_h]
        if self.config.residual_posterior:
            reads_h.append(weight_and_bias(self.prior_network.features[0])[0])
        noise = noise.flatten(0, 1).transpose(0, 1)  # [T, K * B, D]
        walk = self._walk_by_kernel if self._has_kernel(gates_x) else self._walk
        z, features_z, moments, hidden = walk(gates_x, features_x, noise, reads_h, weight_z, choose)
        hidden = hidden.transpose(0, 1)  # [K * B, T + 1, H]
        z, features_z, moments = (path.transpose(0, 1) for path in (z, features_z, moments))
        before = hidden[:, :-1]
        features = self.emission_features(torch.cat([features_z, before], dim=-1))
        features = self.dropout(features) if choose is None else choose.dropped(features)
        return Trajectory(z, gaussian(moments), self.prior(before), features, hidden[:, 1:])

    def _of_inputs(self, phi_x, lengths, read=None) -> tuple[torch.Tensor, ...]:
        """What x_t adds to the gates [T, B, G * H] and to the first features from which z_t is read [T, B, P], and
        the rest of those weights: of phi_z(z) in the gates, of h in the features."""
        (weight_seen, bias_seen), size = weight_and_bias(self.posterior_network.features[0]), phi_x.shape[-1]
        seen = self.what_the_posterior_sees(phi_x, lengths)
        weight_x, weight_z = self.rnn.input_weight.tensor_split([size], dim=1)
        read = phi_x if read is None else read
        gates_x = nn.functional.linear(read.transpose(0, 1), weight_x, self.rnn.input_bias)
        weight_seen, weight_h = weight_seen.tensor_split([size], dim=1)
        return gates_x, nn.functional.linear(seen.transpose(0, 1), weight_seen, bias_seen), weight_z, weight_h

    def _has_kernel(self, gates_x: torch.Tensor) -> bool:
        config = self.config
        plain = config.kernels == "plain" or torch.compiler.is_compiling() or gates_x.device.type == "mps"
        exact = gates_x.dtype in (torch.float32, torch.float64)  # not under autocast
        return exact and not plain and type(self.rnn) in (LSTM, GRU) and config.feature_layers == 1

    def _walk_by_kernel(self, gates_x, features_x, noise, reads_h, weight_z, choose):
        """[`_walk`] by [`sample_path`]."""
        layer, prior, size = self.rnn, self.prior_network, self.config.latent_size
        of_gates, *of_features = [features_x.new_zeros(len(weight)) for weight in reads_h]
        if self.config.rnn_type == "gru":
            of_gates = layer.bias_hh_l0
        weight, bias = weight_and_bias(self.posterior_network.moments)
        if self.config.residual_posterior:
            # One network does it, of both networks' features, which adds the prior's mean to that of the posterior.
            of_features[1] = weight_and_bias(prior.features[0])[1]
            prior_weight, prior_bias = (of_moments[:size] for of_moments in weight_and_bias(prior.moments))
            features_x = nn.functional.pad(features_x, (0, len(of_features[1])))
            weight = torch.cat([weight, nn.functional.pad(prior_weight, (0, 0, 0, size))], dim=1)
            bias = bias + nn.functional.pad(prior_bias, (0, size))
        read = torch.cat(reads_h), torch.cat([of_gates, *of_features])
        noise, phi = noise.to(gates_x.dtype), weight_and_bias(self.phi_z[0])
        return sample_path(layer, gates_x, features_x, noise, read, (weight, bias), phi, weight_z, choose)

    def _walk(self, gates_x, features_x, noise, reads_h, weight_z, choose):
        """The loop over time.

        Args:
            gates_x: what x_t adds to the gates, [T, B, G * H].
            features_x: what it adds to the first features from which z is read, [T, B, P].
            noise: [T, K * B, D].
            reads_h: weights of what reads h_{t-1}: the gates, the posterior's first features and, with
                `residual_posterior`, the prior's.
            weight_z: of the gates, [G * H, P].
            choose: as in [`unroll`].

        Returns:
            z, phi_z(z), mean and log-variance of the posterior, [T, K * B, ...], and h, [T + 1, K * B, H].
        """
        time, total = noise.shape[:2]
        samples = total // gates_x.shape[1]
        product, stepwise, moments_of_step = self._products(time, total, gates_x)
        layer, net = self.rnn, self.posterior_network
        if self.config.residual_posterior:
            prior_rest = stepwise(list(self.prior_network.features)[1:])
            moments_of_p = moments_of_step(self.prior_network.moments)
            prior_bias = weight_and_bias(self.prior_network.features[0])[1]
        from_h = product(torch.cat(reads_h))
        rest, moments_of_q = stepwise(list(net.features)[1:]), moments_of_step(net.moments)
        phi_z = stepwise(self.phi_z)
        from_z = product(weight_z)
        widths = [len(weight) for weight in reads_h]
        state = self.first_state(total, gates_x)
        hidden, z, features_z, moments = [state[0]], [], [], []
        for gates, features, epsilon in zip(gates_x.unbind(0), features_x.unbind(0), noise.unbind(0), strict=True):
            gates_h, features_h, *prior_h = from_h(state[0]).split(widths, dim=-1)
            read = moments_of_q(rest(features_h + over_samples(features, samples)))  # [K * B, 2 D]
            if self.config.residual_posterior:
                prior_moments = moments_of_p(prior_rest(prior_h[0] + prior_bias))
                mean = prior_moments[..., : self.config.latent_size]
                read = read + nn.functional.pad(mean, (0, self.config.latent_size))
            q = gaussian(read)
            z_t = q.mean + q.stddev * epsilon
            phi = phi_z(z_t.to(features.dtype))  # moments are float32
            gates = layer.norm_gates(over_samples(gates, samples) + from_z(phi))
            state = layer.step(gates, gates_h, state)
            if choose is not None:
                rows = choose(len(z), hidden[-1], z_t, phi, read)
                state = tuple(s.index_select(0, rows) for s in state)
            for path, value in ((hidden, state[0]), (z, z_t), (features_z, phi), (moments, read)):
                path.append(value)
        return tuple(torch.stack(path) for path in (z, features_z, moments, hidden))

    def _products(self, time: int, rows: int, like: torch.Tensor):
        """Of a weight, its product at each of so many steps; of a list of modules, all of them; of a layer that gives
        moments, these."""

        def product(weight):
            return stepwise_product(self.config.kernels, weight, time, rows, like)

        def stepwise(modules):
            steps = [
                (product(module.weight), module.bias) if is_plain(module) else (module, None) for module in modules
            ]

            def apply(x):
                for step, bias in steps:
                    x = step(x) if bias is None else step(x) + bias
                return x

            return apply

        def moments(linear):
            return stepwise([linear]) if is_exact(like) else not_rounded(linear)

        return product, stepwise, moments

    def follow(
        self, phi_x: torch.Tensor, lengths: torch.Tensor, z: torch.Tensor, read: torch.Tensor | None = None
    ) -> Trajectory:
        """The path with given latents, [K, B, T, D]: nothing waits for a sample, so the recurrence runs as one."""
        samples, read = len(z), phi_x if read is None else read
        seen = self.what_the_posterior_sees(phi_x, lengths).repeat(samples, 1, 1)
        z = z.flatten(0, 1)  # [K * B, T, D]
        features_z = self.of_latents(z)
        hidden, _ = run_layer(self.rnn, torch.cat([read.repeat(samples, 1, 1), *features_z], dim=-1))
        before = one_step_back(hidden)
        prior = self.prior(before)
        features = self.dropout(self.emission_features(torch.cat([*features_z, before], dim=-1)))
        return Trajectory(z, self.posterior(seen, before, prior), prior, features, hidden)


class Resampling:
    """Which particles go on, in a particle filter with q as proposal that is resampled, systematically, where the
    effective sample size falls below K / 2 (FIVO, Maddison et al. 2017, algorithm 1).

    What a gradient would say of the resampling itself is left out, as there (sec. 4). So the weights that choose have
    none, and a bound with a gradient takes prior and emission of all steps at once, along the path that was chosen
    (`objectives.particle_filter_bound`).

    Args:
        layer: the layer.
        lengths, noise: as in [`VRNNLayer.unroll`], K at least 2.
        points: uniform in [0, 1), by which systematic resampling chooses, [B, T].
        log_likelihood: from features [K * B, P] and a step t to log p(x_t | z_t, h_{t-1}), [K * B].
    """

    def __init__(self, layer: VRNNLayer, lengths, noise, points, log_likelihood):
        samples, count, time = noise.shape[:3]
        rows, device = samples * count, noise.device
        prior, *prior_rest = layer.prior_network.features
        out, *out_rest = layer.emission_features
        with torch.no_grad():
            (prior_h, prior_bias), (out, out_bias) = weight_and_bias(prior), weight_and_bias(out)
            out_z, out_h = out.tensor_split([layer.config.feature_size], dim=1)
            weights, biases = torch.cat([prior_h, out_h]), torch.cat([prior_bias, out_bias])
            self.from_h, self.from_z = PackedLinear.here(weights, rows, biases), PackedLinear.here(out_z, rows)
            self.prior_rest = packed(prior_rest, rows, moments=layer.prior_network.moments)
            self.emission_rest = packed(out_rest, rows)
        self.widths, self.log_likelihood = [len(prior_h), len(out_z)], log_likelihood
        self.dropout = layer.dropout if layer.training and layer.dropout.p else None
        self.masks: list[torch.Tensor] = []
        self.own, self.first_rows = torch.arange(samples, device=device), torch.arange(count, device=device)
        steps = torch.arange(time, device=device).unsqueeze(1)
        noise_lengths = noise.square().sum(-1).flatten(0, 1).t()  # [T, K * B]
        places = (self.own + points.t().contiguous().unsqueeze(-1)) / samples  # [T, B, K]
        of_all = noise_lengths, steps < lengths, steps + 1 < lengths, places
        self.of_steps = list(zip(*(part.unbind(0) for part in of_all), strict=True))
        self.log_weights = noise.new_zeros(count, samples)
        self._terms, self._poor = [], []

    @torch.no_grad()
    def __call__(self, t: int, h: torch.Tensor, z: torch.Tensor, features_z: torch.Tensor, moments: torch.Tensor):
        """The rows [K * B] that go on behind step t.

        Args:
            h: h_{t-1}, [K * B, H].
            z, features_z: z_t and phi_z(z_t), [K * B, ...].
            moments: of the posterior, before they are bounded, [K * B, 2 D].
        """
        noise_lengths, real, goes_on, places = self.of_steps[t]
        prior_h, out_h = self.from_h(h).split_with_sizes(self.widths, 1)
        p_mean, p_logvar = mean_and_logvar(self.prior_rest(prior_h))
        features = self.emission_rest(out_h + self.from_z(features_z))
        if self.dropout is not None:
            self.masks.append(self.dropout(torch.ones_like(features)))
            features = features * self.masks[-1]
        # log p(z) - log q(z), where z - mean of q is its deviation times the noise
        _, q_logvar = mean_and_logvar(moments)
        distance = ((z - p_mean).square() * torch.exp(-p_logvar) + p_logvar - q_logvar).sum(-1)
        term = self.log_likelihood(features, t) - 0.5 * (distance - noise_lengths)
        count, samples = self.log_weights.shape
        term = torch.where(real, term.view(samples, count), 0.0)
        log_weights = self.log_weights + term.t().contiguous()
        weights = log_weights.softmax(1)  # [B, K]
        poor = (weights.square().sum(1) * samples > 2) & goes_on  # ESS = 1 / sum_k w_k^2 < K / 2
        chosen = torch.searchsorted(weights.cumsum(1), places).clamp_(max=samples - 1)
        chosen = torch.where(poor.unsqueeze(1), chosen, self.own)
        self.log_weights = log_weights.masked_fill(poor.unsqueeze(1), 0.0)
        self._terms.append(term)
        self._poor.append(poor)
        return (chosen.t() * count + self.first_rows).flatten()

    def dropped(self, features: torch.Tensor) -> torch.Tensor:
        """Features of all steps, [K * B, T, P], with the dropout that the weights were of."""
        return features if self.dropout is None else features * torch.stack(self.masks, dim=1)

    def terms(self) -> torch.Tensor:
        """log p(x_t, z_t | ...) - log q(z_t | ...) of each step, [K, B, T], without gradient."""
        return torch.stack(self._terms, dim=-1)

    def segments(self) -> torch.Tensor:
        """How many times a sequence was resampled before each step, [B, T]."""
        poor = torch.stack(self._poor, dim=1).long()
        return poor.cumsum(1) - poor


class VRNNStep:
    """A layer one step after the other: all that reads h is one product, all that reads phi_z(z) another, to which an
    LSTM's, whose gates are one sum, is added as it is made; and the weights are laid out for products of few rows.
    There is no gradient and no dropout.

    A step is [`prior`], [`emission`] and [`advance`], in this order.

    Args:
        layer: the layer; it starts from h_0.
        rows: B.
        embedding: weight [E, F] and bias [E] of what embeds x_t, where [`advance`] is to do that too: one product with
            the first of phi_x.
    """

    def __init__(self, layer: VRNNLayer, rows: int, embedding: tuple[torch.Tensor, torch.Tensor] | None = None):
        rnn, (out, out_bias) = layer.rnn, weight_and_bias(layer.emission_features[0])
        weight_x, weight_z = rnn.input_weight.tensor_split([layer.config.feature_size], dim=1)
        out_z, out_h = out.tensor_split([out.shape[1] - rnn.hidden_size], dim=1)
        self.sums = isinstance(rnn, LSTM)
        bias_h = rnn.input_bias if self.sums else out_bias.new_zeros(len(weight_x))
        reads_h = [(rnn.recurrent_weight, bias_h), (out_h, out_bias)]
        self.has_latent = layer.config.latent_size > 0
        if self.has_latent:
            first, *rest = layer.prior_network.features
            reads_h.append(weight_and_bias(first))
            self.prior_rest = packed(rest, rows, moments=layer.prior_network.moments)
            self.phi_z = packed(layer.phi_z, rows)
            self.from_z = PackedLinear.here(torch.cat([weight_z, out_z]), rows)
        weights, biases = (torch.cat(parts) for parts in zip(*reads_h, strict=True))
        self.from_h = PackedLinear.here(weights, rows, biases)
        self.of_z = [len(weight_z), len(out_z)]
        self.of_h = [sum(self.of_z), *(len(weight) for weight, _ in reads_h[2:])]
        self.from_x = PackedLinear.here(weight_x, rows, None if self.sums else rnn.input_bias)
        self.phi_x, self.emission_rest = packed(layer.phi_x, rows), packed(list(layer.emission_features)[1:], rows)
        if embedding is not None:
            first, *rest = layer.phi_x
            weight, bias = embedding
            self.phi_x = packed(rest, rows, PackedLinear.here(weight_and_bias(first)[0] @ weight, rows, first(bias)))
        self.rnn, self.gates_z, self.state = rnn, 0.0, layer.first_state(rows, out_bias)

    def prior(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of p(z_t | h_{t-1}), float32 [B, D] each."""
        h = self.state[0]
        self.of_state, *features = self.from_h(h).split_with_sizes(self.of_h, 1)
        return mean_and_logvar(self.prior_rest(features[0]) if features else h[:, :0])

    def emission(self, z: torch.Tensor) -> torch.Tensor:
        """The features [B, P] of p(x_t | z_t, h_{t-1}); [`advance`] takes the last z given here."""
        of_state = self.of_state
        if self.has_latent and self.sums:
            of_state = self.from_z(self.phi_z(z), of_state)
        self.gates, out = of_state.split_with_sizes(self.of_z, 1)
        if self.has_latent and not self.sums:
            self.gates_z, out_z = self.from_z(self.phi_z(z)).split_with_sizes(self.of_z, 1)
            out = out + out_z
        return self.emission_rest(out)

    def advance(self, x: torch.Tensor) -> None:
        """Go on to h_t, by x_t [B, F], or what it was embedded as [B, E]."""
        if self.sums:
            self.state = self.rnn.step_of_sum(self.from_x(self.phi_x(x), self.gates), self.state)
            return
        gates = self.rnn.norm_gates(self.from_x(self.phi_x(x)) + self.gates_z)
        h, *c = self.state  # h_0 is of the weights' type, not of autocast's; c keeps its own
        self.state = self.rnn.step(gates, self.gates, (h.to(gates.dtype), *c))


def packed(modules, rows: int, *first, moments: nn.Module | None = None):
    """Linear layers and ReLUs, behind what comes first and before what gives moments, for one [rows, I] after the
    other, without gradient."""
    rounded = moments is not None and not is_exact(moments.weight)
    steps = [*first]
    for module in (*modules, *([] if moments is None or rounded else [moments])):
        if isinstance(module, nn.ReLU):
            steps.append(torch.relu_)
        else:
            weight, bias = weight_and_bias(module)
            steps.append(PackedLinear.here(weight, rows, bias))
    if rounded:
        steps.append(not_rounded(moments))

    def apply(x):
        for step in steps:
            x = step(x)
        return x

    return apply


def over_samples(x: torch.Tensor, samples: int) -> torch.Tensor:
    """`x` [B, ...] for each of K samples, [K * B, ...]."""
    return x if samples == 1 else x.repeat(samples, *[1] * (x.dim() - 1))
