"""Tokenizers that write `<s> w1 .. wn </s>`: trained here with `tokenizers`, or any other made to do so."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SPECIAL_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
"""The special tokens in the order of their ids, 0 to 3."""


def train_tokenizer(
    texts: Iterable[str] | Iterable[list[str]],
    kind: Literal["word", "bpe", "char"] = "word",
    vocab_size: int = 10_000,
    min_frequency: int = 1,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer which `AutoTokenizer` then loads without this package.

    Args:
        texts: strings, or batches of them.
        kind: "word" splits at white space, "bpe" is byte-level byte-pair encoding (nothing is unknown to it), "char"
            takes single characters.
        vocab_size: the most tokens, special ones included.
        min_frequency: leave out words or characters seen less often, or stop merging pairs seen less often.

    Raises:
        ValueError: where `vocab_size` cannot hold the special tokens and one token more.
    """
    specials = list(SPECIAL_TOKENS.values())
    # Byte-level BPE needs its 256 bytes whatever the text.
    smallest = len(specials) + (256 if kind == "bpe" else 1)
    if vocab_size < smallest:
        raise ValueError(
            f"`vocab_size` must be at least {smallest} for tokenizer_type='{kind}' (its special tokens and "
            f"{smallest - len(specials)} more), got {vocab_size}."
        )
    options = {"vocab_size": vocab_size, "special_tokens": specials, "min_frequency": min_frequency}
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False, **options)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL_TOKENS["unk_token"]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if kind == "char":
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
            tokenizer.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(show_progress=False, **options)
    tokenizer.train_from_iterator(_without_specials(texts), trainer)
    return add_marks(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS))


def _without_specials(texts: Iterable[str] | Iterable[list[str]]) -> Iterator[list[str]]:
    """Texts without literal special tokens: a corpus that holds `<unk>` would otherwise give it a second id."""
    for batch in texts:
        batch = [batch] if isinstance(batch, str) else batch
        for token in SPECIAL_TOKENS.values():
            batch = [text.replace(token, " ") if token in text else text for text in batch]
        yield batch


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerFast:
    """An existing tokenizer, from the Hub or a folder, with the special tokens and marks that a VRAE needs."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"No tokenizer can be loaded from {name_or_path!r}: it must be a folder, or 'owner/name' of the Hub, "
            f"which holds one, as those of models of text do. {reason}"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"`tokenizer_name` must name a fast tokenizer, got {type(tokenizer).__name__}.")
    # BERT's family marks a sequence with [CLS] and [SEP].
    missing = {name: token for name, token in SPECIAL_TOKENS.items() if getattr(tokenizer, name) is None}
    for name, twin in (("bos_token", tokenizer.cls_token), ("eos_token", tokenizer.sep_token)):
        if name in missing and twin is not None:
            missing[name] = twin
    if missing:
        tokenizer.add_special_tokens(missing)
    # Of a plain class: that of T5 or BERT would make marks and inputs of its own again when it is loaded.
    specials = {name: getattr(tokenizer, name) for name in SPECIAL_TOKENS}
    return add_marks(PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **specials))


def add_marks(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Make a tokenizer write `<s> ... </s>` around each sequence."""
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        special_tokens=[(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)],
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def decode(tokenizer: PreTrainedTokenizerFast, sequences: Iterable[Sequence[int]]) -> list[str]:
    """Text of token ids up to `</s>`, without marks and padding.

    Unlike `batch_decode(skip_special_tokens=True)` it keeps `<unk>`, which many corpora hold as an ordinary word.
    """
    marks = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    texts = []
    for sequence in sequences:
        ids = sequence.tolist() if hasattr(sequence, "tolist") else list(sequence)  # of a GPU's a row at a time
        start = 1 if ids[:1] == [tokenizer.bos_token_id] else 0  # some tokenizers use one token for both marks
        if tokenizer.eos_token_id in ids[start:]:
            ids = ids[: ids.index(tokenizer.eos_token_id, start)]
        texts.append(tokenizer.decode([token for token in ids if token not in marks]).strip())
    return texts
