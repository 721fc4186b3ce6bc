"""PyTorch's side of `benchmarks.serving.decoder`: the same decoder, timed by a process of its own.

It writes {"torch": version}, then reads one JSON object per line, {"shape": {...}, "type": "bfloat16",
"prompt": 128, "count": 64, "threads": 4}, and answers {"prefill": seconds, "token": seconds, "bytes": of the
weights}.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F


def decoder(shape, dtype):
    """The program, and the bytes of its matrices."""
    width, heads, layers = shape["width"], shape["heads"], shape["layers"]

    def normal(*extents):
        return (0.02 * torch.randn(extents)).to(dtype)

    tokens, positions = normal(shape["vocabulary"], width), normal(shape["positions"], width)
    blocks = [
        (normal(3 * width, width), normal(width, width), normal(4 * width, width), normal(width, 4 * width))
        for _ in range(layers)
    ]
    ones, zeros = torch.ones(width, dtype=dtype), torch.zeros(width, dtype=dtype)

    def forward(cache, ids, at):
        x = tokens[ids] + positions[at : at + ids.shape[1]]
        for i, (qkv, out, up, down) in enumerate(blocks):
            parts = F.linear(F.layer_norm(x, (width,), ones, zeros), qkv)
            q, k, v = (p.unflatten(-1, (heads, -1)).transpose(1, 2) for p in parts.chunk(3, -1))
            if cache[i] is not None:
                k, v = torch.cat((cache[i][0], k), 2), torch.cat((cache[i][1], v), 2)
            cache[i] = (k, v)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=ids.shape[1] > 1)
            x = x + F.linear(mixed.transpose(1, 2).flatten(2), out)
            x = x + F.linear(
                F.gelu(F.linear(F.layer_norm(x, (width,), ones, zeros), up), approximate="tanh"), down
            )
        return F.linear(F.layer_norm(x, (width,), ones, zeros), tokens)

    matrices = [tokens, positions, *(matrix for block in blocks for matrix in block)]
    return forward, sum(matrix.nbytes for matrix in matrices)


@torch.inference_mode()
def measure(case):
    torch.set_num_threads(case["threads"])
    forward, size = decoder(case["shape"], getattr(torch, case["type"]))
    prompt = torch.arange(case["prompt"])[None]
    best = {"prefill": float("inf"), "token": float("inf")}
    for _ in range(case["rounds"]):
        cache = [None] * case["shape"]["layers"]
        start = time.perf_counter()
        logits = forward(cache, prompt, 0)
        best["prefill"] = min(best["prefill"], time.perf_counter() - start)
        start = time.perf_counter()
        for i in range(case["count"]):
            logits = forward(cache, logits[:, -1:].argmax(-1), case["prompt"] + i)
        best["token"] = min(best["token"], (time.perf_counter() - start) / case["count"])
    return {**best, "bytes": size}


def main():
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
