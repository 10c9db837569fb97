"""The census names every method, and nothing that is not here."""

import re
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

from headway import Attention
from headway.compare.settings import WAYS
from headway.positions import methods

TEXT = (Path(__file__).parents[1] / "docs" / "census.md").read_text(encoding="utf-8")
ROWS = [line.strip("|").split(" | ") for line in TEXT.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("name", methods())
def test_every_method_is_in_the_census(name: str) -> None:
    (row,) = [row for row in ROWS if re.search(rf"`{name}`", row[1])]
    paper = methods()[name].paper.removeprefix("arXiv:")
    assert not re.fullmatch(r"\d{4}\.\d{5}", paper) or paper in row[0], f"its row does not name {paper}"


def test_everything_the_census_names_is_here() -> None:
    options = signature(Attention).parameters
    named = {spec for row in ROWS for spec in re.findall(r"`([^`]*)`", row[1])}
    for spec in named:
        name, _, rest = spec.partition("(" if "(" in spec else "=")
        if spec.startswith("headway compare --extend "):
            assert set(spec.rpartition(" ")[2].split(",")) <= set(WAYS)
        elif rest and "(" in spec:
            assert rest.partition("=")[0] in {f.name for f in fields(methods()[name])}, spec
        elif rest:
            assert name in options, spec
        else:
            assert name in methods() or name == "extend", spec


def test_links_lead_to_the_paper_they_name() -> None:
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)]*)\)", TEXT):
        assert target == f"https://arxiv.org/abs/{text}"
