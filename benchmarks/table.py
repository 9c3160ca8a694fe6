"""The table of speed in README, from what the benchmarks wrote into `benchmarks/results`.

python benchmarks/table.py          # print it
python benchmarks/table.py --run    # measure all anew first, on a machine that does nothing else: ten minutes
python benchmarks/table.py --results benchmarks/results/avx2    # of another machine
"""

import argparse
import json
import subprocess
import sys
import textwrap
from pathlib import Path

FOLDER = Path(__file__).parent
# What is shown: the benchmark, the words for it, the plain way, and ours.
SHOWN = [
    ("train", "training, LSTM, tokens/s", "plain LSTM fp32", "LSTM {}"),
    ("train", "training, GRU, tokens/s", "plain GRU fp32", "GRU {}"),
    ("train", "training, layer-norm LSTM, tokens/s", "layer-norm LSTM fp32 loop of cells", "layer-norm LSTM {}"),
    ("train", "training the encoder alone, LSTM, tokens/s", "plain encoder alone fp32", "encoder alone {}"),
    ("iw_nll", "NLL of 100 samples, sequences/s", "plain fp32", "{}"),
    ("generate", "greedy, batch 1, tokens/s", "plain greedy fp32, batch 1", "greedy {}, batch 1"),
    ("generate", "greedy, batch 64, tokens/s", "plain greedy fp32, batch 64", "greedy {}, batch 64"),
    ("generate", "sampled, batch 64, tokens/s", "plain sampled fp32, batch 64", "sampled {}, batch 64"),
    ("vrnn", "VRNN, training, batch 20, frames/s", "plain training fp32, batch 20", "training {}, batch 20"),
    ("vrnn", "VRNN, training, batch 64, frames/s", "plain training fp32, batch 64", "training {}, batch 64"),
    ("vrnn", "VRNN, FIVO of 4 particles, frames/s", "plain FIVO fp32, batch 20", "FIVO {}, batch 20"),
    ("vrnn", "VRNN, sampled, batch 20, frames/s", "plain sampled fp32, batch 20", "sampled {}, batch 20"),
    ("memory", "memory of a training step, MiB", "train plain fp32", "train {}"),
    ("memory", "memory of NLL, MiB (8 x 100 rows, plain 1 x 100)", "IW-NLL plain fp32, 1 x 100", "IW-NLL {}, 8 x 100"),
]


def table(results: Path) -> str:
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    machine, rates = reports["train"]["machine"], reports["train"]["ceilings"]
    ceilings = " and ".join(f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    conditions = (
        f"{machine['threads']} threads, {machine['cpu']}, torch {reports['train']['versions']['torch']}; torch's "
        f"own product of large matrices runs at {ceilings}."
    )
    lines = [
        *textwrap.wrap(conditions, width=120),
        "",
        "| | size | plain, fp32 |" + "".join(f" ours, {dtype} | gain |" for dtype in rates),
        "| --- | --- | ---: |" + " ---: | ---: |" * len(rates),
    ]
    for benchmark, words, plain, ours in SHOWN:
        if benchmark not in reports:  # it has not been run on a machine that does nothing else
            continue
        for size in dict.fromkeys(row["size"] for row in reports[benchmark]["rows"]):
            rows = {row["way"]: row["rate"] for row in reports[benchmark]["rows"] if row["size"] == size}
            if plain not in rows:  # it is younger than what was measured
                continue
            cells = [f"{rows[plain]:,.0f}" if rows[plain] >= 100 else f"{rows[plain]:.1f}"]
            for dtype in rates:
                if ours.format(dtype) not in rows:
                    cells += ["", ""]
                    continue
                rate = rows[ours.format(dtype)]
                gain = rows[plain] / rate if benchmark == "memory" else rate / rows[plain]
                cells += [f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}", f"{gain:.2f}x"]
            lines.append(f"| {words} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="measure all anew first")
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="folder of what they wrote")
    args = parser.parse_args()
    if args.run:
        args.results.mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(benchmark for benchmark, *_ in SHOWN):
            run(name, args.results)
        run("scaling", args.results, "--plot", args.results / "scaling.png")
    print(table(args.results))


def run(name: str, results: Path, *flags):
    command = [sys.executable, FOLDER / f"{name}.py", "--json", results / f"{name}.json", *flags]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
