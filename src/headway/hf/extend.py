"""Extend a rotary model of transformers to longer texts, and write a checkpoint that plain transformers loads."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from headway.hf.accelerate import check_version
from headway.hf.extend_report import name_of, write_report
from headway.hf.folder import CONFIG, Folder, inside, read_folder
from headway.hf.loading import architecture, load, silent
from headway.hf.long_texts import Measured, Measuring, check, measure
from headway.hf.own_text import own_text
from headway.hf.stretching import Stretch, misread, part_of, stretch
from headway.hf.tuning import TUNING, tune
from headway.output import explained, write_output
from headway.shapes import HeadwayError

_KEPT = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors", "*.md", "LICENSE*", "NOTICE*")
"""Files of a checkpoint that go into the new folder: no pickles, no code."""
_SUPERSEDED = ("rope_scaling", "rope_theta", "rope_local_base_freq")
"""Keys of older files that ``rope_parameters`` says too."""


@dataclass
class Extended:
    """An extended model; made for printing.

    Args:
        stretch: what was done to its configuration.
        original: the model before, or the folder it is in.
        measured: what was measured before and after; None without a text.
        tuned: the model after tuning; None where nothing was tuned.
    """

    stretch: Stretch
    original: PreTrainedModel | Folder = field(repr=False)
    measured: Measured | None = None
    tuned: PreTrainedModel | None = field(default=None, repr=False)

    @cached_property
    def before(self) -> PreTrainedModel:
        """The model before; a folder is loaded when it is first asked for."""
        return load(self.original.path) if isinstance(self.original, Folder) else self.original

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model after; where nothing was tuned it shares its parameters with the one before."""
        return self.tuned if self.tuned is not None else rebuilt(self.before, self.stretch)

    def undo(self) -> PreTrainedModel:
        """The model before, of which nothing was changed."""
        return self.before

    def save(self, out: str | Path) -> Path:
        """Write a checkpoint folder: the files of the one before with another configuration, and the report.

        Weights that were not tuned are the same bytes. ``config.json`` is written last.

        Raises:
            HeadwayError: when the folder holds a model already, or cannot be written.
        """
        folder = checked_out(out)
        config = self._config()
        with explained(f"writing {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(self.original, Folder):
                self._copy(self.original, folder)
            if self.tuned is not None or not isinstance(self.original, Folder):
                saved = folder / TUNING / "saved"
                with silent():
                    self.model.save_pretrained(saved)
                for file in sorted(saved.iterdir()):
                    if file.name != CONFIG and (".safetensors" in file.name or not isinstance(self.original, Folder)):
                        os.replace(file, folder / file.name)
            shutil.rmtree(folder / TUNING, ignore_errors=True)
        write_report(name_of(self.original), self.stretch, self.measured, folder)
        write_output(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        return folder

    def _config(self) -> dict[str, Any]:
        """The configuration as JSON: that of the folder with the values of the extension, else the model's own."""
        if not isinstance(self.original, Folder):
            return dict(json.loads(self.model.config.to_json_string(use_diff=True)))
        config = copy.deepcopy(self.original.config)
        _, read = architecture(self.original)
        part = part_of(read)
        text = config if part is None else config.setdefault(part, {})
        for key in _SUPERSEDED:
            text.pop(key, None)
        text.update(copy.deepcopy(dict(self.stretch.values)))
        why = misread(type(read).from_dict(copy.deepcopy(config)), self.stretch.values)
        if why is not None:
            raise HeadwayError(f"expected a config.json that transformers reads as extended, got another: {why}")
        return config

    def _copy(self, source: Folder, folder: Path) -> None:
        names = {each.name for kind in _KEPT for each in source.path.glob(kind) if each.is_file()} - {CONFIG}
        shards = {name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))}
        unread = shards - set(source.files)
        for name in sorted(names - unread - (shards if self.tuned is not None else set())):
            shutil.copyfile(inside(source.path, name), folder / name)

    def __str__(self) -> str:
        done = self.stretch
        rows = [f"{done.before} → {done.after}, {done.trained:,} → {done.to:,} tokens"]
        rows += [f"  {note}" for note in done.notes]
        rows.append(
            "  not measured: no text was given" if self.measured is None else f"  {self.measured.sentence['en']}"
        )
        return "\n".join(rows)


def extend(
    model: PreTrainedModel | str | Path,
    to: int = 32768,
    how: str = "yarn",
    *,
    trained: int | None = None,
    windows_too: bool = False,
    text: str | Path | torch.Tensor | None = None,
    tune_steps: int = 0,
    lr: float = 2e-5,
    batch: int = 1,
    seed: int = 0,
    measuring: Measuring | None = None,
    out: str | Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> Extended:
    """Extend a model to longer texts, tune and measure it where a text is given, and write it where a folder is.

    The extension is an entry of the model's own configuration, so that plain transformers loads the result. The model
    and the folder that are given are not changed.

    Args:
        model: a model of transformers, or a checkpoint folder, see :func:`headway.hf.load`.
        to: the new length, in tokens.
        how: "yarn", "ntk", "dynamic", "linear", "longrope" or "drope", see :mod:`headway.hf.stretching`.
        trained: the length it was trained at; default what its configuration says.
        windows_too: extend layers with a sliding window too, where these have frequencies of their own.
        text: a file or folder, read by the folder's own tokenizer.json (or as bytes, for a vocabulary of bytes); or
            ids, (N,). Needed to tune and to measure.
        tune_steps: steps of AdamW on windows of the new length (of drope on those of the trained length, as in the
            paper).
        lr: peak learning rate.
        batch: windows in a step.
        seed: of the windows and of what is measured.
        measuring: how much to measure, see :class:`headway.hf.long_texts.Measuring`.
        out: folder of the new checkpoint and the report. An interrupted tuning is resumed there.
        tell: is called with the progress, a line at a time.

    Raises:
        HeadwayError: when the model cannot be extended so, the text cannot be read or is too short, the folder holds a
            model already, or tuning was interrupted.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    >>> small = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=128))
    >>> done = extend(small, to=1024, how="linear")
    >>> done.model.config.rope_parameters["factor"], done.undo() is small
    (8.0, True)
    """
    check_version()
    if out is not None:
        checked_out(out, model)
    original = model if isinstance(model, PreTrainedModel) else read_folder(model)
    kind, config = (
        (type(original), original.config) if isinstance(original, PreTrainedModel) else architecture(original)
    )
    done = Extended(stretch(config, to, how, trained=trained, windows_too=windows_too), original)
    check_effect(kind, done.stretch.on(config))
    if text is None and tune_steps:
        raise HeadwayError("expected a text to tune on, got none: pass --text (text= in Python)")
    if text is not None:
        given = own_text(text, original, config, length=to, windows=(measuring or Measuring()).windows)
        check(given, done.stretch, measuring or Measuring())
        if tune_steps:
            folder = None if out is None else Path(out) / TUNING
            length = done.stretch.trained if how == "drope" else to
            done.tuned = tune(
                done.model,
                given,
                length=length,
                steps=tune_steps,
                lr=lr,
                batch=batch,
                seed=seed,
                folder=folder,
                extension=done.stretch.values,
                tell=tell,
            )
            done.__dict__.pop("model")
        done.measured = measure(
            done.before,
            done.model,
            given,
            done.stretch,
            measuring or Measuring(),
            tuned=tune_steps,
            seed=seed,
            tell=tell,
        )
    if out is not None:
        done.save(out)
    return done


def checked_out(out: str | Path, source: Any = None) -> Path:
    """A folder to write to.

    Raises:
        HeadwayError: when there is a model in it, or it is a file.
    """
    folder = Path(out)
    if (folder / CONFIG).exists() or (folder.exists() and not folder.is_dir()):
        raise HeadwayError(f"expected a new folder for the extended model, got {folder}: choose another with --out")
    return folder


def rebuilt(model: PreTrainedModel, stretch: Stretch) -> PreTrainedModel:
    """The same parameters in a model made from the extended configuration, as plain transformers makes it.

    Raises:
        HeadwayError: when the model has parts that its class does not have, e.g. adapters.
    """
    config = stretch.on(model.config)
    config._attn_implementation = model.config._attn_implementation
    made = _empty(type(model), config)
    try:
        made.load_state_dict(model.state_dict(), assign=True)
    except RuntimeError as error:
        raise HeadwayError(
            f"expected the parameters of {type(model).__name__}, got others: of an adapter, merge it first "
            f"({str(error).splitlines()[-1].strip()})"
        ) from error
    made.tie_weights()
    old = dict(model.named_buffers())
    for name, value in list(made.named_buffers()):  # all but frequencies are what they were, converted or not
        if "inv_freq" not in name and name in old and old[name].shape == value.shape:
            module, _, own = name.rpartition(".")
            made.get_submodule(module)._buffers[own] = old[name]
    for name, value in model.named_parameters():
        made.get_parameter(name).requires_grad_(value.requires_grad)
    nn.Module.to(made, model.device)
    if hasattr(model, "generation_config"):
        made.generation_config = copy.deepcopy(model.generation_config)
    made.train(model.training)
    return made


def check_effect(kind: Any, config: Any) -> None:
    """Make sure that a model reads its ``rope_parameters``; what its parameters are does not matter.

    Raises:
        HeadwayError: when its code in transformers does not.
    """
    text = config.get_text_config()
    ropes = text.rope_parameters
    wanted = {rope["rope_type"] for rope in ([ropes[key] for key in text.nested_rope_parameter_keys(ropes)] or [ropes])}
    read: set[str] = set()
    for module in _empty(kind, config).modules():
        found = getattr(module, "rope_type", ())
        read |= {found} if isinstance(found, str) else set(found.values() if isinstance(found, dict) else found)
    if not wanted <= read:
        raise HeadwayError(
            f"expected a model whose code in transformers reads rope_parameters, got {kind.__name__}, which rotates "
            f"whatever they say: it cannot be extended"
        )


def _empty(kind: Any, config: Any) -> PreTrainedModel:
    """A model whose parameters have a shape alone."""
    with no_init_weights(), _empty_parameters():
        made: PreTrainedModel = kind(config)
    return made


@contextmanager
def _empty_parameters() -> Iterator[None]:
    """Lets parameters of new modules have a shape alone, while buffers are computed."""
    register = nn.Module.register_parameter

    def empty(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(self, name, None if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad))

    with patch.object(nn.Module, "register_parameter", empty):
        yield
