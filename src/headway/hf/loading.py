"""Open a checkpoint folder of transformers: safetensors only, nothing downloaded, no code of its own run."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huggingface_hub.constants
import torch
import transformers
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from headway.characters import shortened
from headway.hf.accelerate import check_version
from headway.hf.folder import Folder, read_folder
from headway.hf.inputs import of_family
from headway.hf.swap import FILE, METHODS, restore
from headway.schema import Anything, Named
from headway.shapes import HeadwayError, brief
from headway.training.files import read_json

LOG = logging.getLogger("headway")
ADAPTERS = "adapter_config.json"
"""What a folder of peft's adapters has instead of a config.json."""


def load(path: str | Path | PreTrainedModel) -> PreTrainedModel:
    """A model from a folder, as transformers' own class; nothing is downloaded, unpickled or executed.

    Its parameters have the dtype of the files (transformers' ``dtype="auto"``), and it is in evaluation mode. Before
    transformers opens them, the headers of the files are read, and compared with the model that the configuration
    describes, of which nothing is allocated. Position methods that :meth:`headway.hf.Swapped.save` wrote beside it are
    put in place.

    Args:
        path: the folder, with config.json and safetensors; or of adapters of peft (adapter_config.json), which are
            added to the weights of the folder that they name. A model is returned as it is.

    Raises:
        HeadwayError: when the folder has no configuration or no safetensors, leads out of itself or is damaged, names
            an architecture that transformers does not have, or its weights are not those of the configuration.
    """
    check_version()
    if isinstance(path, PreTrainedModel):
        return path
    if (Path(path) / ADAPTERS).is_file() and not (Path(path) / "config.json").is_file():
        return _merged(Path(path))
    folder = read_folder(path)
    kind, config = architecture(folder)
    _check_fit(kind, config, folder)
    try:
        with offline():
            loaded: Any = kind.from_pretrained(
                folder.path,
                config=config,
                dtype="auto",
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise HeadwayError(f"expected weights that fit {kind.__name__} in {path}, got {_said(error)}") from error
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise HeadwayError(f"expected every weight of {kind.__name__} in {path}, got none for {_listed(missing)}")
    left = sorted(loaded[1]["unexpected_keys"])
    if any(name.startswith(f"{METHODS}.") for name in left):
        raise HeadwayError(
            f"expected a {FILE} that names the position methods in {path}, got their weights alone: Swapped.save "
            f"writes both; a trainer resumes its own checkpoints, in a model whose positions were swapped"
        )
    beyond = [name for name in left if re.search(r"\.\d+\.", name)]
    if beyond:
        raise HeadwayError(
            f"expected weights of the layers that {path}/config.json has, got others too: {_listed(beyond)}"
        )
    if left:  # such as a head that the architecture lacks
        LOG.warning("left out of %s, which has no such part: %s", kind.__name__, _listed(left))
    if (folder.path / FILE).is_file():
        restore(model, folder.path)
    return model


def architecture(folder: Folder) -> tuple[Any, Any]:
    """The class of a folder's model, one of transformers' own, and its configuration.

    Raises:
        HeadwayError: when transformers does not have it, or cannot read its configuration.
    """
    file, needs = folder.path / "config.json", ""
    if "auto_map" in folder.config:
        needs = "; its own code (auto_map) is never run"
    try:
        with offline():
            config: Any = AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise HeadwayError(
            f"expected a config.json that transformers can read in {folder.path}, got {_said(error)}{needs}"
        ) from error
    names = getattr(config, "architectures", None) or []
    kind: Any = getattr(transformers, names[0], None) if names and isinstance(names[0], str) else None
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        found = brief(names[0] if names else None)
        raise HeadwayError(f"expected an architecture of transformers in {file}, got {found}{needs}")
    return kind, config


def _check_fit(kind: Any, config: Any, folder: Folder) -> None:
    """Compare the model that a configuration describes with the tensors in the files; nothing is allocated.

    Raises:
        HeadwayError: when they differ in shape, or the model is much larger than the files.
    """
    most = 1000 + 20 * len(folder.tensors)
    file = folder.path / "config.json"
    seen = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal seen
        seen += 1
        if seen > most:
            raise HeadwayError(
                f"expected a model of {len(folder.tensors):,} tensors, as in the files, got more in {file}"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with offline(), torch.device("meta"):
            model = kind(copy.deepcopy(config))
    except HeadwayError:
        raise
    except Exception as error:  # sizes that do not go together
        raise HeadwayError(f"expected sizes that make a {kind.__name__} in {file}, got {_said(error)}") from error
    finally:
        hook.remove()
    plain = "quantization_config" not in folder.config
    for name, value in model.state_dict().items():
        stored = folder.tensors.get(name)
        if plain and stored is not None and stored.shape != tuple(value.shape):
            raise HeadwayError(
                f"expected {name} of shape {list(value.shape)}, as {file} says, got {list(stored.shape)} in the files"
            )
    # quantised entries are packed; buffers are tables of positions and masks
    entries = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(buffer.numel() for buffer in model.buffers())
    if entries > (2 if plain else 16) * folder.count or tables > folder.count + 2**28:
        raise HeadwayError(
            f"expected about {folder.count:,} entries, as in the files, got {entries + tables:,} by the sizes in {file}"
        )


@contextmanager
def silent() -> Iterator[None]:
    """Lets transformers show no progress, and say nothing but errors."""
    bars: Any = transformers_logging
    shown, told = bars.is_progress_bar_enabled(), bars.get_verbosity()
    bars.disable_progress_bar()
    bars.set_verbosity_error()
    try:
        yield
    finally:
        bars.set_verbosity(told)
        if shown:
            bars.enable_progress_bar()


@contextmanager
def offline() -> Iterator[None]:
    """Lets nothing be fetched from the hub, as ``HF_HUB_OFFLINE=1`` does; :func:`silent`."""
    with silent(), patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True):
        yield


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


def _said(error: Exception) -> str:
    """A foreign error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(lines[0], 200) if lines else type(error).__name__


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
