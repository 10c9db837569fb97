"""Write docs/opened.md: the families of transformers whose attentions are recorded, and how exactly.

Run by ``make opened``. Models are the tiny ones of tests/hf/test_recording.py, all their parameters random, in float64.
"""

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from models import far, randomised
from test_recording import FAMILIES, OTHERWISE, SMALL, inputs, made, own_weights

from headway.hf.float64 import in_float64
from headway.hf.inputs import random_inputs
from headway.inspect import record, recorded, split
from headway.shapes import HeadwayError

PAGE = Path(__file__).with_name("opened.md")
REFUSED: dict[str, dict[str, Any]] = {
    "BigBirdModel": SMALL | {"attention_type": "block_sparse", "block_size": 4},
    "LongformerModel": SMALL | {"attention_window": 4},
    "FunnelModel": {"vocab_size": 96, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 24},
    "MambaModel": SMALL,
    "FNetModel": SMALL,
}
"""Families whose attention is no plain one, tried too."""
HEAD = """# Families of transformers that open

Made by `make opened`; see [checkpoints](checkpoints.md). Tiny models of two layers, all parameters random, float64.
Errors are the largest over all layers: weights against `output_attentions` of the model's own eager code, the sum of
the parts of `split` against the scores, and the output of the model while it is recorded against its own, relative to
its largest value. Other families open too if their attention is the usual kind; `headway verify FOLDER` compares any
checkpoint. Position "own" is recorded, but is none of headway's methods.

| family | position | Q, K, V, O of each head | weights | parts | output |
|---|---|---|---|---|---|
"""


def row(name: str) -> str:
    """One family, measured."""
    model = made(name)
    given = inputs(model, "none")
    with torch.no_grad(), in_float64():
        expected = model(**given)[0]
        with record(model) as trace:
            output = far(model(**given)[0], expected)
    positions = sorted({layer.attention.position.spec() for layer in trace})
    found = [which for which in "qkvo" if all(which in layer.attention.parts for layer in trace)]
    parts = max(far(split(layer).total, layer.scores()) for layer in trace)
    weights = OTHERWISE.get(name)
    if weights is None:
        own = zip(trace, own_weights(model, given), strict=True)
        weights = f"{max(float((layer.weights() - theirs).abs().max()) for layer, theirs in own):.0e}"
    named = "; ".join(f"`{one}`" for one in positions)
    cells = [f"`{name}`", named, ", ".join(found).upper(), weights, f"{parts:.0e}", f"{output:.0e}"]
    return f"| {' | '.join(cells)} |".replace("0e+00", "0")


def reason(name: str) -> str:
    """Why a family is refused."""
    try:
        kind = getattr(transformers, name)
        model = randomised(kind(kind.config_class(**REFUSED[name])))
        recorded(model, **random_inputs(model, 64))
    except HeadwayError as error:
        return f"| `{name}` | {error} |"
    raise AssertionError(f"{name} opens: move it to the families")


if __name__ == "__main__":
    logging.disable()
    rows = [row(name) for name in FAMILIES]
    refused = [reason(name) for name in REFUSED]
    tail = "\n\n## Refused\n\n| model | headway's words |\n|---|---|\n"
    PAGE.write_text(HEAD + "\n".join(rows) + tail + "\n".join(refused) + "\n", encoding="utf-8")
