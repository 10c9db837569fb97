"""``python -m headway.experiments.bench``: the position tax on a machine that has torch and nothing else of ours."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
import types
from pathlib import Path

from headway.shapes import HeadwayError


def stand_in() -> None:
    """Let annotations be read where jaxtyping is not installed: shapes in them are then not checked by anything."""
    if importlib.util.find_spec("jaxtyping") is not None:
        return

    class Shape:
        """Any type with any shape."""

        def __class_getitem__(cls, _: object) -> type[Shape]:
            return cls

    def named(name: str) -> type[Shape]:
        if name.startswith("__"):
            raise AttributeError(name)
        return Shape

    module = types.ModuleType("jaxtyping")
    module.__getattr__ = named  # type: ignore[method-assign]
    sys.modules["jaxtyping"] = module


def main() -> None:
    """Read the arguments and measure."""
    stand_in()
    if sys.argv[1:2] == ["train"]:
        from headway.experiments.bench.train import main as train

        return train(sys.argv[2:])
    status = tax(sys.argv[1:])
    if status:
        sys.exit(status)
    return None


def tax(arguments: list[str]) -> int:
    """Measure the position tax; the exit status."""
    from headway.experiments.bench.settings import HELP, Bench

    parser = argparse.ArgumentParser(
        prog="python -m headway.experiments.bench",
        description=__doc__,
        epilog="`… bench train` measures training steps of small decoders instead.",
        allow_abbrev=False,
    )
    for name, text in HELP.items():
        option = f"--{name.replace('_', '-')}"
        if name == "bars":
            parser.add_argument(option, action="store_true", help=text)
        elif name == "baselines":
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        else:
            kind = int if name in ("batch", "heads", "kv_heads", "head_dim", "rounds", "threads") else str
            parser.add_argument(option, type=kind, help=text)
    options = vars(parser.parse_args(arguments))
    threads, out = options.pop("threads"), Path(options.pop("out") or "headway-bench")

    import torch

    from headway.experiments.bench.tax import Row, bench, outcome
    from headway.report.bench import bench_text, row_text, write_bench

    def show(row: Row, done: int, count: int) -> None:
        print(f"{done} of {count}: {row_text(vars(row))}", file=sys.stderr, flush=True)

    try:
        if threads is not None:
            if threads < 1:
                raise HeadwayError(f"expected threads of at least 1, got {threads}")
            torch.set_num_threads(threads)
        command = shlex.join(["python", "-m", "headway.experiments.bench", *arguments])
        results = bench(Bench.of(options), out, command=command, on_row=show)
        report = write_bench(results, out / "report.html")
    except HeadwayError as error:
        parser.error(str(error))
    print(bench_text(results))
    print(f"\nReport: {report}")
    return outcome(results)


if __name__ == "__main__":
    main()
