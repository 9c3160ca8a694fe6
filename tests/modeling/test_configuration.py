import math

import pytest
from huggingface_hub.errors import StrictDataclassError

from hf_vrae import VRAEConfig, VRNNConfig


def test_every_field_survives_saving(tmp_path):
    config = VRAEConfig(
        vocab_size=77,
        rnn_type="gru",
        latent_size=5,
        latent_conditioning=["output"],
        layer_norm=True,
        dropout=0,
        word_dropout=0.25,
        tie_word_embeddings=True,
        bidirectional_encoder=False,
        decoder_layers=3,
        decoder_start_token_id=3,
    )
    config.save_pretrained(tmp_path)
    assert VRAEConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_attribute_map_gives_transformers_names():
    config = VRAEConfig(decoder_hidden_size=24, decoder_layers=2)
    assert (config.hidden_size, config.num_hidden_layers, config.is_encoder_decoder) == (24, 2, True)


def test_unknown_key_names_the_nearest():
    with pytest.raises(ValueError, match="`latent_dimm`.*did you mean `latent_size`"):
        VRAEConfig(latent_dimm=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 1, "input_mean": [0.0]}, "`input_mean` and `input_scale` belong together"),
        (
            {"input_size": 1, "head": "bernoulli", "input_mean": [0.0], "input_scale": [1.0]},
            "`head` bernoulli is of values that stand for themselves",
        ),
        ({"latent_size": -1}, "`latent_size` must be at least 0 and finite, got -1"),
        ({"dropout": 1.0}, r"`dropout` .* \[0, 1\), got 1.0"),
        ({"vocab_size": 3}, "`vocab_size` must hold the special tokens, but `eos_token_id` is 3"),
        ({"latent_conditioning": []}, "`latent_conditioning` must name at least one"),
        ({"latent_conditioning": ["input", "input"]}, "names a place twice"),
        ({"encoder_hidden_size": 9, "bidirectional_encoder": True}, "must be even, got 9"),
        ({"initializer_range": 0}, "`initializer_range` must be above 0 and finite, got 0"),
        ({"initializer_range": math.nan}, "`initializer_range` must be above 0 and finite, got nan"),
        ({"free_bits": math.nan}, "`free_bits` must be at least 0 and finite, got nan"),
        ({"condition_attributes": ["a"], "attribute_mean": [math.nan]}, "`attribute_mean` must be finite"),
        ({"condition_attributes": ["a"], "attribute_scale": [math.inf]}, "`attribute_scale` must be above 0 and"),
        (
            {"condition_labels": {"kind": ["a", "b"]}, "label_frequencies": [0.5, 0.5]},
            "`label_frequencies` .* is of `label_classifier`",
        ),
        (
            {"condition_labels": {"kind": ["a", "b"]}, "label_classifier": True, "label_frequencies": [math.nan, 1.0]},
            "`label_frequencies` must be above 0 and finite",
        ),
        ({"bos_token_id": -5}, "`vocab_size` must hold the special tokens, but `bos_token_id` is -5"),
        ({"num_mixtures": 3}, "`num_mixtures` 3 is of models of frames with `head` gaussian_mixture or logistic"),
        ({"input_size": 2, "num_levels": 9}, "`num_levels` 9 is of .* `head` categorical or logistic_mixture; got"),
        ({"input_size": 2, "head": "nade", "min_scale": 0.1}, "`min_scale` 0.1 is of .* `head` gaussian or full"),
        ({"input_size": 1, "input_mean": [math.nan], "input_scale": [1.0]}, "`input_mean` must be finite numbers"),
        ({"input_size": 1, "input_mean": [0.0], "input_scale": [math.inf]}, "`input_scale` must be above 0 and"),
        ({"decoder_type": "independent", "word_dropout": 0.5}, "`word_dropout` 0.5 is of what the decoder reads"),
        ({"input_size": 2, "autoregressive": False, "word_dropout": 0.5}, "`word_dropout` 0.5 is of what the dec"),
        ({"unk_token_id": None, "word_dropout": 0.3}, "`unk_token_id`, which is None"),
        ({"rnn_type": "gru", "forget_bias": 0}, "`forget_bias` 0 is of LSTMs, and `rnn_type` is gru"),
    ],
)
def test_values_that_make_no_model(options, message):
    with pytest.raises(ValueError, match=message):
        VRAEConfig(**options)


@pytest.mark.parametrize("options", [{"latent_size": "8"}, {"rnn_type": "rnn"}, {"latent_conditioning": ["outputs"]}])
def test_wrong_types_are_refused(options):
    with pytest.raises(StrictDataclassError):
        VRAEConfig(**options)


def test_wrong_types_are_refused_on_assignment():
    with pytest.raises(StrictDataclassError):
        VRAEConfig().latent_size = "8"


def test_what_a_family_has_not_is_asked_for_all_the_same_and_cannot_be_set(tmp_path):
    config = VRNNConfig()
    lacking = {"posterior": "gaussian", "condition_labels": None, "condition_attributes": None, "condition_size": 0}
    lacking |= {"condition_column": None, "svi_steps": 0, "label_classifier": False}
    assert {name: getattr(config, name) for name in lacking} == lacking
    assert not lacking.keys() & config.to_dict().keys()
    config.save_pretrained(tmp_path)
    for name in lacking:
        with pytest.raises(AttributeError, match="no setter"):
            VRNNConfig.from_pretrained(tmp_path, **{name: 2})
