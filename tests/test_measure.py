"""A model beside a baseline, on files. (What else `measure` does is tested where its metrics are.)"""

import json
import statistics

import numpy as np
import pytest
from tokenizers import normalizers

from hf_vrae import VRAEForSequenceGeneration
from hf_vrae.data.collators import AutoencodingCollator
from hf_vrae.data.datasets import tokenize
from hf_vrae.data.grammar import generate_corpus
from hf_vrae.data.tokenization import train_tokenizer
from hf_vrae.evaluation.likelihood import evaluate
from hf_vrae.hub import load
from hf_vrae.measure import encode_file, evaluate_file, represent_file, walk_frames
from hf_vrae.measure_labels import measure_labels
from tests.modeling.test_modeling_vrnn import make_model as make_vrnn
from tests.models import SCALING, make_frame_model, make_model
from tests.scripts import fresh_accelerator, script


def test_the_difference_from_a_baseline_is_of_the_same_sequences(tokenizer, tmp_path):
    model, baseline = (make_model(vocab_size=len(tokenizer), latent_size=size) for size in (6, 0))
    rows = generate_corpus(1, 1, 30)["test"]
    (tmp_path / "texts.txt").write_text("\n".join(rows["text"]))
    for name, saved in (("model", model), ("baseline", baseline)):
        saved.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    command = f"--data {tmp_path}/texts.txt --num_samples 3 --seed 5 --batch_size 7 --output {tmp_path}/results.json"
    folders = f"--model {tmp_path}/model --baseline {tmp_path}/baseline"
    assert script(["scripts/evaluate.py", *folders.split(), *command.split()]) == 0
    measured = json.loads((tmp_path / "results.json").read_text())
    data = tokenize(rows, tokenizer, 128)
    options = {"num_samples": 3, "seed": 5, "per_sequence": True}
    own, other = (evaluate(m, data, AutoencodingCollator(0), **options)["per_sequence"] for m in (model, baseline))
    differences = [float(x - y) for x, y in zip(own["nll_iw"], other["nll_iw"], strict=True)]
    assert measured["nll_iw"] == pytest.approx(own["nll_iw"].mean(), rel=1e-5)
    assert measured["baseline"]["model"] == f"{tmp_path}/baseline"
    assert measured["baseline"]["difference"] == pytest.approx(statistics.mean(differences), rel=1e-4)
    error = statistics.stdev(differences) / 30**0.5
    assert measured["baseline"]["standard_error"] == pytest.approx(error, rel=1e-4)


def test_a_model_of_other_data_is_not_measured_on_what_is_built_in(tokenizer, tmp_path, caplog):
    model = make_model(vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "recipe.yaml").write_text("data:\n  train_file: my.tsv\n")
    for read in (
        lambda: evaluate_file(*load(str(tmp_path)), num_samples=2),
        lambda: encode_file(*load(str(tmp_path))),
        lambda: represent_file(*load(str(tmp_path))),
        lambda: measure_labels(*load(str(tmp_path)), None, None, "", None, None, 4, 0, {}),
    ):
        with pytest.raises(ValueError, match="was trained on 'my.tsv', and without it hf_vrae's built-in data"):
            read()
    (tmp_path / "recipe.yaml").write_text("data:\n  train_file: null\n")
    with caplog.at_level("INFO", "hf_vrae"):
        assert evaluate_file(*load(str(tmp_path)), num_samples=1, max_samples=3)["num_sequences"] == 3
    assert "built-in test split: 3 sequences" in caplog.text


def test_a_baseline_is_refined_as_it_was_trained(tokenizer, monkeypatch):
    """What is said of the model's posteriors is not said of the baseline's."""
    asked = []

    def remember(self, *arguments, **options):
        asked.append(arguments[2])
        return evaluation_terms(self, *arguments, **options)

    evaluation_terms = VRAEForSequenceGeneration.evaluation_terms
    monkeypatch.setattr(VRAEForSequenceGeneration, "evaluation_terms", remember)
    model, baseline = (make_model(vocab_size=len(tokenizer), svi_steps=steps, kernels="plain") for steps in (0, 2))
    options = {"baseline": (baseline, tokenizer), "max_samples": 3, "num_samples": 2}
    assert evaluate_file(model, tokenizer, **options, svi_steps=1)["svi_steps"] == 1 and asked == [1, 2]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["the king sold a letter ."] * 2, {}, None),
        (["the king sold a letter .", "the <unk> ."], {}, None),
        (["the king sold a letter .", "the xyzzy ."], {}, "the model reads 'the <unk> .' for 'the xyzzy .'"),
        (["the king sold a letter ."] * 2, {"max_length": 10}, "the baseline reads 'the king' for"),
        (["the king sold a letter ."], {}, "two at least; of this file the model reads 1"),
    ],
)
def test_other_tokens_are_compared_on_texts_that_both_read_whole(tokenizer, tmp_path, texts, options, message):
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    characters = train_tokenizer(generate_corpus(200, 1, 1)["train"]["text"][:], "char", 100)
    models = make_model(vocab_size=len(tokenizer)), make_model(vocab_size=len(characters))
    options = {"baseline": (models[1], characters), "num_samples": 2} | options
    if message is None:
        assert evaluate_file(models[0], tokenizer, str(tmp_path / "texts.txt"), **options)["baseline"]
    else:
        with pytest.raises(ValueError, match=message):
            evaluate_file(models[0], tokenizer, str(tmp_path / "texts.txt"), **options)


def test_a_baseline_that_reads_less_of_a_text_is_refused(tmp_path):
    """The same tokens, of small letters alone."""
    texts = ["the king sold a letter .", "The king sold a letter ."]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    whole, smaller = (train_tokenizer(texts, "word", 100) for _ in range(2))
    smaller.backend_tokenizer.normalizer = normalizers.Lowercase()
    model = make_model(vocab_size=len(whole))
    for own, other, name in ((whole, smaller, "baseline"), (smaller, whole, "model")):
        with pytest.raises(ValueError, match=f"the {name} reads 'the king sold a letter .' for 'The king"):
            evaluate_file(model, own, str(tmp_path / "texts.txt"), num_samples=2, baseline=(model, other))


def test_frames_are_compared_in_their_own_units(tmp_path):
    """The same model, told the data's scale or reading them as they are, is another one; each is itself."""
    rng = np.random.default_rng(0)
    lengths = np.array([5, 2, 7, 4])
    np.savez(tmp_path / "frames.npz", x=rng.standard_normal((lengths.sum(), 3)), lengths=lengths)
    scaled, raw = make_frame_model(**SCALING), make_frame_model()
    for models in ((scaled, raw), (raw, scaled), (scaled, scaled)):
        path = str(tmp_path / "frames.npz")
        own, other = (evaluate_file(model, None, path, num_samples=2) for model in models)
        found = evaluate_file(models[0], None, path, num_samples=2, baseline=(models[1], None))["baseline"]
        nll = [results.get("nll_iw_raw", results["nll_iw"]) for results in (own, other)]
        assert found["difference"] == pytest.approx(nll[0] - nll[1], rel=1e-4)
        assert (found["standard_error"] > 0) == (models[0] is not models[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "bernoulli"}, "the head 'bernoulli', and the model 'gaussian': a density"),
        ({"predict_length": True}, "`predict_length` True, and the model False"),
        ({"input_size": 2}, "`input_size` 2, and the model 3"),
    ],
)
def test_a_baseline_of_other_things_is_refused(options, message, tmp_path):
    np.savez(tmp_path / "frames.npz", x=np.zeros((4, 5, 3)))
    baseline = make_frame_model(**options)
    with pytest.raises(ValueError, match=message):
        evaluate_file(make_frame_model(), None, str(tmp_path / "frames.npz"), num_samples=2, baseline=(baseline, None))


def test_a_grid_of_other_cells_is_refused(tmp_path):
    np.savez(tmp_path / "frames.npz", x=np.zeros((4, 5, 3)))
    grid = {"head": "logistic_mixture", **SCALING}
    model = make_frame_model(**grid)
    for options in ({"num_levels": 9}, {"input_scale": [1.0, 1.0, 1.0]}, {"head": "categorical", "num_levels": 5}):
        baseline = make_frame_model(**({"head": "categorical"} if "head" in options else grid) | options)
        with pytest.raises(ValueError, match=f"`baseline` has `{next(iter(options))}`"):
            evaluate_file(model, None, str(tmp_path / "frames.npz"), num_samples=2, baseline=(baseline, None))


def test_a_baseline_that_reads_other_sequences_is_refused(tmp_path):
    (tmp_path / "steps.csv").write_text("p,q,a\n" + "".join(f"{i // 4},{i % 2},{i}\n" for i in range(8)))
    first, second = (make_frame_model(input_size=1, feature_columns=["a"], sequence_column=name) for name in "pq")
    assert evaluate_file(first, None, str(tmp_path / "steps.csv"), num_samples=2, baseline=(first, None))["baseline"]
    with pytest.raises(ValueError, match="the model reads 2, and the baseline 2 or others"):
        evaluate_file(first, None, str(tmp_path / "steps.csv"), num_samples=2, baseline=(second, None))


def test_an_evaluation_is_in_float32_and_says_so(tokenizer, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    fresh_accelerator()
    model = make_model(vocab_size=len(tokenizer))
    assert evaluate_file(model, tokenizer, max_samples=3, num_samples=2)["run"]["mixed_precision"] == "no"
    fresh_accelerator()


@pytest.mark.parametrize(
    ("name", "suffix", "said"),
    [
        ("encoding", "npz", "is of files of characters, and these are none"),
        ("sequence_column", "npz", "is of a .csv with a row per step, and these are none"),
        ("feature_columns", "parquet", "is of a .csv with a row per step, and these are none"),
        ("features_column", "csv", "is of data with a row per sequence, and these are none"),
    ],
)
def test_a_column_that_such_a_file_has_not_is_refused(name, suffix, said):
    with pytest.raises(ValueError, match=f"`{name}` 'x' {said}"):
        evaluate_file(make_frame_model(), None, f"a.{suffix}", **{name: "x"})


@pytest.mark.parametrize("family", ["vrae", "vrnn"])
def test_a_model_without_segments_reads_files_that_have_them(family, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "bars.npz", x=rng.standard_normal((4, 5, 4)), bar=np.tile(np.arange(5) // 2, (4, 1)))
    model = make_vrnn("frames") if family == "vrnn" else make_frame_model(input_size=4)
    options = {"path": str(tmp_path / "bars.npz"), "features_column": "x", "segment_column": "bar"}
    assert evaluate_file(model, None, num_samples=2, free_running=True, **options)["num_sequences"] == 4
    assert walk_frames(model, "reconstruct", **options)["reconstruction"].shape == (3, 5, 4)
    with pytest.raises(ValueError, match="their segments with `segment_column`"):
        evaluate_file(model, None, options["path"], features_column="x")


def test_a_model_of_text_is_no_baseline_of_frames(tokenizer, tmp_path):
    np.savez(tmp_path / "frames.npz", x=np.zeros((4, 5, 3)))
    baseline = make_model(vocab_size=len(tokenizer)), tokenizer
    with pytest.raises(ValueError, match="`input_size` None, and the model 3"):
        evaluate_file(make_frame_model(), None, str(tmp_path / "frames.npz"), num_samples=2, baseline=baseline)
