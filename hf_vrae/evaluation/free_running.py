"""Reconstruction from the latent alone: each step told the true ones before it, or what the model said there itself.

Teacher-forced, a model is right also where its decoder needs no z; free-running, an error is what the next steps go on
from. The two beside each other say how much of a reconstruction is z's doing (Roberts et al. 2018), and only
the second says something about generation (Girin et al. 2021, on models in generation mode).
"""

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ..data.rows import Rows
from ..latent import conditions_of
from .information import in_evaluation_mode
from .likelihood import own_batches

INPUTS = ("input_ids", "input_features", "attention_mask", "labels")


@torch.no_grad()
def evaluate_free_running(
    model, dataset, collator, batch_size: int = 64, accelerator: Accelerator | None = None
) -> dict[str, float]:
    """How much of each sequence comes back from its z, the posterior's mode (of one latent per step, the path of the
    posterior means), greedily decoded; every process of `accelerator` takes a share.

    Position by position, over all real positions of the data: a text that ends too early is wrong at every token it
    leaves out, one that goes on too long at its `</s>`, and a token left out makes all that follow it wrong. Of frames
    as many are decoded as there are.

    Args:
        model: has `encode`, `teacher_forced` and `generate`; it is put into evaluation mode and back.
        dataset: rows with `length` and `input_ids` or `input_features`.
        collator: makes a batch of a list of sequences; what it has beside these is passed on to `generate`.
        batch_size: sequences per batch; changes the speed and nothing else.

    Returns:
        each of these with `teacher_forced_` and, where the model has latents, with `free_running_` before the name:
        of tokens and of the categorical head `accuracy`, the share of values that are equal; of binary frames
        `frame_accuracy`, TP / (TP + FP + FN) over all active notes (Bay et al. 2009), and `f1`; of real frames `rmse`,
        the root mean square error over all channels, in raw units.
    """
    accelerator = accelerator or Accelerator()
    sequences, counts = Rows(dataset), []
    with in_evaluation_mode(model):
        for indices in own_batches(dataset, batch_size, accelerator):
            batch = collator(sequences.__getitems__(indices.tolist()))
            counts.append(_counts(model, {name: tensor.to(model.device) for name, tensor in batch.items()}))
    counts, results = gather_object(counts), [None]
    if accelerator.is_main_process:
        ways = {way: sum(count[way] for count in counts) for way in counts[0]}
        results = [
            {f"{way}_{name}": value for way, two in ways.items() for name, value in _measures(two, model).items()}
        ]
    return broadcast_object_list(results)[0]


def _counts(model, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """By the way of decoding, two sums over a batch's positions from which [`_measures`] are made."""
    batch = batch | conditions_of(model, batch)  # z alone does not tell a label that is missing
    latents = model.encode(**batch).mode
    decode, truth = _free_tokens, batch.get("input_ids")
    if model.config.input_size is None:
        truth = truth[:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -1)
        scored = truth != -1
    else:
        decode, truth = _free_frames, batch["labels"]
        scored = ~truth.isnan()
    said = {"teacher_forced": model.teacher_forced(latents, **batch)}
    if model.config.latent_size:
        said["free_running"] = decode(model, latents, batch)
    return {way: _agreement(steps[scored], truth[scored], model) for way, steps in said.items()}


def _free_tokens(model, latents, batch: dict[str, torch.Tensor]) -> torch.LongTensor:
    """[B, T - 1]; -2, which is no token, behind a row's `</s>`."""
    width = batch["input_ids"].shape[1]
    others = {name: tensor for name, tensor in batch.items() if name not in INPUTS}
    # The likeliest word each time, up to here, whatever the model's own configuration says.
    plain = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
    ids = model.generate(latents=latents, max_length=width, max_new_tokens=None, **plain, **others)[:, 1:]
    ended = ids == model.config.eos_token_id
    ids = ids.masked_fill(ended.cumsum(1) - ended.long() > 0, -2)
    return torch.nn.functional.pad(ids, (0, width - 1 - ids.shape[1]), value=-2)


def _free_frames(model, latents, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, T, F], raw."""
    others = {name: tensor for name, tensor in batch.items() if name not in INPUTS}
    mask = batch["attention_mask"]
    frames = model.generate(latents=latents, lengths=mask.sum(1), **others).sequences
    return torch.nn.functional.pad(frames, (0, 0, 0, mask.shape[1] - frames.shape[1]))


def _agreement(said: torch.Tensor, truth: torch.Tensor, model) -> np.ndarray:
    """Of values [N]: of binary ones true positives, and errors; of real ones their squared error, and N; of others how
    many are equal, and N."""
    kind = _kind(model.config)
    if kind == "binary":
        pair = (said * truth).sum(), (said != truth).sum()
    elif kind == "real":
        pair = (said.cpu().double() - truth.cpu().double()).square().sum(), torch.tensor(truth.numel())
    else:
        pair = (said == truth).sum(), torch.tensor(truth.numel())
    return np.array([float(number) for number in pair])


def _measures(counts: np.ndarray, model) -> dict[str, float]:
    first, second = counts.tolist()
    kind = _kind(model.config)
    if kind == "binary":
        if not first + second:  # silence, and nothing but silence was said
            return {"frame_accuracy": 1.0, "f1": 1.0}
        return {"frame_accuracy": first / (first + second), "f1": 2 * first / (2 * first + second)}
    return {"rmse": (first / second) ** 0.5} if kind == "real" else {"accuracy": first / second}


def _kind(config) -> str:
    if config.input_size is None or config.head == "categorical":
        return "discrete"
    return "binary" if config.head in ("bernoulli", "nade") else "real"
