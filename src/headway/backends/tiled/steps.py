"""Consecutive positions: attention block by block over strided views, with its own backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from headway.backends.base import Call, full_precision
from headway.backends.diagonal_views import diagonal_sums
from headway.backends.tiled.blocks import Block, Chunk, Work
from headway.backends.tiled.job import Job, Tables, job_of


def unit_steps(call: Call, shift: int) -> Tensor:
    """Attention of a call with consecutive positions, where the first key lies ``shift`` after the first query."""
    job, tables = job_of(call, shift)
    out: Tensor = _Blocks.apply(job, call.q, call.k, call.v, *tables.flat())  # type: ignore[no-untyped-call]
    return out


class _Blocks(torch.autograd.Function):
    """Attention block by block. Its backward pass recomputes everything from the inputs."""

    @staticmethod
    def forward(ctx: Any, job: Job, q: Tensor, k: Tensor, v: Tensor, *flat: Tensor | None) -> Tensor:
        """Compute attention."""
        ctx.job = job
        ctx.save_for_backward(q, k, v, *flat)
        out = q.new_zeros(*q.shape[:3], v.shape[3])
        tables, work = Tables.of(flat, job), Work.of(job, q, k, tiles=2)
        for part in work.chunks:
            chunk = Chunk(job, q, k, v, tables, *part, work.room)
            into = chunk.split(out[chunk.batch, chunk.heads], 1)
            for block in work.blocks:
                block, seen = chunk.visible(block)
                weights = chunk.weights(block, seen)
                rows = chunk.apart(weights @ chunk.v[:, block.start : block.stop])
                for left, table in zip(job.values, chunk.values, strict=True):
                    band = block.band(job, left, table.shape[-2])
                    rows += band.collect_rows(chunk.apart(weights)) @ table
                into[..., block.first : block.last, :] = rows.flip(-2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients that are needed."""
        job: Job = ctx.job
        q, k, v, *flat = ctx.saved_tensors
        with full_precision(job.call.device):
            return None, *_gradients(job, grad, q, k, v, flat, ctx.needs_input_grad[1:])


def _gradients(
    job: Job, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, flat: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    tables, work = Tables.of(flat, job), Work.of(job, q, k, tiles=3)
    inputs = (q, k, v, *flat)
    found = [x.new_zeros(x.shape) if x is not None and want else None for x, want in zip(inputs, wanted, strict=True)]
    dq, dk, dv, *rest = found
    sums = Tables.of(rest, job)
    scale = job.call.scale
    for batch, heads in work.chunks:
        chunk = Chunk(job, q, k, v, tables, batch, heads, work.room)
        incoming = chunk.backwards(grad).to(chunk.q.dtype)
        dk_sum, dv_sum = torch.zeros_like(chunk.k), torch.zeros_like(chunk.v)
        for block in work.blocks:
            block, seen = chunk.visible(block)
            keys = slice(block.start, block.stop)
            weights = chunk.weights(block, seen)
            rows, out = chunk.rows_of(chunk.q, block), chunk.rows_of(incoming, block)
            if dv is not None:
                dv_sum[:, keys].baddbmm_(weights.mT, out)
            upon = torch.bmm(out, chunk.v[:, keys].mT, out=chunk.tile(2, block))
            for number, (left, table) in enumerate(zip(job.values, chunk.values, strict=True)):
                band = block.band(job, left, table.shape[-2])
                band.add_rows(chunk.apart(upon), chunk.apart(out) @ table.mT)
                total = sums.values[number]
                if total is not None:
                    share = band.collect_rows(chunk.apart(weights))
                    chunk.split(total[chunk.heads], 0).add_((share.mT @ chunk.apart(out)).sum(0))
            scores = chunk.tile(0, block)
            torch._softmax_backward_data(upon, weights, -1, weights.dtype, grad_input=scores)
            if dq is not None:
                product = chunk.apart(torch.bmm(scores, chunk.k[:, keys]).mul_(scale))
                chunk.split(dq[chunk.batch, chunk.heads], 1)[..., block.first : block.last, :] = product.flip(-2)
            if dk is not None:
                dk_sum[:, keys].baddbmm_(scores.mT, rows, alpha=scale)
            _collect(job, chunk, block, chunk.apart(scores), sums)
        for gradient, part in ((dk, dk_sum), (dv, dv_sum)):
            if gradient is not None:
                gradient[batch, heads] = part.view(*chunk.lead[:2], *part.shape[1:])
    return found


def _collect(job: Job, chunk: Chunk, block: Block, scores: Tensor, sums: Tables) -> None:
    """Add the gradient of a block's scores to those of the terms."""
    keys = slice(block.start, block.stop)
    if sums.strip is not None:
        _collect_strip(job, chunk, block, scores, chunk.split(sums.strip[chunk.heads], 0))
    if sums.keys is not None:
        chunk.split(sums.keys[chunk.batch, chunk.heads], 1)[..., keys].add_(scores.sum(-2))
    for left, table in zip(job.rows, sums.rows, strict=True):
        if table is not None:
            part = block.band(job, left, table.shape[-1]).collect_rows(scores).flip(-2)
            chunk.split(table[chunk.batch, chunk.heads], 1)[..., block.first : block.last, :] = part
    for left, table in zip(job.columns, sums.columns, strict=True):
        if table is not None:
            into = chunk.split(table[chunk.batch, chunk.heads], 1)[..., keys, :]
            block.band(job, left, table.shape[-1]).collect_columns(scores, into)


def _collect_strip(job: Job, chunk: Chunk, block: Block, scores: Tensor, into: Tensor) -> None:
    """Sum the gradient of scores by distance; distances beyond the varying ones count for their ends."""
    queries, length = chunk.q.shape[3], into.shape[-1]
    ends = (min(max(distance + queries - 1 - job.shift, 0), length - 1) for distance in job.varies)
    low, high = ends
    top, width = queries - block.last, block.stop - block.start  # entry of (first row, key j) is top + j
    left = min(max(low - (queries - 1 - block.first) - block.start, 0), width)
    right = max(min(high + 1 - top - block.start, width), left)
    if left > 0:
        into[..., low] += scores[..., :left].sum((0, -2, -1))
    if right < width:
        into[..., high] += scores[..., right:].sum((0, -2, -1))
    if left < right:
        entry = top + block.start + left
        part = diagonal_sums(scores[..., left:right]).sum(0)
        into[..., entry : entry + part.shape[-1]] += part
