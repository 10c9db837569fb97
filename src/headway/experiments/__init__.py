"""Experiments with position methods: compare them on a text or a retrieval task, and measure what they cost."""

import os

# torch's profiler, which counts memory, reads this once, when torch is loaded; otherwise it writes to the terminal
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
