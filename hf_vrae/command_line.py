"""What all scripts share: readable logs, one clear line in place of a traceback, and the flags that read a file."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from tqdm.auto import tqdm


class _AboveTheBar(logging.Handler):
    """Prints a message without tearing a progress bar."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stderr)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`: bad input ends in one line and exit code 1, an interruption in 128 + its signal."""
    from transformers.utils.logging import disable_progress_bar

    from .training.accelerator import process_state
    from .training.loop import Interrupted

    disable_progress_bar()  # a bar for writing one small file tears ours
    ours = logging.getLogger("hf_vrae")
    ours.addHandler(_AboveTheBar())
    ours.propagate = False
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a file or pipe on Windows may know few letters
    here = True  # until it is known which process this is
    try:
        state = process_state()
        here = state.is_local_main_process
        ours.setLevel(logging.INFO if state.is_main_process else logging.ERROR)
        main()
        state.destroy_process_group()
    except Interrupted as interruption:
        _say(interruption, here)
        sys.exit(128 + interruption.signal_number)
    except KeyboardInterrupt:
        _say("Interrupted.", here)
        sys.exit(130)
    except (ValueError, OSError, ImportError, FloatingPointError, StrictDataclassError) as error:
        _say(f"error: {' '.join(str(error).split())}", here)
        sys.exit(1)


def _say(message, here: bool) -> None:
    if here:
        print(message, file=sys.stderr)


def add_reading_flags(parser: argparse.ArgumentParser) -> list[str]:
    """What says how a file is read, under the names of scripts/train.py; returns the names of the options."""
    from .training.arguments import WAYS_TO_READ, DataArguments

    group = parser.add_argument_group("how --data is read")
    kinds = {"feature_columns": {"nargs": "+"}, "window": {"type": int}, "stride": {"type": int}}
    for name in ("text_column", "encoding", *WAYS_TO_READ):
        text = DataArguments.__dataclass_fields__[name].metadata["help"]
        group.add_argument(f"--{name}", help=text, **kinds.get(name, {}))
    return [action.dest for action in group._group_actions]


def check_output(path: str | None) -> None:
    """Refuse a file that cannot be written before what it is to hold is computed."""
    if path is not None and (Path(path).is_dir() or not Path(path).parent.is_dir()):
        raise ValueError(f"`output` must be a file in a folder that is there, got {path!r}. Make that folder first.")


def refuse_unread(parser: argparse.ArgumentParser, args: argparse.Namespace, readers: dict) -> None:
    """Refuse what is given and not read; `readers` holds of each name whether it is read, and by what."""
    flags = {action.dest: action.option_strings[-1].lstrip("-") for action in parser._actions if action.option_strings}
    for name, (is_read, reader) in readers.items():
        if not is_read and getattr(args, name) != parser.get_default(name):
            raise ValueError(f"`{flags[name]}` is of {reader}, which is not asked for. Leave it out.")


def refuse_of_other_modes(parser: argparse.ArgumentParser, args: argparse.Namespace, modes: dict[str, str]) -> None:
    """The same by the `mode`; `modes` holds of each name those that read it."""
    readers = {name: (args.mode in said.split(), " or ".join(said.split())) for name, said in modes.items()}
    refuse_unread(parser, args, readers)


def parse_evaluate(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, bool, dict]:
    """What scripts/evaluate.py is told, whether to measure by label, and how to read the data; what nothing that is
    asked for would read is refused."""
    reading, args = add_reading_flags(parser), parser.parse_args()
    check_output(args.output)
    by_label = args.transfer_train is not None or args.agreement_train is not None
    readers = dict.fromkeys(("guidance_scale", "label"), (by_label, "--label_agreement and --transfer_train"))
    readers["num_text_samples"] = by_label or args.text_metrics, "--text_metrics and of what is by label"
    readers["label_values"] = args.transfer_train is not None, "--transfer_train"
    refuse_unread(parser, args, readers | {"normal": (args.anomaly_label is not None, "--anomaly")})
    return args, by_label, given_flags(args, reading)


def parse_plot(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, dict]:
    """What scripts/plot.py is told, and of it how to read the data; what this mode would not read is refused."""
    reading, args = add_reading_flags(parser), parser.parse_args()
    modes = dict.fromkeys(("label", "method", "seed"), "map") | dict.fromkeys(("texts", "steps"), "interpolation")
    refuse_of_other_modes(parser, args, modes | dict.fromkeys(("data", "max_samples", *reading), "kl map"))
    if len(args.folders) > 1 and args.mode != "rate_distortion":
        raise ValueError(f"`{args.mode}` is of one folder, got {', '.join(args.folders)}.")
    return args, given_flags(args, reading)


def picture_of(args: argparse.Namespace) -> Path:
    """Where scripts/plot.py writes; the name says what is drawn of what, so that no picture takes another's place."""
    drawn = [args.mode, *([Path(args.data).stem] if args.data else ())]
    drawn += [args.label, args.method] if args.mode == "map" else []
    return Path(args.folders[0]) / ("_".join(drawn).replace("/", "-") + ".png")


def parse_generate(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, dict, dict]:
    """What scripts/generate.py is told, and of it how to decode and how to read the data; what it cannot do, or would
    not read in this mode, is refused."""
    reading, options, args = add_reading_flags(parser), add_generation_flags(parser), parser.parse_args()
    check_output(args.output)
    if args.num_beams is not None and args.num_beams < 1:
        raise ValueError(f"`num_beams` must be at least 1, got {args.num_beams}.")
    modes = {"count": "sample", "steps": "interpolate", "spherical": "interpolate"}
    modes |= dict.fromkeys(("strength", "examples", "without", "label"), "attribute")
    inputs = "texts", "file", "data", "indices", *reading
    modes |= dict.fromkeys(inputs, "reconstruct interpolate attribute")
    refuse_of_other_modes(parser, args, modes)
    return args, given_flags(args, options), given_flags(args, reading)


def given_flags(args: argparse.Namespace, names: list[str]) -> dict:
    """Those of the options that are given."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def add_generation_flags(parser: argparse.ArgumentParser) -> list[str]:
    """What says how latents are decoded; returns the names of the options."""
    group = parser.add_argument_group("what and how to decode, as transformers' generate")
    said = {"nargs": "+", "action": _NamedLabels}
    group.add_argument("--labels", **said, help="Of a conditional model: past, or tense=past mood=question")
    group.add_argument("--prefix", help="Beginning of every text")
    group.add_argument("--do_sample", action="store_true", help="Draw words in place of taking the likeliest")
    for name in ("max_length", "num_beams", "top_k"):
        group.add_argument(f"--{name}", type=int)
    for name in ("temperature", "top_p", "guidance_scale"):
        group.add_argument(f"--{name}", type=float)
    names = [action.dest for action in group._group_actions]
    group.add_argument("--source_labels", **said, help="What the texts to reconstruct stand under themselves")
    return names


class _NamedLabels(argparse.Action):
    """Labels as `generate` takes them: `past`, a list of one per row, or `tense=past mood=question`."""

    def __call__(self, parser, namespace, said, option_string=None):
        if all("=" in part for part in said):
            pairs = [part.split("=", 1) for part in said]
            said = dict(pairs)
            if len(said) < len(pairs):
                raise ValueError(f"`{self.dest}` must name each label once, got {' '.join(map('='.join, pairs))}.")
        setattr(namespace, self.dest, said[0] if len(said) == 1 and isinstance(said, list) else said)


def read_lines(path: str | None) -> list[str]:
    """The non-empty lines of a UTF-8 file."""
    if path is None:
        raise ValueError("A file of texts is missing; `attribute` needs two of them, --with and --without.")
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except UnicodeDecodeError as error:
        raise ValueError(f"The file {path!r} is not UTF-8 text.") from error
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"The file {path!r} holds no text.")
    return lines
