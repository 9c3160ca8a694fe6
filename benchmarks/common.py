"""What the benchmarks share: sizes, the plain way, the machine's ceiling, and interleaved timing.

The plain way is a re-statement in stock PyTorch of how the published code works (jxhe/vae-lagging-encoder, He et al.
2019): batches of one length, fused `nn.LSTM`, z concatenated at every step, all the logits at once.
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import nn

from hf_vrae import VRAEConfig, VRAEForSequenceGeneration
from hf_vrae.modeling.kernels import PACKED_DTYPES

SIZES = {"big": (512, 1024, 32), "small": (256, 256, 16)}  # embedding, hidden, latent
VOCABULARY = 10_000
LENGTH = 22  # tokens per sequence that are predicted; PTB has 21.9
DTYPES = {"fp32": torch.float32}
if torch.bfloat16 in PACKED_DTYPES:  # a processor without takes ten times as long by it
    DTYPES["bf16"] = torch.bfloat16


class PlainVAE(nn.Module):
    """LSTM or GRU encoder and decoder, as published."""

    def __init__(self, embedding_size, hidden_size, latent_size, rnn_type="lstm", vocab_size=VOCABULARY):
        super().__init__()
        rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[rnn_type]
        self.rnn_type, self.latent_size = rnn_type, latent_size
        self.encoder_embeddings = nn.Embedding(vocab_size, embedding_size)
        self.encoder = rnn(embedding_size, hidden_size, batch_first=True)
        self.posterior = nn.Linear(hidden_size, 2 * latent_size, bias=False)
        self.decoder_embeddings = nn.Embedding(vocab_size, embedding_size)
        self.first_state = nn.Linear(latent_size, hidden_size, bias=False)
        self.decoder = rnn(embedding_size + latent_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, vocab_size, bias=False)

    def encode(self, ids):
        _, state = self.encoder(self.encoder_embeddings(ids))
        last = state[0] if self.rnn_type == "lstm" else state
        return self.posterior(last.squeeze(0)).chunk(2, dim=-1)

    def state(self, z):
        c = self.first_state(z).unsqueeze(0)
        return (c.tanh(), c) if self.rnn_type == "lstm" else c.tanh()

    def logits(self, ids, z, dropout=0.0):
        embedded = nn.functional.dropout(self.decoder_embeddings(ids), dropout, self.training)
        embedded = torch.cat([embedded, z.unsqueeze(1).expand(-1, ids.shape[1], -1)], dim=-1)
        outputs, _ = self.decoder(embedded, self.state(z))
        return self.head(nn.functional.dropout(outputs, dropout, self.training))

    def loss(self, ids):
        mean, logvar = self.encode(ids)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        logits = self.logits(ids[:, :-1], z, dropout=0.5)
        nll = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        kl = 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(1)
        return (nll.view(len(ids), -1).sum(1) + kl).mean()

    @torch.no_grad()
    def nll_iw(self, ids, num_samples):
        """Of one sequence at a time, as published."""
        found = []
        for row in ids.split(1):
            mean, logvar = self.encode(row)
            noise = torch.randn(num_samples, self.latent_size)
            z = mean + (0.5 * logvar).exp() * noise
            logits = self.logits(row[:, :-1].expand(num_samples, -1), z)
            labels = row[:, 1:].expand(num_samples, -1).flatten()
            nll = nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="none").view(num_samples, -1)
            log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
            log_posterior = -0.5 * (noise.square() + logvar + math.log(2 * math.pi)).sum(1)
            weights = log_prior - nll.sum(1) - log_posterior
            found.append(math.log(num_samples) - weights.logsumexp(0))
        return torch.stack(found)

    @torch.no_grad()
    def decode(self, z, steps, do_sample):
        state, token, tokens = self.state(z), torch.full((len(z), 1), 2), []
        for _ in range(steps):
            embedded = torch.cat([self.decoder_embeddings(token), z.unsqueeze(1)], dim=-1)
            outputs, state = self.decoder(embedded, state)
            logits = self.head(outputs).squeeze(1)
            token = torch.multinomial(logits.softmax(-1), 1) if do_sample else logits.argmax(-1, keepdim=True)
            tokens.append(token)
        return torch.cat(tokens, dim=1)


def make_ours(size: str, **options) -> VRAEForSequenceGeneration:
    embedding, hidden, latent = SIZES[size]
    sizes = {"vocab_size": VOCABULARY, "embedding_size": embedding, "latent_size": latent}
    config = VRAEConfig(
        **sizes | options,
        encoder_hidden_size=hidden,
        decoder_hidden_size=hidden,
        bidirectional_encoder=False,
        latent_conditioning=["initial_state", "input"],
        dropout=0.5,
        word_dropout=0.0,
    )
    return VRAEForSequenceGeneration(config)


def make_plain(size: str, rnn_type: str = "lstm", latent_size=None, vocab_size: int = VOCABULARY) -> PlainVAE:
    embedding, hidden, latent = SIZES[size]
    plain = PlainVAE(embedding, hidden, latent_size or latent, rnn_type, vocab_size)
    for parameter in plain.parameters():
        nn.init.uniform_(parameter, -0.08, 0.08)
    return plain


def random_ids(rows: int, length: int = LENGTH, vocab_size: int = VOCABULARY) -> torch.Tensor:
    """<s> w1 .. wn </s>, [rows, length + 1], without padding."""
    ids = torch.randint(4, vocab_size, (rows, length + 1))
    ids[:, 0], ids[:, -1] = 2, 3
    return ids


def mixed(name: str):
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bf16")


def interleave(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each way; they take turns in a rotating order, so that a neighbour's load hits all alike."""
    times = {name: [] for name in ways}
    for way in ways.values():
        way()
    names = list(ways)
    for i in range(repeats):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def ceilings() -> dict[str, float]:
    """GFLOP/s of torch's own product of large matrices, by data type."""
    rates = {}
    for name, dtype in DTYPES.items():
        a = torch.randn(2048, 2048).to(dtype)
        rates[name] = 2 * 2048**3 / interleave({name: lambda a=a: a @ a}, 5)[name] / 1e9
    return rates


def report(title: str, unit: str, rows: list[dict], path: str | None) -> None:
    """Print a table of `size`, `way`, rate, ratio and share of the ceiling; write it with the machine's data."""
    rates = ceilings()
    print(f"{title}; a large product reaches", ", ".join(f"{rate:.0f} GFLOP/s in {x}" for x, rate in rates.items()))
    print(f"{'size':8}{'way':28}{unit:>14}{'ratio':>8}{'of ceiling':>12}")
    for row in rows:
        if "gflop" in row:
            row["ceiling"] = row["rate"] * row["gflop"] / rates[row["dtype"]]
        share = f"{row['ceiling']:>11.0%}" if "ceiling" in row else ""
        print(f"{row['size']:8}{row['way']:28}{row['rate']:>14,.1f}{row['ratio']:>8.2f}{share:>12}")
    if path:
        run = {
            "title": title,
            "unit": unit,
            "ceilings": rates,
            "rows": rows,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        }
        Path(path).write_text(json.dumps(run, indent=2))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def argument_parser(description: str, repeats: int | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="rounds; the median is reported")
    parser.add_argument("--json", help="file to write")
    return parser


def arguments(description: str, repeats: int | None = None) -> argparse.Namespace:
    parser = argument_parser(description, repeats)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    return parser.parse_args()
