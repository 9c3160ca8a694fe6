"""What of a run depends on what its sequences are of: text, or frames.

Both tasks have the same methods; the loop and the evaluation know no other difference.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from ..data.collators import AutoencodingCollator, CausalCollator, FrameCollator
from ..data.collators import conditions as conditions_in
from ..data.conditions import Conditions, hide_labels
from ..data.datasets import load_text, split_validation, tokenize
from ..data.frames import (
    SEGMENTS,
    check_frames,
    csv_channels,
    cut_windows,
    fit_range,
    fit_scaling,
    frames_fingerprint,
    load_frames,
    num_channels,
    value_range,
)
from ..data.grammar import generate_corpus
from ..data.noising import KneserNeyNoise
from ..data.rows import Rows
from ..data.signals import generate_frames
from ..data.tokenization import decode, load_tokenizer, train_tokenizer
from ..latent import conditions_of, draw_texts, each_label, reconstruct_frames, sample_frames, stream
from ..modeling.configuration_common import DATA_COLUMNS
from .arguments import CONFIGURATIONS, WAYS_TO_READ, DataArguments, Recipe
from .checkpoints import find_checkpoint
from .models import make_model

SHOWN = 3  # reconstructions and prior samples shown at each evaluation


class TextTask:
    """Sequences of tokens.

    Args:
        tokenizer: saved with every checkpoint, and used to show samples.
        max_length: longer sequences are cut; by default as the run that saved the tokenizer did.
        num_proc: processes to tokenize with.
        causal: whether the model has one latent per token, and its input tokens as labels.
        conditions: columns that condition the model.
        noise: puts other words in place of the decoder's and of its targets in training.
    """

    unit = "tokens"
    options = ("text_column", "encoding")  # of `read`

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        max_length: int | None = None,
        num_proc: int | None = None,
        causal: bool = False,
        conditions: Conditions | None = None,
        noise: KneserNeyNoise | None = None,
    ):
        self.tokenizer, self.num_proc, self.causal = tokenizer, num_proc, causal
        self.max_length = tokenizer.model_max_length if max_length is None else max_length
        self.conditions, self.noise = conditions or Conditions(), noise

    @classmethod
    def prepare(cls, recipe: Recipe) -> tuple["TextTask", DatasetDict]:
        """The task of a run, and its splits: rows with `input_ids` and `length`."""
        data = recipe.data
        text = _load(data, cls.options, load_text, generate_corpus, 20_000)
        text = _first_rows(_with_validation(text, data), data)
        causal = not CONFIGURATIONS[recipe.model.model_type].is_encoder_decoder
        tokenizer = cls._tokenizer(recipe, text["train"])
        tokenizer.model_max_length = data.max_length  # who measures the model later is to cut where it was cut here
        conditions = Conditions.fit(text["train"], *data.conditions)
        task = cls(tokenizer, data.max_length, data.preprocessing_num_workers, causal, conditions)
        splits = DatasetDict({name: task.ready(split, name) for name, split in text.items()})
        if data.max_labeled_samples:
            splits["train"] = hide_labels(splits["train"], data.max_labeled_samples, recipe.training.seed)
        if data.word_noise:
            task.noise = KneserNeyNoise(splits["train"]["input_ids"], data.word_noise, task.vocab_size)
        return task, splits

    def read(self, path: str | None, split: str = "test", **options) -> Dataset:
        """The rows of a file, or without one the sentences of the built-in corpus; `options` as of [`load_text`]."""
        if path is None:
            return generate_corpus()[split]
        return load_text(test_file=path, **options)["test"]

    def ready(self, rows: Dataset, name: str = "test") -> Dataset:
        """Rows as the model takes them."""
        rows = self.conditions.add_to(rows, name)  # before columns of ours take names that the user's may have
        return tokenize(rows, self.tokenizer, self.max_length, name, self.num_proc)

    @staticmethod
    def _tokenizer(recipe: Recipe, train: Dataset) -> PreTrainedTokenizerFast:
        """The tokenizer of the run to go on with, of the model to start from, the one named, or a new one."""
        args, data = recipe.training, recipe.data
        if args.resume_from_checkpoint:
            return load_tokenizer(str(find_checkpoint(args.output_dir, args.resume_from_checkpoint)))
        if args.model_name_or_path or data.tokenizer_name or args.pretrained_parts:
            pretrained = args.decoder_name_or_path or args.encoder_name_or_path
            tokenizer = load_tokenizer(args.model_name_or_path or data.tokenizer_name or pretrained)
            named = data.tokenizer_name if args.model_name_or_path else None
            if named and load_tokenizer(named).get_vocab() != tokenizer.get_vocab():
                raise ValueError(
                    f"`tokenizer_name` {named!r} has other tokens than the model {args.model_name_or_path!r} was "
                    "trained with. Leave it out, or train a new model."
                )
            return tokenizer
        batches = (train[i : i + 1000]["text"] for i in range(0, train.num_rows, 1000))
        texts = ([text.strip() for text in batch if text] for batch in batches)
        return train_tokenizer(texts, data.tokenizer_type, data.vocab_size, data.min_frequency)

    @property
    def vocab_size(self) -> int:
        """One above the largest token id: added tokens may leave holes."""
        return 1 + max(self.tokenizer.get_vocab().values())

    def make_model(self, recipe: Recipe, train: Dataset) -> PreTrainedModel:
        """A model for the tokenizer, which generates up to the longest training sequence."""
        tokenizer = self.tokenizer
        marks = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "bos", "eos")}
        if not self.causal:
            marks["decoder_start_token_id"] = tokenizer.bos_token_id
        conditions = self.conditions.fields(train, recipe.model.label_classifier)
        if recipe.data.segment_separators is not None:
            conditions["segment_separator_ids"] = self._separators(recipe)
        model = make_model(recipe, vocab_size=self.vocab_size, **marks, **conditions)
        del marks["unk_token_id"]
        model.generation_config = GenerationConfig(max_length=int(np.max(lengths(train))), **marks)
        return model

    def _separators(self, recipe: Recipe) -> list[int]:
        """Ids of the tokens that the run says end a segment."""
        separators, vocabulary = recipe.data.segment_separators, self.tokenizer.get_vocab()
        if recipe.model.model_type != "hierarchical_vrae":
            raise ValueError(
                f"`segment_separators` {separators} are of a hierarchical_vrae, and this is a model of type "
                f"{recipe.model.model_type}. Leave them out."
            )
        if unknown := [token for token in separators if token not in vocabulary]:
            raise ValueError(f"`segment_separators` must be tokens of the tokenizer, and {unknown[0]!r} is none.")
        return [vocabulary[token] for token in separators]

    def collator(self) -> AutoencodingCollator:
        kind = CausalCollator if self.causal else AutoencodingCollator
        return kind(self.tokenizer.pad_token_id)

    def num_scored(self, lengths: np.ndarray) -> int:
        """Tokens that are predicted in sequences of these lengths: all but `<s>`."""
        return int(lengths.sum() - len(lengths))

    def augment(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A training batch, where there is noise with other words for the decoder; the encoder's stay."""
        if self.noise is None:
            return batch
        read, labels = self.noise(batch["input_ids"], batch["labels"])
        return batch | {"decoder_input_ids": read, "decoder_attention_mask": labels != -100, "labels": labels}

    def fingerprint(self, split: Dataset) -> str:
        """SHA-256 of a split's texts, one per line."""
        digest = hashlib.sha256()
        for start in range(0, split.num_rows, 1000):
            digest.update("".join(f"{text}\n" for text in split[start : start + 1000]["text"]).encode())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """What a model needs beside itself."""
        self.tokenizer.save_pretrained(folder)

    def readable(self, rows: list[dict[str, np.ndarray]]) -> dict:
        """Sequences for a reader."""
        return {"texts": decode(self.tokenizer, [row["input_ids"] for row in rows])}

    def show(self, model: PreTrainedModel, split: Dataset, step: int, seed: int, folder: Path) -> str:
        """Write reconstructions of a split's first sequences, where there is a z, and samples of the prior, and return
        them for the log."""
        examples = Rows(split).__getitems__(list(range(min(SHOWN, len(split)))))
        batch = {
            name: tensor.to(model.device) for name, tensor in self.collator()(examples).items() if name != "labels"
        }
        pairs = []
        if model.config.latent_size:
            ids = model.generate(latents=model.encode(**batch).mode, **conditions_of(model, batch))
            pairs = list(zip(self.readable(examples)["texts"], decode(self.tokenizer, ids), strict=True))
        under = each_label(model, SHOWN, batch)
        samples = draw_texts(model, self.tokenizer, SHOWN, seed, under=under, do_sample=True)
        with open(folder / "samples.jsonl", "a", encoding="utf-8") as file:
            line = {"step": step, "reconstructions": pairs, "samples": samples}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        shown = [f"  text           {text}\n  reconstruction {reconstruction}" for text, reconstruction in pairs]
        return "\n".join([*shown, *(f"  prior sample   {sample}" for sample in samples)])


class FrameTask:
    """Sequences of frames; what a model of them needs is all in its configuration.

    Args:
        head: of the model: it says which values frames may have.
        num_levels: of the model.
        input_size: the channels that frames must have, where the model is there already.
        transpose: how far a sequence's channels are moved in training.
        conditions: columns that condition the model.
        columns: of the data, as of [`load_frames`].
        segments: whether the model has them; another does without those that a file brings.
    """

    unit = "frames"
    options = (*WAYS_TO_READ, "encoding")

    def __init__(
        self,
        head: str,
        num_levels: int,
        input_size: int | None = None,
        transpose: int = 0,
        conditions: Conditions | None = None,
        columns: dict | None = None,
        segments: bool = True,
    ):
        self.input_size, self.transpose, self.conditions = input_size, transpose, conditions or Conditions()
        self.columns, self.segments = columns or {}, segments
        self._take_values_of(head, num_levels)

    def _take_values_of(self, head: str, num_levels: int) -> None:
        levels = num_levels if head == "categorical" else None
        self.values = {"binary": head in ("bernoulli", "nade"), "levels": levels}

    @classmethod
    def prepare(cls, recipe: Recipe) -> tuple["FrameTask", DatasetDict]:
        """The task of a run, and its splits: rows with `input_features` and `length`."""
        columns = _columns(recipe.data)
        asked = dataclasses.replace(recipe.data, **columns)
        frames = _load(asked, cls.options, load_frames, generate_frames, 2_000)
        if "validation" not in frames and asked.stride and asked.stride < asked.window:
            raise ValueError(
                f"`stride` {asked.stride} below `window` {asked.window} cuts windows that overlap: taken out of "
                "training data, some would validate on frames that others train on. Give a `validation_file`."
            )
        task = cls(recipe.model.head, recipe.model.num_levels, None, asked.transpose, None, columns)
        # Before rows are taken out, which mixes them: a row at fault is named by its place in the file.
        check_frames(frames, **task.values, unit="window" if asked.window else "sequence")
        data = _first_rows(_with_validation(frames, asked), asked)
        check_frames(data, **task.values)  # what is left may miss a channel
        conditions = task.conditions = Conditions.fit(data["train"], *asked.conditions)
        if recipe.data.train_window:
            data["train"] = cut_windows(data["train"], recipe.data.train_window)
        data = DatasetDict({name: conditions.add_to(split, name) for name, split in data.items()})
        if recipe.data.max_labeled_samples:
            data["train"] = hide_labels(data["train"], recipe.data.max_labeled_samples, recipe.training.seed)
        return task, data

    def read(self, path: str | None, split: str = "test", **options) -> Dataset:
        """A split of a file, or without one of the built-in frames; `options` as of [`load_frames`], whose columns are
        by default those that the model was trained on."""
        if path is None:
            return generate_frames()[split]
        return load_frames(**{f"{split}_file": path}, **self.columns | options)[split]

    def ready(self, rows: Dataset, name: str = "test") -> Dataset:
        """Rows as the model takes them."""
        check_frames(DatasetDict({name: rows}), **self.values)
        if num_channels(rows) != self.input_size:
            raise ValueError(
                f"The frames of the {name} split have {num_channels(rows)} channels, and the model's `input_size` is "
                f"{self.input_size}. Do they belong together?"
            )
        if not self.segments and SEGMENTS in rows.column_names:
            rows = rows.remove_columns(SEGMENTS)
        return self.conditions.add_to(rows, name)

    def make_model(self, recipe: Recipe, train: Dataset) -> PreTrainedModel:
        """A model for the frames, with their scaling."""
        scaling, head, wanted = {}, recipe.model.head, recipe.data.scale_features
        real_numbers = head not in ("bernoulli", "nade", "categorical")
        if (real_numbers if wanted is None else wanted) and not recipe.training.model_name_or_path:
            fit = fit_range if head == "logistic_mixture" else fit_scaling
            scaling["input_mean"], scaling["input_scale"] = fit(train)
        elif head == "logistic_mixture" and not recipe.training.model_name_or_path:
            reach = np.abs(value_range(train)).max()
            if reach > 1:
                raise ValueError(
                    f"`head` logistic_mixture is of values in [-1, 1], and with `scale_features` false they reach "
                    f"{reach:g}. Leave `scale_features` out."
                )
        conditions = self.conditions.fields(train, recipe.model.label_classifier)
        model = make_model(recipe, input_size=num_channels(train), **self.columns, **scaling, **conditions)
        if recipe.training.model_name_or_path:  # whose head may be another than the recipe's default
            self._take_values_of(model.config.head, model.config.num_levels)
            check_frames(DatasetDict(train=train), **self.values)
        if wanted is not None and wanted != (scaled := model.config.input_scale is not None):
            raise ValueError(
                f"`scale_features` is {wanted}, and the model {recipe.training.model_name_or_path!r} was trained "
                f"{'with' if scaled else 'without'} scaling. Leave it out, or train a new model."
            )
        return model

    def collator(self) -> FrameCollator:
        return FrameCollator()

    def num_scored(self, lengths: np.ndarray) -> int:
        """Frames that are predicted in sequences of these lengths: all."""
        return int(lengths.sum())

    def augment(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A training batch with each sequence's channels moved by a number drawn for it; what leaves at one end enters
        at the other."""
        if not self.transpose:
            return batch
        features = batch["input_features"]
        shifts = torch.randint(-self.transpose, self.transpose + 1, (len(features), 1), device=features.device)
        channels = (torch.arange(features.shape[-1], device=features.device) - shifts) % features.shape[-1]  # [B, F]
        index = channels.unsqueeze(1).expand_as(features)
        return batch | {name: batch[name].gather(-1, index) for name in ("input_features", "labels")}

    def fingerprint(self, split: Dataset) -> str:
        """SHA-256 of a split's values."""
        return frames_fingerprint(split)

    def save(self, folder: str | Path) -> None:
        """Nothing: the scaling is in the configuration."""

    def readable(self, rows: list[dict[str, np.ndarray]]) -> dict:
        """Sequences for a reader."""
        return {"frames": [row["input_features"].tolist() for row in rows]}

    def show(self, model: PreTrainedModel, split: Dataset, step: int, seed: int, folder: Path) -> str:
        """Write to samples.npz a split's first sequences and samples as long as these, and where there is a z
        reconstructions; and say how far off these are."""
        rows = Rows(split).__getitems__(list(range(min(SHOWN, len(split)))))
        if model.config.latent_size:
            shown = reconstruct_frames(model, rows)
        else:
            batch = self.collator()(rows)
            shown = {"real": batch["labels"].numpy(), "lengths": batch["attention_mask"].sum(1).numpy()}
        with stream(seed, model.device):  # that of training's noise stays where it is
            under = each_label(model, len(rows), conditions_in(rows))
            shown["sample"] = sample_frames(model, shown["lengths"].tolist(), do_sample=True, **under)["sample"]
        np.savez(folder / "samples.npz", **shown)
        if "reconstruction" not in shown:
            return "  samples, without reconstructions: there is no z"
        real = np.ma.masked_invalid(shown["real"])
        error = math.sqrt(((shown["reconstruction"] - real) ** 2).mean())
        spread = math.sqrt(((real - real.mean((0, 1))) ** 2).mean())
        with open(folder / "samples.jsonl", "a", encoding="utf-8") as file:
            line = {"step": step, "reconstruction_error": error, "error_of_channel_means": spread}
            file.write(json.dumps(line) + "\n")
        return f"  reconstructions are off by {error:.3f}, root mean square; the channels' means by {spread:.3f}"


def _load(data: DataArguments, options: Sequence[str], load: Callable, generate: Callable, size: int) -> DatasetDict:
    """Every split there is of the data that are named, read with these options, or without a name what is built in."""
    if not (data.train_file or data.dataset_name):
        count = data.corpus_size or size
        held_out = max(1, count // 10)
        return generate(count, held_out, held_out)
    sources = "train_file", "validation_file", "test_file", "dataset_name", "dataset_config_name"
    return load(**{name: getattr(data, name) for name in (*sources, *options)})


def _columns(data: DataArguments) -> dict:
    """The columns of frames that are said of the data, and the channels of a .csv."""
    columns = {name: getattr(data, name) for name in DATA_COLUMNS if getattr(data, name)}
    if data.train_file and Path(data.train_file).suffix in (".csv", ".tsv") and "feature_columns" not in columns:
        marks = {name: column for name, column in columns.items() if name != "feature_columns"}
        columns["feature_columns"] = csv_channels(data.train_file, encoding=data.encoding, **marks)
    return columns


def _with_validation(splits: DatasetDict, data: DataArguments) -> DatasetDict:
    """The splits that a run needs; validation data are taken out of the training data where there are none."""
    if "train" not in splits:
        source = data.dataset_name or data.train_file
        raise ValueError(f"{source!r} has no training split, only {sorted(splits)}.")
    splits = split_validation(splits, data.validation_split_percentage)
    return DatasetDict({name: splits[name] for name in ("train", "validation", "test") if name in splits})


def _first_rows(splits: DatasetDict, data: DataArguments) -> DatasetDict:
    limits = {"train": data.max_train_samples, "validation": data.max_eval_samples, "test": data.max_eval_samples}
    return DatasetDict(
        {
            name: split.select(range(min(limits[name], split.num_rows))) if limits[name] else split
            for name, split in splits.items()
        }
    )


def task_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, max_length: int | None = None
) -> TextTask | FrameTask:
    """The task of a trained model; sequences are cut as in its training where no other `max_length` is given."""
    config, conditions = model.config, Conditions.of_config(model.config)
    if config.input_size is None:
        return TextTask(tokenizer, max_length, causal=not config.is_encoder_decoder, conditions=conditions)
    columns = {name: getattr(config, name) for name in DATA_COLUMNS if getattr(config, name)}
    options = {"conditions": conditions, "columns": columns, "segments": config.model_type == "hierarchical_vrae"}
    return FrameTask(config.head, config.num_levels, config.input_size, **options)


def num_truncated(split: Dataset) -> dict[str, int]:
    """`num_truncated`, how many of its texts were cut, where some were."""
    count = int(np.sum(split.with_format("numpy")["truncated"][:])) if "truncated" in split.column_names else 0
    return {"num_truncated": count} if count else {}


def lengths(split: Dataset) -> np.ndarray:
    """Of each sequence, [N]."""
    return split.with_format("numpy")["length"][:]  # `[:]`: a lazy column reads row by row
