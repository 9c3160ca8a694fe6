"""Train a folder of recipes one after the other, and set their results in one table beside the published ones.

    accelerate launch scripts/compare.py recipes/text/ptb --output_dir ptb --rows lm bn_vae_06 --seeds 1 2 3 \\
        --train_file ptb/train.txt --validation_file ptb/validation.txt --test_file ptb/test.txt
    python scripts/compare.py recipes/text/ptb --output_dir recipes/text/ptb/results --table_only \\
        --document PAPERS.md README.md

Further flags are those of scripts/train.py, for every row. A row that is done is not trained again, one that was
interrupted goes on. The folder then holds table.md, table.json, and with the extra `viz` the pictures of both.
"""

import argparse
import json
from pathlib import Path

from hf_vrae.command_line import run_script


def main():
    from accelerate import PartialState

    from hf_vrae import plots
    from hf_vrae.training import comparison

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", help="Folder of recipes; those with a title are rows")
    parser.add_argument("--output_dir", required=True, help="Holds a folder a row and seed")
    parser.add_argument("--rows", nargs="+", help="Names of the recipes to train; by default all")
    parser.add_argument("--seeds", nargs="+", type=int, help="Of each row; by default 42")
    parser.add_argument("--table_only", action="store_true", help="Train nothing")
    of_document = "Set the table between the lines <!-- compare.py RECIPES --> of these .md, or its short form"
    parser.add_argument("--document", nargs="+", default=[], help=of_document)
    args, flags = parser.parse_known_args()

    recipes, folder = comparison.find_recipes(args.recipes), Path(args.output_dir)
    unknown = set(args.rows or []) - {path.stem for path in recipes}
    if unknown:
        raise ValueError(f"`rows` names {sorted(unknown)[0]!r}; there are {', '.join(p.stem for p in recipes)}.")
    chosen = [path for path in recipes if args.rows is None or path.stem in args.rows]
    if not args.table_only:
        comparison.train_rows(chosen, folder, args.seeds or [42], flags, Path(__file__).with_name("train.py"))
    elif args.rows or args.seeds or flags:
        named = ["--rows"] * bool(args.rows) + ["--seeds"] * bool(args.seeds) + flags
        raise ValueError(f"`table_only` trains nothing, so {named[0]} has no effect.")
    if not PartialState().is_main_process:
        return
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder {args.output_dir!r}: --table_only makes the table of runs that are there."
        )
    rows = comparison.collect(recipes, folder)
    table = comparison.table_and_notes(rows)
    (folder / "table.md").write_text(table, "utf-8")
    (folder / "table.json").write_text(json.dumps(rows, indent=2) + "\n")
    try:
        if comparison.points(rows):
            plots.plot_rate_distortion(comparison.points(rows), folder / "rate_distortion.png")
        names, panels, lines = comparison.panels(rows)
        if any("free-running" in series for series in panels.values()):
            plots.plot_comparison(names, panels, lines, folder / "comparison.png")
    except ImportError:
        print("No picture: it needs matplotlib, pip install 'hf_vrae[viz]'")
    for document in args.document:
        comparison.insert_tables(document, args.recipes, rows)
    print(table)


if __name__ == "__main__":
    run_script(main)
