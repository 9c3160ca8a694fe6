"""Trained models measured on files: where data, model and metrics meet."""

from collections.abc import Sequence

import numpy as np
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from torch.distributions import Distribution
from transformers import PreTrainedTokenizerFast

from .data.collators import AutoencodingCollator
from .data.datasets import attribute_values, load_text, tokenize
from .data.grammar import generate_corpus
from .data.tokenization import decode
from .evaluation.disentanglement import evaluate_disentanglement
from .evaluation.information import encode_dataset
from .evaluation.likelihood import evaluate
from .evaluation.text import (
    attribute_transfer,
    bleu_signature,
    evaluate_text,
    forward_perplexity,
    train_text_classifier,
)
from .latent import move_texts
from .training.arguments import DataArguments
from .training.loop import use_all_of_the_cpu
from .training.run import describe_run


def evaluate_file(
    model,
    tokenizer: PreTrainedTokenizerFast,
    path: str | None = None,
    text_column: str | None = None,
    encoding: str = "utf-8",
    max_length: int = 128,
    max_samples: int | None = None,
    num_samples: int = 100,
    batch_size: int = 32,
    seed: int = 42,
    svi_steps: int = 0,
    num_text_samples: int | None = None,
    judge: tuple | None = None,
    disentanglement: bool = False,
) -> dict:
    """[`evaluate`] a trained model on a file, or without one on the test sentences of the built-in corpus.

    With `num_text_samples`, "text" holds the metrics of [`evaluate_text`] on the first so many texts, with `judge`;
    `disentanglement` adds [`evaluate_disentanglement`] under that name. One process measures these, and its results
    alone have them.
    """
    if num_text_samples is not None:
        bleu_signature()  # says at once, not after the likelihoods, if the extra is missing
        if num_text_samples < 2:
            raise ValueError(f"`num_text_samples` must be at least 2, for self-BLEU, got {num_text_samples}.")
    elif judge is not None:
        raise ValueError("`judge` reads the samples of the text metrics: pass --text_metrics too.")
    if disentanglement and path is not None:
        raise ValueError(
            f"`disentanglement` needs the true factors, which only the built-in corpus has; got the file {path!r}. "
            "Leave out one of the two."
        )
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"`num_samples` and `batch_size` must be above 0, got {num_samples} and {batch_size}.")
    accelerator = Accelerator()
    use_all_of_the_cpu(accelerator)
    with accelerator.main_process_first():
        if path is None:
            text = generate_corpus(seed=seed)["test"]
        else:
            text = load_text(test_file=path, text_column=text_column, encoding=encoding)["test"]
        text = text.select(range(min(max_samples or text.num_rows, text.num_rows)))
        data = tokenize(text, tokenizer, max_length, "test")
    collator = AutoencodingCollator(tokenizer.pad_token_id)
    metrics = {}
    if disentanglement and accelerator.is_main_process:  # first: it says at once where its extra is missing
        metrics["disentanglement"] = evaluate_disentanglement(model, data, collator, batch_size, seed)
    metrics |= evaluate(model, data, collator, num_samples, batch_size, seed, accelerator, svi_steps=svi_steps)
    if num_text_samples is not None and accelerator.is_main_process:
        rows = data.select(range(min(num_text_samples, data.num_rows)))
        texts = [decode(tokenizer, [row["input_ids"]])[0] if row["truncated"] else row["text"] for row in rows]
        metrics["text"] = evaluate_text(model, tokenizer, texts, batch_size, seed, judge)
    return {**metrics, "run": describe_run(accelerator, model, DatasetDict(test=data), seed)}


def encode_file(
    model,
    tokenizer: PreTrainedTokenizerFast,
    path: str | None = None,
    text_column: str | None = None,
    max_samples: int | None = None,
    seed: int = 42,
) -> tuple[Dataset, Distribution]:
    """The rows of a file, or without one of the built-in corpus' test split, with all their columns, and their q(z|x).

    Rows without a word are left out.
    """
    text = load_text(test_file=path, text_column=text_column)["test"] if path else generate_corpus(seed=seed)["test"]
    # Spread over the file: labelled ones are often sorted.
    text = text.select(np.linspace(0, text.num_rows - 1, min(max_samples or text.num_rows, text.num_rows)).astype(int))
    data = tokenize(text, tokenizer, DataArguments().max_length, "test")
    return data, encode_dataset(model, data, AutoencodingCollator(tokenizer.pad_token_id))


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
) -> dict:
    """Texts of each of two labels moved to the other one, by the difference of the labels' mean latents.

    Args:
        train_path: labelled texts, of which the direction is made, and the classifier that judges the result.
        path: labelled texts to move, the first of each label, as many of the one as of the other where there are.
        label: the column.
        values: the two labels; by default the column's two.
        strengths: multiples of the direction that are added.
        max_samples: texts to move, of both labels together.
        judge: a model, best a language model, and its tokenizer: adds the `perplexity` of the moved texts.

    Returns:
        `strengths`, for each its [`attribute_transfer`], and for 0, which only reconstructs; `classifier`, how good
        the judge of labels is on texts it did not learn from; `labels`.
    """
    train = _of_two_labels(load_text(test_file=train_path)["test"], label, values)
    values = sorted(set(train["label"]))
    test = _of_two_labels(load_text(test_file=path)["test"], label, values)
    rows_of = [[i for i, own in enumerate(test["label"]) if own == value] for value in values]
    first = [i for rows in rows_of for i in rows[: max_samples // 2]]
    test = {name: [column[i] for i in first] for name, column in test.items()}
    classifier = train_text_classifier(train["text"], train["label"])
    groups = [[text for text, own in zip(train["text"], train["label"], strict=True) if own == v] for v in values]
    wanted = [values[1 - values.index(own)] for own in test["label"]]
    moved = {0.0: {}} | {strength: {} for strength in strengths}
    for source, (without, examples) in zip(values, (groups, groups[::-1]), strict=True):
        rows = [i for i, own in enumerate(test["label"]) if own == source]
        texts = [test["text"][i] for i in rows]
        done = move_texts(model, tokenizer, texts, examples, without, list(moved)) if texts else []
        for i, row in zip(rows * len(moved), done, strict=True):
            moved[row["strength"]][i] = row["moved"]
    results = {}
    for strength, texts in moved.items():
        texts = [texts[i] for i in range(len(wanted))]
        scores = attribute_transfer(test["text"], texts, wanted, classifier)
        if judge is not None:
            scores["perplexity"] = forward_perplexity(*judge, texts)["perplexity"]
        results[f"{strength:g}"] = scores
    described = {"accuracy": classifier.accuracy, "majority": classifier.majority, "num_train": classifier.num_train}
    return {"labels": [str(value) for value in values], "strengths": results, "classifier": described}


def _of_two_labels(data: Dataset, label: str, values: Sequence | None) -> dict[str, list]:
    """Texts and labels of the rows whose label is one of two."""
    labels = attribute_values(data, label)
    found = sorted(set(labels)) if values is None else [v for v in sorted(set(labels)) if str(v) in map(str, values)]
    if len(found) != 2:
        raise ValueError(
            f"`values` must name two labels of column {label!r}, which holds {sorted(set(labels))[:9]}; got {values}."
        )
    rows = [i for i, (own, text) in enumerate(zip(labels, data["text"], strict=True)) if own in found and text.strip()]
    return {"text": [data[i]["text"].strip() for i in rows], "label": [labels[i] for i in rows]}
