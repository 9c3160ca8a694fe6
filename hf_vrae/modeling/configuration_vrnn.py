"""Configuration of the variational recurrent neural network."""

from dataclasses import field

from huggingface_hub.dataclasses import strict

from .configuration_common import LatentSequenceConfig


@strict
class VRNNConfig(LatentSequenceConfig):
    """Sizes and choices of a [`VRNNForSequenceGeneration`] or, with an `input_size`, a [`VRNNForFrameGeneration`].

    Each field says what it is in its `help`. With `latent_size` 0 it is a recurrent network without latents, for
    comparison.

    Example:

    ```python
    >>> from hf_vrae import VRNNConfig, VRNNForSequenceGeneration
    >>> model = VRNNForSequenceGeneration(VRNNConfig(vocab_size=1000, latent_size=16))
    ```
    """

    model_type = "vrnn"
    keys_to_ignore_at_inference = ["cache", "past_key_values", "latents", "posterior_mean", "posterior_logvar"]

    hidden_size: int = field(default=128, metadata={"help": "vrnn: width of the recurrence"})
    feature_size: int = field(
        default=128,
        metadata={
            "help": "vrnn: width of the layers around the recurrence, which read x and z and give the distributions"
        },
    )
    feature_layers: int = field(default=1, metadata={"help": "vrnn: number of ReLU layers of each of these"})
    smoothing_posterior: bool = field(
        default=False, metadata={"help": "vrnn: q(z_t) sees the rest of the sequence too (Fraccaro et al. 2016)"}
    )
    residual_posterior: bool = field(
        default=False, metadata={"help": "vrnn: the mean of q(z_t) is learnt as a distance from the prior's"}
    )
    resampling: bool = False  # of the training loss: the bound is that of a particle filter (FIVO)
    num_hidden_layers: int = 1
    is_encoder_decoder: bool = False

    def validate_architecture(self):
        """Checked at construction and when saving."""
        self._check_at_least_1("hidden_size", "feature_size", "feature_layers")
        super().validate_architecture()

    def _combinations(self) -> list[tuple[bool, str]]:
        no_latent = self.latent_size == 0
        several = self.num_train_samples > 1
        return [
            *super()._combinations(),
            (
                self.num_hidden_layers != 1,
                f"`num_hidden_layers` is 1 in a VRNN, whose recurrence is one layer; got {self.num_hidden_layers}.",
            ),
            (
                no_latent and (self.smoothing_posterior or self.residual_posterior),
                "`latent_size` 0 leaves no posterior for `smoothing_posterior` or `residual_posterior` to shape. "
                "Leave them out, or raise `latent_size`.",
            ),
            (
                no_latent and (self.free_bits > 0 or several),
                "`latent_size` 0 leaves no KL for `free_bits` and nothing to sample for `num_train_samples`. Leave "
                "them at their defaults.",
            ),
            (
                several and self.free_bits > 0,
                f"`num_train_samples` {self.num_train_samples} trains an importance-weighted bound, which has no KL "
                f"term that `free_bits` {self.free_bits} could leave free. Set one of them to its default.",
            ),
            (
                self.resampling and not several,
                "`resampling` chooses among the particles of `num_train_samples`, which must be above 1, got "
                f"{self.num_train_samples}.",
            ),
            (
                self.tie_word_embeddings and self.feature_size != self.embedding_size,
                "`tie_word_embeddings` makes the table of words the output projection: `feature_size` and "
                f"`embedding_size` must be equal, got {self.feature_size} and {self.embedding_size}.",
            ),
        ]


__all__ = ["VRNNConfig"]
