#!/usr/bin/env python3
"""Golden files of the BERT test: what transformers computes on small encoders of several shapes.

Weights are made from the tensors' names, by the rule of make_llama.py. Stored are config.json, the token
ids of three texts of different lengths, and for some of their tokens the embedding and every layer's
output, in f32, from one padded and masked batch; then the mean, the first and the largest of each text's
last layer. Columns are counted over the texts one behind the other, without padding.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch transformers
    /tmp/venv/bin/python tools/golden/make_bert.py
"""
import copy
import json
import pathlib

import numpy
import torch
import transformers
from make_llama import DTYPES, fractions, weight

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "bert"
BASE = {"architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu",
        "max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute", "pad_token_id": 0}


def shape(vocab, hidden, inner, layers, heads, **rest):
    return {**BASE, "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, **rest}


# name: (dtype, lengths of the texts, every n-th token is stored, names of tensors, config.json)
MODELS = {
    "a_heads_of_32": ("F32", [9, 1, 23], 2, "", shape(101, 96, 176, 2, 3)),
    "b_heads_of_80_relu": ("F16", [4, 30, 2], 4, "", shape(
        130, 160, 300, 2, 2, hidden_act="relu", layer_norm_eps=1e-5)),
    "c_old_names_gelu_new": ("BF16", [17, 5, 1], 3, "old", shape(
        77, 72, 90, 3, 4, architectures=["BertForMaskedLM"], hidden_act="gelu_new",
        type_vocab_size=1)),
    "d_hidden_1024": ("BF16", [6, 18, 11], 9, "", shape(258, 1024, 1504, 2, 16)),
    "e_silu": ("F32", [1, 1, 40], 5, "", shape(64, 48, 64, 1, 3, hidden_act="silu")),
}


def name_of(key, names):
    if names != "old":
        return key
    return "bert." + key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta")


def run(model, texts):
    seen, hooks = {}, []
    parts = [("embed", model.embeddings)]
    parts += [(f"layer.{i}", layer) for i, layer in enumerate(model.encoder.layer)]
    for name, module in parts:
        def keep(_module, _inputs, output, name=name):
            seen[name] = (output[0] if isinstance(output, tuple) else output).detach()
        hooks.append(module.register_forward_hook(keep))
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    with torch.no_grad():
        model(ids, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat([output[i, :len(text)] for i, text in enumerate(texts)])
            for name, output in seen.items()}


def make(name, dtype, lengths, every, names, config):
    loaded = transformers.BertConfig.from_dict(copy.deepcopy(config))
    loaded._attn_implementation = "eager"
    model = transformers.BertModel(loaded, add_pooling_layer=False).to(torch.float32).eval()
    tensors = []
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            stored = name_of(key, names)
            values = weight(stored, tuple(parameter.shape), DTYPES[dtype])
            parameter.copy_(values.to(torch.float32))
            tensors.append({"name": stored, "shape": list(parameter.shape)})
    texts = [[int(i) for i in (fractions(f"text{k}", length) + 1) / 2 * config["vocab_size"]]
             for k, length in enumerate(lengths)]
    columns = list(range(every - 1, sum(lengths), every))
    seen = run(model, texts)
    order = ["embed"] + [f"layer.{i}" for i in range(config["num_hidden_layers"])]
    outputs = [seen[key][columns] for key in order]
    last = torch.split(seen[order[-1]], lengths)
    outputs += [torch.stack([text.mean(0) for text in last]),
                torch.stack([text[0] for text in last]),
                torch.stack([text.max(0).values for text in last])]
    data = numpy.concatenate([output.numpy().astype("<f4").ravel() for output in outputs])
    (OUT / f"{name}.bin").write_bytes(data.tobytes())
    record = {"made_with": f"torch {torch.__version__.split('+')[0]}, "
                           f"transformers {transformers.__version__}",
              "dtype": dtype, "config": config, "tensors": tensors, "texts": texts,
              "columns": columns, "outputs": order, "pooled": ["mean", "cls", "max"]}
    (OUT / f"{name}.json").write_text(json.dumps(record, indent=0).replace(",\n", ",") + "\n")
    print(name, len(data) * 4, "bytes")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name, (dtype, lengths, every, names, config) in MODELS.items():
        make(name, dtype, lengths, every, names, config)


if __name__ == "__main__":
    main()
