"""From a recipe to a trained, evaluated and documented model in one folder."""

import contextlib
import dataclasses
import json
import logging
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import DatasetDict
from transformers import PreTrainedModel

from ..data.rows import Rows
from ..evaluation.information import in_evaluation_mode
from ..evaluation.likelihood import evaluate
from .accelerator import main_process_first, make_accelerator
from .arguments import Recipe, TrainArguments
from .batches import UpdateBatches
from .checkpoints import checkpoints, find_checkpoint, find_run, prepare_output_dir
from .combinations import check_model
from .loop import TrainingLoop
from .models import OF_THE_LOSS, configuration
from .optimization import make_optimizer
from .quality import measure_quality, peak_memory
from .schedules import KLSchedule
from .tasks import FrameTask, TextTask, lengths, num_truncated

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "huggingface_hub", "numpy")


def run(recipe: Recipe) -> dict:
    """Train by a recipe; `output_dir` then holds the best model, its tokenizer, results.json and metrics.jsonl.

    A run at its end that is resumed is evaluated again: with more samples, say.

    Returns:
        what results.json holds: the metrics of [`evaluate`] on the test split (or, without one, on the validation
        split), and under "run" how they came about.
    """
    recipe.check_data()
    asked, args = recipe, recipe.training
    accelerator = make_accelerator(args)
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    output_dir = Path(args.output_dir)
    if accelerator.is_main_process and not args.resume_from_checkpoint:
        find_run(output_dir, args.overwrite_output_dir)  # which may refuse
    first_stage = args.autoencoder_epochs > 0
    if first_stage:
        # What either stage would refuse is refused before anything is deleted or trained.
        check_model(args, configuration(recipe, **any_data(recipe)))
        if args.resume_from_checkpoint and not is_in_first_stage(args):
            find_checkpoint(output_dir, args.resume_from_checkpoint)
        autoencoder = autoencoder_arguments(args)
        if not args.resume_from_checkpoint:
            before = dataclasses.replace(recipe, training=autoencoder)
            task, data = prepare(before, accelerator)
            model = task.make_model(before, data["train"])
            read_longest(model, task, data)
            make_optimizer(model, args)
            batches = UpdateBatches(data["train"], lengths(data["train"]), None, args, accelerator)
            KLSchedule.of_run(args, batches.steps_per_epoch)
        begin(recipe, accelerator)
        args = pretrain_autoencoder(recipe, autoencoder)
        recipe = dataclasses.replace(recipe, training=args)
    if args.report_to != "none":
        accelerator.init_trackers("hf_vrae", config=recipe.flat())

    task, data = prepare(recipe, accelerator)
    set_seed(args.seed)
    model = task.make_model(recipe, data["train"])
    read_longest(model, task, data)
    loop = TrainingLoop(model, task, data["train"], data["validation"], args, accelerator)
    if not first_stage:
        begin(recipe, accelerator)
    resumed = accelerator.is_main_process and asked.training.resume_from_checkpoint
    if resumed and not loop.is_over():
        asked.save(output_dir / "recipe.yaml")  # by which the next resumption goes on, with what is said anew
    numbers = loop.run()
    if args.num_quality_samples and numbers["resumed_from_step"] < numbers["steps"]:
        numbers["peak_memory_mib"] = peak_memory(accelerator.device)
    if first_stage:
        before = json.loads((output_dir / "autoencoder" / "results.json").read_text())["run"]
        numbers["autoencoder_seconds"] = before["training_seconds"]
    model = loop.plain_model
    if accelerator.is_main_process:
        model.save_pretrained(output_dir)
        task.save(output_dir)

    file, split = output_dir / "results.json", "test" if "test" in data else "validation"
    earlier = json.loads(file.read_text())["run"] if file.is_file() else {}  # by all processes, before one writes it
    metrics = evaluate(
        model,
        data[split],
        loop.collator,
        num_samples=args.num_importance_samples,
        batch_size=args.per_device_eval_batch_size,
        seed=args.seed,
        accelerator=accelerator,
        description=f"Evaluating the {split} split",
        svi_steps=args.svi_steps,
    )
    loop.check_finite(metrics)
    if args.num_quality_samples:
        metrics |= measure_quality(model, task, data, split, recipe, accelerator)
    described = describe_run(accelerator, model, task, data, args.seed) | numbers
    if numbers["resumed_from_step"] == numbers["steps"] == earlier.get("steps"):
        # All of it was trained before: this was another evaluation.
        data_of_both = earlier["data"] | {split: described["data"][split]}
        described = earlier | {"evaluation_command": described["command"], "data": data_of_both}
    results = {"split": split, **metrics, **num_truncated(data[split]), "run": described}
    if accelerator.is_main_process:
        partial = file.with_name("partial-results.json")  # one cut off by a full disk would keep a run from its end
        partial.write_text(json.dumps(results, indent=2) + "\n")
        partial.replace(file)
    if resumed:
        asked.save(output_dir / "recipe.yaml")  # not before its numbers are: an evaluation may be interrupted too
    for tracker in accelerator.trackers:
        tracker.finish()
    return results


def prepare(recipe: Recipe, accelerator: Accelerator) -> tuple[TextTask | FrameTask, DatasetDict]:
    """The task of a run, and its data."""
    with main_process_first(accelerator):  # the others then find the results in the cache
        return (FrameTask if recipe.data.of_frames else TextTask).prepare(recipe)


@torch.no_grad()
def read_longest(model: PreTrainedModel, task: TextTask | FrameTask, data: DatasetDict) -> None:
    """Let the model read the longest sequence of all splits: what has no room for it says so before it trains."""
    split = max(data.values(), key=lambda split: lengths(split).max())
    batch = task.collator()(Rows(split).__getitems__([int(lengths(split).argmax())]))
    with in_evaluation_mode(model):
        model(**batch)


def begin(recipe: Recipe, accelerator: Accelerator) -> None:
    """Make `output_dir` this run's own, unless it goes on with what is there. What else may refuse comes before: a
    misspelt file would have cost a trained model."""
    args = recipe.training
    if accelerator.is_main_process and not args.resume_from_checkpoint:
        prepare_output_dir(args.output_dir, args.overwrite_output_dir)
        recipe.save(Path(args.output_dir) / "recipe.yaml")
    accelerator.wait_for_everyone()
    if not Path(args.output_dir).is_dir():
        raise ValueError(f"`output_dir` {args.output_dir!r} must be on a disk that all machines of the run share.")


def any_data(recipe: Recipe) -> dict:
    """Fields of a configuration as data of this kind will fill them, for what can be checked before they are read."""
    fields = {"input_size": 1} if recipe.data.of_frames else {"vocab_size": 5}
    labels, attributes, vector = recipe.data.conditions
    if labels:
        fields["condition_labels"] = {name: ["any"] for name in labels}
    if attributes or vector:
        fields |= {"condition_attributes": attributes, "condition_size": int(vector is not None)}
    if recipe.data.segment_separators and recipe.model.model_type == "hierarchical_vrae":
        fields["segment_separator_ids"] = [4]
    return fields


def autoencoder_arguments(args: TrainArguments) -> TrainArguments:
    """Those of the first stage of Li et al. 2019: the same model, z still sampled, its KL free of charge."""
    # What says something of a KL that costs nothing, or is of the decoder that is made anew.
    without = (
        *OF_THE_LOSS, "autoencoder_epochs", "max_steps", "kl_cycles", "kl_capacity", "minimum_rate", "aggressive",
        "aggressive_max_epochs", "scheduled_sampling", "num_quality_samples",
    )  # fmt: skip
    return dataclasses.replace(
        args,
        **{name: TrainArguments.__dataclass_fields__[name].default for name in without},
        output_dir=str(Path(args.output_dir) / "autoencoder"),
        num_train_epochs=args.autoencoder_epochs,
        num_importance_samples=1,
        kl_schedule="constant",
        kl_weight=0.0,
    )


def is_in_first_stage(args: TrainArguments) -> bool:
    """Whether a run that is resumed was interrupted before the first checkpoint behind its autoencoder."""
    folder = Path(args.output_dir)
    begun, done = (folder / "autoencoder" / "recipe.yaml").is_file(), (folder / "results.json").is_file()
    return args.resume_from_checkpoint == "latest" and begun and not done and not checkpoints(folder)


def pretrain_autoencoder(recipe: Recipe, autoencoder: TrainArguments) -> TrainArguments:
    """Train an autoencoder by these arguments, unless that is done; returns the arguments of what follows."""
    args, folder = recipe.training, Path(autoencoder.output_dir)
    then = dataclasses.replace(
        args,
        autoencoder_epochs=0.0,
        model_name_or_path=str(folder),
        reset_decoder=True,
        overwrite_output_dir=False,  # done
    )
    if not checkpoints(args.output_dir):  # nothing of what follows is there yet to be resumed
        then.resume_from_checkpoint = None
        for name in ("metrics.jsonl", "samples.jsonl"):
            (Path(args.output_dir) / name).unlink(missing_ok=True)
    if not (folder / "results.json").is_file():
        started = bool(checkpoints(folder))
        autoencoder = dataclasses.replace(
            autoencoder,
            overwrite_output_dir=not started,  # it stopped before its first checkpoint
            resume_from_checkpoint="latest" if started else None,
        )
        run(dataclasses.replace(recipe, training=autoencoder))
    return then


def _command() -> str:
    script = sys.argv[0]  # "" in a console
    with contextlib.suppress(ValueError):  # Windows: from one drive no path leads to another
        script = script and os.path.relpath(script)
    return shlex.join([script, *sys.argv[1:]])


def describe_run(accelerator: Accelerator, model, task, data: DatasetDict, seed: int) -> dict:
    """Where a run's numbers come from: command, seed, versions, hardware, data."""
    gpu = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else None
    return {
        "command": _command(),
        "seed": seed,
        "num_parameters": model.num_parameters(),
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "hardware": gpu or f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "data": {
            split: {
                "sequences": part.num_rows,
                task.unit: task.num_scored(lengths(part)),
                "sha256": task.fingerprint(part),
            }
            for split, part in data.items()
        },
    }
