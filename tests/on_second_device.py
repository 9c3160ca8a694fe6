"""What `test_second_device` runs in a process of its own; prints what went wrong, by name, as JSON.

python tests/on_second_device.py texts
"""

import json
import shutil
import sys
import traceback

import torch
from accelerate import Accelerator, PartialState

from hf_vrae import latent
from hf_vrae.modeling import distributions
from hf_vrae.training.arguments import parse_recipe
from hf_vrae.training.loop import TrainingLoop
from hf_vrae.training.run import run
from tests import second_device
from tests.modeling import test_modeling_vrnn as vrnn
from tests.modeling.test_conditional import conditions_of
from tests.models import (
    CONDITIONAL,
    FRAME_VARIANTS,
    HIERARCHICAL_VARIANTS,
    LANGUAGE_MODELS,
    SEPARATORS,
    VARIANTS,
    make_frame_model,
    make_frames,
    make_hierarchical_frame_model,
    make_hierarchical_model,
    make_model,
    make_tokens,
)
from tests.scripts import script
from tests.training.conftest import TINY

RUNS = {
    "vrae": "--posterior batch_norm --minimum_rate 7 --word_noise 0.1 --weight_dropout 0.1 --variational_dropout True",
    "aggressive": "--aggressive --eval_strategy epoch --max_steps 1",
    "semi-amortised": "--svi_steps 2 --kernels plain",
    "importance-weighted": "--num_train_samples 3",
    "frames": "--builtin frames --predict_length",
}
# Which rows have a label, which words are drawn, how much is concentrated: these look first.
RUNS_THAT_WAIT = {
    "vmf": "--posterior vmf --kl_schedule constant --scheduled_sampling 0.5",
    "semi-supervised": "--label_columns tense --label_classifier True --max_labeled_samples 90",
}


def on_the_device(batch):
    return {name: tensor.to(second_device.NAME) for name, tensor in batch.items()}


def said(model, batch):
    """A bound, and what is decoded without noise."""
    given = {name: tensor for name, tensor in batch.items() if name != "labels"}
    generators = [torch.Generator().manual_seed(row) for row in range(len(batch["labels"]))]
    terms = model.evaluation_terms(2, generators, **batch)
    terms = terms["log_weights"].cpu(), terms["kl"].cpu()
    frames = model.config.input_size is not None
    torch.manual_seed(1)
    bound = model.log_importance_weights(3, generator=torch.Generator(), **(batch if frames else given))
    if not frames and model.config.model_type == "vrnn":
        given = {"input_ids": given["input_ids"][:, :1]}
    decoded = model.generate(**given, max_length=7)
    if frames:
        if model.config.model_type == "hierarchical_vrae":  # boundaries of another device than the frames
            segments = torch.arange(given["input_features"].shape[1]).expand(len(given["input_features"]), -1) // 3
            model.generate(**given | {"segment_ids": segments}, max_length=7)
        beginning = torch.zeros(2, model.config.input_size).numpy()
        begun = latent.sample_frames(model, [5, 3], beginning=beginning)["sample"]
        return *terms, bound.cpu(), decoded.sequences.cpu(), torch.as_tensor(begun)
    return *terms, bound.cpu(), decoded.cpu()


def check_model(model, batch):
    wanted = said(model, batch)
    model, batch = model.to(second_device.NAME), on_the_device(batch)
    for found, value in zip(said(model, batch), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4, equal_nan=True)
    model.train()(**batch).loss.backward()
    assert all(p.grad is None or p.grad.device == p.device for p in model.parameters())


def check_missing_label(model, batch):
    """Of a batch on the CPU, as where a file's frames are reconstructed."""
    batch["class_ids"] = torch.tensor([[0], [-100], [2], [-100]])
    wanted = latent.conditions_of(model, batch)["class_ids"]
    assert torch.equal(latent.conditions_of(model.to(second_device.NAME), batch)["class_ids"].cpu(), wanted)


def check_run(flags, waiting):
    """Train and evaluate; most updates never wait for the device to say a number."""
    update, waited = TrainingLoop.update, []

    def watched(self, *args, **options):
        second_device.waits.clear()
        row = update(self, *args, **options)
        waited.extend(second_device.waits)
        return row

    TrainingLoop.update = watched
    shutil.rmtree("run", ignore_errors=True)
    try:
        run(parse_recipe([*TINY.split(), "--output_dir", "run", "--max_steps", "2", *flags.split()]))
    finally:
        TrainingLoop.update = update
    assert bool(waited) == waiting, waited


def check_script(words):
    assert script(words.split()) == 0


def texts():
    made = {name: (make_model(**options), {}) for name, options in (VARIANTS | LANGUAGE_MODELS).items()}
    conditional = {name: make_model(**options) for name, options in CONDITIONAL.items()}
    made |= {name: (model, conditions_of(model)) for name, model in conditional.items()}
    made |= {n: (make_hierarchical_model(**o), {}) for n, o in (HIERARCHICAL_VARIANTS | SEPARATORS).items()}
    checks = {name: (check_model, model, make_tokens() | more) for name, (model, more) in made.items()}
    return checks | of_vrnns("tokens")


def frames():
    made = {name: make_frame_model(**options) for name, options in FRAME_VARIANTS.items()}
    made |= {n: make_hierarchical_frame_model(**o) for n, o in HIERARCHICAL_VARIANTS.items()}
    checks = {name: (check_model, model, make_frames(model)) for name, model in made.items()}
    model = make_frame_model(**CONDITIONAL["semi-supervised"])
    return checks | of_vrnns("frames") | {"a missing label": (check_missing_label, model, make_frames(model))}


def of_vrnns(kind):
    made = {name: vrnn.make_model(kind, **options) for name, options in vrnn.VARIANTS.items()}
    return {f"vrnn, {name}": (check_model, model, vrnn.make_batch(kind)) for name, model in made.items()}


def runs():
    Accelerator.device = PartialState.device = torch.device(second_device.NAME, 0)
    checks = {name: (check_run, flags, False) for name, flags in RUNS.items()}
    checks |= {name: (check_run, flags, True) for name, flags in RUNS_THAT_WAIT.items()}
    # Of the last run.
    evaluate = "scripts/evaluate.py --model run --num_samples 2 --max_samples 9 --free_running"
    generate = "scripts/generate.py run sample --labels past --count 2 --do_sample --seed 3"
    return checks | {"evaluate": (check_script, evaluate), "generate": (check_script, generate)}


def attempt(check, *args) -> str:
    try:
        check(*args)
    except Exception:
        return traceback.format_exc()[-1500:]
    return ""


if __name__ == "__main__":
    torch.manual_seed(0)
    checks = {"texts": texts, "frames": frames, "runs": runs}[sys.argv[1]]()
    if sys.argv[1] != "runs":  # which on a Mac take the CPU
        second_device.HAS_FLOAT64 = False
        distributions.WITHOUT_FLOAT64 += (second_device.NAME,)
    with second_device.SecondDevice():
        found = {name: attempt(*check) for name, check in checks.items()}
    print(json.dumps(found))
