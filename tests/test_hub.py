"""Sharing: the card, the round trip through a Hub on loopback, and a stranger who does not have the package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import filter_repo_objects

from hf_vrae import VRNNConfig, VRNNForFrameGeneration, VRNNForSequenceGeneration, hub
from hf_vrae.hub import load, push_folder, write_model_card
from hf_vrae.training.arguments import parse_recipe
from tests.hub_server import Hub
from tests.models import (
    CONDITIONAL,
    GPT2,
    SCALING,
    VARIANTS,
    make_frame_model,
    make_hierarchical_frame_model,
    make_hierarchical_model,
    make_model,
)

# Runs where `import hf_vrae` fails: all it has is what came with the checkpoint.
STRANGER = """
import sys
sys.modules["hf_vrae"] = None
import torch
import yaml
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer
names, revision = (sys.argv[1:2], sys.argv[2]) if "/" in sys.argv[1] else (sys.argv[1:], "main")
for name in names:
    for auto in (AutoModel, AutoModelForSeq2SeqLM):
        model = auto.from_pretrained(name, trust_remote_code=True, revision=revision).eval()
        assert type(model).__name__ == "VRAEForSequenceGeneration", type(model)
    ids = torch.tensor([[2, 5, 6, 3]])
    q = model.encode(ids)
    assert torch.isfinite(q.log_prob(q.sample())).all()
    assert torch.isfinite(torch.distributions.kl_divergence(q, model.prior())).all()
    assert model.generate(ids, max_new_tokens=3, num_beams=2).shape[0] == 1
    assert model.generate(latents=model.prior().sample((4,)), max_new_tokens=3, do_sample=True).shape[0] == 4
    assert torch.isfinite(model(ids, labels=ids[:, 1:]).loss)
    print(q.mean.sum().item())
    model.save_pretrained(name.split("/")[-1] + "_again")
"""
STRANGER_TO_FRAMES = """
model = AutoModel.from_pretrained("frames", trust_remote_code=True).eval()
assert type(model).__name__ == "VRAEForFrameGeneration" and "transformers_modules" in type(model).__module__
x = torch.linspace(-1, 1, 12).view(1, 4, 3)
assert model.generate(latents=model.prior().sample((2,)), max_length=3, do_sample=True).sequences.shape == (2, 3, 3)
print(model(x, labels=x).loss.item())
model = AutoModel.from_pretrained("hierarchical", trust_remote_code=True).eval()
assert type(model).__name__ == "HierarchicalVRAEForSequenceGeneration"
assert "transformers_modules" in type(model).__module__
ids = torch.arange(3, 11).view(1, 8)
z = model.prior(num_segments=2).sample((3,))
assert model.generate(latents=z, max_length=9, do_sample=True).shape[0] == 3
print(model(ids, labels=ids[:, 1:]).loss.item())
model = AutoModel.from_pretrained("hierarchical-frames", trust_remote_code=True).eval()
print(model(x, labels=x).loss.item())
import pickle
for name in ("frames", "hierarchical-frames", "vrnn-frames"):
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    assert type(pickle.loads(pickle.dumps(model))) is type(AutoModel.from_pretrained(name, trust_remote_code=True))
    assert not model.can_generate()
"""


def python(script, *arguments, cwd, **environment):
    """Run Python code in a process of its own, without this one's offline settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    kept |= {"HF_HOME": str(cwd / "hf_home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | environment
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=cwd, env=kept, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.split()


@pytest.fixture
def shared(tmp_path, tokenizer):
    """A model folder as a run leaves it."""
    folder = tmp_path / "vrae-tiny"
    make_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    results = {"split": "test", "nll_iw": 23.5, "ppl_iw": 8.25, "neg_elbo": 24.0, "reconstruction": 18.0, "kl": 6.0}
    results |= {"mutual_information": 5.0, "mi_num_sequences": 60, "active_units": 4, "num_samples": 100}
    data = {"train": {"sequences": 400, "tokens": 4000, "sha256": "0" * 64}}
    run = {"command": "train.py", "seed": 42, "num_parameters": 12_345, "steps": 10, "best_step": None, "data": data}
    run |= {"training_seconds": 3.2, "hardware": "a CPU", "num_processes": 1, "mixed_precision": "no"}
    results |= {"num_sequences": 60, "num_tokens": 660, "run": run | {"versions": {"torch": "2.13.0"}}}
    (folder / "results.json").write_text(json.dumps(results))
    samples = {"step": 10, "reconstructions": [["a | b", "a <unk> b"]], "samples": ["the king ."]}
    (folder / "samples.jsonl").write_text(json.dumps(samples) + "\n")
    (folder / "recipe.yaml").write_text("data:\n  train_file: some/where/my.txt\n")
    (folder / "curves.png").write_bytes(b"picture")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "optimizer.bin").write_bytes(b"large")
    return folder


def test_a_repository_is_private_where_it_is_to_be_and_has_no_data(shared, monkeypatch):
    asked = {}

    def create(self, repo_id, **options):
        asked.update(options)
        return SimpleNamespace(repo_id=repo_id)

    def upload(self, **options):
        asked.update(options)
        return SimpleNamespace(commit_url="there")

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    for private, wanted in ((True, True), (False, None)):  # which leaves it to the organisation
        assert push_folder(shared, "org/mine", private) == "there" and asked["private"] is wanted
    kept = ["config.json", "README.md", "samples.jsonl"]
    ours = [
        "judges/reverse_ppl/train.txt", "nan_batch.json", "autoencoder/model.safetensors", "checkpoint-4/a",
        "partial-checkpoint-4/a", "runs/hf_vrae/events", "hf_vrae/1/events", "run.log",
    ]  # fmt: skip
    assert list(filter_repo_objects(kept + ours, ignore_patterns=asked["ignore_patterns"])) == kept


def test_card_holds_the_runs_own_numbers(shared):
    text = write_model_card(shared, "org/vrae-tiny").read_text()
    for part in (
        'AutoModel.from_pretrained("org/vrae-tiny")',
        'AutoModel.from_pretrained("org/vrae-tiny", trust_remote_code=True)',
        "| NLL, importance-weighted with 100 samples | 23.500 |",
        "| active units | 4 |",
        "| mutual information of x and z, over 60 sequences | 5.000 |",
        "| seed | 42 |",
        "torch 2.13.0",
        "the file `my.txt`",
        "12,345 parameters",
        "| a \\| b | a \\<unk> b |",
        "- the king .",
        "![Training curves](curves.png)",
        "train_file: some/where/my.txt",
        "SHA-256 `0000000000000000`",
    ):
        assert part in text, part
    assert "{{" not in text and "None" not in text
    card = ModelCard.load(shared / "README.md").data
    assert card.library_name == "transformers" and card.model_name == "vrae-tiny"
    assert {result.metric_type: result.metric_value for result in card.eval_results}["nll_iw"] == 23.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "A variational recurrent autoencoder (bidirectional LSTM encoder and LSTM decoder), "),
        (
            {"decoder_type": "transformer"},
            "recurrent autoencoder (bidirectional LSTM encoder and transformer decoder), ",
        ),
        (
            {"decoder_config": GPT2, "encoder_type": "independent"},
            "A variational autoencoder (time-less encoder and gpt2 decoder), ",
        ),
        ({"posterior": "vmf"}, "into a latent unit vector z of 6 dimensions"),
        ({"decoder_type": "transformer", "latent_size": 0}, "A language model without latents (transformer decoder),"),
    ],
)
def test_a_card_says_what_the_model_is(options, said, tmp_path):
    make_model(**options).save_pretrained(tmp_path)
    assert said in " ".join(write_model_card(tmp_path).read_text().split())


def test_a_card_of_a_hierarchy_of_one_latent(tmp_path):
    make_hierarchical_model(segment_latent_size=0).save_pretrained(tmp_path)
    text = " ".join(write_model_card(tmp_path).read_text().split())
    assert "Its one latent is z of the whole sequence, " in text and "scales" not in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "its posterior also sees the token itself and those before it."),
        ({"smoothing_posterior": True}, "its posterior also sees the token itself and the tokens after it."),
        ({"latent_size": 0}, "A recurrent language model without latents (LSTM with feature extractors), "),
    ],
)
def test_a_card_says_what_a_vrnn_is(options, said, tmp_path):
    VRNNForSequenceGeneration(VRNNConfig(vocab_size=9, **{"latent_size": 2} | options)).save_pretrained(tmp_path)
    assert said in " ".join(write_model_card(tmp_path).read_text().split())


@pytest.mark.parametrize(
    ("data", "source"),
    [
        ("dataset_name: org/some", "the data set `org/some`"),
        ("builtin: frames", "hf_vrae's built-in frames"),
        ("builtin: text", "hf_vrae's built-in corpus"),
    ],
)
def test_a_card_is_of_the_data_and_of_the_last_samples(data, source, shared):
    (shared / "recipe.yaml").write_text(f"data:\n  {data}\n")
    with open(shared / "samples.jsonl", "a") as file:
        file.write(json.dumps({"step": 20, "reconstructions": [["c", "d"]], "samples": ["the last ."]}) + "\n")
    text = write_model_card(shared).read_text()
    assert f"on {source}" in " ".join(text.split()) and "- the last ." in text and "the king ." not in text
    (result, *_) = ModelCard.load(shared / "README.md").data.eval_results
    assert (result.dataset_name, result.dataset_split) == (source.replace("`", ""), "test")


def test_a_card_says_of_a_recipe_what_is_no_default(shared):
    parse_recipe(["--latent_size", "7", "--label_columns", "a", "b"]).save(shared / "recipe.yaml")
    (block,) = re.findall(r"```yaml\n(.*?)```", write_model_card(shared).read_text(), flags=re.DOTALL)
    assert yaml.safe_load(block) == {"model": {"latent_size": 7}, "data": {"label_columns": ["a", "b"]}}
    parse_recipe([]).save(shared / "recipe.yaml")
    assert "All settings of its [recipe](recipe.yaml) are the defaults." in write_model_card(shared).read_text()


def test_the_card_of_a_model_without_z_has_none_of_its_numbers(shared):
    make_model(latent_size=0).save_pretrained(shared)
    results = json.loads((shared / "results.json").read_text())
    (shared / "results.json").write_text(json.dumps(results | {"teacher_forced_accuracy": 0.5}))
    text = write_model_card(shared).read_text()
    rows = re.findall(r"^\| (.*) \| [\d.]+ \|$", text, flags=re.MULTILINE)
    assert (
        rows == ["NLL", "perplexity per token", "accuracy, each step told the true ones before it", "seed"]
        and "## Samples\n\n- the king ." in text
    )
    assert 'tokenizer(["a | b"]' in text
    shown = ModelCard.load(shared / "README.md").data.eval_results
    assert [result.metric_name for result in shown] == ["NLL", "Perplexity"]


def test_the_card_of_a_conditional_model_says_so(shared):
    make_model(**CONDITIONAL["conditional"]).save_pretrained(shared)
    text = write_model_card(shared).read_text()
    assert "It is conditional, on `mood` (" in text and "the number `length`" in text
    for row in ("NLL given the conditions, importance-weighted with 100 samples", "perplexity per token given the c",
                "KL(q(z\\|x, c) \\|\\| p(z\\|c))"):  # fmt: skip
        assert f"| {row}" in text, row
    assert "under each combination of its labels in turn" in text
    names = {result.metric_name for result in ModelCard.load(shared / "README.md").data.eval_results}
    assert "Perplexity given the conditions, importance-weighted with 100 samples" in names


def test_a_card_keeps_what_is_said_by_hand(shared, caplog):
    path = write_model_card(shared)
    assert "license" not in path.read_text()
    path.write_text(path.read_text().replace("tags:\n", "license: mit\nlanguage: [en]\ntags:\n- letters\n"))
    card = ModelCard.load(write_model_card(shared, "org/other")).data
    assert (card.license, card.language, card.model_name) == ("mit", ["en"], "other")
    assert {"letters", "vrae"} < set(card.tags) and "training_args" not in card
    path.write_text(path.read_text().replace("tags:\n", "tags: letters\nothers:\n"))
    assert ModelCard.load(write_model_card(shared)).data.tags[-1] == "letters"
    own = path.read_text().replace(hub.WRITTEN, "Of my letters.")
    path.write_text(own)
    assert write_model_card(shared).read_text() == own and "stays as it is" in caplog.text
    path.write_text(f"---\ntags: [\n---\n{hub.WRITTEN}\n")
    with pytest.raises(
        ValueError, match=r"The metadata of .*README.md' cannot be read: (.|\n)*Mend or delete the file"
    ):
        write_model_card(shared)


def test_a_card_says_where_the_hub_finds_what_it_is_of(shared, tmp_path):
    write = (shared / "recipe.yaml").write_text
    write("data:\n  dataset_name: org/letters\ntraining:\n  decoder_name_or_path: gpt2\n")
    card = ModelCard.load(write_model_card(shared)).data
    assert card.datasets == ["org/letters"] and card.base_model == ["gpt2"] and not card.pipeline_tag
    assert {result.dataset_type for result in card.eval_results} == {"org/letters"}
    write(f"data:\n  dataset_name: {tmp_path}\ntraining:\n  model_name_or_path: ./gone\n")
    (shared / "README.md").unlink()
    card = ModelCard.load(write_model_card(shared)).data
    assert card.datasets is None and card.base_model is None
    VRNNForSequenceGeneration(VRNNConfig(vocab_size=9, latent_size=2)).save_pretrained(tmp_path / "vrnn")
    assert ModelCard.load(write_model_card(tmp_path / "vrnn")).data.pipeline_tag == "text-generation"


def test_the_file_of_frames_is_named_though_they_are_called_built_in(shared):
    recipe = shared / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("data:\n", "data:\n  builtin: frames\n"))
    assert "the file `my.txt`" in write_model_card(shared).read_text()


def test_card_of_a_model_alone(tmp_path):
    make_model().save_pretrained(tmp_path)
    text = write_model_card(tmp_path).read_text()
    assert "## Results" not in text and "## Samples" not in text and f'from_pretrained("{tmp_path}")' in text


def test_card_of_what_was_evaluated_again(shared):
    results = json.loads((shared / "results.json").read_text())
    del results["split"]
    results["run"] = {name: value for name, value in results["run"].items() if name in ("command", "seed", "versions")}
    results["run"] |= {"data": {}, "num_parameters": 1234}
    (shared / "results.json").write_text(json.dumps(results))
    text = write_model_card(shared).read_text()
    assert "| seed | " in text and "| updates | " not in text


def test_card_of_a_text_with_other_ends_of_lines(shared):
    line = {"reconstructions": [["a\u2028b", "c"]], "samples": ["d\x85e"]}
    (shared / "samples.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n")
    assert "d\x85e" in write_model_card(shared).read_text()


def test_no_answer_of_the_hub_says_so(shared, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ConnectionError, match="The Hub at http://127.0.0.1:9 cannot be reached: .* The model is in"):
        push_folder(shared, "org/mine", token="hf_anything")


def test_card_of_no_model(tmp_path):
    with pytest.raises(ValueError, match="holds no saved model"):
        write_model_card(tmp_path)


def test_loading_what_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="There is no folder 'nowhere'"):
        load("nowhere")
    with pytest.raises(ValueError, match="cannot be loaded as a model"):
        load(str(tmp_path))
    make_model().save_pretrained(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 100)
    with pytest.raises(ValueError, match="cannot be loaded as a model: Error while deserializing"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="of type 'bert', not 'vrae'"):
        load(str(tmp_path))


# Trains and pushes, loads, changes and pushes again, and loads both revisions.
ROUND_TRIP = """
import runpy, sys
import torch
import yaml
from transformers import AutoModel, AutoTokenizer
from hf_vrae import VRAEForSequenceGeneration
from hf_vrae.hub import push_folder

def meaning(**revision):
    model = AutoModel.from_pretrained("org/vrae-tiny", **revision)
    tokenizer = AutoTokenizer.from_pretrained("org/vrae-tiny", **revision)
    assert type(model) is VRAEForSequenceGeneration
    assert tokenizer(["the king sold a letter ."], return_tensors="pt")["input_ids"].shape == (1, 8)
    return model, model.encode(torch.tensor([[2, 5, 6, 3]])).mean.sum().item()

script, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as exit:
    assert not exit.code
model, first = meaning()
torch.nn.init.normal_(model.model.encoder.posterior.weight)
model.save_pretrained("run")
commit = push_folder("run", "org/vrae-tiny").split("/")[-1]
assert meaning()[1] != first
assert meaning(revision=commit)[1] == meaning()[1]
print("FIRST", first)
"""


def test_round_trip_through_a_hub(tmp_path):
    train = Path("scripts/train.py").resolve()
    flags = """--output_dir run --corpus_size 200 --max_steps 2 --save_steps 1 --num_importance_samples 2
    --embedding_size 16 --encoder_hidden_size 16 --decoder_hidden_size 16 --push_to_hub --hub_model_id org/vrae-tiny"""
    with Hub() as hub:
        there = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_anything"}
        printed = python(ROUND_TRIP, train, *flags.split(), cwd=tmp_path, **there)
        first = printed[printed.index("FIRST") + 1]
        (_, pushed), (_, changed) = hub.commits["org/vrae-tiny"][1:]  # the one before is that of the new repository
        expected = "config.json model.safetensors tokenizer.json README.md results.json curves.png modeling_vrae.py"
        assert {*expected.split(), "configuration_vrae.py", "recurrent.py", "distributions.py"} <= set(pushed)
        assert not [path for path in pushed if path.startswith(("checkpoint-", "hf_vrae/"))]
        assert b'AutoModel.from_pretrained("org/vrae-tiny")' in pushed["README.md"]
        assert [path for path in pushed if pushed[path] != changed[path]] == ["model.safetensors"]
        # The old revision, by its commit, in a process that has nothing but what lies there.
        old = hub.commits["org/vrae-tiny"][1][0]
        (stranger,) = python(STRANGER, "org/vrae-tiny", old, cwd=tmp_path, **there)
        assert stranger == first


def test_a_stranger_loads_every_kind_of_model_from_its_folder(tmp_path):
    expected, kinds = [], VARIANTS | {"conditional": CONDITIONAL["conditional"]}
    for name, options in kinds.items():
        model = make_model(**options)
        model.save_pretrained(tmp_path / name.replace(" ", "-"))
        expected.append(model.encode(torch.tensor([[2, 5, 6, 3]])).mean.sum().item())
    frames = make_frame_model(head="gaussian_mixture", **SCALING)
    frames.save_pretrained(tmp_path / "frames")
    assert set(frames.config.auto_map) == {"AutoConfig", "AutoModel"}  # no `AutoModelForSeq2SeqLM`: it has no tokens
    x = torch.linspace(-1, 1, 12).view(1, 4, 3)
    expected.append(frames(x, labels=x).loss.item())
    hierarchical, ids = make_hierarchical_model(segment_length=3, section_sizes=[2]), torch.arange(3, 11).view(1, 8)
    hierarchical.save_pretrained(tmp_path / "hierarchical")
    expected.append(hierarchical(ids, labels=ids[:, 1:]).loss.item())
    hierarchical = make_hierarchical_frame_model(segment_length=3)
    hierarchical.save_pretrained(tmp_path / "hierarchical-frames")
    VRNNForFrameGeneration(VRNNConfig(input_size=3, latent_size=2)).save_pretrained(tmp_path / "vrnn-frames")
    expected.append(hierarchical(x, labels=x).loss.item())
    folders = [name.replace(" ", "-") for name in kinds]
    printed = python(STRANGER + STRANGER_TO_FRAMES, *folders, cwd=tmp_path)
    assert [float(number) for number in printed] == pytest.approx(expected, rel=1e-4)
    # What the stranger saved again still has its code, and the Auto classes still find it.
    config = json.loads((tmp_path / "lstm_again" / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM"}
    assert (tmp_path / "lstm_again" / "recurrent.py").is_file()


def test_exported_code_names_nothing_of_ours(shared):
    for path in shared.glob("*.py"):
        assert not re.search(r"^\s*(from|import) hf_vrae", path.read_text(), re.MULTILINE), path
