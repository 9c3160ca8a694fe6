"""Inference beyond one look of the encoder."""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .distributions import DiagonalGaussian
from .posteriors import MAX_LOGVAR, MIN_LOGVAR

# Kim et al. 2018, released code: learning rate 1 of the gradient of a batch's mean, and batches of 32; momentum 0.5.
# Theirs is clipped at 5 for the whole batch, 28 for a sequence, hardly ever reached. A limit for each sequence keeps a
# result from depending on its neighbours; at 1 one sample's noise cannot throw a trained posterior far off.
LEARNING_RATE, MOMENTUM, MAX_NORM = 1 / 32, 0.5, 1.0


def refine(
    posterior: DiagonalGaussian,
    negative_elbo: Callable[[DiagonalGaussian, torch.Tensor], torch.Tensor],
    num_steps: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    differentiable: bool = False,
) -> DiagonalGaussian:
    """Stochastic variational inference from an amortised start (Hoffman et al. 2013; Kim et al. 2018, algorithm 1).

    Args:
        posterior: where to start, batch shape [B].
        negative_elbo: of q and a sample of it [B, D], [B].
        num_steps: of gradient descent with momentum on mean and log-variance, one sample a step.
        generator: of the samples, as in [`DiagonalGaussian.rsample`].
        differentiable: keep the graph through all steps, to train what gave the start and what is minimised.

    Returns:
        the refined posterior; without `differentiable` there is no gradient in it.

    Raises:
        ValueError: under `torch.inference_mode()`.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "`svi_steps` descends a gradient, which `torch.inference_mode()` forbids. Take `torch.no_grad()`."
        )
    # cuDNN's recurrent layers have no second derivative, and outside of training not even a first; of the kernels of
    # attention only the plain one has a second.
    plain = torch.backends.cudnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH)
    with torch.enable_grad(), plain[0], plain[1]:
        parameters = torch.stack([posterior.mean, posterior.logvar])  # [2, B, D]
        if not (differentiable and parameters.requires_grad):  # where the encoder is frozen it has none
            parameters = parameters.detach().requires_grad_()
        velocity = torch.zeros_like(parameters)
        for _ in range(num_steps):
            q = DiagonalGaussian(parameters[0], parameters[1])
            loss = negative_elbo(q, q.rsample(generator=generator)).sum()
            (gradient,) = torch.autograd.grad(loss, parameters, create_graph=differentiable)
            norm = gradient.square().sum((0, 2), keepdim=True).add(1e-12).sqrt()
            velocity = MOMENTUM * velocity + gradient * (MAX_NORM / norm).clamp(max=1)
            parameters = parameters - LEARNING_RATE * velocity
            parameters = torch.stack([parameters[0], parameters[1].clamp(MIN_LOGVAR, MAX_LOGVAR)])
            if not differentiable:
                parameters, velocity = parameters.detach().requires_grad_(), velocity.detach()
    if not differentiable:
        parameters = parameters.detach()
    return DiagonalGaussian(parameters[0], parameters[1])
