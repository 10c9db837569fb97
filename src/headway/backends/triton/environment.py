"""Whether triton is there, and how it runs. Nothing here imports it."""

from __future__ import annotations

import importlib.util
import os

# looked up once: torch.compile traces `refuses`, and cannot follow importlib
INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
