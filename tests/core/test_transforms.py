"""torch's own tools over attention: function transforms, adapters, quantization, copies."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

from headway import Attention, Causal, HeadwayError, LatentAttention, Transformer, attend
from headway.positions import methods

KINDS = ("none", "rotary", "alibi", "t5", "shaw", "fire", "cope", "path", "stickbreaking", "fox", "wall")


def made(position: str) -> Attention:
    torch.manual_seed(0)
    return Attention(32, 4, position=position, mask=Causal()).double()


def data(seed: int = 1) -> Tensor:
    return torch.randn(3, 7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("position", KINDS)
def test_gradients_are_those_of_autograd(position: str) -> None:
    attention, x = made(position), data()
    parameters = dict(attention.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(attention, parameters, (x,)).square().sum()

    expected = torch.autograd.grad(attention(x).square().sum(), list(parameters.values()), allow_unused=True)
    got = grad(loss)({name: p.detach() for name, p in parameters.items()}, x)
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(got[name], torch.zeros_like(got[name]) if gradient is None else gradient)
    each = vmap(grad(loss), in_dims=(None, 0))({name: p.detach() for name, p in parameters.items()}, x)
    for name in parameters:
        torch.testing.assert_close(each[name].sum(0), got[name])
    for at in range(3):
        alone = grad(loss)({name: p.detach() for name, p in parameters.items()}, x[at])
        torch.testing.assert_close(each["q.weight"][at], alone["q.weight"])


@pytest.mark.parametrize("position", KINDS)
def test_directions_forward_and_backward(position: str) -> None:
    attention, x, along = made(position).requires_grad_(False), data(), data(2)
    out, pull = vjp(attention, x)
    torch.testing.assert_close(out, attention(x))
    _, push = jvp(attention, (x,), (along,))
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    torch.testing.assert_close((pull(weights)[0] * along).sum(), (weights * push).sum())
    with forward_ad.dual_level():  # without torch.func as well
        dual = forward_ad.unpack_dual(attention(forward_ad.make_dual(x, along)))
    torch.testing.assert_close(dual.tangent, push)
    torch.testing.assert_close(vmap(attention)(torch.stack((x, along)))[1], attention(along))


def test_jacobian_and_hessian() -> None:
    attention, x = made("alibi").requires_grad_(False), data()[:1, :3]
    whole = torch.autograd.functional.jacobian(attention, x)
    torch.testing.assert_close(jacrev(attention)(x), whole)

    def loss(x: Tensor) -> Tensor:
        return attention(x).square().sum()

    second = hessian(loss)(x).reshape(96, 96)
    torch.testing.assert_close(second, second.T)
    step = 1e-5 * torch.eye(96, dtype=torch.float64)[5].view_as(x)
    slope = (grad(loss)(x + step) - grad(loss)(x - step)) / 2e-5
    torch.testing.assert_close(second[5], slope.flatten(), rtol=1e-5, atol=1e-6)
    along = data(2)[:1, :3]
    twice = grad(lambda x: (grad(loss)(x) * along).sum())(x)  # backward over backward, where hessian() goes forward
    torch.testing.assert_close(twice.flatten(), second @ along.flatten())


def test_a_named_backend_runs_under_a_transform_or_says_why_not() -> None:
    q = torch.randn(1, 2, 5, 8)
    named = grad(lambda q: attend(q, q, q, backend="native").sum())(q)
    torch.testing.assert_close(named, grad(lambda q: attend(q, q, q, backend="reference").sum())(q))
    with pytest.raises(HeadwayError, match="does not run under forward-mode differentiation"):
        jvp(lambda q: attend(q, q, q, backend="native"), (q,), (q,))
    with pytest.raises(HeadwayError, match="does not run under a second derivative"):
        grad(lambda q: grad(lambda q: attend(q, q, q, backend="native").square().sum())(q).sum())(q)


def test_a_gradient_of_a_gradient_by_the_kernel_is_refused() -> None:
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    with pytest.raises(HeadwayError, match="cannot be differentiated twice"):
        grad(lambda q: attend(q, q, q, backend="native").square().sum())(q).square().sum().backward()


class Adapted(nn.Module):
    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Linear(frozen.in_features, 2, bias=False)
        self.up = nn.Linear(2, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(x) + self.up(self.down(x))
        return out


@pytest.mark.parametrize("kind", [Attention, LatentAttention])
def test_projections_may_be_replaced(kind: type) -> None:
    attention, x = kind(32, 4, mask=Causal()), torch.randn(2, 7, 32)
    expected = attention(x)
    attention.q, attention.v = Adapted(attention.q), Adapted(attention.v)
    assert torch.equal(attention(x), expected)
    attention(x).sum().backward()
    assert attention.q.up.weight.grad.abs().sum() > 0
    assert attention.v.up.weight.grad.abs().sum() > 0
    assert attention.q.frozen.weight.grad is None
    with pytest.raises(HeadwayError, match="as the weights are"):
        attention(x.double())


@pytest.mark.filterwarnings("ignore")  # torch's own, about its quantized tensors
def test_dynamic_quantization() -> None:
    torch.manual_seed(0)
    model = Transformer(50, dim=32, layers=2, heads=4, position="rotary").eval()
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    ids = torch.randint(50, (2, 7))
    change, expected = small(ids) - model(ids), model(ids)
    assert 0 < change.std() < 0.05 * expected.std()


@pytest.mark.filterwarnings("ignore")  # torch's own, about tracing
def test_tracing_is_refused_in_one_sentence() -> None:
    attention = Attention(32, 4, position="alibi", mask=Causal())
    with pytest.raises(HeadwayError, match=r"expected torch.export.export, .*got torch.jit.trace"):
        torch.jit.trace(attention, (torch.randn(2, 7, 32),))


@pytest.mark.parametrize("name", methods())
def test_copies_compute_the_same(name: str) -> None:
    attention, x = made(name).eval(), data()
    for other in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert torch.equal(other(x), attention(x))
