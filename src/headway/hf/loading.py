"""Open a checkpoint folder of transformers: safetensors only, nothing downloaded, no code of its own run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedModel

from headway.hf.accelerate import check_version
from headway.hf.inputs import of_family
from headway.shapes import HeadwayError, brief


def load(path: str | Path) -> PreTrainedModel:
    """A model from a folder, as transformers' own class; nothing is downloaded, unpickled or executed.

    Args:
        path: the folder, with config.json and safetensors.

    Raises:
        HeadwayError: when the folder has no configuration or no safetensors, names an architecture that transformers
            does not have, or its weights do not fit.
    """
    check_version()
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise HeadwayError(f"expected a checkpoint folder of transformers with a config.json, got {brief(str(path))}")
    if not any(folder.glob("*.safetensors")):
        raise HeadwayError(
            f"expected weights as safetensors in {folder}, got none: a pickled .bin file could run code; save "
            "the model again with save_pretrained"
        )
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise HeadwayError(f"expected a config.json that transformers can read in {folder}, got {error}") from error
    names = getattr(config, "architectures", None) or []
    kind: Any = getattr(transformers, names[0], None) if names else None
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        found = brief(names[0] if names else None)
        raise HeadwayError(f"expected an architecture of transformers in {folder / 'config.json'}, got {found}")
    try:
        loaded: Any = kind.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise HeadwayError(f"expected weights that fit {names[0]} in {folder}, got {error}") from error
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise HeadwayError(f"expected every weight of {names[0]} in {folder}, got none for {brief(', '.join(missing))}")
    return model


def open_model(name: str) -> PreTrainedModel:
    """A model from a folder, or a family of transformers at a small size, see :func:`headway.hf.inputs.of_family`.

    Args:
        name: the folder, or the family.

    Raises:
        HeadwayError: as :func:`load` and ``of_family``.
    """
    return load(name) if Path(name).is_dir() or "/" in name else of_family(name)


def as_lengths(text: str) -> tuple[int, ...]:
    """Numbers of tokens separated by commas.

    Raises:
        HeadwayError: when they are not whole numbers of at least 1.

    >>> as_lengths("256, 512")
    (256, 512)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise HeadwayError(f"expected numbers of tokens separated by commas, such as 256,512, got {brief(text)}")
    return tuple(map(int, parts))
