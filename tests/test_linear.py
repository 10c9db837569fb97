"""Products by the faster library: the same numbers, and only where nothing could tell the difference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from common import by_onednn
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from headway import linear as module
from headway.linear import halved, linear, project

SHAPES = [((256,), 256, 256), ((2, 200), 300, 180), ((1, 517), 333, 129), ((3, 1, 90), 512, 256), ((2048,), 2048, 64)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    return by_onednn(monkeypatch)


def results(x: Tensor, layer: nn.Linear, how: Callable[[nn.Linear, Tensor], Tensor]) -> list[Tensor]:
    """Output and gradients."""
    x = x.detach().clone().requires_grad_()
    out = how(layer, x)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("tokens", "width", "out"), SHAPES)
def test_values_and_gradients_are_as_exact_as_torchs(
    tokens: tuple[int, ...], width: int, out: int, bias: bool, calls: list[tuple[int, ...]]
) -> None:
    layer, x = nn.Linear(width, out, bias=bias), torch.randn(*tokens, width)
    got, again = results(x, layer, project), results(x, layer, project)
    assert len(calls) >= 2
    assert calls[0] == (*tokens, width, out)
    assert all(torch.equal(one, other) for one, other in zip(got, again, strict=True))
    usual = results(x, layer, lambda layer, x: layer(x))
    exact = results(x.double(), layer.double(), lambda layer, x: layer(x))
    for one, other, truth in zip(got, usual, exact, strict=True):
        assert one.shape == truth.shape
        assert one.dtype == torch.float32
        off, fair = ((each.double() - truth).abs().max() / truth.abs().max() for each in (one, other))
        assert off <= max(2 * fair, 1e-6)
        off, fair = ((each.double() - truth).norm() / truth.norm() for each in (one, other))
        assert off <= max(1.5 * fair, 1e-7)


def test_only_gradients_that_are_needed_are_computed(calls: list[tuple[int, ...]]) -> None:
    layer, x = nn.Linear(256, 256).requires_grad_(False), torch.randn(256, 256)
    assert not project(layer, x).requires_grad
    layer.bias.requires_grad_()
    project(layer, x).sum().backward()
    assert layer.bias.grad is not None
    assert layer.weight.grad is None
    assert len(calls) == 2
    project(layer, x.requires_grad_()).sum().backward()
    assert len(calls) == 4
    layer.weight.requires_grad_()
    with torch.no_grad():
        project(layer, x)
    assert len(calls) == 5
    project(layer, x).sum().backward()
    assert len(calls) == 8


@pytest.mark.parametrize("weight_last", [True, False])
def test_second_derivatives(weight_last: bool, calls: list[tuple[int, ...]]) -> None:
    layer, x = nn.Linear(256, 256), torch.randn(256, 256, requires_grad=True)
    before, after = (x, layer.weight) if weight_last else (layer.weight, x)

    def second(how: Callable[[nn.Linear, Tensor], Tensor]) -> Tensor:
        (first,) = torch.autograd.grad(how(layer, x).square().sum(), before, create_graph=True)
        (found,) = torch.autograd.grad(first.square().sum(), after)
        return found

    got, expected = second(project), second(lambda layer, x: layer(x))
    assert calls
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-2)


def test_one_row_that_is_not_finite_stays_alone(calls: list[tuple[int, ...]]) -> None:
    layer, x = nn.Linear(256, 256), torch.randn(256, 256)
    expected = project(layer, x)
    x[7] = torch.nan
    got = project(layer, x)
    assert got[7].isnan().all()
    torch.testing.assert_close(got[8:], expected[8:], rtol=0, atol=0)
    assert len(calls) == 2


def never(layer: nn.Linear, x: Tensor) -> dict[str, Callable[[], object]]:
    """Calls that are left to torch."""
    hooked, patched = nn.Linear(256, 256), nn.Linear(256, 256)
    hooked.register_forward_hook(lambda *_: None)
    patched.forward = patched.forward  # type: ignore[method-assign]

    class Own(nn.Linear):
        pass

    def autocast() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            assert project(layer, x).dtype == torch.bfloat16

    def counted() -> None:
        with FlopCounterMode(display=False) as counter:
            project(layer, x)
            linear(x, layer.weight)
        assert counter.get_total_flops() == 4 * 256**3

    def disabled() -> None:
        torch.backends.mkldnn.enabled = False  # its context manager sets TF32 too, and warns of it
        try:
            project(layer, x)
        finally:
            torch.backends.mkldnn.enabled = True

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return project(self.layer, x)

    def compiled() -> None:
        torch.testing.assert_close(torch.compile(project, backend="eager", fullgraph=True)(layer, x), layer(x))

    return {
        "a hook": lambda: project(hooked, x),
        "another forward": lambda: project(patched, x),
        "a class of its own": lambda: project(Own(256, 256), x),
        "small": lambda: project(layer, x[:64]),
        "another dtype": lambda: project(nn.Linear(256, 256, dtype=torch.bfloat16), x.bfloat16()),
        "torch.func": lambda: torch.func.vmap(lambda x: project(layer, x))(x[None]),
        "jvp": lambda: torch.func.jvp(lambda x: project(layer, x), (x,), (x,)),
        "autocast": autocast,
        "a mode": counted,
        "switched off": disabled,
        "torch.compile": compiled,
        "traced": lambda: torch.jit.trace(Module(), x, check_trace=False),
    }


@pytest.mark.parametrize("name", never(nn.Linear(1, 1), torch.ones(1, 1)))
def test_everything_else_is_left_to_torch(name: str, calls: list[tuple[int, ...]]) -> None:
    layer, x = nn.Linear(256, 256), torch.randn(256, 256)
    never(layer, x)[name]()
    assert not calls
    project(layer, x)
    assert len(calls) == 1


def test_a_width_that_does_not_fit_is_torchs_error(calls: list[tuple[int, ...]]) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        linear(torch.randn(256, 255), torch.randn(256, 256))
    assert not calls


def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, vendor, expected in (
        ("AVX512", "vendor_id : AuthenticAMD", True),
        ("AVX512", "vendor_id : GenuineIntel", False),
        ("AVX2", "vendor_id : AuthenticAMD", False),
    ):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        monkeypatch.setattr(module, "_vendor", lambda vendor=vendor: vendor)
        assert halved.__wrapped__() == expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not halved.__wrapped__()
