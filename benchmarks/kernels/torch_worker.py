"""PyTorch's side of `benchmarks.kernels`: a process of its own that times what it is told to.

PyTorch must not be a dependency of the library, so this file and what it imports need nothing of dfpjax or
JAX, and run under any interpreter that has torch. It writes {"torch": version}, then reads one JSON object
per line and answers each with one:

    {"lhs": […], "rhs": […], "type": "float32", "stride": 1, "padding": 1, "groups": 1, "threads": 4,
     "budget": 0.5, "rounds": 5}  →
    {"fprop": seconds, "dgrad": seconds, "wgrad": seconds}

A right operand with four axes makes a convolution (NHWC and HWIO extents), any other a matrix product.
"""

import json
import sys

import torch

from benchmarks.common.timing import best_seconds


def convolution(case):
    batch, height, width, channels = case["lhs"]
    kernel, _, channels_per_group, features = case["rhs"]
    # channels_last is the layout in which oneDNN is at its best.
    how = {"dtype": getattr(torch, case["type"]), "memory_format": torch.channels_last}
    x = torch.randn(batch, channels, height, width).to(**how)
    w = torch.randn(features, channels_per_group, kernel, kernel).to(**how)
    geometry = ([case["stride"]] * 2, [case["padding"]] * 2, [1, 1])
    y = torch.ops.aten.convolution(x, w, None, *geometry, False, [0, 0], case["groups"])
    dy = torch.randn_like(y)

    def backward(which):
        mask = [which == "dgrad", which == "wgrad", False]
        return torch.ops.aten.convolution_backward(
            dy, x, w, None, *geometry, False, [0, 0], case["groups"], mask
        )

    return {
        "fprop": lambda: torch.ops.aten.convolution(x, w, None, *geometry, False, [0, 0], case["groups"]),
        "dgrad": lambda: backward("dgrad"),
        "wgrad": lambda: backward("wgrad"),
    }


def product(case):
    x, w = (torch.randn(case[name]).to(getattr(torch, case["type"])) for name in ("lhs", "rhs"))
    dy = torch.randn_like(x @ w)
    return {
        "fprop": lambda: x @ w,
        "dgrad": lambda: dy @ w.transpose(-1, -2),
        "wgrad": lambda: x.transpose(-1, -2) @ dy,
    }


def main():
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        if case["threads"]:
            torch.set_num_threads(case["threads"])
        with torch.no_grad():
            passes = (convolution if len(case["rhs"]) == 4 else product)(case)
            seconds = best_seconds(passes, budget=case["budget"], rounds=case["rounds"])
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
