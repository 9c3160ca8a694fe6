"""Batches: which sequences, and how they are padded."""

import numpy as np
import pytest
import torch

from hf_vrae.data.bucketing import make_batches, split_batch
from hf_vrae.data.collators import AutoencodingCollator

LENGTHS = np.random.default_rng(0).integers(3, 60, 5003)


@pytest.mark.parametrize("group_by_length", [True, False])
def test_an_epoch_holds_every_sequence_once(group_by_length):
    batches = make_batches(LENGTHS, 16, seed=1, epoch=2, group_by_length=group_by_length)
    assert sorted(np.concatenate(batches)) == list(range(5003))
    assert sorted({len(batch) for batch in batches}) == [11, 16] and len(batches) == 313


def test_batches_depend_on_seed_and_epoch_only():
    make = lambda seed, epoch: np.concatenate(make_batches(LENGTHS, 16, seed, epoch)).tolist()  # noqa: E731
    assert make(1, 0) == make(1, 0)
    assert make(1, 0) != make(1, 1) and make(1, 0) != make(2, 0)


def test_grouping_by_length_leaves_little_padding():
    def real(batches):
        return sum(LENGTHS[b].sum() for b in batches) / sum(len(b) * LENGTHS[b].max() for b in batches)

    assert real(make_batches(LENGTHS, 16, 0, 0)) > 0.95 > 0.6 > real(make_batches(LENGTHS, 16, 0, 0, False))


def test_what_is_left_over_is_of_any_length():
    """It weighs more in its smaller batch, or is left out where that has less than a sequence a part."""
    lengths = np.arange(1000)
    left = [next(b for b in make_batches(lengths, 64, 0, epoch) if len(b) == 40) for epoch in range(9)]
    assert len(set(np.concatenate(left))) > 200 and abs(np.concatenate(left).mean() - 500) < 60


def test_parts_of_a_batch_are_the_batch():
    batch = np.arange(100, 113)
    for processes, steps in ((1, 1), (2, 1), (1, 4), (2, 3)):
        parts = [split_batch(batch, rank, processes, steps) for rank in range(processes)]
        assert all(len(own) == steps for own in parts)
        assert sorted(np.concatenate([part for own in parts for part in own])) == batch.tolist()
        sizes = [len(part) for own in parts for part in own]
        assert max(sizes) - min(sizes) <= 1


def test_collator():
    batch = AutoencodingCollator(0)([[2, 5, 6, 3], {"input_ids": np.array([2, 7, 3])}])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3], [2, 7, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[5, 6, 3], [7, 3, -100]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_collator_pads_to_a_multiple():
    batch = AutoencodingCollator(9, pad_to_multiple_of=8)([[2, 5, 3]])
    assert batch["input_ids"].tolist() == [[2, 5, 3, 9, 9, 9, 9, 9]]
    assert batch["labels"].tolist() == [[5, 3, *[-100] * 5]]
