"""Recipes trained one after the other, and their results in one table beside the published ones."""

import json
import logging
import math
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from ..markdown import escaped
from .arguments import Recipe, parse_recipe
from .checkpoints import RUN_FILES, checkpoints
from .run import run

logger = logging.getLogger(__name__)

# Column, key of results.json, digits.
COLUMNS = [
    ("NLL (IW)", "nll_iw", 2),
    ("PPL (IW)", "ppl_iw", 2),
    ("-ELBO", "neg_elbo", 2),
    ("reconstruction", "reconstruction", 2),
    ("KL", "kl", 2),
    ("MI", "mutual_information", 2),
    ("MI of 32", "mutual_information_32", 2),
    ("AU", "active_units", 0),
]
# Nats per step: the total over all steps, and (mean) the mean over the sequences of each one's own.
COLUMNS_OF_FRAMES = [
    ("-ELBO", "neg_elbo_per_step", 3),
    ("-ELBO (mean)", "neg_elbo_mean_of_means", 3),
    ("IW", "nll_iw_per_step", 3),
    ("IW (mean)", "nll_iw_mean_of_means", 3),
    ("FIVO", "nll_fivo_per_step", 3),
    ("FIVO (mean)", "nll_fivo_mean_of_means", 3),
    ("KL", "kl_per_step", 3),
]
# Beside them where some row has it: of one value on a grid a frame, and of q(c|x) with few labels.
COLUMNS_OF_SOME = [("bits per value (IW)", "bits_per_value", 3), ("label accuracy", "label_accuracy", 3)]
# What `num_quality_samples` adds to a row, in the units of its name.
COLUMNS_OF_QUALITY = [
    ("accuracy, teacher-forced", "teacher_forced_accuracy", 3),
    ("free-running", "free_running_accuracy", 3),
    ("frame accuracy, teacher-forced", "teacher_forced_frame_accuracy", 3),
    ("free-running", "free_running_frame_accuracy", 3),
    ("RMSE, teacher-forced", "teacher_forced_rmse", 3),
    ("free-running", "free_running_rmse", 3),
    ("self-BLEU", "self_bleu", 1),
    ("reverse PPL", "reverse_ppl", 2),
    ("tokens/s, training", "tokens_per_second", 0),
    ("generating", "generated_tokens_per_second", 0),
    ("frames/s, training", "frames_per_second", 0),
    ("generating", "generated_frames_per_second", 0),
    ("peak MiB", "peak_memory_mib", 0),
]
NOTE_OF_RECONSTRUCTION = (
    "Reconstruction is greedy, from the posterior's mode: teacher-forced, each step is told the true ones before it, "
    "free-running what was said there; peak memory is that of the process that trained, on a CPU its libraries "
    "included."
)
NOTE_OF_REVERSE_PPL = (
    "Reverse PPL is that of the evaluated texts under a small language model that learnt from the samples."
)
COLUMNS_OF_FIVO = [("NLL (FIVO)", "nll_fivo", 2), ("PPL (FIVO)", "ppl_fivo", 2)]  # beside them, of text
KEYS = [
    key for _, key, _ in COLUMNS + COLUMNS_OF_FIVO + COLUMNS_OF_FRAMES + COLUMNS_OF_SOME + COLUMNS_OF_QUALITY
]  # that may be `published`
# Arguments of a row's folder, and of what is written there on the way: another one makes no other model of it.
NO_MATTER = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "model_name_or_path", "logging_steps",
    "save_steps", "save_total_limit", "report_to", "dataloader_num_workers", "preprocessing_num_workers",
}  # fmt: skip
# Flags of a run alone, and what does their work for rows.
OF_A_RUN = {
    "--config": "Put it into the folder",
    "--push_to_hub": "Use scripts/push_to_hub.py",
    "--overwrite_output_dir": "Delete those that are to be trained anew",
    "--resume_from_checkpoint": "They go on by themselves",
    "--model_name_or_path": "Say `begins_at` in the recipe",
}
# The columns of a short table, of text and of frames.
SHORT = ["nll_iw", "ppl_iw", "kl", "mutual_information", "active_units", "nll_iw_per_step", "kl_per_step"]


def find_recipes(folder: str | Path) -> list[Path]:
    """The folder's recipes that are rows, those with a `title`, by name.

    Raises:
        ValueError: where there is none, or one whose `title` or `published` numbers are none.
    """
    recipes = [path for path in sorted(Path(folder).glob("*.yaml")) if "title" in _read(path)]
    if not recipes:
        raise ValueError(f"The folder {str(folder)!r} holds no recipe (.yaml) with a `title`.")
    for path in recipes:
        title, published = (_read(path).get(name) for name in ("title", "published"))
        if not isinstance(title, str):
            raise ValueError(f"`title` of {str(path)!r} must be text, got {title!r}. Put it in quotes.")
        numbers = published or {}
        if not isinstance(numbers, dict) or not all(isinstance(number, (int, float)) for number in numbers.values()):
            raise ValueError(f"`published` of {str(path)!r} must be of names and numbers, got {published!r}.")
        if wrong := numbers.keys() - KEYS:
            raise ValueError(f"`published` of {str(path)!r} names {min(wrong)!r}; columns are {', '.join(KEYS)}.")
    return recipes


def train_rows(
    recipes: Sequence[Path],
    output_dir: str | Path,
    seeds: Sequence[int],
    flags: Sequence[str],
    script: str | Path | None = None,
) -> None:
    """Train and evaluate each recipe with each seed in `output_dir/NAME-SEED`, unless that is done already.

    An interrupted row goes on from its last checkpoint; a done one is evaluated again where no more than
    `num_importance_samples` has changed, and has grown. A recipe with `begins_at: NAME` starts from the model of that
    row, of the same seed, which is trained first.

    Args:
        recipes: paths.
        flags: of scripts/train.py, for all rows.
        script: that one; where there are not several processes already, it then runs a row with
            `num_quality_samples` in a process of its own, so that peak memory is that row's.

    Raises:
        SystemExit: with the code of a process that failed.
        ValueError: for rows that begin at one another or at none there is, for flags that are no row's, and for an
            interrupted row that was begun with other ones.
    """
    given = {"--" + flag[2:].split("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}
    for name, remedy in OF_A_RUN.items():
        if name in given:
            raise ValueError(f"{name} is of a run alone, and these are rows of recipes of their own. {remedy}.")
    for path in dict.fromkeys(step for row in recipes for step in _chain(row)):
        for seed in seeds:
            folder = Path(output_dir) / f"{path.stem}-{seed}"
            own = ["--config", str(path), *flags, "--output_dir", str(folder), "--seed", str(seed)]
            if first := _read(path).get("begins_at"):
                own += ["--model_name_or_path", str(Path(output_dir) / f"{first}-{seed}")]
            other, done = _what_differs(folder, parse_recipe(own)), (folder / "results.json").is_file()
            said = "; ".join(f"{name} {begun}, now {now}" for name, (begun, now) in other.items())
            begun_with, now = other.get("num_importance_samples", (0, 0))
            more_samples = len(other) == 1 and now > begun_with
            if done and not (more_samples and checkpoints(folder)):
                if other:  # a done one stays what it is
                    logger.warning("%s was begun with %s; delete it to train it anew", folder, said)
                continue
            begun = checkpoints(folder) or checkpoints(folder / "autoencoder")
            if not done and begun and other.keys() - {"num_importance_samples"}:
                raise ValueError(
                    f"The row {str(folder)!r} is not finished, and was begun with {said}. Finish it with the flags "
                    "that it was begun with, delete it, or name another --output_dir."
                )
            if begun:
                own += ["--resume_from_checkpoint", "latest"]
            elif any((folder / name).exists() for name in RUN_FILES):
                own += ["--overwrite_output_dir"]  # it stopped before its first checkpoint
            recipe = parse_recipe(own)
            if script and recipe.training.num_quality_samples and PartialState().num_processes == 1:
                _run_apart([sys.executable, str(script), *own])
            else:
                run(recipe)
                PartialState().wait_for_everyone()


def _what_differs(folder: Path, recipe: Recipe) -> dict[str, tuple]:
    """The arguments that a row was begun with where they are not those of now, and these."""
    if not (folder / "recipe.yaml").is_file():
        return {}  # not begun
    begun = parse_recipe(["--config", str(folder / "recipe.yaml")]).flat()
    now = recipe.flat()
    return {name: (begun[name], now[name]) for name in now if now[name] != begun[name] and name not in NO_MATTER}


def _chain(path: Path) -> list[Path]:
    """The recipes to train in turn: first the one that begins at no other, last this one."""
    chain = [path]
    while first := _read(chain[0]).get("begins_at"):
        path = chain[0].with_name(f"{first}.yaml")
        if path in chain:
            raise ValueError(f"`begins_at` of {chain[0].stem!r} is {first!r}, which begins at that row in the end.")
        if not path.is_file():
            raise ValueError(f"`begins_at` of {chain[0].stem!r} is {first!r}, but there is no recipe {str(path)!r}.")
        chain.insert(0, path)
    return chain


def _run_apart(command: Sequence[str]) -> None:
    """Run a command that hears of SIGINT and SIGTERM once, by us, and stop where it fails."""
    with subprocess.Popen(command, start_new_session=True) as process:  # else a terminal's Ctrl-C would reach both
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = [signal.signal(number, lambda number, frame: process.send_signal(number)) for number in numbers]
        code = process.wait()
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
    if code:
        raise SystemExit(code)


def collect(recipes: Sequence[Path], results_dir: str | Path) -> list[dict]:
    """A row for each recipe: its `title` and `published` numbers, and the results of its seeds.

    Args:
        results_dir: holds NAME-SEED/results.json as [`train_rows`] leaves them, or NAME-SEED.json.
    """
    rows = []
    for path in recipes:
        recipe, steps = _read(path), [_runs(step, results_dir) for step in _chain(path)]
        runs = steps[-1]
        complete = [seed for seed in runs if all(seed in step for step in steps)]
        rows.append(
            {
                "name": recipe["title"],
                "published": recipe.get("published") or {},
                "runs": list(runs.values()),
                "minutes": [_minutes([step[seed] for step in steps]) for seed in complete],
                "begins_at": recipe.get("begins_at"),
            }
        )
    return rows


def _runs(path: Path, results_dir: str | Path) -> dict[int, dict]:
    """The results of a recipe's seeds; what a run has left in its folder goes before what was copied out of one."""
    found = [*Path(results_dir).glob("*.json"), *Path(results_dir).glob(f"{path.stem}-*/results.json")]
    names = ((file, file.parent.name if file.name == "results.json" else file.stem) for file in found)
    runs = [_results(file) for file, name in names if name.rpartition("-")[0] == path.stem]
    of_seed = {run["run"]["seed"]: run for run in runs}
    return {seed: of_seed[seed] for seed in sorted(of_seed)}


def _minutes(runs: Sequence[dict]) -> float:
    """That training took, all stages together."""
    return sum(run["run"]["training_seconds"] + run["run"].get("autoencoder_seconds", 0.0) for run in runs) / 60


def _results(path: Path) -> dict:
    try:
        results = json.loads(path.read_text())
    except ValueError:
        results = {}
    if "run" not in results:
        raise ValueError(
            f"{str(path)!r} is not what a run has written, or is cut off. Delete it and run the row anew."
        )
    return results


def comparison_table(rows: Sequence[dict], short: bool = False) -> str:
    """Markdown: a line per row, the mean of its seeds with their standard deviation, published numbers in brackets.

    Args:
        rows: what [`collect`] returns; one without runs stays empty and says so.
        short: leave out rows without runs and all but a few columns, and begin with the best row.
    """
    columns = [column for column in _columns(rows) if column[1] in SHORT or not short]
    described = [("parameters", _parameters), ("minutes", lambda row: _mean(row["minutes"], 1))]
    if short:
        bound, described = columns[0][1], []
        rows = sorted((row for row in rows if row["runs"]), key=lambda row: statistics.mean(_values(row, bound)))
    described.append(("seeds", lambda row: ", ".join(str(run["run"]["seed"]) for run in row["runs"]) or "not run"))
    names = ["", *(name for name, *_ in columns + described)]
    lines = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    for row in rows:
        cells = [escaped(row["name"])]
        for _, key, digits in columns:
            published = row["published"].get(key)
            beside = "" if published is None else f" ({published:.{digits}f})"
            cells.append(_mean(_values(row, key), digits) + beside)
        cells += [say(row) for _, say in described]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _values(row: dict, key: str) -> list[float]:
    """Of those of a row's runs that have one."""
    values = [(run | run["run"]).get(key) for run in row["runs"]]
    return [value for value in values if value is not None]


def _parameters(row: dict) -> str:
    return f"{row['runs'][0]['run']['num_parameters']:,}" if row["runs"] else ""


def _columns(rows: Sequence[dict]) -> list[tuple[str, str, int]]:
    """Those of the likelihood, where some row has quality fewer of them, and what else some row has."""
    columns = COLUMNS_OF_FRAMES if _of_frames(rows) else COLUMNS
    known = {key for row in rows for run in row["runs"] for key in run | run["run"]}
    more, quality = ([c for c in some if c[1] in known] for some in (COLUMNS_OF_SOME, COLUMNS_OF_QUALITY))
    if not _of_frames(rows):
        if quality:
            columns = [column for column in columns if column[1] not in ("reconstruction", "mutual_information_32")]
        columns = columns[:2] + [column for column in COLUMNS_OF_FIVO if column[1] in known] + columns[2:]
    return columns + more + quality


def _names_of(rows: Sequence[dict], ran_so: Callable[[dict], bool]) -> set[str]:
    """The rows that ran so, or "all"."""
    names = {row["name"] for row in rows for run in row["runs"] if ran_so(run)}
    if names == {row["name"] for row in rows if row["runs"]}:
        return {"all"}
    return {" / ".join(sorted(names))} if names else set()  # a name may have commas


def _usual(rows: Sequence[dict], of_run: Callable[[dict], Any]) -> set[str]:
    """What most rows have, and those that have another: bounds of other K are not comparable to a tenth of a nat, nor
    minutes of other hardware."""
    counts = Counter(value for row in rows for value in set(map(of_run, row["runs"])))
    usual = min(counts, key=lambda value: (-counts[value], value))
    others = (
        f"{value} of {names}"
        for value in sorted(counts.keys() - {usual})
        for names in _names_of(rows, lambda run, value=value: of_run(run) == value)
    )
    mixed = sorted(row["name"] for row in rows if len(set(map(of_run, row["runs"]))) > 1)
    unequal = f" (not the same for all seeds of {' / '.join(mixed)})" if mixed else ""
    return {", but ".join(filter(None, (str(usual), " and ".join(others)))) + unequal}


def comparison_notes(rows: Sequence[dict]) -> str:
    """What the table's numbers are of: samples, sequences, hardware, versions."""
    runs = [run for row in rows for run in row["runs"]]
    if not runs:
        return "No row has been run.\n"
    distinct = {
        "K": _usual(rows, lambda run: run["num_samples"]),
        "sequences": {run["num_sequences"] for run in runs},
        "steps": {run["num_steps"] for run in runs if "num_steps" in run},
        "sequences of MI": {run["mi_num_sequences"] for run in runs if "mi_num_sequences" in run},
        "units": {run["units"] for run in runs if "units" in run},
        "samples": {run["num_quality_samples"] for run in runs if "num_quality_samples" in run},
        "self-BLEU of as many real texts": _rounded(runs, "reference_self_bleu", 1),
        "reverse PPL of as many real texts": _rounded(runs, "reference_reverse_ppl", 2),
        "hardware": _usual(rows, lambda run: run["run"]["hardware"]),
        "in bf16": _names_of(rows, lambda run: run["run"]["mixed_precision"] == "bf16"),
        "in fp16": _names_of(rows, lambda run: run["run"]["mixed_precision"] == "fp16"),
        "in several processes": _names_of(rows, lambda run: run["run"]["num_processes"] > 1),
        "torch": {run["run"]["versions"]["torch"] for run in runs},
        "SHA-256 of the evaluated split": {run["run"]["data"][run["split"]]["sha256"][:12] for run in runs},
    }
    if _of_frames(rows):
        del distinct["sequences of MI"]
    else:
        distinct["MI and AU of the global z alone"] = _names_of(rows, lambda run: "kl_global" in run)
        of_steps = _names_of(rows, lambda run: run["kl"] > 0 and "mutual_information" not in run)
        distinct["AU of posterior means that are averaged over the steps"] = of_steps
        # It cannot, but where the prior knows the condition, and what z repeats of that is told too.
        beyond = _names_of(rows, lambda run: run.get("mutual_information", 0) > run["kl"] + 0.05)
        distinct["MI above the KL, since it counts what z tells of the condition"] = beyond
    said = [f"{name}: {', '.join(map(str, sorted(values)))}" for name, values in distinct.items() if values]
    unit = "Nats per step, of all steps together or (mean) the mean of each sequence's own"
    if not _of_frames(rows):
        unit = "Nats per sequence where nothing else is said"
    stages = " Minutes include those of the row that a row starts from." if any(r["begins_at"] for r in rows) else ""
    quality = f" {NOTE_OF_RECONSTRUCTION}" if distinct["samples"] else ""
    if any("reverse_ppl" in run for run in runs):
        quality += f" {NOTE_OF_REVERSE_PPL}"
    published = " In brackets: published." if any(row["published"] for row in rows) else ""
    return "; ".join(said) + f".{published} {unit}.{stages}{quality}\n"


def table_and_notes(rows: Sequence[dict]) -> str:
    """What `table.md` holds."""
    return comparison_table(rows) + "\n" + comparison_notes(rows)


def _rounded(runs: Sequence[dict], key: str, digits: int) -> set[str]:
    return {f"{run[key]:.{digits}f}" for run in runs if key in run}


def _of_frames(rows: Sequence[dict]) -> bool:
    results = (row["published"] | {key: 0 for run in row["runs"] for key in run} for row in rows)
    return any(key.endswith("_per_step") for row in results for key in row)


def points(rows: Sequence[dict]) -> list[dict]:
    """Each row's mean rate and distortion, as `plots.plot_rate_distortion` takes them."""
    names = ("kl", "reconstruction", "true_nll")
    return [
        {"name": row["name"]} | {name: statistics.mean(values) for name in names if (values := _values(row, name))}
        for row in rows
        if row["runs"]
    ]


# Title of a panel, the key of each of its series, and the key of what these are held against. Where z has scales, MI
# is of that of the whole, and so is the KL beside it.
PANELS = [
    ("NLL (IW), nats (dashed: best possible p(x))", {"": "nll_iw"}, "true_nll"),
    ("what z of the whole tells, nats", {"KL": "kl_global kl", "MI": "mutual_information"}, None),
    (
        "reconstruction, accuracy",
        {"teacher-forced": "teacher_forced_accuracy", "free-running": "free_running_accuracy"},
        None,
    ),
    ("reverse PPL (dashed: of real texts)", {"": "reverse_ppl"}, "reference_reverse_ppl"),
    ("self-BLEU (dashed: of real texts)", {"": "self_bleu"}, "reference_self_bleu"),
    ("tokens/s", {"training": "tokens_per_second", "generating": "generated_tokens_per_second"}, None),
]


def panels(rows: Sequence[dict]) -> tuple[list[str], dict, dict]:
    """The rows that were trained as `plots.plot_comparison` takes them: their names, the measures that some of them
    has, and what each measure is held against."""
    trained = [row for row in rows if row["runs"]]

    def means(keys: str) -> list[float | None]:
        """Of the first of these keys that a run has."""
        found = ([[run[key] for key in keys.split() if key in run][:1] for run in row["runs"]] for row in trained)
        return [statistics.mean(sum(values, [])) if any(values) else None for values in found]

    drawn, lines = {}, {}
    for title, series, reference in PANELS:
        values = {name: means(key) for name, key in series.items()}
        if not any(value is not None for of_rows in values.values() for value in of_rows):
            continue
        drawn[title] = values
        against = [value for value in means(reference) if value is not None] if reference else []
        if against:
            lines[title] = statistics.mean(against)
    return [row["name"] for row in trained], drawn, lines


def insert_tables(document: str | Path, recipes: str | Path, rows: Sequence[dict]) -> None:
    """Put the rows' table in the place of what stands between two lines `<!-- compare.py RECIPES -->` of a Markdown
    file, and its short form between two lines `<!-- compare.py RECIPES short -->`.

    Args:
        recipes: the folder of the recipes, as it stands in these lines.

    Raises:
        ValueError: where there are two of neither.
    """
    text, found = Path(document).read_text("utf-8"), []
    for form, table in (("", table_and_notes(rows)), (" short", comparison_table(rows, short=True))):
        mark = f"<!-- compare.py {Path(recipes).as_posix()}{form} -->\n"
        parts = text.split(mark)
        found.append(len(parts) - 1)
        if len(parts) == 3:
            text = mark.join([parts[0], "\n" + table + "\n", parts[2]])
    if 2 not in found:
        raise ValueError(
            f"{str(document)!r} must have two lines `<!-- compare.py {Path(recipes).as_posix()} -->`, or two of them "
            f"with `short` behind the folder; got {found[0]} and {found[1]}."
        )
    Path(document).write_text(text, "utf-8")


def _mean(values: list[float], digits: int) -> str:
    if not values:
        return ""
    finite = all(map(math.isfinite, values))  # a perplexity may not be
    spread = f" ± {statistics.stdev(values):.{digits}f}" if finite and len(values) > 1 else ""
    return f"{statistics.mean(values):z,.{digits}f}{spread}"  # z: an estimate just below 0 is no "-0.00"


def _read(path: Path) -> dict:
    try:
        recipe = yaml.safe_load(path.read_text("utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe {str(path)!r} cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe {str(path)!r} must be of names and values, got {recipe!r}.")
    return recipe
