"""Attentions that are not of the usual kind, softmax over all keys or a mask of them: why they are left alone."""

from __future__ import annotations


def _because(reason: str) -> type:
    """What stands for a mixin of a class that is left alone."""
    return type("LeftAlone", (), {"unfit": staticmethod(lambda module: reason)})


_BLOCKS = _because("its attention is block-sparse, with some blocks drawn at random")
_GLOBAL = _because("its attention is in a sliding window, with global tokens that have projections of their own")
_FUNNEL = _because("its queries are pooled to half as many from block to block, and distances with them")
_LOCAL = _because("its attention is in blocks and their neighbours, with a bias of the blocks")

ATTENTIONS = {
    "BigBirdBlockSparseAttention": _BLOCKS,
    "BigBirdPegasusBlockSparseAttention": _BLOCKS,
    "LongformerSelfAttention": _GLOBAL,
    "LEDEncoderSelfAttention": _GLOBAL,
    "FunnelRelMultiheadAttention": _FUNNEL,
    "LongT5LocalAttention": _LOCAL,
    "LongT5TransientGlobalAttention": _because("its attention is in blocks, with a summary of each block as a key"),
}
