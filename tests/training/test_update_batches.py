"""Which sequences each update takes."""

import numpy as np
from accelerate import Accelerator
from datasets import Dataset

from hf_vrae.training.arguments import parse_recipe
from hf_vrae.training.batches import UpdateBatches


def test_each_epoch_has_all_sequences_in_another_order():
    def updates(flags="", labels=80, count=40):
        ids = [[0]] * labels + [[-100]] * (80 - labels)
        split = Dataset.from_dict({"input_ids": [[2, 5, 3]] * 80, "batch.class_ids": ids})
        args = parse_recipe(f"--per_device_train_batch_size 4 {flags}".split()).training
        batches = UpdateBatches(split, np.arange(80), None, args, Accelerator())
        return [batches.of_step(step).tolist() for step in range(count)]

    both = updates()
    first, second = both[:20], both[20:]
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(80)) and first != second
    assert both == updates() != updates("--seed 1")
    assert all(np.ptp(batch) == 3 for batch in both)  # neighbours in length
    assert max(map(np.ptp, updates("--train_sampling_strategy random"))) > 40
    labelled = np.bincount(np.concatenate(updates("--labeled_share 0.5", labels=8, count=36)))
    assert labelled.tolist() == [9] * 8 + [1] * 72


def test_the_encoder_is_trained_on_batches_drawn_at_random():
    args = parse_recipe("--per_device_train_batch_size 4".split()).training
    split = Dataset.from_dict({"input_ids": [[2, 5, 3]] * 80})
    batches = UpdateBatches(split, np.full(80, 3), None, args, Accelerator())
    drawn = [batches.of_encoder(number).tolist() for number in range(40)]
    assert 10 < len(set(map(tuple, drawn))) <= 20  # of an epoch's 20, with replacement
    assert drawn == [batches.of_encoder(number).tolist() for number in range(40)]
