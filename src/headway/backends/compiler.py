"""Compile the C++ of a backend for this machine, once, and keep the library in the user's cache.

The cache is ``$HEADWAY_CACHE``, or ``headway`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. A library's name contains a hash
of everything it depends on, so nothing stale is loaded; it is renamed into place, so processes need no lock.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from headway.shapes import HeadwayError

_VECTORS = {
    "AVX512": ("-DCPU_CAPABILITY_AVX512", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c"),
    "AVX2": ("-DCPU_CAPABILITY_AVX2", "-mavx2", "-mfma", "-mf16c"),
}
"""Flags that make ATen's vector types as wide as the processor's; without them they have the architecture's minimum."""


def cache_folder() -> Path:
    """The folder of compiled libraries, and of tokenised texts."""
    if given := os.environ.get("HEADWAY_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headway"


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        if found := shutil.which(name):
            return found
    asked = f"$CXX={named}" if named else "c++, g++ or clang++ on the PATH"
    raise HeadwayError(f"expected a C++ compiler, found no {asked}: install one, as in `apt install g++`")


def _command() -> list[str]:
    """The command line without files and folders."""
    capability = torch.backends.cpu.get_cpu_capability()
    return [
        _compiler(),
        *("-std=c++20", "-O3", "-shared", "-fPIC", "-fopenmp", "-w"),
        f"-DCPU_CAPABILITY={capability if capability in _VECTORS else 'DEFAULT'}",
        *_VECTORS.get(capability, ()),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]


def library(source: Path) -> Path:
    """The shared library of one C++ file and the headers beside it, compiled unless it is in the cache.

    Raises:
        HeadwayError: when there is no compiler, or it fails.
    """
    command = _command()
    code = b"".join(file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h"))))
    depends = "\n".join((*command, torch.__version__, platform.machine(), platform.system()))
    digest = hashlib.sha256(depends.encode() + code).hexdigest()[:20]
    target = cache_folder() / f"{source.stem}-{digest}.so"
    if target.is_file():
        return target
    logging.getLogger("headway").warning("compiling %s for this machine, once (5 to 15 s)", source.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.stem, suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise HeadwayError(
            f"expected a writable folder for the compiled CPU kernel, got {target.parent} "
            f"({error.strerror}): set HEADWAY_CACHE to another folder"
        ) from None
    made = Path(name)
    root = Path(torch.__file__).parent
    files = [f"-I{root / 'include'}", str(source), f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", "-o", name]
    try:
        done = subprocess.run([*command, *files], capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise HeadwayError(f"expected {command[0]} to compile the CPU kernel, got: {(lines or ['no message'])[0]}")
        made.replace(target)
    finally:
        made.unlink(missing_ok=True)
    return target
