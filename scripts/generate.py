"""Decode latents of a trained model: samples, reconstructions, interpolations, attributes.

    python scripts/generate.py output sample --count 10 --do_sample
    python scripts/generate.py output reconstruct --texts "the king sold a letter ."
    python scripts/generate.py output interpolate --texts "the king sold a letter ." "will the nurses hide many keys ?"
    python scripts/generate.py conditional sample --labels past
    python scripts/generate.py conditional reconstruct --texts "he slept ." --source_labels past --labels future
    python scripts/generate.py output attribute --with will.txt --without did.txt --texts "the king sold a letter ."

and of a model of frames, of which --output is an .npz, with a picture beside it:

    python scripts/generate.py my_frames sample --count 4 --max_length 60 --do_sample --output samples.npz
    python scripts/generate.py my_frames reconstruct --data my.npz --indices 0 5 9 --output frames.npz
    python scripts/generate.py my_frames attribute --data my.npz --label label --with 2 --without 0 --output moved.npz

The model is a folder or a repository of the Hub.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from hf_vrae.command_line import parse_generate, read_lines, refuse_unread, run_script


def main():
    from transformers import set_seed

    from hf_vrae import latent, plots
    from hf_vrae.hub import load
    from hf_vrae.measure import walk_frames

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("mode", choices=["sample", "reconstruct", "interpolate", "attribute"])
    parser.add_argument("--texts", nargs="+", default=[], help="To reconstruct, to move, or the ends of a path")
    parser.add_argument("--file", help="The same, a text a line")
    parser.add_argument("--data", help="Of frames: as --train_file of train.py; models of built-in ones need none")
    parser.add_argument("--indices", type=int, nargs="+", help="Of frames: which sequences of it")
    parser.add_argument("--label", default="label", help="Of frames: column of the attribute")
    parser.add_argument("--count", type=int, default=10, help="Samples")
    parser.add_argument("--steps", type=int, default=7, help="Points of a path, its ends included")
    parser.add_argument("--spherical", action="store_true", help="Interpolate along the great circle")
    parser.add_argument("--with", dest="examples", help="File of examples that have the attribute, or its value")
    parser.add_argument("--without", help="File of examples that do not have it, or the value of these")
    parser.add_argument("--strength", type=float, nargs="+", default=[1.0], help="How far to move along the attribute")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", help="Also write the rows to this .jsonl file; of frames an .npz")
    args, given, how_to_read = parse_generate(parser)

    set_seed(args.seed)
    model, tokenizer = load(args.model)
    if args.source_labels is not None and (args.mode != "reconstruct" or tokenizer is None):
        raise ValueError("`source_labels` are of texts to reconstruct. Leave them out.")
    if tokenizer is not None and (args.data or how_to_read):
        raise ValueError("`data` and how it is read are of frames, and this is a model of text: --texts or --file.")
    refuse_unread(parser, args, dict.fromkeys(("indices", "label"), (tokenizer is None, "a model of frames")))
    if tokenizer is None:
        output = Path((args.output or "").removesuffix(".npz") + ".npz")
        if not args.output or output.resolve() == Path(args.data or "").resolve():
            raise ValueError("`output` names the .npz that frames are written to, another one than `data`. Give one.")
        names = "texts file indices label count steps spherical examples without strength".split()
        said = {name: value for name in names if (value := getattr(args, name)) not in (None, [])}
        arrays = walk_frames(model, args.mode, args.data, **said, **how_to_read, **given)
        np.savez(output, **arrays)
        plots.plot_frames(arrays, output.with_suffix(".png"), names=model.config.feature_columns)
        return print(f"Written to {output}, with a picture beside it")
    texts = args.texts + (read_lines(args.file) if args.file else [])
    rows = {
        "sample": lambda: latent.sample_texts(model, tokenizer, args.count, args.seed, **given),
        "reconstruct": lambda: latent.reconstruct_texts(model, tokenizer, texts, args.source_labels, **given),
        "interpolate": lambda: latent.interpolate_texts(model, tokenizer, texts, args.steps, args.spherical, **given),
        "attribute": lambda: latent.move_texts(
            model, tokenizer, texts, read_lines(args.examples), read_lines(args.without), args.strength, **given
        ),
    }[args.mode]()
    print("\n".join("  |  ".join(map(str, row.values())) for row in rows))
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    run_script(main)
