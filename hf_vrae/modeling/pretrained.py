"""Models of transformers as encoder and decoder, with their weights (Optimus, Li et al. 2020)."""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)


def make_body(config, name: str) -> nn.Module:
    """The model of transformers that `config.encoder_config` or `config.decoder_config` describes."""
    own = config.transformers_config(name)
    # "sdpa" is what a model takes by default, where it can.
    attention = None if config._attn_implementation == "sdpa" else config._attn_implementation
    body = AutoModel.from_config(own, attn_implementation=attention, dtype=torch.get_default_dtype())
    if isinstance(getattr(body, "pooler", None), nn.Module):
        body.pooler = nn.Identity()  # of BERT's family: nobody reads it, so that it would have no gradient
    return body


def most_positions(body: nn.Module) -> int | None:
    """How long a sequence the body has positions for; None where any."""
    most = getattr(body.config, "max_position_embeddings", None)
    most = None if most is not None and most < 1 else most  # XLNet's -1
    table = getattr(getattr(body, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)  # RoBERTa's family counts from behind the position of padding
    return most if most is None or padding is None else most - padding - 1


def fields_of(encoder: PreTrainedModel | None, decoder: PreTrainedModel | None, further: dict) -> dict:
    """The fields of a configuration around two models, one of which may be ours (None); their tables are made as large
    as the `vocab_size` among the further fields.

    Raises:
        ValueError: where there is neither, and where they know different numbers of tokens.
    """
    given = [body for body in (encoder, decoder) if body is not None]
    if not given:
        raise ValueError("Name a pretrained encoder, a pretrained decoder, or both; got neither.")
    sizes = [body.get_input_embeddings().num_embeddings for body in given]
    if len(set(sizes)) > 1:
        raise ValueError(f"Encoder and decoder must read the same tokens, but they know {sizes[0]} and {sizes[1]}.")
    marks = {name: getattr(given[-1].config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if isinstance(marks["eos_token_id"], list):  # several marks that end a turn; ours ends a text
        marks["eos_token_id"] = marks["eos_token_id"][0]
    fields = {"vocab_size": sizes[0], "unk_token_id": None} | marks
    if further.get("unk_token_id") is None:
        fields["word_dropout"] = 0.0  # there is no word to put in place of one
    if decoder is not None:
        fields["tie_word_embeddings"] = decoder.config.tie_word_embeddings
    fields |= further
    for name, body in (("encoder_config", encoder), ("decoder_config", decoder)):
        if body is not None:
            fields[name] = body.config.to_dict()
            fields[name].pop("_name_or_path", None)  # where it lay here is nobody's business
            if fields["vocab_size"] != sizes[0]:
                body.resize_token_embeddings(fields["vocab_size"])
    return fields


def copy_weights(source: nn.Module, body: nn.Module) -> None:
    """Give a model the weights of one that has them all."""
    weights = source.state_dict()
    body.load_state_dict({name: weights[name] for name in body.state_dict()})


@torch.no_grad()
def copy_head(decoder: PreTrainedModel, lm_head: nn.Linear, projection: nn.Module, tied: bool) -> None:
    """Let the projection to the vocabulary begin as that of a language model, whatever it reads beside h; warn where
    that one's is more than a matrix (a bias, a cap, layers of its own), which ours is not.

    Args:
        decoder: the language model.
        lm_head, projection: ours; where the first is tied the second reads h, and is one only if z is read too.
        tied: whether it is.
    """
    weight = decoder.get_output_embeddings().weight  # [V, H]
    ids = torch.arange(min(64, len(weight))).unsqueeze(0)  # the first are often marks of zeros
    hidden, logits = decoder.eval().base_model(ids).last_hidden_state, decoder(ids).logits
    if weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"The projection of {type(decoder).__name__} to its vocabulary reads {weight.shape[1]} numbers, and its "
            f"hidden states have {hidden.shape[-1]}. Take another decoder."
        )
    if not torch.allclose(hidden @ weight.t(), logits, rtol=1e-2, atol=1e-2):
        logger.warning(
            "The projection of %s to its vocabulary is more than a matrix, and what it is beside that is left out: "
            "the decoder begins as another language model than this one.",
            type(decoder).__name__,
        )
    if not tied:
        lm_head.weight[:, : weight.shape[1]] = weight
    elif isinstance(projection, nn.Linear):
        projection.weight[:, : weight.shape[1]] = torch.eye(*weight.shape[1:] * 2)
