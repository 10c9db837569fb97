"""``python -m headway.compare.worker``: one worker of a comparison, started by :mod:`headway.compare.workers`.

It reads what to do as one line of JSON, and stops when its input is closed: so it never outlives who started it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any


def main() -> int:
    """Work until all cells are finished; the exit status is 1 after an error outside of a cell, 130 if interrupted."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # see headway.cli
    try:
        told = json.loads(sys.stdin.buffer.readline())
        stopped = threading.Event()
        threading.Thread(target=_until_closed, args=(stopped,), daemon=True).start()
        return 0 if _work(told, stopped) else 130
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from headway.console import sentence

        print(f"error: {sentence(error)}", file=sys.stderr, flush=True)
        return 1


def _until_closed(stopped: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    stopped.set()


def _work(told: dict[str, Any], stopped: threading.Event) -> bool:
    import torch

    from headway.compare.claims import Claims
    from headway.compare.run import Job, work
    from headway.compare.settings import Comparison
    from headway.memory import keep_freed_memory

    keep_freed_memory()
    threads: int = told["comparison"]["threads"]
    torch.set_num_threads(threads)
    comparison = Comparison.of({n: tuple(v) if isinstance(v, list) else v for n, v in told["comparison"].items()})
    job = Job.of(comparison, Claims(Path(told["out"]), told["lease"], threads), told["since"])
    return work(job, stop=stopped.is_set, alone=False)


if __name__ == "__main__":
    sys.exit(main())
