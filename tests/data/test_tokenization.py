import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Tokenizer

from hf_vrae.data.tokenization import add_marks, decode, load_tokenizer, train_tokenizer

TEXTS = ["the king sold a letter .", "the queen sold two letters .", "naïve wörds and <unk> here"] * 20


@pytest.mark.parametrize(("kind", "size"), [("word", 50), ("bpe", 300), ("char", 50)])
def test_round_trip_through_a_folder_without_our_classes(kind, size, tmp_path):
    train_tokenizer(TEXTS, kind, size).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [
        0,
        1,
        2,
        3,
    ]
    batch = tokenizer(TEXTS[:3], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        real = ids[: sum(mask)]
        assert real[0] == 2 and real[-1] == 3 and 3 not in real[:-1]
    assert decode(tokenizer, batch["input_ids"]) == TEXTS[:3]
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1 < size


def test_batches_of_texts_train_the_same_tokenizer():
    one = train_tokenizer(TEXTS).get_vocab()
    assert train_tokenizer([TEXTS[:7], TEXTS[7:]]).get_vocab() == one


def test_vocabulary_cap_and_minimum_count():
    assert len(train_tokenizer(TEXTS, vocab_size=6)) == 6
    rare = train_tokenizer([*TEXTS, "once"], min_frequency=2)
    assert "once" not in rare.get_vocab() and rare("once")["input_ids"] == [2, 1, 3]


@pytest.mark.parametrize(("kind", "smallest"), [("word", 5), ("char", 5), ("bpe", 260)])
def test_vocabulary_smaller_than_the_special_tokens(kind, smallest):
    with pytest.raises(
        ValueError, match=f"`vocab_size` must be at least {smallest} for tokenizer_type='{kind}'.*got 4"
    ):
        train_tokenizer(TEXTS, kind, 4)
    assert len(train_tokenizer(TEXTS, kind, smallest)) <= smallest


def test_a_literal_unk_in_the_corpus_is_the_special_token():
    tokenizer = train_tokenizer(TEXTS)
    assert tokenizer("and <unk> here")["input_ids"][2] == tokenizer.unk_token_id == 1
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_decoding_keeps_unk_and_stops_at_the_end():
    tokenizer = train_tokenizer(TEXTS)
    king, sold = tokenizer("king sold")["input_ids"][1:-1]
    assert decode(tokenizer, [[2, king, 1, sold, 3, king, 0], [king, 0, 0], [2, 3]]) == ["king <unk> sold", "king", ""]


def existing(folder, **specials):
    """A tokenizer of another maker: with other special tokens, and no marks around a sequence."""
    vocab = {token: i for i, token in enumerate(["the", "king", *specials.values()])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=specials.get("unk_token")))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **specials).save_pretrained(folder)
    return load_tokenizer(str(folder))


def test_a_tokenizer_of_berts_family_marks_with_its_own_tokens(tmp_path):
    specials = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = existing(tmp_path, **specials)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("[CLS]", "[SEP]")
    assert tokenizer.convert_ids_to_tokens(tokenizer("the king")["input_ids"]) == ["[CLS]", "the", "king", "[SEP]"]


def test_a_class_that_makes_its_own_marks_keeps_ours_when_it_is_loaded_again(tmp_path):
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581the", -1.0), ("\u2581king", -2.0)]
    T5Tokenizer(vocab, extra_ids=0).save_pretrained(tmp_path / "t5")
    tokenizer = load_tokenizer(str(tmp_path / "t5"))
    tokenizer.save_pretrained(tmp_path / "ours")
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "ours")):
        batch = one(["the king"])
        assert one.convert_ids_to_tokens(batch["input_ids"][0]) == ["<s>", "\u2581the", "\u2581king", "</s>"]
        assert set(batch) == {"input_ids", "attention_mask"} and decode(one, batch["input_ids"]) == ["the king"]


def test_missing_special_tokens_are_added(tmp_path):
    tokenizer = existing(tmp_path, unk_token="[UNK]", eos_token="<|end|>")
    assert (tokenizer.pad_token, tokenizer.bos_token) == ("<pad>", "<s>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("the king")["input_ids"]) == ["<s>", "the", "king", "<|end|>"]


def test_one_token_for_both_marks(tmp_path):
    """As GPT-2 has it."""
    tokenizer = existing(tmp_path, unk_token="<e>", bos_token="<e>", eos_token="<e>", pad_token="<e>")
    ids = add_marks(tokenizer)("the king")["input_ids"]
    assert ids[0] == ids[-1] and decode(tokenizer, [ids]) == ["the king"]
