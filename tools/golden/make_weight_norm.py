#!/usr/bin/env python3
"""Golden masks of torch.ao.pruning.WeightNormSparsifier, and of its cubic schedule.

    python3 tools/golden/make_weight_norm.py tests/golden/prune/weight_norm.txt

Weights are small integers that never tie where ties would matter, so that masks follow from the
published rule alone. Needs PyTorch; the test reads the file and needs nothing.
Lines: "case OUT IN LEVEL BLOCK_ROWS BLOCK_COLS ZEROS NORM STEPS", "weight ...", one "mask 0110..." a
step; "cubic s0 sf t t0 n dt value".
"""
import random
import sys

import torch
from torch import nn
from torch.ao.pruning import CubicSL, WeightNormSparsifier

CASES = [  # out, in, levels of the steps, block, zeros per block, norm
    (4, 8, [0.5], (1, 4), 4, 2),
    (4, 8, [1.0], (1, 4), 2, 2),
    (4, 8, [1.0], (1, 4), 2, 1),
    (8, 8, [0.5], (1, 4), 2, 2),
    (8, 8, [0.3], (4, 1), 3, 1),
    (8, 12, [0.999], (2, 3), 6, 2),
    (8, 12, [1.0], (2, 3), 6, 2),
    (8, 12, [1.5], (2, 3), 5, 1),
    (8, 12, [0.0], (2, 3), 6, 2),
    (8, 12, [-1.0], (2, 3), 6, 2),
    (8, 12, [0.7], (2, 3), 0, 2),
    (6, 6, [0.25], (1, 1), 1, 1),
    (6, 6, [0.375], (2, 2), 4, 2),
    (6, 10, [0.5], (2, 2), 4, 2),  # 7.5 blocks: halves round to even
    (2, 10, [0.5], (2, 2), 4, 2),  # 2.5 blocks
    (8, 16, [0.25, 0.5], (1, 4), 4, 2),
    (8, 16, [0.25, 0.5, 0.75], (2, 2), 4, 1),
    (8, 16, [0.5, 0.75], (1, 8), 5, 2),
    (16, 16, [0.6], (4, 4), 9, 1),
]
CUBIC = [(0.0, 0.9, t, 2, 5, 3) for t in (0, 2, 3, 7, 11, 16, 17, 18, 40)] + [(0.1, 0.5, 4, 0, 10, 1)]


def weights(rng, out, columns, block):
    """Magnitudes 1, 2, ... in random order, so all differ; drawn again until no two blocks have the
    same sum of squares or of magnitudes."""
    rows, cols = block
    while True:
        values = list(range(1, out * columns + 1))
        rng.shuffle(values)
        w = torch.tensor(values, dtype=torch.float32).reshape(out, columns)
        for power in (1, 2):
            sums = (w**power).reshape(out // rows, rows, columns // cols, cols).sum(dim=(1, 3)).flatten()
            if len(set(sums.tolist())) != sums.numel():
                break
        else:
            sign = torch.tensor([rng.choice((-1.0, 1.0)) for _ in values]).reshape(out, columns)
            return w * sign


def steps(w, levels, block, zeros, norm):
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data = w.clone()
    model = nn.Sequential(layer)
    sparsifier = WeightNormSparsifier(sparsity_level=levels[0], sparse_block_shape=block,
                                      zeros_per_block=zeros, norm=norm)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    for level in levels:
        for group in sparsifier.groups:
            group["sparsity_level"] = level
        sparsifier.step()
        yield model[0].parametrizations.weight[0].mask.reshape(w.shape)


def main():
    rng = random.Random(4)
    with open(sys.argv[1], "w", encoding="ascii") as to:
        to.write(f"# tools/golden/make_weight_norm.py, PyTorch {torch.__version__.split('+')[0]}\n")
        for out, columns, levels, block, zeros, norm in CASES:
            w = weights(rng, out, columns, block)
            text = ",".join(str(level) for level in levels)
            to.write(f"case {out} {columns} {text} {block[0]} {block[1]} {zeros} {norm} {len(levels)}\n")
            to.write("weight " + " ".join(str(int(v)) for v in w.flatten().tolist()) + "\n")
            for mask in steps(w, levels, block, zeros, norm):
                to.write("mask " + "".join(str(int(v)) for v in mask.flatten().tolist()) + "\n")
        for s0, sf, t, t0, n, dt in CUBIC:
            value = CubicSL.sparsity_compute_fn(s_0=s0, s_f=sf, t=t, t_0=t0, dt=dt, n=n)
            to.write(f"cubic {s0} {sf} {t} {t0} {n} {dt} {value!r}\n")


main()
