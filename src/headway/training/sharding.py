"""Fully sharded training: each process holds a share of every parameter and of its optimizer state (FSDP2).

Each Transformer block is a unit: its parameters are gathered before its forward and backward pass and given up after
them. The rest of the model, with what several blocks share, such as a table of position biases, is one more unit.
Source: Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et al. 2020, arXiv:1910.02054.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headway.parallel.process import World


def shard(model: nn.Module, world: World, *, compiled: bool = False) -> list[nn.Parameter]:
    """Shard a model in place, onto the device of each process.

    Args:
        model: blocks are :class:`headway.stack.Block`; a model without them is one unit.
        world: the processes.
        compiled: compile each unit.

    Returns:
        Parameters without dimensions, which every process holds; their gradients are the caller's to sum.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from headway.stack import Block

    mesh = init_device_mesh(world.device.type, (world.size,))
    scalars = [p for p in model.parameters() if p.ndim == 0]
    for parameter in scalars:
        parameter.data = parameter.data.to(world.device)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    users = Counter(id(p) for block in blocks for p in block.parameters())
    outside = _outside(model, blocks)
    for block in blocks:
        shared = {p for p in block.parameters() if users[id(p)] > 1 or id(p) in outside}
        if all(id(p) in outside for p in shared):  # otherwise the whole block stays with the rest
            if compiled:
                block.compile()
            fully_shard(block, mesh=mesh, ignored_params={*shared, *scalars})
    if compiled and not blocks:
        model.compile()
    fully_shard(model, mesh=mesh, ignored_params=set(scalars))
    return scalars


def _outside(model: nn.Module, blocks: Sequence[nn.Module]) -> set[int]:
    """The parameters that belong to a module which can be reached without passing through a block."""
    found: set[int] = set()
    waiting, seen = [model], set(map(id, blocks))
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            found |= {id(p) for p in module.parameters(recurse=False)}
            waiting += module.children()
    return found


def sum_scalars(scalars: Sequence[nn.Parameter], world: World) -> None:
    """Average the gradients of parameters that fully_shard does not take, over all processes."""
    import torch.distributed as dist

    taking_part = world.sum([float(p.grad is not None) for p in scalars])
    for parameter, many in zip(scalars, taking_part, strict=True):
        if many:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(gradient)
            parameter.grad = gradient / world.size


def is_sharded(tensor: Tensor) -> bool:
    """Whether processes share a tensor; without importing DTensor, which takes seconds."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """The share that this process holds; all of a tensor that is not sharded."""
    share: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return share


def whole(tensor: Any) -> Tensor:
    """All of a tensor of which each process holds a share; all processes call it."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full


def placed(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor, cut and placed like another one: this process's share of it."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def clip_shards(params: Sequence[nn.Parameter], limit: float, loss: Tensor, world: World) -> tuple[float, float]:
    """Clip gradients by their norm over all processes, as :func:`torch.nn.utils.clip_grad_norm_` does.

    Args:
        params: shares, and whole ones, which are the same in all processes.
        limit: of the norm; infinite for none.
        loss: this process's part.
        world: the processes.

    Returns:
        The whole loss, and the norm before clipping; the same numbers in all processes.
    """
    shares = [local(p.grad) for p in params if p.grad is not None and is_sharded(p)]
    same = [p.grad for p in params if p.grad is not None and not is_sharded(p)]
    counted = [*shares, *(same if world.first else [])]
    norms = torch._foreach_norm(counted) if counted else []
    square = torch.stack([loss.detach().double(), *((norm.double() ** 2).to(loss.device) for norm in norms)])
    own = square.tolist()
    whole_loss, squares = world.sum([own[0], math.fsum(own[1:]) if all(map(math.isfinite, own)) else math.nan])
    norm = math.sqrt(squares) if math.isfinite(squares) else math.nan
    scale = min(1.0, limit / (norm + 1e-6))
    if scale < 1 and (shares or same):
        torch._foreach_mul_([*shares, *same], scale)
    return whole_loss, norm
