"""Each kernel against the plain lines it stands for: values, gradients, and what they refuse."""

import itertools

import pytest
import torch
from torch import nn

from hf_vrae import VRAEConfig, VRAEForSequenceGeneration
from hf_vrae.modeling import kernels, recurrent
from hf_vrae.modeling.kernels import (
    Dropout,
    PackedLinear,
    RecurrentProjection,
    draw,
    linear_cross_entropy,
    linear_nll,
)
from hf_vrae.modeling.recurrent import LAYERS, run_layer

KINDS = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: f"{'layer-norm ' if kind[1] else ''}{kind[0]}")


@pytest.fixture(params=["packed", "without private operators"])
def packing(request, monkeypatch):
    """Both with oneDNN's packed products and without, as on another machine or another torch."""
    if request.param != "packed":
        monkeypatch.setattr(kernels, "PACKED_DTYPES", ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_packed_linear(packing, dtype):
    weight, x = torch.randn(48, 32).to(dtype), torch.randn(5, 32).to(dtype)
    torch.testing.assert_close(PackedLinear(weight, 5)(x), x @ weight.t())


@pytest.fixture(params=[True, False], ids=["oneDNN", "MKL"])
def either_processor(request, monkeypatch):
    """As on AVX512 that is not Intel's and as on other processors."""
    monkeypatch.setattr(kernels, "MKL_IS_SLOW", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [5, 0])
def test_product(either_processor, packing, dtype, rows):
    """Also of transposed matrices, without a copy of the caller's."""
    a, b = torch.randn(rows, 32).to(dtype), torch.randn(32, 48).to(dtype)
    torch.testing.assert_close(kernels.product(a, b), a @ b)
    torch.testing.assert_close(kernels.product(b.t(), a.t()), b.t() @ a.t())


def test_recurrent_projection_in_a_loop(packing):
    weight = torch.randn(6, 6, requires_grad=True)
    start = torch.randn(3, 6, requires_grad=True)

    def loop(project):
        h = start
        for _ in range(4):
            h = project(h).tanh()
        return h.square().sum()

    wanted = torch.autograd.grad(loop(lambda h: h @ weight.t()), (weight, start))
    torch.testing.assert_close(
        torch.autograd.grad(loop(RecurrentProjection(weight, 4, 3, weight.dtype)), (weight, start)), wanted
    )


def test_gradients_taken_apart_do_not_add_up():
    """Of the input first, of the weight later: each must be what one backward pass gives."""
    weight, h = torch.randn(6, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    project = RecurrentProjection(weight, 5, 3, weight.dtype)  # a step more than is used
    loss = sum(project(h).square().sum() for _ in range(4))
    first = torch.autograd.grad(loss, h, retain_graph=True)[0]
    for _ in range(2):
        of_weight, of_input = torch.autograd.grad(loss, (weight, h), retain_graph=True)
    torch.testing.assert_close(first, of_input)
    torch.testing.assert_close(of_weight, torch.autograd.grad(4 * (h @ weight.t()).square().sum(), weight)[0])


def test_frozen_weights_have_no_gradient():
    weight, h = torch.randn(6, 6), torch.randn(3, 6, requires_grad=True)
    out = RecurrentProjection(weight, 1, 3, weight.dtype)(h)
    torch.testing.assert_close(out, h @ weight.t())


@pytest.mark.parametrize("repeats", [None, 1, 3])
@pytest.mark.parametrize("lengths", [None, [4, 1, 0]], ids=["full", "lengths"])
@KINDS
def test_a_loop_is_the_fused_layer(kind, lengths, repeats, packing, monkeypatch):
    """Outputs, states and all gradients, with an input that is the same at every step or without."""
    layer = LAYERS[kind](7, 4).double()
    [nn.init.normal_(parameter) for parameter in layer.parameters()]
    rows = 3 * (repeats or 1)
    inputs = torch.randn(3, 4, 7 if repeats is None else 5, dtype=torch.float64, requires_grad=True)
    constant = None if repeats is None else torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn(rows, 4, dtype=torch.float64, requires_grad=True) for _ in range(layer.number_of_states))
    lengths = None if lengths is None else torch.tensor(lengths * (repeats or 1))
    leaves = [leaf for leaf in (inputs, constant, *state, *layer.parameters()) if leaf is not None]
    found = []
    for kernel, loops in ("plain", False), ("auto", True):
        layer.kernels = kernel
        monkeypatch.setattr(recurrent, "prefers_loop", lambda *args, loops=loops: loops)
        outputs, last = run_layer(layer, inputs, state, lengths, constant)
        if lengths is not None:
            outputs = torch.stack([row[:n].sum(0) for row, n in zip(outputs, lengths, strict=True)])
        loss = outputs.square().sum() + sum((i + 1) * s.sin().sum() for i, s in enumerate(last))
        found.append((outputs, last, torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    ("rnn_type", "hidden_size", "rows", "states", "autocast", "wanted"),
    [
        ("lstm", 1024, 2, 2, True, True),
        ("lstm", 1024, 2, 2, False, False),
        ("lstm", 256, 2, 2, True, False),
        ("gru", 1024, 2, 2, False, True),
        ("gru", 256, 2, 2, False, False),
        ("lstm", 8, 2, 6, False, True),
    ],
)
@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_which_kernel(rnn_type, hidden_size, rows, states, autocast, wanted, has_bfloat16, monkeypatch):
    monkeypatch.setattr(recurrent, "PACKED_DTYPES", (torch.float32, torch.bfloat16)[: 1 + has_bfloat16])
    wanted = wanted and (has_bfloat16 or not autocast)
    layer = LAYERS[rnn_type, False](2, hidden_size)
    inputs, state = torch.zeros(rows, 3, 2), (torch.zeros(states, hidden_size),)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert recurrent.prefers_loop(layer, inputs, state) is wanted
        layer.kernels = "plain"
        assert not recurrent.prefers_loop(layer, inputs, state)


@pytest.mark.parametrize("upstream", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_linear_cross_entropy(either_processor, dtype, upstream):
    """Over several chunks, with labels to ignore."""
    hidden = torch.randn(600, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(20, 8, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, 20, (600,)).masked_fill(torch.rand(600) < 0.2, -100)
    plain = 0.5 * nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    ours = linear_cross_entropy(hidden, weight, labels, scale=0.5)
    torch.testing.assert_close(ours, plain)
    wanted = torch.autograd.grad(upstream * plain, (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(upstream * ours, (hidden, weight)), wanted)
    frozen = linear_cross_entropy(hidden, weight.detach(), labels, scale=0.5)
    assert frozen.grad_fn.saved_tensors[1] is None  # a third of the work
    torch.testing.assert_close(torch.autograd.grad(upstream * frozen, hidden), wanted[:1])


def test_linear_cross_entropy_in_bfloat16_keeps_float32_gradients_of_the_weight():
    hidden, weight = torch.randn(600, 64, requires_grad=True), torch.randn(50, 64, requires_grad=True)
    labels = torch.randint(0, 50, (600,))
    plain = nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, labels)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=0)
    for got, wanted in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, plain)), strict=True):
        assert got.dtype == torch.float32
        assert (got - wanted).norm() < 0.01 * wanted.norm()


def test_linear_cross_entropy_in_float16_loses_no_small_gradients():
    """Those of a mean over many sequences, under a loss scale."""
    hidden, weight = torch.randn(100, 64, requires_grad=True), torch.randn(50, 64, requires_grad=True)
    labels, scale = torch.randint(0, 50, (100,)), 1e-7
    plain = scale * nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    with torch.autocast("cpu", dtype=torch.float16):
        ours = linear_cross_entropy(hidden, weight, labels, scale)
    for got, wanted in zip(
        *(torch.autograd.grad(65536 * loss, (hidden, weight)) for loss in (ours, plain)), strict=True
    ):
        assert (got - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@KINDS
def test_loops_under_autocast(kind, dtype, monkeypatch):
    """Near float32, with float32 gradients of the weights."""
    monkeypatch.setattr(recurrent, "prefers_loop", lambda *args: True)
    layer = LAYERS[kind](6, 16)
    [nn.init.normal_(parameter, std=0.3) for parameter in layer.parameters()]
    inputs = torch.randn(4, 5, 6)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            outputs, _ = run_layer(layer, inputs)
        found.append((outputs.float(), *torch.autograd.grad(outputs.float().square().sum(), layer.parameters())))
    for wanted, got in zip(*found, strict=True):
        assert got.dtype == torch.float32
        assert (got - wanted).norm() < 0.03 * wanted.norm()


def test_no_labels_cost_nothing(either_processor):
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    for rows in (3, 0):
        loss = linear_cross_entropy(hidden[:rows], weight, torch.full((rows,), -100))
        gradients = torch.autograd.grad(loss, (hidden, weight))
        assert loss == 0 and not any(gradient.any() for gradient in gradients)
    assert linear_nll(hidden[:0], weight, torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_linear_nll():
    hidden, weight, labels = torch.randn(1200, 8), torch.randn(20, 8), torch.randint(0, 20, (1200,))
    labels[::7] = -100
    plain = nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    torch.testing.assert_close(linear_nll(hidden, weight, labels), plain)


def test_draws_follow_the_distribution():
    """Chi-square over a vocabulary of several blocks, the last one not full, some words impossible."""
    scores = 2 * torch.randn(200)
    scores[torch.randperm(200)[:50]] = -torch.inf
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    count = 400_000
    drawn = torch.cat([draw(scores.expand(4_000, -1)) for _ in range(count // 4_000)]).bincount(minlength=200)
    torch.random.set_rng_state(generator_state)
    expected = count * scores.softmax(-1)
    assert drawn[expected == 0].sum() == 0
    common = expected > 5
    chi_square = ((drawn - expected)[common].square() / expected[common]).sum().item()
    freedom = common.sum().item() - 1
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_a_certain_word_is_always_drawn():
    for index in (0, 63, 64, 130):
        scores = torch.full((1000, 131), -torch.inf)
        scores[:, index] = -3.0
        assert (draw(scores) == index).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_each_with_probability_p_on_its_own(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 1003, requires_grad=True)  # no multiple of the four elements of a draw
    y = Dropout(p)(x)
    kept = (y != 0).double()
    torch.testing.assert_close(y, (kept * y.max()).float())
    assert abs(y.max().item() - 1 / (1 - p)) < 1e-4 / (1 - p) ** 2
    deviation = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) < 4 * deviation
    flat = kept.flatten() - (1 - p)
    for lag in (1, 2, 3, 4, 1003):  # elements of one draw, of two, of two rows
        assert abs((flat[lag:] * flat[:-lag]).mean().item()) < 4 * p * (1 - p) / kept.numel() ** 0.5
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropout_of_nothing_of_everything_and_outside_of_training():
    x = torch.randn(3, 5)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(3, 5))
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert Dropout(0.5)(x[:0]).shape == (0, 5)
    assert Dropout(0.5)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_no_draw_from_what_is_no_distribution(bad):
    with pytest.raises(RuntimeError, match="not numbers"):
        draw(torch.full((2, 70), bad))


def models(**options):
    """The same model twice, with kernels and without."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "embedding_size": 6, "encoder_hidden_size": 8, "decoder_hidden_size": 8}
    made = [
        VRAEForSequenceGeneration(
            VRAEConfig(**sizes, latent_size=4, dropout=0.0, word_dropout=0.0, kernels=kernel, **options)
        ).double()
        for kernel in ("auto", "plain")
    ]
    for parameter in made[0].parameters():
        nn.init.normal_(parameter, std=0.5)
    made[1].load_state_dict(made[0].state_dict())
    return made


VARIANTS = pytest.mark.parametrize(
    "options",
    [
        {"rnn_type": rnn, "layer_norm": norm, "bidirectional_encoder": both, "latent_conditioning": list(seen)}
        for rnn, norm, both in itertools.product(("lstm", "gru"), (False, True), (False, True))
        for seen in (("initial_state",), ("initial_state", "input"), ("input", "output"))
    ]
    + [{"tie_word_embeddings": True, "decoder_layers": 2}],
    ids=lambda options: "-".join(map(str, options.values())),
)


@VARIANTS
@pytest.mark.parametrize("loops", [False, True], ids=["as chosen", "all loops"])
def test_training_with_kernels_is_training_without(options, loops, monkeypatch):
    ids = torch.tensor([[2, 5, 6, 7, 3, 0], [2, 8, 3, 0, 0, 0], [2, 9, 10, 11, 12, 3]])
    found = []
    for model in models(**options):
        if loops and model.config.kernels == "auto":
            monkeypatch.setattr(recurrent, "prefers_loop", lambda *args: True)
        torch.manual_seed(1)
        labels = model.labels_from_input_ids(ids)
        outputs = model.train()(input_ids=ids, labels=labels)
        outputs.loss.backward()
        assert (outputs.logits is None) == (model.config.kernels == "auto")
        found.append((outputs.loss, outputs.kl, [parameter.grad for parameter in model.parameters()]))
        monkeypatch.undo()
    torch.testing.assert_close(*found)


@VARIANTS
def test_importance_weights_with_kernels_are_those_without(options):
    ids = torch.tensor([[2, 5, 6, 7, 3, 0], [2, 8, 3, 0, 0, 0], [2, 9, 10, 11, 12, 3]])
    found = []
    for model in models(**options):
        z = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found.append(model.eval().log_importance_weights(5, latents=z, input_ids=ids))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("options", [{}, {"rnn_type": "gru"}, {"layer_norm": True}], ids=str)
def test_greedy_tokens_with_kernels_are_those_without(options):
    z = torch.randn(4, 4)
    tokens = [model.float().generate(latents=z, max_length=12).tolist() for model in models(**options)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("options", [{}, {"rnn_type": "gru"}, {"layer_norm": True}], ids=str)
def test_generation_under_autocast(options):
    """Scores near those of float32, of the first step at least: later ones may follow another word."""
    model = models(**options)[0].float()
    z = torch.randn(4, 4)
    scores = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = model.generate(latents=z, max_length=6, output_scores=True, return_dict_in_generate=True)
        scores.append(out.scores[0])
    torch.testing.assert_close(scores[1], scores[0], rtol=0.05, atol=0.1)
