"""The linear layers of a model, multiplied by the faster of torch's libraries, see :mod:`headway.linear`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from headway.linear import halved, linear

SAID = (
    "float32 matrix products by oneDNN: MKL, torch's default, uses only AVX2 on this AMD processor, at half the speed"
)


class Product:
    """Stands for the forward of a layer, whose class, parameters and hooks stay as they are.

    Args:
        layer: ``nn.Linear``, or transformers' ``Conv1D``, which has W transposed.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, input: Tensor) -> Tensor:
        """The layer's output, (..., E), of its input, (..., D)."""
        weight = self.layer.weight
        return linear(input, weight.T if type(self.layer) is Conv1D else weight, self.layer.bias)


def take(model: nn.Module) -> dict[str, nn.Module]:
    """Let the layers of a model that compute slower than the processor could be computed faster; these, by name."""
    found = {}
    for name, module in model.named_modules() if halved() else ():
        weight: Any = getattr(module, "weight", None)
        if type(module) in (nn.Linear, Conv1D) and "forward" not in module.__dict__ and weight.device.type == "cpu":
            module.__dict__["forward"] = Product(module)
            found[name] = module
    return found


def give_back(module: nn.Module) -> None:
    """Take that back; not what somebody else has put in its place."""
    if isinstance(module.__dict__.get("forward"), Product):
        del module.__dict__["forward"]
