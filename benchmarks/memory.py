"""Memory: peak of a training step above what was there before it, gradients not counted, and of an importance-weighted
evaluation of 800 rows, ours against the plain way; by the allocations that torch's profiler records.

python benchmarks/memory.py --json memory.json
"""

import torch
from common import DTYPES, arguments, make_ours, make_plain, mixed, random_ids, report
from torch.profiler import ProfilerActivity, profile


def peak(run, clean=lambda: None) -> float:
    """Largest sum of allocations less frees since the start, MiB; `clean` goes before it."""
    run()
    clean()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest / 2**20


def train(model, loss, dtype):
    ids = random_ids(32)
    model.train()
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**20

    def run():
        with mixed(dtype):
            value = loss(model, ids)
        value.backward()

    return peak(run, model.zero_grad) - gradients


def main():
    args = arguments(__doc__)
    rows = []
    for size in args.sizes:
        plain, ours = make_plain(size), make_ours(size)
        found = {"train plain fp32": train(plain, lambda model, ids: model.loss(ids), "fp32")}
        for dtype in DTYPES:
            found[f"train {dtype}"] = train(
                ours, lambda model, ids: model(input_ids=ids, labels=ids[:, 1:]).loss, dtype
            )
        ids = random_ids(8)
        ours.eval()
        plain.eval()

        def weights(dtype, ours=ours, ids=ids):
            with torch.no_grad(), mixed(dtype):
                ours.log_importance_weights(100, input_ids=ids)

        found["IW-NLL plain fp32, 1 x 100"] = peak(lambda plain=plain, ids=ids: plain.nll_iw(ids, 100))
        found |= {f"IW-NLL {dtype}, 8 x 100": peak(lambda dtype=dtype: weights(dtype)) for dtype in DTYPES}
        for name, value in found.items():
            base = found["train plain fp32" if "train" in name else "IW-NLL plain fp32, 1 x 100"]
            rows.append({"size": size, "way": name, "rate": value, "ratio": base / value})
    report("Peak memory", "MiB", rows, args.json)


if __name__ == "__main__":
    main()
