"""Bounds of the log-likelihood and what follows from them, exact under padding, batch size and number of processes.

Sums and counts are carried, never means of means, and a sequence's noise depends on nothing but the seed and its
position in the data.
"""

import math

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from .information import active_units, mutual_information

MI_SEQUENCES = 10_000  # the pairwise estimate costs their square


def perplexity(nll_per_sequence: float, num_sequences: int, num_tokens: int) -> float:
    """exp(total nats / total tokens), where tokens count `</s>` and not `<s>` (He et al. 2019, released code)."""
    return math.exp(nll_per_sequence * num_sequences / num_tokens)


def bits(nll_per_sequence: float, num_sequences: int, num_units: int) -> float:
    """Bits a unit (token or character): total nats / (units ln 2)."""
    return nll_per_sequence * num_sequences / (num_units * math.log(2))


@torch.no_grad()
def evaluate(
    model,
    dataset,
    collator,
    num_samples: int = 100,
    batch_size: int = 32,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    description: str = "Evaluating",
    svi_steps: int = 0,
) -> dict[str, float]:
    """Likelihood and information metrics of a model on a data set; every process of `accelerator` takes a share.

    Args:
        model: has `evaluation_terms`; it is put into evaluation mode and back.
        dataset: rows with `input_ids`, `length` and, for bits a character, `num_characters`; `log_prob`, where there,
            is the true log-probability of the row.
        collator: makes a batch with `labels` of a list of sequences of token ids.
        num_samples: K of the importance-weighted bound.
        batch_size: sequences a batch.
        seed: of the noise.
        svi_steps: of stochastic variational inference from each encoder's posterior (Kim et al. 2018), by the model's
            `refine`; all metrics are then of the refined posteriors.

    Returns:
        in nats a sequence where nothing else is said: `neg_elbo`, `reconstruction`, `kl`, `nll_iw`, `ppl_iw`,
        `ppl_elbo`, `bits_per_token`, `bits_per_character`, `mutual_information` (of `mi_num_sequences` sequences),
        `mutual_information_32` (the mean over batches of 32, the size of He et al. 2019, at most log 32 = 3.47),
        `active_units`, `num_samples`, `num_sequences`, `num_tokens`, and `true_nll` where the data know it.
    """
    accelerator = accelerator or Accelerator()
    was_training = model.training
    model.eval()
    # Like lengths together, long ones first: the same batches in whatever order the data come.
    order = np.argsort(-dataset.with_format("numpy")["length"][:], kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches = batches[accelerator.process_index :: accelerator.num_processes]
    sequences = dataset.with_format("numpy", columns=["input_ids"])
    rows, posterior = [], None
    for indices in tqdm(batches, desc=description, disable=not accelerator.is_local_main_process, leave=False):
        batch = collator(sequences[indices]["input_ids"])
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        terms = model.evaluation_terms(num_samples, noise_generators(seed, indices), svi_steps, **batch)
        columns, posterior = _columns(terms)
        rows.append({"index": indices, **columns})
    model.train(was_training)
    rows = gather_object(rows)
    results = [None]
    if accelerator.is_main_process:
        inverse = np.argsort(np.concatenate([row["index"] for row in rows]))
        columns = {name: np.concatenate([row[name] for row in rows])[inverse] for name in rows[0]}
        results = [_summarise(columns, type(posterior), dataset, num_samples)]
    return broadcast_object_list(results)[0]


def noise_generators(seed: int, indices: np.ndarray) -> list[torch.Generator]:
    """A stream of noise for each sequence, the same in whatever batch or process it is evaluated."""
    seeds = [int(np.random.SeedSequence([seed, int(index)]).generate_state(1)[0]) for index in indices]
    return [torch.Generator().manual_seed(state) for state in seeds]


def _columns(terms) -> tuple[dict[str, np.ndarray], torch.distributions.Distribution]:
    """Per-sequence terms of one batch as numpy arrays, and its posterior."""
    q, log_weights = terms.pop("posterior"), terms.pop("log_weights")
    terms["nll_iw"] = math.log(len(log_weights)) - log_weights.logsumexp(0)
    terms |= {f"posterior/{name}": getattr(q, name) for name in q.arg_constraints}
    return {name: term.cpu().numpy() for name, term in terms.items()}, q


def _summarise(columns, family, dataset, num_samples) -> dict[str, float]:
    count, tokens = len(columns["kl"]), int(columns["num_steps"].sum())
    reconstruction, kl, nll_iw = (float(columns[name].sum()) / count for name in ("reconstruction", "kl", "nll_iw"))
    neg_elbo = reconstruction + kl
    some = np.linspace(0, count - 1, min(count, MI_SEQUENCES)).astype(int)
    parameters = {
        name.removeprefix("posterior/"): torch.from_numpy(column[some])
        for name, column in columns.items()
        if name.startswith("posterior/")
    }
    posterior, latents = family(**parameters), torch.from_numpy(columns["latents"][some])
    batches = [slice(i, i + 32) for i in range(0, len(some), 32)]
    of_32 = [
        mutual_information(family(**{k: v[b] for k, v in parameters.items()}), latents[b]) * len(latents[b])
        for b in batches
    ]
    results = {
        "neg_elbo": neg_elbo,
        "reconstruction": reconstruction,
        "kl": kl,
        "nll_iw": nll_iw,
        "ppl_iw": perplexity(nll_iw, count, tokens),
        "ppl_elbo": perplexity(neg_elbo, count, tokens),
        "bits_per_token": bits(nll_iw, count, tokens),
        "mutual_information": mutual_information(posterior, latents),
        "mutual_information_32": sum(of_32) / len(some),
        "mi_num_sequences": len(some),
        "active_units": active_units(torch.from_numpy(columns["mean"])),
        "num_samples": num_samples,
        "num_sequences": count,
        "num_tokens": tokens,
    }
    if "num_characters" in dataset.column_names:
        characters = int(np.sum(dataset.with_format("numpy")["num_characters"][:]))
        results |= {"bits_per_character": bits(nll_iw, count, characters), "num_characters": characters}
    if "log_prob" in dataset.column_names:
        results["true_nll"] = -float(np.mean(dataset.with_format("numpy")["log_prob"][:]))
    return results
