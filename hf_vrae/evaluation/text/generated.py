"""Metrics of the texts that a model decodes, and of texts under a model."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from ...data.collators import AutoencodingCollator, CausalCollator
from ...data.datasets import spread_places
from ...data.tokenization import decode
from ...latent import draw_texts, interpolate, is_on_sphere
from ..information import in_evaluation_mode
from ..likelihood import noise_generators, perplexity
from .strings import bleu_signature, compare, interpolation_smoothness, sample_quality


def evaluate_text(
    model,
    tokenizer,
    texts: Sequence[str],
    batch_size: int = 32,
    seed: int = 0,
    judge: tuple | None = None,
    conditions: dict[str, torch.Tensor] | None = None,
) -> dict:
    """Reconstructions of texts and as many samples of a model, measured.

    Args:
        model, tokenizer: as in [`reconstruction_quality`].
        texts: real ones, at least two.
        batch_size: sequences per batch; changes the speed and nothing else.
        seed: of the latents and of the samples.
        judge: another model, trained on real text, and its tokenizer; see [`forward_perplexity`].
        conditions: what each text stands under, by the words of a batch; the samples stand under the same.

    Returns:
        `reconstruction` of [`reconstruction_quality`], `samples` of [`sample_quality`], `bleu_signature`; of latents
        of sequences `interpolation` of [`path_smoothness`]; and with a judge `forward_perplexity` of the samples and,
        to hold it against, `reference_perplexity`, that of the texts.
    """
    reference = None if judge is None else forward_perplexity(*judge, texts, batch_size=batch_size, seed=seed)
    samples = draw_samples(model, tokenizer, len(texts), seed=seed, conditions=conditions)
    results = {
        "reconstruction": reconstruction_quality(
            model, tokenizer, texts, batch_size, seed=seed, conditions=conditions
        ),
        # The samples' own words, or a rare one that they cannot say would make real texts look more diverse.
        "samples": sample_quality(samples, decode(tokenizer, tokenizer(list(texts))["input_ids"])),
        "bleu_signature": bleu_signature(),
    }
    if model.config.is_encoder_decoder and model.config.latent_size:
        options = {"conditions": conditions, "judge": judge, "seed": seed}
        results["interpolation"] = path_smoothness(model, tokenizer, texts, batch_size, **options)
    if judge is not None:
        results["forward_perplexity"] = forward_perplexity(*judge, samples, batch_size=batch_size, seed=seed)
        results["reference_perplexity"] = reference
    return results


@torch.no_grad()
def reconstruction_quality(
    model,
    tokenizer,
    texts: Sequence[str],
    batch_size: int = 32,
    num_beams: int = 4,
    seed: int = 0,
    conditions: dict[str, torch.Tensor] | None = None,
    **options,
) -> dict:
    """How much of a text survives encoding and decoding, from the posterior mean and from one sample of q(z|x).

    Args:
        model: has `encode` and `generate`; decodes in evaluation mode.
        tokenizer: writes `<s> w1 .. wn </s>`.
        texts: also the references, as they stand: a word unknown to the tokenizer cannot be reconstructed.
        batch_size: texts a batch.
        num_beams: of beam search.
        seed: of the sample, which depends on it and the text's position only.
        conditions: what each text stands under, by the words of a batch.
        options: of `generate`; by default it stops at the model's `generation_config.max_length`.

    Returns:
        [`compare`]'s metrics under `mean_greedy`, `mean_beams`, `sample_greedy` and `sample_beams`; `num_beams` and
        `num_texts`.
    """
    searches = {"greedy": 1, "beams": num_beams}
    ways = [f"{latent}_{search}" for latent in ("mean", "sample") for search in searches]
    decoded = {way: np.empty(len(texts), dtype=object) for way in ways}
    alike = not model.config.is_encoder_decoder  # beside a longer text a short one's z of each token would not end
    with in_evaluation_mode(model):
        for indices, batch in _batches(model, tokenizer, texts, batch_size, "Reconstructing", alike):
            under = _conditions_of_rows(model, conditions, indices)
            q = model.encode(**batch, **under)
            latents = {"mean": q.mode, "sample": q.sample((), noise_generators(seed, indices))}
            for (latent, z), (search, beams) in ((z, search) for z in latents.items() for search in searches.items()):
                ids = model.generate(latents=z, do_sample=False, num_beams=beams, **under, **options)
                decoded[f"{latent}_{search}"][indices] = decode(tokenizer, ids)
    scores = {name: compare(predictions.tolist(), texts) for name, predictions in decoded.items()}
    return {**scores, "num_beams": num_beams, "num_texts": len(texts)}


@torch.no_grad()
def path_smoothness(
    model,
    tokenizer,
    texts: Sequence[str],
    batch_size: int = 32,
    num_pairs: int = 50,
    num_steps: int = 7,
    conditions: dict[str, torch.Tensor] | None = None,
    judge: tuple | None = None,
    seed: int = 0,
    **options,
) -> dict[str, float | int | list[float]]:
    """How evenly texts change on straight ways from one posterior mean to another, decoded greedily, and whether they
    are texts on the way too.

    Args:
        model, tokenizer, batch_size: as in [`reconstruction_quality`].
        texts: the ends, from the first to the second, from the third to the fourth, and so on.
        num_pairs: the most ways that are gone, spread over them.
        num_steps: points of each, both ends included.
        conditions: what each text stands under, by the words of a batch; a way stands under what its start does.
        judge, seed: as in [`evaluate_text`].
        options: of `generate`.

    Returns:
        `mean_step` and `max_step` of [`interpolation_smoothness`], means over the ways, and so of each of their points
        `bleu_to_start` and `bleu_to_end`, [S]; with a judge `perplexity`, that of all ways' texts at a point, [S];
        `num_pairs`, `num_steps`.
    """
    count = min(num_pairs, len(texts) // 2)
    places = 2 * np.repeat(spread_places(len(texts) // 2, count), 2) + np.tile([0, 1], count)  # of the ends
    means, decoded = [], []
    with in_evaluation_mode(model):
        for indices, batch in _batches(model, tokenizer, [texts[i] for i in places], batch_size, "Encoding"):
            under = _conditions_of_rows(model, conditions, places[indices])
            means += model.encode(**batch, **under).mode
        # Of several scales a row with fewer segments has fewer numbers.
        means = torch.nn.utils.rnn.pad_sequence(means, batch_first=True, padding_value=torch.nan)
        ends = zip(means[::2], means[1::2], strict=True)
        sphere = is_on_sphere(model)
        ways = torch.cat([interpolate(start, end, num_steps, sphere) for start, end in ends])  # [P * S, D]
        begin = torch.from_numpy(places[::2]).repeat_interleave(num_steps)
        for part in torch.arange(len(ways)).split(batch_size):
            under = _conditions_of_rows(model, conditions, begin[part])
            decoded += decode(tokenizer, model.generate(latents=ways[part], do_sample=False, **under, **options))
    of_each = [interpolation_smoothness(decoded[i : i + num_steps]) for i in range(0, len(decoded), num_steps)]
    results = {name: np.mean([way[name] for way in of_each], axis=0).tolist() for name in of_each[0]}
    if judge is not None:
        points = (decoded[i::num_steps] for i in range(num_steps))
        options = {"batch_size": batch_size, "seed": seed}
        results["perplexity"] = [forward_perplexity(*judge, texts, **options)["perplexity"] for texts in points]
    return {**results, "num_pairs": count, "num_steps": num_steps}


def draw_samples(
    model,
    tokenizer,
    count: int,
    batch_size: int = 64,
    seed: int = 0,
    conditions: dict[str, torch.Tensor] | None = None,
    **options,
) -> list[str]:
    """Texts x ~ p(x|z), z ~ p(z), each word from the whole distribution; the process's random state stays as it was.

    Args:
        batch_size: samples at once; other sizes give other samples.
        conditions: what each of the samples stands under, by the words of a batch: x ~ p(x|z, c), z ~ p(z|c).
        options: of `generate`, over `do_sample=True` and all words.
    """
    with in_evaluation_mode(model):
        return draw_texts(
            model, tokenizer, count, seed, batch_size, under=conditions, **{"do_sample": True, **options}
        )


@torch.no_grad()
def forward_perplexity(
    judge, tokenizer, texts: Sequence[str], num_samples: int = 1, batch_size: int = 32, seed: int = 0
) -> dict[str, float]:
    """Perplexity of generated texts under a language model of real text: are they fluent? (Zhao et al. 2018)

    Reverse perplexity is the same function called the other way round: real texts under a judge that was trained on
    samples of the model, with the model's own tokens (`train.py --train_file samples.txt --tokenizer_name MODEL`):
    with new ones every word that samples never have would be one cheap `<unk>`, and the dullest samples the best. It
    rises where samples are dull or leave things out, and falls with the number of samples: state it, and let it be no
    less than that of the real texts.

    Args:
        judge: has `log_importance_weights`. Of a model with latents this gives an upper bound of its perplexity, the
            tighter the more `num_samples`.
        tokenizer: the judge's own. Perplexities of different tokenizers are not comparable, and a word unknown to it
            costs what `<unk>` does.
        texts: each counts its `</s>`, also where generation was cut at its longest length.
        num_samples: K of the importance-weighted bound, -log (1/K) sum_k w_k; 1 gives the ELBO's.
        batch_size: texts a batch.
        seed: of the judge's latents.

    Returns:
        `perplexity`, `nll` (nats per sequence), `num_samples`, `num_sequences`, `num_tokens`, and `num_unknown`, how
        many of these are `<unk>` to the judge.
    """
    nats, tokens, unknown = 0.0, 0, 0
    marks = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id  # GPT-2's `<unk>` is all of these
    unk = torch.tensor([*{tokenizer.unk_token_id} - {*marks, None}], dtype=torch.long, device=judge.device)
    with in_evaluation_mode(judge):
        for indices, batch in _batches(judge, tokenizer, texts, batch_size, "Judging"):
            noise = noise_generators(seed, indices)
            weights = judge.log_importance_weights(num_samples, generator=noise, **batch).cpu().double()  # [K, B]
            nats += float((math.log(num_samples) - weights.logsumexp(0)).sum())
            tokens += int(batch["attention_mask"].sum()) - len(indices)  # all but `<s>`
            unknown += int(torch.isin(batch["input_ids"], unk).sum())
    nll = nats / len(texts)
    return {
        "perplexity": perplexity(nll, len(texts), tokens),
        "nll": nll,
        "num_samples": num_samples,
        "num_sequences": len(texts),
        "num_tokens": tokens,
        "num_unknown": unknown,
    }


def _conditions_of_rows(model, conditions: dict[str, torch.Tensor] | None, rows) -> dict[str, torch.Tensor]:
    """What the texts at `rows` stand under, where the model is."""
    return {name: of_all[rows].to(model.device) for name, of_all in (conditions or {}).items()}


def _batches(model, tokenizer, texts: Sequence[str], batch_size: int, description: str, alike: bool = False):
    """Positions in `texts`, and the model's batch of them; where they are to be `alike`, of as many tokens each."""
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"`texts` must be a list of at least one text, got {texts!r}.")
    kind = AutoencodingCollator if model.config.is_encoder_decoder else CausalCollator
    collator = kind(tokenizer.pad_token_id)
    ids = tokenizer(list(texts))["input_ids"]
    lengths = np.array([len(row) if alike else 0 for row in ids])
    groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
    parts = [group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)]
    for part in tqdm(parts, desc=description, leave=False):
        batch = collator([ids[i] for i in part])
        yield part, {name: t.to(model.device) for name, t in batch.items()}
