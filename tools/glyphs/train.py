#!/usr/bin/env python3
"""Trains models/glyphs on one GPU: a DeiT without distillation token (Touvron et al., arXiv
2012.12877), of 4.8 M parameters, on letters that are distorted anew every time they are drawn.

    train.py DATA_DIR MODEL_DIR

Reads DATA_DIR/train.npz and heldout.npz (collect_fonts.py); writes config.json,
preprocessor_config.json, model.safetensors (bf16) in the Hugging Face layout of
ViTForImageClassification, and training.json.
"""
import argparse, json, math, os, time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import distort
from characters import CLASS_OF, LABELS

HIDDEN, FFN, LAYERS, HEADS, PATCH, SIDE, EPS = 256, 1024, 6, 4, 4, distort.SIDE, 1e-6
PATCHES = (SIDE // PATCH) ** 2


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN, EPS), nn.LayerNorm(HIDDEN, EPS)
        self.query, self.key, self.value, self.dense = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(HIDDEN, FFN), nn.Linear(FFN, HIDDEN)

    def forward(self, x):
        b, t, _ = x.shape
        n = self.norm1(x)
        q, k, v = (f(n).view(b, t, HEADS, -1).transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, HIDDEN)
        x = x + self.dense(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, HIDDEN))
        self.positions = nn.Parameter(torch.zeros(1, PATCHES + 1, HIDDEN))
        self.projection = nn.Conv2d(3, HIDDEN, PATCH, PATCH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(HIDDEN, EPS)
        self.classifier = nn.Linear(HIDDEN, len(LABELS))
        for p in (self.cls, self.positions):
            nn.init.trunc_normal_(p, std=0.02)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.trunc_normal_(m.weight, std=0.02 * math.sqrt(384 / HIDDEN))
                nn.init.zeros_(m.bias)

    def forward(self, pictures):                 # [n, 3, 32, 32] in -1..1
        x = self.projection(pictures).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1).to(x.dtype), x), 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.norm(x)[:, 0])


def hugging_face(name):
    """The name that ViTForImageClassification gives a tensor."""
    if name.startswith("layers."):
        _, i, part, kind = name.split(".")
        part = {"norm1": "layernorm_before", "norm2": "layernorm_after", "fc1": "intermediate.dense",
                "fc2": "output.dense", "dense": "attention.output.dense"}.get(
                    part, f"attention.attention.{part}")
        return f"vit.encoder.layer.{i}.{part}.{kind}"
    for ours, theirs in (("cls", "vit.embeddings.cls_token"), ("norm", "vit.layernorm"),
                         ("positions", "vit.embeddings.position_embeddings"),
                         ("projection", "vit.embeddings.patch_embeddings.projection"),
                         ("classifier", "classifier")):
        if name == ours or name.startswith(ours + "."):
            return theirs + name[len(ours):]
    raise KeyError(name)


def save(model, folder):
    from safetensors.torch import save_file
    os.makedirs(folder, exist_ok=True)
    save_file({hugging_face(k): v.detach().to(torch.bfloat16).cpu().contiguous()
               for k, v in model.state_dict().items()},
              os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    config = {
        "architectures": ["ViTForImageClassification"], "model_type": "vit", "torch_dtype": "bfloat16",
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": FFN, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02, "layer_norm_eps": EPS,
        "image_size": SIDE, "patch_size": PATCH, "num_channels": 3, "qkv_bias": True,
        "id2label": {str(i): c for i, c in enumerate(LABELS)},
        "label2id": {c: i for i, c in enumerate(LABELS)}}
    preprocessor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True,
        "size": {"height": SIDE, "width": SIDE}, "resample": 3, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3}
    for name, obj in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        with open(os.path.join(folder, name), "w") as f:
            json.dump(obj, f, indent=2)
            f.write("\n")


def load(path, device):
    """uint8 [glyphs][40][20] and their classes."""
    packed = torch.from_numpy(np.load(path)["glyphs"]).to(device)
    classes = torch.tensor(CLASS_OF, device=device).repeat(packed.shape[0])
    return packed.flatten(0, 1), classes


def normalised(pictures):
    return pictures.float() / 127.5 - 1


def accuracy(model, packed, classes, level, seed, count=20000):
    g = torch.Generator(device=packed.device).manual_seed(seed)
    right = 0
    with torch.no_grad():
        for at in range(0, count, 1000):
            pick = torch.randint(0, len(classes), (1000,), generator=g, device=packed.device)
            pictures = distort.distort(distort.unpack(packed[pick]), g, level)
            right += (model(normalised(pictures)).argmax(1) == classes[pick]).sum().item()
    return right / count


def one_shot(model):
    """Keeps in each group of eight columns the four that weigh most over 64 rows, and of these the
    two largest of each row: what 64:2:8 leaves."""
    for name, p in model.named_parameters():
        if p.dim() == 2 and name.startswith("layers."):
            w = p.data.view(p.shape[0] // 64, 64, p.shape[1] // 8, 8)
            columns = w.abs().sum(1, keepdim=True).topk(4, dim=-1).indices
            mask = torch.zeros_like(w[:, :1]).scatter_(-1, columns, 1.0)
            kept = (w * mask).abs().topk(2, dim=-1).indices
            p.data = (w * torch.zeros_like(w).scatter_(-1, kept, 1.0)).view_as(p)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("data")
    ap.add_argument("model")
    ap.add_argument("--steps", type=int, default=0, help="0: as many as --seconds hold")
    ap.add_argument("--seconds", type=float, default=85)
    ap.add_argument("--level", type=float, default=0.8, help="strongest distortion")
    ap.add_argument("--batch", type=int, default=1024)
    ap.add_argument("--lr", type=float, default=1.5e-3)
    ap.add_argument("--decay", type=float, default=0.1)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--device", default="cuda")
    args = ap.parse_args()
    device = args.device
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    packed, classes = load(os.path.join(args.data, "train.npz"), device)
    held = load(os.path.join(args.data, "heldout.npz"), device)
    model = ViT().to(device)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2]
    others = [p for n, p in model.named_parameters() if p.dim() != 2]
    opt = torch.optim.AdamW([{"params": matrices, "weight_decay": args.decay},
                             {"params": others, "weight_decay": 0.0}],
                            lr=args.lr, betas=(0.9, 0.98), fused=device == "cuda")
    g = torch.Generator(device=device).manual_seed(args.seed)

    def batch():
        pick = torch.randint(0, len(classes), (args.batch,), generator=g, device=device)
        level = args.level * torch.rand(args.batch, generator=g, device=device)
        return distort.distort(distort.unpack(packed[pick]), g, level), classes[pick]

    def loss_of(pictures, wanted):
        return F.cross_entropy(model(normalised(pictures)).float(), wanted, label_smoothing=0.05)

    step_loss = torch.compile(loss_of) if device == "cuda" else loss_of
    steps, began, running, log = args.steps, time.time(), [], []
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(classes)} glyphs", flush=True)
    step = 0
    while steps == 0 or step < steps:
        if step == 20:                           # compiled and warm
            torch.cuda.synchronize()
            warm = time.time()
        if step == 120 and steps == 0:
            torch.cuda.synchronize()
            rate = 100 / (time.time() - warm)
            steps = max(200, int(rate * (args.seconds - (time.time() - began))))
            print(f"{rate:.1f} steps a second, {steps} steps, warm after {warm - began:.0f} s", flush=True)
        total = steps or 4000
        scale = min(1, (step + 1) / 300) * (0.5 + 0.5 * math.cos(math.pi * min(1, step / total)))
        for group in opt.param_groups:
            group["lr"] = args.lr * scale
        pictures, wanted = batch()
        with torch.autocast(device, torch.bfloat16):
            loss = step_loss(pictures, wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        running.append(loss.detach())
        step += 1
        if step % 500 == 0:
            log.append([step, round(torch.stack(running[-500:]).mean().item(), 4)])
            note = f"  held out {accuracy(model, *held, 0.4, 7, 5000):.4f}" if step % 2000 == 0 else ""
            print(f"step {step}  loss {log[-1][1]}{note}  {time.time() - began:.0f} s", flush=True)
    took = time.time() - began
    save(model, args.model)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16))
    levels = [0.2, 0.3, 0.4, 0.5, 0.6, 0.8]
    dense = {level: accuracy(model, *held, level, 7) for level in levels}
    fitted = accuracy(model, packed, classes, 0.4, 7)
    one_shot(model)
    pruned = {level: accuracy(model, *held, level, 7) for level in levels}
    record = {"steps": steps, "batch": args.batch, "pictures": steps * args.batch, "lr": args.lr,
              "weight_decay": args.decay, "seconds": round(took, 1), "glyphs": len(classes),
              "heldout": dense, "trained_fonts": fitted, "heldout_one_shot": pruned, "log": log}
    with open(os.path.join(args.model, "training.json"), "w") as f:
        json.dump(record, f)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
