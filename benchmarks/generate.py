"""Generation: tokens per second of `generate`, ours against the plain loop, greedy and sampled.

python benchmarks/generate.py --json generate.json
"""

import torch
from common import DTYPES, SIZES, arguments, interleave, make_ours, make_plain, mixed, report

STEPS = 30


def main():
    args = arguments(__doc__, repeats=5)
    rows = []
    for size in args.sizes:
        plain, model = make_plain(size).eval(), make_ours(size).eval()
        for batch in (1, 64):
            z = torch.randn(batch, SIZES[size][2])

            def ours(do_sample, dtype, z=z, model=model):
                with mixed(dtype):
                    model.generate(latents=z, do_sample=do_sample, top_k=0, eos_token_id=None, max_new_tokens=STEPS)

            ways = {}
            for do_sample, name in ((False, "greedy"), (True, "sampled")):
                ways[f"plain {name} fp32"] = lambda z=z, s=do_sample, plain=plain: plain.decode(z, STEPS, s)
                for dtype in DTYPES:
                    ways[f"{name} {dtype}"] = lambda s=do_sample, d=dtype, ours=ours: ours(s, d)
            seconds = interleave(ways, args.repeats)
            for name, value in seconds.items():
                base = seconds["plain sampled fp32" if "sampled" in name else "plain greedy fp32"]
                way = f"{name}, batch {batch}"
                rows.append({"size": size, "way": way, "rate": batch * STEPS / value, "ratio": base / value})
    report(f"Generation, {STEPS} tokens", "tokens/s", rows, args.json)


if __name__ == "__main__":
    main()
