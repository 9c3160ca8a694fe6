"""Kernels: what the plain lines of the model compute, with less work and less memory.

Each stands beside its plain form and is tested against it. Private operators of torch are tried once, at import, and
have a plain fallback.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100  # the label that transformers' collators and losses leave out


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies with weights packed in advance here."""
    try:
        weight = torch.ones(16, 16, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
        product = torch.ops.mkldnn._linear_pointwise(weight[:2], packed, None, "none", [], "")
        return torch.equal(product, torch.full_like(product, 16))
    except (AttributeError, RuntimeError):
        return False


def _mkl_is_slow() -> bool:
    """Whether MKL, torch's own product in float32, leaves half of the processor's width unused: with AVX512 on those
    that are not Intel's (one core of an EPYC of 2024: 40 to 100 GFLOP/s by MKL, 100 to 200 by oneDNN; on one of 2021,
    with AVX2, 45 to 80 by either)."""
    try:
        intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        intel = False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and not intel


MKL_IS_SLOW = _mkl_is_slow()
PACKED_DTYPES = tuple(dtype for dtype in (torch.float32, torch.bfloat16) if _packs(dtype))
# Weights, or where MKL is slow multiplications, from which on it pays to pack in float32: MKL is quicker with little
# (20 rows by [64, 64] take it 4 us, oneDNN 20), if the weights are laid out as their transpose.
PACKED_FROM = 2**20
FEWEST_ROWS = 1 if MKL_IS_SLOW else 2  # with a single row MKL need not lay out anything first
EXACT = torch.float32, torch.float64
CACHED_ROWS = 32  # of logits, of some ten thousand words: 1.25 MiB in float32


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in EXACT else tensor.float()


def prefers_onednn(tensor: torch.Tensor) -> bool:
    """Whether oneDNN is quicker than torch's own product."""
    slow = MKL_IS_SLOW and tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return slow and tensor.dtype in PACKED_DTYPES and not torch.compiler.is_compiling()


def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """`a @ b` of two matrices, without gradient; in the memory of `out` where torch's own product is taken."""
    if prefers_onednn(a) and a.numel():
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return torch.mm(a, b, out=out)


class PackedLinear:
    """x -> x W^T + b, with W [out, in] laid out once as the processor's matrix product likes it.

    Worth it where W meets many small x in turn, as at every step of a recurrence; there is no gradient.

    Args:
        weight: [out, in].
        rows: of the x to come; the layout is chosen for it.
        bias: [out].
    """

    def __init__(self, weight: torch.Tensor, rows: int, bias: torch.Tensor | None = None):
        self.dtype, self.bias = weight.dtype, bias
        laid_out = weight.device.type == "cpu" and rows >= FEWEST_ROWS
        work = rows * weight.numel() if MKL_IS_SLOW else weight.numel()
        large = weight.dtype != torch.float32 or work >= PACKED_FROM
        self.packed = laid_out and large and weight.dtype in PACKED_DTYPES
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        else:
            self.weight = weight.t().contiguous() if laid_out else weight.t()

    @classmethod
    def here(cls, weight: torch.Tensor, rows: int, bias: torch.Tensor | None = None) -> "PackedLinear":
        """In the data type that a product has here: autocast's, if it is on."""
        dtype = product_dtype(weight)
        return cls(weight.to(dtype), rows, None if bias is None else bias.to(dtype))

    def __call__(self, x: torch.Tensor, beside: torch.Tensor | None = None) -> torch.Tensor:
        """x W^T + b, or in place of b what is `beside` it, [rows, out]."""
        if x.dtype != self.dtype:  # asked first: at small sizes to convert nothing takes as long as a ReLU
            x = x.to(self.dtype)
        if self.packed:
            out = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return out if beside is None else out.add_(beside)
        added = self.bias if beside is None else beside
        return x @ self.weight if added is None else torch.addmm(added, x, self.weight)


def is_plain(linear: nn.Module) -> bool:
    """Whether its weight says all that a call of it does: there is no adapter, no hook, no quantization, and it is not
    kept elsewhere."""
    called = linear._forward_hooks or linear._forward_pre_hooks or hasattr(linear, "_hf_hook")  # accelerate's
    own = type(linear) is nn.Linear and type(linear.weight) in (nn.Parameter, torch.Tensor)  # torchao's is of its own
    return own and not called and linear.weight.device.type != "meta"


def as_weight_of(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`x` in the data type of the layer's weight, or where that is quantized to integers in its bias's, if any."""
    like = linear.weight if linear.weight.is_floating_point() else linear.bias
    return x if like is None else x.to(like.dtype)


def not_rounded(linear: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A call of `linear` in float32 at least, under autocast and of weights of 16 bits too, where it gives the
    parameters of a distribution: likelihoods and KL need their digits. What is not plain multiplies in its own type.
    """
    weight, bias, own = linear.weight, linear.bias, linear.weight.dtype
    if is_exact(weight):
        return lambda inputs: linear(inputs if inputs.dtype == own else inputs.to(own))
    plain, wide = is_plain(linear), torch.promote_types(own, torch.float32)
    if plain:
        weight, bias = weight.to(wide), None if bias is None else bias.to(wide)

    def apply(inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            if plain:
                return nn.functional.linear(inputs.to(wide), weight, bias)
            return at_least_float32(linear(as_weight_of(linear, inputs)))

    return apply


def is_exact(tensor: torch.Tensor) -> bool:
    """Whether a product with it here is taken in float32 at least: not under autocast, nor of 16 bits."""
    return product_dtype(tensor) in EXACT


def weights_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """Its parameters, also of a replica that nn.DataParallel makes, whose weights are none."""
    for part in module.modules():
        named = part._parameters or getattr(part, "_former_parameters", {})
        yield from (weight for weight in named.values() if weight is not None)


def float_dtype(module: nn.Module) -> torch.dtype:
    """Of its weights, those apart that are quantized to integers."""
    return next((w.dtype for w in weights_of(module) if w.is_floating_point()), torch.get_default_dtype())


def weight_and_bias(linear: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [O, I] and bias [O] of what a call of `linear` does: its own where they say it all, else what it makes of
    the unit vectors, an adapter's part included."""
    if is_plain(linear):
        return linear.weight, linear.bias
    units = as_weight_of(linear, torch.eye(linear.in_features, device=linear.weight.device))
    bias = linear(torch.zeros_like(units[:1]))[0]  # bitsandbytes multiplies matrices alone
    return (linear(units) - bias).t(), bias


class RecurrentProjection:
    """h -> h W^T at each step of a loop over time, with W packed once and *one* product for its gradient.

    Autograd would form the gradient of W at each step, a product of few rows, and add them up. Here the gradients of
    all steps are collected, and dW = sum_t dg_t^T h_t is one large product.

    Args:
        weight: [G, H].
        steps: of the loop, T.
        rows: of each h, B.
        dtype: of the products.
    """

    def __init__(self, weight: torch.Tensor, steps: int, rows: int, dtype: torch.dtype):
        self.dtype = dtype
        cast = weight.detach().to(dtype)
        self.forward = PackedLinear(cast, rows)
        self.backward = self.slots = None
        if not torch.is_grad_enabled():
            return
        self.backward = PackedLinear(cast.t(), rows)
        if weight.requires_grad:
            self.inputs: list[torch.Tensor] = []
            slots = _DeferredGradient.apply(weight, self.inputs, (steps, rows, weight.shape[0]), dtype)
            self.slots = iter(slots.unbind(0))

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        h = h.to(self.dtype)
        if self.backward is None:
            return self.forward(h)
        return _Projection.apply(h, None if self.slots is None else next(self.slots), self)


class _DeferredGradient(Function):
    """A slot [B, G] for each step, whose value nobody reads: through it flows the gradient of the step's product."""

    @staticmethod
    def forward(ctx, weight, inputs, shape, dtype):
        ctx.inputs, ctx.dtype = inputs, weight.dtype
        return weight.new_zeros((), dtype=dtype).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        used = len(ctx.inputs)
        weight = gradient[:used].flatten(0, 1).t() @ torch.cat(ctx.inputs)
        return weight.to(ctx.dtype), None, None, None


class _Projection(Function):
    @staticmethod
    def forward(ctx, h, slot, projection):
        if slot is not None:  # None is of a frozen W
            projection.inputs.append(h.detach())
        ctx.projection = projection
        return projection.forward(h)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return ctx.projection.backward(gradient), gradient if ctx.needs_input_grad[1] else None, None


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, scale: float | torch.Tensor = 1.0
) -> torch.Tensor:
    """`(scale * cross_entropy(hidden @ weight.T, labels, reduction="none")).sum()`, never holding all the logits.

    The gradients are formed in the forward pass, chunk by chunk while the logits are there, so nothing is computed
    twice; that is why only a sum can leave. Of a frozen weight there is none.

    Args:
        hidden: [N, H].
        weight: [V, H].
        labels: [N], -100 where there is none.
        scale: of the loss, or of each row's [N], without gradient; taken in here, it costs no pass over the gradient
            of `weight`.
    """
    exact = torch.promote_types(weight.dtype, torch.float32)
    if not isinstance(scale, torch.Tensor):  # filled there: a copy to a GPU would wait for it
        scale = torch.full((), scale, dtype=exact, device=hidden.device)
    scale = scale.to(exact).expand(labels.shape)
    if labels.device.type == "cpu":  # elsewhere to count the real ones would cost a synchronisation
        real = (labels != IGNORE_INDEX).nonzero().squeeze(1)
        hidden, labels, scale = hidden.index_select(0, real), labels[real], scale[real]
    hidden = hidden.to(product_dtype(hidden))
    with torch.autocast(hidden.device.type, enabled=False):
        return _LinearCrossEntropy.apply(hidden, weight, labels, scale)


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, scale):
        # Small numbers vanish in float16: there the largest scale waits for the backward pass, as GradScaler's does.
        ctx.factor = 1.0
        if hidden.dtype == torch.float16:
            ctx.factor = scale.amax() if len(scale) else 1.0
            scale = scale / ctx.factor
        cast = weight.to(hidden.dtype)
        exact = torch.promote_types(weight.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=exact)
        d_hidden = torch.empty_like(hidden)
        d_weight = None
        # A chunk's logits take 16 MiB, or as much as the gradient of W, which each chunk passes over once.
        rows = max(2**22 // len(weight), weight.shape[1])
        for h, y, chunk, logits in _chunks(rows, hidden, cast, labels):
            share = scale[chunk].unsqueeze(1) * (y != IGNORE_INDEX)  # [N', 1]
            y = y.clamp(min=0)
            for part, label, own in _cached(logits, y, share):
                p, nll = _softmax(part.to(exact), label)
                total += (nll * own).sum()
                part.copy_(p.scatter_add_(1, label, -torch.ones_like(own)).mul_(own))
            d_logits = logits  # softmax - onehot, times the share, in their place
            d_hidden[chunk] = product(d_logits, cast)
            if not ctx.needs_input_grad[1]:
                continue
            if d_weight is None:
                d_weight = product(d_logits.t(), h).to(exact)
            elif h.dtype == exact and not prefers_onednn(h):
                d_weight.addmm_(d_logits.t(), h)
            else:
                d_weight += product(d_logits.t(), h)
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
        return total * ctx.factor

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        d_hidden, d_weight = ctx.saved_tensors
        gradient = gradient * ctx.factor
        if gradient.device.type != "cpu" or gradient.item() != 1:
            d_hidden = d_hidden * gradient.to(d_hidden.dtype)
            d_weight = None if d_weight is None else d_weight * gradient.to(d_weight.dtype)
        return d_hidden, d_weight, None, None


def linear_nll(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`cross_entropy(hidden @ weight.T, labels, reduction="none")`, chunk by chunk and without gradient.

    Args:
        hidden: [N, H].
        weight: [V, H].
        labels: [N], -100 where there is none.

    Returns:
        [N], 0 where there is no label.
    """
    real = labels != IGNORE_INDEX
    rows = real if labels.device.type == "cpu" else slice(None)  # as in [`linear_cross_entropy`]
    result = hidden.new_zeros(labels.shape, dtype=torch.promote_types(hidden.dtype, torch.float32))
    hidden, labels = hidden[rows], labels[rows].clamp(min=0)
    nll = result.new_empty(labels.shape)
    weight = weight.to(product_dtype(hidden))
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for _, y, chunk, logits in _chunks(512, hidden, weight, labels):
            for part, label, out in _cached(logits, y, nll[chunk]):
                out.copy_(_softmax(part.to(nll.dtype), label)[1].squeeze(1))
    result[rows] = nll
    return result.masked_fill_(~real, 0)


def _chunks(rows: int, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor):
    """Like parts of up to `rows` rows: hidden [N', H], labels [N', 1], where they stand, and their logits [N', V].

    The logits of each part lie in the same memory: a new 16 MiB each would cost as much as the exponentials.
    """
    buffer = weight.new_empty(min(rows, len(hidden)), len(weight))
    count = max(1, len(labels))  # no label at all is one empty part
    rows = math.ceil(count / math.ceil(count / rows))
    for start in range(0, count, rows):
        chunk = slice(start, start + rows)
        h = hidden[chunk].to(weight.dtype)
        yield h, labels[chunk].unsqueeze(1), chunk, product(h, weight.t(), out=buffer[: len(h)])


def _cached(logits: torch.Tensor, *beside: torch.Tensor):
    """Parts of the rows, on a CPU so few that its cache holds them in float32 from one pass to the next."""
    rows = CACHED_ROWS if logits.device.type == "cpu" else max(1, len(logits))
    return zip(logits.split(rows), *(tensor.split(rows) for tensor in beside), strict=True)


def _softmax(logits: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of `logits` [N, V], and -log p(y) [N, 1] even where p(y) is too small for a number."""
    p = logits.softmax(1)
    return p, logits.amax(1, keepdim=True) - logits.gather(1, y) - p.amax(1, keepdim=True).log()


def nade_logits(
    x: torch.Tensor, b: torch.Tensor, c: torch.Tensor, weight: torch.Tensor, out_weight: torch.Tensor
) -> torch.Tensor:
    """`b + einsum("nfh,fh->nf", sigmoid(c + cumsum of x_j W_j over j < i), V)`, feature after feature: [N, F].

    The plain form holds [N, F, Hn] at once; here only [N, Hn] is, and the backward pass goes back through the sums.

    Args:
        x: binary features, [N, F]; there is no gradient in them.
        b: biases of the features, [N, F].
        c: biases of the hidden units, [N, Hn].
        weight: W, [F, Hn].
        out_weight: V, [F, Hn].
    """
    return _NADELogits.apply(x, b, c, weight, out_weight)


class _NADELogits(Function):
    @staticmethod
    def forward(ctx, x, b, c, weight, out_weight):
        x = x.t().contiguous()  # [F, N]
        # Of one row `b.t()` is contiguous as it is: `contiguous` would be no copy.
        logits = b.t().clone(memory_format=torch.contiguous_format)
        total, hidden = c.clone(), torch.empty_like(c)
        for i in range(len(x)):
            torch.sigmoid(total, out=hidden)
            logits[i].addmv_(hidden, out_weight[i])
            total.addr_(x[i], weight[i])
        ctx.save_for_backward(x, total, weight, out_weight)
        return logits.t()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, total, weight, out_weight = ctx.saved_tensors
        gradient = gradient.t().contiguous()  # [F, N]
        total = total.clone()
        d_total, hidden, slope = (torch.zeros_like(total) for _ in range(3))
        d_weight, d_out_weight = torch.empty_like(weight), torch.empty_like(out_weight)
        for i in reversed(range(len(x))):
            torch.mv(d_total.t(), x[i], out=d_weight[i])
            total.addr_(x[i], weight[i], alpha=-1)
            torch.sigmoid(total, out=hidden)
            torch.mv(hidden.t(), gradient[i], out=d_out_weight[i])
            torch.addcmul(hidden, hidden, hidden, value=-1, out=slope)
            d_total.addcmul_(slope.mul_(out_weight[i]), gradient[i].unsqueeze(1))
        return None, gradient.t(), d_total, d_weight, d_out_weight


class Dropout(nn.Dropout):
    """Dropout with 16 random bits per element, four elements a draw: on a CPU torch draws them one by one, five times
    slower. `p` is rounded to a multiple of 2**-16.

    Args:
        p: probability of an element to be dropped.
        kernels: "auto", or "plain" for torch's own dropout.
        shared: whether one mask [B, H] holds at all steps of inputs [B, T, H] (variational dropout, Gal & Ghahramani
            2016, sec. 4).
    """

    def __init__(self, p: float, kernels: str = "auto", shared: bool = False):
        super().__init__(p)
        self.kernels, self.shared = kernels, shared

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.shared and self.training and self.p > 0 and inputs.dim() == 3 and inputs.shape[1] > 1:
            return inputs * self(torch.ones_like(inputs[:, :1]))
        plain = self.kernels == "plain" or inputs.device.type != "cpu" or torch.compiler.is_compiling()
        dropped = round(self.p * 2**16)
        if plain or not self.training or dropped in (0, 2**16):
            return super().forward(inputs)
        bits = torch.empty(math.ceil(inputs.numel() / 4), dtype=torch.int64).random_(-(2**63), None)
        bits = bits.view(torch.int16)[: inputs.numel()].view(inputs.shape)
        return inputs * (bits >= dropped - 2**15) * (2**16 / (2**16 - dropped))


def product_dtype(tensor: torch.Tensor) -> torch.dtype:
    """In which a product with `tensor` would be taken here: autocast's choice, else its own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def draw(scores: torch.Tensor) -> torch.Tensor:
    """One index a row with probability softmax(scores), [B]; what `torch.multinomial` draws, but not its stream.

    The inverse of the cumulative distribution in two levels: first the block of the vocabulary, then the index in it.
    Only one block a row is summed up entry by entry; on a CPU that is tens of times faster than `multinomial`.

    Args:
        scores: [B, V], float32, -inf where the probability is 0.
    """
    rows, size = scores.shape
    block = 64
    weights = (scores - scores.amax(1, keepdim=True)).exp_()
    blocks = nn.functional.pad(weights, (0, -size % block)).view(rows, -(-size // block), block)  # [B, V / 64, 64]
    totals = blocks.sum(-1).cumsum(1)  # [B, V / 64]
    if not torch.isfinite(totals[:, -1]).all():
        raise RuntimeError("The scores of a next token are not numbers, or all of a row are -inf.")
    # In (0, total], so that the first cumulative sum that reaches it belongs to a positive weight.
    point = (1 - torch.rand(rows, 1, device=scores.device)) * totals[:, -1:]
    chosen = torch.searchsorted(totals, point).clamp(max=totals.shape[1] - 1)  # [B, 1]
    inside = blocks[torch.arange(rows, device=scores.device), chosen.squeeze(1)].cumsum(1)  # [B, 64]
    before = totals.gather(1, chosen) - inside[:, -1:]
    # The two sums round differently: stay inside the block, and off the weights that are 0.
    rest = (point - before).clamp(min=torch.finfo(scores.dtype).tiny).minimum(inside[:, -1:])
    return (chosen * block + torch.searchsorted(inside, rest)).squeeze(1)
