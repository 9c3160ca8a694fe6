"""What a user sees of a mistake: one clear line, exit code 1, no traceback, and nothing lost."""

import json
import os

import pytest

from hf_vrae.data.grammar import generate_corpus
from tests.models import make_frame_model, make_model
from tests.scripts import script

TINY = "--max_steps 2 --num_importance_samples 2 --embedding_size 8 --encoder_hidden_size 8 --decoder_hidden_size 8"


@pytest.fixture
def desk(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    texts = generate_corpus(100, 1, 1)["train"]["text"][:]
    (tmp_path / "good.txt").write_text("\n".join(texts))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("\n \n\n")
    (tmp_path / "broken.txt").write_bytes(b"good\nbr\xfcsk\n")
    (tmp_path / "strange.txt").write_text("zzz yyy\nxxx\n")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "one.txt").write_text("word\n")
    make_model(vocab_size=len(tokenizer)).save_pretrained("model")
    tokenizer.save_pretrained("model")
    make_model(vocab_size=len(tokenizer)).save_pretrained("damaged")
    os.truncate("damaged/model.safetensors", 100)
    tokenizer.save_pretrained("damaged")
    make_model(vocab_size=len(tokenizer), latent_size=0).save_pretrained("lm")
    tokenizer.save_pretrained("lm")
    make_frame_model().save_pretrained("frames")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_bytes(b"precious")
    (tmp_path / "run" / "recipe.yaml").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "samples.png").write_text("mine")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))


def test_frames_are_written_where_it_is_said(desk, capsys, tmp_path):
    """numpy appends its .npz to any other name."""
    words = ["scripts/generate.py", "frames", "sample", "--max_length", "3", "--output", "some.txt"]
    assert script(words) == 0 and "Written to some.txt.npz" in capsys.readouterr().out
    assert (tmp_path / "some.txt.npz").is_file() and (tmp_path / "some.txt.png").is_file()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --train_file nowhere.txt", "There is no file 'nowhere.txt'"),
        ("train --train_file empty.txt", "The file 'empty.txt' is empty"),
        ("train --train_file blank.txt", "split holds no text"),
        ("train --train_file broken.txt", "is not utf-8 text: line 2"),
        ("train --train_file one.txt", "which leaves none for validation"),
        ("train --train_file table.csv", "no column of ['a', 'b'] holds strings"),
        ("train --train_file good.txt --vocab_size 3", "`vocab_size` must be at least 5"),
        ("train --train_file good.txt --output_dir run", "already holds a run"),
        ("train --train_file nowhere.txt --output_dir run --overwrite_output_dir", "There is no file 'nowhere.txt'"),
        ("train --output_dir good.txt", "`output_dir` 'good.txt' is a file"),
        ("train --output_dir notes --overwrite_output_dir", "'notes' holds 'samples.png' and no run that it is of"),
        ("train --latent_sise 8", "did you mean '--latent_size'"),
        ("train --latent_size -1", "`latent_size` must be at least 0 and finite, got -1"),
        ("train --latent_conditioning inputs", "latent_conditioning"),
        ("train --resume_from_checkpoint latest", "holds no checkpoint"),
        ("train --mixed_precision fp16", "fp16 needs a GPU"),
        ("train --config nowhere.yaml", "The recipe 'nowhere.yaml' cannot be read"),
        (
            "train --model_name_or_path damaged --embedding_size 16 --encoder_hidden_size 16 --decoder_hidden_size 16",
            "weights of 'damaged' cannot be read",
        ),
        ("plot lm kl", "`latent_size` of this model is 0"),
        ("plot frames interpolation --texts a b", "`texts` are of a model of text, and this one is of frames"),
        ("evaluate --model nowhere", "There is no folder 'nowhere'"),
        ("evaluate --model bert", "of type 'bert', not"),
        ("evaluate --model model --data nowhere.txt", "There is no file 'nowhere.txt'"),
        ("evaluate --model model --data strange.txt", "has a word that the tokenizer knows"),
        ("evaluate --model model --num_samples 0", "must be above 0"),
        ("evaluate --model model --guidance_scale 2", "is of --label_agreement and --transfer_train"),
        ("evaluate --model model --output nowhere/results.json", "`output` must be a file in a folder that is there"),
        ("evaluate --model model --text_metrics --judge frames", "`judge` reads texts, and 'frames' is a model of"),
        ("evaluate --model model --data good.txt --transfer_train table.csv", "no column of ['a', 'b'] holds strings"),
        ("evaluate --model frames --data good.txt --transfer_train table.csv", "are of texts, and this is a model of"),
        ("generate frames reconstruct --data {}/a.npz --output a.npz", "another one than `data`"),
        ("evaluate --model model --label_values a b", "`label_values` is of --transfer_train, which is not"),
        ("evaluate --model model --normal 1", "`normal` is of --anomaly, which is not asked for"),
        ("evaluate --model model --num_text_samples 3", "`num_text_samples` is of --text_metrics and of what is by"),
        ("plot lm map", "`latent_size` of this model is 0"),
        ("plot model curves --data good.txt", "`data` is of kl or map, which is not asked for"),
        ("plot model kl --label x", "`label` is of map, which is not asked for"),
        ("plot model kl --texts a b", "`texts` is of interpolation, which is not asked for"),
        ("plot model lm kl", "`kl` is of one folder, got model, lm"),
        ("generate model sample --texts a", "`texts` is of reconstruct or interpolate or attribute, which is not"),
        ("generate model reconstruct --texts a --with good.txt", "`with` is of attribute, which is not asked for"),
        ("generate model sample --num_beams 0", "`num_beams` must be at least 1, got 0"),
        ("generate model sample --strength 2", "`strength` is of attribute, which is not asked for"),
        ("generate model sample --labels a=b a=c", "`labels` must name each label once, got a=b a=c"),
        ("generate model sample --output nowhere/a.jsonl", "`output` must be a file in a folder that is there"),
        ("generate model reconstruct", "`texts` must hold one text at least"),
        ("generate model interpolate --texts a", "two ends of the path, got 1"),
        ("generate model attribute --texts a --with good.txt", "needs two of them, --with and --without"),
        ("generate model reconstruct --file broken.txt", "is not UTF-8 text"),
        ("generate model reconstruct --texts a --data good.npz", "this is a model of text: --texts or --file"),
        ("generate model interpolate --texts a b --source_labels past", "`source_labels` are of texts to reconstruct"),
        ("generate model reconstruct --texts a --indices 1", "`indices` is of a model of frames"),
        ("generate model sample --count 0", "`count` must be at least 1, got 0"),
        ("push_to_hub run org/x", "holds no saved model"),
    ],
)
def test_a_mistake_is_one_clear_line(command, message, desk, capsys, tmp_path):
    name, *words = command.format(tmp_path).split()
    small = TINY.split() if name == "train" else []
    assert script([f"scripts/{name}.py", *small, *words]) == 1
    said = capsys.readouterr().err.splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], said
    assert not any("Traceback" in line for line in said)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == b"precious"
    assert not (tmp_path / "output" / "recipe.yaml").exists()  # without which the corrected command is refused


def test_an_environment_that_cannot_be_is_a_mistake_too(desk, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "foo")
    assert script(["scripts/train.py", *TINY.split()]) == 1
    assert "error: invalid truth value foo" in capsys.readouterr().err


@pytest.mark.parametrize("number", [2, 15])
def test_an_interrupted_script_ends_with_the_signals_code(number, desk, capsys, monkeypatch):
    from hf_vrae.training import run as run_module
    from hf_vrae.training.loop import Interrupted

    def stop(*args):
        raise Interrupted(number, "Interrupted at step 7; the run is saved.")

    monkeypatch.setattr(run_module.TrainingLoop, "run", stop)
    assert script(["scripts/train.py", *TINY.split(), "--corpus_size", "50"]) == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == "Interrupted at step 7; the run is saved."


def test_text_of_one_word_and_of_ten_thousand(desk, tmp_path):
    (tmp_path / "odd.txt").write_text("\n".join(["word", "a " * 10_000, "", "zzz", "word word"] * 10))
    assert script(["scripts/train.py", *TINY.split(), "--train_file", "odd.txt", "--max_length", "50"]) == 0
    results = json.loads((tmp_path / "output" / "results.json").read_text())
    assert results["run"]["data"]["train"]["sequences"] + results["num_sequences"] == 40


def test_scripts_push_where_and_as_they_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pushed = []
    monkeypatch.setattr("hf_vrae.hub.push_folder", lambda *args: pushed.append(tuple(map(str, args))) or "there")
    words = f"{TINY} --corpus_size 50 --push_to_hub --hub_private_repo"
    assert script(["scripts/train.py", *words.split()]) == 0
    assert script(["scripts/push_to_hub.py", "output", "me/x", "--private"]) == 0
    assert pushed == [("output", "output", "True"), ("output", "me/x", "True")]
