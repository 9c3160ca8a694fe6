"""What a trained model is worth beside its likelihood: reconstruction from z alone, its samples, its speed."""

import json
import logging
import statistics
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict

from ..data.datasets import spread_places, spread_rows
from ..data.rows import Rows
from ..data.tokenization import decode
from ..evaluation.free_running import evaluate_free_running
from ..evaluation.text import draw_samples, self_bleu
from ..latent import conditions_of, each_label, sample_frames
from .arguments import Recipe, parse_recipe
from .tasks import lengths

logger = logging.getLogger(__name__)

SAMPLES_AT_ONCE = 64
# The language model whose perplexity is the reverse one: small, and the same for all.
JUDGE = """--model_type vrae --latent_size 0 --kl_schedule constant --word_dropout 0
--num_train_epochs 10 --logging_steps 1000"""


def peak_memory(device: torch.device) -> float:
    """The most memory held so far, MiB: on a GPU what torch had allocated there since the run began, on a CPU all of
    this process, the libraries' own half a GiB included, and runs before in the same process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        import psutil  # accelerate needs it too

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure_quality(model, task, data: DatasetDict, split: str, recipe: Recipe, accelerator: Accelerator) -> dict:
    """What `num_quality_samples` asks for; the model, and of text its tokenizer, are in `output_dir` already.

    Args:
        task: of the run.
        data: its splits; `split` is what reconstructions are of, and what reverse perplexity is taken on.

    Returns:
        what [`evaluate_free_running`] does; `tokens_per_second` or `frames_per_second`, in training (the median of
        what metrics.jsonl says of it), and with `generated_` before it, of drawing the samples in batches of 64. Of
        text [`_of_samples`] adds its own. `num_quality_samples` is how many; of frames no more than
        the split has.
    """
    args, count = recipe.training, recipe.training.num_quality_samples
    folder, speed = Path(args.output_dir), f"{task.unit}_per_second"
    batch_size = args.per_device_eval_batch_size
    results = evaluate_free_running(model, data[split], task.collator(), batch_size, accelerator)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    results[speed] = statistics.median(line[speed] for line in lines if line["kind"] == "train")
    model.eval()
    start = time.perf_counter()
    if task.unit == "tokens":
        # Under the conditions, if any, of rows spread over the split.
        places = spread_places(len(data[split]), count)
        rows = task.collator()(Rows(data[split]).__getitems__(places.tolist()))
        under = conditions_of(model, rows)
        samples = draw_samples(model, task.tokenizer, count, SAMPLES_AT_ONCE, args.seed, under)
        drawn = sum(map(len, task.tokenizer(samples)["input_ids"])) - count
    else:
        sizes = lengths(data[split])[:count].tolist()
        count = len(sizes)
        parts = [sizes[i : i + SAMPLES_AT_ONCE] for i in range(0, len(sizes), SAMPLES_AT_ONCE)]
        parts = [(part, each_label(model, len(part), {})) for part in parts]
        samples = [sample_frames(model, part, do_sample=True, **under) for part, under in parts]
        drawn = sum(int(sample["lengths"].sum()) for sample in samples)
    results[f"generated_{speed}"] = drawn / (time.perf_counter() - start)
    if task.unit == "tokens":
        results |= _of_samples(samples, task.tokenizer, data, split, recipe, accelerator)
    return {**results, "num_quality_samples": count}


def _of_samples(
    samples: list[str], tokenizer, data: DatasetDict, split: str, recipe: Recipe, accelerator: Accelerator
) -> dict:
    """`self_bleu` of the samples, and `reverse_ppl`: the perplexity of the real texts of `split` under a language
    model trained on the samples, which rises where these are dull, wrong or leave things out (Zhao et al. 2018).
    Beside each, with `reference_` before the name, that of as many real texts, spread over the training split and in
    the words of `tokenizer`, as the samples are.
    """
    folder = Path(recipe.training.output_dir) / "judges"
    real = decode(tokenizer, spread_rows(data["train"], len(samples))["input_ids"])
    results = {"self_bleu": self_bleu(samples)["self_bleu"], "reference_self_bleu": self_bleu(real)["self_bleu"]}
    for name, texts in (("reverse_ppl", samples), ("reference_reverse_ppl", real)):
        if not any(texts):  # a language model of nothing is none
            continue
        try:
            results[name] = _perplexity_under_a_model_of(texts, data[split], folder / name, recipe, accelerator)
        except ValueError as error:  # of next to nothing neither: a part of these texts is without a word
            logger.warning("`%s` is not measured: %s", name, error)
    return results


def _perplexity_under_a_model_of(
    texts: list[str], real: Dataset, folder: Path, recipe: Recipe, accelerator: Accelerator
) -> float:
    from .run import run  # which measures quality itself

    args = recipe.training
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in (("train", texts), ("test", real["text"])):
            (folder / f"{name}.txt").write_text("".join(" ".join(line.split()) + "\n" for line in lines), "utf-8")
    accelerator.wait_for_everyone()
    flags = f"--overwrite_output_dir --seed {args.seed} --max_length {recipe.data.max_length}".split()
    flags += ["--mixed_precision", accelerator.mixed_precision]  # which accelerate keeps for all of a process
    flags += ["--per_device_train_batch_size", str(max(1, 64 // accelerator.num_processes))]  # 64 in all
    files = {"train_file": folder / "train.txt", "test_file": folder / "test.txt", "tokenizer_name": args.output_dir}
    files["output_dir"] = folder / "model"
    flags += [word for name, path in files.items() for word in (f"--{name}", str(path))]
    return run(parse_recipe([*JUDGE.split(), *flags]))["ppl_iw"]
