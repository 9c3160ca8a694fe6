"""Pictures of a trained model: they lie in its folder, of `kl` and `rate_distortion` with their numbers as .json.

    python scripts/plot.py output curves
    python scripts/plot.py output kl
    python scripts/plot.py output map --label tense
    python scripts/plot.py output map --data my.tsv --label topic --method tsne
    python scripts/plot.py output interpolation --texts "the king sold a letter ." "will our nurses hide many keys ?"
    python scripts/plot.py my_model cured rate_distortion
    python scripts/plot.py docs schedules

Without --data, `kl` and `map` of a model of what is built in take its test split. `rate_distortion` compares the
results.json of several folders, which must be of the same data; `schedules` needs no model.
"""

import argparse
import json
from pathlib import Path
from typing import get_args

from hf_vrae.command_line import parse_plot, picture_of, run_script


def main():
    from hf_vrae import latent, plots
    from hf_vrae.data.datasets import attribute_values
    from hf_vrae.hub import load
    from hf_vrae.measure import encode_file, prior_of, represent_file
    from hf_vrae.modeling.distributions import kl_per_dimension
    from hf_vrae.training.schedules import KLSchedule, ScheduleKind

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="What train.py wrote; the picture goes to the first")
    parser.add_argument("mode", choices=["curves", "kl", "map", "interpolation", "rate_distortion", "schedules"])
    parser.add_argument("--data", help="As --train_file of train.py; may be left out for a model of what is built in")
    parser.add_argument("--label", default="tense", help="Column to colour a map by; of the corpus also a factor")
    parser.add_argument("--method", default="pca", choices=["pca", "tsne"], help="How a map is made flat")
    parser.add_argument("--max_samples", type=int, help="Take only so many sequences, spread over the file")
    parser.add_argument("--texts", nargs=2, default=[], help="Ends of an interpolation")
    parser.add_argument("--steps", type=int, default=7, help="Points of an interpolation, its ends included")
    parser.add_argument("--seed", type=int, default=42, help="Of t-SNE")
    args, how_to_read = parse_plot(parser)

    folder, picture, numbers = Path(args.folders[0]), picture_of(args), None
    if args.mode in ("kl", "map", "interpolation"):
        model, tokenizer = load(str(folder))
    if args.mode in ("kl", "map"):
        read = encode_file if args.mode == "kl" else represent_file
        data, q = read(model.cpu(), tokenizer, args.data, args.max_samples, **how_to_read)
    if args.mode == "kl" and model.config.posterior == "vmf":
        raise ValueError("`posterior` vmf has one constant KL, which does not divide among dimensions.")
    if args.mode == "curves":
        plots.plot_training_curves(folder / "metrics.jsonl", picture)
    elif args.mode == "kl":
        kl, variance = kl_per_dimension(q, prior_of(model, tokenizer, data)).double().mean(0), q.mean.double().var(0)
        numbers = {"kl": kl.tolist(), "variance": variance.tolist(), "num_sequences": len(data)}
        part = " of the z of the whole," if model.config.model_type == "hierarchical_vrae" else ""
        plots.plot_kl_per_dimension(kl, variance, picture, part)
    elif args.mode == "map":
        plots.plot_latent_map(q, attribute_values(data, args.label), args.method, picture, args.label, args.seed)
    elif args.mode == "interpolation":
        table = plots.interpolation_table(latent.interpolate_texts(model, tokenizer, args.texts, args.steps))
        picture = folder / "interpolation.md"
        picture.write_text(table, "utf-8")
        print(table)
    elif args.mode == "rate_distortion":
        numbers = plots.rows_of_runs(args.folders)
        plots.plot_rate_distortion(numbers, picture)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        courses = {kind: KLSchedule(kind, 1000, capacity=1.0) for kind in get_args(ScheduleKind)}
        curves = {k: [s(t) if s.target(t) is None else s.target(t) for t in range(1000)] for k, s in courses.items()}
        plots.plot_schedules(curves, picture)
    if numbers:
        picture.with_suffix(".json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(f"Written to {picture}")


if __name__ == "__main__":
    run_script(main)
