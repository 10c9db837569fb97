"""Invented results that look like a real comparison: seven methods, two seeds, five lengths."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

LENGTHS = [64, 128, 256, 512, 1024]
METHODS: dict[str, tuple[str, str, str | None, int]] = {
    "none": ("No position", "Only the causal mask tells tokens apart.", "arXiv:2305.19466", 0),
    "sinusoidal": ("Sinusoidal", "Adds fixed sines and cosines to the embeddings.", "arXiv:1706.03762", 0),
    "learned": ("Learned table", "Adds one trained vector per position.", "arXiv:1706.03762", 8192),
    "rotary": ("Rotary (RoPE)", "Turns queries and keys by an angle that grows with position.", "arXiv:2104.09864", 0),
    "alibi": ("ALiBi", "Subtracts a fixed amount per token of distance from each score.", "arXiv:2108.12409", 0),
    "t5": ("T5 buckets", "Adds a trained number per head and distance bucket to each score.", "arXiv:1910.10683", 128),
    "shaw": ("Shaw", "Adds a trained vector per distance to the keys.", "arXiv:1803.02155", 4128),
}
# Bits per byte at each length.
BITS = {
    "none": [2.52, 2.66, 3.05, 3.74, 4.62],
    "sinusoidal": [2.38, 2.95, 3.90, 4.70, 5.31],
    "learned": [2.36],
    "rotary": [2.29, 2.37, 2.74, 3.21, 3.66],
    "alibi": [2.31, 2.29, 2.28, 2.28, 2.28],
    "t5": [2.30, 2.30, 2.33, 2.37, 2.44],
    "shaw": [2.31, 2.32, 2.38, 2.45, 2.52],
}
SPEED = {
    "none": 42100,
    "sinusoidal": 41900,
    "learned": 41500,
    "rotary": 38200,
    "alibi": 40800,
    "t5": 37400,
    "shaw": 22600,
}
DISTANCES = [4, 8, 16, 32, 64, 128, 256, 512]


def results(methods: list[str] | None = None, seeds: int = 2, lengths: list[int] | None = None) -> dict[str, Any]:
    """A finished comparison on text."""
    methods = list(METHODS) if methods is None else methods
    lengths = LENGTHS if lengths is None else lengths
    return {
        "format": 1,
        "created": "2026-11-23T04:20:00Z",
        "task": "text",
        "command": f"headway compare --methods {','.join(methods)} --train-length 64 --seeds {seeds} --steps 400",
        "settings": {
            "text": "Python documentation (built in)",
            "text_bytes": 1_234_567,
            "vocabulary": "bytes",
            "train_length": 64,
            "test_lengths": lengths,
            "seeds": list(range(seeds)),
            "steps": 400,
            "batch": 32,
            "dim": 128,
            "layers": 3,
            "heads": 4,
            "optimizer": "adamw",
            "lr": 0.003,
            "warm_up_steps": 40,
        },
        "environment": {
            "headway": "0.1.0",
            "torch": "2.13.0",
            "python": "3.11.7",
            "platform": "Linux x86_64",
            "threads": 2,
        },
        "complete": True,
        "methods": [
            {"spec": spec, "name": spec, "title": title, "summary": summary, "paper": paper}
            for spec, (title, summary, paper, _) in METHODS.items()
            if spec in methods
        ],
        "cells": [cell(method, seed, lengths) for method in methods for seed in range(seeds)],
    }


def cell(method: str, seed: int, lengths: list[int]) -> dict[str, Any]:
    """One finished training."""
    noise = random.Random(f"{method}{seed}")
    steps = list(range(4, 401, 4))
    final = BITS[method][0] * math.log(2)
    curve = [final - 0.05 + (5.4 - final) * math.exp(-step / 28) + 0.9 / (1 + step / 25) for step in steps]
    checks = list(range(50, 401, 50))
    tests: list[dict[str, Any]] = []
    for length in lengths:
        index = LENGTHS.index(length)
        if index >= len(BITS[method]):
            tests.append(
                {"length": length, "status": "cannot", "message": "longest 64", "loss": None, "accuracy": None}
            )
            tests[-1]["tokens"] = 0
            continue
        bits = BITS[method][index] + noise.uniform(-0.02, 0.02) * (1 + index)
        tests.append(
            {
                "length": length,
                "status": "ok",
                "message": None,
                "loss": bits * math.log(2),
                "bits_per_byte": bits,
                "accuracy": max(0.05, 0.72 - 0.11 * bits),
                "tokens": 16384,
            }
        )
    own = METHODS[method][3]
    return {
        "method": method,
        "seed": seed,
        "status": "ok",
        "message": None,
        "parameters": 433_152 + own,
        "position_parameters": own,
        "train": {"steps": steps, "loss": [loss + noise.gauss(0, 0.045) for loss in curve]},
        "validation": {
            "steps": checks,
            "loss": [curve[step // 4 - 1] + 0.05 + noise.gauss(0, 0.008) for step in checks],
        },
        "seconds": 819_200 / SPEED[method],
        "tokens_per_second": SPEED[method] * (1 + noise.uniform(-0.03, 0.03)),
        "peak_memory_bytes": int(88e6 * (1 + own / 40_000) + noise.uniform(0, 2e6)),
        "tests": tests,
        "by_distance": [],
    }


def recall() -> dict[str, Any]:
    """A finished comparison on the recall task, with accuracy by distance."""
    reach = {"none": 12, "sinusoidal": 40, "learned": 64, "rotary": 90, "alibi": 70, "t5": 160, "shaw": 400}
    changed = results()
    changed["task"] = "recall"
    for key in ("text", "text_bytes", "vocabulary"):
        del changed["settings"][key]
    for one in changed["cells"]:
        noise = random.Random(f"recall{one['method']}{one['seed']}")
        for test in one["tests"]:
            if test["status"] != "ok":
                continue
            del test["bits_per_byte"]
            rows = []
            for distance in DISTANCES:
                if distance >= test["length"]:
                    break
                share = 0.06 + 0.93 / (1 + (distance / reach[one["method"]]) ** 3) - noise.uniform(0, 0.03)
                rows.append({"length": test["length"], "distance": distance, "accuracy": share, "count": 512})
            one["by_distance"].extend(rows)
            test["accuracy"] = sum(row["accuracy"] for row in rows) / len(rows)
    return changed


def diverged() -> dict[str, Any]:
    """One method that diverges with one seed, one with both, and one whose loss is NaN at long lengths."""
    changed = results()
    for one in changed["cells"]:
        if one["method"] == "shaw" or (one["method"], one["seed"]) == ("t5", 1):
            one |= {"status": "diverged", "message": "diverged at step 31", "tests": []}
            one["train"] = {"steps": [4, 8, 12, 16, 20, 24, 28], "loss": [5.2, 4.6, 4.4, 5.9, 9.0, 14.0, 44.0]}
            one["validation"] = {"steps": [], "loss": []}
        if one["method"] == "none":
            for test in one["tests"][3:]:
                test |= {"status": "diverged", "loss": float("nan"), "bits_per_byte": float("nan"), "accuracy": None}
    return changed


def interrupted() -> dict[str, Any]:
    """The first five trainings of fourteen."""
    changed = results()
    changed["complete"] = False
    changed["cells"] = changed["cells"][:5]
    return changed


def all_failed() -> dict[str, Any]:
    """Nothing finished."""
    changed = results()
    for one in changed["cells"]:
        one |= {"status": "failed", "message": "out of memory", "tests": [], "parameters": 0, "tokens_per_second": None}
        one |= {"train": {"steps": [], "loss": []}, "validation": {"steps": [], "loss": []}, "peak_memory_bytes": None}
    return changed


def wild() -> dict[str, Any]:
    """One method far above the others at the longest length."""
    changed = results()
    for one in changed["cells"]:
        if one["method"] == "sinusoidal":
            one["tests"][-1] |= {"loss": 31.0 + one["seed"], "bits_per_byte": 44.7 + one["seed"]}
    return changed


def crowded() -> dict[str, Any]:
    """Sixteen methods, several of them variants, that end close together."""
    changed = results(["rotary", "alibi", "learned"])
    names = ["xpos", "pope", "kerple", "fire", "sandwich", "forgetting", "cope", "deberta", "new-method", "another"]
    specs = [(f"rotary(base={10**n})", "rotary") for n in (5, 6, 7)] + [(name, name) for name in names]
    for number, (spec, name) in enumerate(specs):
        changed["methods"].append({"spec": spec, "name": name, "title": name, "summary": "", "paper": None})
        for seed in range(2):
            one = copy.deepcopy(cell("alibi", seed, LENGTHS))
            one["method"] = spec
            for test in one["tests"]:
                test["bits_per_byte"] += number * 0.02
                test["loss"] = test["bits_per_byte"] * math.log(2)
            changed["cells"].append(one)
    return changed


NASTY = '</script><script>alert(1)</script><!-- <img src=x onerror="alert(2)"> "quoted", =1+1\u2028 中文.txt'


def nasty() -> dict[str, Any]:
    """File names and messages that try to become markup."""
    changed = results()
    changed["settings"]["text"] = NASTY
    changed["settings"]["</script><b>key"] = "=cmd"
    changed["command"] = f"headway compare '{NASTY}'"
    changed["cells"][0] |= {"status": "failed", "message": NASTY, "tests": []}
    changed["methods"][1]["summary"] = NASTY
    return changed


def bench(*, bars: bool = False, complete: bool = True) -> dict[str, Any]:
    """Invented results of a benchmark: every kind of row, a tax from 0.3 to 40, names that are long or hostile."""
    random_ = random.Random(5)
    taxes: dict[tuple[str, str], float | tuple[str, str]] = {
        ("none", "plain SDPA"): 1.0,
        ("none", "headway: sdpa"): 1.01,
        ("t5(bidirectional=True, buckets=64, max_distance=1000)", "headway: native"): 0.97,
        ("t5(bidirectional=True, buckets=64, max_distance=1000)", "SDPA + bias tensor"): 5.9,
        ("t5(bidirectional=True, buckets=64, max_distance=1000)", "FlexAttention"): (
            "unsupported",
            "FlexAttention has no backward on a CPU",
        ),
        ("t5(bidirectional=True, buckets=64, max_distance=1000)", "transformers T5Attention"): 8.02,
        ("alibi", "headway: native"): 0.31,
        ("alibi", "x-transformers"): ("out of memory", "needs 48.5 GiB"),
        ("rotary", "headway: sdpa"): 1.03,
        ("fox", "headway: native"): 0.55,
        ("fox", "FlexAttention"): ("failed", f"RuntimeError: {NASTY}"),
        ("rows", "headway: reference"): 41.7,
    }
    rows = []
    for mode, mask in (("forward+backward", "causal"), ("forward+backward", "full"), ("decode", "causal")):
        for length in (512, 16384):
            for (method, contender), tax in taxes.items():
                row: dict[str, Any] = {
                    "method": method, "contender": contender, "length": length, "mode": mode, "mask": mask,
                    "status": "ok", "reason": None, "seconds": None, "ratio": None, "low": None, "high": None,
                    "floor": None, "rounds": 0, "gflops": None, "peak_bytes": None, "memory_ratio": None, "error": None,
                    "error_ratio": None, "repeats": None, "head_dim": 64, "dtype": "float32",
                }  # fmt: skip
                if isinstance(tax, tuple):
                    row["status"], row["reason"] = tax
                else:
                    ratio = tax if tax == 1.0 else tax * random_.uniform(0.95, 1.05)
                    row |= {"seconds": ratio * length / 9000, "ratio": ratio, "low": ratio * 0.9, "high": ratio * 1.2}
                    row["floor"] = ratio * 0.9 if contender.startswith("headway") else None
                    row |= {"rounds": 5, "gflops": 150 / ratio, "peak_bytes": length * 4321, "memory_ratio": 1.5}
                    if length == 512:
                        row |= {"error": 1.2e-6, "error_ratio": 1.1, "repeats": contender != "FlexAttention"}
                rows.append(row)
    judged = [
        {"name": "time of t5 by headway (auto) ÷ plain SDPA, 4,096 tokens, causal, width 64", "bar": "≤ 0.95",
         "measured": 0.93, "floor": 0.8, "met_by": "bar", "passed": True, "reason": None},
        {"name": "time of cope by headway (auto) ÷ plain SDPA, 2,048 tokens, causal, width 64", "bar": "≤ 0.9",
         "measured": 0.95, "floor": 0.8, "met_by": "floor", "passed": True, "reason": None},
        {"name": "time of fox by headway (auto) ÷ plain SDPA, 8,192 tokens, causal, width 64", "bar": "≤ 0.6",
         "measured": 0.72, "floor": 0.5, "met_by": None, "passed": False, "reason": None},
        {"name": "time of t5 by headway (tiled) ÷ plain SDPA, 4,096 tokens, causal, width 64", "bar": "≤ 1.6",
         "measured": None, "floor": None, "met_by": None, "passed": False,
         "reason": "headway (tiled): unsupported: there is no backend tiled"},
    ]  # fmt: skip
    return {
        "format": 1,
        "kind": "bench",
        "created": "2026-03-05T10:20:00Z",
        "command": "headway bench --lengths 512,16384 --methods 't5(bidirectional=True, buckets=64)'",
        "settings": {"methods": ["none", "t5"], "lengths": [512, 16384], "dtype": "float32", "kv_heads": None},
        "environment": {"headway": "0.1.0", "torch": "2.13.0", "threads": 2, "cores": 2, "cpu_capability": "AVX512",
                        "matmul_gflops": 214.6},
        "complete": complete,
        "rows": rows,
        "bars": judged if bars else [],
    }  # fmt: skip
