"""ONNX from ``backend="auto"``: onnxruntime computes what the module computes, for every batch and length."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from common import specs
from torch import Tensor, nn
from torch.export import Dim

from headway import Attention, Causal, Transformer, Window

# torch's own, about its exporter and packages that are not installed
pytestmark = [pytest.mark.usefixtures("unchecked"), pytest.mark.filterwarnings("ignore")]
IMPOSSIBLE = ("comrope", "path")
"""Methods that compute with what ONNX does not have: eigenvectors, the solution of triangular systems."""


def session(module: nn.Module, path: Path, *given: Tensor) -> onnxruntime.InferenceSession:
    """The module as onnxruntime runs it, the first two axes of all that is given free."""
    shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},) * len(given)
    torch.onnx.export(module, given, path / "model.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False)
    return onnxruntime.InferenceSession(path / "model.onnx")


def computes_the_same(module: nn.Module, path: Path, given: object, *examples: Tensor) -> None:
    ran = session(module, path, *examples)
    for size in ((1, 1), (3, 20), (2, 90)):
        some = given(*size)  # type: ignore[operator]
        (got,) = ran.run(None, {put.name: x.numpy() for put, x in zip(ran.get_inputs(), some, strict=True)})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(got), module(*some), rtol=1e-4, atol=3e-5)


class Placed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        out: Tensor = self.inner(x, pos=pos)
        return out


def numbers(batch: int, tokens: int) -> tuple[Tensor]:
    return (torch.randn(batch, tokens, 64),)


def padded(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    pos = torch.arange(tokens).repeat(batch, 1)
    pos[0] -= 2
    return *numbers(batch, tokens), pos.clamp(min=-1)


def ids(batch: int, tokens: int) -> tuple[Tensor]:
    return (torch.randint(17, (batch, tokens)),)


POSSIBLE = [s for s in specs() if s.partition("(")[0] not in IMPOSSIBLE and s != "learned(max_length=40)"]


@pytest.mark.slow  # the exporter takes seconds each
@pytest.mark.parametrize("spec", POSSIBLE)
def test_attention(spec: str, tmp_path: Path) -> None:
    computes_the_same(Attention(64, 4, position=spec, mask=Causal()).eval(), tmp_path, numbers, *numbers(2, 7))


def test_padding_a_window_and_groups(tmp_path: Path) -> None:
    module = Placed(Attention(64, 4, kv_heads=2, position="alibi", mask=Causal() & Window(3))).eval()
    computes_the_same(module, tmp_path, padded, *padded(2, 7))


@pytest.mark.slow
def test_transformer(tmp_path: Path) -> None:
    computes_the_same(Transformer(17, 64, 2, 4, position="t5").eval(), tmp_path, ids, *ids(2, 7))


@pytest.mark.slow
def test_what_onnx_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="No ONNX function found"):
        session(Attention(64, 4, position="path", mask=Causal()), tmp_path, *numbers(2, 7))
