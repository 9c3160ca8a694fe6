"""Train a VRAE or a VRNN: `accelerate launch scripts/train.py`, with no argument on the built-in corpus.

accelerate launch scripts/train.py --train_file my.txt --output_dir my_model
accelerate launch scripts/train.py --config recipes/text/ptb/bn_vae_06.yaml --train_file ptb/train.txt ...
accelerate launch scripts/train.py --train_file rolls.npz --head bernoulli --model_type vrnn --output_dir my_vrnn
accelerate launch scripts/train.py --help
"""

import json
from pathlib import Path

import numpy as np

from hf_vrae.command_line import run_script


def main():
    from accelerate import PartialState

    from hf_vrae.hub import push_folder, write_model_card
    from hf_vrae.plots import plot_frames, plot_training_curves
    from hf_vrae.training.arguments import parse_recipe
    from hf_vrae.training.run import run

    recipe = parse_recipe()
    args = recipe.training
    results = run(recipe)
    if not PartialState().is_main_process:
        return
    folder = Path(args.output_dir)
    try:
        plot_training_curves(folder / "metrics.jsonl", folder / "curves.png")
        if (folder / "samples.npz").is_file():
            names = json.loads((folder / "config.json").read_text()).get("feature_columns")
            plot_frames(dict(np.load(folder / "samples.npz")), folder / "samples.png", names=names)
    except ImportError:
        print("No curves: they need matplotlib, pip install 'hf_vrae[viz]'")
    write_model_card(folder)
    print(json.dumps({name: value for name, value in results.items() if name != "run"}, indent=2))
    print(f"The model, its numbers and its card are in {folder}")
    if args.push_to_hub:
        url = push_folder(folder, args.hub_model_id or folder.resolve().name, args.hub_private_repo)
        print(f"Pushed to {url}")


if __name__ == "__main__":
    run_script(main)
