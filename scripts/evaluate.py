"""Measure a trained model: likelihood bounds, perplexity, KL, mutual information, active units, text.

    accelerate launch scripts/evaluate.py --model output --data my_test.txt --num_samples 100 --output results.json

Without --data it takes the test sentences of the built-in corpus.
"""

import argparse
import json
from pathlib import Path

from hf_vrae.command_line import run_script


def main():
    from accelerate import PartialState

    from hf_vrae.hub import load
    from hf_vrae.training.run import evaluate_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder, or repository of the Hub")
    parser.add_argument("--data", help=".txt, .csv, .tsv, .json, .jsonl or .parquet; by default the built-in corpus")
    parser.add_argument("--text_column", help="Column of the text; by default 'text', or the only one of strings")
    parser.add_argument("--encoding", default="utf-8", help="Of the file")
    parser.add_argument("--max_length", type=int, default=128, help="Longer sequences are cut, and counted")
    parser.add_argument("--max_samples", type=int, help="Take only the first so many sequences")
    parser.add_argument("--num_samples", type=int, default=100, help="K of the importance-weighted likelihood")
    parser.add_argument("--svi_steps", type=int, default=0, help="Refine each posterior by gradient steps first")
    parser.add_argument("--batch_size", type=int, default=32, help="Changes the speed and nothing else")
    parser.add_argument("--seed", type=int, default=42, help="Of the noise")
    parser.add_argument("--text_metrics", action="store_true", help="Also measure reconstructions and samples")
    parser.add_argument("--num_text_samples", type=int, default=1000, help="Texts, and samples, that these are of")
    parser.add_argument("--judge", help="Model, of --text_metrics, that tells how likely the samples are")
    parser.add_argument("--disentanglement", action="store_true", help="MIG and DCI, on the built-in corpus")
    parser.add_argument("--output", help="Write the numbers to this .json file")
    args = vars(parser.parse_args())
    output = args.pop("output")
    if not args.pop("text_metrics"):
        args["num_text_samples"] = None
    args["judge"] = load(args["judge"]) if args["judge"] else None
    results = evaluate_file(*load(args.pop("model")), args.pop("data"), **args)
    if PartialState().is_main_process:
        print(json.dumps({name: value for name, value in results.items() if name != "run"}, indent=2))
        if output:
            Path(output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main)
