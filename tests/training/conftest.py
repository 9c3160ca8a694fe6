import pytest

from hf_vrae.training.arguments import parse_recipe
from tests.scripts import fresh_accelerator

TINY = """--corpus_size 240 --embedding_size 16 --encoder_hidden_size 16 --decoder_hidden_size 16 --latent_size 4
--per_device_train_batch_size 16 --max_steps 12 --eval_strategy no --save_steps 6 --logging_steps 4
--num_importance_samples 2 --kl_warmup_steps 4"""


@pytest.fixture(autouse=True)
def own_accelerator():
    fresh_accelerator()
    yield
    fresh_accelerator()


@pytest.fixture
def tiny(tmp_path):
    """A recipe of seconds, with further flags; its output goes to the test's folder."""

    def recipe(flags="", name="run"):
        built_in = not {"--train_file", "--dataset_name"} & set(flags.split())
        words = TINY.split() if built_in else TINY.split()[2:]  # without --corpus_size
        return parse_recipe([*words, "--output_dir", str(tmp_path / name), *flags.split()])

    return recipe
