"""Look inside attention: its inputs, how each score is computed, how its matrices learn.

>>> import headway, torch
>>> model = headway.Transformer(vocab=50, dim=32, layers=2, heads=4)
>>> with headway.inspect.record(model) as trace:
...     _ = model(torch.arange(10)[None])
>>> [layer.name for layer in trace]
['stack.blocks.0.attention.part', 'stack.blocks.1.attention.part']
>>> trace[0].weights().shape
torch.Size([1, 4, 10, 10])
"""

from headway.inspect.head import Head
from headway.inspect.patterns import MaskedPatterns, Patterns, masked_patterns, patterns
from headway.inspect.record import Layer, Trace, record, recorded
from headway.inspect.split import Split, split
from headway.inspect.step import Move, Step, one_step
from headway.inspect.watch import Snapshot, Watch, watch

__all__ = [
    "Head",
    "Layer",
    "MaskedPatterns",
    "Move",
    "Patterns",
    "Snapshot",
    "Split",
    "Step",
    "Trace",
    "Watch",
    "masked_patterns",
    "one_step",
    "patterns",
    "record",
    "recorded",
    "split",
    "watch",
]
