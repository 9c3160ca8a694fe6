"""Batches of an autoencoder's sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class AutoencodingCollator:
    """Pads sequences `<s> w1 .. wn </s>` on the right and makes them their own targets.

    Args:
        pad_token_id: written into `input_ids` behind a sequence; `labels` get -100.
        pad_to_multiple_of: round the length up, for tensor cores.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, examples: Sequence) -> dict[str, torch.Tensor]:
        """
        Args:
            examples: token ids, or rows with them under `input_ids`.

        Returns:
            `input_ids` and `attention_mask` [B, T], and `labels` [B, T - 1]: the tokens behind the first.
        """
        sequences = [np.asarray(e["input_ids"] if isinstance(e, dict) else e, dtype=np.int64) for e in examples]
        lengths = np.array([len(sequence) for sequence in sequences])
        width = -(-lengths.max() // self.pad_to_multiple_of) * self.pad_to_multiple_of
        mask = np.arange(width) < lengths[:, None]  # [B, T]
        input_ids = np.full(mask.shape, self.pad_token_id)
        input_ids[mask] = np.concatenate(sequences)
        labels = np.where(mask, input_ids, -100)[:, 1:]
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(np.ascontiguousarray(labels)),
        }
