"""Metrics of text: on strings (`strings`), of an attribute's transfer (`transfer`), of a model's texts (`generated`).

The folder is also a metric of the library `evaluate`: `evaluate.load("hf_vrae/evaluation/text")`.
"""

from .generated import draw_samples, evaluate_text, forward_perplexity, path_smoothness, reconstruction_quality
from .strings import (
    bleu,
    bleu_signature,
    cider_d,
    compare,
    distinct_n,
    exact_match,
    interpolation_smoothness,
    rouge,
    sample_quality,
    self_bleu,
    token_accuracy,
)
from .transfer import TextClassifier, attribute_transfer, train_text_classifier

__all__ = [
    "TextClassifier",
    "attribute_transfer",
    "bleu",
    "bleu_signature",
    "cider_d",
    "compare",
    "distinct_n",
    "draw_samples",
    "evaluate_text",
    "exact_match",
    "forward_perplexity",
    "interpolation_smoothness",
    "path_smoothness",
    "reconstruction_quality",
    "rouge",
    "sample_quality",
    "self_bleu",
    "token_accuracy",
    "train_text_classifier",
]
