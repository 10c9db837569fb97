"""Write the tables of docs/scale.md and docs/scale.zh.md anew, with the commands above them: ``make scale``."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

WORDS = {
    "tokens": "词元数",
    "GPUs": "GPU 数",
    "position": "位置方法",
    "GPUs per sequence": "每条序列的 GPU",
    "sequences": "序列数",
    "GB per GPU": "每 GPU 内存（GB）",
    "fits": "放得下",
    "s per step": "每步秒数",
    "tokens/s per GPU": "每 GPU 每秒词元",
    "yes": "是",
    "no": "否",
}


def anew(found: re.Match[str]) -> str:
    """A command and its table."""
    line = [sys.executable, "-m", "headway", "plan", *shlex.split(found[1])]
    out = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    table = out.partition("\n\n")[0]
    return f"```sh\n.venv/bin/headway plan {found[1]}\n```\n\n{table}\n\n"


def in_chinese(table: str) -> str:
    """The same table with its words in Chinese."""
    return "|".join(f" {WORDS[cell.strip()]} " if cell.strip() in WORDS else cell for cell in table.split("|"))


COMMAND = re.compile(r"```sh\n\.venv/bin/headway plan (.*?)\n```\n\n.*?\n\n", re.DOTALL)
page = Path(__file__).with_suffix(".md")
text = COMMAND.sub(anew, page.read_text())
page.write_text(text)
tables = iter(COMMAND.finditer(text))
chinese = page.with_suffix(".zh.md")
chinese.write_text(COMMAND.sub(lambda _: in_chinese(next(tables)[0]), chinese.read_text()))
