"""headway: attention that knows where it is.

>>> from headway import Attention, Causal, Rotary
>>> Attention(dim=64, heads=8, position=Rotary(), mask=Causal()).head(0).q.shape
torch.Size([64, 8])

Names are imported when they are first used, so that ``import headway`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headway._version import __version__ as __version__

if TYPE_CHECKING:
    from headway.attention import Attention
    from headway.cache import KVCache
    from headway.functional import attend
    from headway.latent import LatentAttention
    from headway.masks import Causal, Dense, Documents, Prefix, Window
    from headway.plans import Plan, plan
    from headway.positions import T5, Alibi, Learned, NoPosition, Position, Rotary, Shaw, Sinusoidal
    from headway.shapes import HeadShape, HeadwayError
    from headway.shipped import load_shipped
    from headway.training.generation import generate
    from headway.transformer import Transformer, TransformerConfig
    from headway.views.draw import draw

_HOMES = {
    "functional": ("attend",),
    "plans": ("Plan", "plan"),
    "attention": ("Attention",),
    "latent": ("LatentAttention",),
    "cache": ("KVCache",),
    "training.generation": ("generate",),
    "masks": ("Causal", "Dense", "Documents", "Prefix", "Window"),
    "positions": ("T5", "Alibi", "Learned", "NoPosition", "Position", "Rotary", "Shaw", "Sinusoidal"),
    "shapes": ("HeadShape", "HeadwayError"),
    "shipped": ("load_shipped",),
    "transformer": ("Transformer", "TransformerConfig"),
    "views.draw": ("draw",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "T5",
    "Alibi",
    "Attention",
    "Causal",
    "Dense",
    "Documents",
    "HeadShape",
    "HeadwayError",
    "KVCache",
    "LatentAttention",
    "Learned",
    "NoPosition",
    "Plan",
    "Position",
    "Prefix",
    "Rotary",
    "Shaw",
    "Sinusoidal",
    "Transformer",
    "TransformerConfig",
    "Window",
    "attend",
    "draw",
    "generate",
    "load_shipped",
    "plan",
]


_MODULES = ("inspect", "positions")
"""Used as ``headway.inspect.record(…)``, without an import of their own."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"headway.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'headway' has no attribute {name!r}")
    return getattr(importlib.import_module(f"headway.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
