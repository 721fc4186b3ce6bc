"""PyTorch's side of `benchmarks.frameworks`: timm's networks with random weights, and their logits."""

import json
import sys

import numpy as np
import timm
import torch
from safetensors.torch import save_file


def answer(request: dict) -> dict:
    """Write the state dict and the logits of the images in `request["images"]`, NHWC."""
    torch.manual_seed(0)
    model = timm.create_model(request["model"], pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training: not zeros and ones
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    images = torch.from_numpy(np.load(request["images"])).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.save(request["logits"], model(images).numpy())
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, request["weights"])
    return {"done": True}


def main() -> None:
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
