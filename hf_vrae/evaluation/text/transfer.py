"""Whether texts moved along an attribute have it, and what is left of them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .strings import bleu

# scikit-learn's 1 is stiff for TF-IDF vectors of length 1: from 480 sentences of the built-in corpus it makes a
# judge of "will" hardly better than the majority (0.83 on held-out ones beside 0.82), and 10 makes one of 0.97.
INVERSE_PENALTY = 10.0


@dataclass(frozen=True)
class TextClassifier:
    """A judge of attributes, with its own accuracy on texts it did not learn from.

    Args:
        pipeline: what scikit-learn made; its `predict` takes texts.
        accuracy: share of the held-out texts it labels as they are labelled; a transfer's accuracy is no surer.
        majority: share of the held-out texts with the most frequent label, which a judge that learned nothing reaches.
        num_train, num_held_out: texts it learned from, and was tested on.
    """

    pipeline: Any
    accuracy: float
    majority: float
    num_train: int
    num_held_out: int


def train_text_classifier(
    texts: Sequence[str], labels: Sequence, held_out: float = 0.2, seed: int = 0
) -> TextClassifier:
    """Logistic regression on TF-IDF weights of uni- and bigrams (by scikit-learn).

    Args:
        texts: whose tokens white space separates.
        labels: one per text, of two values or more.
        held_out: share of the texts, of each label alike, that only test it.
        seed: of the choice.
    """
    if len(texts) != len(labels) or len(set(labels)) < 2:
        raise ValueError(
            "`labels` must be one per text and of at least two values, got "
            f"{len(labels)} for {len(texts)} texts, of {len(set(labels))} values."
        )
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import train_test_split
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise ValueError("A text classifier needs the extra `metrics`: pip install 'hf_vrae[metrics]'") from error
    rarest, tested = min(Counter(labels).values()), math.ceil(held_out * len(labels))
    if rarest < 2 or tested < len(set(labels)):
        raise ValueError(
            f"`texts` must hold two of each label, and the held-out share of them, {held_out:g}, one of each; got "
            f"{len(texts)} texts of {len(set(labels))} labels, {rarest} of the rarest. Give more."
        )
    parts = train_test_split(list(texts), list(labels), test_size=held_out, random_state=seed, stratify=list(labels))
    train_texts, test_texts, train_labels, test_labels = parts
    weights = TfidfVectorizer(lowercase=False, token_pattern=r"\S+", ngram_range=(1, 2))
    pipeline = make_pipeline(weights, LogisticRegression(C=INVERSE_PENALTY, max_iter=1000))
    pipeline.fit(train_texts, train_labels)
    accuracy = float(pipeline.score(test_texts, test_labels))
    majority = Counter(test_labels).most_common(1)[0][1] / len(test_labels)
    return TextClassifier(pipeline, accuracy, majority, len(train_texts), len(test_texts))


def attribute_transfer(
    source: Sequence[str], moved: Sequence[str], labels: Sequence, classifier: TextClassifier
) -> dict[str, float]:
    """Accuracy, likeness to the source, and their geometric mean (Li et al. 2020, Optimus).

    Args:
        source: texts before they were moved.
        moved: the same after it, in the same order.
        labels: the label that each moved text should have.
        classifier: of [`train_text_classifier`], best on texts that the model's directions were not made of.

    Returns:
        `accuracy`, the share of moved texts that the classifier gives their label; `classifier_accuracy`, its own on
        held-out texts; `source_bleu`, BLEU against the source (0 to 100; self-BLEU in that literature); `g_score`,
        sqrt(100 accuracy source_bleu), 0 to 100; `num_texts`.
    """
    if len(labels) != len(moved):
        raise ValueError(f"`labels` must be one a moved text, got {len(labels)} for {len(moved)} texts.")
    source_bleu = bleu(moved, source)
    right = sum(a == b for a, b in zip(classifier.pipeline.predict(list(moved)), labels, strict=True))
    accuracy = int(right) / len(moved)
    return {
        "accuracy": accuracy,
        "classifier_accuracy": classifier.accuracy,
        "source_bleu": source_bleu,
        "g_score": math.sqrt(100 * accuracy * source_bleu),
        "num_texts": len(moved),
    }
