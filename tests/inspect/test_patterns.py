"""What heads do on repeated tokens, against plain loops over their weights."""

from __future__ import annotations

import pytest
import torch

from headway import HeadwayError, Transformer
from headway.inspect import masked_patterns, patterns, recorded
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


def test_shares_of_an_encoder() -> None:
    torch.manual_seed(0)
    model = Transformer(21, 16, layers=2, heads=2, kind="encoder", position="alibi(sides='alike')").eval()
    period, texts, mask = 13, 3, 20
    found = masked_patterns(model, mask, period=period, texts=texts, lowest=4, seed=5)
    drawn = torch.randint(4, mask, (texts, period), generator=torch.Generator().manual_seed(5)).repeat(1, 3)
    hidden = drawn.clone()
    hidden[:, [17, 25]] = mask  # places 4 and 12 of the second period
    tokens = range(3 * period)
    for layer, one in enumerate(recorded(model, hidden)):
        weights = one.weights().double()
        for head in range(2):
            rows = weights[:, head].mean(0).tolist()
            previous = [rows[i][i - 1] for i in tokens if i]
            following = [rows[i][i + 1] for i in tokens[:-1]]
            local = [sum(rows[i][j] for j in tokens if abs(i - j) < NEAR) for i in tokens]
            elsewhere = [rows[i][i - period] + rows[i][i + period] for i in (17, 25)]
            shares = {"previous": previous, "following": following, "local": local, "elsewhere": elsewhere}
            for name, values in shares.items():
                share = float(getattr(found, name)[layer, head])
                assert share == pytest.approx(sum(values) / len(values), abs=1e-12), name
    with torch.no_grad():
        log_p = model(hidden).log_softmax(-1)
        alone = model(hidden[:, period : 2 * period]).log_softmax(-1)
    for p, first, loss in ((log_p, period, found.repeated), (alone, 0, found.new)):
        values = [-float(p[text, first + i, drawn[text, i]]) for text in range(texts) for i in (4, 12)]
        assert loss == pytest.approx(sum(values) / len(values), rel=1e-5)
    with pytest.raises(HeadwayError, match="expected an encoder, which predicts masked tokens, got decoder"):
        masked_patterns(Transformer(20, 16, layers=1, heads=2), 19)
    with pytest.raises(HeadwayError, match=r"period of at least 9 .* got period=8 and lowest=0"):
        masked_patterns(model, mask, period=8)


def test_an_encoder_is_refused() -> None:
    model = Transformer(20, 16, layers=1, heads=2, kind="encoder")
    with pytest.raises(HeadwayError, match="expected a decoder, which predicts the next token, got an encoder"):
        patterns(model)
    with pytest.raises(HeadwayError, match="lowest below the vocabulary's 20 ids, got period=24 and lowest=20"):
        patterns(Transformer(20, 16, layers=1, heads=2), lowest=20)
