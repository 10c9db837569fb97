"""What each of two processes does in test_parallel.py; apart, because they import this file and no test."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from headway import Causal, LatentAttention, Transformer

POSITIONS = ("rotary", "t5", "shaw", "learned")


def model(position: str) -> Transformer:
    torch.manual_seed(0)
    return Transformer(50, dim=32, layers=2, heads=4, kv_heads=2, position=position).double()


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    out: Tensor = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    return out


def sharded(model: Transformer) -> Transformer:
    """As docs/python.md says."""
    shared = set(model.position.parameters())
    for block in model.stack.blocks:
        fully_shard(block, ignored_params=shared)
    fully_shard(model)
    return model


def both(rank: int, path: str) -> None:
    """Each process has half of the batch; gradients are those of one process with all of it."""
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    ids = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(1))
    mine = ids[2 * rank : 2 * rank + 2]
    for position in POSITIONS:
        alone = model(position)
        loss(alone, ids).backward()
        value = loss(alone, mine).detach()
        for wrapped in (DistributedDataParallel(model(position)), sharded(model(position))):
            got = loss(wrapped, mine)
            torch.testing.assert_close(got.detach(), value)
            got.backward()
            divided = not isinstance(wrapped, DistributedDataParallel)
            inside = wrapped if divided else wrapped.module
            assert all(isinstance(p, DTensor) == divided for p in inside.parameters())
            for (name, p), q in zip(inside.named_parameters(), alone.parameters(), strict=True):
                whole = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
                torch.testing.assert_close(whole, q.grad, msg=lambda text, name=name: f"{name}: {text}")
    each_projection()
    dist.destroy_process_group()


def each_projection() -> None:
    """Latent attention whose projections are sharded one by one: none is read but by its own forward pass."""
    torch.manual_seed(0)
    attention, x = LatentAttention(32, 4, latent_dim=16, position_dim=8, mask=Causal()).double(), torch.randn(2, 9, 32)
    expected = attention(x.double()).detach()
    for part in (attention.q, attention.kv_down, attention.k, attention.v, attention.o):
        fully_shard(part)
    torch.testing.assert_close(attention(x.double()).detach(), expected)
