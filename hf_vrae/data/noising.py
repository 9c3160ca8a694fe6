"""Kneser-Ney noising of words (Xie et al. 2017, "Data Noising as Smoothing in Neural Network Language Models")."""

from collections.abc import Iterable

import numpy as np
import torch


class KneserNeyNoise:
    """Puts other words in the place of some that a decoder reads and of some that it is to say.

    Kneser-Ney smoothing trusts a bigram less, the more different words follow its first word, and backs off to words
    that follow many. As noise that is (table 1 of the paper, "bigram Kneser-Ney"): with probability

        gamma(w) = share * N1+(w, .) / c(w)

    a word w that is read, and a target behind it, each become a draw from q(x), in proportion to N1+(., x), where
    N1+(w, .) counts the words seen after w, N1+(., x) those seen before x, and c(w) the bigrams that begin with w.

    Args:
        sequences: token ids of the training split, `<s> w1 .. wn </s>` each.
        share: gamma_0 of the paper, in [0, 1], of a word that was never followed by the same word twice.
        vocab_size: V.
    """

    def __init__(self, sequences: Iterable[np.ndarray], share: float, vocab_size: int):
        sequences = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        if not any(len(sequence) > 1 for sequence in sequences):
            raise ValueError("`word_noise` counts pairs of words, and no training sequence has two.")
        first = np.concatenate([sequence[:-1] for sequence in sequences])
        second = np.concatenate([sequence[1:] for sequence in sequences])
        kinds = np.unique(first * vocab_size + second)
        followers = np.bincount(kinds // vocab_size, minlength=vocab_size)  # N1+(w, .)
        preceders = np.bincount(kinds % vocab_size, minlength=vocab_size)  # N1+(., x)
        counts = np.bincount(first, minlength=vocab_size)
        self.gamma = torch.from_numpy(share * followers / np.maximum(counts, 1)).float()  # [V]
        self.cumulative = torch.from_numpy(preceders.cumsum() / len(kinds))  # of q, [V]

    def __call__(self, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            input_ids: `<s> w1 .. wn </s>`, [B, T].
            labels: `w1 .. wn </s>`, -100 where there is none, [B, T - 1].

        Returns:
            what the decoder reads in their place, `<s> w1 .. wn`, and its targets, [B, T - 1] each. `<s>` stays, and
            so does what is no target.
        """
        read = input_ids[:, :-1]
        self.gamma, self.cumulative = self.gamma.to(read.device), self.cumulative.to(read.device)
        gamma = self.gamma[read]
        noised = self._draw(read, gamma)
        noised[:, 0] = read[:, 0]
        return noised, torch.where(labels == -100, labels, self._draw(labels, gamma))

    def _draw(self, tokens: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        """Tokens [B, T], of which each is replaced with its own probability `gamma` [B, T]."""
        uniform = torch.rand(tokens.shape, dtype=torch.float64, device=tokens.device)
        draws = torch.searchsorted(self.cumulative, uniform, right=True)
        return torch.where(torch.rand(tokens.shape, device=tokens.device) < gamma, draws, tokens)
