"""`evaluate.load("hf_vrae/evaluation/text")`, which asks for a file of the folder's name: [`compare`] as a metric, and
with "samples" behind the folder [`sample_quality`].

`evaluate` copies this file and `strings.py` into its cache; a Space of the Hub needs no others.
"""

import datasets
import evaluate

from .strings import bleu_signature, compare, sample_quality

DESCRIPTION = """How near texts are to one reference each, white space separating tokens: BLEU by sacreBLEU (0 to 100),
ROUGE-1, -2 and -L by rouge-score (F1), CIDEr-D (0 to 10), position-wise token accuracy and exact match (shares). As
"samples": how diverse texts are, by self-BLEU (0 to 100) and distinct-n, beside as many references, in any order."""
INPUTS = """
Args:
    predictions: list of strings.
    references: list of strings, one each.
Returns:
    bleu, rouge1, rouge2, rougeL, cider_d, token_accuracy, exact_match, bleu_signature. As "samples": self_bleu,
    distinct_1, distinct_2, mean_length, num_texts, and the same of the references with reference_ before the name.
"""
CITATION = """Papineni et al. 2002 (BLEU), Post 2018 (sacreBLEU), Lin 2004 (ROUGE), Vedantam et al. 2015 (CIDEr-D)"""


class TextMetrics(evaluate.Metric):
    """Metrics of reconstructions, or of samples, by the interface of `evaluate`: `add_batch`, `compute`, processes."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in ("default", "samples"):
            raise ValueError(
                f"`config_name` must be samples, or left out for reconstructions; got {self.config_name}."
            )
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float | str]:
        if self.config_name == "samples":
            return sample_quality(predictions, references)
        return compare(predictions, references) | {"bleu_signature": bleu_signature()}
