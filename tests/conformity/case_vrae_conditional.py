"""transformers' own common model and generation tests, over `VRAEForSequenceGeneration` under a condition.

Copied beside the runner of the conformity tests (`run.py MIRROR`), with `case_vrae_transformer.py`; see there.
"""

import torch

from .test_modeling_vrae_transformer import ATTENDS, StatefulCase, VRAECase, VRAEModelTester, case

LABELS = {"mood": ["statement", "question"], "tense": ["past", "present", "future"]}


class ConditionalTester(VRAEModelTester):
    """Its batches bring what they stand under, some of it missing."""

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        class_ids = torch.tensor([[0, 1], [1, 2], [-100, 1], [-100, -100], [1, 0]])[:, : len(config.condition_labels)]
        return config, inputs | {"class_ids": class_ids}


class SemiSupervisedCase(StatefulCase):
    def test_generate_without_input_ids(self):
        self.skipTest("refused: a label is missing, and there is nothing to tell it from")

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Its loss reads the labels, and refuses decoder inputs beside them."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {name: value for name, value in inputs.items() if not (return_labels and name.startswith("decoder"))}


class AttendingCase(VRAECase):
    def test_assisted_decoding_sample(self):
        self.skipTest("refused: an assistant reads the input by itself, and no condition")

    test_assisted_decoding_matches_greedy_search_0_random = test_assisted_decoding_sample
    test_assisted_decoding_matches_greedy_search_1_same = test_assisted_decoding_sample


ONE = {"mood": LABELS["mood"]}
VRAEConditionalTest = case("VRAEConditionalTest", StatefulCase, ConditionalTester, condition_labels=LABELS)
VRAESemiSupervisedTest = case(
    "VRAESemiSupervisedTest", SemiSupervisedCase, ConditionalTester, condition_labels=ONE, label_classifier=True
)
VRAEConditionalTransformerTest = case(
    "VRAEConditionalTransformerTest", AttendingCase, ConditionalTester, **ATTENDS, condition_labels=LABELS
)
