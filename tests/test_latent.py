import numpy as np
import pytest
import torch

from hf_vrae import latent
from hf_vrae.evaluation.text.generated import path_smoothness
from hf_vrae.latent import (
    attribute_vector,
    decode_latents,
    draw_latents,
    encode_texts,
    interpolate,
    interpolate_frames,
    interpolate_texts,
    move_frames,
    move_texts,
    reconstruct_frames,
    reconstruct_texts,
    sample_frames,
    sample_texts,
)
from hf_vrae.measure import walk_frames
from hf_vrae.measure_labels import transfer_file
from tests.modeling.test_modeling_vrnn import make_model as make_vrnn
from tests.models import make_frame_model, make_model

TEXTS = ["the king sold a letter .", "our queen did not watch many trains ."]


@pytest.fixture
def pair(tokenizer):
    model = make_model(vocab_size=len(tokenizer))
    model.generation_config.max_length = 12
    return model, tokenizer


def test_straight_path():
    path = interpolate(torch.tensor([0.0, 2.0]), torch.tensor([4.0, 0.0]), 5)
    assert path.tolist() == [[0, 2], [1, 1.5], [2, 1], [3, 0.5], [4, 0]]


def test_spherical_path_keeps_the_norm_and_goes_by_equal_angles():
    start, end = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    path = interpolate(start, end, 7, spherical=True)
    torch.testing.assert_close(path.norm(dim=-1), torch.full((7,), 3.0))
    torch.testing.assert_close(torch.atan2(path[:, 1], path[:, 0]), torch.linspace(0, torch.pi / 2, 7))
    torch.testing.assert_close(path[[0, -1]], torch.stack([start, end]))


def test_spherical_path_between_parallel_vectors_is_straight():
    start = torch.tensor([1.0, 2.0])
    for end in (start, 3 * start, -start):
        torch.testing.assert_close(interpolate(start, end, 3, spherical=True), interpolate(start, end, 3))


@pytest.mark.parametrize("spherical", [False, True])
def test_a_path_between_latents_of_different_lengths(spherical):
    """Of several scales, NaN is what a sequence has not: its other end keeps what it has, and the rest has a path."""
    start, end = torch.tensor([3.0, 0.0, 1.0, 2.0]), torch.tensor([0.0, 3.0, torch.nan, torch.nan])
    path = interpolate(start, end, 3, spherical)
    torch.testing.assert_close(path[[0, -1]], torch.stack([start, end]), equal_nan=True)
    torch.testing.assert_close(path[1, :2], interpolate(start[:2], end[:2], 3, spherical)[1])
    assert path[1, 2:].isnan().all()


def test_a_path_has_two_ends():
    with pytest.raises(ValueError, match="`num_steps` must be at least 2, both ends, got 1"):
        interpolate(torch.zeros(2), torch.ones(2), 1)


def test_attribute_vector_is_the_difference_of_means():
    with_attribute, without = torch.randn(50, 3) + torch.tensor([5.0, 0, 0]), torch.randn(70, 3)
    expected = with_attribute.mean(0) - without.mean(0)
    torch.testing.assert_close(attribute_vector(with_attribute, without), expected)


def test_encoding_in_batches_is_encoding(pair):
    model, tokenizer = pair
    texts = TEXTS * 5
    torch.testing.assert_close(
        encode_texts(model, tokenizer, texts, batch_size=3), encode_texts(model, tokenizer, texts, batch_size=64)
    )
    for bad, message in (([], "one text at least, got none"), (["x", " "], "no empty one, but number 1 is ' '")):
        with pytest.raises(ValueError, match=message):
            encode_texts(model, tokenizer, bad)


def test_rows_of_text(pair):
    model, tokenizer = pair
    decoded = decode_latents(model, tokenizer, encode_texts(model, tokenizer, TEXTS))
    assert [row["reconstruction"] for row in reconstruct_texts(model, tokenizer, TEXTS)] == decoded
    path = interpolate_texts(model, tokenizer, TEXTS, num_steps=4, spherical=True)
    assert [row["t"] for row in path] == [0, 0.3333, 0.6667, 1] and [path[0]["text"], path[-1]["text"]] == decoded
    moved = move_texts(model, tokenizer, TEXTS, TEXTS[:1], TEXTS[1:], strengths=[0.0, 1.0])
    assert [row["moved"] for row in moved if row["strength"] == 0.0] == decoded
    # From the text without the attribute, one whole vector leads to the text with it.
    assert moved[3]["moved"] == decoded[0]
    with pytest.raises(ValueError, match="two ends of the path, got 1"):
        interpolate_texts(model, tokenizer, TEXTS[:1])


@pytest.mark.parametrize("learn_prior", [True, False])
def test_labels_are_of_all_rows_or_of_each(tokenizer, learn_prior):
    model = make_model(vocab_size=len(tokenizer), condition_labels={"kind": ["a", "b"]}, learn_prior=learn_prior)
    model.generation_config.max_length = 5
    rows = [sample_texts(model, tokenizer, 2, seed=1, labels=labels) for labels in ("b", ["b"], {"kind": ["b", "b"]})]
    assert [row["kind"] if "kind" in row else row["label"] for row in rows[0]] == ["b", "b"]
    assert len({tuple(row["text"] for row in same) for same in rows}) == 1
    assert draw_latents(model, 5, labels="b").shape == draw_latents(model, 5, labels=["b"] * 5).shape == (5, 6)
    for wrong in (["a", "b", "a"], {"kind": ["a", "b", "a"]}):
        with pytest.raises(ValueError, match="one value for all 2, or one of each; got 3"):
            sample_texts(model, tokenizer, 2, labels=wrong)
        with pytest.raises(ValueError, match="one value for all 2, or one of each; got 3"):
            reconstruct_texts(model, tokenizer, TEXTS, source_labels=wrong)


def test_samples_stand_each_under_their_own_attributes(tokenizer):
    model = make_model(vocab_size=len(tokenizer), condition_attributes=["length"])
    given = torch.arange(130.0).unsqueeze(1)
    rows = sample_texts(model, tokenizer, 130, seed=1, attributes=given, max_length=9)
    z = draw_latents(model, 130, torch.Generator().manual_seed(1), attributes=given)
    assert [row["text"] for row in rows] == decode_latents(model, tokenizer, z, attributes=given, max_length=9)
    of_all, of_each = (
        sample_texts(model, tokenizer, 70, seed=1, attributes=rows, max_length=9)
        for rows in (given[3:4], given[3:4].expand(70, 1))
    )
    assert of_all == of_each


def test_samples_stand_under_every_combination_of_labels():
    model = make_model(condition_labels={"kind": ["a", "b"], "mood": ["p", "q", "r", "s"]})
    labels = latent.each_label(model, 9, {})["labels"]
    assert labels["kind"] == list("ababababa") and labels["mood"] == list("ppqqrrssp")
    assert latent.each_label(make_model(), 9, {}) == {}


def test_what_a_model_cannot_do_is_refused(tokenizer):
    without, without_of_frames = make_model(vocab_size=len(tokenizer), latent_size=0), make_frame_model(latent_size=0)
    frames = list(torch.randn(2, 3, without_of_frames.config.input_size))
    for walk in (
        lambda: reconstruct_texts(without, tokenizer, TEXTS),
        lambda: reconstruct_frames(without_of_frames, frames),
        lambda: transfer_file(without, tokenizer, "train.tsv", "test.tsv"),
        lambda: interpolate_texts(without, tokenizer, TEXTS),
        lambda: move_texts(without, tokenizer, TEXTS, TEXTS[:1], TEXTS[1:]),
        lambda: interpolate_frames(without_of_frames, frames),
        lambda: move_frames(without_of_frames, frames, frames, frames),
    ):
        with pytest.raises(ValueError, match="`latent_size` of this model is 0: it has no z to decode or move"):
            walk()
    with pytest.raises(ValueError, match="`guidance_scale` is of a conditional model, which a vrnn is not"):
        sample_texts(make_vrnn(vocab_size=len(tokenizer)), tokenizer, 2, guidance_scale=2.0)
    conditional = make_model(vocab_size=len(tokenizer), condition_labels={"kind": ["a", "b"]})
    with pytest.raises(ValueError, match="`labels` must say one value for all 1, or one of each; got 2"):
        reconstruct_texts(conditional, tokenizer, TEXTS[:1], ["a"], labels=["a", "b"])


def test_labels_that_are_not_changed_stay(tokenizer, monkeypatch):
    kinds = {"kind": ["a", "b"], "mood": ["p", "q"]}
    model, asked = make_model(vocab_size=len(tokenizer), condition_labels=kinds), []
    monkeypatch.setattr(latent, "decode_latents", lambda *args, **options: asked.append(options) or ["new"] * 2)
    own = {"kind": "a", "mood": "q"}
    for labels in ({"kind": "b"}, {"kind": ["b", "a"]}, None):
        reconstruct_texts(model, tokenizer, TEXTS, own, labels=labels)
    wanted = [["b", "b"], ["b", "a"], ["a", "a"]]
    assert [options["labels"] for options in asked] == [{"kind": kind, "mood": ["q", "q"]} for kind in wanted]


def test_samples_are_under_what_is_said_in_ids_too(tokenizer, monkeypatch):
    model, asked = make_model(vocab_size=len(tokenizer), condition_labels={"kind": ["a", "b"]}), []
    monkeypatch.setattr(latent, "draw_texts", lambda *args, under, **more: asked.append(under) or ["new"] * 2)
    sample_texts(model, tokenizer, 2, class_ids=[[1], [1]])
    sample_texts(model, tokenizer, 2)
    assert asked == [{"class_ids": [[1], [1]]}, {"labels": {"kind": ["a", "b"]}}]


def test_samples_repeat_by_seed_and_begin_as_asked(pair, monkeypatch):
    model, tokenizer = pair
    for options in ({}, {"do_sample": True}):
        first, again, other = (sample_texts(model, tokenizer, 5, seed=seed, **options) for seed in (1, 1, 2))
        assert len(first) == 5 and first == again != other
    assert sample_texts(model, tokenizer, 5, do_sample=True) != sample_texts(model, tokenizer, 5, do_sample=True)
    for row in sample_texts(model, tokenizer, 5, prefix="our king", num_beams=2):
        assert row["text"].startswith("our king")
    # A few at a time, and words by other numbers than z: the same ones would tie x to z beyond p(x|z).
    monkeypatch.setattr(model, "generate", lambda latents, **options: [(z, torch.randn(len(z))) for z in latents])
    monkeypatch.setattr(latent, "decode", lambda tokenizer, drawn: drawn)
    rows = [row["text"] for row in sample_texts(model, tokenizer, 130, seed=1)]
    z = draw_latents(model, 130, torch.Generator().manual_seed(1))
    assert torch.equal(torch.stack([own for own, _ in rows]), z) and not torch.equal(rows[0][1], z[0])


def test_paths_and_moves_of_unit_vectors_stay_on_their_sphere(tokenizer, monkeypatch):
    """The decoder of a von Mises-Fisher posterior knows no other z."""
    seen = []
    model, frame_model = make_model(vocab_size=len(tokenizer), posterior="vmf"), make_frame_model(posterior="vmf")
    for each in model, frame_model:
        generate = each.generate

        def spy(*args, generate=generate, **kwargs):
            seen.append(kwargs["latents"])
            return generate(*args, **kwargs)

        monkeypatch.setattr(each, "generate", spy)
    interpolate_texts(model, tokenizer, TEXTS, num_steps=4, max_length=9)
    move_texts(model, tokenizer, TEXTS, TEXTS[:1], TEXTS[1:], strengths=[0.0, 3.0], max_length=9)
    path_smoothness(model, tokenizer, TEXTS, num_steps=3, max_length=9)
    sequences = [np.random.rand(5, 3), np.random.rand(4, 3)]
    interpolate_frames(frame_model, sequences, 3)
    move_frames(frame_model, sequences, sequences[:1], sequences[1:], strengths=[2.0])
    assert len(seen) >= 6
    norms = torch.cat([z.norm(dim=-1) for z in seen])
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_frames_are_moved_towards_the_attribute():
    """By one whole vector from the sequence without it to the one that has it."""
    model, (has, lacks) = make_frame_model(), np.random.rand(2, 5, 3)
    moved = move_frames(model, [lacks], [has], [lacks])["moved 1"]
    np.testing.assert_allclose(moved, reconstruct_frames(model, [has])["reconstruction"], rtol=1e-4, atol=1e-5)


def test_what_is_asked_of_a_walk_is_done(pair, tmp_path, monkeypatch):
    """A great circle, and frames that are drawn."""
    np.savez(tmp_path / "x.npz", x=np.random.rand(4, 5, 3), y=[0, 1, 0, 1])
    model, path, seen = make_frame_model(), str(tmp_path / "x.npz"), []
    of = {"interpolate": {}, "reconstruct": {}, "attribute": {"examples": "1", "without": "0"}}
    for mode, more in of.items():
        greedy, again, drawn = (walk_frames(model, mode, path, **more, do_sample=do) for do in (False, False, True))
        (name,) = (name for name in greedy if name in ("path", "reconstruction", "moved 1"))
        assert np.array_equal(greedy[name], again[name]) and not np.isclose(greedy[name], drawn[name]).any()
    greedy, drawn = [], []
    for made, do_sample in ((greedy, False), (drawn, True)):
        torch.manual_seed(0)
        made.append(walk_frames(model, "sample", count=2, max_length=3, do_sample=do_sample)["sample"])
    assert not np.isclose(greedy, drawn).any()
    monkeypatch.setattr(latent, "interpolate", lambda *args: seen.append(args[3]) or interpolate(*args))
    for spherical in (False, True):
        interpolate_texts(*pair, TEXTS, 3, spherical)
        walk_frames(model, "interpolate", path, spherical=spherical)
    assert seen == [False, False, True, True]


def test_words_are_drawn_from_the_whole_distribution(pair):
    """Whatever the model's own configuration says; of a latent per token by the seed too."""
    trained, tokenizer = pair
    for model in (trained, make_vrnn(vocab_size=len(tokenizer))):
        options = {"seed": 1, "do_sample": True, "max_length": 9}
        rows = sample_texts(model, tokenizer, 5, **options)
        model.generation_config.update(top_k=1, temperature=0.1)
        assert sample_texts(model, tokenizer, 5, **options) == rows
        assert sample_texts(model, tokenizer, 5, **options | {"seed": 2}) != rows


def test_texts_are_decoded_and_encoded_under_the_labels_that_are_said(tokenizer):
    model, said = make_model(vocab_size=len(tokenizer), condition_labels={"kind": ["a", "b"]}), ["a", "b"]
    model.generation_config.max_length = 12
    z = draw_latents(model, 2, torch.Generator().manual_seed(1), labels=said)
    rows = sample_texts(model, tokenizer, 2, seed=1, labels=said)
    assert [row["text"] for row in rows] == decode_latents(model, tokenizer, z, labels=said)
    z = encode_texts(model, tokenizer, TEXTS, labels=said)
    assert not torch.allclose(z, encode_texts(model, tokenizer, TEXTS))
    for other, wanted in (({}, said), ({"labels": "b"}, ["b", "b"])):
        rows = reconstruct_texts(model, tokenizer, TEXTS, said, **other)
        assert [row["reconstruction"] for row in rows] == decode_latents(model, tokenizer, z, labels=wanted)


def test_a_walk_goes_from_those_without_the_attribute_to_those_with_it(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.rand(2, 5, 3), y=[1, 0])
    model, path = make_frame_model(), str(tmp_path / "x.npz")
    moved = walk_frames(model, "attribute", path, [1], examples="1", without="0")["moved 1"]
    wanted = walk_frames(model, "reconstruct", path, [0])["reconstruction"]
    np.testing.assert_allclose(moved, wanted, rtol=1e-4, atol=1e-5)


def test_lengths_are_on_the_way_too():
    """From the first one's to the second's; of a latent per frame there is a way for those that both have."""
    sequences = [np.random.rand(8, 3), np.random.rand(4, 3)]
    for model, lengths in ((make_frame_model(), [8, 7, 6, 5, 4]), (make_vrnn("frames", input_size=3), [4] * 5)):
        way = interpolate_frames(model, sequences, 5)
        assert way["lengths"].tolist() == lengths and (~np.isnan(way["path"][..., 0])).sum(1).tolist() == lengths


def test_samples_end_where_a_model_says_that_has_learnt_to():
    model = make_frame_model(predict_length=True)
    torch.nn.init.zeros_(model.length_head.weight)
    for bias, lengths in ((1.0, [1, 1]), (-1.0, [6, 6])):
        torch.nn.init.constant_(model.length_head.bias, bias)
        assert sample_frames(model, [4, 6])["lengths"].tolist() == lengths
