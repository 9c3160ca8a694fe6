"""An adapter beside a linear layer, as peft's LoRA, counts wherever the layer does: no kernel that reads a weight goes
past it."""

import copy

import pytest
import torch
from torch import nn
from transformers import set_seed

from tests.models import (
    FRAME_VARIANTS,
    HIERARCHICAL_VARIANTS,
    VARIANTS,
    make_frame_model,
    make_frames,
    make_hierarchical_model,
    make_model,
    make_tokens,
)

from . import test_modeling_vrnn as vrnn

VRNN = vrnn.VARIANTS | {"residual deep": {"residual_posterior": True, "feature_layers": 2}}
MODELS = {f"vrae {name}": lambda options=options: make_model(**options) for name, options in VARIANTS.items()}
MODELS |= {f"{name} frames": lambda o=options: make_frame_model(**o) for name, options in FRAME_VARIANTS.items()}
MODELS |= {f"vrnn {name}": lambda o=options: vrnn.make_model(**o) for name, options in VRNN.items()}
MODELS |= {
    "vrnn frames": lambda: vrnn.make_model("frames"),
    "vrnn nade": lambda: vrnn.make_model("frames", head="nade"),
    "vrnn plain": lambda: vrnn.make_model(kernels="plain"),
    "vrnn fivo": lambda: vrnn.make_model(num_train_samples=3, resampling=True, dropout=0.1),
    "vrnn frames fivo": lambda: vrnn.make_model("frames", num_train_samples=3, resampling=True, feature_layers=2),
}
MODELS |= {
    f"hierarchical {name}": lambda o=options: make_hierarchical_model(**o)
    for name, options in HIERARCHICAL_VARIANTS.items()
}


class Adapted(nn.Module):
    """A linear layer with something beside it that its `weight` does not tell, as peft's."""

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.base_layer, self.beside = linear, nn.Linear(self.in_features, self.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.beside(x)

    def merged(self) -> nn.Linear:
        return plain_linear(self.weight + self.beside.weight, self.bias)


def plain_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def replace(model: nn.Module, kind: type, by) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind) and not isinstance(parent, Adapted):
                setattr(parent, name, by(child))


def make_batch(model):
    if model.config.model_type == "vrnn":
        batch = vrnn.make_batch("tokens" if model.config.input_size is None else "frames")
        if model.config.head == "nade":
            batch["input_features"], labels = (batch["input_features"] > 0).float(), batch["labels"]
            batch["labels"] = torch.where(labels.isnan(), labels, (labels > 0).float())
        return batch
    return make_tokens() if model.config.input_size is None else make_frames(model)


def values(model, batch):
    """All that a model is asked for, and the loss of training."""
    found = {}
    for grad in (True, False):
        set_seed(1)
        with torch.set_grad_enabled(grad):
            found[f"loss {grad}"] = model.eval()(**batch).loss
            if model.config.latent_size:
                weights = model.log_importance_weights(num_samples=3, **batch)
                found[f"weights {grad}"] = weights[0] if isinstance(weights, tuple) else weights
    set_seed(1)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    generated = model.generate(**inputs, max_length=12, do_sample=False)
    found["generated"] = getattr(generated, "sequences", generated)
    set_seed(1)
    found["training"] = model.train()(**batch).loss
    return found


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_counts(name):
    model = MODELS[name]()
    adapted = copy.deepcopy(model)
    replace(adapted, nn.Linear, Adapted)
    merged = copy.deepcopy(adapted)
    replace(merged, Adapted, Adapted.merged)
    batch = make_batch(model)
    found, expected, without = (values(m, batch) for m in (adapted, merged, model))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    assert not torch.equal(found["training"], without["training"])
    found["training"].backward()
    gradients = {n: p.grad for n, p in adapted.named_parameters() if "beside" in n}
    assert gradients
    unread = [n for n, gradient in gradients.items() if gradient is None or not gradient.abs().sum() > 0]
    assert not unread


class AdaptedTable(nn.Module):
    """A table of words with something beside it, as peft's; of `nn.Embedding` it has no more than these."""

    weight = property(lambda self: self.base_layer.weight)

    def __init__(self, table: nn.Embedding):
        super().__init__()
        self.base_layer, self.beside = table, nn.Embedding(*table.weight.shape)

    def forward(self, ids):
        return self.base_layer(ids) + self.beside(ids)


@pytest.mark.parametrize("name", ["vrae lstm", "vrae transformer", "vrnn lstm", "hierarchical segments"])
def test_an_adapter_of_the_table_of_words_counts(name):
    model = MODELS[name]()
    adapted, merged = copy.deepcopy(model), copy.deepcopy(model)
    replace(adapted, nn.Embedding, lambda table: AdaptedTable(table) if len(table.weight) > 30 else table)
    tables = [part for part in adapted.modules() if isinstance(part, AdaptedTable)]
    plain = [part for part in merged.modules() if isinstance(part, nn.Embedding) and len(part.weight) > 30]
    with torch.no_grad():
        for table, own in zip(tables, plain, strict=True):
            own.weight.add_(table.beside.weight)
    batch = make_batch(model)
    found, expected = (values(m, batch) for m in (adapted, merged))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Quantized(nn.Module):
    """A linear layer whose weight is kept in integers, as bitsandbytes keeps it."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        assert x.is_floating_point()
        weight = self.weight * self.scale
        return nn.functional.linear(x.to(weight.dtype), weight, self.bias).to(x.dtype)

    def dequantized(self) -> nn.Linear:
        return plain_linear(self.weight * self.scale, self.bias)


@pytest.mark.parametrize("name", MODELS)
def test_weights_kept_in_integers_are_no_type_of_what_they_multiply(name):
    model = MODELS[name]()
    quantized = copy.deepcopy(model)
    replace(quantized, nn.Linear, Quantized)
    plain = copy.deepcopy(quantized)
    replace(plain, Quantized, Quantized.dequantized)
    batch = make_batch(model)
    found, expected = (values(m, batch) for m in (quantized, plain))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    if model.config.latent_size:
        found, expected = (m.prior().mean for m in (quantized, plain))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_weights_kept_in_integers_serve_beside_bfloat16(name):
    model = MODELS[name]().bfloat16()
    replace(model, nn.Linear, Quantized)
    found = values(model, make_batch(model))
    assert found["loss True"].isfinite() and found["loss False"].isfinite() and found["training"].isfinite()


def replica_of(model: nn.Module) -> nn.Module:
    """What nn.DataParallel runs on each device, whose weights are attributes and no parameters."""
    parts = {id(part): part._replicate_for_data_parallel() for part in model.modules()}
    for part in model.modules():
        replica = parts[id(part)]
        replica._former_parameters = dict(part._parameters)
        for name, weight in part._parameters.items():
            setattr(replica, name, None if weight is None else weight.view_as(weight))
        for name, child in part._modules.items():
            replica._modules[name] = None if child is None else parts[id(child)]
    return parts[id(model)]


@pytest.mark.parametrize("name", MODELS)
def test_replicas_of_data_parallel_compute_the_loss(name):
    """Trainer wraps a model so, where it sees several GPUs and no launcher has spread it."""
    model = MODELS[name]()
    batch, losses = make_batch(model), []
    for each in (model, replica_of(model)):
        set_seed(1)
        losses.append(each.eval()(**batch).loss)
    torch.testing.assert_close(*losses)
