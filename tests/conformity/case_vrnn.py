"""transformers' own common model and generation tests, over `VRNNForSequenceGeneration`.

Copied beside the runner of the conformity tests (`run.py MIRROR`), which puts it among transformers' tests; it means
nothing by itself, and our own pytest does not collect it.
"""

import unittest

import torch
from transformers.testing_utils import require_torch

from hf_vrae import VRNNConfig, VRNNForSequenceGeneration

from ...generation.test_utils import GenerationTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, ids_tensor


class VRNNModelTester:
    options = {}

    def __init__(self, parent):
        self.parent = parent
        self.batch_size, self.vocab_size, self.seq_length = 5, 99, 7
        self.hidden_size, self.num_hidden_layers = 32, 1
        self.is_training = True

    def get_config(self):
        sizes = {"vocab_size": 99, "embedding_size": 32, "feature_size": 32, "hidden_size": 32, "latent_size": 8}
        return VRNNConfig(**(sizes | {"dropout": 0.1} | self.options))

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([5, 7], 99).clamp(min=4)
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        mask[3, -1:] = 0
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


class VRNNCase(ModelTesterMixin, GenerationTesterMixin):
    all_model_classes = (VRNNForSequenceGeneration,)
    has_attentions = False
    make_tester = VRNNModelTester

    def setUp(self):
        self.model_tester = self.make_tester(self)
        common = ["hidden_size", "num_hidden_layers"]
        self.config_tester = ConfigTester(self, config_class=VRNNConfig, common_properties=common)

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            inputs["labels"] = inputs["input_ids"].clone()
        return inputs

    def test_left_padding_compatibility(self):
        self.has_attentions = True  # by which this test takes a model to know padding
        super().test_left_padding_compatibility()

    # what follows asks for attentions or key/value tensors, which a recurrent model does not have
    def _check_attentions_for_generate(self, *args, **kwargs):
        pass

    def _check_past_key_values_for_generate(self, batch_size, past_key_values, seq_length, config):
        self.assertEqual(past_key_values.get_seq_length(), seq_length)

    def test_past_key_values_format(self):
        self.skipTest("no key/value tensors")


def case(name, **options):
    tester = type(f"{name}Tester", (VRNNModelTester,), {"options": options})
    return require_torch(type(name, (VRNNCase, unittest.TestCase), {"make_tester": tester, "__module__": __name__}))


VRNNLstmTest = case("VRNNLstmTest")
VRNNGruTest = case("VRNNGruTest", rnn_type="gru", layer_norm=True, feature_layers=2)
VRNNSmoothingTest = case("VRNNSmoothingTest", smoothing_posterior=True, residual_posterior=True)
VRNNWithoutLatentTest = case("VRNNWithoutLatentTest", latent_size=0)
VRNNTiedTest = case("VRNNTiedTest", tie_word_embeddings=True)
