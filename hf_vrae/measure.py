"""Trained models measured on files: where data, model and metrics meet."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from datasets import Dataset, DatasetDict
from torch.distributions import Distribution
from transformers import PreTrainedTokenizerFast

from .data.conditions import Conditions
from .data.datasets import load_text, spread_places, spread_rows, tokenize, value_names
from .data.grammar import generate_corpus
from .data.rows import Rows
from .data.tokenization import decode
from .evaluation.anomaly import check_normal, detect_anomalies
from .evaluation.disentanglement import evaluate_disentanglement
from .evaluation.free_running import evaluate_free_running
from .evaluation.information import batches_in_order, encode_dataset, in_evaluation_mode
from .evaluation.likelihood import evaluate, paired_difference
from .evaluation.probe import probe, representations
from .evaluation.text import (
    attribute_transfer,
    bleu_signature,
    draw_samples,
    evaluate_text,
    forward_perplexity,
    self_bleu,
    train_text_classifier,
)
from .latent import (
    along,
    attribute_vector,
    check_has_latents,
    conditions_of,
    decode_latents,
    each_label,
    encode_texts,
    interpolate_frames,
    move_frames,
    moved,
    reconstruct_frames,
    sample_frames,
    with_labels_of,
)
from .training.accelerator import main_process_first, use_all_of_the_cpu
from .training.arguments import check_ways_to_read
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
    if (probe_label is None) != (probe_train is None):
        raise ValueError("`probe_label` names what `probe_train` teaches the probe: give both, or neither.")
    task = task_of(model, tokenizer, max_length)
    if task.unit != "tokens" and (num_text_samples is not None or judge is not None):
        raise ValueError("`num_text_samples` and `judge` are of text, and this is a model of frames. Leave them out.")
    if task.unit != "tokens" and max_length is not None:
        raise ValueError("`max_length` cuts texts, and this is a model of frames. Leave it out; `window` cuts frames.")
    if num_text_samples is not None:
        bleu_signature()  # says at once, not after the likelihoods, if the extra is missing
        if num_text_samples < 2:
            raise ValueError(f"`num_text_samples` must be at least 2, for self-BLEU, got {num_text_samples}.")
    elif judge is not None:
        raise ValueError("`judge` reads the samples of the text metrics: pass --text_metrics too.")
    for name, column in (("probe_label", probe_label), ("anomaly_label", anomaly_label)):
        if column in (*task.conditions.labels, *task.conditions.attributes):
            raise ValueError(
                f"`{name}` {column!r} conditions the model, which is told it. Name another column, or take a model "
                "without that condition."
            )
    if disentanglement and path is not None:
        raise ValueError(
            f"`disentanglement` needs the true factors, which only the built-in corpus has; got the file {path!r}. "
            "Leave out one of the two."
        )
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"`num_samples` and `batch_size` must be above 0, got {num_samples} and {batch_size}.")
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
        parts = (
            _labelled(value_names(d, probe_label, "probe_label"), representations(model, d, collator))
            for d in (train, data)
        )
        metrics["probe"] = probe(*(part for both in parts for part in both))
    if anomaly_label is not None:
        labels = value_names(data, anomaly_label, "anomaly_label")
        check_normal(_labelled(labels)[-1], normal)  # at once, not after the likelihoods
    if num_text_samples is not None and accelerator.is_main_process:  # before the likelihoods, which take longest
        rows = _spread(data, num_text_samples)
        columns = (rows[name][:] for name in ("text", "input_ids", "truncated"))
        texts = [_up_to(len(ids), text, tokenizer) if cut else text for text, ids, cut in zip(*columns, strict=True)]
        batch = collator(Rows(rows).__getitems__(list(range(len(rows)))))
        under = conditions_of(model, batch)
        metrics["text"] = evaluate_text(model, tokenizer, texts, batch_size, seed, judge, under)
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
    data = task.ready(_read(task, path, **reading))
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


def measure_labels(
    model,
    tokenizer: PreTrainedTokenizerFast,
    path: str | None,
    transfer_train: str | None,
    agreement_train: str | None,
    label: str | None,
    label_values: Sequence | None,
    num_text_samples: int,
    seed: int,
    reading: dict,
    max_length: int | None = None,
    **options,
) -> dict:
    """What is asked for of [`transfer_file`], under "transfer", and of [`label_agreement`], under that name, by
    `agreement_train` ("" is the built-in corpus). One process measures these, and its results alone have them.
    """
    if transfer_train is not None and not path:
        raise ValueError("`transfer_train` moves the texts of --data, which is not given.")
    if tokenizer is None:
        raise ValueError("`transfer_train` and `label_agreement` are of texts, and this is a model of frames.")
    results, state = {}, PartialState()
    use_all_of_the_cpu(state)
    options["reading"] = {name: value for name, value in reading.items() if name in TextTask.options}
    if transfer_train is not None and state.is_main_process:
        how = options | {"max_length": max_length, "max_samples": num_text_samples}
        results["transfer"] = transfer_file(
            model, tokenizer, transfer_train, path, label or "label", label_values, **how
        )
    if agreement_train is not None and state.is_main_process:
        options |= {"num_samples": num_text_samples, "seed": seed}
        results["label_agreement"] = label_agreement(model, tokenizer, agreement_train or None, label, **options)
    return results


def transfer_file(
    model,
    tokenizer: PreTrainedTokenizerFast,
    train_path: str,
    path: str,
    label: str = "label",
    values: Sequence | None = None,
    strengths: Sequence[float] = (1.0, 2.0),
    max_samples: int = 1000,
    judge: tuple | None = None,
    guidance_scale: float | None = None,
    reading: dict | None = None,
    max_length: int | None = None,
) -> dict:
    """Texts of each of two labels moved to the other one: by the difference of the labels' mean latents, or, where the
    label conditions the model, by decoding the same z under the other label.

    Args:
        train_path: labelled texts, of which the direction is made, and the classifier that judges the result.
        path: labelled texts to move, spread over those of each label, as many of the one as of the other where there
            are.
        label: the column.
        values: the two labels; by default the column's two.
        strengths: multiples of the direction that are added.
        max_samples: texts to move, of both labels together.
        judge: a model, best a language model, and its tokenizer: adds the `perplexity` of the moved texts.
        guidance_scale: of decoding under the other label.
        reading: how to read both files, see [`load_text`].
        max_length: longer texts are cut; by default as in training.

    Returns:
        `strengths`, for each its [`attribute_transfer`], and for 0, which only reconstructs; or `other_label` and
        `own_label`, which only reconstructs, of a conditional model; `classifier`, how good the judge of labels is on
        texts it did not learn from; `labels`.
    """
    by_label = label in Conditions.of_config(model.config).labels
    if guidance_scale is not None and not by_label:
        raise ValueError(
            f"`guidance_scale` {guidance_scale} is of decoding under another label, but {label!r} does not condition "
            "this model: texts are moved along a direction. Leave it out."
        )
    if not by_label:
        check_has_latents(model)
    if max_samples < 2:
        raise ValueError(f"`max_samples` must be at least 2, a text of each label; got {max_samples}.")
    room, reading = task_of(model, tokenizer, max_length).max_length, reading or {}
    train, test = (
        tokenize(load_text(test_file=file, **reading)["test"], tokenizer, room) for file in (train_path, path)
    )
    values = _two_labels(train, label, values)
    train, test = (_texts_and_labels(rows, tokenizer, label, values) for rows in (train, test))
    if not test["label"]:
        raise ValueError(f"{path} has no text whose {label!r} is one of {values}. Give a file that has.")
    classifier = train_text_classifier(train["text"], train["label"])
    groups, moving = (
        [[text for text, own in zip(*rows.values(), strict=True) if own == value] for value in values]
        for rows in (train, test)
    )
    moving = [[texts[i] for i in spread_places(len(texts), min(max_samples // 2, len(texts)))] for texts in moving]
    source, counts = sum(moving, []), [len(texts) for texts in moving]
    own, wanted = ([values[i]] * counts[0] + [values[1 - i]] * counts[1] for i in (0, 1))
    described = {"labels": values, "classifier": _described(classifier)}
    if by_label:
        latents = encode_texts(model, tokenizer, source, labels={label: own})
        for name, said in {"own_label": own, "other_label": wanted}.items():
            under = {"labels": {label: said}, "guidance_scale": guidance_scale}
            texts = decode_latents(model, tokenizer, latents, **under)
            described[name] = _transferred(source, texts, wanted, classifier, judge)
        return described
    size = model.config.latent_size
    without, examples = (encode_texts(model, tokenizer, group)[:, :size] for group in groups)
    direction = attribute_vector(examples, without)  # [D]
    towards = torch.tensor([1.0, -1.0]).repeat_interleave(torch.tensor(counts)).unsqueeze(1).to(direction)  # [N, 1]
    latents, results = encode_texts(model, tokenizer, source), {}
    under = with_labels_of(model, tokenizer, source, {})
    for strength in (0.0, *strengths):
        there = moved(model, latents, strength * towards * along(direction, latents))
        texts = decode_latents(model, tokenizer, there, **under)
        results[f"{strength:g}"] = _transferred(source, texts, wanted, classifier, judge)
    return described | {"strengths": results}


def _transferred(source, texts, wanted, classifier, judge) -> dict[str, float]:
    scores = attribute_transfer(source, texts, wanted, classifier)
    if judge is not None:
        scores["perplexity"] = forward_perplexity(*judge, texts)["perplexity"]
    return scores


def label_agreement(
    model,
    tokenizer: PreTrainedTokenizerFast,
    train_path: str | None = None,
    label: str | None = None,
    num_samples: int = 1000,
    judge: tuple | None = None,
    guidance_scale: float | None = None,
    seed: int = 42,
    reading: dict | None = None,
    **options,
) -> dict:
    """Do texts that a model draws under a label have it? x ~ p(x|z, c), z ~ p(z|c), read by a classifier of real text.

    Args:
        train_path: labelled texts that teach the classifier, by default those of the built-in corpus; it says how good
            it is on a part of them that it does not learn from.
        label: the column; by default the model's only one.
        num_samples: texts drawn under each of the label's values.
        judge: a model and its tokenizer: adds the `perplexity` of each value's texts.
        guidance_scale: as in `generate`.
        seed: of the draws.
        reading: how to read the file, see [`load_text`].
        options: of `generate`, over those of [`draw_samples`].

    Returns:
        `agreement`, the share of texts that the classifier gives the label they were drawn under; of each value, under
        `values`, `agreement`, `self_bleu` and `perplexity`; `self_bleu` of as many texts of all values together as of
        each; `classifier`, its accuracy, the share of the commonest label, and the texts it learnt from.
    """
    names = Conditions.of_config(model.config).labels
    label = next(iter(names)) if label is None and len(names) == 1 else label
    if label not in names:
        raise ValueError(f"`label` must be one that conditions the model, of {list(names)}; got {label!r}.")
    if train_path is None:
        rows = generate_corpus()["train"]
    else:
        rows = load_text(test_file=train_path, **(reading or {}))["test"]
    where = f"the file {train_path!r}" if train_path else "the built-in corpus, taken where no file is named,"
    if label not in rows.column_names:
        raise ValueError(
            f"`label_agreement` learns the label {label!r} from a column of that name, and {where} has "
            f"{rows.column_names}. Name another file."
        )
    rows = tokenize(rows, tokenizer, task_of(model, tokenizer).max_length, "classifier's")
    known = _texts_and_labels(rows, tokenizer, label, names[label])
    if missing := [name for name in names[label] if name not in known["label"]]:
        raise ValueError(
            f"`label_agreement` needs texts of every value of the label {label!r}, and {where} has none of "
            f"{missing[0]!r}, which its classifier could then never say. Name another file."
        )
    classifier = train_text_classifier(known["text"], known["label"])
    options, results, drawn = {"guidance_scale": guidance_scale, **options}, {}, {}
    for value in names[label]:
        under = {"class_ids": model.label_ids({label: [value] * num_samples})}
        drawn[value] = texts = draw_samples(model, tokenizer, num_samples, seed=seed, conditions=under, **options)
        right = float((classifier.pipeline.predict(texts) == np.array(value)).mean())
        results[value] = {"agreement": right, "self_bleu": self_bleu(texts)["self_bleu"]}
        if judge is not None:
            results[value]["perplexity"] = forward_perplexity(*judge, texts)["perplexity"]
    groups = list(drawn.values())  # the same seed draws each, so that texts at one place are twins
    mixed = [groups[i % len(groups)][i] for i in range(num_samples)]
    return {
        "label": label,
        "agreement": float(np.mean([of_value["agreement"] for of_value in results.values()])),
        "self_bleu": self_bleu(mixed)["self_bleu"],
        "values": results,
        "num_samples": num_samples,
        "guidance_scale": guidance_scale,
        "classifier": _described(classifier),
    }


def _described(classifier) -> dict[str, float]:
    return {name: getattr(classifier, name) for name in ("accuracy", "majority", "num_train")}


def _two_labels(data: Dataset, label: str, values: Sequence | None) -> list[str]:
    """The two that are named, or the only two that there are."""
    named = sorted(set(value_names(data, label)) - {None})
    found = named if values is None else [value for value in named if value in map(str, values)]
    if len(found) != 2:
        raise ValueError(f"`values` must name two labels of column {label!r}, which holds {named[:9]}; got {values}.")
    return found


def _texts_and_labels(data: Dataset, tokenizer, label: str, values: Sequence[str]) -> dict[str, list]:
    """Of the rows that have one of the labels; their texts as the tokenizer says them, which is how a model does.

    Where it puts them in lower case, say, a classifier of texts as they stand would read those of the model badly.
    """
    labels = value_names(data, label)
    ids = [row for row, own in zip(data["input_ids"][:], labels, strict=True) if own in values]
    return {"text": decode(tokenizer, ids), "label": [own for own in labels if own in values]}


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


def _rows(task: TextTask | FrameTask, path: str | None, max_samples: int | None, **reading) -> Dataset:
    """What is measured, as the model takes it."""
    return task.ready(_spread(_read(task, path, **reading), max_samples))


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
