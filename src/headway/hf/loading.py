"""Open a checkpoint folder of transformers: safetensors only, nothing downloaded, no code of its own run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedModel

from headway.hf.accelerate import check_version
from headway.hf.inputs import of_family
from headway.schema import Anything, Named
from headway.shapes import HeadwayError, brief
from headway.training.files import read_json

ADAPTERS = "adapter_config.json"
"""What a folder of peft's adapters has instead of a config.json."""


def load(path: str | Path) -> PreTrainedModel:
    """A model from a folder, as transformers' own class; nothing is downloaded, unpickled or executed.

    Args:
        path: the folder, with config.json and safetensors; or of adapters of peft (adapter_config.json), which are
            added to the weights of the folder that they name.

    Raises:
        HeadwayError: when the folder has no configuration or no safetensors, names an architecture that transformers
            does not have, or its weights do not fit.
    """
    check_version()
    folder = Path(path)
    if (folder / ADAPTERS).is_file() and not (folder / "config.json").is_file():
        return _merged(folder)
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


def _merged(folder: Path) -> PreTrainedModel:
    """The model that adapters were trained for, with their products in its weights."""
    peft = peft_library()
    values = read_json(folder / ADAPTERS, Named(Anything()))
    usual = values.get("init_lora_weights", True) in (True, False, "gaussian")
    if values.get("peft_type") != "LORA" or values.get("megatron_config") or not usual:  # others read further files
        raise HeadwayError(f"expected adapters of LoRA in {folder / ADAPTERS}, got others, which could run code")
    named = values.get("base_model_name_or_path")
    if not isinstance(named, str) or not (Path(named) / "config.json").is_file():
        raise HeadwayError(
            f"expected the checkpoint folder of these adapters as base_model_name_or_path in {folder / ADAPTERS}, got "
            f"{brief(str(named))}, which is none: write its path there"
        )
    if not (folder / "adapter_model.safetensors").is_file():
        raise HeadwayError(f"expected adapter_model.safetensors in {folder}, got none: a pickled file could run code")
    model = load(named)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft calls what transformers will rename
            whole: Any = peft.PeftModel.from_pretrained(model, str(folder), local_files_only=True)
            found: PreTrainedModel = whole.merge_and_unload().eval()
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise HeadwayError(f"expected adapters that fit the model in {named}, got {error}") from error
    return found


def peft_library() -> Any:
    """The library peft.

    Raises:
        HeadwayError: when it is missing.
    """
    try:
        import peft
    except ImportError as error:
        raise HeadwayError("expected peft, which makes and reads adapters, got none: pip install peft") from error
    return peft


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
