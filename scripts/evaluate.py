"""Measure a trained model: likelihood bounds, perplexity, KL, mutual information, active units, text.

    accelerate launch scripts/evaluate.py --model output --data my_test.txt --num_samples 100 --output results.json

    python scripts/evaluate.py --model my_vrnn --data vowels.npz --probe label --probe_train vowels.npz
    python scripts/evaluate.py --model my_vrae --data beats.npz --anomaly label --normal 0

Without --data a model of the built-in corpus, or of the built-in frames, is measured on its test split. Flags that
read frames are those of train.py.
"""

import argparse
import json
from pathlib import Path

from hf_vrae.command_line import parse_evaluate, run_script


def main():
    from accelerate import PartialState

    from hf_vrae.hub import load
    from hf_vrae.measure import evaluate_file
    from hf_vrae.measure_labels import measure_labels

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder, or repository of the Hub")
    parser.add_argument("--data", help="As --train_file of train.py; may be left out for a model of what is built in")
    parser.add_argument("--max_length", type=int, help="Longer texts are cut, and counted; by default as in training")
    parser.add_argument("--max_samples", type=int, help="Take only so many sequences, spread over the file")
    parser.add_argument("--num_samples", type=int, default=100, help="K of the importance-weighted likelihood")
    parser.add_argument("--svi_steps", type=int, help="Of likelihoods, KL, MI and AU; by default as in training")
    parser.add_argument("--batch_size", type=int, default=32, help="Changes the speed and nothing else")
    parser.add_argument("--seed", type=int, default=42, help="Of the noise")
    parser.add_argument("--free_running", action="store_true", help="Also reconstruct from z alone")
    parser.add_argument("--text_metrics", action="store_true", help="Also measure reconstructions and samples")
    parser.add_argument("--num_text_samples", type=int, default=1000, help="Texts, and samples, that these are of")
    parser.add_argument("--judge", help="Model that tells how likely the samples, or the moved texts, are")
    parser.add_argument("--baseline", help="Model that this one's NLL is compared with, on the same sequences")
    parser.add_argument("--disentanglement", action="store_true", help="MIG and DCI, on the built-in corpus")
    parser.add_argument("--transfer_train", help="Labelled .tsv or .csv: also move the texts of --data between labels")
    parser.add_argument("--label", help="Its column; by default 'label', of --label_agreement the model's own")
    parser.add_argument("--label_values", nargs=2, help="The two labels; by default the column's two")
    of_texts = {"nargs": "?", "const": "", "help": "Have samples their label? By this file's or the corpus's texts"}
    parser.add_argument("--label_agreement", dest="agreement_train", **of_texts)
    parser.add_argument("--guidance_scale", type=float, help="Of these samples, and of texts moved by label")
    parser.add_argument("--probe", dest="probe_label", help="Column that a linear classifier tells from the latents")
    parser.add_argument("--probe_train", help="File to fit it on")
    parser.add_argument("--anomaly", dest="anomaly_label", help="Column that says what is not --normal")
    parser.add_argument("--normal", default="0", help="Its value for what is")
    parser.add_argument("--output", help="Write the numbers to this .json file")
    args, by_label, reading = parse_evaluate(parser)
    model, judge, baseline = (load(name) if name else None for name in (args.model, args.judge, args.baseline))
    if judge and judge[1] is None:
        raise ValueError(f"`judge` reads texts, and {args.judge!r} is a model of frames. Name a model of text.")
    names = "transfer_train agreement_train label label_values guidance_scale num_text_samples seed max_length".split()
    said = {name: getattr(args, name) for name in names}
    # First, since these may find their files at fault: the likelihoods take longest.
    results = measure_labels(*model, args.data, judge=judge, reading=reading, **said) if by_label else {}
    names = "max_length max_samples num_samples svi_steps batch_size seed free_running disentanglement probe_label"
    said = {name: getattr(args, name) for name in f"{names} probe_train anomaly_label normal".split()}
    said["num_text_samples"] = args.num_text_samples if args.text_metrics else None
    said["judge"] = judge if args.text_metrics or not by_label else None
    results = evaluate_file(*model, args.data, baseline=baseline, **said, **reading) | results
    if PartialState().is_main_process:
        print(json.dumps({name: value for name, value in results.items() if name != "run"}, indent=2))
        if args.output:
            Path(args.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main)
