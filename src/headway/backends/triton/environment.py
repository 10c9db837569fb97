"""Whether triton is installed, and whether it interprets. Nothing here imports it."""

from __future__ import annotations

import importlib.util
import os

# looked up once: torch.compile traces `refuses`, and cannot trace importlib
INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
