"""Small trained models that ship with the package: run folders of ``headway train``, made by ``make models``.

    decoder-rotary      two layers of four heads; one head of the second finds what followed the same token before
    decoder-t5          the same, with T5's learned bias per distance
    encoder-sinusoidal  an encoder with sinusoidal position vectors, trained on masked tokens; heads read the token
                        before and the token after, and find what stands at the same place of a repetition

They read English and 中文, in one vocabulary of byte pairs (the extra ``headway[bpe]``). ``models/README.md`` says what
they were trained on, and what was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.schema import Anything, Named
from headway.shapes import HeadwayError, brief
from headway.training.files import read_json

if TYPE_CHECKING:
    from headway.training.vocabulary import Vocabulary
    from headway.transformer import Transformer

__all__ = ["FOLDER", "MEASURED", "NAMES", "OPENING", "load_shipped", "measured", "named", "path_of"]

NAMES = ("decoder-rotary", "decoder-t5", "encoder-sinusoidal")
"""The models, the one to begin with first."""
FOLDER = Path(__file__).parent / "models"
"""Holds a run folder for each, and nothing else that could be opened."""
MEASURED = "measured.json"
"""The file in a model's folder with what ``make models`` measured."""
OPENING = {
    "en": "The cat sat on the mat because it was tired, the cat sat on the mat because it was",
    "zh": "猫坐在垫子上，因为它累了。猫坐在垫子上，因为它",
}
"""Texts that repeat, on which the head that finds repetitions is worth looking at."""


def path_of(name: str) -> Path:
    """The run folder of a model that ships.

    Raises:
        HeadwayError: when there is no such model.

    >>> path_of("decoder-t5").name
    'decoder-t5'
    """
    if name not in NAMES:
        raise HeadwayError(f"expected one of the models that ship, {', '.join(NAMES)}, got {brief(name)}")
    return FOLDER / name


def named(folder: Path | str) -> Path:
    """The folder of a model that ships, if that is its name and no such folder exists; else the folder that is given.

    >>> named("decoder-t5") == path_of("decoder-t5"), named("run") == Path("run")
    (True, True)
    """
    return path_of(str(folder)) if str(folder) in NAMES and not Path(folder).exists() else Path(folder)


def load_shipped(name: str = NAMES[0]) -> tuple[Transformer, Vocabulary]:
    """A small trained model that ships with the package, in evaluation mode on the CPU, and its vocabulary.

    Args:
        name: decoder-rotary, decoder-t5 or encoder-sinusoidal.

    Raises:
        HeadwayError: when there is no such model, or the library tokenizers is missing.

    >>> model, vocabulary = load_shipped()
    >>> ids = vocabulary.encode("the cat and the 猫".encode())
    >>> model(ids[None]).shape[-1] == vocabulary.size
    True
    """
    from headway.training.run import load_model

    model, vocabulary, _ = load_model(path_of(name))
    return model, vocabulary  # type: ignore[return-value]  # as every run of headway's own models


def measured(name: str = NAMES[0]) -> dict[str, Any]:
    """What ``make models`` measured of a model: shares of its heads, losses, and its strongest head of each kind.

    Raises:
        HeadwayError: when there is no such model, or the file is damaged.

    >>> sorted(measured()["strongest"])
    ['induction', 'local', 'previous']
    """
    found: dict[str, Any] = read_json(path_of(name) / MEASURED, Named(Anything()))
    return found
