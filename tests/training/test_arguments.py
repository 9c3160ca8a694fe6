import re
from pathlib import Path

import pytest

from hf_vrae import VRAEConfig
from hf_vrae.training.arguments import (
    SECTIONS,
    DataArguments,
    TrainArguments,
    own_data,
    parse_recipe,
    read_recipe,
)

RECIPES = sorted(Path("recipes").rglob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "recipe.yaml"
        path.write_text(content)
        return str(path)

    return write


def test_no_argument_is_the_defaults():
    recipe = parse_recipe([])
    assert recipe.data == DataArguments() and recipe.training == TrainArguments()
    assert VRAEConfig(**recipe.model_fields()).to_dict() == VRAEConfig().to_dict() and not recipe.given_fields()


def test_flags_override_the_recipe(write):
    path = write("model:\n  rnn_type: gru\n  latent_size: 8\n  latent_conditioning: [input, output]\n"
                 "training:\n  learning_rate: 1e-3\n  overwrite_output_dir: true\n")  # fmt: skip
    recipe = parse_recipe(["--config", path, "--latent_size", "5", "--no_bidirectional_encoder"])
    assert (recipe.model.rnn_type, recipe.model.latent_size, recipe.model.bidirectional_encoder) == ("gru", 5, False)
    assert recipe.model.latent_conditioning == ["input", "output"]
    assert recipe.training.learning_rate == 0.001  # PyYAML reads 1e-3 as a string
    assert recipe.training.overwrite_output_dir is True


def test_a_saved_recipe_repeats_the_run(write, tmp_path):
    recipe = parse_recipe(["--latent_size", "5", "--train_file", "my.txt", "--layer_norm", "--max_steps", "7"])
    recipe.save(tmp_path / "saved.yaml")
    assert parse_recipe(["--config", str(tmp_path / "saved.yaml")]) == recipe
    overwriting = parse_recipe(["--overwrite_output_dir"])
    overwriting.save(tmp_path / "saved.yaml")
    assert parse_recipe(["--config", str(tmp_path / "saved.yaml"), "--resume_from_checkpoint", "latest"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model:\n  rnn_typ: gru\n", "unknown key of section model 'rnn_typ'; did you mean 'rnn_type'"),
        ("training:\n  latent_size: 3\n", "unknown key of section training 'latent_size'"),
        ("modl:\n  rnn_type: gru\n", "unknown section 'modl'; did you mean 'model'"),
        ("model:\n  rnn_type: rnn\n", "invalid choice: 'rnn'"),
        ("model:\n  latent_size: many\n", "invalid int value: 'many'"),
        ("model: [\n", "cannot be read"),
        ("just text", "must have the sections model, data, training"),
        ("model: [1, 2]\n", r"section model must have keys with values, got \[1, 2\]"),
        ("model:\n  1: 2\n", "unknown key of section model 1"),
        ("base: 5\n", "must be the file of a recipe that does not start here; got 5"),
    ],
)
def test_mistakes_in_a_recipe(content, message, write):
    with pytest.raises(ValueError, match=message):
        parse_recipe(["--config", write(content)])


def test_a_recipe_and_its_base(write, tmp_path):
    path = write("model:\n  rnn_type: gru\ntraining:\n  eval_strategy: no\n  mixed_precision: no\n  seed: 3\n")
    training = parse_recipe(["--config", path]).training
    assert training.eval_strategy == training.mixed_precision == "no"  # which YAML takes for false
    derived = tmp_path / "derived.yaml"
    derived.write_text(f"base: {path}\ntraining:\n  eval_strategy: null\n")
    training = parse_recipe(["--config", str(derived)]).training
    assert (training.eval_strategy, training.mixed_precision, training.seed) == ("epoch", "no", 3)
    with open(path, "a") as file:
        file.write(f"base: {path}\n")
    with pytest.raises(ValueError, match="must be the file of a recipe that does not start here"):
        parse_recipe(["--config", path])


def test_a_recipe_says_words_with_a_dash_and_lists_of_nothing(write):
    data = "data:\n  segment_separators: [-RRB-, ., -LRB-]\n  text_column: -text\n"
    recipe = parse_recipe(["--config", write(data + "model:\n  section_sizes: []\n")])
    assert recipe.data.segment_separators == ["-RRB-", ".", "-LRB-"] and recipe.data.text_column == "-text"
    assert not recipe.model.section_sizes
    with pytest.raises(ValueError, match="`segment_separators` holds '--', which ends the flags of a command"):
        parse_recipe(["--config", write("data:\n  segment_separators: [., --]\n")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--latent_sise 3", "unknown flag '--latent_sise'; did you mean '--latent_size'"),
        ("--latent_sise=3", "unknown flag '--latent_sise'; did you mean '--latent_size'"),
        ("--config nowhere.yaml", "cannot be read"),
        ("--learning_rate fast", "invalid float value: 'fast'"),
        ("--learning_rate 0", "`learning_rate` must be above 0, got 0.0"),
        ("--per_device_train_batch_size 0", "`per_device_train_batch_size` must be above 0, got 0"),
        ("--max_steps 0", "`max_steps` must be above 0, or -1"),
        ("--kl_weight -1", "`kl_weight` must not be negative, got -1.0"),
        ("--dataset_name a --train_file b", "`dataset_name` and `train_file` both name the data"),
        ("--test_file b", "`test_file` 'b' is given without a `train_file`. Name that"),
        ("--lr_decay_factor 7", "`lr_decay_factor` lowers a learning rate and must be below 1, got 7.0"),
        ("--validation_split_percentage 100", "`validation_split_percentage` must be between 0 and 100"),
        ("--resume_from_checkpoint latest --overwrite_output_dir", "goes on with the run"),
        ("--freeze_decoder", "`freeze_decoder` is of `decoder_name_or_path`"),
        ("--decoder_name_or_path a --autoencoder_epochs 2", "`autoencoder_epochs` 2.0 would make anew"),
        ("--encoder_name_or_path a --model_name_or_path b", "`model_name_or_path` 'b' would not be"),
        ("--kl_schedule capacity", "`kl_schedule` capacity and a `kl_capacity` above 0 belong together"),
        ("--kl_capacity 3", "`kl_schedule` capacity and a `kl_capacity` above 0 belong together"),
        ("--minimum_rate 3 --free_bits 0.1", "`free_bits` 0.1 leaves some KL free"),
        ("--kl_schedule capacity --kl_capacity 3 --minimum_rate 2", "both prescribe the KL"),
        ("--minimum_rate 3 --num_train_samples 5", "`minimum_rate` could hold"),
        ("--kl_weight 0 --free_bits 0.1", "`kl_weight` 0 charges nothing for the KL"),
        ("--kl_weight 0 --autoencoder_epochs 2", "another autoencoder would be trained"),
        ("--minimum_rate inf", "`minimum_rate` must be a finite number, got inf"),
        ("--kl_weight nan", "`kl_weight` must be a finite number, got nan"),
        ("--svi_steps 2 --mmd_weight 1", "`minimum_rate` or `mmd_weight` train something else"),
        ("--aggressive --svi_steps 2", "two ways to bring q(z|x) up to date"),
        ("--aggressive --eval_strategy no", "set `eval_strategy`"),
        ("--early_stopping_patience 2 --eval_strategy no", "count evaluations, of which there are none"),
        ("--lr_scheduler_type reduce_lr_on_plateau --eval_strategy no", "count evaluations, of which there are none"),
        ("--early_stopping_patience 2 --lr_scheduler_type reduce_lr_on_plateau", "count the same evaluations"),
        ("--output_dir a --overwrite_output_dir --decoder_name_or_path a/gpt2", "would delete the model to start"),
        ("--scheduled_sampling 0.2 --num_train_samples 5", "one decoder pass of one latent"),
        ("--momentum 0.9", "`momentum` 0.9 is of `optim` sgd, which is not asked for"),
        ("--optim sgd --adam_beta2 0.9", "`adam_beta2` 0.9 is of `optim` adamw, adam or lamb"),
        ("--kl_cycles 3", "`kl_cycles` 3 is of `kl_schedule` cyclical"),
        ("--warmup_steps 9 --lr_scheduler_type constant", "`warmup_steps` 9.0 is of a `lr_scheduler_type` other than"),
        ("--aggressive_max_epochs 3", "`aggressive_max_epochs` 3.0 is of `aggressive`"),
        ("--eval_steps 9", "`eval_steps` 9 is of `eval_strategy` steps"),
        ("--hub_private_repo", "`hub_private_repo` True is of `push_to_hub`"),
        ("--scheduled_sampling 2", "must be in [0, 1], got 2.0"),
        ("--max_lr_decays 0", "`max_lr_decays` must be above 0, got 0"),
        ("--train_window 0", "`train_window` must be above 0, got 0"),
        ("--transpose -1", "`transpose` is of both directions and must not be negative, got -1"),
    ],
)
def test_mistakes_in_flags(flags, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_recipe(flags.split())


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_recipes_list_only_what_differs_from_the_defaults(path):
    import yaml

    recipe = yaml.safe_load(path.read_text())
    assert set(recipe) <= {"base", "title", "published", "begins_at", *SECTIONS}
    base = ["--config", str(path.parent / recipe["base"])] if "base" in recipe else []
    without = parse_recipe(base)
    defaults = {name: vars(getattr(without, name)) for name in SECTIONS}
    for section in SECTIONS.keys() & recipe.keys():
        values = recipe[section]
        same = [key for key, value in values.items() if defaults[section][key] == value]
        assert not same, f"{path} repeats the defaults of {same}"


@pytest.mark.parametrize("content", [None, "", "- a\n", "data:\n", "model:\n  latent_size: 3\n"])
def test_a_model_without_data_of_its_own(content, tmp_path):
    if content is not None:
        (tmp_path / "recipe.yaml").write_text(content)
    for name in (tmp_path, "", "gone/away/for/good", str(tmp_path / "gone"), "no name?"):
        assert own_data(read_recipe(name)) is None
