"""PyTorch's side of `benchmarks.open_issues`: a process of its own that runs the program it is told to.

PyTorch must not be a dependency of the library, so this file and what it imports need nothing of dfpjax or
JAX, and run under any interpreter that has torch. It writes {"version": …}, then reads one JSON object per
line and answers each with one:

    {"program": name, "operands": path of an .npz file, "threads": 4}  →  {"norms": [of each result]}
    {}  →  {"seconds": of one run of that program}

Operands come as JAX has them. Images are channels last in memory.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F


def convolution_in_a_loop(x, w):
    def run():
        y = x
        for _ in range(2):
            y = F.conv1d(y, w)
        return [y]

    return run


def gradient_through_a_scan(x, w):
    x, w = _channels_last(x), w.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)

    def loss(w):
        y = x
        for _ in range(4):
            y = torch.tanh(F.conv2d(y, w, padding="same"))
        return y.square().sum()

    return _gradient(loss, w)


def depthwise_convolution(x, w, bias):
    x, w = _channels_last(x), w.permute(3, 2, 0, 1).contiguous()
    return lambda: [F.conv2d(x, w, bias, padding="same", groups=len(w))]


def gradient_of_depthwise_convolutions(x, w):
    def loss(w):
        y = x
        for kernel in w:
            y = F.conv1d(y, kernel.transpose(0, 1), padding="same", groups=x.shape[1])
        return y.abs().sum()

    return _gradient(loss, w)


def gradient_of_transposed_3d_convolution(x, w, bias):
    w = w.transpose(0, 1).flip(2, 3, 4).contiguous()
    how = {"stride": 2, "padding": 1, "output_padding": 1}
    return _gradient(lambda w, bias: F.conv_transpose3d(x, w, bias, **how).mean(), w, bias)


def transposed_1d_convolution(x, w):
    x, stride = x.transpose(1, 2).contiguous(), len(w) // 4
    w = w.permute(1, 2, 0).flip(2).contiguous()
    return lambda: [F.conv_transpose1d(x, w, stride=stride)]


def _channels_last(x):
    """Of NHWC in shape and memory: the same memory as NCHW."""
    return x.permute(0, 3, 1, 2)


def _gradient(loss, *parameters):
    parameters = [parameter.requires_grad_() for parameter in parameters]
    return lambda: torch.autograd.grad(loss(*parameters), parameters)


PROGRAMS = {
    program.__name__: program
    for program in (
        convolution_in_a_loop,
        gradient_through_a_scan,
        depthwise_convolution,
        gradient_of_depthwise_convolutions,
        gradient_of_transposed_3d_convolution,
        transposed_1d_convolution,
    )
}


def main():
    print(json.dumps({"version": torch.__version__}), flush=True)
    run = None
    for line in sys.stdin:
        if request := json.loads(line):
            torch.set_num_threads(request["threads"])
            with np.load(request["operands"]) as operands:
                tensors = [torch.from_numpy(operands[name]) for name in operands.files]
            run = PROGRAMS[request["program"]](*tensors)
            answer = {"norms": [result.double().norm().item() for result in run()]}
        else:
            began = time.perf_counter()
            run()
            answer = {"seconds": time.perf_counter() - began}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
