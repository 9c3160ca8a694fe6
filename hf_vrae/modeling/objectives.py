"""Training objectives and bounds as functions of per-example terms, all in nats a sequence."""

import math

import torch


def negative_elbo(reconstruction: torch.Tensor, kl: torch.Tensor, kl_weight: float = 1.0) -> torch.Tensor:
    """Mean over the examples of `reconstruction + kl_weight * kl`, a scalar.

    With `kl_weight` 1 this bounds -log p(x) from above (Kingma & Welling 2014, eq. 3); other weights are the
    beta-VAE (Higgins et al. 2017) and KL annealing (Bowman et al. 2016).

    Args:
        reconstruction: -log p(x|z) summed over the sequence's tokens, [B].
        kl: KL(q(z|x) || p(z)) summed over the latent dimensions, [B].
        kl_weight: beta.
    """
    return (reconstruction + kl_weight * kl).mean()


def importance_weighted_bound(log_weights: torch.Tensor) -> torch.Tensor:
    """log (1/K) sum_k w_k <= log p(x), [B] (Burda et al. 2016, eq. 8), tighter as K grows; K = 1 is the ELBO.

    Args:
        log_weights: log p(x, z_k) - log q(z_k|x), [K, B].
    """
    return torch.logsumexp(log_weights, dim=0) - math.log(log_weights.shape[0])
