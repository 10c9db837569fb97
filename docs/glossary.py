"""Write the glossary's terms and meanings, docs/glossary.md, as the data of the studio: python docs/glossary.py."""

from __future__ import annotations

import json
from pathlib import Path

SOURCE = Path(__file__).with_name("glossary.md")
DATA = Path(__file__).parents[1] / "src" / "headway" / "studio" / "glossary.json"


def terms() -> str:
    """The rows of the table as JSON, one term a line."""
    rows = [
        line.strip("| ").split(" | ") for line in SOURCE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "
    ]
    found = [{"en": [en, means], "zh": [zh, said]} for en, zh, means, said in rows[1:]]
    return "[\n" + ",\n".join(json.dumps(one, ensure_ascii=False) for one in found) + "\n]\n"


if __name__ == "__main__":
    DATA.write_text(terms(), encoding="utf-8")
