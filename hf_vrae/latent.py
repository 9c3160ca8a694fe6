"""Walking in latent space: new sequences, reconstructions, paths between two points, directions of an attribute.

The functions on tensors know nothing of text or frames; those on texts return rows to print or to write, those on
frames arrays to draw or to save.
"""

import contextlib

import numpy as np
import torch
from tqdm.auto import tqdm

from .data.collators import FrameCollator
from .data.conditions import OF_A_BATCH
from .data.tokenization import decode

# Of `generate`: each word from the whole distribution, whatever the model's own configuration says.
OF_ALL_WORDS = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0}


def interpolate(start: torch.Tensor, end: torch.Tensor, num_steps: int, spherical: bool = False) -> torch.Tensor:
    """Points on the way from one latent to another, both ends included.

    Args:
        start, end: [D], best the posterior means of two sequences.
        num_steps: number of points, at least 2.
        spherical: along the great circle (Shoemake 1985), which keeps the norm that samples of the prior have, in
            place of the straight line, whose middle is nearer to zero.

    Returns:
        [num_steps, D]; between the ends NaN where one of them has it, which is for the prior to fill in.
    """
    t = _way(num_steps).to(start).unsqueeze(-1)  # [S, 1]
    both = ~(start.isnan() | end.isnan())
    angle = torch.arccos(torch.nn.functional.cosine_similarity(start[both], end[both], dim=-1).clamp(-1, 1))
    if not spherical or angle.sin() < 1e-6:  # parallel and opposite vectors have no great circle of their own
        path = (1 - t) * start + t * end
    else:
        path = (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)
    path[0], path[-1] = start, end
    return path


def _way(num_steps: int) -> torch.Tensor:
    """Places on the way from one end, 0, to the other, 1: [S]."""
    if num_steps < 2:
        raise ValueError(f"`num_steps` must be at least 2, both ends, got {num_steps}.")
    return torch.linspace(0, 1, num_steps)


def along(direction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """A direction [D] among latents [..., W], of their first D numbers: where z has scales, those of the whole."""
    return torch.nn.functional.pad(direction, (0, latents.shape[-1] - len(direction)))


def attribute_vector(with_attribute: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
    """Direction of an attribute: difference of the mean latents of two sets of examples (White 2016, sec. 3.3).

    Args:
        with_attribute, without: posterior means, [N, D] and [M, D].

    Returns:
        [D]; add a multiple of it to a latent to give it more of the attribute.
    """
    return with_attribute.mean(0) - without.mean(0)


def is_on_sphere(model) -> bool:
    """Whether z is a unit vector, as of a von Mises-Fisher posterior: the decoder knows no other."""
    return model.config.posterior == "vmf"


def moved(model, latents: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Latents [..., D] and a step [..., D] from there; where z lies on a sphere, back on it."""
    latents = latents + step
    return torch.nn.functional.normalize(latents, dim=-1) if is_on_sphere(model) else latents


def conditions_of(model, batch: dict) -> dict[str, torch.Tensor]:
    """What of a batch its latents stand under, and its segments, for `generate`, on the model's device; a missing
    label is inferred where the model can."""
    batch = {name: values.to(model.device) for name, values in batch.items()}
    under = {name: batch[name] for name in (*OF_A_BATCH, "segment_ids") if batch.get(name) is not None}
    if model.config.label_classifier:
        under["class_ids"] = model.infer_labels(**batch)
    return under


def each_label(model, count: int, batch: dict) -> dict:
    """Conditions for so many samples: all combinations of the labels' values in turn, and what else a batch has."""
    given = [name for name in ("attributes", "condition") if name in batch]
    under = {name: batch[name][torch.arange(count) % len(batch[name])] for name in given}
    labels, each = {}, 1  # for how many samples a value holds: the first label changes at each
    for name, values in (model.config.condition_labels or {}).items():
        labels[name] = [values[i // each % len(values)] for i in range(count)]
        each *= len(values)
    return under | {"labels": labels} if labels else under


def draw_latents(model, count: int, generator: torch.Generator | None = None, **under) -> torch.Tensor:
    """z of the prior, [count, D]; `under` says what each stands under, as in `generate`."""
    p = model.prior(**under)
    if p.batch_shape in ((), (1,)):  # of nothing, or of what is said of all
        return p.sample((count,), generator=generator).view(count, -1)
    return p.sample((), generator=generator)


def seed_behind(generator: torch.Generator) -> int:
    """A seed for words, by other numbers than a generator gave z: the same ones would tie x to z beyond p(x|z)."""
    return int(torch.randint(2**62, (), generator=generator))


@torch.no_grad()
def encode_texts(model, tokenizer, texts: list[str], batch_size: int = 64, labels=None) -> torch.Tensor:
    """Posterior means of texts, or of a vMF posterior directions, [N, D]: what stands for a text in latent space.

    Where z has scales they are flat vectors of all of them, with NaN where a text has no such segment.

    Args:
        labels: of a conditional model, what the texts themselves stand under, as in `generate`.
    """
    check_has_latents(model)
    if not texts:
        raise ValueError("`texts` must hold one text at least, got none.")
    if empty := [i for i, text in enumerate(texts) if not text.strip()]:
        raise ValueError(
            f"`texts` must hold no empty one, but number {empty[0]} is {texts[empty[0]]!r}. Leave it out."
        )
    if tokenizer is None:
        raise ValueError("`texts` are of a model of text, and this one is of frames: see scripts/generate.py.")
    if model.config.model_type == "vrnn":
        raise ValueError(
            "A vrnn has a latent per token, so texts have no one vector each to decode or move. Its own `encode` and "
            "`generate(latents=)` take those of a text."
        )
    means, own = [], {}
    if labels is not None:
        own = {"class_ids": model.label_ids(for_all(labels, len(texts)))}
    for start in range(0, len(texts), batch_size):
        part = slice(start, start + batch_size)
        batch = tokenizer(texts[part], return_tensors="pt", padding=True)
        own_part = {name: rows[part].to(model.device) for name, rows in own.items()}
        means += model.encode(**batch.to(model.device), **own_part).mode.unbind(0)
    return _stacked(means)


def check_has_latents(model) -> None:
    """Refuse what decodes or moves z where there is none: all texts would come out alike."""
    if not model.config.latent_size:
        raise ValueError("`latent_size` of this model is 0: it has no z to decode or move. Take a model with latents.")


def decode_latents(model, tokenizer, latents: torch.Tensor, prefix: str | None = None, **options) -> list[str]:
    """Text of each latent [N, D], with a given beginning; `options` are those of `generate`.

    Samples are of p(x|z) itself, where `generate` by default keeps the 50 likeliest words (`top_k`), or what else the
    model's `generation_config` says.
    """
    if prefix:
        options["decoder_input_ids"] = _beginning(model, tokenizer, prefix)
    return decode(tokenizer, model.generate(latents=latents, **_of_all_words(options)))


def _beginning(model, tokenizer, prefix: str | None) -> torch.LongTensor:
    """[1, T]"""
    ids = [tokenizer.bos_token_id, *tokenizer(prefix or "", add_special_tokens=False)["input_ids"]]
    return torch.tensor([ids], device=model.device)


def _of_all_words(options: dict) -> dict:
    return OF_ALL_WORDS | options if options.get("do_sample") else options


@torch.no_grad()
def draw_texts(
    model, tokenizer, count: int, seed: int | None = None, batch_size: int = 64, prefix=None, under=None, **options
) -> list[str]:
    """Texts of z ~ p(z): x ~ p(x|z) with `do_sample`, else the likeliest words.

    Args:
        seed: all that is drawn goes by it, and the process's random state stays as it was; by default it goes by that.
        batch_size: texts at once; with another size others are drawn.
        prefix: beginning of every text.
        under: what each of them stands under, by the words of a batch, or `labels` as in `generate`.
        options: of `generate`; words are drawn from all there are where these do not say otherwise.
    """
    generator, under = None if seed is None else torch.Generator().manual_seed(seed), dict(under or {})
    if "labels" in under:
        under["class_ids"] = model.label_ids(under.pop("labels")).to(model.device)
    for name, rows in under.items():
        under[name] = rows.expand(count, *rows.shape[1:]) if len(rows) == 1 else rows  # one for all
    if model.config.is_encoder_decoder:
        latents = draw_latents(model, count, generator, **under)  # [N, D]
        seed = None if generator is None else seed_behind(generator)
        parts = [slice(start, start + batch_size) for start in range(0, count, batch_size)]
        starts = [{"latents": latents[part], **{name: rows[part] for name, rows in under.items()}} for part in parts]
        if prefix:
            options["decoder_input_ids"] = _beginning(model, tokenizer, prefix)
    else:  # one latent per token, drawn as the text grows
        ids = _beginning(model, tokenizer, prefix).expand(count, -1)
        starts = [{"inputs": part, **under} for part in ids.split(batch_size)]  # `generate` refuses conditions
    texts = []
    with stream(seed, model.device):
        for start in tqdm(starts, desc="Sampling", leave=False, disable=len(starts) == 1):
            texts += decode(tokenizer, model.generate(**start, **_of_all_words(options)))
    return texts


def sample_texts(model, tokenizer, count: int, seed: int | None = None, labels=None, **options) -> list[dict]:
    """New sequences, of a conditional model under `labels`, as in `generate`, or by default each combination of values
    in turn; `seed` and `options` as in [`draw_texts`]."""
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    if model.config.model_type == "vrnn" and options.get("guidance_scale") not in (None, 1):
        raise ValueError("`guidance_scale` is of a conditional model, which a vrnn is not. Leave it out.")
    names = list(model.config.condition_labels or {})
    if labels is not None and not names:
        raise ValueError("`labels` are of a model with `condition_labels`, which this one has not. Leave them out.")
    under = {name: options.pop(name) for name in OF_A_BATCH if options.get(name) is not None}
    if labels is not None:
        under["labels"] = for_all(labels, count)
    elif "class_ids" not in under:
        under |= each_label(model, count, {})
    said = under.get("labels", {})
    said = said if isinstance(said, dict) else {names[0]: said}
    texts = draw_texts(model, tokenizer, count, seed, under=under, **options)
    return [{**{name: said[name][i] for name in said}, "text": text} for i, text in enumerate(texts)]


def for_all(labels, count: int):
    """One thing said of all rows, said of each of so many; or what is said of each."""
    if isinstance(labels, dict):
        return {name: for_all(said, count) for name, said in labels.items()}
    labels = list(labels) if isinstance(labels, (list, tuple, torch.Tensor)) else [labels]
    if len(labels) not in (1, count):
        raise ValueError(f"`labels` must say one value for all {count}, or one of each; got {len(labels)}.")
    return labels * count if len(labels) == 1 else labels


@contextlib.contextmanager
def stream(seed: int | None, device: torch.device):
    """Draw by this seed, and leave torch's own streams, that of the CPU and of this device, as they were; without one
    by those."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def with_labels_of(model, tokenizer, texts: list[str], options: dict, rows=slice(None)) -> dict:
    """Options of `generate`, with the labels that a model infers of texts (`rows` of them) where none are said."""
    if options.get("labels") is not None or not model.config.label_classifier:
        return options
    batch = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
    return options | {name: of_rows[rows] for name, of_rows in conditions_of(model, batch).items()}


def reconstruct_texts(model, tokenizer, texts: list[str], source_labels=None, **options) -> list[dict]:
    """Each text beside what its posterior mean decodes to.

    Of a conditional model under `labels` among the options: the same z under these. `source_labels` is what the texts
    themselves stand under, by default what q(c|x) says, or nothing; those that `labels` does not name stay.
    """
    latents = encode_texts(model, tokenizer, texts, labels=source_labels)
    if source_labels is not None:
        labels = options.get("labels")
        if isinstance(source_labels, dict) and isinstance(labels, dict):
            labels = source_labels | labels  # what is not changed stays
        options["labels"] = source_labels if labels is None else labels
    if options.get("labels") is not None:
        options["labels"] = for_all(options["labels"], len(texts))
    decoded = decode_latents(model, tokenizer, latents, **with_labels_of(model, tokenizer, texts, options))
    return [{"text": text, "reconstruction": new} for text, new in zip(texts, decoded, strict=True)]


def interpolate_texts(
    model, tokenizer, texts: list[str], num_steps: int = 7, spherical=False, **options
) -> list[dict]:
    """Texts on the way from the first of two texts to the second; `t` runs from 0 to 1. Labels that the model infers
    are those of the nearer end."""
    if len(texts) != 2:
        raise ValueError(f"`texts` must be the two ends of the path, got {len(texts)} texts.")
    first, last = encode_texts(model, tokenizer, texts)
    path = interpolate(first, last, num_steps, spherical or is_on_sphere(model))
    t = _way(num_steps)
    options = with_labels_of(model, tokenizer, texts, options, (t > 0.5).long())
    decoded = decode_latents(model, tokenizer, path, **options)
    return [{"t": round(at, 4), "text": text} for at, text in zip(t.tolist(), decoded, strict=True)]


def move_texts(model, tokenizer, texts, with_attribute, without, strengths=(1.0,), **options) -> list[dict]:
    """Texts moved along an attribute, given by two sets of example texts, by each of several strengths."""
    if options.get("labels") is not None:
        options["labels"] = for_all(options["labels"], len(texts))
    size = model.config.latent_size
    examples = (encode_texts(model, tokenizer, examples)[:, :size] for examples in (with_attribute, without))
    latents, options = encode_texts(model, tokenizer, texts), with_labels_of(model, tokenizer, texts, options)
    direction = along(attribute_vector(*examples), latents)
    rows = []
    for strength in strengths:
        decoded = decode_latents(model, tokenizer, moved(model, latents, strength * direction), **options)
        rows += [{"text": t, "strength": strength, "moved": new} for t, new in zip(texts, decoded, strict=True)]
    return rows


# The same for frames: sequences are arrays [T, F] in raw units, and results arrays by name, as `plots.plot_frames` and
# an .npz take them: frames [N, T, F] with NaN behind the end of a sequence, `lengths` [N], and what else is known [N].


@torch.no_grad()
def encode_frames(model, sequences: list, batch_size: int = 64) -> list[torch.Tensor]:
    """What stands for each sequence in latent space: the posterior mean [D], or of one latent per frame those [T, D].

    Args:
        sequences: in any form that [`FrameCollator`] takes.
    """
    check_has_latents(model)
    if not sequences:
        raise ValueError("There must be one sequence at least, got none.")
    latents = []
    for start in range(0, len(sequences), batch_size):
        batch = FrameCollator()(sequences[start : start + batch_size])
        z = model.encode(**{name: tensor.to(model.device) for name, tensor in batch.items()}).mode
        lengths = batch["attention_mask"].sum(1).tolist()
        latents += [row[:length] if row.dim() == 2 else row for row, length in zip(z, lengths, strict=True)]
    return latents


def _stacked(latents: list[torch.Tensor]) -> torch.Tensor:
    """Latents of sequences as one tensor. Those of several scales are longer where there are more segments; NaN is
    what is not given."""
    missing = torch.nan if latents[0].dim() == 1 else 0.0
    return torch.nn.utils.rnn.pad_sequence(latents, batch_first=True, padding_value=missing)


def decode_frames(
    model, latents: list[torch.Tensor], lengths: list[int], do_sample: bool = False, **under
) -> np.ndarray:
    """Frames of each latent, [N, T, F]; `under` are conditions, as in `generate`."""
    z = _stacked(latents)  # [N, D] or [N, T, D]
    frames = model.generate(latents=z, lengths=torch.tensor(lengths), do_sample=do_sample, **under)
    return _ended(frames)


def sample_frames(
    model, lengths: list[int], do_sample: bool = False, beginning: np.ndarray | None = None, **under
) -> dict[str, np.ndarray]:
    """New sequences: z from the prior, decoded.

    Args:
        lengths: of each; where the model has learnt to end a sequence, the longest of them is the most.
        do_sample: draw each frame, too, from its distribution.
        beginning: frames to go on from, [S, F].
        under: conditions, as in `generate`.
    """
    if not lengths:
        raise ValueError("There must be the length of one sequence at least, got none.")
    if model.config.model_type != "vrnn":
        if under.get("labels") is not None:
            under["labels"] = for_all(under["labels"], len(lengths))
        latents = draw_latents(model, len(lengths), **under)
    else:  # none is given: they are drawn as the sequence grows
        latents = torch.empty(len(lengths), 0, model.config.latent_size)
    if beginning is not None:
        beginning = torch.as_tensor(beginning, dtype=torch.float32).expand(len(lengths), -1, -1)
    wanted = {"max_length": max(lengths)} if model.config.predict_length else {"lengths": torch.tensor(lengths)}
    frames = model.generate(latents=latents, **wanted, do_sample=do_sample, beginning=beginning, **under)
    return {"sample": _ended(frames), "lengths": frames.lengths.cpu().numpy()}


def reconstruct_frames(model, sequences: list, do_sample: bool = False, labels=None) -> dict[str, np.ndarray]:
    """Each sequence, as of [`encode_frames`], beside what its posterior means decode to, under its own conditions or
    other `labels`."""
    batch = FrameCollator()(sequences)
    lengths, under = batch["attention_mask"].sum(1), _under(model, batch, labels)
    decoded = decode_frames(model, encode_frames(model, sequences), lengths.tolist(), do_sample, **under)
    return {"real": batch["labels"].numpy(), "reconstruction": decoded, "lengths": lengths.numpy()}


def interpolate_frames(
    model, sequences: list, num_steps: int = 7, spherical: bool = False, do_sample: bool = False, labels=None
) -> dict[str, np.ndarray]:
    """Sequences on the way from the first of two, as of [`encode_frames`], to the second; `t` runs from 0 to 1.

    Lengths are on the way too; with one latent per frame, all are of the shorter of the two. Each stands under the
    conditions of the nearer end, or other `labels`; where sequences bring their segments, it has its, and is as long.
    """
    if len(sequences) != 2:
        raise ValueError(f"There must be two sequences, the ends of the path, got {len(sequences)}.")
    ends, batch = encode_frames(model, sequences), FrameCollator()(sequences)
    sizes, t = batch["attention_mask"].sum(1), _way(num_steps)
    nearer = (t > 0.5).long()  # [S]
    lengths = sizes[nearer] if "segment_ids" in batch else torch.lerp(*sizes.float(), t).round().long()
    if ends[0].dim() == 2:
        lengths = sizes.min().expand(num_steps)
        ends = [end[: sizes.min()] for end in ends]
    ends = _stacked(ends)  # [2, D] or [2, T, D]
    spherical = spherical or is_on_sphere(model)
    path = interpolate(*ends.flatten(1), num_steps, spherical).unflatten(1, ends.shape[1:])
    under = _under(model, batch, labels, nearer)
    decoded = decode_frames(model, list(path), lengths.tolist(), do_sample, **under)
    return {"path": decoded, "lengths": lengths.numpy(), "t": t.numpy()}


def move_frames(
    model, sequences, with_attribute, without, strengths=(1.0,), do_sample: bool = False, labels=None
) -> dict[str, np.ndarray]:
    """Sequences, as of [`encode_frames`], moved along an attribute, given by two sets of examples, by each of several
    strengths, under their own conditions or other `labels`.

    Where there is one latent per frame, the direction is that of their means over time, and all latents move by it.
    """
    size = model.config.latent_size
    with_attribute, without = (
        torch.stack([z.mean(0) if z.dim() == 2 else z[:size] for z in encode_frames(model, examples)])
        for examples in (with_attribute, without)
    )
    direction, latents = attribute_vector(with_attribute, without), encode_frames(model, sequences)
    batch = FrameCollator()(sequences)
    lengths, under = batch["attention_mask"].sum(1), _under(model, batch, labels)
    results = {"real": batch["labels"].numpy()}
    for strength in strengths:
        there = [moved(model, z, strength * along(direction, z)) for z in latents]
        results[f"moved {strength:g}"] = decode_frames(model, there, lengths.tolist(), do_sample, **under)
    return {**results, "lengths": lengths.numpy()}


def _under(model, batch: dict, labels, rows=slice(None)) -> dict:
    """What these rows of a batch are decoded under: their own conditions and segments, or other `labels`."""
    under = {name: of_rows[rows] for name, of_rows in conditions_of(model, batch).items()}
    return under if labels is None else under | {"labels": labels}


def _ended(generated) -> np.ndarray:
    """Generated frames with NaN behind the end of each sequence, [N, T, F]."""
    frames, lengths = generated.sequences.cpu(), generated.lengths.cpu()
    behind = torch.arange(frames.shape[1]) >= lengths.unsqueeze(1)
    return frames.masked_fill(behind.unsqueeze(-1), torch.nan).numpy()
