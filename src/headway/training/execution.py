"""How an optimizer step is computed: by one process or many, in one pass or several, compiled or not.

The batch of a step is the same whatever computes it. Its rows are divided into parts, one per process and pass:

    loss = Σ_parts Σ_rows Σ_tokens cross entropy / C,    C = targets of the whole batch that count

Each process adds up its own parts, and gradients are summed over processes. So nothing but rounding depends on the
number of processes and passes, also where parts have different numbers of rows or of targets.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.parallel.process import KINDS, World
from headway.schema import Maybe, Whole, Words
from headway.settings import Settings
from headway.shapes import HeadwayError
from headway.training.batches import IGNORED, Inputs, predict, seed_for
from headway.training.optimizer import build_optimizer
from headway.training.settings import TrainSettings
from headway.training.sharding import clip_shards, shard, sum_scalars


@dataclass(frozen=True)
class Execution(Settings):
    """How a training is computed. Results differ by rounding only, so a run may be resumed with another execution.

    Args:
        parallel: how the processes of torchrun share a training: ddp, where each holds the whole model, or fsdp, where
            each holds a share of its weights and optimizer state; default ddp under torchrun, one process without.
        accumulate: passes per step and process, each over a part of its rows: less memory for activations.
        compile: compile the model with torch.compile; the first step then takes long.

    >>> Execution(accumulate=4).plain()
    {'parallel': None, 'accumulate': 4, 'compile': False}
    """

    parallel: Annotated[str | None, Maybe(Words(KINDS))] = None
    accumulate: Annotated[int, Whole(1, 2**16)] = 1
    compile: bool = False

    def said(self, world: World) -> list[str]:
        """One sentence on the processes that train, if there are many."""
        passes = f", {self.accumulate} passes per step each" if self.accumulate > 1 else ""
        return [f"{world.size} processes train together ({world.kind}{passes})"] if world.many else []


def check_watched(world: World, *asked: object) -> None:
    """Refuse what looks at whole matrices under fsdp; None is not asked for."""
    if world.kind == "fsdp" and any(one is not None for one in asked):
        raise HeadwayError(
            "expected no watch and no log_dir under fsdp, where no process holds whole matrices to look at, got one: "
            "leave it out, or use parallel=ddp"
        )


def rows_of(part: int, parts: int, rows: int) -> slice:
    """The rows of one of several parts, as equal as possible, the larger ones first.

    >>> [rows_of(part, 3, 8) for part in range(3)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]
    """
    least, more = divmod(rows, parts)
    begin = part * least + min(part, more)
    return slice(begin, begin + least + (part < more))


class Engine:
    """Computes steps: the loss and the clipped gradient of a batch, in each process.

    Args:
        model: trained in place; under fsdp its parameters become shares of themselves.
        settings: how to train.
        execution: how to compute.
        world: the processes.

    Raises:
        HeadwayError: when the model has nothing to train, or nothing that can be shared.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, execution: Execution, world: World) -> None:
        self.model, self.settings, self.execution, self.world = model, settings, execution, world
        scalars: list[nn.Parameter] = []
        if world.kind == "fsdp":
            scalars = shard(model, world, compiled=execution.compile)
        self.optimizer = build_optimizer(model, settings)
        self.params = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._scalars = [p for p in scalars if p.requires_grad]
        self.device = next(model.parameters()).device
        self.parts = world.size * execution.accumulate
        self._dropout = RowDropout() if self.parts > 1 else None
        self._forward: Any = torch.compile(model) if execution.compile and world.kind != "fsdp" else model
        if world.kind == "ddp":
            self._forward = _ddp(self._forward)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Where matrix products are computed in the settings' dtype; weights stay as they are."""
        if self.settings.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def check(self, rows: int) -> None:
        """Make sure that each part of a batch has a row.

        Raises:
            HeadwayError: when there are more parts than rows.
        """
        if rows < self.parts:
            raise HeadwayError(
                f"expected batch of at least {self.parts} for {self.world.size} processes × "
                f"accumulate={self.execution.accumulate}, a row in each part, got {rows}: choose a larger batch"
            )

    def backward(self, step: int, inputs: Inputs, targets: Tensor) -> tuple[float, float]:
        """Compute loss and gradient of a batch.

        Args:
            step: number of the step, from 0; it seeds what is random.
            inputs: of the whole batch; tensors have its rows first, or 1 there.
            targets: of the whole batch, (B, N).

        Returns:
            The mean loss over all targets that count, and the norm of its gradient before clipping; the same in all
            processes.
        """
        for parameter in self.params:
            # zero_grad does the same behind two layers of hooks.
            parameter.grad = None
        rows, passes = len(targets), self.execution.accumulate
        self.check(rows)
        counted = (targets != IGNORED).sum()
        loss = torch.zeros((), device=self.device)
        for number in range(passes):
            part = self.world.rank * passes + number
            own = rows_of(part, self.parts, rows)
            self._seed(step, part, own, rows)
            with self._exchanging(number == passes - 1):
                share = self._loss(_cut(inputs, own, rows), targets[own], counted)
                # processes average their gradients
                (share * self.world.size if self.world.many else share).backward()
            loss = loss + share.detach()
        if self._scalars:
            sum_scalars(self._scalars, self.world)
        return self._clip(loss)

    def _loss(self, inputs: Inputs, targets: Tensor, counted: Tensor) -> Tensor:
        with self.autocast():
            logits = predict(self._forward, inputs, self.device).flatten(0, 1)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        targets = targets.to(self.device, non_blocking=True).flatten()
        summed = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        return summed / counted.to(self.device, non_blocking=True)

    def _clip(self, loss: Tensor) -> tuple[float, float]:
        # An infinite limit measures the norm and scales by exactly 1.
        clip = math.inf if self.settings.clip is None else self.settings.clip
        if self.world.kind == "fsdp":
            return clip_shards(self.params, clip, loss, self.world)
        norm = nn.utils.clip_grad_norm_(self.params, clip, foreach=True)
        if not self.world.many:
            return _fetch(loss, norm)
        own, measured = _fetch(loss, norm)
        # of equal gradients each process has the same norm; the first one's decides
        whole, measured = self.world.sum([own, measured if self.world.first else 0.0])
        return whole, measured

    def _exchanging(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Only the last pass exchanges gradients."""
        if self.world.kind == "fsdp":
            self._forward.set_requires_gradient_sync(last)
        elif self.world.kind == "ddp" and not last:
            held: contextlib.AbstractContextManager[Any] = self._forward.no_sync()
            return held
        return contextlib.nullcontext()

    def _seed(self, step: int, part: int, own: slice, rows: int) -> None:
        seed = seed_for(self.settings.seed, step, "dropout")
        seed_generators(seed if part == 0 else seed_for(self.settings.seed, step, f"part {part}"), self.device)
        if self._dropout is not None:
            self._dropout.begin(seed, self.device, own, rows, part, self.parts)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """The model in training mode, and restored afterwards."""
        was_training = [module for module in self.model.modules() if not module.training]
        self.model.train()
        dropped = [] if self._dropout is None else self._dropout.attach(self.model)
        try:
            yield
        finally:
            for module in was_training:
                module.training = False
            for module in dropped:
                del module.forward


class RowDropout:
    """Lets the ``nn.Dropout`` of a model drop, in some rows of a batch, what it would drop there in the whole batch.

    It draws for the whole batch and takes its rows, on a CPU the very entries that one process drops; where a tensor
    does not begin with the rows, it draws for all parts and takes its own. Attention's dropout differs from part to
    part: see docs/many-processes.md.
    """

    def __init__(self) -> None:
        self._generator: torch.Generator | None = None
        self._rows, self._total, self._part, self._parts = slice(0, 0), 0, 0, 1

    def begin(self, seed: int, device: torch.device, rows: slice, total: int, part: int, parts: int) -> None:
        """Before a pass over some rows."""
        if self._generator is None:
            self._generator = torch.Generator(device)
        self._generator.manual_seed(seed)
        self._rows, self._total, self._part, self._parts = rows, total, part, parts

    def attach(self, model: nn.Module) -> list[nn.Dropout]:
        """Give each dropout of the model this forward, until it is deleted."""
        found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        for module in found:
            module.forward = partial(self.drop, module)  # type: ignore[method-assign]
        return found

    def drop(self, module: nn.Dropout, x: Tensor) -> Tensor:
        """Dropout of a tensor."""
        if not module.training or module.p == 0:
            return x
        of_rows = x.ndim > 0 and len(x) == self._rows.stop - self._rows.start
        shape = (self._total, *x.shape[1:]) if of_rows else (self._parts, *x.shape)
        kept = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - module.p, generator=self._generator)
        own: Tensor = kept[self._rows] if of_rows else kept[self._part]
        return x * own.div_(1 - module.p)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of a device."""
    # torch.manual_seed also walks through every accelerator and formats a stack trace when CUDA is not yet in use:
    # some hundred microseconds in every step.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def _ddp(model: Any) -> Any:
    from torch.nn.parallel import DistributedDataParallel

    persistent = set(model.state_dict())
    constant = [name for name, _ in model.named_buffers() if name not in persistent]  # need not be told each time
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, constant)
    return DistributedDataParallel(
        model,
        # Without it, buckets are rebuilt after the first step: sums of more than two processes would be rounded
        # otherwise in the first step after a resume. And a parameter may take no part in a loss.
        find_unused_parameters=True,
        gradient_as_bucket_view=True,
    )


def _cut(inputs: Inputs, own: slice, rows: int) -> Inputs:
    """Some rows of what a model is called with."""
    if own == slice(0, rows):
        return inputs
    if isinstance(inputs, Mapping):
        return {name: _rows(name, x, own, rows) for name, x in inputs.items()}
    return _rows("inputs", inputs, own, rows)


def _rows(name: str, x: Tensor, own: slice, rows: int) -> Tensor:
    if x.ndim == 0 or len(x) not in (1, rows):
        raise HeadwayError(
            f"expected {name} with {rows} rows, or 1, in its first dimension, because the batch is divided by rows, "
            f"got shape {tuple(x.shape)}: use one process without accumulation, or another shape"
        )
    return x if len(x) == 1 and rows > 1 else x[own]


def _fetch(loss: Tensor, norm: Tensor) -> tuple[float, float]:
    if loss.device.type == "cpu":
        return loss.item(), norm.item()
    # One wait for the device instead of two.
    both: list[float] = torch.stack((loss.detach().float(), norm.float())).tolist()
    return both[0], both[1]
