"""Walking in latent space: paths between two points, and directions that change an attribute."""

import torch


def interpolate(start: torch.Tensor, end: torch.Tensor, num_steps: int, spherical: bool = False) -> torch.Tensor:
    """Points on the way from one latent to another, both ends included.

    Args:
        start, end: [D], best the posterior means of two sequences.
        num_steps: number of points, at least 2.
        spherical: along the great circle (Shoemake 1985), which keeps the norm that samples of the prior have, in
            place of the straight line, whose middle is nearer to zero.

    Returns:
        [num_steps, D].
    """
    if num_steps < 2:
        raise ValueError(f"`num_steps` must be at least 2, both ends, got {num_steps}.")
    t = torch.linspace(0, 1, num_steps, device=start.device, dtype=start.dtype).unsqueeze(-1)  # [S, 1]
    straight = (1 - t) * start + t * end
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=-1)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if not spherical or angle.sin() < 1e-6:  # parallel or opposite vectors have no great circle of their own
        return straight
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)


def attribute_vector(with_attribute: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
    """Direction of an attribute: difference of the mean latents of two sets of examples (White 2016, sec. 3.3).

    Args:
        with_attribute, without: posterior means, [N, D] and [M, D].

    Returns:
        [D]; add a multiple of it to a latent to give it more of the attribute.
    """
    return with_attribute.mean(0) - without.mean(0)


@torch.no_grad()
def encode_texts(model, tokenizer, texts: list[str], batch_size: int = 64) -> torch.Tensor:
    """Posterior means of texts, [N, D]."""
    means = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(texts[start : start + batch_size], return_tensors="pt", padding=True)
        means.append(model.encode(**batch.to(model.device)).mean)
    return torch.cat(means)
