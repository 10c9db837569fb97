"""Whole training steps: ``headway bench --training`` runs our decoder with each method beside others of its size.

Each contender does the same work on the same batches: embedding, layers, output matrix tied to the embedding,
cross-entropy, backward, gradient clipping, fused AdamW. Rounds are interleaved, because a machine's speed drifts, and
medians are compared.

Beside our taxes stands their floor: what a step would cost if the products that its method demands
(:mod:`headway.bench.floor`) ran as fast as those of attention without position, which is timed in the same rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headway.bench.cases import Case, Unsupported, build, is_term
from headway.bench.contenders import ours
from headway.bench.floor import products
from headway.bench.measure import interleaved, median_ratio, processor
from headway.bench.settings import Bench
from headway.config import CORE, DEEPEST, MOST, Width
from headway.schema import Whole
from headway.settings import Settings
from headway.shapes import HeadwayError
from headway.training.lengths import trained_at
from headway.transformer import Transformer

OURS = "headway"
REPEATS = 5
"""Steps per measurement."""
MOST_TAX = 1.05
"""Target: the most that the tax of a core method is, ÷ its floor."""


class TorchDecoder(nn.Module):
    """A decoder built from ``nn.TransformerEncoder``: pre-norm, GELU, causal mask, tied output."""

    def __init__(self, vocab: int, dim: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.stack = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch length vocab"]:
        """Logits of the next token."""
        x = self.stack(self.embedding(tokens), mask=self.mask, is_causal=True)
        out: Tensor = x @ self.embedding.weight.T
        return out


THEIRS: dict[str, dict[str, bool]] = {
    "none": {},
    "sinusoidal": {"scaled_sinu_pos_emb": True},
    "learned": {"use_abs_pos_emb": True},
    "rotary": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "t5": {"rel_pos_bias": True},
}
"""The options of x-transformers that give a method, of those it has."""


def contenders(steps: Steps, vocab: int = 256) -> dict[tuple[str, str], nn.Module]:
    """Decoders of one size by library and method; x-transformers only if it is installed."""
    dim, layers, heads = steps.dim, steps.layers, steps.heads
    positions = {method: trained_at(method, steps.length)[0] for method in steps.methods}
    models: dict[tuple[str, str], nn.Module] = {
        (OURS, method): Transformer(vocab, dim, layers, heads, position=position, norm="layer", bias=True)
        for method, position in positions.items()
    }
    models["nn.TransformerEncoder", "none"] = TorchDecoder(vocab, dim, layers, heads, steps.length)
    try:
        from x_transformers import Decoder, TransformerWrapper
    except ImportError:
        return models
    for method in filter(THEIRS.__contains__, steps.methods):
        embedded = {"use_abs_pos_emb": False, "scaled_sinu_pos_emb": False}
        inside = {name: on for name, on in THEIRS[method].items() if name not in embedded}
        models["x-transformers", method] = TransformerWrapper(
            num_tokens=vocab,
            max_seq_len=steps.length,
            tie_embedding=True,
            attn_layers=Decoder(
                dim=dim, depth=layers, heads=heads, attn_dim_head=dim // heads, attn_flash=method != "t5", **inside
            ),
            **{name: THEIRS[method].get(name, on) for name, on in embedded.items()},
        )
    return models


def train_step(model: nn.Module, batch: Int64[Tensor, "batch length_1"]) -> Callable[[], object]:
    """A function that makes one optimizer step of a model on windows of length + 1 tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs, targets = batch[:, :-1], batch[:, 1:].flatten()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(inputs).flatten(0, 1), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    return step


@dataclass(frozen=True)
class Steps(Settings):
    """The training steps to measure.

    Args:
        dim: width of the decoders.
        layers: number of layers.
        heads: number of heads.
        length: tokens per window.
        batch: windows per step.
        rounds: interleaved rounds of :data:`REPEATS` steps each.
        methods: position methods; ``none``, which the others are divided by, is always among them.

    Raises:
        HeadwayError: on values below 1.
    """

    dim: Width = 128
    layers: Annotated[int, Whole(1, DEEPEST)] = 3
    heads: Width = 4
    length: Annotated[int, Whole(1, MOST)] = 64
    batch: Annotated[int, Whole(1, MOST)] = 32
    rounds: Annotated[int, Whole(1, MOST)] = 15
    methods: tuple[str, ...] = CORE

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "methods", tuple(dict.fromkeys(("none", *self.methods))))

    def attention(self) -> Case:
        """What each layer computes between its projections."""
        return Case(
            self.length,
            "forward+backward",
            batch=self.batch,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.dim // self.heads,
        )

    @classmethod
    def like(cls, options: Mapping[str, Any]) -> Steps:
        """From the given options of :class:`headway.bench.settings.Bench`."""
        given = {name: options[name] for name in ("heads", "batch", "rounds") if name in options}
        if "methods" in options:
            given["methods"] = Bench(methods=options["methods"]).methods
            if terms := [name for name in given["methods"] if is_term(name)]:
                raise HeadwayError(f"expected position methods with --training, got the term {terms[0]}")
        if "lengths" in options:
            if len(options["lengths"]) != 1:
                raise HeadwayError(f"expected one of --lengths with --training, got {list(options['lengths'])}")
            given["length"] = options["lengths"][0]
        head_dim = options.get("head_dim", cls.dim // cls.heads)
        return cls(dim=head_dim * options.get("heads", cls.heads), **given)


@dataclass(frozen=True)
class Measured:
    """One decoder's speed.

    Args:
        name: name of the library.
        method: its position method.
        parameters: number of parameters.
        tokens_per_second: median over the rounds.
        tax: its time ÷ ours without position, median over the rounds.
        ratio: our time with this method ÷ its time, median over the rounds.
        floor: see the module; for ours.
    """

    name: str
    method: str
    parameters: int
    tokens_per_second: float
    tax: float
    ratio: float
    floor: float | None = None

    @property
    def passed(self) -> bool:
        """Whether it meets the target: ours, with a core method, takes at most :data:`MOST_TAX` times its floor."""
        return self.floor is None or self.method not in CORE or self.tax <= MOST_TAX * self.floor


def time_steps(steps: Steps) -> list[Measured]:
    """Measure a training step of every decoder, in interleaved rounds; ours comes first."""
    torch.manual_seed(0)
    windows = torch.randint(256, (steps.batch, steps.length + 1))
    models = contenders(steps)
    case, inside = steps.attention(), ("attention", "none")
    work: dict[tuple[str, str], Callable[[], object]] = {inside: ours("auto")("none", case).step}
    work |= {who: train_step(model, windows) for who, model in models.items()}
    for step in work.values():
        step()  # the first call includes one-time work
    seconds = interleaved(work, steps.rounds, REPEATS)
    share = steps.layers * median_ratio(seconds[inside], seconds[OURS, "none"])
    return [
        Measured(
            *who,
            sum(p.numel() for p in model.parameters()),
            steps.batch * steps.length / statistics.median(seconds[who]),
            median_ratio(seconds[who], seconds[OURS, "none"]),
            median_ratio(seconds[OURS, who[1]], seconds[who]),
            1 + share * (demanded(who[1], case) - 1) if who[0] == OURS else None,
        )
        for who, model in models.items()
    ]


def demanded(method: str, case: Case) -> float:
    """The products that attention with a method demands ÷ those without position.

    >>> demanded("sinusoidal", Steps().attention())
    1.0
    """
    try:
        return products(build(method, case)) / products(build("none", case))
    except Unsupported:  # it adds to the embedding
        return 1.0


def steps_text(found: Sequence[Measured]) -> str:
    """The measured decoders as a table, with the processor, the version of torch and its threads."""
    columns = f"{'decoder':<24}{'position':<24}{'parameters':>12}{'tokens/s':>12}"
    columns += f"{'÷ ours without':>16}{'floor':>8}{'ours ÷ it':>12}"
    lines = [
        f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, medians",
        "",
        columns,
    ]
    for one in found:
        ratio = "" if one.name == OURS else f"{one.ratio:.3f}"
        floor = "" if one.floor is None else f"{one.floor:.3f}"
        missed = "" if one.passed else f"  above the target, {MOST_TAX} × floor"
        name = f"{one.name:<24}{one.method:<24}{one.parameters:>12,}{one.tokens_per_second:>12,.0f}"
        lines.append(f"{name}{one.tax:>16.3f}{floor:>8}{ratio:>12}{missed}".rstrip())
    return "\n".join(lines)
