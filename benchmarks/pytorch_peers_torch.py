"""The peer's side of `peers`: steps of PyTorch networks, timed when asked for.

Runs in the peer's environment, by its path: it imports nothing of this package, nor TensorFlow.
`peers` says what is asked and answered.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import torch

# torchvision's compiled operators do not load beside every build of PyTorch, and it will not be
# imported without their names. The networks here call none of them.
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import segmentation_models_pytorch as smp  # noqa: E402

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Network:
    """A network with SGD, on one batch of noise."""

    def __init__(self, model: torch.nn.Module, size: int, batch: int, classes: int) -> None:
        self.model = model.to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        images = torch.randn(batch, 3, size, size)
        self._images = images.to(memory_format=torch.channels_last)
        self._labels = torch.randint(0, classes, (batch, size, size))

    def step(self, phase: str, precision: str) -> float:
        """Returns the seconds of a step."""
        began = time.perf_counter()
        if phase == "training":
            self._learn(precision)
        else:
            self._answer(precision)
        return time.perf_counter() - began

    def _learn(self, precision: str) -> None:
        self.model.train()
        self._optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(self._logits(precision).float(), self._labels)
        loss.backward()
        self._optimizer.step()
        loss.item()

    def _answer(self, precision: str) -> None:
        self.model.eval()
        with torch.inference_mode():
            torch.log_softmax(self._logits(precision).float(), 1)[0, 0, 0, 0].item()

    def _logits(self, precision: str) -> Any:
        kind = TYPES[precision]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind is not torch.float32):
            return self.model(self._images)


def multiply_adds(model: torch.nn.Module, size: int) -> int:
    """Returns the multiply-adds of convolutions and linear layers for an image."""
    total = 0

    def count(layer: Any, _: Any, answer: Any) -> None:
        nonlocal total
        places = answer.numel() // layer.weight.shape[0]
        total += places * math.prod(layer.weight.shape)

    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    model.eval()
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return total


def networks(size: int, batch: int, classes: int) -> dict[str, Network]:
    """Returns the peers, all on ResNet-50 dilated to output stride 8."""
    pspnet = smp.PSPNet("resnet50", encoder_weights=None, encoder_depth=5, classes=classes)
    pspnet.encoder = smp.encoders.get_encoder("resnet50", weights=None, depth=5, output_stride=8)
    deeplab = smp.DeepLabV3(
        "resnet50", encoder_weights=None, encoder_output_stride=8, classes=classes
    )
    models = {"PSPNet": pspnet, "DeepLabV3": deeplab}
    return {name: Network(model, size, batch, classes) for name, model in models.items()}


def main() -> None:
    """Says what there is to time, then times what each line of standard input names."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings.pop("threads"))
    torch.manual_seed(0)
    found = networks(**settings)
    size = settings["size"]
    _say(
        versions={"torch": torch.__version__, "segmentation-models-pytorch": smp.__version__},
        gmac={name: multiply_adds(net.model, size) / 1e9 for name, net in found.items()},
    )
    for line in sys.stdin:
        asked = json.loads(line)
        seconds = found[asked["network"]].step(asked["phase"], asked["precision"])
        _say(seconds=seconds)


def _say(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
