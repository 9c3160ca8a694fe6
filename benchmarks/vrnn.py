"""VRNN: frames per second of training, by the ELBO and as a particle filter (FIVO), and of generation, ours against
the plain way: a re-statement in stock PyTorch of how the published code works (Chung et al. 2015; Maddison et al.
2017), a loop over time over cells in which every network, the likelihood and the KL are computed step by step.

python benchmarks/vrnn.py --json vrnn.json
"""

import math

import torch
from common import argument_parser, interleave, report
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from hf_vrae import VRNNConfig, VRNNForFrameGeneration

# Width of the recurrence and of all networks, and of z; "paper" is what FIVO trains on the music of this many keys.
SIZES = {"big": (1024, 200), "small": (256, 64), "paper": (64, 64)}
KEYS, TIME, PARTICLES = 88, 100, 4
BATCHES = (20, 64)


class PlainVRNN(nn.Module):
    """One ReLU layer in each network, as ours; a Bernoulli for each key."""

    def __init__(self, width: int, latent_size: int):
        super().__init__()
        self.width = width
        self.phi_x = nn.Sequential(nn.Linear(KEYS, width), nn.ReLU())
        self.phi_z = nn.Sequential(nn.Linear(latent_size, width), nn.ReLU())
        self.prior = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.prior_mean, self.prior_logvar = nn.Linear(width, latent_size), nn.Linear(width, latent_size)
        self.posterior = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU())
        self.posterior_mean, self.posterior_logvar = nn.Linear(width, latent_size), nn.Linear(width, latent_size)
        self.emission = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, KEYS))
        self.cell = nn.LSTMCell(2 * width, width)

    def step(self, x, h):
        """z, phi(x), phi(z), the moments of q and p, and log p(x|z), of frames [B, F] and h [B, H]."""
        phi_x = self.phi_x(x)
        features = self.posterior(torch.cat([phi_x, h], 1))
        mean, logvar = self.posterior_mean(features), self.posterior_logvar(features)
        prior = self.prior(h)
        prior_mean, prior_logvar = self.prior_mean(prior), self.prior_logvar(prior)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        phi_z = self.phi_z(z)
        logits = self.emission(torch.cat([phi_z, h], 1))
        log_p = -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
        return z, torch.cat([phi_x, phi_z], 1), (mean, logvar), (prior_mean, prior_logvar), log_p

    def loss(self, frames):
        h = c = frames.new_zeros(len(frames), self.width)
        loss = 0.0
        for t in range(frames.shape[1]):
            _, inputs, (mean, logvar), (prior_mean, prior_logvar), log_p = self.step(frames[:, t], h)
            distance = ((mean - prior_mean).square() + logvar.exp()) / prior_logvar.exp()
            loss = loss + 0.5 * (prior_logvar - logvar + distance - 1).sum(1) - log_p
            h, c = self.cell(inputs, (h, c))
        return loss.mean()

    def fivo(self, frames):
        count = len(frames)
        frames = frames.repeat(PARTICLES, 1, 1)
        h = c = frames.new_zeros(len(frames), self.width)
        weights, bound = frames.new_zeros(PARTICLES, count), 0.0
        for t in range(frames.shape[1]):
            z, inputs, q, p, log_p = self.step(frames[:, t], h)
            log_ratio = normal_log_prob(z, *p) - normal_log_prob(z, *q)
            weights = weights + (log_p + log_ratio).view(PARTICLES, count)
            h, c = self.cell(inputs, (h, c))
            shares = weights.detach().softmax(0)
            poor = 1 / shares.square().sum(0) < PARTICLES / 2
            if t + 1 < frames.shape[1] and poor.any():
                chosen = torch.multinomial(shares.t(), PARTICLES, replacement=True).t()
                chosen = torch.where(poor, chosen, torch.arange(PARTICLES).unsqueeze(1))
                rows = (chosen * count + torch.arange(count)).flatten()
                h, c = h[rows], c[rows]
                bound = bound + torch.where(poor, weights.logsumexp(0) - math.log(PARTICLES), 0.0)
                weights = torch.where(poor, 0.0, weights)
        return -(bound + weights.logsumexp(0) - math.log(PARTICLES)).mean()

    @torch.no_grad()
    def generate(self, rows):
        h = c = torch.zeros(rows, self.width)
        frames = []
        for _ in range(TIME):
            prior = self.prior(h)
            mean, logvar = self.prior_mean(prior), self.prior_logvar(prior)
            phi_z = self.phi_z(mean + (0.5 * logvar).exp() * torch.randn_like(mean))
            frames.append(torch.bernoulli(self.emission(torch.cat([phi_z, h], 1)).sigmoid()))
            h, c = self.cell(torch.cat([self.phi_x(frames[-1]), phi_z], 1), (h, c))
        return torch.stack(frames, 1)


def normal_log_prob(z, mean, logvar):
    return -0.5 * ((z - mean).square() / logvar.exp() + logvar + math.log(2 * math.pi)).sum(1)


def make_ours(size: str, **options) -> VRNNForFrameGeneration:
    width, latent_size = SIZES[size]
    widths = {name: width for name in ("embedding_size", "hidden_size", "feature_size")}
    config = VRNNConfig(input_size=KEYS, head="bernoulli", latent_size=latent_size, dropout=0.0, **widths, **options)
    return VRNNForFrameGeneration(config)


def gflop(size: str, particles: int = 1) -> float:
    """Of a frame, forward and backward: three products of a multiplication and an addition each."""
    width, latent_size = SIZES[size]
    networks = 2 * KEYS * width + width * (2 * width + width + 2 * width) + latent_size * width * (2 + 2 + 1)
    return 3 * 2 * particles * (networks + 4 * width * 3 * width) / 1e9


def training(model, loss, frames):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    model.train()

    def run():
        loss(model, frames).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def main():
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    args = parser.parse_args()
    rows = []

    def elbo(model, frames):
        return model(input_features=frames).loss

    for size in args.sizes:
        for batch in args.batches:
            frames = (torch.rand(batch, TIME, KEYS) < 0.05).float()
            tasks = {"training": (PlainVRNN.loss, {}, 1)}
            if batch == BATCHES[0]:
                tasks["FIVO"] = (PlainVRNN.fivo, {"num_train_samples": PARTICLES, "resampling": True}, PARTICLES)
            for task, (plain_loss, options, particles) in tasks.items():
                ways = {
                    f"plain {task} fp32": training(PlainVRNN(*SIZES[size]), plain_loss, frames),
                    f"{task} fp32": training(make_ours(size, **options), elbo, frames),
                }
                seconds = interleave(ways, args.repeats)
                for name, value in seconds.items():
                    row = {"rate": batch * TIME / value, "ratio": seconds[f"plain {task} fp32"] / value}
                    row |= {"dtype": "fp32", "gflop": gflop(size, particles)}
                    rows.append({"size": size, "way": f"{name}, batch {batch}"} | row)
        plain, ours = PlainVRNN(*SIZES[size]).eval(), make_ours(size).eval()
        ways = {
            "plain sampled fp32": lambda plain=plain: plain.generate(BATCHES[0]),
            "sampled fp32": lambda ours=ours: ours.generate(lengths=torch.full((BATCHES[0],), TIME), do_sample=True),
        }
        seconds = interleave(ways, args.repeats)
        for name, value in seconds.items():
            row = {"rate": BATCHES[0] * TIME / value, "ratio": seconds["plain sampled fp32"] / value}
            rows.append({"size": size, "way": f"{name}, batch {BATCHES[0]}"} | row)
    report(f"VRNN, {TIME} frames of {KEYS} keys, {PARTICLES} particles", "frames/s", rows, args.json)


if __name__ == "__main__":
    main()
