"""Sharing a trained model: its card, made of the run's own results, and the push to the Hub."""

import json
import logging
import re
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.repocard import metadata_load
from safetensors import SafetensorError
from yaml import YAMLError

from .markdown import escaped

logger = logging.getLogger(__name__)

NO_ANSWER = HfHubHTTPError.__bases__[0]  # of the library by which huggingface_hub asks, which differs by version
TEMPLATE = Path(__file__).parent / "model_card_template.md"
FRAMES_TEMPLATE = Path(__file__).parent / "model_card_frames_template.md"
# As transformers' Trainer marks what it wrote.
WRITTEN = "<!-- Written by hf_vrae, anew at each run and push. In the run's folder, without this line it is kept. -->"
NOT_PUSHED = [
    "autoencoder/*",
    "checkpoint-*",
    "partial-checkpoint-*",
    "partial-results.json",
    "nan_batch.json",
    "runs/*",
    "hf_vrae/*",
    "judges/*",
    "*.log",
]

OURS = ("vrae", "vrnn", "hierarchical_vrae")
# What a card shows of results.json, under which name; see `_named`.
_RECONSTRUCTION = {
    "teacher_forced_accuracy": "accuracy{from_z}, each step told the true ones before it",
    "free_running_accuracy": "the same, each step told what was said there",
    "teacher_forced_frame_accuracy": "frame accuracy{from_z}, each told the true ones before it",
    "free_running_frame_accuracy": "the same, each told what was said there",
    "teacher_forced_rmse": "RMSE{from_z}, each told the true ones before it, in raw units",
    "free_running_rmse": "the same, each told what was said there",
}
_OF_Z = ("neg_elbo", "reconstruction", "kl", "mutual_information", "active_units", "nll_fivo")
_METRICS = {
    "nll_iw": "NLL{given}{weighted}",
    "ppl_iw": "perplexity per token{given}",
    "bits_per_character": "bits per character{given}",
    "true_nll": "NLL of the grammar that made the data: no model can do better on average",
    "neg_elbo": "-ELBO{given}",
    "reconstruction": "reconstruction",
    "kl": "KL(q(z\\|x{and_c}) \\|\\| p(z{of_c}))",
    "mutual_information": "mutual information of x and z, over {mi_num_sequences} sequences",
    "active_units": "active units",
    **_RECONSTRUCTION,
}
_METRICS_OF_FRAMES = {
    "nll_iw_per_step": "NLL per frame{given}{weighted}: all nats over all frames",
    "nll_iw_mean_of_means": "the same as the mean over the sequences",
    "nll_iw_raw_per_step": "NLL per frame{given}, in raw units",
    "bits_per_value": "bits per value{given}",
    "nll_fivo_per_step": "NLL per frame, by a particle filter of {num_samples} particles (FIVO)",
    "nll_iw": "NLL per sequence{given}{weighted}",
    "true_nll": "NLL per sequence of the process that made the data: no model can do better on average",
    "neg_elbo_per_step": "-ELBO per frame{given}",
    "kl_per_step": "KL(q \\|\\| p) per frame",
    "mutual_information": "mutual information of x and z, over {mi_num_sequences} sequences",
    "active_units": "active units",
    **_RECONSTRUCTION,
}
# The same of what the Hub shows beside other models.
_EVAL_RESULTS = {
    "nll_iw": "NLL{given}{weighted}",
    "ppl_iw": "Perplexity{given}{weighted}",
    "nll_iw_per_step": "NLL per frame{given}{weighted}",
    "kl": "KL",
}


def load(name_or_path: str):
    """A saved model in evaluation mode, on the accelerator where there is one, and its tokenizer, None for frames.

    Raises:
        ValueError: where there is no such model, or it is not one of this package.
    """
    from accelerate import PartialState
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    if not Path(name_or_path).is_dir() and name_or_path.count("/") != 1:
        raise ValueError(f"There is no folder {name_or_path!r}, and a repository's name is 'owner/name'.")
    try:
        config = AutoConfig.from_pretrained(name_or_path)
        ours = config.model_type in OURS
        model = AutoModel.from_pretrained(name_or_path) if ours else None
        of_frames = ours and config.input_size is not None
        tokenizer = None if of_frames else AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{name_or_path!r} cannot be loaded as a model: {reason}") from error
    if model is None:
        kinds = " or ".join(map(repr, OURS))
        raise ValueError(f"{name_or_path!r} is a model of type {config.model_type!r}, not {kinds}.")
    return model.to(PartialState().device).eval(), tokenizer


def write_model_card(folder: str | Path, repo_id: str | None = None) -> Path:
    """Write README.md of a model folder, from what the run left there: results.json, samples, curves, recipe.

    One that is there already is written anew, and keeps what else its metadata say, such as a license. One without the
    line `WRITTEN` is someone's own and stays as it is. What was changed in a repository alone a push writes over; its
    history keeps it.

    Args:
        folder: holds a saved model; whatever of a run's files is missing is left out of the card.
        repo_id: name under which the card loads the model; by default the folder itself.
    """
    folder = Path(folder)
    check_model_folder(folder)
    from transformers import AutoConfig

    from .training.arguments import read_recipe

    path = folder / "README.md"
    if path.is_file() and WRITTEN not in path.read_text("utf-8"):
        logger.warning("%s stays as it is, without the line %s: to have it written anew delete it", path, WRITTEN)
        return path
    config = AutoConfig.from_pretrained(folder)
    results = _read_json(folder / "results.json")
    recipe = read_recipe(folder)
    name, source, run = (repo_id or folder.resolve().name).split("/")[-1], _data_source(recipe), results.get("run", {})
    of_text = config.input_size is None
    named = config.condition_labels or {}
    card = ModelCard.from_template(
        _metadata(path, config, results, recipe, name),
        template_path=str(TEMPLATE if of_text else FRAMES_TEMPLATE),
        written=WRITTEN,
        model_name=name,
        repo_id=repo_id or folder.as_posix(),
        introduction=" ".join([_introduction(config, run, source), *_conditions(config)]),
        config=config,
        split=results.get("split", "evaluated"),
        num_sequences=f"{results.get('num_sequences', 0):,}",
        curves=(folder / "curves.png").is_file(),
        run=run,
        recipe=bool(recipe),
        settings=_settings(recipe),
        metrics=_table(_METRICS if of_text else _METRICS_OF_FRAMES, results, config),
        labels=_literal({name: values[0] for name, values in named.items()}),
        **(_of_text if of_text else _of_frames)(folder, config, results),
    )
    card.save(path)
    return path


def _metadata(card: Path, config, results: dict, recipe: dict, name: str) -> ModelCardData:
    """The head of a card, by which the Hub finds a model; of an earlier one it keeps what is not ours to say."""
    try:
        before = (metadata_load(card) if card.is_file() else None) or {}
    except (YAMLError, ValueError) as error:
        raise ValueError(f"The metadata of {str(card)!r} cannot be read: {error}. Mend or delete the file.") from error
    data, training = recipe.get("data", {}), recipe.get("training", {})
    dataset = data.get("dataset_name")
    bases = [training.get(f"{part}_name_or_path") for part in ("model", "encoder", "decoder")]
    # The pipeline of text takes causal language models alone; others have no latents.
    causal = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    ours = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation" if causal else None,
        "tags": [config.model_type, "variational-autoencoder", "hf_vrae"],
        "datasets": [dataset] if _on_the_hub(dataset) else None,
        "base_model": [base for base in dict.fromkeys(bases) if _on_the_hub(base)],
        "model_name": name,
        "eval_results": _eval_results(results, recipe, config),
    }
    ours = {field: value for field, value in ours.items() if value}
    tags = before.get("tags") or []
    ours["tags"] += [tag for tag in ([tags] if isinstance(tags, str) else tags) if tag not in ours["tags"]]
    kept = {field: value for field, value in before.items() if field not in ("model-index", "pipeline_tag")}
    return ModelCardData(**(kept | ours))


def _on_the_hub(name: str | None) -> bool:
    return name is not None and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is not None and not Path(name).exists()


def _of_text(folder: Path, config, results: dict) -> dict:
    # Not `splitlines`: a text may hold what that takes for an end.
    path = folder / "samples.jsonl"
    lines = path.read_text("utf-8").split("\n")[:-1] if path.is_file() else []
    shown = json.loads(lines[-1]) if lines else {"reconstructions": [], "samples": []}
    return {
        "num_tokens": f"{results.get('num_tokens', 0):,}",
        "example": _literal(
            next(filter(str.strip, [*(pair[0] for pair in shown["reconstructions"]), *shown["samples"]]), "some text")
        ),
        "reconstructions": [[escaped(text) for text in pair] for pair in shown["reconstructions"]],
        "samples": [escaped(text) for text in shown["samples"]],
    }


def _of_frames(folder: Path, config, results: dict) -> dict:
    shape = f"2, 20, {config.input_size}"
    start = "labels=labels, " if config.condition_labels else "latents=model.prior().sample((1,)), "
    draws = {"bernoulli": f"bernoulli(torch.full(({shape}), 0.1))", "categorical": f"zeros({shape})"}
    return {
        "num_steps": f"{results.get('num_steps', 0):,}",
        "units": results.get("units"),
        "example": draws.get("bernoulli" if config.head == "nade" else config.head, f"randn({shape})"),
        "start": "" if config.model_type == "vrnn" else start,
        "pictures": (folder / "samples.png").is_file(),
    }


def _introduction(config, run: dict, source: str) -> str:
    """What the model is, in a paragraph."""
    kind, size, of_vrae = config.rnn_type.upper(), config.latent_size, config.model_type == "vrae"
    unit, whole = ("token", "language model") if config.input_size is None else ("frame", "network over frames")
    trained = f"trained with hf_vrae on {source}"
    parameters = f", {run['num_parameters']:,} parameters" if run else ""
    if not size:
        architecture = f"{_kind(config, 'decoder')} decoder" if of_vrae else f"{kind} with feature extractors"
        recurrent = "" if of_vrae and config.decoder_type != "rnn" else "recurrent "
        return (
            f"A {recurrent}{whole} without latents ({architecture}{parameters}), {trained}: what a model "
            "with latents is held against."
        )
    if config.model_type == "vrnn":
        seen = f"and the {unit}s after it" if config.smoothing_posterior else "and those before it"
        return (
            f"A variational recurrent neural network ({kind}{parameters}), {trained}. Each {unit} has a "
            f"latent vector z of {size} dimensions, whose prior the {unit}s before it give; its posterior also sees "
            f"the {unit} itself {seen}."
        )
    if config.model_type == "hierarchical_vrae":
        latents = (
            f"Its latents are of {2 + len(config.section_sizes)} scales: z of the whole sequence, {size} dimensions, "
            f"and {config.segment_latent_size} of each part, whose prior z of the whole and of the parts before it "
            "give; each segment is decoded from its own."
        )
        if not config.segment_latent_size:
            latents = f"Its one latent is z of the whole sequence, {size} dimensions, of which it makes each segment."
        return (
            f"A hierarchical variational autoencoder ({kind} encoder, conductor and decoder{parameters}), "
            f"{trained}. {latents}"
        )
    directions = "bidirectional " if config.encoder_type == "rnn" and config.bidirectional_encoder else ""
    recurrent = "recurrent " if "rnn" in (config.encoder_type, config.decoder_type) else ""
    parts = f"{directions}{_kind(config, 'encoder')} encoder and {_kind(config, 'decoder')} decoder"
    length = "unit " if config.posterior == "vmf" else ""
    return (
        f"A variational {recurrent}autoencoder ({parts}{parameters}), {trained}. It encodes a sequence "
        f"into a latent {length}vector z of {size} dimensions and decodes any such vector into a sequence"
        f"{'' if config.input_size is None else ' of frames'}."
    )


def _conditions(config) -> list[str]:
    """What the model is told, in a sentence; none where that is nothing."""
    told = [f"`{name}` ({_listed(values)})" for name, values in (config.condition_labels or {}).items()]
    told += [f"the number `{name}`" for name in config.condition_attributes or []]
    told += [f"a vector of {config.condition_size} numbers"] if config.condition_size else []
    inferred = " Where it is not told the label, it infers it." if config.label_classifier else ""
    sentence = (
        f"It is conditional, on {', '.join(told)}: likelihoods and perplexities are of data given these.{inferred}"
    )
    return [sentence] if told else []


def _listed(values: list[str], most: int = 6) -> str:
    named = ", ".join(escaped(value) for value in values[:most])
    return named if len(values) <= most else f"{named} and {len(values) - most} others"


def _kind(config, part: str) -> str:
    """What the encoder, or the decoder, of a VRAE is."""
    body, kind = getattr(config, f"{part}_config"), getattr(config, f"{part}_type")
    if body is not None:
        return body["model_type"]
    return {"rnn": config.rnn_type.upper(), "independent": "time-less"}.get(kind, kind)


def push_folder(folder: str | Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Push a run's folder in one commit: model, code, tokenizer, card, numbers, curves; not what `NOT_PUSHED` names.

    Args:
        folder: see [`write_model_card`], which is called once more for the repository's name.
        repo_id: "name" or "owner/name"; made where it does not exist.
        private: for a new repository, which else is as its owner's are by default.
        token: by default the one of `hf auth login`.

    Returns:
        the commit's address.

    Raises:
        OSError: where the Hub does not answer, or refuses.
    """
    check_model_folder(Path(folder))
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        write_model_card(folder, repo_id)
        return api.upload_folder(
            folder_path=folder, repo_id=repo_id, ignore_patterns=NOT_PUSHED, commit_message="Push model with hf_vrae"
        ).commit_url
    except HfHubHTTPError:  # the Hub says itself why
        raise
    except NO_ANSWER as error:
        raise ConnectionError(
            f"The Hub at {api.endpoint} cannot be reached: {error}. The model is in {str(folder)!r}; push it later: "
            "python scripts/push_to_hub.py."
        ) from error


def check_model_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} holds no saved model: there is no config.json.")


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def _settings(recipe: dict[str, dict]) -> str:
    """What a recipe says that is not a default, as YAML."""
    import yaml

    from .training.arguments import SECTIONS

    said = {}
    for section, kind in SECTIONS.items():
        defaults = vars(kind())
        own = {k: v for k, v in recipe.get(section, {}).items() if v != defaults.get(k)}
        said |= {section: own} if own else {}
    return yaml.safe_dump(said, sort_keys=False).strip() if said else ""


def _data_source(recipe: dict[str, dict]) -> str:
    data = recipe.get("data", {})
    if data.get("dataset_name"):
        return f"the data set `{data['dataset_name']}`"
    if data.get("train_file"):
        return f"the file `{Path(data['train_file']).name}`"
    if data.get("builtin") == "frames":
        return "hf_vrae's built-in frames"
    return "hf_vrae's built-in corpus" if data else "data that are not named"


def _eval_results(results: dict, recipe: dict, config) -> list[EvalResult]:
    kind, dataset = "text" if config.input_size is None else "frames", recipe.get("data", {}).get("dataset_name")
    return [
        EvalResult(
            task_type="text-generation" if kind == "text" else "other",
            dataset_type=dataset if _on_the_hub(dataset) else kind,
            dataset_name=_data_source(recipe).replace("`", ""),
            dataset_split=results.get("split", "evaluated"),
            metric_type=metric,
            metric_name=name,
            metric_value=round(results[metric], 3),
        )
        for metric, name in _named(_EVAL_RESULTS, results, config).items()
    ]


def _named(metrics: dict[str, str], results: dict, config) -> dict[str, str]:
    """Those of the metrics that there are, by their names for this model; without z none is of z, and the likelihood
    is no bound of samples, but exact."""
    with_z, conditional = config.latent_size > 0, bool(_conditions(config))
    words = results | {
        "weighted": f", importance-weighted with {results.get('num_samples')} samples" * with_z,
        "from_z": " of reconstruction from z" * with_z,
        "given": " given the conditions" * conditional,
        "and_c": ", c" * conditional,
        "of_c": "\\|c" * conditional,
    }
    there = {name: label for name, label in metrics.items() if name in results}
    return {name: label.format(**words) for name, label in there.items() if with_z or not name.startswith(_OF_Z)}


def _table(metrics: dict[str, str], results: dict, config) -> list[tuple[str, str]]:
    rows = [(label, results[name]) for name, label in _named(metrics, results, config).items()]
    return [(label, str(value) if isinstance(value, int) else f"{value:.3f}") for label, value in rows]


def _literal(value) -> str:
    """A string, or a dictionary of strings, as Python code."""
    return json.dumps(value, ensure_ascii=False)
