"""Importance-weighted NLL: sequences per second with 100 samples each, ours against the plain way.

python benchmarks/iw_nll.py --json iw_nll.json
"""

import torch
from common import (
    DTYPES,
    LENGTH,
    SIZES,
    VOCABULARY,
    arguments,
    interleave,
    make_ours,
    make_plain,
    mixed,
    random_ids,
    report,
)

ROWS, SAMPLES = 8, 100


def main():
    args = arguments(__doc__, repeats=3)
    rows = []
    for size in args.sizes:
        ids = random_ids(ROWS)
        plain, model = make_plain(size).eval(), make_ours(size).eval()

        def ours(dtype, model=model, ids=ids):
            with torch.no_grad(), mixed(dtype):
                model.log_importance_weights(SAMPLES, input_ids=ids)

        ways = {"plain fp32": lambda plain=plain, ids=ids: plain.nll_iw(ids, SAMPLES)}
        ways |= {dtype: lambda dtype=dtype, ours=ours: ours(dtype) for dtype in DTYPES}
        seconds = interleave(ways, args.repeats)
        _, hidden, _ = SIZES[size]
        # What is left where the samples of a sequence share its tokens' part of the gates.
        gflop = 2 * SAMPLES * LENGTH * hidden * (4 * hidden + VOCABULARY) / 1e9
        for name, value in seconds.items():
            rows.append(
                {
                    "size": size,
                    "way": name,
                    "rate": ROWS / value,
                    "ratio": seconds["plain fp32"] / value,
                    "dtype": name.split()[-1],
                    "gflop": gflop,
                }
            )
    report(f"Importance-weighted NLL, {SAMPLES} samples", "sequences/s", rows, args.json)


if __name__ == "__main__":
    main()
