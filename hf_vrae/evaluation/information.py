"""How much a latent says about its input."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch.distributions import Distribution

from ..data.rows import Rows


@torch.no_grad()
def encode_dataset(model, dataset, collator, batch_size: int = 64) -> Distribution:
    """q(z|x) of every sequence of a data set, in its order and on the CPU: a distribution of batch shape [N]; where z
    has scales, that of the whole.

    Args:
        model: has `encode`; it is put into evaluation mode and back.
        dataset: rows with `input_ids` or `input_features`.
        collator: makes a batch of a list of such sequences.
        batch_size: sequences per batch.

    Raises:
        ValueError: for a vrnn.
    """
    if model.config.model_type == "vrnn":
        raise ValueError(
            "A vrnn has a posterior per step, of what was sampled before: there is no q(z|x) of a sequence."
        )
    parts = [q for _, q in encoded_batches(model, dataset, collator, batch_size)]
    names = parts[0].arg_constraints
    return type(parts[0])(**{name: torch.cat([getattr(q, name).cpu() for q in parts]) for name in names})


@torch.no_grad()
def encoded_batches(model, dataset, collator, batch_size: int) -> Iterator[tuple[dict, Distribution]]:
    """Each batch of a data set, in its order, and what `encode` makes of it; arguments as of [`encode_dataset`].

    Raises:
        ValueError: for a model without latents.
    """
    if not model.config.latent_size:
        raise ValueError("`latent_size` of this model is 0: it has no latents that could say anything of a sequence.")
    with in_evaluation_mode(model):
        for batch in batches_in_order(dataset, collator, batch_size):
            q = model.encode(**{name: tensor.to(model.device) for name, tensor in batch.items()})
            # Of several scales only the whole is there in every sequence.
            yield batch, q.global_scale if model.config.model_type == "hierarchical_vrae" else q


def batches_in_order(dataset, collator, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    sequences = Rows(dataset)
    for start in range(0, len(sequences), batch_size):
        yield collator(sequences.__getitems__(list(range(start, min(start + batch_size, len(sequences))))))


@contextlib.contextmanager
def in_evaluation_mode(model) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def active_units(means: torch.Tensor, threshold: float = 0.01) -> int:
    """Number of dimensions j with Var_x(E[z_j|x]) above the threshold (Burda et al. 2016, sec. 5.3).

    Args:
        means: posterior mean of each of N sequences, [N, D].
        threshold: 0.01 in the paper; the count depends on it.
    """
    if means.shape[0] < 2 or means.shape[1] == 0:
        return 0
    return int((means.double().var(dim=0) > threshold).sum())


def mutual_information(posterior: Distribution, latents: torch.Tensor, rows_at_once: int = 64) -> float:
    """I_q(x; z) in nats (Hoffman & Johnson 2016): mean_i [log q(z_i|x_i) - log (1/N) sum_j q(z_i|x_j)].

    Both terms take the same samples, so the estimate cannot exceed log N, and noise that they share cancels; with few
    sequences it is too low for that cap. An estimate slightly below zero is one of zero.

    Args:
        posterior: q(z|x) of each of N sequences, batch shape [N].
        latents: a sample z_i of each, [N, D].
        rows_at_once: samples compared with all posteriors at once; bounds the memory.
    """
    count = latents.shape[0]
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, count, rows_at_once):
        part = latents[start : start + rows_at_once]
        log_q = posterior.log_prob(part.unsqueeze(1)).double()  # [rows, N]: log q(z_i | x_j)
        own = log_q[torch.arange(len(part)), start + torch.arange(len(part))]
        total += (own - log_q.logsumexp(dim=1) + math.log(count)).sum().cpu()
    return (total / count).item()
