#!/usr/bin/env python3
"""Golden files of the Llama test (Qwen2 too): what transformers computes on small models of several shapes.

Weights are not stored. Both sides make them from the tensor's name: splitmix64 seeded by FNV-1a of the
name gives 24 bits an element, read as a fraction in [-1, 1) and multiplied by a power of two; norms are
1 + fraction / 4, biases fraction / 4. Stored are config.json, token ids, and for some positions the embedding, every layer's
output, the final norm and the logits, in f32, plus a greedy continuation.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch transformers
    /tmp/venv/bin/python tools/golden/make_llama.py [NAME...]
"""
import copy
import json
import math
import pathlib
import sys

import numpy
import torch
import transformers

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "llama"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BASE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2}


def shape(vocab, hidden, inner, layers, heads, kv_heads, **rest):
    return {**BASE, "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, **rest}


def qwen2(vocab, hidden, inner, layers, heads, kv_heads, **rest):
    """As released files are: a window that is not used, biases that no key mentions."""
    made = shape(vocab, hidden, inner, layers, heads, kv_heads, **rest)
    return {**made, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
            "sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 21,
            "rms_norm_eps": 1e-6}


LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
# name: (dtype, tokens, every n-th position is stored, config.json)
MODELS = {
    "a_tiny_mha": ("F32", 24, 1, shape(101, 64, 112, 2, 4, None, rope_theta=10000.0)),
    "a_tiny_mha_f16": ("F16", 24, 2, shape(101, 64, 112, 2, 4, 4, rope_theta=10000.0)),
    "a_tiny_mha_bf16": ("BF16", 24, 2, shape(101, 64, 112, 2, 4, 4, rope_theta=10000.0)),
    "b_gqa_head64": ("BF16", 40, 4, shape(512, 384, 1024, 1, 6, 2, rope_theta=10000.0)),
    "c_head_dim_biases": ("F16", 33, 3, shape(
        130, 96, 200, 2, 4, 2, head_dim=32, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=False, rope_theta=10000.0, rms_norm_eps=1e-6)),
    "d_llama3_rope": ("F32", 120, 12, shape(259, 128, 176, 3, 4, 1, rope_parameters=LLAMA3)),
    "e_linear_rope": ("F32", 60, 6, shape(
        77, 80, 96, 2, 5, 5, head_dim=None, rope_theta=20000.0,
        rope_scaling={"type": "linear", "factor": 2.5})),
    "f_hidden_1024": ("BF16", 20, 4, shape(257, 1024, 688, 2, 16, 4, rope_theta=10000.0)),
    "g_heads_of_80": ("F16", 21, 7, shape(
        93, 160, 208, 2, 4, 2, head_dim=80, tie_word_embeddings=False, rope_theta=10000.0)),
    "h_llama3_1024": ("BF16", 30, 15, shape(
        258, 1024, 1376, 2, 8, 2, tie_word_embeddings=False, rope_parameters=LLAMA3)),
    "i_one_token": ("F32", 1, 1, shape(66, 48, 80, 2, 3, 1, rope_theta=10000.0)),
    "j_qwen2": ("F32", 27, 9, qwen2(103, 96, 136, 2, 6, 2, rope_theta=1000000.0)),
    "k_qwen2_1024": ("BF16", 18, 9, qwen2(
        261, 1024, 1200, 2, 16, 2, tie_word_embeddings=False, rope_theta=1000000.0)),
}
MASK = numpy.uint64(0xFFFFFFFFFFFFFFFF)


def fractions(name, count):
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) % (1 << 64)
    with numpy.errstate(over="ignore"):
        z = (numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
             + numpy.uint64(seed))
        z = (z ^ z >> numpy.uint64(30)) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> numpy.uint64(27)) * numpy.uint64(0x94D049BB133111EB)
        z = z ^ z >> numpy.uint64(31)
    bits = (z >> numpy.uint64(40)).astype(numpy.int64) - (1 << 23)
    return bits.astype(numpy.float32) * numpy.float32(2.0 ** -23)


def weight(name, size, dtype):
    values = fractions(name, math.prod(size))
    if name.endswith(("norm.weight", "Norm.weight", "Norm.gamma")):
        values = numpy.float32(1) + values * numpy.float32(0.25)
    elif name.endswith((".bias", ".beta")):
        values = values * numpy.float32(0.25)
    else:
        exponent = 6  # small embeddings, so that the layers decide
        if "embed_tokens" not in name:
            exponent = (size[1].bit_length() - 1) // 2  # 1 / sqrt(in), up to a factor 2
        values = values * numpy.float32(2.0 ** -exponent)
    return torch.from_numpy(values).reshape(size).to(dtype)


def observe(model):
    seen, hooks = {}, []
    parts = [("embed", model.model.embed_tokens), ("norm", model.model.norm)]
    parts += [(f"layer.{i}", layer) for i, layer in enumerate(model.model.layers)]
    for name, module in parts:
        def keep(_module, _inputs, output, name=name):
            seen[name] = (output[0] if isinstance(output, tuple) else output).detach()
        hooks.append(module.register_forward_hook(keep))
    return seen, hooks


def make(name, dtype, tokens, every, config):
    qwen = config["model_type"] == "qwen2"
    kind = transformers.Qwen2Config if qwen else transformers.LlamaConfig
    loaded = kind.from_dict(copy.deepcopy(config))
    loaded._attn_implementation = "eager"
    rope = loaded.rope_parameters
    expected_rope = config.get("rope_parameters") or {
        "rope_type": config.get("rope_scaling", {}).get("type", "default"),
        "rope_theta": config["rope_theta"]}
    assert all(rope[key] == value for key, value in expected_rope.items()), rope
    kind = transformers.Qwen2ForCausalLM if qwen else transformers.LlamaForCausalLM
    model = kind(loaded).to(torch.float32).eval()
    tied = config["tie_word_embeddings"]
    tensors = []
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(weight(key, tuple(parameter.shape), DTYPES[dtype]).to(torch.float32))
            tensors.append({"name": key, "shape": list(parameter.shape)})
    assert tied != any(entry["name"] == "lm_head.weight" for entry in tensors)
    ids, continuation = choose_prompt(model, tokens, config["vocab_size"])
    positions = list(range(every - 1, tokens, every))
    seen, hooks = observe(model)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    for hook in hooks:
        hook.remove()
    names = ["embed"] + [f"layer.{i}" for i in range(config["num_hidden_layers"])] + ["norm"]
    outputs = [seen[key][0, positions] for key in names] + [logits[0, positions]]
    data = numpy.concatenate([output.numpy().astype("<f4").ravel() for output in outputs])
    (OUT / f"{name}.bin").write_bytes(data.tobytes())
    record = {"made_with": f"torch {torch.__version__.split('+')[0]}, "
                           f"transformers {transformers.__version__}",
              "dtype": dtype, "config": config, "tensors": tensors, "ids": ids,
              "positions": positions, "outputs": names + ["logits"],
              "continuation": continuation}
    text = json.dumps(record, indent=0).replace(",\n", ",") + "\n"
    (OUT / f"{name}.json").write_text(text)
    print(name, len(data) * 4, "bytes, largest logit", float(logits.abs().max()))


def greedy(model, ids):
    """16 tokens, by transformers' own generate; None when one of them is a close call."""
    given = torch.tensor([ids])
    # Without a mask generate() would take every token 0 of the prompt for padding.
    out = model.generate(given, attention_mask=torch.ones_like(given), do_sample=False,
                         max_new_tokens=16, min_new_tokens=16, eos_token_id=None, pad_token_id=0,
                         return_dict_in_generate=True, output_logits=True)
    for step in out.logits:
        top = step[0].topk(2).values
        if top[0] - top[1] < 1e-3 * step[0].abs().max():
            return None
    return out.sequences[0, len(ids):].tolist()


def choose_prompt(model, tokens, vocabulary):
    """The first of 50 random prompts whose continuation is clear and says more than one thing."""
    for salt in range(50):
        ids = [int(i) for i in (fractions(f"ids{salt}", tokens) + 1) / 2 * vocabulary]
        continuation = greedy(model, ids)
        if continuation is not None and len(set(continuation)) > 3:
            return ids, continuation
    raise SystemExit("no prompt has a clear continuation")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name, (dtype, tokens, every, config) in MODELS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        make(name, dtype, tokens, every, config)


if __name__ == "__main__":
    main()
