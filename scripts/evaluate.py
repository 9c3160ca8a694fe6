"""Measure a trained model: likelihood bounds, perplexity, KL, mutual information, active units, text.

    accelerate launch scripts/evaluate.py --model output --data my_test.txt --num_samples 100 --output results.json

    python scripts/evaluate.py --model my_vrnn --data vowels.npz --probe label --probe_train vowels.npz
    python scripts/evaluate.py --model my_vrae --data beats.npz --anomaly label --normal 0

Without --data it takes the test split of the built-in corpus, or of the built-in frames. Flags that read frames are
those of train.py.
"""

import argparse
import json
from pathlib import Path

from hf_vrae.command_line import add_reading_flags, run_script


def main():
    from accelerate import PartialState

    from hf_vrae.hub import load
    from hf_vrae.measure import evaluate_file, label_agreement, transfer_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder, or repository of the Hub")
    parser.add_argument("--data", help="As --train_file of train.py; by default what is built in")
    add_reading_flags(parser)
    parser.add_argument("--max_length", type=int, default=128, help="Longer sequences are cut, and counted")
    parser.add_argument("--max_samples", type=int, help="Take only so many sequences, spread over the file")
    parser.add_argument("--num_samples", type=int, default=100, help="K of the importance-weighted likelihood")
    parser.add_argument("--svi_steps", type=int, default=0, help="Refine each posterior by gradient steps first")
    parser.add_argument("--batch_size", type=int, default=32, help="Changes the speed and nothing else")
    parser.add_argument("--seed", type=int, default=42, help="Of the noise, and of what is built in")
    parser.add_argument("--free_running", action="store_true", help="Also reconstruct from z alone")
    parser.add_argument("--text_metrics", action="store_true", help="Also measure reconstructions and samples")
    parser.add_argument("--num_text_samples", type=int, default=1000, help="Texts, and samples, that these are of")
    parser.add_argument("--judge", help="Model that tells how likely the samples, or the moved texts, are")
    parser.add_argument("--disentanglement", action="store_true", help="MIG and DCI, on the built-in corpus")
    parser.add_argument("--transfer_train", help="Labelled .tsv or .csv: also move the texts of --data between labels")
    parser.add_argument("--label", help="Its column; by default 'label', of --label_agreement the model's own")
    parser.add_argument("--label_values", nargs=2, help="The two labels; by default the column's two")
    parser.add_argument("--label_agreement", nargs="?", const="", help="Labelled texts: have samples their label?")
    parser.add_argument("--guidance_scale", type=float, help="Of these samples, and of texts moved by label")
    parser.add_argument("--probe", dest="probe_label", help="Column that a linear classifier tells from the latents")
    parser.add_argument("--probe_train", help="File to fit it on")
    parser.add_argument("--anomaly", dest="anomaly_label", help="Column that says what is not --normal")
    parser.add_argument("--normal", default="0", help="Its value for what is")
    parser.add_argument("--output", help="Write the numbers to this .json file")
    args = vars(parser.parse_args())
    judge = args["judge"] = load(args["judge"]) if args["judge"] else None
    model, path, output = load(args.pop("model")), args.pop("data"), args.pop("output")
    names = ("transfer_train", "label_agreement", "guidance_scale", "label", "label_values")
    train, examples, scale, label, values = [args.pop(name) for name in names]
    if train and not path:
        raise ValueError("`transfer_train` moves the texts of --data, which is not given.")
    if scale is not None and not train and examples is None:
        raise ValueError("`guidance_scale` is of --label_agreement and --transfer_train. Leave it out.")
    reading = {name: args[name] for name in ("text_column", "encoding") if args[name] is not None}
    num_texts, options = args["num_text_samples"], {"judge": judge, "guidance_scale": scale, "reading": reading}
    if not args.pop("text_metrics"):
        args["num_text_samples"], args["judge"] = None, None if train or examples is not None else judge
    results = evaluate_file(*model, path, **args)
    if train and PartialState().is_main_process:
        results["transfer"] = transfer_file(*model, train, path, label or "label", values, **options)
    if examples is not None and PartialState().is_main_process:
        options |= {"num_samples": num_texts, "seed": args["seed"]}
        results["label_agreement"] = label_agreement(*model, examples or None, label, **options)
    if PartialState().is_main_process:
        print(json.dumps({name: value for name, value in results.items() if name != "run"}, indent=2))
        if output:
            Path(output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main)
