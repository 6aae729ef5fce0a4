#!/usr/bin/env python3
"""Measures models/prose with transformers, dense and 64:2:8, and writes expected.json.

    evaluate.py MODEL_DIR

Everything in float32 on the CPU, of the bf16 weights. The protocol is in expected.json.
"""
import json, math, os, sys

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

PROTOCOL = (
    "Tokens of the whole heldout.txt, no BOS added. Cut into consecutive windows of context - 1 = 511 "
    "tokens (the last one shorter), stride 511, no overlap. Each window is preceded by one BOS "
    "(<|endoftext|>, id 0); its 511 tokens are predicted by positions 0 to 510. Every token is scored "
    "exactly once, the BOS never. perplexity = exp(total nats / tokens); bits per byte = "
    "total nats / ln 2 / bytes of heldout.txt. Arithmetic in float32, weights as stored in bf16.")
PRUNING = (
    "One-shot magnitude 64:2:8 of every linear layer except the embedding / lm_head. W [out, in]; panels "
    "of V = 64 rows, groups of M = 8 columns. In each panel and group keep the 4 columns with the "
    "largest sum of |w| over the panel's rows; then in each row keep the 2 largest |w| of these 4. "
    "Ties go to the lower column. Everything else is zero; nothing is retrained.")
STRINGS = [
    "", " ", "     ", "\t", "\n", "\n\n\n", " \n \t  x", "Hello, world!", " leading space", "trailing space  ",
    "two  spaces   three    four", "The quick brown fox jumps over the lazy dog.", "don't we'll I'M they'VE",
    "1234567890 3.14159 1,000,000 0xFF", "café naïve Ärger Łódź señor", "Straße ﬁ ① ½ e\u0301",
    "日本語のテキスト", "中文字符，测试。", "한국어 문장", "Привет, мир", "مرحبا", "😀 👩‍👩‍👧‍👦 🇨🇭", "a\u00a0b\u2003c\u200bd",
    "int main(void) {\n    return a[i] += 1;  // ok\n}\n", "def f(x):\n\treturn x ** 2\n", "<p class=\"x\">&amp;</p>",
    "https://example.org/a?b=c&d=e#f", "user@example.org", "___--==++!!??", "ALLCAPS CamelCase snake_case",
    "line one\r\nline two\r\n", "A\u0000B\u001b[0m", "<|endoftext|>", "a<|endoftext|>b", "<|endoftext", "’quoted’ “text” — dash…"]
PROMPTS = ["The configuration file", "In the beginning", "If the connection to the server is lost,"]


def nats(model, tokens, context):
    total = 0.0
    for i in range(0, len(tokens), context - 1):
        w = tokens[i:i + context - 1]
        logits = model(F.pad(w[:-1], (1, 0), value=model.config.bos_token_id)[None]).logits[0]
        total += F.cross_entropy(logits.double(), w, reduction="sum").item()
    return total


def mask_64_2_8(w, v=64, n=2, m=8):
    mask = torch.zeros_like(w, dtype=torch.bool)
    for r in range(0, w.shape[0], v):
        a = w[r:r + v].abs().double().unflatten(1, (-1, m))              # rows, groups, m
        order = a.sum(0).argsort(dim=1, descending=True, stable=True)[:, :4]
        chosen = torch.zeros(a.shape[1:], dtype=torch.bool).scatter_(1, order, True)
        a = a.masked_fill(~chosen, -1.0)
        keep = a.argsort(dim=2, descending=True, stable=True)[..., :n]
        mask[r:r + v] = torch.zeros(a.shape, dtype=torch.bool).scatter_(2, keep, True).flatten(1)
    return mask


@torch.no_grad()
def main(folder):
    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    context, bos = model.config.max_position_embeddings, model.config.bos_token_id
    with open(os.path.join(folder, "heldout.txt"), encoding="utf-8", newline="") as f:
        text = f.read()
    size = len(text.encode())
    tokens = torch.tensor(tok(text, add_special_tokens=False, verbose=False).input_ids)

    def score(m):
        total = nats(m, tokens, context)
        return {"nats": total, "nats_per_token": total / len(tokens), "perplexity": math.exp(total / len(tokens)),
                "bits_per_byte": total / math.log(2) / size}

    strings = [{"text": s, "ids": tok(s, add_special_tokens=False).input_ids, "ids_with_bos": tok(s).input_ids}
               for s in STRINGS]
    greedy = []
    for p in PROMPTS:
        ids = tok(p).input_ids
        first, out, gap = model(torch.tensor([ids])).logits[0, -1], [], math.inf
        for _ in range(32):                  # no stop at <|endoftext|>
            top = model(torch.tensor([ids + out])).logits[0, -1].topk(2)
            gap = min(gap, (top.values[0] - top.values[1]).item())
            out.append(top.indices[0].item())
        greedy.append({"prompt": p, "ids": ids, "continuation": out, "text": tok.decode(out),
                       "smallest_gap_of_top_two_logits": gap,
                       "first_logits_of_ids_0_to_15": [round(x, 5) for x in first[:16].tolist()]})
    dense = score(model)
    kept = total = 0
    for name, p in model.named_parameters():
        if p.dim() == 2 and "embed_tokens" not in name and "lm_head" not in name:
            mask = mask_64_2_8(p)
            p.mul_(mask)
            kept, total = kept + int(mask.sum()), total + mask.numel()
    assert kept * 4 == total
    result = {
        "evaluation": {"file": "heldout.txt", "bytes": size, "tokens": len(tokens), "context": context,
                       "stride": context - 1, "bos_id": bos, "protocol": PROTOCOL, "dense": dense,
                       "pruned_64_2_8": score(model), "pruning": PRUNING, "pruned_parameters": total},
        "greedy": greedy, "strings": strings}
    with open(os.path.join(folder, "expected.json"), "w", encoding="utf-8") as f:
        f.write(json.dumps(result, indent=1, ensure_ascii=True) + "\n")
    print(json.dumps(result["evaluation"], indent=1))
    for g in greedy:
        print(g["prompt"], "|", g["text"], "|", g["smallest_gap_of_top_two_logits"])


if __name__ == "__main__":
    main(sys.argv[1])
