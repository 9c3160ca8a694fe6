"""How cost grows: tokens per second of training against batch, length, vocabulary, latent size and processes, and of
importance-weighted evaluation against samples; ours beside the plain way, one size varied at a time, in fp32.

python benchmarks/scaling.py --json scaling.json --plot scaling.png
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import torch
from common import LENGTH, PlainVAE, argument_parser, interleave, make_ours, make_plain, random_ids, report
from train import BATCH, ours, step

ROOT = Path(__file__).parents[1]
VALUES = {
    "batch": (8, 16, 32, 64, 128, 256, 512),
    "length": (10, 22, 50, 100, 200, 400),
    "vocabulary": (1_000, 2_000, 5_000, 10_000, 20_000, 50_000),
    "latent": (2, 16, 64, 256, 1024),
    "samples": (1, 10, 100, 500, 1000),
}
AXES = [*VALUES, "processes"]


def training(batch=BATCH, length=LENGTH, vocabulary=10_000, latent=None):
    """Ways to train, and the tokens of a call."""
    sizes = {"vocab_size": vocabulary} | ({} if latent is None else {"latent_size": latent})
    batches = [random_ids(batch, length, vocabulary)]
    models = {"plain": (make_plain("small", **sizes), PlainVAE.loss), "ours": (make_ours("small", **sizes), ours)}
    ways = {name: step(model, loss, "fp32", batches) for name, (model, loss) in models.items()}
    return ways, batch * length


def evaluation(samples):
    rows = 4
    ids = random_ids(rows)
    plain, model = make_plain("small").eval(), make_ours("small").eval()

    @torch.no_grad()
    def weights():
        model.log_importance_weights(samples, input_ids=ids)

    return {"plain": lambda: plain.nll_iw(ids, samples), "ours": weights}, rows * samples * LENGTH


def processes(count, threads):
    """Tokens per second of `scripts/train.py` on the built-in corpus, with a batch of the default size a process."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
        flags = ["--output_dir", folder, "--max_steps", "400", "--num_importance_samples", "2"]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads)}
        command = [*launch, str(ROOT / "scripts" / "train.py"), *flags]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        metrics = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["tokens_per_second"] for row in metrics if "tokens_per_second" in row)


def main():
    parser = argument_parser(__doc__, repeats=3)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--plot", help="picture to write")
    args = parser.parse_args()
    rows = []
    for axis in args.axes:
        if axis == "processes":
            cores = os.cpu_count()
            rates = {f"{n} x {t} threads": processes(n, t) for n, t in ((1, cores), (cores, 1))}
            base = next(iter(rates.values()))
            rows += [{"size": axis, "way": way, "rate": rate, "ratio": rate / base} for way, rate in rates.items()]
            continue
        for value in VALUES[axis]:
            ways, tokens = evaluation(value) if axis == "samples" else training(**{axis: value})
            seconds = interleave(ways, args.repeats)
            for name, taken in seconds.items():
                ratio = seconds["plain"] / taken
                way = f"{axis} {value:,}, {name}"
                rows.append({"size": "small", "way": way, "axis": axis, "value": value, "name": name})
                rows[-1] |= {"rate": tokens / taken, "ratio": ratio}
    report("How cost grows, LSTM 256, batch 32, 22 tokens, vocabulary 10,000", "tokens/s", rows, args.json)
    if args.plot:
        plot(rows, args.plot)


def plot(rows, path):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = list(dict.fromkeys(row["axis"] for row in rows if "axis" in row))
    figure, panels = pyplot.subplots(1, len(axes), figsize=(3.2 * len(axes), 3), layout="constrained", squeeze=False)
    for panel, axis in zip(panels[0], axes, strict=True):
        for name in ("plain", "ours"):
            points = [
                (row["value"], row["rate"]) for row in rows if (row.get("axis"), row.get("name")) == (axis, name)
            ]
            panel.plot(*zip(*points, strict=True), marker="o", label=name)
        what = "evaluating" if axis == "samples" else "training"
        panel.set(xscale="log", xlabel=axis, ylim=(0, None), title=f"{what}, tokens per second")
        panel.title.set_fontsize(9)
    panels[0][0].legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
