"""The law of the travelling code, and who may import whom."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path("hf_vrae")
MODELING = sorted(PACKAGE.glob("modeling/*.py"))
ALLOWED = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)


def imports(path):
    """(line, level, module, names) of every import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.level, node.module, [alias.name for alias in node.names]


def broken_laws(path):
    siblings = {sibling.stem for sibling in path.parent.glob("*.py")}
    for line, level, module, _ in imports(path):
        if level == 0 and module.split(".")[0] not in ALLOWED:
            yield f"line {line}: imports {module}, which a stranger may not have"
        if level == 0 and module == "__future__":
            yield f"line {line}: turns annotations into strings, and `from_pretrained` needs them"
        if level > 1 or (level == 1 and (module is None or module not in siblings)):
            yield f"line {line}: only `from .sibling import name` travels"
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if any(line.strip().startswith("from .") for line in node.value.splitlines()):
                yield f"line {node.lineno}: transformers takes this text for an import"
        if isinstance(node, ast.ClassDef) and any(part in node.name.lower() for part in ("mamba", "xlstm", "rwkv")):
            yield f"line {node.lineno}: `generate` switches on the class name {node.name}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            if any(isinstance(n, ast.Name) and n.id.endswith("Config") for n in ast.walk(node.args[1])):
                yield f"line {node.lineno}: as remote code a config is of another class"


@pytest.mark.parametrize("path", MODELING, ids=lambda path: path.name)
def test_code_that_travels_keeps_the_law(path):
    assert list(broken_laws(path)) == []


@pytest.mark.parametrize(
    "line",
    ["import numpy", "from __future__ import annotations", "from . import recurrent", "from ..data import grammar",
     "from .nowhere import x", "from hf_vrae.modeling.recurrent import LSTM", '"""\nfrom .x import y\n"""',
     "class MambaVRAE: pass", "isinstance(config, VRAEConfig)", "def f():\n    import scipy"],
)  # fmt: skip
def test_the_law_sees_each_way_of_breaking_it(line, tmp_path):
    path = tmp_path / "modeling_x.py"
    path.write_text(line + "\n")
    (tmp_path / "recurrent.py").touch()
    assert list(broken_laws(path))


# Storeys: what each part of the package may import of the others.
STOREYS = {
    "modeling": set(),
    "data": set(),
    "latent": {"data"},
    "evaluation": {"data", "latent"},
    "markdown": set(),
    "plots": {"markdown"},
    "hub": {"markdown", "training"},
    "training": {"modeling", "data", "evaluation", "latent", "markdown"},
    "measure": {"data", "evaluation", "latent", "training"},
    "measure_labels": {"data", "evaluation", "latent", "measure", "training"},
    "command_line": {"training"},
    "__init__": {"modeling"},
}
# Within modeling: those without an entry import no sibling.
SIBLINGS = {
    "modeling_latent": {
        "conditioning",
        "distributions",
        "inference",
        "kernels",
        "objectives",
        "posteriors",
        "recurrent",
    },
    "modeling_conditional": {"conditioning", "distributions", "kernels", "modeling_latent"},
    "modeling_frames": {"generation", "heads", "kernels", "modeling_latent", "recurrent"},
    "modeling_vrae_frames": {
        "conditioning",
        "configuration_vrae",
        "encoders",
        "generation",
        "kernels",
        "modeling_conditional",
        "modeling_frames",
        "modeling_latent",
        "modeling_vrae",
        "recurrent",
    },
    "modeling_vrae": {
        "cache_name",
        "conditioning",
        "configuration_vrae",
        "decoders",
        "encoders",
        "generation_vrae",
        "kernels",
        "modeling_conditional",
        "modeling_latent",
        "posteriors",
        "pretrained",
        "recurrent",
    },
    "encoders": {
        "conditioning",
        "configuration_vrae",
        "distributions",
        "heads",
        "independent",
        "kernels",
        "modeling_latent",
        "posteriors",
        "pretrained",
        "recurrent",
        "transformer",
    },
    "decoders": {
        "cache_name",
        "configuration_vrae",
        "generation",
        "heads",
        "independent",
        "kernels",
        "modeling_latent",
        "pretrained",
        "recurrent",
        "transformer",
    },
    "transformer": {"cache_name", "kernels"},
    "independent": {"kernels", "transformer"},
    "configuration_vrae": {"configuration_common"},
    "configuration_hierarchical": {"configuration_vrae"},
    "hierarchical": {
        "configuration_hierarchical",
        "decoders",
        "encoders",
        "generation",
        "hierarchical_latents",
        "posteriors",
        "recurrent",
    },
    "modeling_hierarchical": {
        "configuration_hierarchical",
        "distributions",
        "generation_vrae",
        "hierarchical",
        "hierarchical_latents",
        "modeling_latent",
        "modeling_vrae",
        "objectives",
    },
    "hierarchical_latents": {
        "configuration_hierarchical",
        "distributions",
        "posteriors",
        "recurrent",
    },
    "generation_vrae": {
        "cache_name",
        "conditioning",
        "encoders",
        "generation",
        "kernels",
        "modeling_conditional",
        "modeling_latent",
    },
    "generation_vrnn": {"cache_name", "generation", "modeling_latent"},
    "modeling_hierarchical_frames": {
        "generation",
        "modeling_frames",
        "modeling_hierarchical",
        "modeling_vrae_frames",
        "recurrent",
    },
    "configuration_vrnn": {"configuration_common"},
    "heads": {"distributions", "kernels"},
    "modeling_vrnn": {
        "cache_name",
        "configuration_vrnn",
        "distributions",
        "generation",
        "generation_vrnn",
        "heads",
        "kernels",
        "modeling_latent",
        "objectives",
        "recurrent",
        "vrnn",
    },
    "vrnn": {"configuration_vrnn", "distributions", "kernels", "posteriors", "recurrent", "recurrent_latent"},
    "modeling_vrnn_frames": {
        "configuration_vrnn",
        "distributions",
        "generation",
        "modeling_frames",
        "modeling_latent",
        "modeling_vrnn",
        "recurrent",
        "vrnn",
    },
    "posteriors": {"distributions", "kernels"},
    "conditioning": {"kernels"},
    "inference": {"distributions", "posteriors"},
    "generation": {"cache_name", "kernels"},
    "recurrent": {"kernels"},
    "recurrent_latent": {"kernels", "posteriors", "recurrent"},
}


def part(path):
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_storeys(path):
    own = part(path)
    for line, level, module, _ in imports(path):
        if level == 0:
            assert module.split(".")[0] != "hf_vrae", f"line {line}: imports inside the package are relative"
            assert module.split(".")[0] != "scripts", f"line {line}: nothing imports the scripts"
            continue
        depth = len(path.relative_to(PACKAGE).parts)
        other = own if level < depth else (module or "").split(".")[0]
        assert other == own or other in STOREYS[own], f"line {line}: {own} must not import {other}"
        if own == "modeling" and level == 1:
            assert module in SIBLINGS.get(path.stem, set()), f"line {line}: {path.stem} must not import {module}"


def test_public_names():
    import hf_vrae

    families = ("VRAEConfig", "VRAEForFrameGeneration", "VRAEForSequenceGeneration")
    others = [f"Hierarchical{name}" for name in families], [name.replace("VRAE", "VRNN") for name in families]
    assert hf_vrae.__all__ == [*others[0], *families, *others[1]]


def test_scripts_are_thin():
    for path in Path("scripts").glob("*.py"):
        lines = path.read_text().split('"""')[2].splitlines()
        assert len([line for line in lines if line.strip()]) < 60, f"{path} holds logic that belongs to the library"
