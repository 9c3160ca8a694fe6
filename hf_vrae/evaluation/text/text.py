"""`evaluate.load("hf_vrae/evaluation/text")`, which asks for a file of the folder's name: [`compare`] as a metric.

`evaluate` copies this file and `strings.py` into its cache; a Space of the Hub needs no others.
"""

import datasets
import evaluate

from .strings import bleu_signature, compare

DESCRIPTION = """How near texts are to one reference each, white space separating tokens: BLEU by sacreBLEU (0 to 100),
ROUGE-1, -2 and -L by rouge-score (F1), CIDEr-D (0 to 10), position-wise token accuracy and exact match (shares)."""
INPUTS = """
Args:
    predictions: list of strings.
    references: list of strings, one each.
Returns:
    bleu, rouge1, rouge2, rougeL, cider_d, token_accuracy, exact_match, bleu_signature.
"""
CITATION = """Papineni et al. 2002 (BLEU), Post 2018 (sacreBLEU), Lin 2004 (ROUGE), Vedantam et al. 2015 (CIDEr-D)"""


class TextMetrics(evaluate.Metric):
    """Reconstruction metrics by the interface of `evaluate`: `add_batch`, `compute`, several processes."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float | str]:
        return compare(predictions, references) | {"bleu_signature": bleu_signature()}
