"""Which sequences each update takes: pure functions of the step, hence the same after every resumption."""

import functools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader

from ..data.bucketing import make_batches, split_batch
from ..data.conditions import rows_of_epoch
from ..data.rows import Rows
from .arguments import TrainArguments


class UpdateBatches:
    """The training data, shared out among updates, processes and accumulation steps.

    Args:
        split: the sequences.
        lengths: of each, [N].
        collator: makes a batch of sequences.
        args: see [`TrainArguments`].
        accelerator: its number of accumulation steps may be the launcher's.
    """

    def __init__(self, split: Dataset, lengths: np.ndarray, collator, args: TrainArguments, accelerator: Accelerator):
        self.rows, self.collator = Rows(split), collator
        self.of_an_epoch = rows_of_epoch(split, args.labeled_share)  # indices
        self.lengths = lengths[self.of_an_epoch]
        self.args, self.accelerator = args, accelerator
        self.accumulation_steps = accelerator.gradient_accumulation_steps
        self.parts = accelerator.num_processes * self.accumulation_steps
        self.batch_size = args.per_device_train_batch_size * self.parts
        self.of_epoch = functools.lru_cache(maxsize=2)(self.of_epoch)  # of the class it would keep every run's model
        self.steps_per_epoch = len(self.of_epoch(0))
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"The training split has {len(split)} sequences, fewer than the {self.parts} parts of an update "
                "(processes x gradient_accumulation_steps)."
            )

    def of_epoch(self, epoch: int) -> list[np.ndarray]:
        """Indices of each update of an epoch; a remainder with less than a sequence a part is left out."""
        by_length = self.args.train_sampling_strategy == "group_by_length"
        batches = make_batches(self.lengths, self.batch_size, self.args.seed, epoch, by_length)
        return [self.of_an_epoch[batch] for batch in batches if len(batch) >= self.parts]

    def of_step(self, step: int) -> np.ndarray:
        """Indices of update number `step`, over all processes."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self.of_epoch(epoch)[position]

    def of_encoder(self, number: int) -> np.ndarray:
        """Indices of the encoder's own update of this number in aggressive training: any batch of the first epoch."""
        batches = self.of_epoch(0)
        return batches[np.random.default_rng([self.args.seed, number]).integers(len(batches))]

    def micro_batches(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, torch.Tensor]]:
        """This process's micro-batches of each batch, on its device."""

        def indices():
            for batch in batches:
                for part in split_batch(
                    batch,
                    self.accelerator.process_index,
                    self.accelerator.num_processes,
                    self.accumulation_steps,
                ):
                    yield part.tolist()

        loader = DataLoader(
            self.rows,
            batch_sampler=indices(),
            collate_fn=self.collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),  # else making the iterator would draw from the stream of the noise
        )
        for batch in loader:
            yield {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}
