"""What heads do on repeated tokens, against plain loops over their weights."""

from __future__ import annotations

import pytest
import torch

from headway import HeadwayError, Transformer
from headway.inspect import patterns, recorded
from headway.inspect.patterns import NEAR


def test_shares_are_means_over_queries() -> None:
    torch.manual_seed(0)
    model = Transformer(20, 16, layers=2, heads=2, position="alibi").eval()
    period, texts = 7, 3
    found = patterns(model, period=period, texts=texts, lowest=4, seed=5)
    drawn = torch.randint(4, 20, (texts, period), generator=torch.Generator().manual_seed(5))
    for layer, one in enumerate(recorded(model, drawn.repeat(1, 3))):
        weights = one.weights().double()
        for head in range(2):
            rows = weights[:, head].mean(0).tolist()
            queries = range(1, 3 * period)
            previous = [rows[i][i - 1] for i in queries]
            local = [sum(rows[i][max(0, i - NEAR + 1) : i + 1]) for i in queries]
            induction = [rows[i][i - period + 1] for i in queries if i >= period]
            for name, values in (("previous", previous), ("local", local), ("induction", induction)):
                share = float(getattr(found, name)[layer, head])
                assert share == pytest.approx(sum(values) / len(values), abs=1e-12), name


def test_an_encoder_is_refused() -> None:
    model = Transformer(20, 16, layers=1, heads=2, kind="encoder")
    with pytest.raises(HeadwayError, match="expected a decoder, which predicts the next token, got an encoder"):
        patterns(model)
    with pytest.raises(HeadwayError, match="lowest below the vocabulary's 20 ids, got period=24 and lowest=20"):
        patterns(Transformer(20, 16, layers=1, heads=2), lowest=20)
