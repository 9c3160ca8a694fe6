"""Kneser-Ney noise, against the counts of a corpus small enough to count by hand."""

import pytest
import torch

from hf_vrae.data.noising import KneserNeyNoise

START, END, A, B, C = range(5)
# Bigrams: <s>a <s>a <s>b, ab ab, ba, bc b</s>, c</s>, a</s>
CORPUS = [[START, A, B, A, END], [START, A, B, C, END], [START, B, END]]


def test_the_probabilities_are_those_of_the_paper():
    noise = KneserNeyNoise(CORPUS, 0.5, 6)
    # followers / bigrams: <s> 2/3, </s> 0, a 2/3, b 3/3, c 1/1, one never seen 0
    torch.testing.assert_close(noise.gamma, 0.5 * torch.tensor([2 / 3, 0, 2 / 3, 1, 1, 0]))
    # preceders among the 8 kinds: </s> 3, a 2, b 2, c 1
    q = noise.cumulative.diff(prepend=torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(q, torch.tensor([0, 3, 2, 2, 1, 0], dtype=torch.float64) / 8)


def test_words_are_replaced_that_often_by_those():
    noise, rows = KneserNeyNoise(CORPUS, 1.0, 6), 20_000
    input_ids = torch.tensor([START, A, B, END, 5]).expand(rows, -1)
    labels = torch.tensor([A, B, END, -100]).expand(rows, -1)
    read, targets = noise(input_ids, labels)
    assert (read[:, 0] == START).all() and (targets[:, 3] == -100).all()
    assert (read[:, 3] == END).all()  # nothing follows it
    q, gamma = torch.tensor([0, 3, 2, 2, 1, 0]) / 8, {START: 2 / 3, A: 2 / 3, B: 1.0}
    of_words = [(read[:, 1], A, A), (read[:, 2], B, B)]
    for got, before, was in (*of_words, (targets[:, 0], START, A), (targets[:, 2], B, END)):
        wanted = gamma[before] * q + (1 - gamma[before]) * torch.nn.functional.one_hot(torch.tensor(was), 6)
        torch.testing.assert_close(got.bincount(minlength=6) / rows, wanted, atol=0.015, rtol=0)


def test_no_share_no_noise():
    input_ids = torch.tensor(CORPUS[:2])
    read, targets = KneserNeyNoise(CORPUS, 0.0, 6)(input_ids, input_ids[:, 1:])
    assert torch.equal(read, input_ids[:, :-1]) and torch.equal(targets, input_ids[:, 1:])


def test_a_corpus_without_pairs_is_refused():
    with pytest.raises(ValueError, match="`word_noise` counts pairs of words"):
        KneserNeyNoise([[START], []], 0.2, 6)
