"""Decode latents of a trained model: samples, reconstructions, interpolations, attributes.

    python scripts/generate.py output sample --count 10 --do_sample
    python scripts/generate.py output reconstruct --texts "the king sold a letter ."
    python scripts/generate.py output interpolate --texts "the king sold a letter ." "will the nurses hide many keys ?"
    python scripts/generate.py output attribute --with will.txt --without did.txt --texts "the king sold a letter ."

The model is a folder or a repository of the Hub.
"""

import argparse
import json

from hf_vrae.command_line import read_lines, run_script


def main():
    from transformers import set_seed

    from hf_vrae import latent
    from hf_vrae.hub import load

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("mode", choices=["sample", "reconstruct", "interpolate", "attribute"])
    parser.add_argument("--texts", nargs="+", default=[], help="To reconstruct, to move, or the ends of a path")
    parser.add_argument("--file", help="The same, a text a line")
    parser.add_argument("--count", type=int, default=10, help="Samples")
    parser.add_argument("--steps", type=int, default=7, help="Points of a path, its ends included")
    parser.add_argument("--spherical", action="store_true", help="Interpolate along the great circle")
    parser.add_argument("--with", dest="examples", help="File of examples that have the attribute")
    parser.add_argument("--without", help="File of examples that do not have it")
    parser.add_argument("--strength", type=float, nargs="+", default=[1.0], help="How far to move along the attribute")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", help="Also write the rows to this .jsonl file")
    parser.add_argument("--prefix", help="Beginning of every text")
    options = parser.add_argument_group("options of transformers' generate")
    options.add_argument("--do_sample", action="store_true", help="Draw words in place of taking the likeliest")
    for name, kind in dict(max_length=int, num_beams=int, temperature=float, top_k=int, top_p=float).items():
        options.add_argument(f"--{name}", type=kind)
    args = parser.parse_args()
    names = ["prefix", *(action.dest for action in options._group_actions)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}

    set_seed(args.seed)
    model, tokenizer = load(args.model)
    texts = args.texts + (read_lines(args.file) if args.file else [])
    rows = {
        "sample": lambda: latent.sample_texts(model, tokenizer, args.count, args.seed, **given),
        "reconstruct": lambda: latent.reconstruct_texts(model, tokenizer, texts, **given),
        "interpolate": lambda: latent.interpolate_texts(model, tokenizer, texts, args.steps, args.spherical, **given),
        "attribute": lambda: latent.move_texts(
            model, tokenizer, texts, read_lines(args.examples), read_lines(args.without), args.strength, **given
        ),
    }[args.mode]()
    print("\n".join("  |  ".join(map(str, row.values())) for row in rows))
    if args.output:
        with open(args.output, "w") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    run_script(main)
