"""A model beside a baseline, on files. (What else `measure` does is tested where its metrics are.)"""

import json
import statistics

import numpy as np
import pytest

from hf_vrae import VRAEForSequenceGeneration
from hf_vrae.data.collators import AutoencodingCollator
from hf_vrae.data.datasets import tokenize
from hf_vrae.data.grammar import generate_corpus
from hf_vrae.data.tokenization import train_tokenizer
from hf_vrae.evaluation.likelihood import evaluate
from hf_vrae.measure import evaluate_file
from tests.models import SCALING, make_frame_model, make_model
from tests.scripts import script


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
        (["the king sold a letter .", "the xyzzy ."], {}, "<unk> for a word"),
        (["the king sold a letter ."] * 2, {"max_length": 4}, "a text that is cut"),
        (["the king sold a letter ."], {}, "two at least; the model has 1, and the baseline 1"),
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


def test_a_model_of_text_is_no_baseline_of_frames(tokenizer, tmp_path):
    np.savez(tmp_path / "frames.npz", x=np.zeros((4, 5, 3)))
    baseline = make_model(vocab_size=len(tokenizer)), tokenizer
    with pytest.raises(ValueError, match="`input_size` None, and the model 3"):
        evaluate_file(make_frame_model(), None, str(tmp_path / "frames.npz"), num_samples=2, baseline=baseline)
