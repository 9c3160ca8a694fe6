"""Batches of an autoencoder's sequences, of tokens or of frames."""

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
            `input_ids` and `attention_mask` [B, T], and `labels` [B, T - 1]: the tokens behind the first. Rows with
            conditions bring these, see [`conditions`].
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
            **conditions(examples),
        }


class CausalCollator(AutoencodingCollator):
    """The same where the model wants the input tokens themselves as `labels`, as causal language models do."""

    def __call__(self, examples: Sequence) -> dict[str, torch.Tensor]:
        """
        Returns:
            `input_ids`, `attention_mask` and `labels` [B, T]; the labels are -100 where padded.
        """
        batch = super().__call__(examples)
        return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


@dataclass
class FrameCollator:
    """Pads sequences of vectors on the right and makes them their own targets.

    Args:
        pad_to_multiple_of: round the length up, for tensor cores.
    """

    pad_to_multiple_of: int = 1

    def __call__(self, examples: Sequence) -> dict[str, torch.Tensor]:
        """
        Args:
            examples: arrays [T, F] or [T] (one channel), NaN where a value is missing, or rows with them under
                `input_features`; a row may have an `attention_mask` [T] of ones and then zeros.

        Returns:
            `input_features` [B, T, F], 0 where padded, `attention_mask` [B, T], and `labels` [B, T, F]: the features,
            NaN where padded. Rows with conditions bring these, see [`conditions`]; rows with `segment_ids` [T] these,
            [B, T], -1 where padded.

        Raises:
            ValueError: where a mask does not fit its features, a sequence has no frame, or channels differ in number.
        """
        sequences = [_real_frames(example, i) for i, example in enumerate(examples)]
        channels = [sequence.shape[1] for sequence in sequences]
        if len(set(channels)) > 1:
            raise ValueError(f"The sequences of a batch must have the same number of channels; got {channels}.")
        lengths = np.array([len(sequence) for sequence in sequences])
        width = -(-lengths.max() // self.pad_to_multiple_of) * self.pad_to_multiple_of
        mask = np.arange(width) < lengths[:, None]  # [B, T]
        labels = np.full((*mask.shape, channels[0]), np.nan, dtype=np.float32)
        labels[mask] = np.concatenate(sequences)
        batch = {
            "input_features": torch.from_numpy(np.where(mask[:, :, None], labels, np.float32(0))),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(labels),
            **conditions(examples),
        }
        if isinstance(examples[0], dict) and "segment_ids" in examples[0]:
            segment_ids = np.full(mask.shape, -1)
            rows = zip(examples, lengths, strict=True)
            segment_ids[mask] = np.concatenate([row["segment_ids"][:length] for row, length in rows])
            batch["segment_ids"] = torch.from_numpy(segment_ids)
        return batch


def conditions(examples: Sequence) -> dict[str, torch.Tensor]:
    """What sequences stand under, as far as their rows have it: `class_ids` [B, L], `attributes` [B, A] and
    `condition` [B, V]."""
    if not isinstance(examples[0], dict):
        return {}
    kinds = {"class_ids": np.int64, "attributes": np.float32, "condition": np.float32}
    return {
        name: torch.from_numpy(np.stack([np.asarray(row[name], dtype=kind) for row in examples]))
        for name, kind in kinds.items()
        if name in examples[0]
    }


def _real_frames(example, index: int) -> np.ndarray:
    """The frames of an example that its mask, where it has one, says are real, [T, F]."""
    row = example if isinstance(example, dict) else {"input_features": example}
    frames = np.asarray(row["input_features"], dtype=np.float32)
    frames = frames[:, None] if frames.ndim == 1 else frames
    mask = np.asarray(row.get("attention_mask", np.ones(len(frames))))
    if mask.shape != frames.shape[:1] or not np.isin(mask, (0, 1)).all() or (mask[1:] > mask[:-1]).any():
        raise ValueError(
            f"`attention_mask` must be ones and then zeros, one for each frame of `input_features`; in example "
            f"{index} it is {mask.tolist()} for features of shape {frames.shape}."
        )
    if not mask.any():
        raise ValueError(f"A sequence must have a frame; example {index} of the batch has none. Leave it out.")
    return frames[: int(mask.sum())]
