"""Metrics of generated text on plain strings. Tokens are what white space separates.

BLEU is from 0 to 100 as sacreBLEU has it, CIDEr-D from 0 to 10; all else are shares from 0 to 1.

`evaluate.load` copies this file, with `text.py`, out of the package: it imports nothing of ours.
"""

import math
from collections import Counter
from collections.abc import Sequence

MAX_ORDER = 4  # of n-grams: BLEU-4, and CIDEr-D's
SIGMA = 6.0  # of CIDEr-D's penalty, in tokens (Vedantam et al. 2015)


def compare(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """All metrics of texts beside their references: `bleu`, `rouge1`, `rouge2`, `rougeL`, `cider_d`,
    `token_accuracy`, `exact_match`."""
    return {
        "bleu": bleu(predictions, references),
        **rouge(predictions, references),
        "cider_d": cider_d(predictions, references),
        "token_accuracy": token_accuracy(predictions, references),
        "exact_match": exact_match(predictions, references),
    }


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU (Papineni et al. 2002), 0 to 100, of one reference a text.

    100 exp(min(0, 1 - r / c)) (p_1 p_2 p_3 p_4)^(1/4), with p_n the clipped n-gram precision of the whole corpus and
    r, c the tokens of all references and predictions. By sacreBLEU, signature
    `nrefs:1|case:mixed|eff:no|tok:none|smooth:exp`: only an order without a match is smoothed.
    """
    _tokens_of_pairs(predictions, references)
    return _sacrebleu().corpus_score(list(predictions), [list(references)]).score


def bleu_signature() -> str:
    """sacreBLEU's signature of [`bleu`], its version included."""
    metric = _sacrebleu()
    metric.corpus_score(["a"], [["a"]])  # the number of references is known after a score only
    return str(metric.get_signature())


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`rouge1`, `rouge2`, `rougeL`: F1 of unigrams, bigrams and the longest common subsequence (Lin 2004).

    Means over texts, by rouge-score, without stemming, lower-casing or its tokenizer.
    """
    _tokens_of_pairs(predictions, references)
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ValueError("ROUGE needs the extra `metrics`: pip install 'hf_vrae[metrics]'") from error
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, tokenizer=_WhiteSpace())
    scores = [scorer.score(target, text) for text, target in zip(predictions, references, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in names}


def cider_d(predictions: Sequence[str], references: Sequence[str]) -> float:
    """CIDEr-D (Vedantam et al. 2015), 0 to 10: mean over texts c with references s, and over n = 1 to 4, of

        10 exp(-(l(c) - l(s))^2 / (2 sigma^2)) min(g_n(c), g_n(s)) . g_n(s) / (|g_n(c)| |g_n(s)|)

    g_n(x) weighs the count of each n-gram in x with log(N / df), df being how many of the N references have it, at
    least 1; l are lengths in tokens, sigma is 6. Counts are not divided by lengths, as in the released code. A text
    scores 0 for an n without n-grams, or with none but those of every reference: equal texts of two tokens reach 5.

    Raises:
        ValueError: where there is one reference only, as all weights are then log 1.
    """
    pairs = _tokens_of_pairs(predictions, references)
    if len(pairs) < 2:
        raise ValueError("`references` must be at least two for CIDEr-D, whose weights compare them, got 1.")
    counts = [(_ngrams(text), _ngrams(reference)) for text, reference in pairs]
    document_frequency = Counter(ngram for _, reference in counts for ngram in reference)
    total = 0.0
    for (text, reference), (c, s) in zip(pairs, counts, strict=True):
        dot, norm_c, norm_s = ([0.0] * MAX_ORDER for _ in range(3))
        for ngram in c.keys() | s.keys():
            n, weight = len(ngram) - 1, math.log(len(pairs) / max(1, document_frequency[ngram])) ** 2
            dot[n] += min(c[ngram], s[ngram]) * s[ngram] * weight
            norm_c[n] += c[ngram] ** 2 * weight
            norm_s[n] += s[ngram] ** 2 * weight
        cosines = sum(d / math.sqrt(a * b) for d, a, b in zip(dot, norm_c, norm_s, strict=True) if a * b > 0)
        total += math.exp(-((len(text) - len(reference)) ** 2) / (2 * SIGMA**2)) * cosines / MAX_ORDER
    return 10 * total / len(pairs)


def token_accuracy(predictions: Sequence[str], references: Sequence[str]) -> float:
    """sum #{t: c_t = s_t} / sum max(l(c), l(s)), both sums over all texts c and references s.

    Position by position, on text decoded freely rather than on next tokens after a true beginning: a token left out
    makes all that follow it wrong, and each token missing or too many at the end counts as wrong.
    """
    pairs = _tokens_of_pairs(predictions, references)
    right = sum(a == b for text, reference in pairs for a, b in zip(text, reference, strict=False))
    return right / sum(max(len(text), len(reference)) for text, reference in pairs)


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of texts with all the tokens of their reference and no other."""
    pairs = _tokens_of_pairs(predictions, references)
    return sum(text == reference for text, reference in pairs) / len(pairs)


def self_bleu(texts: Sequence[str], max_order: int = MAX_ORDER) -> dict[str, float]:
    """`self_bleu`: mean BLEU, 0 to 100, of each text against all others as references (Zhu et al. 2018).

    The lower, the more diverse. Sentence BLEU up to n-grams of `max_order` (4), where an order without a match counts
    0.1 matches (method 1 of Chen & Cherry 2014) and a text shorter than `max_order` is judged by the orders it has;
    one that shares no token, or has none, scores 0. It rises with the number of texts, so `max_order` and `num_texts`
    are returned beside it. The time is linear in the number of n-grams.
    """
    if len(texts) < 2:
        raise ValueError(f"`texts` must be at least two for self-BLEU, one and the others, got {len(texts)}.")
    tokens = [text.split() for text in texts]
    counts = [_ngrams(words, max_order) for words in tokens]
    lengths = Counter(map(len, tokens))
    # The largest count of an n-gram in the other texts is its largest in all, or where that is one's own the second.
    largest = {}  # n-gram -> (largest count, whose it is, second largest)
    for i, ngrams in enumerate(counts):
        for ngram, count in ngrams.items():
            first, owner, second = largest.get(ngram, (0, -1, 0))
            largest[ngram] = (count, i, first) if count > first else (first, owner, max(second, count))
    total = 0.0
    for i, (words, ngrams) in enumerate(zip(tokens, counts, strict=True)):
        in_others = {n: largest[n][2] if largest[n][1] == i else largest[n][0] for n in ngrams}
        others = (length for length in lengths if length != len(words) or lengths[length] > 1)
        closest = min(others, key=lambda length: (abs(length - len(words)), length))
        total += _sentence_bleu(ngrams, in_others, len(words), closest)
    return {"self_bleu": total / len(texts), "max_order": max_order, "num_texts": len(texts)}


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Number of different n-grams in all texts, divided by the number of tokens (Li et al. 2016).

    As in the paper; many divide by the number of n-grams, which for n > 1 is a little more. It falls with the number
    of texts. 0 where there is no token.
    """
    tokens = [text.split() for text in texts]
    different = {tuple(words[i : i + n]) for words in tokens for i in range(len(words) - n + 1)}
    return len(different) / max(1, sum(map(len, tokens)))


def sample_quality(samples: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Diversity of samples, and of as many real texts to hold it against.

    Args:
        samples: generated texts, at least two.
        references: real texts, best as many: self-BLEU and distinct-n depend on the number.

    Returns:
        `self_bleu`, `distinct_1`, `distinct_2`, `mean_length` (tokens) and `num_texts` of the samples; the same of the
        references with `reference_` before the name.
    """
    return _diversity(samples) | {f"reference_{name}": value for name, value in _diversity(references).items()}


def interpolation_smoothness(path: Sequence[str]) -> dict[str, float | list[float]]:
    """How evenly texts change along a path, such as those [`interpolate_texts`] decodes.

    A step is the token edit distance of two neighbours divided by the longer one's length: 0 where they are equal, 1
    where they share nothing.

    Returns:
        `mean_step`, `max_step`; `bleu_to_start` and `bleu_to_end`, the sentence BLEU (as in [`self_bleu`]) of each
        point against the first and the last one, themselves included.
    """
    if len(path) < 2:
        raise ValueError(f"`path` must have at least two texts, both ends, got {len(path)}.")
    tokens = [text.split() for text in path]
    steps = [_edit_distance(a, b) / max(1, len(a), len(b)) for a, b in zip(tokens, tokens[1:], strict=False)]
    to_start, to_end = (
        [_sentence_bleu(_ngrams(words), _ngrams(end), len(words), len(end)) for words in tokens]
        for end in (tokens[0], tokens[-1])
    )
    mean_step = sum(steps) / len(steps)
    return {"mean_step": mean_step, "max_step": max(steps), "bleu_to_start": to_start, "bleu_to_end": to_end}


def _diversity(texts: Sequence[str]) -> dict[str, float]:
    scores = self_bleu(texts)
    return {
        "self_bleu": scores["self_bleu"],
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "mean_length": sum(len(text.split()) for text in texts) / len(texts),
        "num_texts": len(texts),
    }


def _sacrebleu():
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ValueError("BLEU needs the extra `metrics`: pip install 'hf_vrae[metrics]'") from error
    return BLEU(tokenize="none", force=True)  # `force`: no warning that the text looks tokenised; it is


class _WhiteSpace:
    """The tokenizer that rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def _tokens_of_pairs(predictions: Sequence[str], references: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    if isinstance(predictions, str) or isinstance(references, str):
        raise ValueError("`predictions` and `references` must be lists of texts, got a string. Put it in a list.")
    if len(predictions) != len(references) or not len(references):
        raise ValueError(
            "`predictions` and `references` must be as many, and at least one, got "
            f"{len(predictions)} and {len(references)}."
        )
    pairs = [(text.split(), reference.split()) for text, reference in zip(predictions, references, strict=True)]
    for i, (_, reference) in enumerate(pairs):
        if not reference:
            raise ValueError(f"`references` must each have a token, but number {i} is empty. Leave its pair out.")
    return pairs


def _ngrams(tokens: list[str], max_order: int = MAX_ORDER) -> Counter[tuple[str, ...]]:
    """Counts of the n-grams of 1 to `max_order` tokens."""
    return Counter(tuple(tokens[i : i + n]) for n in range(1, max_order + 1) for i in range(len(tokens) - n + 1))


def _sentence_bleu(ngrams: Counter, reference: dict, length: int, reference_length: int) -> float:
    """BLEU, 0 to 100, of a text by the counts of its n-grams and the largest ones in its references."""
    matches, totals = Counter(), Counter()
    for ngram, count in ngrams.items():
        totals[len(ngram)] += count
        matches[len(ngram)] += min(count, reference.get(ngram, 0))
    if not matches[1]:
        return 0.0
    log_precision = sum(math.log(max(matches[n], 0.1) / totals[n]) for n in totals) / len(totals)
    return 100 * math.exp(min(0.0, 1 - reference_length / length) + log_precision)


def _edit_distance(a: list[str], b: list[str]) -> int:
    """Fewest insertions, deletions and replacements of tokens that make `b` of `a` (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        above, row = row, [i]
        for j, right in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]
