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
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(self.weight + self.beside.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
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
