"""transformers' own trainers train the model, evaluate its bound and generate with it."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from hf_vrae import VRNNConfig, VRNNForSequenceGeneration
from hf_vrae.data.collators import AutoencodingCollator
from hf_vrae.evaluation.likelihood import evaluate
from hf_vrae.modeling import distributions
from hf_vrae.training.callbacks import KLAnnealingCallback
from tests.models import make_hierarchical_model, make_model


@pytest.fixture
def parts(tokenizer, tokenized, tmp_path):
    model = make_model(vocab_size=len(tokenizer), initializer_range=0.1, dropout=0.0, word_dropout=0.0)
    data = {split: data.select_columns(["input_ids"]) for split, data in tokenized.items()}
    arguments = {"output_dir": str(tmp_path), "max_steps": 6, "per_device_train_batch_size": 8, "report_to": "none",
                 "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "save_steps": 3}  # fmt: skip
    return model, data, arguments, AutoencodingCollator(tokenizer.pad_token_id)


def test_trainer_anneals_evaluates_and_resumes(parts):
    model, data, arguments, collator = parts
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append((module.training, module.kl_weight)))
    trainer = Trainer(
        model,
        TrainingArguments(**arguments, eval_strategy="steps", eval_steps=3),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=collator,
        callbacks=[KLAnnealingCallback("linear", start=0.1, warmup=4)],
    )
    trainer.train()
    training = [weight for in_training, weight in seen if in_training]
    assert training == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0, 1.0])
    assert {weight for in_training, weight in seen if not in_training} == {1.0}
    metrics = trainer.evaluate()
    bound = evaluate(model, tokenized_like(data["test"]), collator, num_samples=20)["neg_elbo"]
    assert metrics["eval_loss"] == pytest.approx(bound, rel=0.03)  # one sample of z against twenty
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    trainer.train(resume_from_checkpoint=arguments["output_dir"] + "/checkpoint-3")
    assert [row["loss"] for row in trainer.state.log_history if "loss" in row] == pytest.approx(losses, rel=1e-4)


def tokenized_like(data):
    return data.add_column("length", [len(ids) for ids in data["input_ids"]])


@pytest.mark.parametrize("steps", [1, 2])
def test_accumulation_in_trainer_weighs_kl_and_reconstruction_alike(parts, steps, monkeypatch):
    """`accepts_loss_kwargs = False`: a loss of nats per sequence, whatever the number of tokens in the batch."""
    monkeypatch.setattr(distributions, "_standard_normal", lambda shape, like, generator: like.new_zeros(shape))
    model, data, arguments, collator = parts
    rows = data["train"].select(range(8))
    expected = model.train()(**collator(list(rows))).loss.item()
    arguments |= {"max_steps": 1, "per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps}
    trainer = Trainer(model, TrainingArguments(**arguments), train_dataset=rows, data_collator=collator)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_seq2seq_trainer_predicts_with_generate(parts, tokenizer):
    model, data, arguments, _ = parts
    model.generation_config.max_length = 9
    labelled = {split: part.map(lambda row: {"labels": row["input_ids"][1:]}) for split, part in data.items()}
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(**arguments, predict_with_generate=True, generation_num_beams=2),
        train_dataset=labelled["train"],
        eval_dataset=labelled["test"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=lambda prediction: {"width": prediction.predictions.shape[1]},
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert 2 <= metrics["eval_width"] <= 9 and metrics["eval_loss"] > 0


def predicted(trainer_class, arguments_class, model, **options):
    """What a trainer's `predict` gives for rows of different lengths, two a batch."""
    ids = [[2, *range(4, 4 + n), 3] for n in (9, 8, 2, 1)]
    rows = [{"input_ids": row, "class_ids": [i % 3]} if model.config.condition_width else {"input_ids": row}
            for i, row in enumerate(ids)]  # fmt: skip
    arguments = arguments_class(per_device_eval_batch_size=2, report_to="none", use_cpu=True, **options)
    return trainer_class(model, arguments, data_collator=AutoencodingCollator(0)).predict(rows)


def test_trainer_gathers_what_models_of_several_scales_give(tmp_path):
    model = make_hierarchical_model(segment_length=3)
    results = predicted(Trainer, TrainingArguments, model, output_dir=str(tmp_path))
    assert results.predictions[0].shape == (4, 10, 40) and results.metrics["test_loss"] > 0


def test_seq2seq_trainer_takes_targets_for_no_labels_of_a_condition(tmp_path):
    model = make_model(condition_labels={"kind": ["a", "b", "c"]})
    model.generation_config.max_length = 6
    options = {"predict_with_generate": True, "output_dir": str(tmp_path)}
    assert predicted(Seq2SeqTrainer, Seq2SeqTrainingArguments, model, **options).predictions.shape == (4, 6)


def test_forward_gives_trainer_what_it_asks_for(parts):
    model, _, _, collator = parts
    assert model.accepts_loss_kwargs is False
    outputs = model(**collator([[2, 5, 3]]), return_dict=False)
    assert isinstance(outputs, tuple) and outputs[0].ndim == 0 and torch.isfinite(outputs[0])


def test_the_callback_raises_a_capacity():
    callback, model = KLAnnealingCallback("capacity", weight=3.0, warmup=10, capacity=8.0), make_model()
    seen = []
    for step in (0, 5, 10, 15):
        callback.on_step_begin(None, SimpleNamespace(max_steps=20, global_step=step), None, model=model)
        seen.append((model.kl_weight, model.kl_capacity))
    assert seen == [(3.0, 0.0), (3.0, 4.0), (3.0, 8.0), (3.0, 8.0)]


@pytest.mark.parametrize(
    "options, smoothing, model, message",
    [
        ({"kind": "capacity", "capacity": 8.0}, 0.0, {"num_train_samples": 3}, "has no KL term that `kl_capacity`"),
        ({"kind": "capacity", "capacity": 8.0}, 0.0, {"free_bits": 0.5}, "leaves some KL free while `kl_capacity` 8"),
        ({"kind": "capacity", "capacity": 0.1}, 0.0, {"posterior": "delta"}, "would hold it at less"),
        ({"kind": "capacity"}, 0.0, {}, "`kl_capacity` above 0 belong together"),
        ({"capacity": 8.0}, 0.0, {}, "`kl_capacity` above 0 belong together"),
        ({"cycles": 3}, 0.0, {}, "`kl_cycles` 3 is of `kl_schedule` cyclical"),
        ({"start": 2.0}, 0.0, {}, "By the names that scripts/train.py has for this: `kl_start` 2 is where"),
        ({"kind": "lineer"}, 0.0, {}, "`kind` must be one of constant, linear"),
        ({}, 0.1, {}, "`label_smoothing_factor` 0.1 has Trainer make a loss of its own"),
        ({}, 0.0, {"latent_size": 0}, "`latent_size` 0 is a model without z"),
    ],
)
def test_the_callback_refuses_a_loss_that_would_not_read_it(options, smoothing, model, message):
    arguments, state = SimpleNamespace(label_smoothing_factor=smoothing), SimpleNamespace(max_steps=20)
    with pytest.raises(ValueError, match=message):
        KLAnnealingCallback(**options).on_train_begin(arguments, state, None, model=make_model(**model))


def test_the_callback_is_of_our_models_and_finds_them_within_pefts():
    arguments, state = SimpleNamespace(label_smoothing_factor=0.0), SimpleNamespace(max_steps=20, global_step=0)
    with pytest.raises(ValueError, match="sets the KL weight of a model of hf_vrae; got Linear"):
        KLAnnealingCallback().on_train_begin(arguments, state, None, model=torch.nn.Linear(2, 2))
    model = make_model()
    around = SimpleNamespace(get_base_model=lambda: model, config=model.config)
    callback = KLAnnealingCallback("linear")
    callback.on_train_begin(arguments, state, None, model=around)
    callback.on_step_begin(arguments, state, None, model=around)
    assert model.kl_weight == 0
    callback.on_step_end(arguments, state, None, model=around)
    assert model.kl_weight == 1


def test_the_callback_refuses_a_particle_filter():
    arguments, state = SimpleNamespace(label_smoothing_factor=0.0), SimpleNamespace(max_steps=20)
    model = VRNNForSequenceGeneration(VRNNConfig(vocab_size=40, resampling=True, num_train_samples=3))
    with pytest.raises(ValueError, match="the particle filter's bound"):
        KLAnnealingCallback().on_train_begin(arguments, state, None, model=model)
