"""The model that a recipe asks for: a new one, or a saved one to start from."""

from collections.abc import Iterable

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedModel

from ..modeling.configuration_common import DATA_COLUMNS, LatentSequenceConfig
from ..modeling.modeling_vrae import VRAEForSequenceGeneration
from .arguments import CONFIGURATIONS, Recipe, TrainArguments
from .combinations import check_model

OF_THE_LOSS = tuple(
    name
    for name in TrainArguments.__dataclass_fields__
    if any(name in kind.__dataclass_fields__ for kind in CONFIGURATIONS.values())
)
"""What of the configuration the run's arguments set, whatever model it starts from: fields of both, by their names."""
FREE_TO_CHANGE = (
    "dropout", "encoder_dropout", "weight_dropout", "variational_dropout", "word_dropout", "kernels",
    "initializer_range", "embedding_initializer_range", "forget_bias", "condition_dropout", "classifier_weight",
    "batch_norm_gamma", "committed_rate", "concentration",
    "segment_kl_weight", "segment_free_bits", "section_kl_weight", "section_free_bits",
)  # fmt: skip
"""What of a saved model a recipe may set anew: no weight depends on it."""


def make_model(recipe: Recipe, **of_the_data) -> PreTrainedModel:
    """A new model, or the one to start from.

    Args:
        of_the_data: fields of the configuration that the data decide: of the tokenizer, or of the frames.

    Raises:
        ValueError: for what makes no sense of the run with this model.
    """
    args = recipe.training
    if args.pretrained_parts:
        return from_pretrained_parts(recipe, **of_the_data)
    config = configuration(recipe, **of_the_data)
    if not args.model_name_or_path:
        check_model(args, config)
        return AutoModel.from_config(config)
    model = start_from(args.model_name_or_path, config, recipe.given_fields())
    check_model(args, model.config)
    if args.reset_decoder:
        model.reset_decoder()
    return model


def from_pretrained_parts(recipe: Recipe, **of_the_data) -> PreTrainedModel:
    """A new model around pretrained ones, with those fields that the recipe asks for.

    Raises:
        ValueError: for data of frames, and as [`make_model`].
    """
    args = recipe.training
    if "input_size" in of_the_data or recipe.model.model_type != "vrae":
        raise ValueError(
            "`encoder_name_or_path` and `decoder_name_or_path` are parts of a vrae of words. Leave them out."
        )
    model = VRAEForSequenceGeneration.from_encoder_decoder_pretrained(
        args.encoder_name_or_path,
        args.decoder_name_or_path,
        args.freeze_decoder,
        **of_the_data,
        **recipe.given_fields(),
        **of_the_loss(recipe),
    )
    check_model(args, model.config)
    return model


def configuration(recipe: Recipe, **of_the_data) -> LatentSequenceConfig:
    """The configuration that a recipe asks for."""
    kind = CONFIGURATIONS[recipe.model.model_type]
    return kind(**of_the_data, **recipe.model_fields(), **of_the_loss(recipe))


def of_the_loss(recipe: Recipe) -> dict:
    """What of the configuration the run's arguments set; what others would say `check_model` refuses."""
    own = CONFIGURATIONS[recipe.model.model_type].__dataclass_fields__
    return {name: getattr(recipe.training, name) for name in OF_THE_LOSS if name in own}


def start_from(name_or_path: str, wanted: LatentSequenceConfig, given: Iterable[str]) -> PreTrainedModel:
    """A saved model, with what of the wanted configuration is no matter of its weights.

    Args:
        given: the fields that the recipe asks for, be it by their defaults.

    Raises:
        ValueError: where the recipe asks for another model.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"`model_name_or_path` {name_or_path!r} cannot be loaded as a model: {reason}") from error
    for name in ("model_type", "input_size", "condition_labels", "condition_attributes", "condition_size"):
        if getattr(config, name) != getattr(wanted, name):
            raise ValueError(
                f"`{name}` is {getattr(config, name)} in the model {name_or_path!r}, and this run's is "
                f"{getattr(wanted, name)}. Start from another model, or train a new one."
            )
    for name in given:
        value = getattr(wanted, name)
        if value == getattr(config, name):
            continue
        addable = name == "correlated_prior" and value  # at first the model is the same with it
        if name not in FREE_TO_CHANGE and not addable:
            raise ValueError(
                f"`{name}` is {getattr(config, name)} in the model {name_or_path!r}, and the recipe asks for "
                f"{value}. Leave it out, or train a new model."
            )
        setattr(config, name, value)
    order, own = config.feature_columns or [], wanted.feature_columns or []
    if sorted(order) == sorted(own) and order != own:
        raise ValueError(
            f"The channels of the model {name_or_path!r} are {order}, in this order, and this run's are {own}. Name "
            "them in that order with `feature_columns`."
        )
    for name in (*DATA_COLUMNS, "condition_column", "segment_separator_ids"):
        if getattr(wanted, name, None):
            setattr(config, name, getattr(wanted, name))
    for name in type(wanted).__dataclass_fields__.keys() & set(OF_THE_LOSS):
        setattr(config, name, getattr(wanted, name))
    config.validate_architecture()
    try:
        return AutoModel.from_pretrained(name_or_path, config=config, dtype=torch.float32)  # as new ones are
    except SafetensorError as error:
        raise ValueError(f"The weights of {name_or_path!r} cannot be read: {error}") from error
