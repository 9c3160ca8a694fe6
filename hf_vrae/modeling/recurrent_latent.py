"""The recursion of a VRNN with a backward pass written by hand: a quarter of the operations that autograd would take.

Letters in shapes: B sequences, T time, R = K * B rows, D latent size, P features, H hidden size, G gates (4 of an
LSTM, 3 of a GRU).
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .kernels import PackedLinear
from .posteriors import MAX_LOGVAR, MIN_LOGVAR
from .recurrent import LSTM


def sample_path(
    layer: nn.Module,
    gates_x: torch.Tensor,
    features_x: torch.Tensor,
    noise: torch.Tensor,
    read: tuple[torch.Tensor, torch.Tensor],
    moments: tuple[torch.Tensor, torch.Tensor],
    phi: tuple[torch.Tensor, torch.Tensor],
    weight_z: torch.Tensor,
    choose: Callable[..., torch.Tensor] | None = None,
) -> tuple[torch.Tensor, ...]:
    """`VRNNLayer._walk`, for networks of one ReLU layer: what must be in the loop over time, and nothing else.

    From h = 0, at each step with (weight, bias) pairs as functions:

        gates_h, features = read(h)
        mean, logvar = moments(relu(features + features_x))
        z = mean + exp(clamp(logvar) / 2) * noise
        features_z = relu(phi(z))
        h = cell(gates_x + weight_z features_z, gates_h, h)

    Backwards a step is four products and ten cheap operations: the derivatives that do not wait for a gradient are
    taken of all steps at once before it, and each weight's gradient as one product behind it.

    Args:
        layer: LSTM or GRU.
        gates_x: what x_t adds to the gates, [T, B, G * H].
        features_x: what x_t adds to the features from which z is read, [T, B, P].
        noise: [T, R, D].
        read: [G * H + P, H] and [G * H + P].
        moments: [2 D, P] and [2 D].
        phi: [P', D] and [P'].
        weight_z: [G * H, P'].
        choose: from t and, as the step made them, h before it, z, features_z, mean and log-variance, to the rows [R]
            whose states go on; by default all do.

    Returns:
        z [T, R, D], features_z [T, R, P'], mean and log-variance before the clamp [T, R, 2 D], h from h_0 on
        [T + 1, R, H], as the next step reads it.
    """
    kind = _LSTMCell if isinstance(layer, LSTM) else _GRUCell
    tensors = gates_x, features_x, noise, *read, *moments, *phi, weight_z
    if not torch.is_grad_enabled():  # a parameter says of itself that it needs a gradient even then
        tensors = [tensor.detach() for tensor in tensors]
    return _SamplePath.apply(kind, choose, *tensors)


class _LSTMCell:
    """c' = f c + i g and h' = o tanh(c')."""

    @staticmethod
    def step(gates_x, gates_h, h, c):
        """h', c', and what is kept of the step beside the gates, which stay where `gates_h` was."""
        size = h.shape[1]
        gates = gates_h.add_(gates_x)
        i, f = gates[:, : 2 * size].sigmoid_().chunk(2, 1)
        g, o = gates[:, 2 * size : 3 * size].tanh_(), gates[:, 3 * size :].sigmoid_()
        c = (f * c).addcmul_(i, g)
        return c.tanh().mul_(o), c, c

    def __init__(self, gates, kept, before, hidden, d_gates):
        """Of all steps: what was kept, the same but of the last as the next step found it, h_0 to h_T, and where the
        gradient of the gates shall be."""
        size = hidden.shape[-1]
        i, f, g, o = gates.chunk(4, -1)
        tanh = kept.tanh()
        slopes = torch.addcmul(gates, gates, gates, value=-1)  # s (1 - s) of the sigmoids
        slopes[..., :size].mul_(g)
        slopes[1:, ..., size : 2 * size].mul_(before)
        slopes[0, ..., size : 2 * size] = 0
        slopes[..., 2 * size : 3 * size] = torch.addcmul(i, i * g, g, value=-1)
        slopes[..., 3 * size :].mul_(tanh)
        c_by_h = torch.addcmul(o, o * tanh, tanh, value=-1)
        by_c, by_h = slopes[..., : 3 * size].unflatten(-1, (3, size)), slopes[..., 3 * size :]
        d_gates_by_c = d_gates[..., : 3 * size].unflatten(-1, (3, size))
        parts = by_c, by_h, c_by_h, f, d_gates_by_c, d_gates[..., 3 * size :]
        self.d_gates_x = d_gates
        self.steps = list(zip(*(part.unbind(0) for part in parts), strict=True))
        self.d_c = torch.zeros_like(kept[0])
        self.d_c_of_each = self.d_c.unsqueeze(1)

    def undo(self, rows):
        """Of the choice of these rows, in the gradient that is carried from step to step."""
        self.d_c.copy_(_to_rows(self.d_c, rows))

    def back(self, t, d_h, d_before):
        """Fill in the gradient of the gates; give that of the h before but for what goes through its product."""
        by_c, by_h, c_by_h, f, d_gates_by_c, d_o = self.steps[t]
        self.d_c.addcmul_(d_h, c_by_h)
        torch.mul(self.d_c_of_each, by_c, out=d_gates_by_c)
        torch.mul(d_h, by_h, out=d_o)
        self.d_c.mul_(f)
        return d_before


class _GRUCell:
    """h' = n + u (h - n) with n = tanh(n_x + r n_h); as [`_LSTMCell`], c standing for nothing."""

    @staticmethod
    def step(gates_x, gates_h, h, c):
        size = 2 * h.shape[1]
        r, u = gates_h[:, :size].add_(gates_x[:, :size]).sigmoid_().chunk(2, 1)
        n = gates_x[:, size:].addcmul(r, gates_h[:, size:]).tanh_()
        return torch.lerp(n, h, u), c, n

    def __init__(self, gates, kept, before, hidden, d_gates):
        r, u, n_h = gates.chunk(3, -1)
        by_n = (1 - u) * (1 - kept.square())
        by_h = torch.stack([by_n * n_h * r * (1 - r), (hidden[:-1] - kept) * u * (1 - u), by_n], -2)  # [T, R, 3, H]
        self.d_gates_x = torch.empty_like(d_gates, memory_format=torch.contiguous_format)
        sides = [side.unflatten(-1, by_h.shape[-2:]) for side in (self.d_gates_x, d_gates)]
        parts = by_h, r, u, *sides, sides[1][..., 2, :]
        self.steps = list(zip(*(part.unbind(0) for part in parts), strict=True))

    def undo(self, rows):
        """The gradient of h is all that is carried."""

    def back(self, t, d_h, d_before):
        by_h, r, u, d_gates_x, d_gates, d_n_h = self.steps[t]
        torch.mul(d_h.unsqueeze(1), by_h, out=d_gates_x)
        d_gates.copy_(d_gates_x)
        d_n_h.mul_(r)
        return torch.addcmul(d_before, d_h, u)


def _to_rows(gradient, rows):
    """Of what was taken of these rows, [R, H], to the rows it was taken of."""
    return torch.zeros_like(gradient).index_add_(0, rows, gradient)


class _SamplePath(Function):
    @staticmethod
    def forward(
        ctx, kind, choose, gates_x, features_x, noise, w_read, b_read, w_moments, b_moments, w_phi, b_phi, w_z
    ):
        _, rows, size = noise.shape
        samples, width = rows // gates_x.shape[1], gates_x.shape[2]
        weights = (w_read, b_read), (w_moments, b_moments), (w_phi, b_phi), (w_z, None)
        read, moments_of, phi_of, from_z = (PackedLinear(w, rows, b) for w, b in weights)
        h = c = noise.new_zeros(rows, w_read.shape[1])
        hidden, z, features_z, moments, reads, kept, chosen = [h], [], [], [], [], [], []
        training = any(ctx.needs_input_grad)
        for x, features_of_x, epsilon in zip(gates_x.unbind(0), features_x.unbind(0), noise.unbind(0), strict=True):
            if samples > 1:
                x, features_of_x = x.repeat(samples, 1), features_of_x.repeat(samples, 1)
            of_h = read(h)
            m = moments_of(of_h[:, width:].add_(features_of_x).relu_())
            stddev = m[:, size:].clamp(MIN_LOGVAR, MAX_LOGVAR).mul_(0.5).exp_()
            z_t = torch.addcmul(m[:, :size], stddev, epsilon)
            phi = phi_of(z_t).relu_()
            h, c, keep = kind.step(from_z(phi).add_(x), of_h[:, :width], h, c)
            if choose is not None:
                chosen.append(choose(len(z), hidden[-1], z_t, phi, m))
                h, c = h.index_select(0, chosen[-1]), c.index_select(0, chosen[-1])
            for path, value in ((hidden, h), (z, z_t), (features_z, phi), (moments, m)):
                path.append(value)
            if training:
                reads.append(of_h)
                kept.append(keep)
        outputs = [torch.stack(path) for path in (z, features_z, moments, hidden)]
        if training:
            ctx.kind, ctx.samples, ctx.chosen = kind, samples, chosen
            ctx.save_for_backward(
                noise, w_read, w_moments, w_phi, w_z, *outputs, torch.stack(reads), torch.stack(kept)
            )
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_z, d_features_z, d_moments, d_hidden):
        noise, w_read, w_moments, w_phi, w_z, z, features_z, moments, hidden, reads, kept = ctx.saved_tensors
        (_, rows, size), width = noise.shape, len(w_z)
        d_reads = torch.empty_like(reads)
        before, chosen = kept[:-1], ctx.chosen
        if chosen:
            before = torch.stack([k.index_select(0, of_t) for k, of_t in zip(kept, chosen, strict=True)])[:-1]
        cell = ctx.kind(reads[..., :width], kept, before, hidden, d_reads[..., :width])
        # Of g [R, out] -> g W.
        to_h, to_features, to_z, to_phi = (PackedLinear(w.t(), rows) for w in (w_read, w_moments, w_phi, w_z))
        features, d_features = reads[..., width:], d_reads[..., width:]
        logvar = moments[..., size:]
        inside = (logvar >= MIN_LOGVAR) & (logvar <= MAX_LOGVAR)
        z_by_logvar = (0.5 * logvar.clamp(MIN_LOGVAR, MAX_LOGVAR)).exp_().mul_(noise).mul_(0.5).mul_(inside)
        z_by_moments = torch.stack([torch.ones_like(noise), z_by_logvar], -2)  # [T, R, 2, D]
        d_phi, d_read_moments = torch.empty_like(features_z), torch.empty_like(z_by_moments)
        parts = (
            d_z,
            d_features_z,
            d_moments.unflatten(-1, (2, size)),
            d_hidden[:-1],
            cell.d_gates_x,
            features_z.sign(),
            d_phi,
            z_by_moments,
            d_read_moments,
            features.sign(),
            d_features,
            d_reads,
        )
        d_h = d_hidden[-1]
        steps = zip(*(part.unbind(0) for part in parts), strict=True)
        for t, step in reversed(list(enumerate(steps))):
            of_z, of_phi, of_moments, of_before, gates, lives, phi, slopes, both, feature_lives, feature, read = step
            if chosen:
                d_h = _to_rows(d_h, chosen[t])
                cell.undo(chosen[t])
            rest = cell.back(t, d_h, of_before)
            torch.mul(to_phi(gates).add_(of_phi), lives, out=phi)
            torch.addcmul(of_moments, to_z(phi).add_(of_z).unsqueeze(1), slopes, out=both)
            torch.mul(to_features(both.flatten(1)), feature_lives, out=feature)
            d_h = to_h(read).add_(rest)

        def of_weight(gradient, inputs):
            return gradient.flatten(0, 1).t() @ inputs.flatten(0, 1)

        def of_input(gradient):  # [T, B, ...]
            return gradient.unflatten(1, (ctx.samples, -1)).sum(1) if ctx.samples > 1 else gradient

        d_read_moments = d_read_moments.flatten(2)
        return (
            None,
            None,
            of_input(cell.d_gates_x),
            of_input(d_features),
            None,
            of_weight(d_reads, hidden[:-1]),
            d_reads.sum((0, 1)),
            of_weight(d_read_moments, features),
            d_read_moments.sum((0, 1)),
            of_weight(d_phi, z),
            d_phi.sum((0, 1)),
            of_weight(cell.d_gates_x, features_z),
        )
