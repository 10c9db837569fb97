"""What each of several processes does in the tests of spread sequences; apart, because they import this file alone."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import randomise
from torch import Tensor

from headway import Attention, Causal, Documents, HeadwayError
from headway.parallel import context_parallel, shard, shard_tokens, sum_gradients, unshard
from headway.parallel.context import WAYS


def started(rank: int, size: int, folder: str, job: Callable[..., None], *given: Any) -> None:
    """Do a job in a process group; what goes wrong is written down, because another rank may fail first by waiting."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    try:
        job(*given)
    except BaseException:
        Path(folder, f"failed{rank}").write_text(traceback.format_exc())
        raise
    dist.destroy_process_group()


def together(folder: Path, size: int, job: Callable[..., None], *given: Any) -> None:
    """Run a job in several processes."""
    try:
        torch.multiprocessing.spawn(started, (size, str(folder), job, *given), nprocs=size)
    except Exception as error:
        texts = [path.read_text() for path in sorted(folder.glob("failed*"))]
        raise AssertionError("\n".join(texts) or str(error)) from error


class Case:
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

    def measured(self, dtype: torch.dtype, how: str | None = None, zigzag: bool = True) -> dict[str, Tensor]:
        """The output and all gradients of the whole text."""
        layer = self.layer.to(dtype)
        layer.zero_grad()
        x = self.x.to(dtype).requires_grad_()
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


def accepts(spec: str, how: str, **options: Any) -> bool:
    """Whether a way takes a method."""
    try:
        context_parallel(Attention(32, 4, position=spec, **options), how=how).undo()
    except HeadwayError:
        return False
    return True


def same(cases: list[Case], ways: tuple[str, ...] = tuple(WAYS)) -> None:
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
