#!/usr/bin/env python3
"""Whole models in PyTorch, dense, random weights: what `espalier bench MODEL` is compared with.

Usage: pytorch_models.py [--type f16|bf16] [--compile] [NAME...]; names as below, all of them without any. One JSON
line each: milliseconds (medians by CUDA events) of plain calls, of the same calls replayed from a CUDA graph, and with
--compile of torch.compile (minutes). Needs torch, timm and transformers and a GPU.
"""
import argparse
import json
import statistics
import warnings

import torch

warnings.filterwarnings("ignore")
TYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


def median_ms(call, runs=15, warm=3):
    for _ in range(warm):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def graph_ms(call):
    """The call as one graph: no time of the host."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return median_ms(graph.replay)


def made(build, dtype):
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        model = build().eval()
    torch.set_default_dtype(torch.float32)
    return model


def image_model(name, batch, dtype):
    import timm

    model = timm.create_model(name, pretrained=False).to("cuda", dtype).eval()
    pixels = torch.randn(batch, 3, 224, 224, device="cuda", dtype=dtype)
    return lambda run: run(pixels), model


def sam(dtype):
    from transformers import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    config = SamVisionConfig(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, mlp_dim=5120,
                             global_attn_indexes=[7, 15, 23, 31])
    pixels = torch.randn(1, 3, 1024, 1024, device="cuda", dtype=dtype)
    return lambda run: run(pixels), SamVisionEncoder(config).to("cuda", dtype).eval()


def bert(dtype):
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
                        _attn_implementation="sdpa")
    ids = torch.randint(0, 30000, (32, 512), device="cuda")
    return lambda run: run(ids), made(lambda: BertModel(config), dtype)


def llama(dtype):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                         vocab_size=32000)
    config._attn_implementation = "sdpa"
    return config, made(lambda: LlamaForCausalLM(config), dtype)


def llama_prefill(dtype):
    config, model = llama(dtype)
    ids = torch.randint(0, 32000, (1, 2048), device="cuda")
    return lambda run: run(ids, use_cache=False, logits_to_keep=1), model


def llama_decode(batch, dtype):
    from transformers import StaticCache

    config, model = llama(dtype)
    ids = torch.randint(0, 32000, (batch, 128), device="cuda")
    cache = StaticCache(config=config, max_cache_len=512)
    model(ids, past_key_values=cache, cache_position=torch.arange(128, device="cuda"))
    token, place = ids[:, :1].clone(), torch.tensor([128], device="cuda")
    return lambda run: run(token, past_key_values=cache, cache_position=place), model


MODELS = {
    "deit-small/b64": lambda dtype: image_model("deit_small_patch16_224", 64, dtype),
    "deit-base/b1": lambda dtype: image_model("deit_base_patch16_224", 1, dtype),
    "deit-base/b256": lambda dtype: image_model("deit_base_patch16_224", 256, dtype),
    "vit-large/b64": lambda dtype: image_model("vit_large_patch16_224", 64, dtype),
    "vit-large/b256": lambda dtype: image_model("vit_large_patch16_224", 256, dtype),
    "sam-vit-h/b1": sam,
    "bert-large/b32x512": bert,
    "llama-2-7b/prefill2048": llama_prefill,
    "llama-2-7b/decode1": lambda dtype: llama_decode(1, dtype),
    "llama-2-7b/decode16": lambda dtype: llama_decode(16, dtype),
}


def attempt(measure):
    try:
        return round(measure(), 4)
    except Exception as why:  # a rival that does not run is no reason to stop
        return f"not run: {str(why).splitlines()[0][:120]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--type", choices=TYPES, default="f16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("names", nargs="*", help=", ".join(MODELS))
    arguments = parser.parse_args()
    for name in arguments.names or MODELS:
        with torch.no_grad():
            call, model = MODELS[name](TYPES[arguments.type])
            line = {"model": name, "type": arguments.type, "torch": torch.__version__,
                    "device": torch.cuda.get_device_name(),
                    "eager_ms": attempt(lambda: median_ms(lambda: call(model))),
                    "graph_ms": attempt(lambda: graph_ms(lambda: call(model)))}
            if arguments.compile:
                torch.compiler.reset()
                compiled = torch.compile(model)
                line["compile_ms"] = attempt(lambda: median_ms(lambda: call(compiled)))
            print(json.dumps(line), flush=True)
            del call, model
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
