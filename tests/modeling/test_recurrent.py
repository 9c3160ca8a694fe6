"""Layers against torch and against the paper's equations; masks against shorter sequences."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_vrae.modeling import recurrent
from hf_vrae.modeling.recurrent import LAYERS, RecurrentDecoder, RecurrentEncoder, left_align, run_layer

KINDS = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: f"{'layer-norm ' if kind[1] else ''}{kind[0]}")


def make_layer(kind, input_size=5, hidden_size=4):
    layer = LAYERS[kind](input_size, hidden_size).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("rnn_type", ["lstm", "gru"])
def test_fused_layers_follow_torch_cells(rnn_type):
    layer = make_layer((rnn_type, False))
    cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[rnn_type](5, 4).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    inputs = torch.randn(3, 6, 5, dtype=torch.float64)
    state = [torch.randn(3, 4, dtype=torch.float64) for _ in range(layer.number_of_states)]
    outputs, last = run_layer(layer, inputs, tuple(state))
    for t in range(6):
        state = cell(inputs[:, t], tuple(state) if rnn_type == "lstm" else state[0])
        state = state if rnn_type == "lstm" else (state,)
        torch.testing.assert_close(outputs[:, t], state[0])
    torch.testing.assert_close(last, tuple(state))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rnn_type", ["lstm", "gru"])
def test_a_fused_layer_leaves_autocast_where_the_processor_lacks_the_type(rnn_type, dtype, weights, monkeypatch):
    monkeypatch.setattr("hf_vrae.modeling.recurrent.PACKED_DTYPES", (torch.float32,))
    layer, inputs = LAYERS[rnn_type, False](3, 5).to(weights), torch.randn(2, 4, 3)
    expected, _ = run_layer(layer, inputs.to(weights), lengths=torch.tensor([4, 2]))
    with torch.autocast("cpu", dtype):
        outputs, _ = run_layer(layer, inputs.to(dtype).to(inputs), lengths=torch.tensor([4, 2]))
    assert outputs.dtype == weights
    torch.testing.assert_close(outputs, expected, atol=0.01, rtol=0)
    outputs.sum().backward()
    assert layer.weight_ih_l0.grad.isfinite().all()


@pytest.mark.parametrize(
    ("device", "dtype", "leaves"),
    [("cuda", torch.bfloat16, True), ("cuda", torch.float16, False), ("mps", torch.float16, True)],
)
def test_a_fused_layer_leaves_autocast_where_a_gpu_makes_it_something_else(device, dtype, leaves, monkeypatch):
    """cuDNN's layers would run in float16, for which accelerate scales the loss only where it is asked for."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda name: name == device)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: dtype)
    inputs = SimpleNamespace(device=torch.device(device), dtype=torch.float32)
    assert recurrent.autocast_fails(inputs) == leaves


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rnn_type", ["lstm", "gru"])
def test_small_gradients_survive_bfloat16_on_a_gpu(rnn_type):
    layer, inputs = LAYERS[rnn_type, False](3, 5).cuda(), torch.randn(2, 4, 3, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        outputs, _ = run_layer(layer, inputs)
    (outputs.sum() * 1e-10).backward()
    assert outputs.dtype == torch.float32 and layer.weight_ih_l0.grad.abs().max() > 0


def test_layer_norm_lstm_follows_the_equations():
    layer = make_layer(("lstm", True))
    x, h, c = torch.randn(3, 5).double(), torch.randn(3, 4).double(), torch.randn(3, 4).double()

    def norm(a, gain, bias=0):
        return gain * (a - a.mean(-1, keepdim=True)) / (a.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() + bias

    gates = norm(x @ layer.weight_ih.T, layer.norm_ih.weight) + norm(h @ layer.weight_hh.T, layer.norm_hh.weight)
    i, f, g, o = (gates + layer.bias).split(4, dim=-1)
    new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    new_h = torch.sigmoid(o) * torch.tanh(norm(new_c, layer.norm_c.weight, layer.norm_c.bias))
    outputs, state = run_layer(layer, x.unsqueeze(1), (h, c))
    torch.testing.assert_close(state, (new_h, new_c))
    torch.testing.assert_close(outputs[:, 0], new_h)


def test_layer_norm_gru_follows_the_equations():
    layer = make_layer(("gru", True))
    x, h = torch.randn(3, 5).double(), torch.randn(3, 4).double()
    gates_x = layer.norm_ih(x @ layer.weight_ih.T) + layer.bias
    (r_x, u_x, n_x), (r_h, u_h, n_h) = gates_x.split(4, -1), layer.norm_hh(h @ layer.weight_hh.T).split(4, -1)
    new = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    u = torch.sigmoid(u_x + u_h)
    _, (state,) = run_layer(layer, x.unsqueeze(1), (h,))
    torch.testing.assert_close(state, (1 - u) * new + u * h)


@KINDS
def test_state_after_lengths_is_that_of_the_shorter_sequence(kind):
    layer = make_layer(kind)
    inputs = torch.randn(4, 6, 5, dtype=torch.float64)
    start = tuple(torch.randn(4, 4, dtype=torch.float64) for _ in range(layer.number_of_states))
    _, state = run_layer(layer, inputs, start, torch.tensor([6, 3, 1, 0]))
    for row, length in enumerate([6, 3, 1, 0]):
        alone = tuple(s[row : row + 1] for s in start)
        if length:
            _, alone = run_layer(layer, inputs[row : row + 1, :length], alone)
        for got, wanted in zip(state, alone, strict=True):
            torch.testing.assert_close(got[row : row + 1], wanted)


def test_left_align():
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 0, 0, 0]])
    order, back, lengths = left_align(mask)
    assert lengths.tolist() == [3, 2]
    assert order[0, :3].tolist() == [1, 3, 4] and order[1, :2].tolist() == [0, 1]
    assert back.tolist() == [[0, 0, 0, 1, 2], [0, 1, 1, 1, 1]]


def holes(inputs, gap=7.0):
    """The same real steps with masked ones before, between and after them."""
    rows, steps, width = inputs.shape
    spread = torch.full((rows, 2 * steps + 1, width), gap, dtype=inputs.dtype)
    mask = torch.zeros(rows, 2 * steps + 1)
    spread[:, 1::2], mask[:, 1::2] = inputs, 1
    return spread, mask


@KINDS
@pytest.mark.parametrize("bidirectional", [False, True])
def test_encoder_does_not_see_masked_steps(kind, bidirectional):
    encoder = RecurrentEncoder(*kind, 5, 8, 2, bidirectional).double()
    [nn.init.normal_(parameter) for parameter in encoder.parameters()]
    inputs = torch.randn(3, 4, 5, dtype=torch.float64)
    summary, hidden = encoder(inputs, torch.ones(3, 4), True)
    spread, mask = holes(inputs)
    torch.testing.assert_close(encoder(spread, mask)[0], summary)
    for layer, alone in zip(encoder(spread, mask, True)[1], hidden, strict=True):
        torch.testing.assert_close(layer[:, 1::2], alone)


def test_bidirectional_encoder_reads_both_ways():
    encoder = RecurrentEncoder("lstm", False, 5, 8, 1, True).double()
    inputs = torch.randn(1, 4, 5, dtype=torch.float64)
    summary, _ = encoder(inputs, torch.ones(1, 4))
    _, (forward, _) = run_layer(encoder.layers[0], inputs)
    _, (backward, _) = run_layer(encoder.reverse_layers[0], inputs.flip(1))
    torch.testing.assert_close(summary, torch.cat([forward, backward], -1))


@KINDS
def test_decoder_carries_its_state_over_masked_steps(kind):
    decoder = RecurrentDecoder(*kind, 5, 8, 2, dropout=0.0).double()
    [nn.init.normal_(parameter) for parameter in decoder.parameters()]
    inputs = torch.randn(3, 4, 5, dtype=torch.float64)
    outputs, states, _ = decoder(inputs, [None, None])
    spread, mask = holes(inputs)
    got, got_states, _ = decoder(spread, [None, None], mask=mask)
    torch.testing.assert_close(got[:, 1::2], outputs)
    torch.testing.assert_close(got[:, 2::2], outputs)  # a masked step repeats the latest real output
    torch.testing.assert_close(got_states, states)


@KINDS
def test_gradients(kind):
    layer = make_layer(kind, 3, 2)
    inputs = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    states = tuple(torch.randn(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(layer.number_of_states))
    run = lambda inputs, *states: run_layer(layer, inputs, states, torch.tensor([3, 2]))[1]  # noqa: E731
    torch.autograd.gradcheck(run, (inputs, *states))


def test_dropout_is_between_layers_only():
    decoder = RecurrentDecoder("lstm", False, 5, 8, 2, dropout=0.9)
    inputs = torch.randn(2, 3, 5)
    first = [decoder(inputs, [None, None], output_hidden_states=True)[2] for _ in range(2)]
    torch.testing.assert_close(first[0][0], first[1][0])
    assert not torch.equal(first[0][1], first[1][1])


@KINDS
@pytest.mark.parametrize("kernels", ["auto", "plain"])
def test_dropped_weights_are_the_same_at_every_step_and_only_in_training(kind, kernels):
    decoder = RecurrentDecoder(*kind, 5, 8, 1, dropout=0.0, weight_dropout=0.5, kernels=kernels)
    [nn.init.normal_(parameter) for parameter in decoder.parameters()]
    layer, inputs = decoder.layers[0], torch.randn(2, 4, 5)
    torch.manual_seed(0)
    outputs, states, _ = decoder(inputs, [None])
    outputs.sum().backward()
    torch.manual_seed(0)
    dropped = recurrent.drop_weights(layer)
    assert 0 < (dropped == 0).float().mean() < 1
    assert not layer.recurrent_weight.grad[dropped == 0].any() and layer.recurrent_weight.grad[dropped != 0].any()
    layer.recurrent_weight.data = dropped.detach()
    decoder.eval()
    torch.testing.assert_close(decoder(inputs, [None])[:2], (outputs, states))
