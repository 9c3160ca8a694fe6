"""Texts under labels: moved from one to another, drawn under one, and judged by a classifier of the same texts."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from .data.conditions import Conditions
from .data.datasets import load_text, spread_places, tokenize, value_names
from .data.grammar import generate_corpus
from .data.tokenization import decode
from .evaluation.text import (
    attribute_transfer,
    draw_samples,
    forward_perplexity,
    self_bleu,
    train_text_classifier,
)
from .latent import (
    along,
    attribute_vector,
    check_has_latents,
    decode_latents,
    encode_texts,
    moved,
    with_labels_of,
)
from .measure import check_source
from .training.accelerator import use_all_of_the_cpu
from .training.tasks import TextTask, task_of


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
    check_source(model, path)
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
