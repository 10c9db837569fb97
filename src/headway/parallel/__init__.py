"""Many processes: the group that torchrun starts, attention over sequences spread over them (context parallelism),
heads divided among them, and plans of training on many devices.

>>> import torch
>>> from headway import Attention, Causal
>>> from headway.parallel import context_parallel, shard_tokens, unshard
>>> attention, x = Attention(64, 4, position="alibi", mask=Causal()), torch.randn(2, 10, 64)
>>> with context_parallel(attention):  # under torchrun, all processes there are
...     mine, pos = shard_tokens(x)
...     out = unshard(attention(mine, pos=pos), length=10)
>>> torch.allclose(out, attention(x), atol=1e-6)
True
"""

from headway.parallel.context import Spreading, attend, context_parallel, refuses, sum_gradients
from headway.parallel.merging import merge
from headway.parallel.process import World, processes
from headway.parallel.ranks import Ranks
from headway.parallel.sharding import Layout, shard, shard_tokens, unshard
from headway.parallel.tensor import tensor_parallel

__all__ = [
    "Layout",
    "Ranks",
    "Spreading",
    "World",
    "attend",
    "context_parallel",
    "merge",
    "processes",
    "refuses",
    "shard",
    "shard_tokens",
    "sum_gradients",
    "tensor_parallel",
    "unshard",
]
