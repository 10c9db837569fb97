"""Where tokens lie in the tensor does not matter: packed, padded, numbered by hand, or with fewer heads at hand."""

from __future__ import annotations

import pytest
import torch
from common import BOTH, attention, close, every_method, every_place, make, refusal, transformer

from headway import Causal, Documents, attend
from headway.positions import parse


def gradients(module: torch.nn.Module, out: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
    return [
        torch.zeros_like(p) if g is None else g
        for p in (x, *module.parameters())
        for g in torch.autograd.grad(out, p, retain_graph=True, allow_unused=True)
    ]


@every_method("documents", on=BOTH, layers=True)
def test_packed_documents_are_separate_documents(spec: str, backend: str) -> None:
    module = attention(spec, mask=Causal(), backend=backend)
    lengths = [4, 1, 6]
    x = torch.randn(1, 11, 48, dtype=torch.float64, requires_grad=True)
    pos = torch.cat([torch.arange(n) for n in lengths])
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    weight = torch.randn(1, 11, 48).double()
    packed = module(x, pos=pos, mask=Documents(ids))
    apart = torch.cat([module(part) for part in x.split(lengths, 1)], 1)
    close(packed, apart)
    for got, expected in zip(
        gradients(module, (packed * weight).sum(), x), gradients(module, (apart * weight).sum(), x), strict=True
    ):
        close(got, expected)


@every_method("no restart", relative=True, layers=True)
def test_packed_documents_of_relative_methods_need_no_restart(spec: str) -> None:
    module = attention(spec, mask=Causal())
    x = torch.randn(2, 9, 48).double()
    ids = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    close(module(x, mask=Documents(ids)), torch.cat([module(x[:, :4]), module(x[:, 4:])], 1))


@every_place("documents", models=True)
def test_a_transformer_takes_packed_documents(spec: str) -> None:
    model = transformer(spec)
    tokens = torch.randint(17, (1, 9))
    pos = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4])
    ids = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    packed = model(tokens, pos=pos, mask=Documents(ids))
    close(packed, torch.cat([model(tokens[:, :4]), model(tokens[:, 4:])], 1))


@every_method("padding", on=BOTH, variants=False, layers=True)
@pytest.mark.parametrize("mask", [None, Causal()], ids=["full", "causal"])
def test_left_padding_is_none(spec: str, backend: str, mask: object) -> None:
    module = attention(spec, mask=mask, backend=backend)
    x = torch.randn(2, 9, 48, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 9, 48).double()
    pos = torch.tensor([[-1, -1, -1, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    out = module(x, pos=pos)
    assert not out[0, :3].any()
    padded = (out[:1] * weight[:1]).sum() + (out[1:] * weight[1:]).sum()
    whole = (module(x[:1, 3:]) * weight[:1, 3:]).sum() + (module(x[1:]) * weight[1:]).sum()
    close(padded, whole)
    for got, expected in zip(gradients(module, padded, x), gradients(module, whole, x), strict=True):
        close(got, expected)


@every_method("ids", on=BOTH, variants=False, layers=True)
@pytest.mark.parametrize("mask", [None, Causal()], ids=["full", "causal"])
def test_counting_by_hand_is_the_default(spec: str, backend: str, mask: object) -> None:
    module = attention(spec, mask=mask, backend=backend)
    x = torch.randn(2, 9, 48).double()
    for pos in (torch.arange(9), torch.arange(9)[None], torch.arange(9).expand(2, 9), torch.arange(9).int()):
        close(module(x, pos=pos), module(x))


@every_method("order", layers=True)
def test_order_in_memory_does_not_matter(spec: str) -> None:
    module = attention(spec, mask=Causal())
    x, order = torch.randn(2, 9, 48).double(), torch.randperm(9)
    close(module(x[:, order], pos=order), module(x)[:, order])


@every_method("shuffled", sequential=True, layers=True)
def test_shuffled_tokens_are_refused_where_their_order_counts(spec: str) -> None:
    """Not where documents begin: by their ids, or at position 0."""
    module, x, ids = attention(spec, mask=Causal()), torch.randn(1, 4, 48).double(), torch.tensor([[0, 0, 1, 1]])
    name = parse(spec).method_name()
    expected = f"expected positions that go up from token to token, because {name} goes by the order"
    for pos, mask, got in (
        ([3, 1, 0, 2], None, "1 after 3"),
        ([1, 0, 2, 3], None, "0 after 1"),
        ([0, 2, -1, 1], None, "1 after 2"),
        ([4, 5, 3, 2], Documents(ids), "2 after 3"),
    ):
        with refusal(f"{expected} of tokens in memory, got {got}", whole=False):
            module(x, pos=torch.tensor(pos), mask=mask)
    for pos, mask in (([0, 1, 0, 1], None), ([0, -1, 5, 9], None), ([4, 5, 3, 7], Documents(ids))):
        module(x, pos=torch.tensor(pos), mask=mask)


@every_method("documents", variants=False, layers=True)
def test_interleaved_documents_are_separate_or_refused(spec: str) -> None:
    """Refused where what lies between two tokens in memory counts, with and without positions."""
    module, x = attention(spec, mask=Causal()), torch.randn(1, 8, 48).double()
    ids = torch.tensor([[1, 0, 0, 1, 1, 1, 0, 1]])
    counted = torch.tensor([[0, 0, 1, 1, 2, 3, 2, 4]])
    for pos in (None, counted, counted.masked_fill(torch.arange(8) == 2, -1)):
        if module.position.contiguous:
            name = parse(spec).method_name()
            expected = (
                f"expected each document's tokens side by side in memory, because {name} goes by what lies between"
            )
            with refusal(expected, whole=False):
                module(x, pos=pos, mask=Documents(ids))
            continue
        whole = module(x, pos=pos, mask=Documents(ids))
        for one in (0, 1):
            at = ((ids[0] == one) & (True if pos is None else pos[0] >= 0)).nonzero()[:, 0]
            alone = module(x[:, at], pos=at if pos is None else pos[:, at])
            close(whole[:, at], alone)
    if module.position.contiguous:  # documents that lie side by side, padding between them, and any numbers
        module(
            x, pos=torch.tensor([0, 1, -1, 2, 0, 1, -1, 2]), mask=Documents(torch.tensor([[7, 7, 2, 7, 2, 2, 7, 2]]))
        )


@every_method("heads", on=BOTH, variants=False)
def test_a_slice_of_heads_is_the_whole(spec: str, backend: str) -> None:
    position, pos = make(spec, heads=6), torch.arange(9)[None]
    q, k, v = torch.randn(3, 2, 6, 9, 8).double()
    position.double()
    marks = position.marked(torch.randn(2, 9, 48).double(), pos)
    q, k = position.rotate(q, k, pos, pos)
    given = {"mask": Causal(), "q_pos": pos, "k_pos": pos, "backend": backend}

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: torch.Tensor | None = None) -> torch.Tensor:
        q, k, terms = position.prepare(q, k, pos, pos, 0.3, marks, heads)
        return attend(q, k, v, terms=terms, normalise=position.normalise, **given)

    whole = run(q, k, v)
    for heads in (torch.tensor([4, 1]), torch.tensor([5]), torch.tensor([0, 2, 4])):
        close(run(*(x[:, heads] for x in (q, k, v)), heads), whole[:, heads])
