"""Which keys each query may see: masks compare positions, never indices, and combine with ``&`` and ``|``.

>>> import torch
>>> pos = torch.arange(4)[None]
>>> (Causal() & Window(1)).tile(pos, pos).int()[0, 0].tolist()
[[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
"""

from headway.masks.base import ALL, And, Before, Causal, Dense, Mask, Or, Visible, Window, as_mask, distance
from headway.masks.patterns import Blocks, Chunks, Documents, KeyPadding, Prefix, Strided
from headway.masks.reading import divided, fitted, from_hf, is_distance_only, padding, parts, reach
from headway.masks.steps import Steps, stepless, steps

__all__ = [
    "ALL",
    "And",
    "Before",
    "Blocks",
    "Causal",
    "Chunks",
    "Dense",
    "Documents",
    "KeyPadding",
    "Mask",
    "Or",
    "Prefix",
    "Steps",
    "Strided",
    "Visible",
    "Window",
    "as_mask",
    "distance",
    "divided",
    "fitted",
    "from_hf",
    "is_distance_only",
    "padding",
    "parts",
    "reach",
    "stepless",
    "steps",
]
