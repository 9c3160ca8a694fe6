"""Every command and every program of the README runs, in order, on small sizes; every recipe trains a step."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from hf_vrae import VRAEConfig
from hf_vrae.data.grammar import generate_corpus
from hf_vrae.data.tokenization import train_tokenizer
from hf_vrae.training import comparison
from hf_vrae.training.arguments import parse_recipe
from hf_vrae.training.combinations import check_model
from hf_vrae.training.run import run
from hf_vrae.training.tasks import TextTask
from tests.scripts import fresh_accelerator, script

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# Smaller than a reader's, so that all of them take seconds.
SMALL = {
    "train.py": "--corpus_size 300 --max_steps 4 --save_steps 2 --num_importance_samples 2 --embedding_size 16 "
    "--encoder_hidden_size 16 --decoder_hidden_size 16 --overwrite_output_dir",
    "evaluate.py": "--num_samples 2 --max_samples 200",
    "generate.py": "--max_length 8",
    "plot.py": "--max_samples 60",
    "compare.py": "--rows lm bn_vae --corpus_size 300 --max_steps 2 --num_importance_samples 2",
    "compare.py recipes/comparison": "--rows vrae vrnn --corpus_size 300 --max_steps 2 --num_importance_samples 2 "
    "--num_quality_samples 0",
}


def blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def commands():
    for line in "".join(blocks("bash")).splitlines():
        if "scripts/" in line:
            command = line.strip().removeprefix("accelerate launch ").removeprefix("python ")
            yield shlex.split(command)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A reader's folder, with the files that the README speaks of."""
    folder = tmp_path_factory.mktemp("desk")
    texts = generate_corpus(400, 1, 1)["train"]["text"][:]
    (folder / "my.txt").write_text("\n".join(texts))
    (folder / "my_test.txt").write_text("\n".join(texts[:50]))
    (folder / "my.csv").write_text("id,body\n" + "\n".join(f"{i},{text}" for i, text in enumerate(texts)))
    (folder / "will.txt").write_text("\n".join(text for text in texts if " will " in text))
    (folder / "did.txt").write_text("\n".join(text for text in texts if " did " in text))
    for name, some in (("labelled", texts), ("labelled_test", texts[:40])):
        rows = [f"{int(text.endswith('?'))}\t{text}" for text in some]
        (folder / f"{name}.tsv").write_text("\n".join(["label\ttext", *rows]))
    rolls = np.random.default_rng(0).integers(0, 2, (12, 9, 6))
    np.savez(folder / "rolls.npz", x=rolls, y=rolls[:, 0, 0])
    tokenizer = train_tokenizer(texts, "word", 1000)
    tokenizer.save_pretrained(folder / "gpt2")
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_layer=1, n_embd=16, n_head=2)).save_pretrained(
        folder / "gpt2"
    )
    (folder / "recipes").symlink_to(ROOT / "recipes")
    return folder


def test_every_command_of_the_readme(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    pushed = []
    monkeypatch.setattr("hf_vrae.hub.push_folder", lambda *args: pushed.append(args) or "https://hub/commit")
    seen = set()
    for words in commands():
        name = words[0].split("/")[-1]
        small = SMALL.get(" ".join([name, *words[1:2]]), SMALL.get(name, "")).split()
        if "--resume_from_checkpoint" in words:
            small = [word for word in small if word != "--overwrite_output_dir"]
        if name == "plot.py" and not {"kl", "map"} & set(words):
            small = []
        if {"--train_file", "--config"} & set(words) and "--corpus_size" in small:
            small = small[2:]
        if "vrnn" in words:
            small = [word.replace("decoder_hidden", "hidden").replace("encoder_hidden", "feature") for word in small]
        assert script([*words, *small]) == 0, (words, capsys.readouterr().err)
        seen.add(name)
    assert seen == {path.name for path in (ROOT / "scripts").glob("*.py")}
    assert pushed == [("output", "org/vrae-mine", False)]
    assert {"README.md", "results.json", "curves.png", "model.safetensors"} <= set(os.listdir("output"))
    assert {"kl.png", "kl.json", "map_tense_pca.png", "interpolation.md"} <= set(os.listdir("output"))
    assert {"my_model", "my_bpe_model", "my_frames", "my_music", "results.json", "samples.png"} <= set(os.listdir())


def test_every_program_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert script(["scripts/train.py", *SMALL["train.py"].split()]) == 0
    names = {}
    for block in blocks("python"):
        exec(block.replace("max_steps=20", "max_steps=2, disable_tqdm=True, use_cpu=True"), names)
    assert names["bound"].shape == (2,)


def test_the_readme_shows_the_tree_as_it_is():
    (tree,) = (block for block in blocks("") if block.startswith("hf_vrae/"))
    for name in re.findall(r"[\w.]+[/](?=\s)|\b\w+\.py\b", tree):
        assert (ROOT / name).exists() or (ROOT / "hf_vrae" / name).exists(), name


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_trains_a_step(path, desk, tmp_path):
    fresh_accelerator()
    data = desk / "my.txt"
    if not {"text", "comparison"} & set(path.parts):
        head = parse_recipe(["--config", str(path)]).model.head
        values = np.random.default_rng(0).integers(0, 2, (12, 9, 88))  # of every head
        data = tmp_path / "frames.npz"
        np.savez(data, x=values if head in ("bernoulli", "nade", "categorical") else values + np.arange(88) / 88)
    elif columns := parse_recipe(["--config", str(path)]).data.label_columns:
        data = tmp_path / "labelled.tsv"
        data.write_text(
            f"{columns[0]}\ttext\n" + "".join(f"{i % 2}\tit was {'very ' * (i % 3)}good .\n" for i in range(1200))
        )
    flags = f"--output_dir {tmp_path} --train_file {data} --max_steps 1 --num_importance_samples 2"
    recipe = parse_recipe(["--config", str(path), *flags.split()])
    recipe.training.num_quality_samples = 0  # tests/training/test_quality.py has them
    recipe.training.autoencoder_epochs = min(recipe.training.autoencoder_epochs, 0.1)
    results = run(recipe)
    assert results["run"]["steps"] == 1 and results["nll_iw"] > 0


def test_the_ptb_recipe_is_the_protocol(tokenizer):
    """Sizes and places of He et al. 2019 and Li et al. 2019; the published model has no biases but the LSTMs'."""
    recipe = parse_recipe(["--config", str(ROOT / "recipes/text/ptb/protocol.yaml")])
    model = TextTask(tokenizer).make_model(recipe, Dataset.from_dict({"length": [82]}))
    vocabulary, size, latent = len(tokenizer), 256, 32
    lstm = lambda inputs: 4 * size * (inputs + size + 2)  # noqa: E731
    encoder = vocabulary * size + lstm(size) + size * 2 * latent
    decoder = vocabulary * size + lstm(size + latent) + latent * size + size * vocabulary
    assert model.num_parameters() == encoder + decoder
    training = recipe.training
    assert (training.optim, training.learning_rate, training.max_grad_norm) == ("sgd", 0.5, 5.0)
    assert (training.kl_schedule, training.kl_start, training.kl_weight) == ("linear", 0.1, 1.0)
    assert training.kl_warmup_steps * training.num_train_epochs == 10


PLACES = [(document, folder) for document in ("README.md", "PAPERS.md", "docs/remedies.md")
          for folder in re.findall(r"<!-- compare.py (\S+) -->\n\n\|", (ROOT / document).read_text())]  # fmt: skip


@pytest.mark.parametrize(("document", "folder"), PLACES)
def test_tables_are_those_of_the_results_beside_the_recipes(document, folder):
    rows = comparison.collect(comparison.find_recipes(ROOT / folder), ROOT / folder / "results")
    assert (
        comparison.comparison_table(rows) + "\n" + comparison.comparison_notes(rows) in (ROOT / document).read_text()
    )


def test_the_readmes_short_table_is_of_the_same_results():
    folder = "recipes/text/ptb"
    rows = comparison.collect(comparison.find_recipes(ROOT / folder), ROOT / folder / "results")
    mark = f"<!-- compare.py {folder} short -->\n"
    assert README.split(mark)[1] == "\n" + comparison.comparison_table(rows, short=True) + "\n"


def test_every_folder_of_results_has_its_table():
    assert {folder for _, folder in PLACES} == {
        path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("results")
    }


def test_every_remedy_has_flags_that_exist():
    flags = re.findall(r"`(--[^`]*)`", (ROOT / "docs/remedies.md").read_text())
    assert len(flags) >= 20
    for line in flags:
        recipe = parse_recipe(line.split())
        check_model(recipe.training, VRAEConfig(vocab_size=50, **recipe.model_fields()))


def test_cards_are_those_of_runs():
    cards = sorted((ROOT / "model_cards").glob("*/README.md"))
    assert cards
    for card in cards:
        front, body = card.read_text().removeprefix("---\n").split("\n---\n", 1)
        assert yaml.safe_load(front)["tags"] and "| seed |" in body and "SHA-256" in body
        for linked in re.findall(r"\]\(([^:)]*)\)", body):
            assert (card.parent / linked).exists()


def test_the_quick_starts_card_is_of_the_settings_of_now():
    assert parse_recipe(["--config", str(ROOT / "model_cards/quickstart/recipe.yaml")]) == parse_recipe([])


def test_the_readmes_numbers_are_those_of_the_card():
    card = (ROOT / "model_cards" / "quickstart" / "README.md").read_text()
    rows = re.findall(r"^\| (.*) \| ([\d.]+) \|$", card, flags=re.MULTILINE)
    nll, best, kl, units = (
        next(float(value) for name, value in rows if name.startswith(start))
        for start in ("NLL, importance-weighted", "NLL of the grammar", "KL", "active units")
    )
    above = 100 * (nll / best - 1)
    shown = f"{best:.2f} nats", f"{nll:.2f} (", f"{above:.1f} % above", f"is {kl:.2f} nats", f"{units:.0f} of"
    words = " ".join(README.split())
    for number in shown:
        assert number in words, number


def test_ci_runs_the_readmes_commands():
    ci = (ROOT / ".ci" / "run").read_text()
    install, test = next(block for block in blocks("bash") if "pytest" in block).splitlines()
    assert install.replace("pip install", "pip install -q") in ci and ci.rstrip().endswith(test)


@pytest.mark.parametrize(("document", "results"), [("README.md", "results"), ("benchmarks/README.md", "results/avx2")])
def test_the_table_of_speed_is_what_the_benchmarks_wrote(document, results):
    folder = ROOT / "benchmarks"
    command = [sys.executable, folder / "table.py", "--results", folder / results]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout in (ROOT / document).read_text()
