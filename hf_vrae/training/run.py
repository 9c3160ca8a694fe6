"""From a recipe to a trained, evaluated and documented model in one folder."""

import dataclasses
import hashlib
import json
import logging
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict
from transformers import GenerationConfig, PreTrainedTokenizerFast

from ..data.datasets import load_text, split_validation, tokenize
from ..data.grammar import generate_corpus
from ..data.tokenization import load_tokenizer, train_tokenizer
from ..evaluation.likelihood import evaluate
from ..modeling.configuration_vrae import VRAEConfig
from ..modeling.modeling_vrae import VRAEForSequenceGeneration
from .arguments import DataArguments, ModelArguments, Recipe, TrainArguments
from .checkpoints import checkpoints, find_checkpoint, prepare_output_dir
from .loop import TrainingLoop, make_accelerator

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "huggingface_hub", "numpy")
OF_THE_LOSS = ("free_bits", "free_bits_form", "mmd_weight", "num_train_samples", "svi_steps")
"""What of the configuration the run's arguments set, whatever model it starts from."""
FREE_TO_CHANGE = ("dropout", "encoder_dropout", "weight_dropout", "word_dropout", "kernels", "initializer_range")
"""What of a saved model a recipe may set anew: no weight depends on it."""


def run(recipe: Recipe) -> dict:
    """Train by a recipe; the folder `output_dir` then holds the best model, its tokenizer, results.json, the curves.

    Returns:
        what results.json holds: the metrics of [`evaluate`] on the test split (or, without one, on the validation
        split), and under "run" how they came about.
    """
    args = recipe.training
    accelerator = make_accelerator(args)
    output_dir = Path(args.output_dir)
    if accelerator.is_main_process and not args.resume_from_checkpoint:
        prepare_output_dir(output_dir, args.overwrite_output_dir)
        recipe.save(output_dir / "recipe.yaml")
    accelerator.wait_for_everyone()
    first_stage = args.autoencoder_epochs > 0
    if first_stage:
        # What the second stage would refuse is refused before the first.
        args.check_model(configuration(recipe, vocab_size=5))
        args = pretrain_autoencoder(recipe)
        recipe = dataclasses.replace(recipe, training=args)
    if args.report_to != "none":
        accelerator.init_trackers("hf_vrae", config=recipe.flat())

    with accelerator.main_process_first():  # the others then find the results in the cache
        text = load_corpus(recipe.data, args.seed)
        tokenizer = make_tokenizer(recipe, text["train"])
        data = tokenize_splits(text, tokenizer, recipe.data)
    set_seed(args.seed)
    model = make_model(recipe, tokenizer, int(np.max(data["train"].with_format("numpy")["length"][:])))
    loop = TrainingLoop(
        model, tokenizer, data["train"], data["validation"], args, accelerator, fingerprint(data["train"])
    )
    numbers = loop.run()
    if first_stage:
        before = json.loads((output_dir / "autoencoder" / "results.json").read_text())["run"]
        numbers["autoencoder_seconds"] = before["training_seconds"]
    model = loop.plain_model
    if accelerator.is_main_process:
        model.save_pretrained(output_dir)
        tokenizer.save_pretrained(output_dir)

    split = "test" if "test" in data else "validation"
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
    described = describe_run(accelerator, model, data, args.seed)
    results = {"split": split, **metrics, "run": described | numbers}
    if accelerator.is_main_process:
        (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for tracker in accelerator.trackers:
        tracker.finish()
    return results


def pretrain_autoencoder(recipe: Recipe) -> TrainArguments:
    """Train an autoencoder in `output_dir/autoencoder`, unless that is done; returns the arguments of what follows.

    The first stage of Li et al. 2019: the same model, z still sampled, its KL free of charge.
    """
    args = recipe.training
    folder = Path(args.output_dir) / "autoencoder"
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
            args,
            output_dir=str(folder),
            overwrite_output_dir=not started,  # it stopped before its first checkpoint
            resume_from_checkpoint="latest" if started else None,
            autoencoder_epochs=0.0,
            num_train_epochs=args.autoencoder_epochs,
            max_steps=-1,
            num_importance_samples=1,
            kl_schedule="constant",
            kl_weight=0.0,
            # What says something of a KL that costs nothing, or is of the decoder that is made anew.
            kl_capacity=0.0,
            minimum_rate=0.0,
            free_bits=0.0,
            num_train_samples=1,
            aggressive=False,
            scheduled_sampling=0.0,
        )
        run(dataclasses.replace(recipe, training=autoencoder))
    return then


def load_corpus(data: DataArguments, seed: int) -> DatasetDict:
    """The text of every split; without a source named, of the built-in corpus."""
    if data.train_file or data.dataset_name:
        text = load_text(
            data.train_file,
            data.validation_file,
            data.test_file,
            data.dataset_name,
            data.dataset_config_name,
            data.text_column,
            data.encoding,
        )
        if "train" not in text:
            raise ValueError(f"`dataset_name` {data.dataset_name!r} has no training split, only {sorted(text)}.")
        text = split_validation(text, data.validation_split_percentage, seed)
    else:
        held_out = max(1, data.corpus_size // 10)
        text = generate_corpus(data.corpus_size, held_out, held_out, seed)
    limits = {"train": data.max_train_samples, "validation": data.max_eval_samples, "test": data.max_eval_samples}
    for split, part in text.items():
        if limits.get(split):
            text[split] = part.select(range(min(limits[split], part.num_rows)))
    return text


def make_tokenizer(recipe: Recipe, train: Dataset) -> PreTrainedTokenizerFast:
    """The tokenizer of the run to go on with, of the model to start from, the one named, or a new one."""
    args, data = recipe.training, recipe.data
    if args.resume_from_checkpoint:
        return load_tokenizer(str(find_checkpoint(args.output_dir, args.resume_from_checkpoint)))
    if args.model_name_or_path or data.tokenizer_name:
        return load_tokenizer(args.model_name_or_path or data.tokenizer_name)
    batches = (train[i : i + 1000]["text"] for i in range(0, train.num_rows, 1000))
    texts = ([text.strip() for text in batch if text] for batch in batches)
    return train_tokenizer(texts, data.tokenizer_type, data.vocab_size, data.min_frequency)


def tokenize_splits(text: DatasetDict, tokenizer: PreTrainedTokenizerFast, data: DataArguments) -> DatasetDict:
    """Token ids of the splits a run needs."""
    splits = [split for split in ("train", "validation", "test") if split in text]
    workers = data.preprocessing_num_workers
    return DatasetDict({split: tokenize(text[split], tokenizer, data.max_length, split, workers) for split in splits})


def fingerprint(data: Dataset) -> str:
    """SHA-256 of a split's texts, one a line."""
    digest = hashlib.sha256()
    for start in range(0, data.num_rows, 1000):
        digest.update("".join(f"{text}\n" for text in data[start : start + 1000]["text"]).encode())
    return digest.hexdigest()


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, longest: int) -> VRAEForSequenceGeneration:
    """A new model for a tokenizer, or the one to start from; it generates up to the longest training sequence."""
    args = recipe.training
    marks = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "bos", "eos")}
    marks["decoder_start_token_id"] = tokenizer.bos_token_id
    config = configuration(recipe, vocab_size=1 + max(tokenizer.get_vocab().values()), **marks)
    if args.model_name_or_path:
        model = start_from(args.model_name_or_path, config)
        if args.reset_decoder:
            model.reset_decoder()
    else:
        model = VRAEForSequenceGeneration(config)
    args.check_model(model.config)
    model.generation_config = GenerationConfig(max_length=longest, **marks_for_generation(marks))
    return model


def configuration(recipe: Recipe, **of_the_tokenizer) -> VRAEConfig:
    """The configuration that a recipe asks for."""
    of_the_loss = {name: getattr(recipe.training, name) for name in OF_THE_LOSS}
    return VRAEConfig(**of_the_tokenizer, **vars(recipe.model), **of_the_loss)


def start_from(name_or_path: str, wanted: VRAEConfig) -> VRAEForSequenceGeneration:
    """A saved model, with what of the wanted configuration is no matter of its weights.

    Raises:
        ValueError: where the recipe asks for another model; a field left at its default asks for nothing.
    """
    config, defaults = VRAEConfig.from_pretrained(name_or_path), VRAEConfig()
    for name in ModelArguments.__dataclass_fields__:
        value = getattr(wanted, name)
        if value in (getattr(defaults, name), getattr(config, name)):
            continue
        if name not in FREE_TO_CHANGE:
            raise ValueError(
                f"`{name}` is {getattr(config, name)} in the model {name_or_path!r}, and the recipe asks for "
                f"{value}. Leave it out, or train a new model."
            )
        setattr(config, name, value)
    for name in OF_THE_LOSS:
        setattr(config, name, getattr(wanted, name))
    config.validate_architecture()
    return VRAEForSequenceGeneration.from_pretrained(name_or_path, config=config)


def marks_for_generation(marks: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in marks.items() if name != "unk_token_id"}


def describe_run(accelerator: Accelerator, model, data: DatasetDict, seed: int) -> dict:
    """Where a run's numbers come from: command, seed, versions, hardware, data."""
    gpu = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else None
    return {
        "command": shlex.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "seed": seed,
        "num_parameters": model.num_parameters(),
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "hardware": gpu or f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "data": {
            split: {
                "sequences": part.num_rows,
                "tokens": int(np.sum(part.with_format("numpy")["length"][:])) - part.num_rows,
                "sha256": fingerprint(part),
            }
            for split, part in data.items()
        },
    }
