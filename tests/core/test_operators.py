"""An eager call is seen by torch's own tools: dispatch modes, the flop counter, the profiler, fake tensors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from headway import Causal, Transformer, attend
from headway.backends import native
from headway.positions import methods

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="there is no C++ compiler")
B, H, KV, N, M, D, V = 2, 4, 2, 24, 40, 16, 8
FORWARD = 2 * B * H * N * M * (D + V)
BACKWARD = 2 * B * H * N * M * (3 * D + 2 * V)


def made() -> list[Tensor]:
    shapes = (B, H, N, D), (B, KV, M, D), (B, KV, M, V)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def test_flops_are_counted_as_torch_counts_its_own() -> None:
    with FlopCounterMode(display=False) as counter:
        attend(*made(), backend="native").sum().backward()
    found = {str(name).split(".")[-1]: count for name, count in counter.get_flop_counts()["Global"].items()}
    assert found == {"native_forward": FORWARD, "native_backward": BACKWARD}
    with FlopCounterMode(display=False) as counter:
        attend(*made(), backend="reference")
    assert sum(counter.get_flop_counts()["Global"].values()) == FORWARD


def test_a_counter_that_began_before_the_kernel_was_loaded_counts_too() -> None:
    program = """
import torch
from torch.utils.flop_counter import FlopCounterMode
import headway
q = torch.randn(1, 2, 8, 4)
with FlopCounterMode(display=False) as counter:
    headway.attend(q, q, q, backend="native")
print(counter.get_total_flops())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2 * 2 * 8 * 8 * (4 + 4)


def test_dispatch_modes_and_the_profiler_see_the_operators() -> None:
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with Watch():
        attend(*made(), backend="native").sum().backward()
    assert {"headway::native_forward", "headway::native_backward"} <= set(seen)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attend(*made(), backend="native").sum().backward()
    assert {"headway::native_forward", "headway::native_backward"} <= {event.key for event in profile.key_averages()}


def test_what_is_seen_is_what_is_computed() -> None:
    given = made()
    plain = attend(*given, backend="native")
    plain.sum().backward()
    gradients = [x.grad for x in given]
    for x in given:
        x.grad = None
    with FlopCounterMode(display=False):
        seen = attend(*given, backend="native")
        seen.sum().backward()
    assert torch.equal(plain, seen)
    assert all(a is not None and torch.equal(a, b.grad) for a, b in zip(gradients, given, strict=True))


@pytest.mark.parametrize("name", methods())
def test_a_pass_with_fake_tensors_reads_no_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda x, **_: x)  # torch's own reads numbers of fake tensors
    tokens = torch.randint(0, 20, (2, 12))
    real = Transformer(vocab=20, dim=32, layers=1, heads=4, position=name)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        model = Transformer(vocab=20, dim=32, layers=1, heads=4, position=name)
        fake = model(mode.from_tensor(tokens))
        fake.sum().backward()
    assert fake.shape == real(tokens).shape
    with FakeTensorMode() as mode:
        x = torch.randn(1, 2, 8, 4)
        assert attend(x, x, x, mask=Causal()).shape == x.shape
