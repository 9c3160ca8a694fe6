"""transformers' own common model and generation tests, over `HierarchicalVRAEForSequenceGeneration`.

Copied beside the runner of the conformity tests (`run.py MIRROR`), which puts it among transformers' tests; it means
nothing by itself, and our own pytest does not collect it.
"""

import unittest

import torch
from transformers.testing_utils import require_torch

from hf_vrae import HierarchicalVRAEConfig, HierarchicalVRAEForSequenceGeneration

from ...generation.test_utils import GenerationTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, ids_tensor


class HierarchicalVRAEModelTester:
    options = {}

    def __init__(self, parent):
        self.parent = parent
        self.batch_size, self.vocab_size = 5, 99
        self.seq_length = self.encoder_seq_length = self.decoder_seq_length = 7
        self.hidden_size, self.num_hidden_layers = 32, 1
        self.is_training = True

    def get_config(self):
        sizes = {"vocab_size": 99, "embedding_size": 32, "encoder_hidden_size": 32, "decoder_hidden_size": 32}
        # Segments so long that the rows, 4 to 6 tokens, have as many of them: outputs of a row alone are as wide.
        latents = {"latent_size": 8, "segment_latent_size": 4, "conductor_hidden_size": 16, "segment_length": 3}
        return HierarchicalVRAEConfig(**(sizes | latents | {"dropout": 0.1} | self.options))

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([5, 7], 99).clamp(min=4)
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        mask[3, -1:] = 0
        return self.get_config(), {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids.clone()}


class HierarchicalVRAECase(ModelTesterMixin, GenerationTesterMixin):
    all_model_classes = (HierarchicalVRAEForSequenceGeneration,)
    has_attentions = False
    is_encoder_decoder = True
    make_tester = HierarchicalVRAEModelTester

    def setUp(self):
        self.model_tester = self.make_tester(self)
        common = ["hidden_size", "num_hidden_layers"]
        self.config_tester = ConfigTester(self, config_class=HierarchicalVRAEConfig, common_properties=common)

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            inputs["labels"] = inputs["decoder_input_ids"].clone()
        return inputs

    # what follows asks for attentions or key/value tensors, which a recurrent model does not have
    def _check_attentions_for_generate(self, *args, **kwargs):
        pass

    def _check_encoder_attention_for_generate(self, *args, **kwargs):
        pass

    def _check_past_key_values_for_generate(self, batch_size, past_key_values, seq_length, config):
        self.assertGreaterEqual(past_key_values.get_seq_length(), 1)

    def test_past_key_values_format(self):
        self.skipTest("no key/value tensors")


def case(name, **options):
    tester = type(f"{name}Tester", (HierarchicalVRAEModelTester,), {"options": options})
    members = {"make_tester": tester, "__module__": __name__}
    return require_torch(type(name, (HierarchicalVRAECase, unittest.TestCase), members))


HierarchicalLstmTest = case("HierarchicalLstmTest")
HierarchicalSectionsTest = case(
    "HierarchicalSectionsTest", section_sizes=[2], segment_length=2, rnn_type="gru", layer_norm=True
)
HierarchicalConductorTest = case("HierarchicalConductorTest", segment_latent_size=0, tie_word_embeddings=True)
HierarchicalAutoregressiveTest = case("HierarchicalAutoregressiveTest", autoregressive_segments=True)


class HierarchicalSeparatorsTest(case("HierarchicalSeparators", segment_separator_ids=[98])):
    def test_inputs_embeds(self):
        self.skipTest("segments are found among tokens, which embeddings alone do not tell")

    def test_generate_continue_from_past_key_values(self):
        self.skipTest("what is generated agrees; the cache has room for all segments that `max_length` admits")

    def test_resize_tokens_embeddings(self):
        self.skipTest("makes a model of 4 tokens, of which 98, the separator, is none: refused")
