"""A second implementation of the treebank's models, the protocol's and ours: a sentence at a time, in float64, by
torch's own layers and distributions and the equations of the papers. It shares nothing with the package but the files
of a checkpoint.

    python tests/restated.py MODEL FILE K

prints the mean importance-weighted NLL and -ELBO, nats, of the lines of a text file with K samples each.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal


class RestatedVRAE:
    """Of one LSTM layer on either side.

    Args:
        folder: of `config.json` and `model.safetensors`.
    """

    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        assert self.config["rnn_type"] == "lstm" and not self.config["layer_norm"]
        assert self.config["encoder_layers"] == self.config["decoder_layers"] == 1
        self.weights = {name: w.double() for name, w in load_file(folder / "model.safetensors").items()}
        self.encoder_lstm, self.decoder_lstm = self.lstm("encoder"), self.lstm("decoder")

    def lstm(self, side: str) -> nn.LSTM:
        weights = self.part(f"model.{side}.rnn.layers.0.")
        behind = self.part(f"model.{side}.rnn.reverse_layers.0.")
        layer = nn.LSTM(
            weights["weight_ih_l0"].shape[1], weights["weight_hh_l0"].shape[1], bidirectional=bool(behind)
        ).double()
        layer.load_state_dict(weights | {f"{name}_reverse": w for name, w in behind.items()})
        return layer.requires_grad_(False)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): w for name, w in self.weights.items() if name.startswith(prefix)}

    def posterior(self, ids: torch.LongTensor) -> Independent:
        """q(z|x) of one sentence `<s> w1 .. wn </s>`, [T]: linear in the last state of each direction."""
        _, (last, _) = self.encoder_lstm(self.weights["model.encoder.embed_tokens.weight"][ids])  # [directions, H]
        mean, logvar = (self.weights["model.encoder.posterior.weight"] @ last.flatten()).chunk(2)
        if self.config["posterior"] == "batch_norm":  # Zhu et al. 2020, algorithm 1, by the running statistics
            norm = self.part("model.encoder.posterior.")
            mean = self.config["batch_norm_gamma"] * (mean - norm["running_mean"]) / norm["running_var"].sqrt()
            mean = mean + norm["shift"]
        else:
            assert self.config["posterior"] == "gaussian"
        return Independent(Normal(mean, (logvar / 2).exp()), 1)

    def prior(self) -> MultivariateNormal:
        """N(0, I), or N(0, R) with R = L L' and rows of length 1 in L."""
        factor = torch.eye(self.config["latent_size"], dtype=torch.float64)
        if self.config["correlated_prior"]:
            factor = factor + self.weights["model.correlated_prior.weight"].tril(-1)
            factor = factor / factor.square().sum(1, keepdim=True).sqrt()
        return MultivariateNormal(torch.zeros(len(factor), dtype=torch.float64), scale_tril=factor)

    def log_likelihood(self, ids: torch.LongTensor, z: torch.Tensor) -> torch.Tensor:
        """log p(x|z), [K], of one sentence [T] and latents [K, D] (He et al. 2019: c0 = W z, h0 = tanh(c0), and z
        beside every input; in ours also beside every output)."""
        # A table that encoder, decoder and output share is saved once.
        tied = self.config["tie_word_embeddings"]
        table = self.weights[f"model.{'encoder' if tied else 'decoder'}.embed_tokens.weight"]
        read = table[ids[:-1]].unsqueeze(1).expand(-1, len(z), -1)  # [T - 1, K, E]
        beside = z.expand(len(read), -1, -1)
        c0 = (z @ self.weights["model.decoder.initial_state.weight"].T).unsqueeze(0)
        hidden, _ = self.decoder_lstm(torch.cat([read, beside], -1), (c0.tanh(), c0))
        if "output" in self.config["latent_conditioning"]:
            hidden = torch.cat([hidden, beside], -1)
        if tied:
            hidden, head = hidden @ self.weights["projection.weight"].T, table
        else:
            head = self.weights["lm_head.weight"]
        log_p = (hidden @ head.T).log_softmax(-1)  # [T - 1, K, V]
        return log_p.gather(2, ids[1:, None, None].expand(-1, len(z), 1)).squeeze(2).sum(0)

    def log_weights(self, ids: torch.LongTensor, z: torch.Tensor) -> torch.Tensor:
        """log p(x, z) - log q(z|x), [K], of one sentence [T] and latents [K, D]."""
        return self.log_likelihood(ids, z) + self.prior().log_prob(z) - self.posterior(ids).log_prob(z)


def main(folder: str, file: str, num_samples: str) -> None:
    torch.manual_seed(0)
    model, tokenizer = RestatedVRAE(Path(folder)), Tokenizer.from_file(f"{folder}/tokenizer.json")
    nll, neg_elbo, lines = 0.0, 0.0, Path(file).read_text("utf-8").splitlines()
    for line in lines:
        ids = torch.tensor(tokenizer.encode(line.strip()).ids)
        log_weights = model.log_weights(ids, model.posterior(ids).sample((int(num_samples),)))
        nll += math.log(len(log_weights)) - log_weights.logsumexp(0).item()
        neg_elbo -= log_weights.mean().item()
    print(f"{nll / len(lines):.3f} {neg_elbo / len(lines):.3f} of {len(lines)} sentences")


if __name__ == "__main__":
    main(*sys.argv[1:])
