"""Write docs/families.md: which models of transformers headway accelerates, how exactly, and how much faster.

Run by ``make families``, on a quiet machine; each row is measured by what ``headway verify`` and ``headway accelerate
--bench`` run. ``python docs/families.py t5 bloom`` measures those families again and keeps the other rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from headway.bench.measure import environment
from headway.hf.accelerate import accelerate
from headway.hf.bench import time_model
from headway.hf.inputs import of_family
from headway.hf.verify import verify
from headway.shapes import HeadwayError

FAMILIES = (
    "t5", "mt5", "umt5", "switch_transformers", "longt5", "udop", "bloom", "mpt", "falcon", "deberta",
    "deberta-v2", "xlnet", "mpnet", "swin", "swinv2", "donut-swin", "beit", "layoutlmv3", "wav2vec2-conformer",
    "seamless_m4t", "wavlm", "llama", "mistral", "qwen3", "gemma3_text", "gpt2", "bert", "modernbert",
    "vit",
)  # fmt: skip
LENGTHS = (512, 1024, 2048, 4096)
LONG = ("t5", "bloom", "deberta-v2", "llama")
"""Families that are measured at the longest length too, which takes minutes each."""
MOST = 12e9
"""Bytes that transformers' own code may take, about."""
ROWS = Path(__file__).with_name("families.json")
PAGE = Path(__file__).with_name("families.md")


def measured(name: str) -> dict[str, Any]:
    """One row; a family that is left alone says why."""
    try:
        model = of_family(name)
        done = accelerate(model, quiet=True)
    except HeadwayError as error:
        return {"status": str(error)}
    done.undo()
    taken = [part for part in done.parts if part.reason is None]
    taken.sort(key=lambda part: (part.memory is None, "Attention" not in part.kind))
    part = taken[0]
    text = model.main_input_name == "input_ids"
    checked = verify(model, lengths=(33, 300) if text else (300,))
    timings = []
    for timing in time_model(model, LENGTHS if text else (512,), modes=("forward+backward",), rounds=3):
        timings.append(timing)
        # twice the text takes four times as much
        if 4 * timing.own_memory > MOST or (timing.tokens == LENGTHS[-2] and name not in LONG):
            break
    return {
        "status": part.position if checked.passed else "less exact than its own code",
        "output": max(row.ours / max(row.own, 1e-30) for row in checked.rows),
        "gradient": max(row.our_gradient / max(row.own_gradient, 1e-30) for row in checked.rows),
        "speed": {str(each.tokens): round(each.speed, 2) for each in timings},
        "memory": round(timings[-1].own_memory / timings[-1].our_memory, 2),
    }


def page(rows: dict[str, Any], machine: dict[str, Any]) -> str:
    """All rows as Markdown."""
    head = [
        "# Families of transformers, measured",
        "",
        "Made by `make families`; see [other people's models](transformers.md). 4 layers, width 512, 8 heads,",
        "float32, one text, random weights (vision models: their default size and one image); times are forward and",
        "backward of the whole model, the fastest of transformers' own implementations ÷ headway, medians in one run.",
        "Errors of output and gradients against the model's own code in float64, as multiples of the error of its own",
        "code in float32, are the largest over two lengths and three paddings; at most 2 is allowed.",
        "Memory is the peak of transformers' own code ÷ that of headway at the longest text that was measured.",
        "",
        f"Measured on {machine.get('processor', machine.get('cpu_capability'))}, {machine['threads']} threads, "
        f"torch {machine['torch']}.",
        "",
        f"| family | position | output | gradients | {' | '.join(f'{n:,}' for n in LENGTHS)} | memory |",
        f"|---|---|---|---|{'---|' * len(LENGTHS)}---|",
    ]
    for name, row in rows.items():
        if "speed" not in row:
            why = row["status"].rpartition("got none in ")[2]
            head.append(f"| `{name}` | left alone: {why} | | |{' |' * len(LENGTHS)} |")
            continue
        speeds = [f"{row['speed'][str(n)]:.2f}" if str(n) in row["speed"] else "–" for n in LENGTHS]
        cells = [row["status"], f"{row['output']:.2f}", f"{row['gradient']:.2f}", *speeds, f"{row['memory']:.2f}"]
        head.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(head) + "\n"


if __name__ == "__main__":
    kept = json.loads(ROWS.read_text())["rows"] if ROWS.exists() else {}
    here = environment(torch.float32, "cpu")
    for family in sys.argv[1:] or FAMILIES:
        kept[family] = measured(family)
        print(family, kept[family], flush=True)
        rows = {name: kept[name] for name in FAMILIES if name in kept}
        ROWS.write_text(json.dumps({"machine": here, "rows": rows}, indent=1) + "\n")
        PAGE.write_text(page(rows, here))
