#!/usr/bin/env python3
"""Golden file of the shipped model: what transformers makes of the first windows of its held-out text.

Nats of each of the first four windows (BOS, then 511 tokens, as models/prose/expected.json scores them),
and every layer's output at a few places of the first window. Run again when models/prose changes.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch transformers
    /tmp/venv/bin/python tools/golden/make_prose.py
"""
import json
import pathlib
import zlib

import torch
import torch.nn.functional as functional
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER, OUT = ROOT / "models" / "prose", ROOT / "tests" / "golden" / "prose" / "windows.json"
WINDOWS, POSITIONS, FEATURES = 4, [0, 1, 63, 300, 510], 8


@torch.no_grad()
def main():
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    text = (FOLDER / "heldout.txt").read_bytes().decode()
    ids = tokenizer(text[:40000], add_special_tokens=False, verbose=False).input_ids
    size = model.config.max_position_embeddings - 1
    nats, layers = [], []
    for window in range(WINDOWS):
        tokens = ids[window * size:(window + 1) * size]
        given = torch.tensor([[model.config.bos_token_id] + tokens[:-1]])
        out = model(given, output_hidden_states=True)
        nats.append(functional.cross_entropy(out.logits[0].double(), torch.tensor(tokens),
                                             reduction="sum").item())
        if window == 0:
            # hidden_states[i] is the input of layer i; the last one has been through the final norm
            layers = [{"largest": state[0, POSITIONS].abs().amax(1).tolist(),
                       "values": state[0, POSITIONS, :FEATURES].flatten().tolist()}
                      for state in out.hidden_states]
    record = {"made_with": f"torch {torch.__version__.split('+')[0]}, "
                           f"transformers {transformers.__version__}",
              "model_crc32": zlib.crc32((FOLDER / "model.safetensors").read_bytes()),
              "window": size, "ids": ids[:WINDOWS * size], "nats": nats, "positions": POSITIONS,
              "features": FEATURES, "hidden_states": layers}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(record, indent=0).replace(",\n", ",") + "\n")
    print(nats)


if __name__ == "__main__":
    main()
