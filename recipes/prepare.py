"""Data of the recipes that are not files of sequences yet.

    python recipes/prepare.py ecg5000 ecg5000.npz normal_beats.npz
    python recipes/prepare.py fsdd_mu_law fsdd mu_law.npz
    python recipes/prepare.py fsdd_log_mel fsdd log_mel.npz

`ecg5000` keeps the normal beats (class 0) of the training split, every fifth of them for validation, to learn what is
normal. The other two read `train.zip` and `test.zip` of the Free Spoken Digit Dataset (16-bit mono, 8 kHz) from a
folder: as 8-bit mu-law (ITU-T G.711) in windows of 256 samples, 32 ms, values 0 to 255; or as 40 log-mel bands (25 ms
windows every 10 ms), one sequence a recording. Of the training recordings those with index 5 and 6 validate.
"""

import argparse
import io
import wave
import zipfile
from pathlib import Path

import numpy as np

SAMPLING_RATE, WINDOW, HOP, FFT, BANDS = 8000, 200, 80, 256, 40  # samples, but the last


def read_recordings(path: Path) -> dict[str, np.ndarray]:
    """Samples in [-1, 1) of each recording `digit_speaker_index.wav` of a zip file."""
    recordings = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".wav")):
            with wave.open(io.BytesIO(archive.read(name))) as file:
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            recordings[Path(name).stem] = samples.astype(np.float64) / 2**15
    return recordings


def mu_law(samples: np.ndarray) -> np.ndarray:
    """Values 0 to 255 of samples in [-1, 1] (mu = 255)."""
    squeezed = np.sign(samples) * np.log1p(255 * np.abs(samples)) / np.log(256)
    return np.minimum((squeezed + 1) / 2 * 256, 255).astype(np.uint8)


def mel_filters() -> np.ndarray:
    """Triangles evenly spaced in mel (2595 log10(1 + f / 700)) from 0 Hz to half the sampling rate: [BANDS, bins]."""
    top = 2595 * np.log10(1 + SAMPLING_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.linspace(0, SAMPLING_RATE / 2, FFT // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.clip(np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)), 0, None)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """[T, BANDS]: log of mel energies, floored at 1e-6."""
    samples = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP] * np.hanning(WINDOW)
    return np.log(np.maximum(np.abs(np.fft.rfft(frames, FFT)) ** 2 @ mel_filters().T, 1e-6))


def prepare_ecg5000(source: Path) -> dict[str, np.ndarray]:
    data = np.load(source)
    normal = data["train_x"][data["train_y"] == 0]
    held_out = np.arange(len(normal)) % 5 == 4
    return {
        "train_x": normal[~held_out],
        "validation_x": normal[held_out],
        "test_x": data["test_x"],
        "test_y": data["test_y"],
    }


def prepare_fsdd(source: Path, kind: str) -> dict[str, np.ndarray]:
    splits: dict[str, list] = {"train": [], "validation": [], "test": []}
    for file in ("train", "test"):
        for name, samples in read_recordings(source / f"{file}.zip").items():
            digit, _, index = name.split("_")
            split = "validation" if file == "train" and int(index) in (5, 6) else file
            if kind == "mu_law":
                windows = len(samples) // 256
                parts = mu_law(samples)[: windows * 256].reshape(windows, 256, 1)
            else:
                parts = [log_mel(samples)]
            splits[split] += [(part, int(digit)) for part in parts]
    arrays = {}
    for split, rows in splits.items():
        parts, digits = zip(*rows, strict=True)
        arrays[f"{split}_x"] = np.concatenate(parts).astype(np.uint8 if kind == "mu_law" else np.float32)
        arrays[f"{split}_lengths"] = np.array([len(part) for part in parts])
        arrays[f"{split}_y"] = np.array(digits)
    return arrays


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["ecg5000", "fsdd_mu_law", "fsdd_log_mel"])
    parser.add_argument("source", type=Path, help="The .npz file, or the folder of the .zip files")
    parser.add_argument("target", type=Path, help="The .npz file to write")
    args = parser.parse_args()
    if args.kind == "ecg5000":
        arrays = prepare_ecg5000(args.source)
    else:
        arrays = prepare_fsdd(args.source, args.kind.removeprefix("fsdd_"))
    np.savez_compressed(args.target, **arrays)
    print({name: array.shape for name, array in arrays.items()})


if __name__ == "__main__":
    main()
