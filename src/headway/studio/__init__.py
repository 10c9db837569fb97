"""The studio: a local web app over trained runs and fresh models, on this machine only.

``headway studio`` opens it. It needs the extra: ``pip install 'headway[studio]'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headway.shapes import HeadwayError

__all__ = ["DEFAULTS", "serve", "write_site"]

DEFAULTS = (Path("headway-run"), Path("headway-compare"))
"""What is shown unless told otherwise: where ``headway train`` and ``headway compare`` put their results."""


def serve(folders: Sequence[Path | str] = (), port: int | None = None, browser: bool = True) -> None:
    """Open the studio and serve it until ctrl-C; see :func:`headway.studio.server.serve`.

    Raises:
        HeadwayError: when its libraries are missing, a folder holds nothing to show, or the port is taken.
    """
    _check_extra()
    from headway.studio.server import serve as run

    run(folders, port, browser)


def write_site(folders: Sequence[Path | str], target: Path | str, views: Sequence[str] | None = None) -> int:
    """Write the studio to a folder that any web server can serve; see :func:`headway.studio.export.export`.

    Raises:
        HeadwayError: when its libraries are missing, or the folder holds something else.
    """
    _check_extra()
    from headway.studio.export import export

    return export(folders, target, views)


def _check_extra() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise HeadwayError(
            f"expected starlette and uvicorn for the studio, got no {error.name}: pip install 'headway[studio]'"
        ) from error
