"""Trained models measured on files: where data, model and metrics meet."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from torch.distributions import Distribution
from transformers import PreTrainedTokenizerFast

from .data.conditions import Conditions
from .data.datasets import spread_rows, value_names
from .data.rows import Rows
from .data.tokenization import decode
from .evaluation.anomaly import check_normal, detect_anomalies
from .evaluation.disentanglement import evaluate_disentanglement
from .evaluation.free_running import evaluate_free_running
from .evaluation.information import batches_in_order, encode_dataset, in_evaluation_mode
from .evaluation.likelihood import evaluate, paired_difference
from .evaluation.probe import probe, representations
from .evaluation.text import (
    bleu_signature,
    evaluate_text,
)
from .latent import (
    conditions_of,
    each_label,
    interpolate_frames,
    move_frames,
    reconstruct_frames,
    sample_frames,
)
from .training.accelerator import main_process_first, use_all_of_the_cpu
from .training.arguments import check_ways_to_read, own_data, read_recipe
from .training.run import describe_run
from .training.tasks import FrameTask, TextTask, num_truncated, task_of

DENSITIES = "gaussian", "full_gaussian", "gaussian_mixture"  # heads whose likelihood is one, and no probability


def evaluate_file(
    model,
    tokenizer: PreTrainedTokenizerFast,
    path: str | None = None,
    max_length: int | None = None,
    max_samples: int | None = None,
    num_samples: int = 100,
    batch_size: int = 32,
    seed: int = 42,
    svi_steps: int | None = None,
    num_text_samples: int | None = None,
    judge: tuple | None = None,
    baseline: tuple | None = None,
    disentanglement: bool = False,
    free_running: bool = False,
    probe_label: str | None = None,
    probe_train: str | None = None,
    anomaly_label: str | None = None,
    normal: str = "0",
    **reading,
) -> dict:
    """[`evaluate`] a trained model on a file, or without one on the test split of what is built in.

    With `num_text_samples`, "text" holds the metrics of [`evaluate_text`] on so many of the texts, with `judge`;
    `disentanglement` adds [`evaluate_disentanglement`] under that name. One process measures these, and its results
    alone have them. `free_running` adds what [`evaluate_free_running`] gives. `reading` says how to read the file:
    see [`load_text`] and [`load_frames`].

    Args:
        max_length: longer texts are cut, and counted under "num_truncated"; by default as in training.
        max_samples, num_text_samples: rows spread over the file, since labelled ones are often sorted.
        svi_steps: as in [`evaluate`], of what that gives alone; by default as in training.
        baseline: a model and its tokenizer; adds under "baseline" how far the model's `nll_iw` is from that of this
            one on the same sequences, of frames in raw units ([`paired_difference`]). Each is told its own conditions:
            beside a baseline without them it is also how much they tell.
        probe_label: column; adds under "probe" how well a linear classifier tells it ([`probe`]), fitted on the file
            `probe_train` (of an .npz with several splits, on that for training).
        anomaly_label: column; adds under "anomaly" how well a high NLL tells what is not `normal` in it
            ([`detect_anomalies`]).
    """
    check_source(model, path)
    task = task_of(model, tokenizer, max_length)
    if task.unit != "tokens" and max_length is not None:
        raise ValueError("`max_length` cuts texts, and this is a model of frames. Leave it out; `window` cuts frames.")
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"`num_samples` and `batch_size` must be above 0, got {num_samples} and {batch_size}.")
    if disentanglement and path is not None:
        raise ValueError(
            f"`disentanglement` needs the true factors, which only the built-in corpus has; got the file {path!r}. "
            "Leave out one of the two."
        )
    _check_labels(task, probe_label, probe_train, anomaly_label)
    _check_text_metrics(task, num_text_samples, judge)
    if svi_steps is None:
        svi_steps = model.config.svi_steps
    if svi_steps < 0:
        raise ValueError(f"`svi_steps` must not be negative, got {svi_steps}.")
    accelerator = Accelerator()
    use_all_of_the_cpu(accelerator)
    if baseline is not None:
        _check_comparable(model.config, baseline[0].config)
        other_task = task_of(*baseline, max_length)
    with main_process_first(accelerator):
        data = _rows(task, path, max_samples, **reading)
        other_data = None if baseline is None else _rows(other_task, path, max_samples, **reading)
    if num_text_samples is not None and len(data) < 2:  # at once, not after the likelihoods
        raise ValueError(f"The text metrics compare texts, at least two; the data has {len(data)}. Leave them out.")
    if baseline is not None:
        _check_same_sequences((task, data), (other_task, other_data))
    collator = task.collator()
    metrics = {}
    if disentanglement and accelerator.is_main_process:  # first: it says at once where its extra is missing
        metrics["disentanglement"] = evaluate_disentanglement(model, data, collator, batch_size, seed)
    if probe_label is not None and accelerator.is_main_process:
        train = task.ready(_read(task, probe_train, "train", **reading), "train")
        metrics["probe"] = _probe(model, train, data, probe_label, collator)
    if anomaly_label is not None:
        labels = value_names(data, anomaly_label, "anomaly_label")
        check_normal(_labelled(labels)[-1], normal)  # at once, not after the likelihoods
    if num_text_samples is not None and accelerator.is_main_process:  # before the likelihoods, which take longest
        metrics["text"] = _text_metrics(model, task, _spread(data, num_text_samples), batch_size, seed, judge)
    options = {"svi_steps": svi_steps, "per_sequence": True}
    metrics |= evaluate(model, data, collator, num_samples, batch_size, seed, accelerator, **options)
    each = metrics.pop("per_sequence")
    if free_running:
        metrics |= evaluate_free_running(model, data, collator, batch_size, accelerator)
    if baseline is not None:
        options |= {"svi_steps": baseline[0].config.svi_steps, "description": "Evaluating the baseline"}
        compared = baseline[0], other_data, other_task.collator()
        other = evaluate(*compared, num_samples, batch_size, seed, accelerator, **options)["per_sequence"]
        nll = (terms["nll_iw"] - terms.get("raw_offset", 0) for terms in (each, other))
        metrics["baseline"] = {"model": baseline[0].name_or_path, **paired_difference(*nll)}
    if anomaly_label is not None:
        metrics["anomaly"] = detect_anomalies(*_labelled(labels, each["nll_iw"], each["num_steps"]), normal)
    return {
        **metrics,
        **num_truncated(data),
        "run": describe_run(accelerator, model, task, DatasetDict(test=data), seed) | {"mixed_precision": "no"},
    }


def _check_labels(task: TextTask | FrameTask, probe_label, probe_train, anomaly_label) -> None:
    if (probe_label is None) != (probe_train is None):
        raise ValueError("`probe_label` (--probe) names what `probe_train` teaches the probe: give both, or neither.")
    for name, column in (("probe_label", probe_label), ("anomaly_label", anomaly_label)):
        if column in (*task.conditions.labels, *task.conditions.attributes):
            raise ValueError(
                f"`{name}` {column!r} conditions the model, which is told it. Name another column, or take a model "
                "without that condition."
            )


def _check_text_metrics(task: TextTask | FrameTask, num_text_samples: int | None, judge: tuple | None) -> None:
    if task.unit != "tokens" and (num_text_samples is not None or judge is not None):
        raise ValueError("`num_text_samples` and `judge` are of text, and this is a model of frames. Leave them out.")
    if num_text_samples is not None:
        bleu_signature()  # says at once, not after the likelihoods, if the extra is missing
        if num_text_samples < 2:
            raise ValueError(f"`num_text_samples` must be at least 2, for self-BLEU, got {num_text_samples}.")
    elif judge is not None:
        raise ValueError("`judge` reads the samples of the text metrics: pass --text_metrics too.")


def _probe(model, train: Dataset, test: Dataset, label: str, collator) -> dict:
    """[`probe`] of a column of both splits, on the rows that have one."""
    parts = (
        _labelled(value_names(rows, label, "probe_label"), representations(model, rows, collator))
        for rows in (train, test)
    )
    return probe(*(part for both in parts for part in both))


def _text_metrics(model, task: TextTask, rows: Dataset, batch_size: int, seed: int, judge: tuple | None) -> dict:
    """[`evaluate_text`] of these rows' texts, each up to where it was cut."""
    tokenizer = task.tokenizer
    columns = (rows[name][:] for name in ("text", "input_ids", "truncated"))
    texts = [_up_to(len(ids), text, tokenizer) if cut else text for text, ids, cut in zip(*columns, strict=True)]
    batch = task.collator()(Rows(rows).__getitems__(list(range(len(rows)))))
    return evaluate_text(model, tokenizer, texts, batch_size, seed, judge, conditions_of(model, batch))


def encode_file(
    model,
    tokenizer: PreTrainedTokenizerFast | None,
    path: str | None = None,
    max_samples: int | None = None,
    **reading,
) -> tuple[Dataset, Distribution]:
    """The rows of a file, or without one of the test split of what is built in, with all their columns, and their
    q(z|x).

    Rows without a word are left out. `reading` is as in [`evaluate_file`].
    """
    check_source(model, path)
    task = task_of(model, tokenizer)
    data = _rows(task, path, max_samples, **reading)
    return data, encode_dataset(model, data, task.collator())


@torch.no_grad()
def prior_of(model, tokenizer: PreTrainedTokenizerFast | None, data: Dataset) -> Distribution:
    """p(z), or of a conditional model p(z|c) of each of the rows that [`encode_file`] gave, a missing label inferred
    as there."""
    if not model.config.latent_size:
        raise ValueError("`latent_size` 0 is a model without z: there is neither a prior nor a KL.")
    batches = batches_in_order(data, task_of(model, tokenizer).collator(), batch_size=64)
    with in_evaluation_mode(model):
        parts = [conditions_of(model, batch) for batch in batches]
        names = parts[0].keys() - {"segment_ids"}
        return model.prior(**{name: torch.cat([part[name] for part in parts]) for name in names})


def represent_file(model, tokenizer, path=None, max_samples=None, **reading):
    """The rows as of [`encode_file`], and what stands for each, [N, D]: see [`representations`]."""
    check_source(model, path)
    task = task_of(model, tokenizer)
    data = _rows(task, path, max_samples, **reading)
    return data, representations(model, data, task.collator())


def walk_frames(
    model,
    mode: str,
    path: str | None = None,
    indices: Sequence[int] | None = None,
    count: int = 10,
    max_length: int | None = None,
    steps: int = 7,
    spherical: bool = False,
    label: str = "label",
    examples: str | None = None,
    without: str | None = None,
    strength: Sequence[float] = (1.0,),
    do_sample: bool = False,
    labels=None,
    **reading,
) -> dict[str, np.ndarray]:
    """Sequences of frames made of latents, as arrays by name ([`plot_frames`] draws them).

    Args:
        mode: "sample", "reconstruct", "interpolate" or "attribute", see the functions of `latent`.
        path: file of the sequences, or without one the built-in ones; `indices` says which of them, by default the
            first three, of an interpolation its two ends.
        count, max_length: of samples, by default 100 frames; other frames are as many as their sequence's.
        steps, spherical: of an interpolation.
        label, examples, without: a column, and its values that have an attribute and that do not; `strength`, how far
            to move, several times.
        do_sample: draw each frame too.
        labels: of a conditional model, what is decoded stands under, as in its `generate`; by default samples under
            each combination of values in turn, and others under the sequences' own.
    """
    task = task_of(model, None)
    if reading.get("guidance_scale") is not None:
        raise ValueError("`guidance_scale` of frames is an option of the model's `generate` alone. Leave it out.")
    _check_options(task, reading)
    if labels is not None and not Conditions.of_config(model.config).labels:
        raise ValueError("`labels` are of a model with `condition_labels`, which this one has not. Leave them out.")
    if mode != "sample" and max_length is not None:
        raise ValueError(f"`max_length` is of samples: a {mode} is as long as its sequences. Leave it out.")
    if mode == "sample":
        max_length = 100 if max_length is None else max_length
        under = each_label(model, count, {}) if labels is None else {"labels": labels}
        return sample_frames(model, [max_length] * count, do_sample, **under)
    if indices is None:
        indices = range(2 if mode == "interpolate" else 3)
    if mode == "interpolate" and len(indices) != 2:
        raise ValueError(f"`indices` must be the two ends of an interpolation, got {list(indices)}.")
    rows = _read(task, path, **reading)
    check_source(model, path)
    data = task.ready(rows)
    if wrong := [i for i in indices if not 0 <= i < len(data)]:
        raise ValueError(f"`indices` must be below {len(data)}, the sequences there are; got {wrong[0]}.")
    rows = Rows(data)
    sequences = rows.__getitems__(list(indices))
    if mode == "reconstruct":
        return reconstruct_frames(model, sequences, do_sample, labels)
    if mode == "interpolate":
        return interpolate_frames(model, sequences, steps, spherical, do_sample, labels)
    values = value_names(data, label)
    ends = examples, without
    places = [[i for i, value in enumerate(values) if value is not None and value == wanted] for wanted in ends]
    if not all(places):
        named = sorted(set(values) - {None})[:9]
        raise ValueError(
            f"`with` and `without` must be values of column {label!r}, which holds {named}; got {examples!r} and "
            f"{without!r}."
        )
    groups = (rows.__getitems__(place) for place in places)
    return move_frames(model, sequences, *groups, strength, do_sample, labels)


def _up_to(length: int, text: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """What of a text so many tokens say, marks included."""
    return text[: tokenizer.backend_tokenizer.encode(text).offsets[length - 2][1]]


def _labelled(labels: Sequence[str | None], *of_rows: np.ndarray) -> tuple:
    """What belongs to the rows that have a label, and behind it these labels."""
    known = np.array([label is not None for label in labels], dtype=bool)
    return *(part[known] for part in of_rows), [label for label in labels if label is not None]


def _spread(data: Dataset, count: int | None) -> Dataset:
    """So many rows spread over a data set, or all."""
    if count is not None and count < 1:
        raise ValueError(f"`max_samples` must be at least 1, got {count}.")
    return data if count is None else spread_rows(data, count)


def check_source(model, path: str | None) -> None:
    """Refuse to take what is built in for a model of other data."""
    source = own_data(read_recipe(model.name_or_path)) if path is None else None
    if source is not None:
        raise ValueError(
            f"`data` must name what to read: the model {model.name_or_path!r} was trained on {source!r}, and without "
            "it hf_vrae's built-in data would be taken, which are others. Pass --data."
        )


def _rows(task: TextTask | FrameTask, path: str | None, max_samples: int | None, **reading) -> Dataset:
    """What is measured, as the model takes it."""
    rows = _spread(_read(task, path, **reading), max_samples)
    return task.ready(rows, "built-in test" if path is None else "test")


def _check_comparable(config, baseline) -> None:
    """Whether models of two configurations say how likely the same things are."""
    own, other = (c.head in DENSITIES for c in (config, baseline))
    if config.input_size is not None and baseline.input_size is not None and own != other:
        raise ValueError(
            f"`baseline` has the head {baseline.head!r}, and the model {config.head!r}: a density and a probability "
            "cannot be compared. Take a baseline of the same kind."
        )
    names = ["input_size", "predict_length"]
    if "logistic_mixture" in (config.head, baseline.head):  # the grid whose cells are as probable
        names += ["head", "num_levels", "input_mean", "input_scale"]
    for name in names:
        own, other = getattr(config, name), getattr(baseline, name)
        if own != other:
            raise ValueError(
                f"`baseline` has `{name}` {other}, and the model {own}: these say how likely other things are. Take a "
                "baseline of the same."
            )


def _check_same_sequences(ours: tuple, baseline: tuple) -> None:
    """Whether two tasks, each beside its rows, read the same of a file, and their models all of it."""
    (task, data), (other_task, other_data) = ours, baseline
    if len(data) < 2 or task.fingerprint(data) != other_task.fingerprint(other_data):
        raise ValueError(
            f"`baseline` is compared on the same sequences, two at least; of this file the model reads {len(data)}, "
            f"and the baseline {len(other_data)} or others. Take data that both read alike."
        )
    if task.unit != "tokens" or _tokens_of(*ours) == _tokens_of(*baseline):
        return
    for name, (own, rows) in (("model", ours), ("baseline", baseline)):
        for text, said in zip(rows["text"][:], decode(own.tokenizer, rows["input_ids"]), strict=True):
            if "".join(text.split()) != "".join(said.split()):
                raise ValueError(
                    f"`baseline` has other tokens than the model. Such models are compared on texts of which both "
                    f"read all, and the {name} reads {said!r} for {text!r}, which is likelier. Take other texts."
                )


def _tokens_of(task: TextTask, rows: Dataset) -> tuple:
    return task.tokenizer.get_vocab(), rows["input_ids"][:]


def _read(task: TextTask | FrameTask, path: str | None, split: str = "test", **reading) -> Dataset:
    reading = {name: value for name, value in reading.items() if value is not None}
    _check_options(task, reading)
    if path is None and reading:
        name = min(reading)
        raise ValueError(f"`{name}` {reading[name]!r} says how to read data, and none are named. Leave it out.")
    check_ways_to_read(reading, [path] if path else [])
    return task.read(path, split, **reading)


def _check_options(task: TextTask | FrameTask, reading: dict) -> None:
    if others := sorted(reading.keys() - set(task.options)):
        name = others[0]
        raise ValueError(f"`{name}` {reading[name]!r} says nothing to a model of {task.unit}. Leave it out.")
