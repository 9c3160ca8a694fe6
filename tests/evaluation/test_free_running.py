"""Free-running beside teacher-forced reconstruction: by hand, and on real models of every kind by invariants."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_vrae.data.collators import AutoencodingCollator, CausalCollator, FrameCollator
from hf_vrae.data.conditions import MISSING
from hf_vrae.data.frames import PREFIX
from hf_vrae.data.frames import make_frames as make_split
from hf_vrae.evaluation import free_running
from hf_vrae.evaluation.free_running import _free_tokens, evaluate_free_running
from tests.modeling.test_modeling_vrnn import KINDS, make_batch
from tests.modeling.test_modeling_vrnn import VARIANTS as VRNN_VARIANTS
from tests.modeling.test_modeling_vrnn import make_model as make_vrnn
from tests.models import (
    CONDITIONAL,
    FRAME_VARIANTS,
    LANGUAGE_MODELS,
    VARIANTS,
    make_frame_model,
    make_frames,
    make_model,
)


class Parrot:
    """Says what it is told to: `told` in teacher-forced decoding, `says` when it runs freely."""

    training, device = False, torch.device("cpu")

    def __init__(self, told, says, latent_size=1, **config):
        config = {"input_size": None, "eos_token_id": 3, "latent_size": latent_size, "model_type": "vrnn"} | config
        config["label_classifier"] = False
        self.told, self.says, self.config, self.modes = told, says, SimpleNamespace(**config), []

    def eval(self):
        self.modes.append("eval")

    def train(self, mode):
        self.modes.append(mode)

    def encode(self, **batch):
        return SimpleNamespace(mode=batch.get("input_ids", batch["attention_mask"]))

    def teacher_forced(self, latents, **batch):
        return self.told(latents)

    def generate(self, latents, lengths=None, **options):
        return self.says(latents) if lengths is None else SimpleNamespace(sequences=self.says(latents))


def texts(*rows):
    return Dataset.from_dict({"input_ids": list(rows), "length": [len(row) for row in rows]})


def series(rows):
    frames, lengths = np.concatenate([np.array(row, dtype=np.float32) for row in rows]), [len(row) for row in rows]
    return make_split(frames, np.array(lengths))


def run_parrot(parrot, data, collator):
    return evaluate_free_running(parrot, data, collator, batch_size=2)


def test_a_model_that_copies_is_right_everywhere():
    copies = Parrot(lambda z: z[:, 1:], lambda z: z)
    results = run_parrot(copies, texts([2, 5, 6, 3], [2, 7, 3], [2, 3]), AutoencodingCollator(0))
    assert results == {"teacher_forced_accuracy": 1.0, "free_running_accuracy": 1.0}
    assert copies.modes == ["eval", False]


@pytest.mark.parametrize(
    ("text", "says", "right"),
    [
        ([5, 6, 7, 3], [5, 6, 3], 2),  # too short: the third is wrong, and so is the one that is missing
        ([5, 6, 3], [5, 6, 7, 8], 2),  # too long: it does not end where it should
        ([5, 6, 3], [5, 3, 3, 3], 1),  # what pads a row that has ended is no end
        ([5, 6, 7, 3], [6, 7, 3, 0], 0),  # one token left out
        ([5, 6, 7, 3], [9, 6, 9, 3], 2),
    ],
)
def test_texts_are_compared_position_by_position(text, says, right):
    parrot = Parrot(lambda z: torch.full_like(z[:, 1:], 6), lambda z: torch.tensor([[2, *says]]))
    results = run_parrot(parrot, texts([2, *text]), AutoencodingCollator(0))
    assert results["free_running_accuracy"] == right / len(text)
    assert results["teacher_forced_accuracy"] == text.count(6) / len(text)


def test_sums_are_over_all_positions_and_of_no_padding():
    # The same word whatever z is: right at two of the nine positions.
    ignores_z = Parrot(
        lambda z: torch.full_like(z[:, 1:], 3), lambda z: torch.tensor([[2, 9, 9, 0]]).expand(len(z), -1)
    )
    data = texts([2, 9, 8, 7, 6, 3], [2, 8, 3], [2, 9, 3])
    results = run_parrot(ignores_z, data, CausalCollator(0))
    assert results == {"teacher_forced_accuracy": 3 / 9, "free_running_accuracy": 2 / 9}


def test_without_a_latent_there_is_no_free_run():
    model = Parrot(lambda z: z[:, 1:], None, latent_size=0)
    assert run_parrot(model, texts([2, 5, 3]), AutoencodingCollator(0)) == {"teacher_forced_accuracy": 1.0}


def frames(head, truth, told, says):
    parrot = Parrot(lambda z: torch.tensor(told), lambda z: torch.tensor(says), input_size=2, head=head)
    return run_parrot(parrot, series(truth), FrameCollator())


TRUTH = [[[1.0, 0.0], [1.0, 1.0]], [[0.0, float("nan")]]]  # the second row has one frame, with a value missing


def test_notes_are_judged_by_those_that_are_active():
    told = [[[1.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]]]  # what is missing or padded counts for nothing
    says = [[[1.0, 1.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]  # two hits, one note left out, two too many
    results = frames("nade", TRUTH, told, says)
    assert results["teacher_forced_frame_accuracy"] == results["teacher_forced_f1"] == 1.0
    assert results["free_running_frame_accuracy"] == 2 / 5 and results["free_running_f1"] == 4 / 7
    silent = frames("bernoulli", [[[0.0, 0.0]]], [[[0.0, 0.0]]], [[[0.0, 1.0]]])
    assert silent["teacher_forced_f1"] == 1.0 and silent["free_running_frame_accuracy"] == 0.0


def test_values_and_levels():
    said = [[[2.0, 0.0], [1.0, 1.0]], [[3.0, 9.0], [9.0, 9.0]]]
    right = [[[1.0, 0.0], [1.0, 1.0]], [[0.0, 9.0], [9.0, 9.0]]]
    results = frames("gaussian", TRUTH, right, said)
    assert results["teacher_forced_rmse"] == 0 and results["free_running_rmse"] == pytest.approx((10 / 5) ** 0.5)
    assert frames("categorical", TRUTH, said, said)["free_running_accuracy"] == 3 / 5


# On real models: what they say freely is, told as the truth, what they say to it.


@pytest.mark.parametrize("options", {**VARIANTS, **LANGUAGE_MODELS}.values(), ids={**VARIANTS, **LANGUAGE_MODELS})
def test_the_vraes_free_run_is_its_own_truth(options, batch, monkeypatch):
    model = make_model(**options).double()
    z = model.encode(**batch).mode
    ids = model.generate(latents=z, max_length=9, do_sample=False, eos_token_id=None)  # which may have <pad> in it
    again = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.teacher_forced(z, **again)[:, 1:], ids[:, 1:])
    labels = model.labels_from_input_ids(**batch)[:, 1:]
    logits = model(latents=z, labels=labels).logits
    assert torch.equal(model.teacher_forced(z, labels=labels, **batch), logits.argmax(-1))
    free = _free_tokens(model, z, batch)
    model.generation_config.update(max_length=5, repetition_penalty=3.0)  # a trained one's has a length
    monkeypatch.setattr("transformers.generation.utils.logger.warning", pytest.fail)
    assert torch.equal(_free_tokens(model, z, batch), free)
    model.generation_config.update(max_new_tokens=2)
    assert torch.equal(_free_tokens(model, z, batch), free)  # whatever it was saved with


@pytest.mark.parametrize("options", FRAME_VARIANTS.values(), ids=FRAME_VARIANTS)
def test_the_free_run_over_frames_is_its_own_truth(options):
    model = make_frame_model(**options).double()
    batch = make_frames(model)
    z, lengths = model.encode(**batch).mode, batch["attention_mask"].sum(1)
    run = model.generate(latents=z, lengths=lengths).sequences
    said = model.teacher_forced(z, input_features=run, attention_mask=batch["attention_mask"])
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(said[real], run[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", VRNN_VARIANTS.values(), ids=VRNN_VARIANTS)
def test_the_vrnns_free_run_is_its_own_truth(kind, options):
    model, batch = make_vrnn(kind, **options).double(), make_batch(kind, torch.float64)
    z = model.encode(**batch).mode  # [B, 6, D]
    if kind == "tokens":
        run = model.generate(latents=z, max_length=7, do_sample=False, eos_token_id=None)
        assert torch.equal(model.teacher_forced(z, input_ids=run, attention_mask=torch.ones_like(run)), run[:, 1:])
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}, latents=z).logits
        real = batch["attention_mask"][:, 1:].bool()
        assert torch.equal(model.teacher_forced(z, **batch)[real], logits.argmax(-1)[:, :-1][real])
    else:
        run = model.generate(latents=z, lengths=torch.tensor([6, 6, 6])).sequences
        torch.testing.assert_close(model.teacher_forced(z, input_features=run), run)


@pytest.mark.parametrize("family", ["vrae", "vrnn"])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_size_changes_nothing(family, kind, tokenized):
    if kind == "tokens":
        data, options = tokenized["test"].select(range(20)), {"vocab_size": 400}
        make, collator = (make_model, AutoencodingCollator(0)) if family == "vrae" else (make_vrnn, CausalCollator(0))
    else:
        data = series([np.random.default_rng(i).normal(size=(3 + i % 5, 4)) for i in range(11)])
        make, collator, options = (make_frame_model if family == "vrae" else make_vrnn), FrameCollator(), {}
        options = {"input_size": 4} | ({"kind": "frames"} if family == "vrnn" else {})
    model = make(**options).double()
    wanted = evaluate_free_running(model, data, collator, batch_size=64)
    assert set(wanted) == {f"{way}_{'accuracy' if kind == 'tokens' else 'rmse'}" for way in WAYS}
    for batch_size in (1, 3):
        assert evaluate_free_running(model, data, collator, batch_size) == pytest.approx(wanted, rel=1e-5)


WAYS = ("teacher_forced", "free_running")


def test_the_free_run_is_under_all_that_a_sequence_stands_under(tokenized, tokenizer, monkeypatch):
    model, seen = make_model(vocab_size=len(tokenizer), **CONDITIONAL["conditional"]), []
    data = tokenized["test"].select(range(3))
    given = {"class_ids": [[0, 1], [1, 2], [1, MISSING]], "attributes": [[1.0, 2.0]] * 3, "condition": [[0.5] * 3] * 3}
    for name, rows in given.items():
        data = data.add_column(PREFIX + name, rows)
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **options: seen.append(options) or generate(**options))
    evaluate_free_running(model, data, AutoencodingCollator(0), batch_size=1)
    found = {name: sorted(options[name][0].tolist() for options in seen) for name in given}
    assert found == {name: sorted(rows) for name, rows in given.items()}


def test_each_process_takes_its_share(tokenized, tokenizer, monkeypatch):
    model, data, others = make_model(vocab_size=len(tokenizer)), tokenized["test"].select(range(9)), []
    wanted = evaluate_free_running(model, data, AutoencodingCollator(0), batch_size=2)
    monkeypatch.setattr(free_running, "gather_object", lambda own: others.extend(own) or others)
    monkeypatch.setattr(free_running, "broadcast_object_list", lambda results: results)
    for rank in (1, 0):
        process = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0)
        results = evaluate_free_running(model, data, AutoencodingCollator(0), 2, process)
    assert len(others) == 5 and results == pytest.approx(wanted)
