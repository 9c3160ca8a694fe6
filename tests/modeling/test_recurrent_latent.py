"""The VRNN's recursion as one function, against the loop under autograd that it stands for."""

import pytest
import torch
from torch import nn

from hf_vrae import VRNNConfig, VRNNForSequenceGeneration
from hf_vrae.modeling import vrnn
from hf_vrae.modeling.recurrent import GRU, LAYERS
from hf_vrae.modeling.vrnn import VRNNLayer


def unrolled(layer, kernels, inputs, samples, names=("z", "features", "hidden")):
    """What [`VRNNLayer.unroll`] gives, and a loss that hangs on each part at each step in its own way."""
    phi_x, lengths, noise = inputs
    layer.config.kernels = kernels
    torch.manual_seed(1)  # of dropped weights
    path = layer.unroll(phi_x, lengths, noise[:samples])
    parts = [getattr(path, name) for name in names]
    parts += [getattr(d, name) for d in (path.posterior, path.prior) for name in ("mean", "logvar")]
    scales = torch.linspace(0.5, 2, 5, dtype=torch.float64).view(1, -1, 1)
    return parts, sum((i + 1) * (part * scales).sin().sum() for i, part in enumerate(parts))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("options", [{}, {"residual_posterior": True}, {"smoothing_posterior": True}], ids=str)
@pytest.mark.parametrize("rnn_type", ["lstm", "gru"])
def test_a_path_by_one_function_is_that_of_the_loop(rnn_type, options, samples, monkeypatch):
    """Values and all gradients, under weight dropout, with log-variances beyond both ends of their clamp."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 5, "latent_size": 3, "hidden_size": 7, "feature_size": 6, "weight_dropout": 0.3}
    layer = VRNNLayer(VRNNConfig(rnn_type=rnn_type, dropout=0.0, **sizes, **options)).double().train()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    nn.init.zeros_(layer.posterior_network.moments.bias)
    nn.init.ones_(layer.posterior_network.features[0].bias)  # most of them live
    monkeypatch.setattr("hf_vrae.modeling.recurrent_latent.MIN_LOGVAR", -1.0)
    monkeypatch.setattr("hf_vrae.modeling.recurrent_latent.MAX_LOGVAR", 1.0)
    monkeypatch.setattr(vrnn, "MIN_LOGVAR", -1.0)
    monkeypatch.setattr(vrnn, "MAX_LOGVAR", 1.0)
    phi_x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    inputs = phi_x, torch.tensor([5, 3]), torch.randn(3, 2, 5, 3, dtype=torch.float64)
    found = []
    for kernels in ("plain", "auto"):
        parts, loss = unrolled(layer, kernels, inputs, samples)
        assert any("SamplePath" in type(node).__name__ for node in ancestors(loss)) == (kernels == "auto")
        weights = [weight for name, weight in layer.named_parameters() if "phi_x" not in name]
        found.append((parts, torch.autograd.grad(loss, [phi_x, *weights])))
    logvar = found[0][0][4]
    assert (logvar.abs() == 1).any() and (logvar.abs() < 1).any()
    torch.testing.assert_close(found[1], found[0])
    stacked, stack = [], torch.stack
    monkeypatch.setattr(torch, "stack", lambda *args: stacked.append(args) or stack(*args))
    with torch.no_grad():
        torch.testing.assert_close(unrolled(layer, "auto", inputs, samples)[0], found[0][0])
    assert len(stacked) == 4  # what is given out, and nothing that only the backward pass reads


class OtherCell(GRU):
    pass


def test_a_layer_of_ones_own_is_initialised_and_has_no_kernel(monkeypatch):
    monkeypatch.setitem(LAYERS, ("gru", False), OtherCell)
    model = VRNNForSequenceGeneration(VRNNConfig(vocab_size=9, rnn_type="gru", hidden_size=7, feature_size=7)).eval()
    assert type(model.model.layer.rnn) is OtherCell
    path, loss = unrolled(model.model.layer, "auto", (torch.randn(2, 5, 7), None, torch.randn(1, 2, 5, 32)), 1)
    assert not any("SamplePath" in type(node).__name__ for node in ancestors(loss))

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = (nn.Parameter(torch.full((3, 3), 1e30)) for _ in "wb")

    monkeypatch.setitem(LAYERS, ("own", False), Own)
    layer = Own()
    model._init_weights(layer)
    assert layer.weight.abs().max() <= model.config.initializer_range and not layer.bias.any()


def ancestors(tensor):
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return seen
