"""Walking in latent space: new sequences, reconstructions, paths between two points, directions of an attribute.

The functions on tensors know nothing of text; those on texts return rows to print or to write.
"""

import torch

from .data.tokenization import decode


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
    angle = torch.arccos(torch.nn.functional.cosine_similarity(start, end, dim=-1).clamp(-1, 1))
    if not spherical or angle.sin() < 1e-6:  # parallel and opposite vectors have no great circle of their own
        return (1 - t) * start + t * end
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
    """Posterior means of texts, or of a vMF posterior directions, [N, D]: what stands for a text in latent space."""
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"`texts` must hold at least one text and no empty one, got {texts[:3]}.")
    means = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(texts[start : start + batch_size], return_tensors="pt", padding=True)
        means.append(model.encode(**batch.to(model.device)).mode)
    return torch.cat(means)


def decode_latents(model, tokenizer, latents: torch.Tensor, prefix: str | None = None, **options) -> list[str]:
    """Text of each latent [N, D], with a given beginning; `options` are those of `generate`.

    Samples are of p(x|z) itself, where `generate` by default keeps the 50 likeliest words (`top_k`).
    """
    if options.get("do_sample"):
        options = {"top_k": 0, **options}
    if prefix:
        ids = [tokenizer.bos_token_id, *tokenizer(prefix, add_special_tokens=False)["input_ids"]]
        options["decoder_input_ids"] = torch.tensor([ids], device=model.device)
    return decode(tokenizer, model.generate(latents=latents, **options))


def sample_texts(model, tokenizer, count: int, seed: int | None = None, **options) -> list[dict]:
    """New sequences: z from the prior, decoded."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    latents = model.prior().sample((count,), generator=generator)
    return [{"text": text} for text in decode_latents(model, tokenizer, latents, **options)]


def reconstruct_texts(model, tokenizer, texts: list[str], **options) -> list[dict]:
    """Each text beside what its posterior mean decodes to."""
    decoded = decode_latents(model, tokenizer, encode_texts(model, tokenizer, texts), **options)
    return [{"text": text, "reconstruction": new} for text, new in zip(texts, decoded, strict=True)]


def interpolate_texts(
    model, tokenizer, texts: list[str], num_steps: int = 7, spherical=False, **options
) -> list[dict]:
    """Texts on the way from the first of two texts to the second; `t` runs from 0 to 1."""
    if len(texts) != 2:
        raise ValueError(f"`texts` must be the two ends of the path, got {len(texts)} texts.")
    first, last = encode_texts(model, tokenizer, texts)
    decoded = decode_latents(model, tokenizer, interpolate(first, last, num_steps, spherical), **options)
    return [{"t": round(i / (num_steps - 1), 4), "text": text} for i, text in enumerate(decoded)]


def move_texts(model, tokenizer, texts, with_attribute, without, strengths=(1.0,), **options) -> list[dict]:
    """Texts moved along an attribute, given by two sets of example texts, by each of several strengths."""
    examples = (encode_texts(model, tokenizer, examples) for examples in (with_attribute, without))
    direction, latents = attribute_vector(*examples), encode_texts(model, tokenizer, texts)
    rows = []
    for strength in strengths:
        decoded = decode_latents(model, tokenizer, latents + strength * direction, **options)
        rows += [{"text": t, "strength": strength, "moved": new} for t, new in zip(texts, decoded, strict=True)]
    return rows
