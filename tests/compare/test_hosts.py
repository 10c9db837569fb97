"""Hosts that share a folder: one is cut off in mid-comparison and comes back; nothing is lost, nothing trained twice.

Network namespaces stand for hosts. A host that is cut off from a shared folder waits in the middle of a call until the
folder is back, as on NFS: its processes are stopped for that time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_workers import without_time

from headway.compare.claims import Claims
from headway.training.files import read_json

HOSTS = ("headway-a", "headway-b")
ADDRESSES = ("10.231.7.1", "10.231.7.2")
SIZES = "--positions rotary,alibi,t5,none --seeds 0 --steps 600 --batch 8 --dim 32 --layers 1 --heads 2"
SIZES += " --train-length 16 --test-lengths 16,32 --threads 1"


def ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check)


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[bytes]]]:
    """What runs on the hosts."""
    started: list[subprocess.Popen[bytes]] = []
    if shutil.which("ip") is None or ip("netns", "add", HOSTS[0], check=False).returncode:
        pytest.skip("network namespaces need iproute2 and root")
    try:
        ip("netns", "add", HOSTS[1])
        ip("link", "add", "headway-va", "netns", HOSTS[0], "type", "veth", "peer", "headway-vb", "netns", HOSTS[1])
        for host, link, address in zip(HOSTS, ("headway-va", "headway-vb"), ADDRESSES, strict=True):
            ip("-n", host, "address", "add", f"{address}/24", "dev", link)
            ip("-n", host, "link", "set", link, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield started
    finally:
        for host in HOSTS:
            for number in processes(host):
                os.kill(number, signal.SIGKILL)
            ip("netns", "delete", host, check=False)
        for process in started:
            process.wait()


def processes(host: str) -> list[int]:
    return [int(number) for number in ip("netns", "pids", host, check=False).stdout.split()]


def start(host: int, out: Path, torchrun: int | None, log: Path) -> subprocess.Popen[bytes]:
    """The command on a host; under torchrun its store is on host number ``torchrun``."""
    command = [sys.executable, "-m"]
    if torchrun is not None:
        command += ["torch.distributed.run", "--nnodes", "2", "--node-rank", str(int(host != torchrun))]
        command += ["--nproc-per-node", "1", "--master-addr", ADDRESSES[torchrun], "--master-port", "29571", "-m"]
    command += ["headway", "compare", *SIZES.split(), "--out", str(out), "--lease", "6"]
    command += [] if torchrun is not None else ["--workers", "1"]
    with log.open("wb") as file:
        return subprocess.Popen(
            ["ip", "netns", "exec", HOSTS[host], *command], stdout=file, stderr=file, start_new_session=True
        )


def wait_for(what: Any, seconds: float, log: Path) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, log.read_text(errors="replace")
        time.sleep(0.1)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [None, 0, 1])
def test_a_host_that_is_cut_off_loses_nothing_and_disturbs_nothing(
    running: list[subprocess.Popen[bytes]], tmp_path: Path, torchrun: int | None
) -> None:
    out, logs = tmp_path / "shared", [tmp_path / "a.log", tmp_path / "b.log"]
    claims = Claims(out)
    running += [start(host, out, torchrun, logs[host]) for host in (0, 1)]

    def of_second() -> str | None:
        """The cell that the second host trains, some way in."""
        inside = processes(HOSTS[1])
        for cell in claims.latest():
            held = claims.held(cell) or {}
            step = (held.get("progress") or {}).get("step", 0)
            if 150 < step < 500 and (claims.owner(cell) or {}).get("pid") in inside:
                return cell
        return None

    cell: str = wait_for(of_second, 120, logs[1])
    stopped = processes(HOSTS[1])
    for number in stopped:
        os.kill(number, signal.SIGSTOP)
    ip("-n", HOSTS[1], "link", "set", "headway-vb", "down")

    # the first host finishes everything, this cell from its checkpoint
    wait_for(lambda: (out / "report.html").exists(), 200, logs[0])
    results = read_json(out / "results.json")
    assert results["complete"]
    successor = claims.end(cell, 2)
    assert successor is not None
    assert successor["trained"][0] in (100, 200, 300, 400)
    folders = [path for path in (out / "cells").iterdir() if path.name != cell]  # that one is superseded
    finished = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    report = (out / "report.html").read_bytes()

    # the second comes back
    ip("-n", HOSTS[1], "link", "set", "headway-vb", "up")
    for number in stopped:
        os.kill(number, signal.SIGCONT)
    wait_for(lambda: claims.end(cell, 1), 60, logs[1])
    wait_for(lambda: not (set(processes(HOSTS[1])) - {running[1].pid}) or running[1].poll() is not None, 60, logs[1])
    assert (out / "report.html").read_bytes() == report
    assert all(path.read_bytes() == data for path, data in finished.items())
    assert (claims.end(cell, 1) or {})["outcome"] == "interrupted"
    for other, last in claims.latest().items():
        if other != "report":
            assert last == (2 if other == cell else 1)
            assert (claims.end(other, last) or {})["trained"][1] == 600

    # digits of one process
    one = [sys.executable, "-m", "headway", "compare", *SIZES.split(), "--out", str(tmp_path / "one")]
    subprocess.run(one, check=True, capture_output=True, timeout=200)
    assert without_time(read_json(tmp_path / "one" / "results.json")) == without_time(results)
