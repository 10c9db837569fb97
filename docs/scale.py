"""Write the tables of docs/scale.md anew, with the commands above them: ``make scale``."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")


def anew(found: re.Match[str]) -> str:
    """A command and its table."""
    line = [sys.executable, "-m", "headway", "plan", *shlex.split(found[1])]
    out = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    table = out.partition("\n\n")[0]
    return f"```sh\n.venv/bin/headway plan {found[1]}\n```\n\n{table}\n\n"


text = re.sub(r"```sh\n\.venv/bin/headway plan (.*?)\n```\n\n.*?\n\n", anew, PAGE.read_text(), flags=re.DOTALL)
PAGE.write_text(text)
