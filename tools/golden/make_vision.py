#!/usr/bin/env python3
"""Golden files of the image models' tests: what transformers and timm compute on small ViT, DeiT and SAM
models of several shapes.

Weights and pixels are not stored; make_llama.py says how both sides make them from names. Stored are
config.json, and for some tokens of the batch the embedding, every layer's output and the final norm (or the
neck), then a classifier's logits, all f32.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch transformers timm
    /tmp/venv/bin/python tools/golden/make_vision.py
"""
import json
import pathlib

import numpy
import timm
import torch
import transformers

from make_llama import DTYPES, fractions

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "vision"
VIT = {"architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_act": "gelu",
       "layer_norm_eps": 1e-12, "num_channels": 3, "qkv_bias": True}
DEIT = {**VIT, "model_type": "deit", "architectures": ["DeiTForImageClassification"]}
TEACHER = {**DEIT, "architectures": ["DeiTForImageClassificationWithTeacher"]}


def shape(base, hidden, layers, heads, inner, image, patch, labels, **rest):
    return {**base, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": inner, "image_size": image, "patch_size": patch,
            "id2label": {str(i): f"class {i}" for i in range(labels)},
            "label2id": {f"class {i}": i for i in range(labels)}, **rest}


SAM = {"architectures": ["SamModel"], "model_type": "sam", "vision_config": {
    "hidden_size": 160, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 80,
    "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "output_channels": 24,
    "mlp_dim": 200, "layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": True,
    "use_abs_pos": True, "use_rel_pos": True, "num_channels": 3}}
WIDE_SAM = {"architectures": ["SamVisionModel"], "model_type": "sam_vision_model",
            **SAM["vision_config"], "hidden_size": 1024, "num_attention_heads": 16, "image_size": 48,
            "window_size": 3, "num_hidden_layers": 2, "global_attn_indexes": [0], "mlp_dim": 512}
# name: (dtype, images, height, width, every n-th token is stored, config.json)
MODELS = {
    "a_vit_batch": ("F32", 3, 32, 32, 3, shape(VIT, 64, 2, 4, 112, 32, 8, 5)),
    "b_vit_head80_other_size": ("BF16", 1, 40, 72, 4, shape(VIT, 160, 2, 2, 200, 48, 8, 7)),
    "c_vit_hidden_1024": ("F16", 1, 64, 64, 4, shape(VIT, 1024, 2, 16, 640, 64, 16, 11)),
    "d_deit_two_heads": ("F32", 2, 48, 48, 8, shape(TEACHER, 128, 2, 4, 176, 32, 8, 9)),
    "e_deit_tanh_no_bias": ("F16", 2, 32, 32, 3, shape(
        DEIT, 96, 2, 3, 130, 32, 8, 6, hidden_act="gelu_pytorch_tanh", qkv_bias=False)),
    "f_timm_vit": ("F32", 2, 32, 32, 3, shape(VIT, 64, 2, 4, 112, 32, 8, 5, layer_norm_eps=1e-6)),
    "g_timm_deit_two_heads": ("BF16", 3, 32, 32, 5, shape(
        TEACHER, 64, 2, 4, 112, 32, 8, 5, layer_norm_eps=1e-6)),
    "h_sam_padded_windows": ("F32", 2, 80, 80, 11, SAM),
    "i_sam_hidden_1024": ("BF16", 1, 48, 48, 5, WIDE_SAM),
}


def weight(name, size, dtype):
    values = fractions(name, int(numpy.prod(size)))
    if "norm" in name and name.endswith(".weight"):
        values = numpy.float32(1) + values * numpy.float32(0.25)
    elif name.endswith(".bias"):
        values = values * numpy.float32(0.25)
    else:
        values = values * numpy.float32(2.0 ** -((size[-1].bit_length() - 1) // 2))
    return torch.from_numpy(values).reshape(size).to(dtype).to(torch.float32)


def build(name, config):
    """The model, its embedding's owner, its layers, what comes last, and what runs it."""
    if "timm" in name:
        extra = {"class_token": True, "qkv_bias": config["qkv_bias"]}
        kind = timm.models.vision_transformer.VisionTransformer
        if config["model_type"] == "deit":
            kind = timm.models.deit.VisionTransformerDistilled
        model = kind(img_size=config["image_size"], patch_size=config["patch_size"],
                     num_classes=len(config["id2label"]), embed_dim=config["hidden_size"],
                     depth=config["num_hidden_layers"], num_heads=config["num_attention_heads"],
                     mlp_ratio=config["intermediate_size"] / config["hidden_size"],
                     qkv_bias=config["qkv_bias"])
        return model, model.blocks, model.norm, model
    if config["model_type"].startswith("sam"):
        vision = config.get("vision_config", config)
        loaded = transformers.SamVisionConfig(**{k: v for k, v in vision.items() if k not in (
            "model_type", "architectures")})
        loaded._attn_implementation = "eager"
        model = transformers.SamVisionModel(loaded)
        encoder = model.vision_encoder
        return model, encoder.layers, encoder.neck, model
    kind = getattr(transformers, config["architectures"][0])
    loaded = kind.config_class.from_dict({k: v for k, v in config.items() if k != "architectures"})
    loaded._attn_implementation = "eager"
    model = kind(loaded)
    base = model.vit if config["model_type"] == "vit" else model.deit
    return model, base.layers if hasattr(base, "layers") else base.encoder.layer, base.layernorm, \
        lambda x: model(x, interpolate_pos_encoding=True)


def stored_name(key):
    """Names as released files have them, where a newer transformers calls them otherwise."""
    for new, old in ((".attention.q_proj.", ".attention.attention.query."),
                     (".attention.k_proj.", ".attention.attention.key."),
                     (".attention.v_proj.", ".attention.attention.value."),
                     (".attention.o_proj.", ".attention.output.dense."),
                     (".mlp.fc1.", ".intermediate.dense."), (".mlp.fc2.", ".output.dense.")):
        if key.startswith(("vit.", "deit.")):
            key = key.replace(new, old)
    for prefix in ("vit.", "deit."):
        if key.startswith(prefix + "layers."):
            key = key.replace(prefix + "layers.", prefix + "encoder.layer.")
    return key


def original_name(key):
    """The name of a SAM tensor in the original repository."""
    for new, old in (("vision_encoder.", "image_encoder."), ("patch_embed.projection", "patch_embed.proj"),
                     (".layers.", ".blocks."), ("neck.conv1", "neck.0"), ("neck.layer_norm1", "neck.1"),
                     ("neck.conv2", "neck.2"), ("neck.layer_norm2", "neck.3"), (".layer_norm", ".norm")):
        key = key.replace(new, old)
    return key


def make(name, dtype, images, height, width, every, config):
    model, layers, last, run = build(name, config)
    model = model.to(torch.float32).eval()
    tensors, seen = [], {}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            key = stored_name(key)
            parameter.copy_(weight(key, tuple(parameter.shape), DTYPES[dtype]))
            tensors.append({"name": key, "shape": list(parameter.shape)})

    def flat(x):
        return x.reshape(-1, x.shape[-1])
    layers[0].register_forward_pre_hook(lambda _m, i: seen.update(embed=flat(i[0])))
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda _m, _i, o, i=i: seen.update(
            {f"layer.{i}": flat(o[0] if isinstance(o, tuple) else o)}))
    last.register_forward_hook(lambda _m, _i, o: seen.update(
        {"neck": flat(o.permute(0, 2, 3, 1))} if o.dim() == 4 else {"norm": flat(o)}))
    pixels = torch.from_numpy(fractions("pixels", images * 3 * height * width)).reshape(
        images, 3, height, width)
    with torch.no_grad():
        result = run(pixels)
    if "timm" in name and isinstance(result, tuple):
        result = (result[0] + result[1]) / 2
    names = ["embed"] + [f"layer.{i}" for i in range(len(layers))] + ["norm" if "norm" in seen else "neck"]
    tokens = list(range(every - 1, seen["embed"].shape[0], every))
    outputs = [seen[key][tokens] for key in names]
    if "norm" in seen:
        outputs.append(result if isinstance(result, torch.Tensor) else result.logits)
    data = numpy.concatenate([o.detach().numpy().astype("<f4").ravel() for o in outputs])
    (OUT / f"{name}.bin").write_bytes(data.tobytes())
    record = {"made_with": f"torch {torch.__version__.split('+')[0]}, "
                           f"transformers {transformers.__version__}, timm {timm.__version__}",
              "dtype": dtype, "images": images, "height": height, "width": width, "tokens": tokens,
              "parts": names, "outputs": name, "config": config, "tensors": tensors}
    write(name, record)
    if name.startswith("h_sam"):                 # the same under the original names
        renamed = [{"name": original_name(t["name"]), "like": t["name"], "shape": t["shape"]}
                   for t in tensors]
        write("j_sam_original_names", {**record, "tensors": renamed})
    print(name, data.size * 4, "bytes", {k: float(seen[k].abs().max()) for k in names})


def write(name, record):
    lines = [f"{json.dumps(key)}: " + ("[\n" + ",\n".join(map(json.dumps, value)) + "]"
                                       if key == "tensors" else json.dumps(value))
             for key, value in record.items()]
    (OUT / f"{name}.json").write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for key, description in MODELS.items():
        make(key, *description)
