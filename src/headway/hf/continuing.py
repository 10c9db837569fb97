"""Continue a checkpoint of transformers on one's own text: what `headway train --from` trains and writes.

The model stays transformers' own, attends with headway's kernels while it is trained, and gets its own attention back
before it is written. Weights are trained in float32 and written in the dtype they had.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headway.hf.accelerate import Accelerated, accelerate
from headway.hf.loading import load, peft_library, silent
from headway.hf.reading import tokenizer_of
from headway.hf.swap import METHODS, seen_in, swap_position
from headway.schema import Whole, require
from headway.shapes import HeadwayError
from headway.sizes import memory
from headway.training.content import Part, state_of
from headway.training.files import dump_json, explained, fsync_folder, temporary
from headway.training.known import known
from headway.training.settings import TrainSettings
from headway.training.tokenizer_json import TokenizerJson
from headway.training.vocabularies import Wanted

RATES = {"full": 5e-5, "lora": 2e-4}
"""Peak learning rates of adam and adamw where none is given: far below those of a new model."""


class Continued(nn.Module):
    """A model of transformers as a trainer sees one: ids in, logits out; its parameters are those that are trained.

    Args:
        model: with a head for the next token; peft's, if adapters are trained.
        accelerated: what headway changed in it; None for nothing.
    """

    def __init__(self, model: nn.Module, accelerated: Accelerated | None) -> None:
        super().__init__()
        self.model = model
        self.accelerated = accelerated

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocabulary"]:
        """Logits of the token after each."""
        try:
            logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        except IndexError as error:  # beyond a learned table
            raise HeadwayError(
                f"expected a text that the model can read, got {tokens.shape[1]:,} tokens: {error}"
            ) from error
        return logits

    def named_parameters(self, *args: Any, **given: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that are trained, so that checkpoints hold no frozen ones."""
        return ((name, p) for name, p in super().named_parameters(*args, **given) if p.requires_grad)


@dataclass(frozen=True, eq=False)
class Base:
    """A checkpoint folder to be continued, see :class:`headway.training.models.Base`.

    Args:
        folder: where it is.
        model: as it was loaded.
        tokenizer: its tokenizer.
        sha256: of its configuration and weights.
        lora: rank of the adapters; None trains all weights.
        dtypes: of each parameter in the folder.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: Any
    sha256: str
    lora: int | None
    dtypes: dict[str, torch.dtype]

    @property
    def config(self) -> dict[str, Any]:
        """As a run records it."""
        return {"from": str(self.folder), "sha256": self.sha256, "lora": self.lora}

    @property
    def wanted(self) -> Wanted:
        """The folder's own vocabulary.

        Raises:
            HeadwayError: when its tokens do not give a text back exactly.
        """
        written = self.tokenizer.backend_tokenizer.to_str().encode()
        return Wanted("tokenizer", tokenizer=TokenizerJson(written, f"the tokenizer in {self.folder}"))

    def settings(self, given: TrainSettings) -> TrainSettings:
        """Settings that fit it, with a learning rate for continuing where none is given.

        Raises:
            HeadwayError: when windows are longer than what the model reads.
        """
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(most, int) and given.length > most > 0:
            raise HeadwayError(
                f"expected length of at most {most:,}, which the model in {self.folder} reads "
                f"(max_position_embeddings), got {given.length:,}: choose a shorter length"
            )
        if given.lr is None and given.optimizer != "sgd":
            return replace(given, lr=RATES["full" if self.lora is None else "lora"])
        return given

    def build(self, words: int) -> Continued:
        """The model to train, accelerated, for a vocabulary of so many tokens.

        Raises:
            HeadwayError: when it has fewer tokens than its tokenizer, its training does not fit into memory, or
                adapters are wanted and cannot be made.
        """
        model: Any = self.model
        rows = model.get_input_embeddings().weight.shape[0]
        if words > rows:
            raise HeadwayError(
                f"expected a tokenizer of at most {rows:,} tokens, as many as the model in {self.folder} has, "
                f"got {words:,}: save the tokenizer it was trained with"
            )
        count = sum(p.numel() for p in model.parameters())
        need, room = count * (4 if self.lora is not None else 16), memory()  # weights; gradients and two moments
        if need > room:
            raise HeadwayError(
                f"expected a model whose training fits into {room / 1e9:,.1f} GB, got {count:,} parameters, which take "
                f"{need / 1e9:,.1f} GB: " + ("choose a smaller one" if self.lora is not None else "use --lora 8")
            )
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.float()
        try:
            done = accelerate(model, quiet=True)
        except HeadwayError:  # nothing in it can be accelerated: `give_back` says so
            done = None
        return Continued(model if self.lora is None else _adapted(model, self.lora), done)

    def given(self, method: str | None, words: int) -> Continued:
        """A copy of the model to train with another position method; with None it keeps its own.

        Raises:
            HeadwayError: as :meth:`build` and :func:`headway.hf.swap_position`.
        """
        made = replace(self, model=copy.deepcopy(self.model)).build(words)
        if method is None:
            return made
        if made.accelerated is not None:
            made.accelerated.undo()
        swap_position(made.model, method, quiet=True)  # type: ignore[arg-type]
        return Continued(made.model, None)

    def positions(self) -> str:
        """The position methods of its attentions, such as "rotary".

        Raises:
            HeadwayError: when they were swapped before.
        """
        if hasattr(self.model, METHODS):
            raise HeadwayError(
                f"expected a checkpoint with its own positions, got one whose positions were swapped in {self.folder}: "
                f"give the one it was made from"
            )
        return ", ".join(dict.fromkeys(position.spec() for _, position in seen_in(self.model).values()))

    def give_back(self, model: nn.Module, folder: Path | None) -> tuple[nn.Module, list[str]]:
        """The model of transformers, or of peft, with its own attention; written to a folder if one is given.

        Raises:
            HeadwayError: when it cannot be written; what is there stays as it is.
        """
        assert isinstance(model, Continued)
        notes = []
        if model.accelerated is None:
            notes.append(f"trained with its own attention: none in {type(self.model).__name__} can be accelerated")
        else:
            model.accelerated.undo()
        found: Any = model.model.eval()
        for name, parameter in self.model.named_parameters():
            if name in self.dtypes:
                parameter.data = parameter.data.to(self.dtypes[name])
        if folder is not None:
            self._write(found, folder)
            notes.append(f"wrote {'the adapters' if self.lora is not None else 'the model'} to {folder}")
        return found, notes

    def _write(self, model: Any, folder: Path) -> None:
        for left in folder.parent.glob(f"{folder.name}.tmp-*"):  # of a killed writer
            shutil.rmtree(left, ignore_errors=True)
        fresh = temporary(folder)
        with silent(), explained(f"writing {folder}", "the run's checkpoints are intact: rerun the command"):
            model.save_pretrained(fresh, **({} if self.lora is None else {"save_embedding_layers": False}))
            self.tokenizer.save_pretrained(fresh)
            for path in fresh.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(fresh, folder)
            fsync_folder(folder.parent)


def open_base(config: Mapping[str, Any]) -> Base:
    """Open the checkpoint that a config continues.

    Args:
        config: ``from``, its folder, and ``lora``, the rank of adapters, or None or missing for all weights.

    Raises:
        HeadwayError: as :func:`headway.hf.load`; when the model predicts no next token, there is no tokenizer that
            transformers can read fast, or the config has anything else.
    """
    if more := sorted(set(config) - {"from", "lora"}):
        raise HeadwayError(
            f"expected no sizes or method beside a checkpoint, which has its own, got {', '.join(more)}: leave them out"
        )
    lora, folder = config.get("lora"), Path(config["from"]).absolute()
    if lora is not None:
        require(lora, Whole(1, 2**16), "lora")
        peft_library()
    model = load(folder)
    _check_causal(model, folder)
    tokenizer = tokenizer_of(folder)
    if tokenizer is None or not tokenizer.is_fast:
        raise HeadwayError(
            f"expected a tokenizer.json beside the weights, got {'none' if tokenizer is None else 'a slow tokenizer'} "
            f"in {folder}: save the tokenizer there too"
        )
    return Base(folder, model, tokenizer, digest(folder), lora, {n: p.dtype for n, p in model.named_parameters()})


def digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's configuration and weights, found once as long as the files do not change."""
    paths = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    with explained(f"reading {folder}"):
        parts = [Part(path, state_of(path)) for path in paths]

    def find() -> dict[str, Any]:
        each = []
        for path in paths:
            with explained(f"reading {path}"), path.open("rb") as file:
                each.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
        return {"sha256": hashlib.sha256(dump_json({"files": each})).hexdigest()}

    return str(known("checkpoint", parts, find)["sha256"])


def _check_causal(model: Any, folder: Path) -> None:
    """Refuse a model that predicts no next token, or sees it: found by running it on two texts."""
    kind = type(model).__name__
    refused = f"expected a model that predicts the next token (such as LlamaForCausalLM) in {folder}, got {kind}"
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise HeadwayError(f"{refused}, which does not: choose another checkpoint")
    texts = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device) % len(model.get_output_embeddings().weight)
    with torch.no_grad():
        first, other = model.eval()(input_ids=texts).logits[:, :3].float()
    if not torch.allclose(first, other, rtol=1e-3, atol=1e-3 * float(first.abs().max())):
        raise HeadwayError(f"{refused}, whose tokens see those after them: choose another checkpoint")


def _adapted(model: PreTrainedModel, rank: int) -> nn.Module:
    """The model with adapters at every projection; its own weights are frozen.

    W' = W + 2·B·A with A (rank, inputs) random and B (outputs, rank) zero: LoRA, Hu et al. 2021, arXiv:2106.09685.
    """
    peft = peft_library()
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # peft corrects layers of the other kind, and calls what transformers will rename
        made: nn.Module = peft.get_peft_model(model, config)
    return made
