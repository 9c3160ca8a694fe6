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

from ..data.conditions import Conditions
from ..data.rows import Rows
from .information import active_units, in_evaluation_mode, mutual_information

MI_SEQUENCES = 10_000  # the pairwise estimate costs their square


def perplexity(nll_per_sequence: float, num_sequences: int, num_tokens: int) -> float:
    """exp(total nats / total tokens), where tokens count `</s>` and not `<s>` (He et al. 2019, released code)."""
    try:
        return math.exp(nll_per_sequence * num_sequences / num_tokens)
    except OverflowError:  # a model that diverges is to say so, not to end in a traceback
        return math.inf


def bits(nll_per_sequence: float, num_sequences: int, num_units: int) -> float:
    """Bits a unit (token or character): total nats / (units ln 2)."""
    return nll_per_sequence * num_sequences / (num_units * math.log(2))


def paired_difference(nll: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
    """How much less likely a model finds sequences than a baseline finds the same ones.

    Args:
        nll, baseline: of each sequence in nats, [N] and in the same order, of two sequences at least.

    Returns:
        `difference`, the mean of NLL minus baseline in nats per sequence, below 0 where the model is better, and its
        `standard_error`, s / sqrt(N) of these differences. That is of the sample of sequences, whose lengths, which
        make most of the variance of either NLL, cancel; how far another training would be is for seeds to say.
    """
    differences = nll.astype(np.float64) - baseline
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    return {"difference": float(differences.mean()), "standard_error": float(error)}


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
    per_sequence: bool = False,
) -> dict:
    """Likelihood and information metrics of a model on a data set; every process of `accelerator` takes a share.

    Args:
        model: has `evaluation_terms`; it is put into evaluation mode and back.
        dataset: rows with `length` and `input_ids`, or `input_features` as `load_frames` makes them; `num_characters`,
            for bits per character, and `true_log_prob`, the true log-probability of the row (of frames in raw units),
            where they are there.
        collator: makes a batch with `labels` of a list of sequences.
        num_samples: K of the importance-weighted bound; of a model without z, which gives log p(x) itself, 1.
        batch_size: sequences per batch.
        seed: of the noise.
        svi_steps: of stochastic variational inference from each encoder's posterior (Kim et al. 2018), by the model's
            `refine`; all metrics are then of the refined posteriors.
        per_sequence: also give the terms of each sequence, in the order of the data.

    Returns:
        in nats per sequence where nothing else is said:

        - `neg_elbo`, `reconstruction`, `kl`, `nll_iw`; where the model has one latent per step and K is above 1 also
          `nll_fivo` (Maddison et al. 2017);
        - `active_units`, `num_samples`, `num_sequences`, and `svi_steps` where there are any;
        - `true_nll` where the data know it;
        - of a model with `label_classifier` `num_labeled`, rows with a label, and of these `label_accuracy` of q(c|x);
          what is said of likelihood is of log p(x|c) in these and of log p(x) in the others: beside one another they
          are a mean of two things, so evaluate them apart;
        - where z is one per sequence `mutual_information`, of `mi_num_sequences` sequences, and as
          `mutual_information_32` the mean over batches of 32, the size of He et al. 2019, at most log 32 = 3.47. These
          are neighbours in the data, which differ in less where those are sorted by label. Beside a prior that knows
          the condition both count what z repeats of it, and can exceed the KL;
        - of a model without conditions `marginal_kl`, KL(q(z) || p(z)) = KL - MI of the same sequences: how far the
          posteriors together are from where samples come from (Hoffman & Johnson 2016); too high where MI nears the
          log of their number;
        - where z has scales, these are of that of the whole; and of each `kl_global`, `kl_sections`, `kl_segments`;
        - of tokens what [`_of_tokens`] adds, of frames what [`_of_frames`] does;
        - `per_sequence`, where asked for: arrays [N] of `neg_elbo`, `kl`, `nll_iw`, `num_steps`, and `nll_fivo`;
          where frames are scaled `raw_offset`, that is to be taken from a bound to have it in raw units.
    """
    accelerator = accelerator or Accelerator()
    num_samples = num_samples if model.config.latent_size else 1  # the same number K times over
    batches = own_batches(dataset, batch_size, accelerator)
    sequences = Rows(dataset)
    rows, posterior = [], None
    with in_evaluation_mode(model):
        for indices in tqdm(batches, desc=description, disable=not accelerator.is_local_main_process, leave=False):
            batch = collator(sequences.__getitems__(indices.tolist()))
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            terms = model.evaluation_terms(num_samples, noise_generators(seed, indices), svi_steps, **batch)
            columns, posterior = _columns(terms)
            rows.append({"index": indices, **columns})
    rows = gather_object(rows)
    results = [None]
    if accelerator.is_main_process:
        inverse = np.argsort(np.concatenate([row["index"] for row in rows]))
        columns = {name: np.concatenate([row[name] for row in rows])[inverse] for name in rows[0]}
        results = [_summarise(columns, type(posterior), dataset, model, num_samples, svi_steps, per_sequence)]
    return broadcast_object_list(results)[0]


def own_batches(dataset, batch_size: int, accelerator: Accelerator) -> list[np.ndarray]:
    """The rows of each batch that this process takes, like lengths together, long ones first."""
    order = np.argsort(-dataset.with_format("numpy")["length"][:], kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return batches[accelerator.process_index :: accelerator.num_processes]


def noise_generators(seed: int, indices: np.ndarray) -> list[torch.Generator]:
    """A stream of noise for each sequence, the same in whatever batch or process it is evaluated."""
    seeds = [int(np.random.SeedSequence([seed, int(index)]).generate_state(1)[0]) for index in indices]
    return [torch.Generator().manual_seed(state) for state in seeds]


def _columns(terms) -> tuple[dict[str, np.ndarray], torch.distributions.Distribution | None]:
    """Per-sequence terms of one batch as numpy arrays, and its posterior where z is one per sequence."""
    q, log_weights = terms.pop("posterior", None), terms.pop("log_weights")
    terms["nll_iw"] = math.log(len(log_weights)) - log_weights.logsumexp(0)
    if "log_fivo" in terms:
        terms["nll_fivo"] = -terms.pop("log_fivo")
    if q is not None:
        terms |= {f"posterior/{name}": getattr(q, name) for name in q.arg_constraints}
    return {name: term.cpu().numpy() for name, term in terms.items()}, q


def _summarise(columns, family, dataset, model, num_samples, svi_steps, per_sequence) -> dict:
    config, count = model.config, len(columns["kl"])
    bounds = [name for name in ("nll_iw", "nll_fivo") if name in columns]
    results = {name: float(columns[name].sum()) / count for name in ("reconstruction", "kl", *bounds)}
    results = {"neg_elbo": results["reconstruction"] + results["kl"]} | results
    results |= {name: float(columns[name].sum()) / count for name in columns if name.startswith("kl_")}  # of scales
    told = Conditions.of_config(config) != Conditions()  # something of each sequence
    if family is not type(None):
        results |= _of_one_latent(columns, family, told, model.device)
    if "label_known" in columns:
        results["num_labeled"] = int(columns["label_known"].sum())
        if results["num_labeled"]:
            results["label_accuracy"] = float(columns["label_right"][columns["label_known"]].mean())
    results["active_units"] = active_units(torch.from_numpy(columns["mean"]))
    results |= {"num_samples": num_samples, "num_sequences": count}
    if svi_steps:
        results["svi_steps"] = svi_steps
    on_a_grid = config.input_size is not None and config.head == "logistic_mixture"  # no density, as the true one is
    other_things = on_a_grid or told or config.predict_length  # the truth is of sequences of given lengths
    if "true_log_prob" in dataset.column_names and not (other_things or _has_unknown(dataset)):
        known = dataset.with_format("numpy")
        if "truncated" not in dataset.column_names or not known["truncated"][:].any():  # and of whole sequences
            results["true_nll"] = -float(np.mean(known["true_log_prob"][:]))
    columns["neg_elbo"] = columns["reconstruction"] + columns["kl"]
    bounds = ["neg_elbo", *bounds]
    results |= (_of_tokens if config.input_size is None else _of_frames)(results, columns, bounds, dataset, config)
    if per_sequence:
        names = *bounds, "kl", "num_steps", "raw_offset"
        results["per_sequence"] = {name: columns[name] for name in names if name in columns}
    return results


def _has_unknown(dataset) -> bool:
    """Whether `<unk>` stands for a word somewhere, which is likelier than any of the words it stands for."""
    return "has_unknown" in dataset.column_names and bool(np.any(dataset.with_format("numpy")["has_unknown"][:]))


def _of_one_latent(columns, family, told, device) -> dict[str, float]:
    """`mutual_information`, `mutual_information_32`, `mi_num_sequences`, and beside one prior `marginal_kl`."""
    count = len(columns["kl"])
    some = np.linspace(0, count - 1, min(count, MI_SEQUENCES)).astype(int)
    # Each with each: beside a GPU launchers leave the host a single core. (Apple's has no float64.)
    device = "cpu" if device.type == "mps" else device
    parameters = {
        name.removeprefix("posterior/"): torch.from_numpy(column[some]).to(device)
        for name, column in columns.items()
        if name.startswith("posterior/")
    }
    latents = torch.from_numpy(columns["latents"][some]).to(device)
    batches = [slice(i, i + 32) for i in range(0, len(some), 32)]
    of_32 = [
        mutual_information(family(**{k: v[b] for k, v in parameters.items()}), latents[b]) * len(latents[b])
        for b in batches
    ]
    results = {
        "mutual_information": mutual_information(family(**parameters), latents),
        "mutual_information_32": sum(of_32) / len(some),
        "mi_num_sequences": len(some),
    }
    if not told:
        kl = columns["kl_global" if "kl_global" in columns else "kl"][some]
        results["marginal_kl"] = float(kl.mean()) - results["mutual_information"]
    return results


def _of_tokens(results, columns, bounds, dataset, config) -> dict[str, float]:
    """`ppl_iw`, `ppl_elbo`, `ppl_fivo`, `bits_per_token`, `num_tokens`; where no word is unknown, `bits_per_character`
    and `num_characters`."""
    count, tokens = results["num_sequences"], int(columns["num_steps"].sum())
    added = {f"ppl_{name.split('_')[1]}": perplexity(results[name], count, tokens) for name in bounds}
    added |= {"bits_per_token": bits(results["nll_iw"], count, tokens), "num_tokens": tokens}
    if "num_characters" in dataset.column_names and not _has_unknown(dataset):
        characters = int(np.sum(dataset.with_format("numpy")["num_characters"][:]))
        added |= {"bits_per_character": bits(results["nll_iw"], count, characters), "num_characters": characters}
    return added


def _of_frames(results, columns, bounds, dataset, config) -> dict[str, float | str]:
    """Of each bound `_per_step`, total nats / total steps, and `_mean_of_means`, over the sequences, of the nats per
    step of each; `kl_per_step`, `num_steps`. Of values on a grid, one per frame, `bits_per_value`. Where the model
    scales frames, `units` is "scaled" and each bound is also there in raw units, `_raw` and `_raw_per_step`."""
    count, steps = results["num_sequences"], columns["num_steps"]
    total = int(steps.sum())
    added = {"num_steps": total, "kl_per_step": float(columns["kl"].sum()) / total}
    for name in bounds:
        added[f"{name}_per_step"] = float(columns[name].sum()) / total
        added[f"{name}_mean_of_means"] = float((columns[name] / steps.clip(min=1)).mean())
    on_a_grid = config.head in ("categorical", "logistic_mixture") and config.input_size == 1
    if on_a_grid and not config.predict_length:  # which costs bits that are no value's
        added["bits_per_value"] = bits(results["nll_iw"], count, total)
    if "raw_offset" in columns:
        offset = float(columns["raw_offset"].sum())
        added["units"] = "scaled"
        for name in bounds:
            added[f"{name}_raw"] = results[name] - offset / count
            added[f"{name}_raw_per_step"] = added[f"{name}_per_step"] - offset / total
        if "true_nll" in results:
            added |= {"true_nll": results["true_nll"] + offset / count, "true_nll_raw": results["true_nll"]}
    return added
