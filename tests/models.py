"""Small models of every kind."""

from hf_vrae import VRAEConfig, VRAEForSequenceGeneration

# Every kind of layer, direction, depth and way of showing z to the decoder is in one of these.
VARIANTS = {
    "lstm": {"rnn_type": "lstm", "bidirectional_encoder": False, "latent_conditioning": ["initial_state", "input"]},
    "gru": {"rnn_type": "gru", "bidirectional_encoder": True, "latent_conditioning": ["input"]},
    "deep lstm": {"encoder_layers": 2, "decoder_layers": 2, "latent_conditioning": ["initial_state"]},
    "deep gru": {"rnn_type": "gru", "encoder_layers": 2, "decoder_layers": 2, "bidirectional_encoder": False},
    "tied": {"tie_word_embeddings": True, "decoder_hidden_size": 20, "latent_conditioning": ["output"]},
    "layer-norm lstm": {"layer_norm": True, "encoder_layers": 2},
    "layer-norm gru": {"layer_norm": True, "rnn_type": "gru", "decoder_layers": 2},
    "skip connections": {"skip_connections": True, "decoder_layers": 3, "posterior": "delta"},
    "batch norm": {"posterior": "batch_norm", "learn_batch_norm_scale": True},
    "vmf": {"posterior": "vmf", "rnn_type": "gru"},
}
# Without z: an encoder, a posterior and a KL are what these lack, and nothing else.
LANGUAGE_MODELS = {
    "language model": {"latent_size": 0},
    "tied language model": {"latent_size": 0, "tie_word_embeddings": True, "rnn_type": "gru", "decoder_layers": 2},
}


def make_model(**options) -> VRAEForSequenceGeneration:
    """A small model in evaluation mode with weights large enough for z and every token to matter."""
    sizes = {"vocab_size": 40, "embedding_size": 16, "latent_size": 6}
    hidden = {"encoder_hidden_size": 16, "decoder_hidden_size": 16, "initializer_range": 0.5}
    config = VRAEConfig(**(sizes | hidden | {"embedding_initializer_range": 1.0} | options))
    return VRAEForSequenceGeneration(config).eval()
