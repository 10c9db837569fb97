"""Other people's models: those of transformers, with headway's kernels inside.

>>> import headway.hf  # doctest: +SKIP
>>> done = headway.hf.accelerate(model)  # doctest: +SKIP
"""

from headway.hf.accelerate import Accelerated, accelerate

__all__ = ["Accelerated", "accelerate"]
