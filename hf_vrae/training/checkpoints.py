"""Checkpoint folders: written whole or not at all, and no more of them than asked for."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file

RUN_FILES = (
    "metrics.jsonl",
    "samples.jsonl",
    "samples.npz",
    "results.json",
    "samples.png",
    "curves.png",
    "recipe.yaml",
    "README.md",
    "nan_batch.json",
)
"""What a run writes into its folder beside checkpoints and the model itself."""
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
PARTIAL = ("partial-checkpoint-*", "partial-results.json")
"""What a run that was killed may leave there half written."""
MARKS = ("recipe.yaml", "metrics.jsonl", "results.json", "config.json")
"""Those of which a folder has one at least that holds a run."""


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The folder's checkpoints `checkpoint-STEP`, by step."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(folders, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def find_checkpoint(output_dir: str | Path, name: str) -> Path:
    """The checkpoint of this path, which must be the run's, or the newest one of the run for "latest"."""
    if name == "latest":
        found = checkpoints(output_dir)
        if not found:
            raise ValueError(
                f"`resume_from_checkpoint` is 'latest', but {str(output_dir)!r} holds no checkpoint. Leave it out; "
                "where that run was begun, with --overwrite_output_dir."
            )
        return found[-1]
    path = Path(name)
    if not (path / "state.json").is_file():
        raise ValueError(f"`resume_from_checkpoint` must be 'latest' or a checkpoint folder of a run; got {name!r}.")
    if path.resolve().parent != Path(output_dir).resolve():
        raise ValueError(
            f"`resume_from_checkpoint` {name!r} is not of the run in `output_dir` {str(output_dir)!r}, and a run goes "
            "on in its own folder. Name that folder, or begin a new run at that model: --model_name_or_path."
        )
    return path


def find_run(output_dir: str | Path, overwrite: bool) -> list[Path]:
    """Files and folders of an earlier run that are to be deleted: none, or those of a run to overwrite.

    Raises:
        ValueError: where the folder holds a run and `overwrite` is not set, or is a file, or holds a file of no run
            that this one would write over.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`output_dir` {str(folder)!r} is a file. Name a folder.")
    files = [folder / name for name in (*RUN_FILES, *MODEL_FILES) if (folder / name).exists()]
    first_stage = folder / "autoencoder"
    folders = checkpoints(folder) + [first_stage] * (first_stage / "recipe.yaml").is_file()
    if [path.name for path in files] == ["README.md"] and not folders:
        return []  # someone's own, over which no card is written
    if files and not folders and not any((folder / name).exists() for name in MARKS):
        raise ValueError(
            f"`output_dir` {str(folder)!r} holds {files[0].name!r} and no run that it is of; this run would write "
            "over it. Move it away, or name another folder."
        )
    if (files or folders) and not overwrite:
        raise ValueError(
            f"`output_dir` {str(folder)!r} already holds a run. Name another folder, go on with that run by "
            "--resume_from_checkpoint latest, or delete it by --overwrite_output_dir."
        )
    parts = [path for name in PARTIAL for path in folder.glob(name)] + list((folder / "judges").glob("*/model"))
    return files + folders + (parts if files or folders else [])


def prepare_output_dir(output_dir: str | Path, overwrite: bool) -> None:
    """Make the folder, and delete the run in it where asked to; other files in it are left alone."""
    for path in find_run(output_dir, overwrite):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    Path(output_dir).mkdir(parents=True, exist_ok=True)


def save_checkpoint(accelerator: Accelerator, model, task, state: dict, output_dir: str | Path) -> Path:
    """Write everything that an exact resumption needs to `output_dir/checkpoint-STEP`; every process must call this.

    The folder also loads with `from_pretrained`. It is written under another name and renamed when complete.

    Raises:
        OSError: where it cannot be written; the earlier ones are whole.
    """
    target = Path(output_dir) / f"checkpoint-{state['step']}"
    partial = target.with_name(f"partial-{target.name}")
    if accelerator.is_main_process:
        for left in partial.parent.glob("partial-checkpoint-*"):  # where a run was killed in here
            shutil.rmtree(left, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(partial)  # optimizer, gradient scaler, random states; the model by the hook below
        accelerator.wait_for_everyone()  # each process writes random states of its own
        if accelerator.is_main_process:
            # By the names of the modules, which `load_weights` reads: transformers has others for some in files.
            accelerator.unwrap_model(model).save_pretrained(partial, save_original_format=False)
            task.save(partial)
            (partial / "state.json").write_text(json.dumps(state, indent=2))
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:  # torch has its own words for a full disk
        raise OSError(
            f"The checkpoint {str(target)!r} cannot be written ({str(error).strip()}). Is the disk full? The ones "
            "before it are whole: make room, and go on with --resume_from_checkpoint latest."
        ) from error
    accelerator.wait_for_everyone()
    return target


def use_plain_model_files(accelerator: Accelerator) -> None:
    """Let `save_state` leave the weights to `save_pretrained`, and `load_state` read what that wrote.

    Accelerate's own file has the names of the wrapped model, which neither `from_pretrained` nor a resumption with
    another number of processes would find.
    """
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())

    def load(models, folder):
        while models:
            load_weights(accelerator.unwrap_model(models.pop()), folder)

    accelerator.register_load_state_pre_hook(load)


def load_weights(model, folder: str | Path) -> None:
    """Read the weights of a checkpoint folder into a model."""
    weights = load_file(Path(folder) / "model.safetensors")
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # torch reports another shape in this way
        first = str(error).splitlines()[1].strip()
        raise ValueError(f"The checkpoint {str(folder)!r} is of another shape: {first}") from error
    missing = set(missing) - set(model.all_tied_weights_keys)
    if missing or unexpected:
        name = sorted(missing | set(unexpected))[0]
        raise ValueError(f"The checkpoint {str(folder)!r} is of another model: it differs in {name!r}.")


@contextlib.contextmanager
def damage_named(folder: str | Path) -> Iterator[None]:
    """Say of a checkpoint's file that cannot be read whose it is, and what to do.

    Raises:
        ValueError: in the place of what readers of files raise.
    """
    try:
        yield
    except (OSError, EOFError, RuntimeError, UnpicklingError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"The checkpoint {str(folder)!r} cannot be read ({str(error).strip()}). If it is damaged, delete it, and "
            "--resume_from_checkpoint latest takes the one before."
        ) from error


def remove_old_checkpoints(output_dir: str | Path, limit: int, keep: int | None, step: int) -> None:
    """Delete all but that of step `keep` and the newest `limit` checkpoints up to `step`; those beyond are of a course
    that the run has left, by resuming from an earlier one."""
    found = [path for path in checkpoints(output_dir) if path.name != f"checkpoint-{keep}"]
    others = [path for path in found if _step(path) <= step]
    for path in found:
        if path not in others[-limit:]:
            shutil.rmtree(path)
