#!/usr/bin/env python3
"""Trains models/prose: a Llama of 11 M parameters, on one GPU.

    train.py TEXT_DIR MODEL_DIR

Reads TEXT_DIR/train.bin and heldout.bin (train_tokenizer.py); writes config.json,
generation_config.json and model.safetensors (bf16) in the Hugging Face layout into
MODEL_DIR, and training.json beside them. xz-compressed .bin.xz files will do too.
"""
import argparse, json, lzma, math, os, time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

VOCAB, HIDDEN, FFN, LAYERS, HEADS, KV, HEAD = 4096, 384, 1024, 6, 6, 2, 64
CONTEXT, THETA, EPS, BOS = 512, 10000.0, 1e-5, 0


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x):
        return F.rms_norm(x, (HIDDEN,), self.weight.to(x.dtype), EPS)


def rope(x, cos, sin):                       # the rotate-half form of Llama
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD, bias=False)
        self.k_proj = nn.Linear(HIDDEN, KV * HEAD, bias=False)
        self.v_proj = nn.Linear(HIDDEN, KV * HEAD, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD, HIDDEN, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = rope(self.q_proj(x).view(b, t, HEADS, HEAD).transpose(1, 2), cos, sin)
        k = rope(self.k_proj(x).view(b, t, KV, HEAD).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(b, t, KV, HEAD).transpose(1, 2)
        k, v = (u.repeat_interleave(HEADS // KV, 1) for u in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, HEADS * HEAD))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, FFN, bias=False)
        self.up_proj = nn.Linear(HIDDEN, FFN, bias=False)
        self.down_proj = nn.Linear(FFN, HIDDEN, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(), Attention()
        self.post_attention_layernorm, self.mlp = RMSNorm(), MLP()

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):                      # parameter names as in LlamaForCausalLM's `model.`
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm()
        for name, p in self.named_parameters():
            if p.dim() == 2:
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * LAYERS) if out else 1))
        inv = THETA ** (-torch.arange(0, HEAD, 2).float() / HEAD)
        angle = torch.outer(torch.arange(CONTEXT).float(), torch.cat((inv, inv)))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        if torch.is_autocast_enabled("cuda"):
            x = x.bfloat16()
        cos, sin = self.cos[:ids.shape[1]].to(x.dtype), self.sin[:ids.shape[1]].to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)

    def loss(self, ids, targets, reduction="mean"):
        logits = self(ids).float()
        return F.cross_entropy(logits.view(-1, VOCAB), targets.reshape(-1), reduction=reduction)


def load(path):
    if os.path.exists(path):
        return np.fromfile(path, dtype="<u2")
    with lzma.open(path + ".xz") as f:
        return np.frombuffer(f.read(), dtype="<u2")


def held_out_loss(model, tokens):
    """Mean nats a token: windows of CONTEXT - 1 tokens, each after a BOS."""
    total = 0.0
    with torch.no_grad():
        for i in range(0, len(tokens), CONTEXT - 1):
            w = tokens[i:i + CONTEXT - 1]
            ids = F.pad(w[:-1], (1, 0), value=BOS)
            total += Llama.loss(model, ids[None], w[None], "sum").item()
    return total / len(tokens)


def batches(stream, rows, seed, device):
    """Shuffled windows, another phase and order every epoch; position 0 is always BOS."""
    rng = np.random.default_rng(seed)
    while True:
        phase = int(rng.integers(0, CONTEXT))
        starts = phase + CONTEXT * rng.permutation((len(stream) - phase) // CONTEXT)
        starts = torch.from_numpy(starts).to(device)
        for i in range(0, len(starts) - rows + 1, rows):
            w = stream[starts[i:i + rows, None] + torch.arange(CONTEXT, device=device)].long()
            yield F.pad(w[:, :-1], (1, 0), value=BOS), w


def save(model, folder):
    from safetensors.torch import save_file
    os.makedirs(folder, exist_ok=True)
    save_file({f"model.{k}": v.detach().to(torch.bfloat16).cpu().contiguous()
               for k, v in model.state_dict().items()},
              os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV,
        "head_dim": HEAD, "max_position_embeddings": CONTEXT, "hidden_act": "silu",
        "rms_norm_eps": EPS, "rope_theta": THETA, "rope_scaling": None, "tie_word_embeddings": True,
        "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
        "initializer_range": 0.02, "pretraining_tp": 1, "use_cache": True,
        "bos_token_id": BOS, "eos_token_id": BOS}
    generation = {"_from_model_config": True, "bos_token_id": BOS, "eos_token_id": BOS}
    for name, obj in (("config.json", config), ("generation_config.json", generation)):
        with open(os.path.join(folder, name), "w") as f:
            json.dump(obj, f, indent=2)
            f.write("\n")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("text")
    ap.add_argument("model")
    ap.add_argument("--tokens", type=float, default=0.9e9, help="training tokens seen")
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--decay", type=float, default=0.3, help="weight decay of the matrices")
    ap.add_argument("--rows", type=int, default=128, help="windows a step")
    ap.add_argument("--warmup", type=int, default=1000)
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()

    device = "cuda"
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    stream = torch.from_numpy(load(os.path.join(args.text, "train.bin")).astype(np.int32)).to(device)
    held = torch.from_numpy(load(os.path.join(args.text, "heldout.bin")).astype(np.int64)).to(device)
    model = Llama().to(device)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() == 1 or "embed" in n]
    params = sum(p.numel() for p in model.parameters())
    opt = torch.optim.AdamW([{"params": matrices, "weight_decay": args.decay},
                             {"params": others, "weight_decay": 0.0}],
                            lr=args.lr, betas=(0.9, 0.95), eps=1e-9, fused=True)
    steps = round(args.tokens / (args.rows * CONTEXT))
    step_loss = torch.compile(lambda ids, w: Llama.loss(model, ids, w))
    print(f"{params} parameters ({sum(p.numel() for p in matrices) / params:.1%} in layers' matrices), "
          f"{len(stream)} unique tokens, {steps} steps", flush=True)

    data, began, log, running = batches(stream, args.rows, args.seed, device), None, [], []
    for step in range(steps):
        # Linear warm-up, then linear decay to zero.
        scale = min((step + 1) / args.warmup, (steps - step) / max(1, steps - args.warmup))
        for g in opt.param_groups:
            g["lr"] = args.lr * scale
        ids, w = next(data)
        with torch.autocast("cuda", torch.bfloat16):
            loss = step_loss(ids, w)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        running.append(loss.detach())
        if step == 9:                        # compiled and warm
            torch.cuda.synchronize()
            began = time.time()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            mean = torch.stack(running[-250:]).mean().item()
            took = time.time() - began
            rate = (step - 9) * args.rows * CONTEXT / took
            log.append([step + 1, round(mean, 4)])
            note = ""
            if (step + 1) % 1000 == 0 or step + 1 == steps:
                note = f"  held out {held_out_loss(model, held):.4f}"
            print(f"step {step + 1}  train loss {mean:.4f}{note}  {rate / 1e6:.2f} M tokens/s  "
                  f"{took:.0f} s", flush=True)
        if (step + 1) % 1000 == 0:
            save(model, args.model)          # the last one saved survives a stop
    save(model, args.model)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16))
    torch.set_float32_matmul_precision("highest")
    final = held_out_loss(model, held)
    record = {"parameters": params, "prunable": sum(p.numel() for p in matrices),
              "unique_tokens": len(stream), "tokens_seen": steps * args.rows * CONTEXT,
              "epochs": steps * args.rows * CONTEXT / len(stream), "steps": steps,
              "batch_tokens": args.rows * CONTEXT, "lr": args.lr, "weight_decay": args.decay,
              "seconds": round(time.time() - began, 1), "final_train_loss": log[-1][1],
              "held_out_nats_bf16_weights_f32": final, "log": log}
    with open(os.path.join(args.model, "training.json"), "w") as f:
        json.dump(record, f)
    print(json.dumps({k: v for k, v in record.items() if k != "log"}))


if __name__ == "__main__":
    main()
