# PyTorch's scaled_dot_product_attention at the shapes of gpu_attention, each of its kernels that takes them.
# Usage: python3 bench/gpu_attention.py; prints the fastest and what each takes, medians of CUDA graphs.
import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

warnings.filterwarnings('ignore')  # each kernel that declines a shape says so

BACKENDS = {'flash': SDPBackend.FLASH_ATTENTION, 'cudnn': SDPBackend.CUDNN_ATTENTION,
            'efficient': SDPBackend.EFFICIENT_ATTENTION}


def time_us(work, calls):
    work(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            work(i)
    times = []
    for _ in range(11):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / calls * 1e3)
    return sorted(times[2:])[4]


def report(name, batch, heads, queries, keys, dim, calls, sets=1, kv_heads=None, causal=False, mask=False):
    kv_heads = kv_heads or heads
    make = lambda h, t: torch.randn(sets, batch, t, h, dim, device='cuda', dtype=torch.float16).transpose(2, 3)
    q, k, v = make(heads, queries), make(kv_heads, keys), make(kv_heads, keys)
    bias = torch.randn(batch, heads, queries, keys, device='cuda', dtype=torch.float16) if mask else None
    times = {}
    for kernel, backend in BACKENDS.items():
        def work(i):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q[i % sets], k[i % sets], v[i % sets], attn_mask=bias,
                                                      is_causal=causal, enable_gqa=kv_heads != heads)
        try:
            times[kernel] = time_us(work, calls)
        except Exception:
            pass
    best = min(times, key=times.get) if times else None
    print(f'{name:26s} {times.get(best, float("nan")):9.2f} us  {best}  '
          + ' '.join(f'{k} {t:.2f}' for k, t in times.items()), flush=True)


with torch.no_grad():
    print(torch.__version__, torch.cuda.get_device_name())
    report('deit-base-b1', 1, 12, 197, 197, 64, 32)
    report('deit-base-b256', 256, 12, 197, 197, 64, 4)
    report('vit-large-b64', 64, 16, 197, 197, 64, 8)
    report('bert-large-32x512', 32, 16, 512, 512, 64, 8)
    report('bert-large-32x128', 32, 16, 128, 128, 64, 8)
    report('sam-h-global', 1, 16, 4096, 4096, 80, 2, mask=True)
    report('sam-h-global-unbiased', 1, 16, 4096, 4096, 80, 2)
    report('sam-h-windows', 25, 16, 196, 196, 80, 8, mask=True)
    report('sam-h-windows-unbiased', 25, 16, 196, 196, 80, 8)
    report('llama-2-7b-prefill2048', 1, 32, 2048, 2048, 128, 4, causal=True)
    report('llama-2-7b-prefill512', 1, 32, 512, 512, 128, 8, causal=True)
    for sequences in (1, 16):
        for context in (128, 512, 4096) if sequences == 1 else (128, 512):
            sets = max(2, (128 << 20) // (sequences * context * 32 * 128 * 4))
            report(f'llama-2-7b-decode{sequences}-{context}', sequences, 32, 1, context, 128, sets, sets=sets)
    report('llama-3-8b-decode1-512', 1, 32, 1, 512, 128, 64, sets=64, kv_heads=8)
    report('llama-3-8b-decode16-512', 16, 32, 1, 512, 128, 4, sets=4, kv_heads=8)
