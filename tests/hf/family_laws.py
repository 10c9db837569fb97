"""What must hold for every family of other people's models, whatever its formula."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Run, accelerated, far, gradients, padding, same, tokens
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def same_with_padding(model: Any, n: int = 41, **inputs: Any) -> None:
    """Logits and gradients without padding, padded on either side, of one token, and of a batch of one."""
    same(model, lambda m: m(tokens(2, n), **inputs)[0])
    for side in ("left", "right"):
        real = padding(3, n, side)
        same(model, lambda m, real=real: m(tokens(3, n), attention_mask=real, **inputs)[0][real.bool()])
    same(model, lambda m: m(tokens(1, 1), **inputs)[0])


def same_in_training(model: Any, run: Run) -> None:
    """In training mode, with and without gradient checkpointing; the model has no dropout."""
    model = copy.deepcopy(model).train()
    same(model, run)
    model.activation_checkpointing_enable()
    same(model, run)


def same_files(model: Any, folder: Path) -> None:
    """Names of parameters, and the files of ``save_pretrained``, byte for byte."""
    keys = list(model.state_dict())
    model.save_pretrained(folder / "own")
    with accelerated(model):
        assert list(model.state_dict()) == keys
        model.save_pretrained(folder / "ours")
    files = sorted(path.name for path in (folder / "own").iterdir())
    assert files == sorted(path.name for path in (folder / "ours").iterdir())
    for name in files:
        assert (folder / "own" / name).read_bytes() == (folder / "ours" / name).read_bytes(), name


def same_copies(model: Any, run: Run) -> None:
    """A copy, and what ``torch.save`` brings back, compute the same; the model itself is its own again after undo."""
    with accelerated(model), torch.no_grad():
        expected, stored = run(model), io.BytesIO()
        torch.save(model, stored)
        stored.seek(0)
        for other in (copy.deepcopy(model), torch.load(stored, weights_only=False)):
            assert torch.equal(run(other), expected)


def hooks_fire(model: Any, run: Run, names: tuple[str, ...]) -> None:
    """Hooks on the submodules that end with these names fire as often as in the model's own code."""
    counts = []
    for _ in range(2):
        fired: list[str] = []
        held = [
            module.register_forward_hook(lambda *_, name=name, fired=fired: fired.append(name))
            for name, module in model.named_modules()
            if name.endswith(names)
        ]
        assert held
        if counts:
            with accelerated(model):
                run(model)
        else:
            run(model)
        counts.append(sorted(fired))
        for handle in held:
            handle.remove()
    assert counts[0] == counts[1]
    assert counts[0]


def same_with_lora(model: Any, run: Run, targets: list[str]) -> None:
    """With an adapter of peft whose matrices are not zero: as if trained."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=targets, lora_dropout=0.0)
    with warnings.catch_warnings():  # peft calls what transformers will remove
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    inner = wrapped.get_base_model()
    assert sum("lora_" in name for name, _ in inner.named_parameters()) >= 2
    same(inner.double().eval(), run)


def autocast_as_exact(model: Any, run: Run) -> None:
    """Under autocast to bfloat16: at most twice the error of the model's own code."""
    truth = run(model).detach()
    narrow = copy.deepcopy(model).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        own = far(run(narrow).detach(), truth)
        with accelerated(narrow):
            found = far(run(narrow).detach(), truth)
    assert found <= 2 * own, (found, own)


class Quadratic(TorchDispatchMode):
    """Fails where an operator makes a tensor of this many entries or more."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries = entries

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run, and look at what was made."""
        out = function(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.untyped_storage().nbytes() // made.element_size() >= self.entries:
                raise AssertionError(f"{function} made {tuple(made.shape)}")
        return out


def nothing_quadratic(model: Any, run: Run, n: int) -> None:
    """No tensor of n² entries is made in forward or backward, while the model's own code makes some."""
    with Quadratic(n * n), pytest.raises(AssertionError, match="made"):
        gradients(model, run)
    with accelerated(model), Quadratic(n * n):
        gradients(model, run)


def same_decoding(model: Any, n: int = 23, static: bool = True, within: float = 1e-10) -> None:
    """With a cache, token by token and in parts, as in one pass; and generation as the model's own, left-padded."""
    ids = tokens(2, n)
    with accelerated(model), torch.no_grad():
        whole = model(ids).logits
        cache, parts = None, []
        for part in ids.split([n - 9, 5, 1, 1, 2], 1):
            out = model(part, cache=cache, use_cache=True)
            cache = out.cache
            parts.append(out.logits)
        assert far(torch.cat(parts, 1), whole) < within
    ways: list[dict[str, Any]] = [{}, {"num_beams": 2}]
    ways += [{"cache_implementation": "static"}] if static else []
    real = padding(3, n, "left")
    for way in ways:
        asked = {
            "attention_mask": real,
            "max_new_tokens": 6,
            "min_new_tokens": 6,
            "do_sample": False,
            "pad_token_id": 0,
            **way,
        }
        expected = model.generate(tokens(3, n), **asked)
        with accelerated(model):
            assert torch.equal(model.generate(tokens(3, n), **asked), expected), way
