"""transformers' own common model and generation tests, over `VRAEForSequenceGeneration` with decoders that attend.

Copied beside the runner of the conformity tests (`run.py MIRROR`), which puts it among transformers' tests; it means
nothing by itself, and our own pytest does not collect it.
"""

import unittest
import unittest.mock

import torch
from transformers.testing_utils import require_torch

from hf_vrae import VRAEConfig, VRAEForSequenceGeneration

from ...generation.test_utils import GenerationTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, ids_tensor

# These tests ask a class what here each model knows of itself.
OF_THE_CLASS = {"_is_stateful": False, "supports_gradient_checkpointing": True, "_supports_attention_backend": True}
OF_THE_CLASS |= {"_supports_sdpa": True, "_supports_flash_attn": True, "_supports_flex_attn": True}


class VRAEModelTester:
    options = {}

    def __init__(self, parent):
        self.parent = parent
        self.batch_size, self.vocab_size = 5, 99
        self.seq_length = self.encoder_seq_length = self.decoder_seq_length = 7
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 32, 2, 4
        self.is_training = True

    def get_config(self):
        sizes = {"vocab_size": 99, "embedding_size": 32, "latent_size": 8, "encoder_hidden_size": 32}
        sizes |= {"encoder_layers": 2, "decoder_hidden_size": 32, "decoder_layers": 2}
        return VRAEConfig(**(sizes | self.options))

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([5, 7], 99).clamp(min=4)
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        mask[3, -1:] = 0
        return self.get_config(), {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids.clone()}


class VRAECase(ModelTesterMixin, GenerationTesterMixin):
    all_model_classes = (VRAEForSequenceGeneration,)
    has_attentions = False
    is_encoder_decoder = True
    make_tester = VRAEModelTester
    of_the_class = OF_THE_CLASS

    def setUp(self):
        patch = unittest.mock.patch.multiple(VRAEForSequenceGeneration, **self.of_the_class)
        patch.start()
        self.addCleanup(patch.stop)
        self.model_tester = self.make_tester(self)
        common = ["hidden_size", "num_hidden_layers"]
        self.config_tester = ConfigTester(self, config_class=VRAEConfig, common_properties=common)

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            inputs["labels"] = inputs["decoder_input_ids"].clone()
        return inputs

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        # It counts calls of a layer's `forward`, inside of which transformers 5.23 itself repeats it.
        self.skipTest("of an older transformers; tests/modeling/test_transformer.py compares the gradients")

    # what follows asks for the weights of attention, which are not returned
    def _check_attentions_for_generate(self, *args, **kwargs):
        pass

    def _check_encoder_attention_for_generate(self, *args, **kwargs):
        pass


def case(name, base=VRAECase, tester=VRAEModelTester, **options):
    tester = type(f"{name}Tester", (tester,), {"options": options})
    return require_torch(type(name, (base, unittest.TestCase), {"make_tester": tester, "__module__": __name__}))


class StatefulCase(VRAECase):
    of_the_class = {"_is_stateful": True}

    def _check_past_key_values_for_generate(self, batch_size, past_key_values, seq_length, config):
        self.assertGreaterEqual(past_key_values.get_seq_length(), 1)

    def test_past_key_values_format(self):
        self.skipTest("no key/value tensors")


class WithoutLatentCase(VRAECase):
    def test_hidden_states_output(self):
        self.skipTest("there is no encoder whose hidden states it could look at")

    test_model_outputs_equivalence = test_retain_grad_hidden_states_attentions = test_hidden_states_output


class GPT2Case(VRAECase):
    def test_can_init_all_missing_weights(self):
        # transformers goes by the modules' own parameters in a model that is not of its house, and GPT-2 scales the
        # weights of a submodule: those that a checkpoint lacks start larger than at construction.
        self.skipTest("of what transformers does with models inside others")

    def test_capture_outputs_decorator(self):
        self.skipTest("asks for the weights of attention, which are not returned")


GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 2, "eos_token_id": 3}
ATTENDS = {"decoder_type": "transformer"}

VRAEMemoryTest = case("VRAEMemoryTest", **ATTENDS, encoder_type="transformer")
VRAEPrefixTest = case("VRAEPrefixTest", **ATTENDS, latent_conditioning=["prefix", "output"])
VRAETiedTest = case("VRAETiedTest", **ATTENDS, tie_word_embeddings=True)
VRAEWithoutLatentTest = case("VRAEWithoutLatentTest", WithoutLatentCase, **ATTENDS, latent_size=0)
VRAEGPT2Test = case("VRAEGPT2Test", GPT2Case, decoder_config=GPT2, tie_word_embeddings=True)
VRAEIndependentTest = case("VRAEIndependentTest", StatefulCase, encoder_type="independent", decoder_type="independent")
