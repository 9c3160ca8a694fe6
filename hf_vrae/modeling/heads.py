"""Frames x_t of F features: how they enter the network, and the heads p(x_t | h_t) by which they leave it.

Heads speak of *scaled* features, (raw - mean) / scale of each channel; a NaN is a missing feature, never a zero.
"""

import math

import torch
from torch import nn
from torch.distributions import Categorical, Distribution
from torch.nn.functional import logsigmoid, softplus

from .kernels import as_weight_of, at_least_float32, nade_logits, not_rounded, weight_and_bias


def standardise(features: torch.Tensor, config) -> torch.Tensor:
    """Raw features [..., F] in scaled units, (raw - mean) / scale; as they are where the config has no mean."""
    if config.input_mean is None:
        return features
    return (features - features.new_tensor(config.input_mean)) / features.new_tensor(config.input_scale)


def to_raw(features: torch.Tensor, config) -> torch.Tensor:
    """Scaled features [..., F] in raw units: the inverse of [`standardise`]."""
    if config.input_mean is None:
        return features
    return features * features.new_tensor(config.input_scale) + features.new_tensor(config.input_mean)


def raw_log_prob_offset(labels: torch.Tensor, config) -> torch.Tensor:
    """What added to a head's log-density makes it one in raw units: -sum over observed channels of log scale, in nats.

    Args:
        labels: [..., F], NaN where missing.
        config: of the model.

    Returns:
        [...]; 0 for the discrete heads, whose probabilities know no units.
    """
    if config.input_mean is None or config.head == "logistic_mixture":
        return labels.new_zeros(labels.shape[:-1])
    return torch.where(labels.isnan(), 0, -labels.new_tensor(config.input_scale).log()).sum(-1)


class FrameEmbedding(nn.Module):
    """A frame as a vector: linear in the features and in which of them are missing.

    A missing feature adds nothing but a learnt vector of its own, so it differs from a zero.

    Args:
        input_size: F.
        embedding_size: E.
        num_levels: L, for features that are integers 0 .. L-1: each has L + 1 learnt vectors, the last for missing.
    """

    def __init__(self, input_size: int, embedding_size: int, num_levels: int | None = None):
        super().__init__()
        self.num_levels = num_levels
        if num_levels is None:
            self.projection = nn.Linear(2 * input_size, embedding_size)
        else:
            self.table = nn.Embedding(input_size * (num_levels + 1), embedding_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Scaled features [..., F], NaN where missing, as [..., E]."""
        missing = features.isnan()
        if self.num_levels is None:
            inputs = torch.cat([torch.where(missing, 0, features), missing.to(features.dtype)], -1)  # [..., 2 F]
            return self.projection(as_weight_of(self.projection, inputs))
        levels = torch.where(missing, self.num_levels, features).long()
        first_rows = torch.arange(features.shape[-1], device=features.device) * (self.num_levels + 1)
        return self.table(levels + first_rows).sum(-2)

    def linear_in_whole_frames(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight [E, F] and bias [E] of [`forward`] where nothing is missing and features are no levels."""
        weight, bias = weight_and_bias(self.projection)
        return weight[:, : weight.shape[1] // 2], bias


def make_frame_embedding(config) -> FrameEmbedding:
    """How frames enter a network: only those of the categorical head are a choice among levels."""
    num_levels = config.num_levels if config.head == "categorical" else None
    return FrameEmbedding(config.input_size, config.embedding_size, num_levels)


class FrameDistribution(Distribution):
    """A distribution over frames, with batch shape [*batch] and event shape [F], whose missing features are left out.

    Every kind gives `mean` and `mode`, [*batch, F], where `mode` is what greedy generation returns.

    Args:
        example: a tensor of the shape [*batch, F].
    """

    arg_constraints = {}

    def __init__(self, example: torch.Tensor):
        # Checking the arguments would cost a host-device synchronisation at every step.
        super().__init__(example.shape[:-1], example.shape[-1:], validate_args=False)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p of the features of `value` [..., F] that are not NaN, in nats: [...]; 0 if all are missing."""
        observed = ~value.isnan()
        # A NaN would reach the gradients even through a `where` after it: it is replaced before anything is computed.
        value = torch.where(observed, value, 0)
        with torch.autocast(value.device.type, enabled=False):
            return self._log_prob(value, observed)

    def _log_prob(self, value: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        return torch.where(observed, self._terms(value), 0).sum(-1)

    def _terms(self, value: torch.Tensor) -> torch.Tensor:
        """log p of each feature, [..., F], where these are independent."""
        raise NotImplementedError

    def sample(self, sample_shape=()) -> torch.Tensor:
        """Frames without a gradient, [*sample_shape, *batch, F]."""
        with torch.no_grad():
            return self._sample(torch.Size(sample_shape))

    def _sample(self, sample_shape: torch.Size) -> torch.Tensor:
        raise NotImplementedError


class BernoulliFrames(FrameDistribution):
    """Independent binary features.

    Args:
        logits: [*batch, F].
    """

    def __init__(self, logits: torch.Tensor):
        self.logits = logits
        super().__init__(logits)

    @property
    def mean(self) -> torch.Tensor:
        return self.logits.sigmoid()

    @property
    def mode(self) -> torch.Tensor:
        """1 where p > 0.5, [*batch, F]"""
        return (self.logits > 0).to(self.logits.dtype)

    def _sample(self, sample_shape):
        p = self.mean
        return _draw_binary(p.expand(self._extended_shape(sample_shape)) if sample_shape else p)

    def _terms(self, value):
        return value * self.logits - softplus(self.logits)


class NADEFrames(FrameDistribution):
    """p(x) = prod_i p(x_i | x_<i) over binary features (NADE, Larochelle & Murray 2011, eq. 5 and 6).

    p(x_i = 1 | x_<i) = sigmoid(b_i + V_i . sigmoid(c + sum_{j<i} x_j W_j)), where the biases b and c are functions of
    the past (RNN-NADE, Boulanger-Lewandowski et al. 2012).

    Missing features have no exact marginal here: they are left out of the product and of the conditions, so each term
    of `log_prob` is p(x_i | those before it that are observed).

    Args:
        b: biases of the features, [*batch, F].
        c: biases of the hidden units, [*batch, Hn].
        W: [F, Hn].
        V: [F, Hn].
        plain: by torch's own operations, which can be differentiated twice.
    """

    def __init__(self, b: torch.Tensor, c: torch.Tensor, W: torch.Tensor, V: torch.Tensor, plain: bool = False):
        self.b, self.c, self.W, self.V, self.plain = b, c, W, V, plain
        super().__init__(b)

    @property
    def mean(self) -> torch.Tensor:
        """Mean-field: each p(x_i) given the means, not the values, of those before it; [*batch, F]"""
        return self._walk(lambda p: p)

    @property
    def mode(self) -> torch.Tensor:
        """The likelier value of each feature in turn, [*batch, F]"""
        return self._walk(lambda p: (p > 0.5).to(p.dtype))

    def _sample(self, sample_shape):
        return self._walk(_draw_binary, sample_shape)

    def _walk(self, choose, sample_shape=()) -> torch.Tensor:
        """Feature after feature, x_i = choose(p(x_i = 1 | x_<i)); [*sample_shape, *batch, F]"""
        a = self.c.expand(*sample_shape, *self.c.shape)  # [..., Hn]
        x = []
        for i in range(self.event_shape[0]):
            x.append(choose((self.b[..., i] + (a.sigmoid() * self.V[i]).sum(-1)).sigmoid()))
            a = a + x[-1].unsqueeze(-1) * self.W[i]
        return torch.stack(x, -1)

    def _terms(self, value):
        shape = torch.broadcast_shapes(value.shape, self.b.shape)
        x, b, c = (t.expand(*shape[:-1], -1).reshape(-1, t.shape[-1]) for t in (value.to(self.b), self.b, self.c))
        if self.plain or x.device.type == "mps":  # where before macOS 15 what goes to a part of `out` was lost
            steps = x.unsqueeze(2) * self.W  # [N, F, Hn]
            hidden = (c.unsqueeze(1) + steps.cumsum(1) - steps).sigmoid()
            logits = b + torch.einsum("nfh,fh->nf", hidden, self.V)
        else:
            logits = nade_logits(x, b, c, self.W, self.V)
        return BernoulliFrames(logits.view(shape))._terms(value)


class GaussianFrames(FrameDistribution):
    """Independent Gaussian features.

    Args:
        loc: means, [*batch, F].
        scale: standard deviations, [*batch, F].
    """

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor):
        self.loc, self.scale = loc, scale
        super().__init__(loc)

    @property
    def mean(self) -> torch.Tensor:
        return self.loc

    mode = mean

    def _sample(self, sample_shape):
        return self.loc + self.scale * torch.randn_like(self.loc.expand(self._extended_shape(sample_shape)))

    def _terms(self, value):
        return _normal_log_prob(value, self.loc, self.scale)


class FullGaussianFrames(FrameDistribution):
    """N(loc, L L^T): features that covary.

    Args:
        loc: [*batch, F].
        scale_tril: L, lower triangular with a positive diagonal, [*batch, F, F].
    """

    def __init__(self, loc: torch.Tensor, scale_tril: torch.Tensor):
        self.loc, self.scale_tril = loc, scale_tril
        super().__init__(loc)

    @property
    def mean(self) -> torch.Tensor:
        return self.loc

    mode = mean

    def _sample(self, sample_shape):
        noise = torch.randn_like(self.loc.expand(self._extended_shape(sample_shape)))
        return self.loc + (self.scale_tril * noise.unsqueeze(-2)).sum(-1)

    def _log_prob(self, value, observed):
        difference = torch.where(observed, value - self.loc, 0)
        observed = observed.expand_as(difference)
        factor = self.scale_tril.expand(*difference.shape, -1)  # [..., F, F]
        # Only these need a factor of their own: of a padded frame the difference is 0, and the diagonal not counted.
        partial = observed.any(-1) & ~observed.all(-1)
        if partial.any():
            marginal = _marginal_factor(factor[partial], observed[partial])
            factor = factor.masked_scatter(partial[..., None, None], marginal)
        z = torch.linalg.solve_triangular(factor, difference.unsqueeze(-1), upper=False).squeeze(-1)
        log_scale = factor.diagonal(dim1=-2, dim2=-1).abs().log()
        return torch.where(observed, _standard_normal_log_prob(z) - log_scale, 0).sum(-1)


class MixtureFrames(FrameDistribution):
    """A mixture of K components, each with a place and a width for every feature.

    Args:
        logits: of the components, [*batch, F, K], or [*batch, 1, K] where one is drawn for the whole frame.
        loc: [*batch, F, K].
        scale: [*batch, F, K].
    """

    def __init__(self, logits: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor):
        self.log_weights, self.loc, self.scale = logits.log_softmax(-1), loc, scale
        super().__init__(loc[..., 0])

    @property
    def mean(self) -> torch.Tensor:
        return (self.log_weights.exp() * self.loc).sum(-1)

    @property
    def mode(self) -> torch.Tensor:
        """The place of the likeliest component, [*batch, F]"""
        return _pick(self.loc, self.log_weights.argmax(-1))

    def _sample(self, sample_shape):
        component = Categorical(logits=self.log_weights, validate_args=False).sample(sample_shape)
        loc = _pick(self.loc, component)
        return loc + _pick(self.scale, component) * self._noise(loc)

    def _noise(self, like: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class GaussianMixtureFrames(MixtureFrames):
    """A mixture of diagonal Gaussians over the whole frame; `logits` is [*batch, 1, K]."""

    def _noise(self, like):
        return torch.randn_like(like)

    def _log_prob(self, value, observed):
        terms = _normal_log_prob(value.unsqueeze(-1), self.loc, self.scale)
        joint = torch.where(observed.unsqueeze(-1), terms, 0).sum(-2) + self.log_weights.squeeze(-2)  # [..., K]
        # The weights sum to 1 up to rounding only.
        return torch.where(observed.any(-1), joint.logsumexp(-1), 0)


class LogisticMixtureFrames(MixtureFrames):
    """A discretised mixture of logistics for each feature (PixelCNN++, Salimans et al. 2017, eq. 2).

    A feature takes one of L levels evenly spaced over [-1, 1], scored and drawn as the nearest; the ends take the
    tails. `log_prob` is of a probability, not a density. `mean` and `mode` are those of the logistics before the tails
    are cut, kept inside [-1, 1], `mode` at its nearest level.

    Args:
        logits, loc, scale: [*batch, F, K].
        num_levels: L, at least 2.
    """

    def __init__(self, logits: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor, num_levels: int):
        self.num_levels = num_levels
        super().__init__(logits, loc, scale)

    @property
    def mean(self) -> torch.Tensor:
        return super().mean.clamp(-1, 1)

    @property
    def mode(self) -> torch.Tensor:
        return self._place(self._level(super().mode))

    def _noise(self, like):
        return torch.rand_like(like).logit(eps=1e-7)  # the inverse of the logistic's distribution function

    def _sample(self, sample_shape):
        return self._place(self._level(super()._sample(sample_shape)))

    def _level(self, x):
        return ((x + 1) / 2 * (self.num_levels - 1)).round().clamp(0, self.num_levels - 1)

    def _place(self, level):
        return level * (2 / (self.num_levels - 1)) - 1

    def _terms(self, value):
        level = self._level(value).unsqueeze(-1)  # [..., F, 1]
        x, width = self._place(level), 2 / (self.num_levels - 1)
        first, last = level == 0, level == self.num_levels - 1
        upper = (x + width / 2 - self.loc) / self.scale
        lower = (x - width / 2 - self.loc) / self.scale
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): three logarithms that do not underflow,
        # so the paper's fallback to density times width is not needed.
        log_mass = torch.where(last, 0, logsigmoid(upper)) + torch.where(first, 0, logsigmoid(-lower))
        log_mass = log_mass + torch.where(first | last, 0, (-torch.expm1(-width / self.scale)).log())
        return (self.log_weights + log_mass).logsumexp(-1)


class CategoricalFrames(FrameDistribution):
    """Independent features, each an integer 0 .. L-1 held as a float.

    Args:
        logits: [*batch, F, L].
    """

    def __init__(self, logits: torch.Tensor):
        self.logits = logits.log_softmax(-1)
        super().__init__(logits[..., 0])

    @property
    def mean(self) -> torch.Tensor:
        return (self.logits.exp() * torch.arange(self.logits.shape[-1], device=self.logits.device)).sum(-1)

    @property
    def mode(self) -> torch.Tensor:
        return self.logits.argmax(-1).to(self.logits.dtype)

    def _sample(self, sample_shape):
        return Categorical(logits=self.logits, validate_args=False).sample(sample_shape).to(self.logits.dtype)

    def _terms(self, value):
        return _pick(self.logits, value.long())


def _draw_binary(p: torch.Tensor) -> torch.Tensor:
    """1 with probability p: on a CPU what `torch.bernoulli` draws, from the same random numbers, in half the time."""
    return (torch.rand_like(p) < p).to(p.dtype)


def _standard_normal_log_prob(z: torch.Tensor) -> torch.Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi))


def _normal_log_prob(value: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return _standard_normal_log_prob((value - loc) / scale) - scale.log()


def _pick(parameter: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """parameter[..., index]: one of the last dimension [..., K], by `index` [...], both broadcast."""
    shape = torch.broadcast_shapes(parameter.shape[:-1], index.shape)
    return parameter.expand(*shape, -1).gather(-1, index.expand(shape).unsqueeze(-1)).squeeze(-1)


def _marginal_factor(factor: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Of L L^T with the rows and columns of missing features replaced by those of the identity; [N, F, F].

    With A = [observed rows of L | identity of the missing], A A^T is that matrix, and A^T = QR gives R^T. A Cholesky
    factor of the product itself would in float32 fail at condition numbers of L above some 1e3.
    """
    identity = torch.diag_embed((~observed).to(factor.dtype))
    a = torch.cat([torch.where(observed.unsqueeze(-1), factor, 0), identity], -1)  # [N, F, 2 F]
    return torch.linalg.qr(a.mT).R.mT


class FrameHead(nn.Module):
    """h_t -> p(x_t | h_t): one linear layer for all the parameters, which a subclass makes a distribution of.

    Args:
        hidden_size: H.
        sizes: of the parameters, each of which has a part of the layer's outputs.
    """

    def __init__(self, hidden_size: int, *sizes: int):
        super().__init__()
        self.sizes = sizes
        self.projection = nn.Linear(hidden_size, sum(sizes))

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The parameters of `hidden` [..., H], [..., size] each."""
        return not_rounded(self.projection)(hidden).split_with_sizes(self.sizes, -1)


class BernoulliHead(FrameHead):
    """[`BernoulliFrames`], logits linear in h."""

    def forward(self, hidden: torch.Tensor) -> BernoulliFrames:
        return BernoulliFrames(*self.project(hidden))


class NADEHead(FrameHead):
    """[`NADEFrames`], both biases linear in h."""

    def __init__(self, hidden_size: int, input_size: int, nade_hidden_size: int = 64, plain: bool = False):
        super().__init__(hidden_size, input_size, nade_hidden_size)
        self.plain = plain
        self.into_hidden = nn.Linear(input_size, nade_hidden_size, bias=False)
        self.out_of_hidden = nn.Linear(nade_hidden_size, input_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> NADEFrames:
        b, c = self.project(hidden)
        into, out_of = (
            at_least_float32(weight_and_bias(linear)[0]) for linear in (self.into_hidden, self.out_of_hidden)
        )
        return NADEFrames(b, c, into.t(), out_of, self.plain)


class GaussianHead(FrameHead):
    """[`GaussianFrames`]: the mean linear in h, the standard deviation softplus(linear) + min_scale."""

    def __init__(self, hidden_size: int, input_size: int, min_scale: float):
        super().__init__(hidden_size, input_size, input_size)
        self.min_scale = min_scale

    def forward(self, hidden: torch.Tensor) -> GaussianFrames:
        loc, raw = self.project(hidden)
        return GaussianFrames(loc, softplus(raw) + self.min_scale)


class FullGaussianHead(FrameHead):
    """[`FullGaussianFrames`] with L = S (I + N), N strictly lower triangular, S = diag(softplus(linear) + min_scale).

    Any Cholesky factor with that floor can be had so; N has no units, and small S make L small, not ill-conditioned.
    """

    def __init__(self, hidden_size: int, input_size: int, min_scale: float):
        super().__init__(hidden_size, input_size, input_size, input_size * (input_size - 1) // 2)
        self.min_scale = min_scale

    def forward(self, hidden: torch.Tensor) -> FullGaussianFrames:
        loc, raw, lower = self.project(hidden)
        size = loc.shape[-1]
        factor = torch.eye(size, dtype=loc.dtype, device=loc.device).repeat(*loc.shape[:-1], 1, 1)
        rows, columns = torch.tril_indices(size, size, -1, device=loc.device)
        factor[..., rows, columns] = lower
        return FullGaussianFrames(loc, (softplus(raw) + self.min_scale).unsqueeze(-1) * factor)


class GaussianMixtureHead(FrameHead):
    """[`GaussianMixtureFrames`]: logits and means linear in h, scales as in [`GaussianHead`]."""

    def __init__(self, hidden_size: int, input_size: int, num_mixtures: int, min_scale: float):
        super().__init__(hidden_size, num_mixtures, input_size * num_mixtures, input_size * num_mixtures)
        self.num_mixtures, self.min_scale = num_mixtures, min_scale

    def forward(self, hidden: torch.Tensor) -> GaussianMixtureFrames:
        logits, loc, raw = (t.unflatten(-1, (-1, self.num_mixtures)) for t in self.project(hidden))
        return GaussianMixtureFrames(logits, loc, softplus(raw) + self.min_scale)


class LogisticMixtureHead(FrameHead):
    """[`LogisticMixtureFrames`]: logits and means linear in h, scales as in [`GaussianHead`]."""

    def __init__(self, hidden_size: int, input_size: int, num_mixtures: int, num_levels: int, min_scale: float):
        super().__init__(hidden_size, *3 * (input_size * num_mixtures,))
        self.num_mixtures, self.num_levels, self.min_scale = num_mixtures, num_levels, min_scale

    def forward(self, hidden: torch.Tensor) -> LogisticMixtureFrames:
        logits, loc, raw = (t.unflatten(-1, (-1, self.num_mixtures)) for t in self.project(hidden))
        return LogisticMixtureFrames(logits, loc, softplus(raw) + self.min_scale, self.num_levels)


class CategoricalHead(FrameHead):
    """[`CategoricalFrames`], logits linear in h."""

    def __init__(self, hidden_size: int, input_size: int, num_levels: int):
        super().__init__(hidden_size, input_size * num_levels)
        self.num_levels = num_levels

    def forward(self, hidden: torch.Tensor) -> CategoricalFrames:
        (logits,) = self.project(hidden)
        return CategoricalFrames(logits.unflatten(-1, (-1, self.num_levels)))


def make_head(config, hidden_size: int) -> FrameHead:
    """The head that `config.head` names: from hidden [..., H] to a [`FrameDistribution`] over scaled features.

    Args:
        config: with `head` and `input_size`, and what the head needs of `nade_hidden_size`, `num_mixtures`,
            `num_levels` and `min_scale`.
        hidden_size: H.

    Raises:
        ValueError: if there is no such head.
    """
    size = config.input_size
    if config.head == "bernoulli":
        return BernoulliHead(hidden_size, size)
    if config.head == "nade":
        return NADEHead(hidden_size, size, config.nade_hidden_size, config.kernels == "plain")
    if config.head == "gaussian":
        return GaussianHead(hidden_size, size, config.min_scale)
    if config.head == "full_gaussian":
        return FullGaussianHead(hidden_size, size, config.min_scale)
    if config.head == "gaussian_mixture":
        return GaussianMixtureHead(hidden_size, size, config.num_mixtures, config.min_scale)
    if config.head == "logistic_mixture":
        return LogisticMixtureHead(hidden_size, size, config.num_mixtures, config.num_levels, config.min_scale)
    if config.head == "categorical":
        return CategoricalHead(hidden_size, size, config.num_levels)
    raise ValueError(
        "`head` must be 'bernoulli', 'nade', 'gaussian', 'full_gaussian', 'gaussian_mixture', 'logistic_mixture' or "
        f"'categorical', got {config.head!r}: choose one of these."
    )
