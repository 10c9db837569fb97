"""What each of several processes does in the tests of spread sequences; apart, because they import this file alone."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import randomise, refusal
from torch import Tensor
from torch.nn.functional import cross_entropy

import headway.parallel
from headway import Attention, Causal, Dense, Documents, HeadwayError, Prefix, Transformer, Window
from headway.functional import attend
from headway.masks import KeyPadding
from headway.parallel import context_parallel, shard, shard_tokens, sum_gradients, tensor_parallel, unshard
from headway.parallel.context import WAYS
from headway.parallel.process import _leave
from headway.terms import ByDistance, DenseBias, LowRankBias, PerKey, ProductPerQuery, SlopePerToken, ValuesByDistance


def started(rank: int, size: int, folder: str, job: Callable[..., None], *given: Any) -> None:
    """Do a job in a process group; what goes wrong is written down, because another rank may fail first by waiting."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    try:
        job(*given)
    except BaseException:
        Path(folder, f"failed{rank}").write_text(traceback.format_exc())
        raise
    _leave(joined=False, group=None, failed=False)


def together(folder: Path, size: int, job: Callable[..., None], *given: Any) -> None:
    """Run a job in several processes."""
    try:
        torch.multiprocessing.spawn(started, (size, str(folder), job, *given), nprocs=size)
    except Exception as error:
        texts = [path.read_text() for path in sorted(folder.glob("failed*"))]
        raise AssertionError("\n".join(texts) or str(error)) from error


class Layer:
    """One layer over one text, with its loss and gradients, in one process and in many.

    Args:
        spec: the position method.
        options: of Attention.
        tokens: in the text.
        packed: whether it is three documents, each with positions from 0.
        padded: tokens of padding at the start of the second row.
    """

    def __init__(
        self, spec: str, tokens: int = 13, *, packed: bool = False, padded: int = 0, heads: int = 4, **options: Any
    ) -> None:
        torch.manual_seed(len(spec) + tokens)
        options = {"mask": Causal(), "kv_heads": 2, **options}
        self.name = f"{spec} {tokens} {packed=} {padded=} {heads=} {options}"
        self.layer = Attention(8 * heads, heads, position=spec, **options).double()
        randomise(self.layer)
        self.x, self.weight = (torch.randn(2, tokens, 8 * heads, dtype=torch.float64) for _ in range(2))
        self.pos, self.ids = torch.arange(tokens).repeat(2, 1), torch.zeros(2, tokens, dtype=torch.long)
        if packed:
            first, second = tokens // 3, tokens // 2
            self.ids = ((self.pos >= first).long() + (self.pos >= second)).contiguous()
            self.pos = torch.cat([torch.arange(size) for size in (first, second - first, tokens - second)]).repeat(2, 1)
        self.packed = packed
        if padded:
            self.pos[1] = torch.cat((torch.full((padded,), -1), torch.arange(tokens - padded)))

    def measured(
        self, dtype: torch.dtype, how: str | None = None, zigzag: bool = True, backend: str = "auto"
    ) -> dict[str, Tensor]:
        """The output and all gradients of the whole text."""
        layer = self.layer.to(dtype)
        layer.core.backend = backend
        layer.zero_grad()
        x = self.x.to(dtype, copy=True).requires_grad_()
        if how is None:
            out = layer(x, pos=self.pos, mask=Documents(self.ids) if self.packed else None)
            (out * self.weight.to(dtype)).sum().backward()
            found = {"out": out, "x": x.grad}
        else:
            with context_parallel(layer, how=how, zigzag=zigzag):
                mine, pos = shard_tokens(x.detach(), pos=self.pos, zigzag=zigzag)
                mine.requires_grad_()
                ids = Documents(shard(self.ids, fill=-1, zigzag=zigzag)) if self.packed else None
                out = layer(mine, pos=pos, mask=ids)
            (out * shard(self.weight.to(dtype), zigzag=zigzag)).sum().backward()
            sum_gradients(layer)
            length = self.x.shape[1]
            found = {name: unshard(y, length=length, zigzag=zigzag) for name, y in (("out", out), ("x", mine.grad))}
        found |= {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        return {name: y.detach().clone() for name, y in found.items()}


FEW = (
    Layer("rotary", packed=True, sinks=True, softcap=5.0, qk_norm=True, log_scale=4),
    Layer("t5", 11, padded=3, mask=Window(4)),
    Layer("alibi", 9, mask=None, heads=6, kv_heads=1),
    Layer("fox", packed=True, sinks=True),
    Layer("path(forget=True)", 7, packed=True),
    Layer("inkling", 10, padded=2),
    Layer("stickbreaking(remainder=True)", 12),
)
"""Layers of the short tests: methods that act at different places, with masks, padding and options."""


def accepts(spec: str, how: str, **options: Any) -> bool:
    """Whether a way takes a method."""
    try:
        context_parallel(Attention(32, 4, position=spec, **options), how=how).undo()
    except HeadwayError:
        return False
    return True


def same(cases: Sequence[Layer] = FEW, ways: tuple[str, ...] = tuple(WAYS)) -> None:
    """In float64 the spread text has the values and gradients of the whole one."""
    for case in cases:
        expected = case.measured(torch.float64)
        for how in ways:
            if not accepts(case.layer.position.spec(), how):
                continue
            got = case.measured(torch.float64, how)
            assert got.keys() == expected.keys(), (case.name, how)
            for name, y in got.items():
                worst = (y - expected[name]).abs().max().item()
                scale = max(1.0, expected[name].abs().max().item())
                assert worst <= 1e-10 * scale, f"{case.name} by {how}: {name} differs by {worst:.3g} of {scale:.3g}"


def functions() -> None:
    """:func:`headway.parallel.attend` with terms, masks, sinks and a softcap is attend over the whole text."""
    torch.manual_seed(0)
    tokens, heads = 12, 4
    q, k, v = (torch.randn(2, h, tokens, 8, dtype=torch.float64) for h in (heads, 2, 2))
    pos, table = torch.arange(tokens)[None], torch.randn(heads, 2 * tokens, dtype=torch.float64)
    given = {
        "keys": torch.randn(2, 1, tokens, dtype=torch.float64),
        "slopes": torch.randn(1, heads, tokens, dtype=torch.float64),
        "low": torch.randn(2, heads, tokens, 3, dtype=torch.float64),
        "pairs": torch.randn(1, heads, tokens, tokens, dtype=torch.float64),
        "x": torch.randn(2, heads, tokens, 8, dtype=torch.float64),
    }
    real, seen = torch.rand(2, tokens) > 0.2, torch.rand(2, 1, tokens, tokens) > 0.2

    def made(by: Callable[[Tensor, int], Tensor], leaves: dict[str, Tensor]) -> dict[str, Any]:
        of = {name: by(x, 2) for name, x in leaves.items() if name in given}
        terms = (
            PerKey(of["keys"]),
            ByDistance(leaves["table"], tokens),
            SlopePerToken(of["slopes"], of["slopes"]),
            LowRankBias(of["low"], of["low"]),
            DenseBias(of["pairs"]),
            ProductPerQuery(of["x"], leaves["vectors"], 2),
            ValuesByDistance(leaves["vectors"], 2),
        )
        mask = (Causal() | Prefix(3)) & KeyPadding(by(real, 1)) & Dense(by(seen, 2))
        tensors = {name: by(leaves[name], 2) for name in "qkv"}
        return {**tensors, "mask": mask, "terms": terms, "sinks": leaves["sinks"], "softcap": 9.0}

    vectors, sinks = torch.randn(heads, 5, 8, dtype=torch.float64), torch.randn(heads, dtype=torch.float64)
    whole = {"q": q, "k": k, "v": v, **given, "table": table, "vectors": vectors, "sinks": sinks}
    weight = torch.randn(2, heads, tokens, 8, dtype=torch.float64)
    leaves = {name: x.clone().requires_grad_() for name, x in whole.items()}
    expected = attend(**made(lambda x, _: x, leaves), q_pos=pos, k_pos=pos)
    gradients = torch.autograd.grad((expected * weight).sum(), list(leaves.values()))
    for how in WAYS:
        leaves = {name: x.clone().requires_grad_() for name, x in whole.items()}
        mine = made(lambda x, dim: shard(x, dim=dim), leaves)
        at = shard(pos)
        out = headway.parallel.attend(**mine, q_pos=at, k_pos=at, how=how)
        torch.testing.assert_close(unshard(out, dim=2), expected)
        found = torch.autograd.grad((out * shard(weight, dim=2)).sum(), list(leaves.values()))
        for name, own, want in zip(leaves, found, gradients, strict=True):
            total = headway.parallel.Ranks.of(None).summed(own.contiguous())
            torch.testing.assert_close(total, want, msg=lambda text, name=name, how=how: f"{how} {name}: {text}")


def dropped() -> None:
    """By all-gather the same seed drops the same weights as in one process; the others repeat their own."""
    layer, x, pos = (
        Attention(32, 4, mask=Causal(), position="alibi", dropout=0.5).double(),
        torch.randn(2, 12, 32),
        None,
    )
    x, pos = x.double(), torch.arange(12)[None]
    torch.manual_seed(5)
    expected = layer(x, pos=pos)
    for how in WAYS:
        found = []
        for _ in range(2):
            torch.manual_seed(5)
            with context_parallel(layer, how=how):
                mine, at = shard_tokens(x, pos=pos)
                found.append(unshard(layer(mine, pos=at)))
        assert torch.equal(*found)
        assert torch.allclose(found[0], expected) == (how == "all-gather")


def trained() -> None:
    """Two steps of training a Transformer: the loss, and each parameter, of one process."""
    window: dict[str, Any] = {"pattern": ({"window": 5}, {})}
    latent: dict[str, Any] = {"latent_dim": 8, "position_dim": 8}
    for position, options, ways in (
        ("t5", window, tuple(WAYS)),
        ("learned", {"sinks": True}, ("ring",)),
        ("fox", {}, ("ulysses",)),
        ("rotary", latent, ("all-gather",)),
    ):
        for how in ways:
            alone, model = (_model(position, options) for _ in range(2))
            optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (alone, model)]
            for _ in range(2):
                losses = [_loss(alone), _loss(model, how)]
                torch.testing.assert_close(*losses)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            for (name, p), other in zip(model.named_parameters(), alone.parameters(), strict=True):
                worst = (p - other).abs().max().item()
                assert worst < 1e-9, f"{position} by {how}: {name} differs by {worst:.3g}"


def _loss(model: Transformer, how: str | None = None) -> Tensor:
    """The loss of a batch, after its backward pass."""
    ids = torch.randint(50, (2, 18), generator=torch.Generator().manual_seed(1))
    if how is None:
        loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        return loss.detach()
    with context_parallel(model, how=how):
        mine, pos = shard_tokens(ids[:, :-1])
        following = shard(ids[:, 1:], fill=-100)
        logits = model(mine, pos=pos)
    share = cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum") / 34
    share.backward()
    sum_gradients(model)
    return headway.parallel.Ranks.of(None).summed(share.detach())


def _model(position: str, options: dict[str, Any]) -> Transformer:
    torch.manual_seed(0)
    kv_heads = None if "latent_dim" in options else 2
    return Transformer(50, dim=32, layers=2, heads=4, kv_heads=kv_heads, position=position, **options).double()


def divided(specs: Sequence[str]) -> None:
    """Heads divided among processes: output and gradients of one process, and the weights come together again."""
    for spec in specs:
        case = Layer(spec, 9, heads=8, kv_heads=4, sinks="stick" not in spec, qk_norm=True, bias=True)
        expected = case.measured(torch.float64)
        weights = {name: p.detach().clone() for name, p in case.layer.named_parameters()}
        method = spec.partition("(")[0]
        why = {"dape": "mixes all heads", "dapev2": "mixes all heads", "randomized": "draws new positions"}.get(method)
        if why is not None:
            with refusal(f"{method} {why}", whole=False):
                tensor_parallel(case.layer)
            continue
        parts = tensor_parallel(case.layer)
        assert case.layer.q.weight.shape[0] == 64 // headway.parallel.Ranks.of(None).size
        got = case.measured(torch.float64)
        own = headway.parallel.Ranks.of(None)
        for name, want in expected.items():
            y = got[name]
            if name[0] in "qkvo" and name[1] == "." and y.shape != want.shape:
                y = torch.cat(own.gathered(y.contiguous()), 1 if name == "o.weight" else 0)
            torch.testing.assert_close(y, want, msg=lambda text, name=name, spec=spec: f"{spec} {name}: {text}")
        parts.undo()
        assert all(torch.equal(p, weights[name]) for name, p in case.layer.named_parameters())


def repeated() -> None:
    """Every run has the same bits."""
    case = Layer("t5", packed=True)
    for how in WAYS:
        runs = [case.measured(torch.float32, how) for _ in range(2)]
        assert all(torch.equal(y, runs[1][name]) for name, y in runs[0].items()), how


def few() -> None:
    """The short tests, in one start."""
    same()
    repeated()
    functions()
    dropped()
    trained()
    divided(("alibi", "t5", "grapem(planes=2, shared=False)", "fox", "pope", "stickbreaking"))


PARAMETERS = "the method's parameters"


def exact(specs: Sequence[str], options: dict[str, Any]) -> None:
    """In float32, values and gradients err at most twice as much as in one process; three times for a method's
    parameters in a ring.
    """
    wrong = []
    for spec in specs:
        drawn = [Layer(spec, tokens, **options) for tokens in (13, 30, 39)]
        truth = [case.measured(torch.float64) for case in drawn]
        fair = [errors([case.measured(torch.float32, backend=b) for case in drawn], truth) for b in ("auto", "tiled")]
        for how in WAYS:
            if not accepts(spec, how):
                continue
            found = errors([case.measured(torch.float32, how) for case in drawn], truth)
            for name, error in found.items():
                # one process sums a short row's weights and gradients in one tile, so that its errors cancel in sums
                times = 3 if how == "ring" and name == PARAMETERS else 2
                most = times * max(one[name] for one in fair) + torch.finfo(torch.float32).eps
                if error > most:
                    wrong.append(f"{spec} by {how}: {name} errs by {error:.3g} of 1, at most {most:.3g}")
    assert not wrong, "\n".join(wrong)


def errors(got: list[dict[str, Tensor]], truth: list[dict[str, Tensor]]) -> dict[str, float]:
    """The largest errors of some draws, each as a share of the largest number, but at least of 1.

    Those of the method's parameters together: each is a sum over all pairs, and some are single numbers, whose error in
    one process is small by chance.
    """
    found: dict[str, float] = {}
    for one, exact in zip(got, truth, strict=True):
        for name, y in exact.items():
            error = (one[name].double() - y).abs().max().item() / max(1.0, y.abs().max().item())
            group = PARAMETERS if name.startswith("position.") else name
            found[group] = max(error, found.get(group, 0.0))
    return found
