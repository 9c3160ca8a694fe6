"""Training: tokens per second of forward, backward, clipping and SGD, ours against the plain way.

python benchmarks/train.py --json train.json
"""

import torch
from common import (
    DTYPES,
    LENGTH,
    SIZES,
    VOCABULARY,
    PlainVAE,
    arguments,
    interleave,
    make_ours,
    make_plain,
    mixed,
    random_ids,
    report,
)

BATCH = 32
WAYS = {
    "LSTM": {},
    "GRU": {"rnn_type": "gru"},
    "layer-norm LSTM": {"layer_norm": True},
}


def step(model, loss, dtype, batches, trained=None):
    optimizer = torch.optim.SGD(trained or model.parameters(), lr=0.1, fused=True)
    model.train()

    def run():
        for ids in batches:
            with mixed(dtype):
                value = loss(model, ids)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            model.zero_grad()

    return run


def encoder_alone(model):
    model.requires_grad_(False)
    return list(model.get_encoder().requires_grad_(True).parameters())


def ours(model, ids):
    return model(input_ids=ids, labels=ids[:, 1:]).loss


def gflop(size, gates, decoder_stands_still):
    """Of a predicted token, forward and backward: three products of a multiplication and an addition each, two where
    the weights stand still."""
    embedding, hidden, latent = SIZES[size]
    encoder, decoder = gates * hidden * (embedding + hidden), gates * hidden * (embedding + latent + hidden)
    return 2 * (3 * encoder + (2 if decoder_stands_still else 3) * (decoder + hidden * VOCABULARY)) / 1e9


def main():
    args = arguments(__doc__, repeats=5)
    rows = []
    for size in args.sizes:
        ways = {}
        batches = [random_ids(BATCH) for _ in range(3)]
        for kind, options in WAYS.items():
            gates = 3 if kind == "GRU" else 4
            if kind != "layer-norm LSTM":
                peer = make_plain(size, options.get("rnn_type", "lstm"))
                ways[f"plain {kind} fp32"] = step(peer, PlainVAE.loss, "fp32", batches), "fp32", gates
            for dtype in DTYPES:
                for kernels in ("plain", "auto") if kind == "layer-norm LSTM" else ("auto",):
                    name = f"{kind} {dtype}" + (" loop of cells" if kernels == "plain" else "")
                    model = make_ours(size, kernels=kernels, **options)
                    ways[name] = step(model, ours, dtype, batches), dtype, gates
        # Aggressive training; the published code forms all gradients each time, and clips by them.
        peer = make_plain(size)
        trained = [weight for name, weight in peer.named_parameters() if name.startswith(("encoder", "posterior"))]
        ways["plain encoder alone fp32"] = step(peer, PlainVAE.loss, "fp32", batches, trained), "fp32", 4
        for dtype in DTYPES:
            model = make_ours(size)
            run = step(model, ours, dtype, batches, encoder_alone(model))
            ways[f"encoder alone {dtype}"] = run, dtype, 4
        seconds = interleave({name: run for name, (run, _, _) in ways.items()}, args.repeats)
        for name, (_, dtype, gates) in ways.items():
            rate = 3 * BATCH * LENGTH / seconds[name]
            alone = "encoder alone" in name
            base = f"plain {'encoder alone' if alone else 'GRU' if 'GRU' in name else 'LSTM'} fp32"
            work = {"dtype": dtype, "gflop": gflop(size, gates, alone)}
            rows.append({"size": size, "way": name, "rate": rate, "ratio": seconds[base] / seconds[name], **work})
    report("Training, batch 32", "tokens/s", rows, args.json)


if __name__ == "__main__":
    main()
