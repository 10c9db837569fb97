"""Other people's models: those of transformers, with headway's kernels inside (extra ``headway[hf]``).

:func:`accelerate` changes a model in place and takes it back, :func:`verify` compares it before and after, and
:func:`load` opens a checkpoint folder, and :func:`extend` writes one that reads longer texts.

>>> from transformers import T5Config, T5EncoderModel
>>> model = T5EncoderModel(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4))
>>> done = accelerate(model, quiet=True)
>>> done.undo()
"""

from __future__ import annotations

from headway.shapes import HeadwayError

try:
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise HeadwayError(
        "expected transformers, which headway.hf works on, got none: pip install 'headway[hf]'"
    ) from error

from headway.hf.accelerate import Accelerated, accelerate
from headway.hf.extend import Extended, extend
from headway.hf.loading import load
from headway.hf.swap import Swapped, swap_position
from headway.hf.verify import Verified, verify

__all__ = ["Accelerated", "Extended", "Swapped", "Verified", "accelerate", "extend", "load", "swap_position", "verify"]
