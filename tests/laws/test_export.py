"""torch.export = eager: a program of torch's own operators, for every batch and length, that needs none of our code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import attention, specs, transformer
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export, save

from headway import Attention, Causal, Documents, HeadwayError, LatentAttention, Window
from headway.backends import native
from headway.backends.native import library
from headway.masks import KeyPadding

pytestmark = pytest.mark.usefixtures("unchecked")
SIZES = ((1, 1), (3, 20), (2, 39))


def each(*often: str) -> list[object]:
    """All methods; those that are not named are proofs."""
    return [pytest.param(spec, marks=[] if spec in often else pytest.mark.slow) for spec in specs()]


def exported(module: nn.Module, *given: Tensor, **named: Tensor) -> ExportedProgram:
    """A program whose batch and length, the first two axes of all that is given, are free."""
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    return export(module, given, named, dynamic_shapes=[free] * (len(given) + len(named)), strict=False)


def foreign(program: ExportedProgram) -> set[str]:
    """Operators that torch does not have."""
    called = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert called
    return {str(one) for one in called if one.namespace != "aten"}


def numbers(batch: int, tokens: int, dim: int = 48) -> Tensor:
    return torch.randn(batch, tokens, dim, dtype=torch.float64)


def padded(batch: int, tokens: int) -> Tensor:
    """Positions, of which the first two of the first text are padding."""
    pos = torch.arange(tokens).repeat(batch, 1)
    pos[0] -= 2
    return pos.clamp(min=-1)


@pytest.mark.parametrize("spec", each("rotary", "t5", "deberta"))
def test_attention_with_padding_and_a_window(spec: str) -> None:
    module = attention(spec, mask=Causal() & Window(30))
    program = exported(module, numbers(2, 7), pos=padded(2, 7))
    assert not foreign(program)
    for size in SIZES:
        x, pos = numbers(*size), padded(*size)
        torch.testing.assert_close(program.module()(x, pos=pos), module(x, pos=pos))


@pytest.mark.parametrize("spec", each("t5"))
def test_transformer(spec: str) -> None:
    module = transformer(spec, layers=1)
    program = exported(module, torch.randint(17, (2, 7)))
    assert not foreign(program)
    for size in SIZES:
        tokens = torch.randint(17, size)
        torch.testing.assert_close(program.module()(tokens), module(tokens))


@pytest.mark.parametrize(
    "module",
    [
        Attention(48, 6, mask=Causal(), position="rotary"),
        Attention(48, 6, mask=Causal(), position="t5", sinks=True, softcap=5.0, qk_norm=True, log_scale=8),
        LatentAttention(48, 6, latent_dim=4, position_dim=8, mask=Causal(), position="alibi"),
    ],
    ids=lambda module: type(module).__name__,
)
def test_options(module: nn.Module) -> None:
    module = module.double().eval()
    program = exported(module, numbers(2, 7))
    assert not foreign(program)
    for size in SIZES:
        x = numbers(*size)
        torch.testing.assert_close(program.module()(x), module(x))


class Masked(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        out: Tensor = self.inner(x, mask=Documents(ids) & KeyPadding(real))
        return out


def test_masks_from_inputs() -> None:
    module = Masked(attention("alibi", mask=Causal()))

    def given(batch: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        place = torch.arange(tokens).repeat(batch, 1)
        return numbers(batch, tokens), place // 4, place > 1

    program = exported(module, *given(2, 7))
    assert not foreign(program)
    for size in SIZES:
        some = given(*size)
        torch.testing.assert_close(program.module()(*some), module(*some))


RUN = """
import sys
import torch
sys.modules["headway"] = None
program = torch.export.load(sys.argv[1])
given = torch.load(sys.argv[2])
torch.save([program.module()(x) for x in given], sys.argv[3])
"""


def test_a_program_is_made_and_runs_where_no_kernel_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, given = attention("t5", mask=Causal()), [numbers(*size) for size in SIZES]
    with monkeypatch.context() as patch:
        patch.setattr(library, "loaded", lambda: pytest.fail("export asked for the kernel"))
        save(exported(module, numbers(2, 7)), tmp_path / "program.pt2")
    torch.save(given, tmp_path / "given")
    paths = [str(tmp_path / name) for name in ("program.pt2", "given", "results")]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", RUN, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for x, got in zip(given, torch.load(tmp_path / "results"), strict=True):
        torch.testing.assert_close(got, module(x))


@pytest.mark.parametrize("spec", ["t5", "shaw"])
def test_gradients_are_those_of_the_module(spec: str) -> None:
    module, x = attention(spec, mask=Causal()), numbers(2, 20)
    program = exported(module, numbers(2, 7)).module()
    for run in (module, program):
        run(x).square().sum().backward()
    found = dict(program.named_parameters())
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad)


def test_what_is_masked_reaches_nothing() -> None:
    module, x = attention("alibi", mask=Causal()), numbers(1, 20)
    x[0, 12] = torch.nan
    got = exported(module, numbers(2, 7)).module()(x)
    assert torch.equal(got.isnan(), module(x).isnan())
    torch.testing.assert_close(got[:, :12], module(x[:, :12]))


@pytest.mark.parametrize("spec", ["learned(max_length=40)", "randomized(longest=40)"])
def test_what_a_table_does_not_hold_is_an_error(spec: str) -> None:
    module = attention(spec, mask=Causal()).train()
    program = exported(module, numbers(2, 7)).module()
    assert program(numbers(1, 40)).isfinite().all()
    with pytest.raises((IndexError, RuntimeError), match=r"index .*out of "):
        program(numbers(1, 41))


@pytest.mark.skipif(native.unavailable() is not None, reason="there is no C++ compiler")
def test_a_named_kernel_stays_an_operator() -> None:
    module, x = attention("t5", mask=Causal(), backend="native"), numbers(3, 20)
    program = exported(module, numbers(2, 7))
    assert foreign(program) == {"headway.native_forward.default"}
    torch.testing.assert_close(program.module()(x), module(x))


def test_a_backend_whose_blocks_depend_on_the_length_is_refused() -> None:
    with pytest.raises(HeadwayError, match=r"'tiled' cannot run this call: .* serves every length"):
        exported(attention("t5", backend="tiled"), numbers(2, 7))
