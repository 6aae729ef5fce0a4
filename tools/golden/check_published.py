#!/usr/bin/env python3
"""Holds masks of tests/golden/prune/calibrated.txt against the code that their authors published: the
2:4 masks of Wanda (github.com/locuslab/wanda) and SparseGPT (github.com/IST-DASLab/sparsegpt) of the same
layer and inputs, and SparseGPT's values. Their code is imported from checkouts and runs as it is, in f32,
on a CPU: only what it asks of a GPU, of data sets and of a whole model is put in its way.

    check_published.py WANDA_CHECKOUT SPARSEGPT_CHECKOUT    (Python with PyTorch and transformers)

Last tried with Wanda at 8e8fc87 and SparseGPT at 147d215.
"""
import os
import sys
import types

import torch

import make_calibrated

OUT, IN = make_calibrated.OUT, make_calibrated.IN
HERE = os.path.dirname(os.path.abspath(__file__))


def golden(name, pattern):
    """Mask, and values where the file has them."""
    with open(os.path.join(HERE, "../../tests/golden/prune/calibrated.txt")) as file:
        lines = file.read().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"{name} {pattern} "))
    bits = torch.tensor([c == "1" for c in lines[at].split()[2]]).reshape(OUT, IN)
    rows = [[float(v) for v in line.split()] for line in lines[at + 1:at + 1 + OUT]
            if not line[:1].isalpha()]
    return bits, torch.tensor(rows) if rows else None


def import_from(folder, *names):
    sys.path.insert(0, folder)
    torch.cuda.synchronize = lambda *_: None
    sys.modules.setdefault("datasets", types.SimpleNamespace(load_dataset=None))
    made = [__import__(name, fromlist=["*"]) for name in names]
    sys.path.pop(0)
    return made


def linear(weights):
    layer = torch.nn.Linear(IN, OUT, bias=False)
    layer.weight.data = weights.clone()
    return layer


class Block(torch.nn.Module):
    """A decoder layer as far as Wanda's loop looks at one."""

    def __init__(self, weights):
        super().__init__()
        self.proj = linear(weights)

    def forward(self, x, **_):
        return (self.proj(x),)


def wanda(folder, weights, inputs):
    prune, = import_from(folder, "lib.prune")
    block = Block(weights)
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(use_cache=False), seqlen=inputs.shape[1], hf_device_map={},
        model=types.SimpleNamespace(layers=[block]))
    prune.get_loaders = lambda *_, **__: (None, None)
    prune.prepare_calibration_input = lambda *_: (
        inputs.T[None].clone(), torch.zeros(1, inputs.shape[1], OUT), None, None)
    args = types.SimpleNamespace(nsamples=1, seed=0, use_variant=False, sparsity_ratio=0.5)
    prune.prune_wanda(args, model, None, torch.device("cpu"), prune_n=2, prune_m=4)
    return block.proj.weight.data


def sparse_gpt(folder, weights, inputs):
    module, = import_from(folder, "sparsegpt")
    layer = linear(weights)
    job = module.SparseGPT(layer)
    job.add_batch(inputs.T, None)
    job.fasterprune(0, prunen=2, prunem=4, percdamp=0)
    return layer.weight.data


def main():
    torch.set_default_dtype(torch.float32)
    weights, inputs = (part.float() for part in make_calibrated.layer())
    failed = False
    for name, made in (("wanda", wanda(sys.argv[1], weights, inputs)),
                       ("sparsegpt", sparse_gpt(sys.argv[2], weights, inputs))):
        mask, values = golden(name, "2:4")
        differ = int(((made != 0) != mask).sum())
        off = float((made - values).abs().max()) if values is not None else 0.0
        print(f"{name} 2:4: {differ} of {OUT * IN} places differ from the published code's"
              + (f", values by at most {off:.2g}" if values is not None else ""))
        failed |= differ > 0 or off > 1e-2
    sys.exit(failed)


if __name__ == "__main__":
    main()
