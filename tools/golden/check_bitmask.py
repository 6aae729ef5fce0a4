#!/usr/bin/env python3
"""Holds espalier's sparse-24-bitmask and sparse-bitmask folders against compressed-tensors.

  check_bitmask.py check PROGRAM PRUNED   PRUNED: a folder of `espalier prune -p 2:4`
      1. folders that PROGRAM writes, decoded by compressed-tensors, equal the dense export bit for bit
      2. folders that compressed-tensors writes, read by PROGRAM, equal the dense weights bit for bit
  check_bitmask.py golden FOLDER          writes the small folders of tests/golden/bitmask

Needs torch, safetensors and compressed-tensors 0.9.4 (`pip install --no-deps compressed-tensors==0.9.4`
beside transformers): later versions removed the decompressors.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import compressed_tensors
import torch
from compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask import Sparse24BitMaskCompressor
from compressed_tensors.compressors.sparse_compressors.sparse_bitmask import BitmaskCompressor
from compressed_tensors.config import BitmaskConfig, Sparse24BitMaskConfig
from safetensors.torch import load_file, save_file

FORMS = {
    "sparse-24-bitmask": (Sparse24BitMaskCompressor, Sparse24BitMaskConfig),
    "sparse-bitmask": (BitmaskCompressor, BitmaskConfig),
}


def raw(tensor):
    """Bits, so that -0.0 and NaN count."""
    return tensor.contiguous().view(torch.uint8).flatten() if tensor.dim() else tensor.reshape(1)


def load_folder(folder):
    tensors = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def same(found, wanted, what):
    assert set(found) == set(wanted), (what, set(found) ^ set(wanted))
    weights = 0
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, (what, name)
        assert torch.equal(raw(found[name]), raw(tensor)), (what, name)
        weights += tensor.numel()
    print(f"{what}: {len(wanted)} tensors, {weights} weights, equal bit for bit")


def decompress(folder, form):
    compressor, config = FORMS[form]
    return dict(compressor(config=config()).decompress(str(folder)))


def compress(tensors, form):
    compressor, config = FORMS[form]
    targets = {name[: -len(".weight")] for name in tensors if tensors[name].dim() == 2 and "embed" not in name}
    return compressor(config=config()).compress(tensors, targets), targets


def config_of(form, targets):
    sparsity = FORMS[form][1](targets=sorted(targets), ignore=["lm_head"]).model_dump()
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "version": compressed_tensors.__version__,
            "sparsity_config": sparsity,
        }
    }


def save_folder(folder, tensors, config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def run(program, *arguments):
    subprocess.run([program, *map(str, arguments), "-q"], check=True, stdout=subprocess.DEVNULL)


def check(program, pruned):
    work = pathlib.Path(tempfile.mkdtemp())
    print(f"compressed-tensors {compressed_tensors.__version__}, torch {torch.__version__}")
    run(program, "convert", pruned, "-o", work / "dense", "--dense")
    dense = load_folder(work / "dense")
    model = json.loads((work / "dense" / "config.json").read_text())
    for form in FORMS:
        ours = work / f"ours-{form}"
        run(program, "convert", pruned, "-o", ours, "--to", form)
        same(decompress(ours, form), dense, f"written by espalier as {form}, decoded by compressed-tensors")
        run(program, "convert", pruned, "-o", work / f"shards-{form}", "--to", form, "--shard-size", "20KB")
        same(decompress(work / f"shards-{form}", form), dense, f"the same in shards of 20 KB")
        parts, targets = compress(dense, form)
        theirs = work / f"theirs-{form}"
        save_folder(theirs, parts, {**model, **config_of(form, targets)})
        run(program, "convert", theirs, "-o", work / f"back-{form}", "--dense")
        same(load_folder(work / f"back-{form}"), dense, f"written by compressed-tensors as {form}, read by espalier")
    print("all equal")


def two_four(rows, columns, dtype, generator):
    """At most two of four, some groups with fewer."""
    weight = torch.randn(rows, columns, generator=generator)
    order = torch.rand(rows, columns // 4, 4, generator=generator).argsort(-1)
    weight = torch.where(order.reshape(rows, columns) < 2, weight, 0.0)
    weight[0, :4] = 0.0
    weight[-1, :4] = torch.tensor([0.0, 0.0, 0.0, -1.5])
    return weight.to(dtype)


def golden(folder):
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "a.weight": two_four(3, 8, torch.float32, generator),
        "b.weight": two_four(5, 12, torch.float16, generator),
        "c.weight": two_four(4, 20, torch.bfloat16, generator),
        "norm.weight": torch.arange(6, dtype=torch.bfloat16),
    }
    for form in FORMS:
        parts, targets = compress(tensors, form)
        save_folder(folder / form, parts, {"model_type": "golden", **config_of(form, targets)})
    # As versions up to 0.8 wrote it: names keep ".weight", vectors are compressed too.
    parts = BitmaskCompressor(config=BitmaskConfig()).compress(tensors)
    old = {name.replace(".", ".weight.", 1): tensor for name, tensor in parts.items()}
    sparsity = BitmaskConfig().model_dump()
    save_folder(folder / "old-sparse-bitmask", old, {"compression_config": {"sparsity_config": sparsity}})
    save_folder(folder / "dense", tensors, {"model_type": "golden"})


if len(sys.argv) == 4 and sys.argv[1] == "check":
    check(sys.argv[2], sys.argv[3])
elif len(sys.argv) == 3 and sys.argv[1] == "golden":
    golden(pathlib.Path(sys.argv[2]))
else:
    sys.exit(__doc__)
