"""Training objectives and bounds as functions of per-example terms, all in nats per sequence."""

import math

import torch


def negative_elbo(reconstruction: torch.Tensor, kl: torch.Tensor, kl_weight: float = 1.0) -> torch.Tensor:
    """Mean over the examples of `reconstruction + kl_weight * kl`, a scalar.

    With `kl_weight` 1 this bounds -log p(x) from above (Kingma & Welling 2014, eq. 3); other weights are the
    beta-VAE (Higgins et al. 2017) and KL annealing (Bowman et al. 2016).

    Args:
        reconstruction: -log p(x|z) summed over the sequence's tokens, [B], or their mean.
        kl: KL(q(z|x) || p(z)) summed over the latent dimensions, [B], or their mean.
        kl_weight: beta.
    """
    return (reconstruction + kl_weight * kl).mean()


def free_bits(kl: torch.Tensor, amount: float, form: str, present: torch.Tensor | None = None) -> torch.Tensor:
    """The KL term of a loss that leaves some KL free of charge, a scalar; what is free has no gradient.

    With KL_bj of example b and dimension j, and lambda the `amount`:

    - dimension_mean: sum_j max(lambda, mean_b KL_bj) (Kingma et al. 2016, eq. 15);
    - dimension: mean_b sum_j max(lambda, KL_bj) (Li et al. 2019, whose target is lambda * D);
    - example: mean_b max(lambda, sum_j KL_bj) (their code's `--fb 1`);
    - mean: max(lambda, mean_b sum_j KL_bj) (their code's `--fb 3`);
    - hinge: mean_b max(0, sum_j KL_bj - lambda ln 2), lambda in bits (Roberts et al. 2018, MusicVAE).

    A mean over b is over the rows at hand, a process's part of the batch.

    Args:
        kl: KL(q(z|x) || p(z)) of each dimension, [B, D].
        amount: lambda, in nats (in bits for hinge): a dimension in the first two forms, a sequence in the others.
        form: one of these.
        present: dimensions that an example has, [B, D]; what it lacks has no KL, nothing free, and no say in a mean.
    """
    free = torch.full_like(kl, amount) if present is None else amount * present.to(kl.dtype)  # [B, D]
    if form == "dimension_mean":
        return torch.maximum(kl.mean(0), free.mean(0)).sum()
    if form == "dimension":
        return torch.maximum(kl, free).sum(1).mean()
    if form == "example":
        return kl.sum(1).clamp(min=amount).mean()
    if form == "mean":
        return kl.sum(1).mean().clamp(min=amount)
    if form == "hinge":
        return (kl.sum(1) - amount * math.log(2)).clamp(min=0).mean()
    raise ValueError(f"`form` must be dimension_mean, dimension, example, mean or hinge, got {form!r}.")


def capacity_gap(kl: torch.Tensor, capacity: float) -> torch.Tensor:
    """|mean_b KL_b - C|, a scalar: the KL is drawn to a capacity from both sides (Burgess et al. 2018, eq. 8).

    Args:
        kl: KL(q(z|x) || p(z)), [B], or their mean.
        capacity: C, in nats per sequence, which a schedule raises.
    """
    return (kl.mean() - capacity).abs()


def importance_weighted_bound(log_weights: torch.Tensor) -> torch.Tensor:
    """log (1/K) sum_k w_k <= log p(x), [B] (Burda et al. 2016, eq. 8), tighter as K grows; K = 1 is the ELBO.

    Args:
        log_weights: log p(x, z_k) - log q(z_k|x), [K, B].
    """
    return torch.logsumexp(log_weights, dim=0) - math.log(log_weights.shape[0])


def particle_filter_bound(terms: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """The logarithm of a particle filter's estimate of p(x), [B], in expectation a lower bound (Maddison et al. 2017).

    Between two resamplings the weights multiply; at each, and at the end, their mean enters the estimate.

    Args:
        terms: log p(x_t, z_t | ...) - log q(z_t | ...) of each particle and step, 0 at padding, [K, B, T].
        segments: how many times a sequence was resampled before each step, [B, T].
    """
    log_weights = torch.zeros_like(terms).scatter_add(2, segments.expand_as(terms), terms)
    return (log_weights.logsumexp(0) - math.log(len(terms))).sum(-1)


def doubly_reparameterised_weights(
    log_weights: torch.Tensor, latents: torch.Tensor, kl_weight: float = 1.0
) -> torch.Tensor:
    """Normalised importance weights [K, B] without gradient, `latents` being made to take each its own once more.

    A loss sum_k weight_k (-log w_k), with q's parameters held fixed in log w_k, then has the gradient of the
    importance-weighted bound in the decoder, and in the encoder its doubly reparameterised estimate, sum_k weight_k^2
    d log w_k / dz_k (Tucker et al. 2019, eq. 8), whose noise does not take over as K grows.

    Args:
        log_weights: log p(x, z_k) - log q(z_k|x), [K, B].
        latents: the z_k, reparameterised, [K, B, D]; their gradient is weighted from now on.
        kl_weight: beta of weights p(x|z) (p(z) / q(z|x))^beta, whose score term is beta times as large: the second
            weight is then 1 - beta + beta weight_k.
    """
    weights = log_weights.detach().softmax(0)
    once_more = (1 - kl_weight + kl_weight * weights).unsqueeze(-1)
    if latents.requires_grad:  # else the encoder is frozen
        latents.register_hook(lambda gradient: gradient * once_more)
    return weights


def maximum_mean_discrepancy(latents: torch.Tensor, prior_latents: torch.Tensor) -> torch.Tensor:
    """MMD^2 between q(z), the posteriors' mixture, and the prior, a scalar: unbiased, so it can be below zero.

    With the inverse multiquadratic kernel C / (C + |z - z'|^2), C = 2 D (Tolstikhin et al. 2018, sec. 4). The term of
    the InfoVAE (Zhao et al. 2019); with KL weight 0 the objective is that of the Wasserstein autoencoder.

    Args:
        latents: one sample of each posterior, [B, D], B at least 2.
        prior_latents: as many samples of the prior, [B, D].
    """
    count = len(latents)
    if count < 2:
        raise ValueError(f"`latents` must hold at least 2 samples to compare distributions, got {count}.")
    z = torch.cat([latents, prior_latents])  # [2B, D]
    # Not `cdist`, whose gradient at distance 0, of each z to itself, is not a number.
    distance = (z.unsqueeze(0) - z.unsqueeze(1)).square().sum(-1)
    scale = 2 * latents.shape[-1]
    kernel = scale / (scale + distance)  # [2B, 2B]
    within = kernel[:count, :count].sum() + kernel[count:, count:].sum() - 2 * count  # each to itself is 1
    return within / (count * (count - 1)) - 2 * kernel[:count, count:].mean()
