import pytest
from accelerate.state import AcceleratorState, GradientState

from hf_vrae.training.arguments import parse_recipe

TINY = """--corpus_size 240 --embedding_size 16 --encoder_hidden_size 16 --decoder_hidden_size 16 --latent_size 4
--per_device_train_batch_size 16 --max_steps 12 --eval_strategy no --save_steps 6 --logging_steps 4
--num_importance_samples 2 --kl_warmup_steps 4"""


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """As at the start of a process: Accelerate keeps its state for the life of one."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def tiny(tmp_path):
    """A recipe of seconds, with further flags; its output goes to the test's folder."""
    return lambda flags="", name="run": parse_recipe(
        [*TINY.split(), "--output_dir", str(tmp_path / name), *flags.split()]
    )
