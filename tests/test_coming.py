"""Every row of docs/coming.md runs: what users of other libraries write here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import headway
import headway.inspect
from headway import masks, terms

DOCS = Path(__file__).parent.parent / "docs"


def rows(name: str) -> list[tuple[str, str]]:
    """(there, here) of every row of the tables."""
    text = (DOCS / name).read_text(encoding="utf-8")
    found = re.findall(r"^\| (`.*?) \| `(.*?)` \| .*\|$", text, re.MULTILINE)
    return [(there, here.replace("\\|", "|")) for there, here in found]


def given() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 8, 64, generator=generator), torch.randn(2, 5, 32, generator=generator)
    q, k, v = torch.randn(3, 2, 8, 8, 8, generator=generator)
    names = vars(masks) | vars(terms) | {name: getattr(headway, name) for name in headway.__all__}
    return names | {
        "torch": torch,
        "record": headway.inspect.record,
        "x": x,
        "y": y,
        "q": q,
        "k": k,
        "v": v,
        "pad": torch.zeros(2, 8, dtype=torch.bool),
        "hidden": torch.eye(8, dtype=torch.bool),
        "seen": ~torch.eye(8, dtype=torch.bool),
        "bias": torch.randn(8, 8, generator=generator),
        "slopes": torch.rand(8, generator=generator),
        "table": torch.randn(8, 9, generator=generator),
        "scores": torch.zeros(8),
        "ids": torch.arange(8)[None] // 4,
        "blocks": torch.eye(2, dtype=torch.bool),
        "function": lambda q_pos, k_pos: -(q_pos[:, None, :, None] - k_pos[:, None, None]).abs().float(),
    }


@pytest.mark.parametrize(("there", "here"), rows("coming.md"))
def test_a_row_runs(there: str, here: str) -> None:
    made = eval(here, given())
    if isinstance(made, headway.Attention) and made.k.in_features == 64:
        made = made(torch.randn(2, 8, 64, dtype=made.q.weight.dtype))
    if isinstance(made, headway.Transformer):
        made = made(torch.zeros(2, 8, dtype=torch.long))
    assert not isinstance(made, torch.Tensor) or made.isfinite().all()


def test_both_languages_have_the_same_rows() -> None:
    assert [here for _, here in rows("coming.md")] == [here for _, here in rows("coming.zh.md")]
    assert len(rows("coming.md")) > 35


@pytest.mark.parametrize("mask", ["causal", "boolean", "floats", "padding"])
def test_it_computes_what_multihead_attention_computes(mask: str) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(64, 8, bias=True, batch_first=True, dtype=torch.float64)
    ours = headway.Attention(64, 8, bias=True, dtype=torch.float64)
    with torch.no_grad():
        for part, weight, bias in zip("qkv", theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True):
            linear = getattr(ours, part)
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        ours.o.load_state_dict(theirs.out_proj.state_dict())
    x = torch.randn(2, 8, 64, dtype=torch.float64)
    hidden = torch.rand(8, 8).gt(0.6) & ~torch.eye(8, dtype=torch.bool)
    pad = torch.zeros(2, 8, dtype=torch.bool)
    pad[1, 5:] = True
    bias = torch.randn(8, 8, dtype=torch.float64)
    options: dict[str, tuple[dict[str, Any], Any]] = {
        "causal": ({"attn_mask": torch.ones(8, 8).triu(1).bool(), "is_causal": True}, headway.Causal()),
        "boolean": ({"attn_mask": hidden}, ~hidden),
        "floats": ({"attn_mask": bias}, bias),
        "padding": ({"key_padding_mask": pad}, masks.KeyPadding(~pad)),
    }
    expected, _ = theirs(x, x, x, need_weights=False, **options[mask][0])
    assert torch.allclose(ours(x, mask=options[mask][1]), expected, atol=1e-12)
