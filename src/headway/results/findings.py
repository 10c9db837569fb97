"""Findings as sentences computed from the results, in English and 中文.

The sentences claim no more than the seeds allow. A method is called best only if its seed range is separate from every
other method's. Methods with overlapping ranges are called indistinguishable. With a single seed, a lead is reported
with the warning that it may be noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.figures.words import Clause, Listed, Names, Percent, Said, fill, measured
from headway.results.amounts import Amount, amount
from headway.results.summary import Measure, Results, Spot, Summary, finite, lead, mean

HELD_RATIO = 0.05  # a loss that changes by less than this share counts as flat
HELD_POINTS = 0.05  # an accuracy that changes by less than this (5 points) counts as kept
MOST_LISTED = 6  # maximum methods with values in one sentence; the result table has them all
RIGHT = 0.5  # "answers right" in the finding on distance: more than half of the answers


@dataclass(frozen=True)
class Finding:
    """One sentence computed from the results.

    Args:
        key: the template it was made from, without ``finding.``.
        figure: the figure it belongs to: "run", "lengths", "training", "cost" or "distance".
        en: the sentence in English; method specs stand between backticks.
        zh: the same in Chinese.
        values: the numbers and names in the sentence, as they were filled in.
    """

    key: str
    figure: str
    en: str
    zh: str
    values: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


def findings(results: Results) -> list[Finding]:
    """Compute the findings, the most important first.

    Args:
        results: the dictionary that ``headway compare`` saves; unfinished and failed runs are fine.

    Returns:
        The findings; at least one, if only that nothing can be compared.
    """
    summary = Summary(results)
    return [*_run(summary), *_lengths(summary), *_distance(summary), *_training(summary), *_cost(summary)]


def _make(figure: str, key: str, **values: Any) -> Finding:
    en, zh = (fill(f"finding.{key}", values, language) for language in ("en", "zh"))
    return Finding(key, figure, en, zh, values)


def _run(summary: Summary) -> Iterator[Finding]:
    """Whether the run is complete, and which trainings failed."""
    planned = len(summary.methods) * len(summary.seeds)
    if not summary.results.get("complete", True):
        yield _make("run", "run.interrupted", done=len(summary.cells), planned=planned)
    if not summary.cells:
        yield _make("run", "run.nothing")
        return
    bad = [cell for cell in summary.cells if cell["status"] != "ok"]
    if len(bad) == len(summary.cells):
        yield _make("run", "run.all_failed")
    for status in ("diverged", "failed"):
        groups: dict[str, dict[str, list[int]]] = {}  # message → method → seeds
        for cell in bad:
            if cell["status"] == status:
                methods = groups.setdefault(_one_line(cell.get("message")), {})
                methods.setdefault(cell["method"], []).append(cell["seed"])
        if groups:
            parts = [_group(summary, message, methods) for message, methods in groups.items()]
            yield _make("run", f"run.{status}", parts=Listed(parts, strong=True))


def _group(summary: Summary, message: str, methods: Mapping[str, list[int]]) -> Clause:
    """Trainings that ended with the same message: methods by name where every seed did, else with their seeds."""
    whole = [method for method, seeds in methods.items() if len(seeds) == len(summary.cells_of(method))]
    cells: list[Said] = [Names(whole)] if whole else []
    if whole and len(whole) < len(methods) and len(summary.seeds) > 1:
        cells = [Clause("finding.run.cell", {"name": Names(whole), "seeds": Clause("word.every_seed", {})})]
    for method, seeds in methods.items():
        if method not in whole:
            word = Clause("word.seed" if len(seeds) == 1 else "word.seeds", {"seeds": ", ".join(map(str, seeds))})
            cells.append(Clause("finding.run.cell", {"name": Names([method]), "seeds": word}))
    key = "finding.run.group_why" if message else "finding.run.group"
    return Clause(key, {"cells": Listed(cells), "message": message})


def _lengths(summary: Summary) -> Iterator[Finding]:
    """The best methods at the training length and at the longest, and which stay flat, rise, or cannot run."""
    base, measure = summary.base_length, summary.measure
    if base is None:
        return
    reached = [length for length in summary.lengths if summary.spots(length)]
    if not reached:
        return
    longest = reached[-1]
    if longest != base:
        yield from _changes(summary, base, longest)
        yield best(summary, longest)
    if base in reached:
        yield best(summary, base)
    yield from _stops(summary)
    noisy = [
        Clause("finding.lengths.no_number_part", {"name": Names([method]), "lengths": _lengths_list(lengths)})
        for method in summary.methods
        if (lengths := [x for x in summary.lengths if _diverged_test(summary, method, x)])
    ]
    if noisy:
        yield _make("lengths", "lengths.no_number", parts=Listed(noisy, strong=True), measure=_word(measure))


def best(summary: Summary, length: int) -> Finding:
    """The best method at one length, or those indistinguishable from it; some method must have a value there."""
    measure = summary.measure
    found = lead(summary.spots(length), lambda mean: amount(mean, measure))
    first, rest = found.spots[0], found.spots[1:]
    values: dict[str, Any] = {
        "length": length,
        "where": _where(summary, length),
        "name": Names([first.method]),
        "value": Amount(first.mean, measure),
        "measure": _word(measure),
        "superlative": Clause(f"word.{'lowest' if measure.lower_is_better else 'highest'}", {}),
    }
    if rest:
        values |= {"second": Names([rest[0].method]), "second_value": Amount(rest[0].mean, measure, bare=True)}
    if found.kind in ("same", "tied", "tied_all"):
        values["names"] = _names(found.near if found.kind == "same" else found.near[1:])
    return _make("lengths", f"lengths.best.{found.kind}", **values)


def _changes(summary: Summary, base: int, longest: int) -> Iterator[Finding]:
    """The change of each method's value from the training length to the longest, in three groups.

    A method that hardly beats guessing at its training length is in none of them: it is reported as not having learned.
    """
    measure = summary.measure
    chance = finite(summary.results["settings"].get("chance")) or 0.0
    guessing: list[Clause] = []
    groups: dict[str, list[tuple[float, dict[str, Any]]]] = {"held": [], "worse": [], "better": []}
    for method in summary.methods:
        start, end = summary.spot(method, base).by_seed, summary.spot(method, longest).by_seed
        shared = start.keys() & end.keys()  # a seed that failed at one end must not shift the comparison
        if not shared:
            continue
        before, after = mean(start[seed] for seed in shared), mean(end[seed] for seed in shared)
        change, limit = _change(before, after, measure)
        if change is None:
            continue
        if not measure.lower_is_better and before < 2 * chance:
            amount_then = Amount(before, measure, bare=True)
            guessing.append(Clause("finding.lengths.part.at", {"name": Names([method]), "before": amount_then}))
            continue
        values = {
            "name": Names([method]),
            "change": Percent(abs(change))
            if measure.lower_is_better
            else Clause("word.points", {"n": measured(100 * abs(change))}),
            "before": Amount(before, measure, bare=True),
            "after": Amount(after, measure, bare=True),
        }
        worse = measure.better(before, after)
        groups["held" if abs(change) < limit else "worse" if worse else "better"].append((abs(change), values))
    span: dict[str, Any] = {
        "start": base,
        "end": longest,
        "unit": Clause(f"unit.{measure.key}", {}),
        "measure": _word(measure),
    }
    way = "loss" if measure.lower_is_better else "accuracy"
    for group, members in groups.items():
        members.sort(key=lambda member: member[0])
        if len(members) == 1:
            yield _make("lengths", f"lengths.{way}.{group}.one", **span, **members[0][1])
        elif members:
            part = f"finding.lengths.part.{'held' if group == 'held' else 'moved'}"
            shown = members if len(members) <= MOST_LISTED + 1 else members[:MOST_LISTED]
            said = [Clause(part, values) for _, values in shown]
            if len(shown) < len(members):
                said.append(Clause("finding.lengths.part.more", {"n": len(members) - len(shown)}))
            parts = Listed(said)
            yield _make("lengths", f"lengths.{way}.{group}.many", **span, parts=parts)
    if guessing:
        guess = Amount(chance, measure, bare=True)
        yield _make("lengths", "lengths.accuracy.guess", **span, parts=Listed(guessing), chance=guess)


def worse(summary: Summary, method: str, base: int, longest: int) -> bool:
    """Whether a method is worse at another length by more than the flat limit, or has no value there."""
    start, end = summary.spot(method, base).by_seed, summary.spot(method, longest).by_seed
    shared = start.keys() & end.keys()
    if not shared:
        return not end
    before, after = mean(start[seed] for seed in shared), mean(end[seed] for seed in shared)
    change, limit = _change(before, after, summary.measure)
    return change is not None and abs(change) >= limit and summary.measure.better(before, after)


def _change(before: float, after: float, measure: Measure) -> tuple[float | None, float]:
    """The change and the limit below which it counts as flat: a ratio for losses, a difference for accuracies."""
    if not measure.lower_is_better:
        return after - before, HELD_POINTS
    return (after / before - 1 if before > 0 else None), HELD_RATIO


def _stops(summary: Summary) -> Iterator[Finding]:
    """Methods that cannot run at some tested length, grouped by their longest length."""
    stops: dict[tuple[int | None, int], list[str]] = {}
    for method in summary.methods:
        refused = [length for length in summary.lengths if summary.spot(method, length).status == "cannot"]
        if refused:
            fine = [x for x in summary.lengths if x < refused[0] and summary.spot(method, x).values]
            stops.setdefault((fine[-1] if fine else None, refused[0]), []).append(method)
    for (last, first), methods in stops.items():
        if last is None:
            yield _make("lengths", "lengths.cannot_any", names=Names(methods), first=first)
        else:
            yield _make("lengths", "lengths.cannot", names=Names(methods), last=last, first=first)


def _training(summary: Summary) -> Iterator[Finding]:
    """The lowest last validation loss, or training loss where nothing was validated."""
    kind_of_loss = (
        "validation" if any((cell.get("validation") or {}).get("loss") for cell in summary.cells) else "train"
    )
    # A nat is 1 / ln 2 bits, and with a vocabulary of bytes a token is a byte: the unit of the other findings.
    in_bits = summary.measure.key == "bits_per_byte" and summary.settings.get("vocabulary") == "bytes"
    measure, factor = (summary.measure, 1 / math.log(2)) if in_bits else (Measure("loss"), 1.0)
    spots = []
    for method in summary.methods:
        last = {
            cell["seed"]: _last(cell.get(kind_of_loss)) for cell in summary.cells_of(method) if cell["status"] == "ok"
        }
        by_seed = {seed: factor * loss for seed, loss in last.items() if loss is not None}
        if by_seed:
            spots.append(Spot(method, 0, by_seed, len(last), "ok"))
    if not spots:
        return
    spots.sort(key=lambda spot: spot.mean)
    found = lead(spots, lambda mean: amount(mean, measure))
    kind = "one_seed" if found.kind == "same" else found.kind
    values: dict[str, Any] = {
        "kind": Clause(f"word.{kind_of_loss}", {}),
        "name": Names([spots[0].method]),
        "value": Amount(spots[0].mean, measure),
    }
    if kind != "alone":
        values |= {"last": Names([spots[-1].method]), "last_value": Amount(spots[-1].mean, measure, bare=True)}
    if kind in ("tied", "tied_all"):
        values["names"] = _names(found.near[1:])
    yield _make("training", f"training.{kind}", **values)


def _cost(summary: Summary) -> Iterator[Finding]:
    """The fastest and the slowest training."""
    spots = []
    for method in summary.methods:
        speeds = {
            cell["seed"]: finite(cell.get("tokens_per_second"))
            for cell in summary.cells_of(method)
            if cell["status"] == "ok"
        }
        by_seed = {seed: speed for seed, speed in speeds.items() if speed}
        if by_seed:
            spots.append(Spot(method, 0, by_seed, len(speeds), "ok"))
    if not spots:
        return
    spots.sort(key=lambda spot: -spot.mean)
    fast, slow = spots[0], spots[-1]
    values: dict[str, Any] = {"fast": Names([fast.method]), "fast_speed": round(fast.mean)}
    if len(spots) == 1:
        yield _make("cost", "cost.alone", **values)
        return
    values |= {"slow": Names([slow.method]), "slow_speed": round(slow.mean), "ratio": f"{fast.mean / slow.mean:.1f}"}
    single = len(fast.values) < 2 or len(slow.values) < 2
    if fast.mean < 1.05 * slow.mean:
        yield _make("cost", "cost.even", **values)
    elif fast.overlaps(slow) and not single:
        yield _make("cost", "cost.tied", **values)
    else:
        yield _make("cost", "cost.one_seed" if single else "cost.clear", **values)


def _distance(summary: Summary) -> Iterator[Finding]:
    """At the longest length: how far back each method still answers more than half of the questions right."""
    rows = [
        (cell["method"], row["length"], row["distance"], accuracy)
        for cell in summary.cells
        for row in cell.get("by_distance") or ()
        if (accuracy := finite(row.get("accuracy"))) is not None
    ]
    if not rows:
        return
    longest = max(row[1] for row in rows)
    reach: dict[int, list[str]] = {}
    for method in summary.methods:
        at: dict[int, list[float]] = {}
        for name, length, distance, accuracy in rows:
            if name == method and length == longest:
                at.setdefault(distance, []).append(accuracy)
        if not at:
            continue
        far = 0
        for distance in sorted(at):
            if mean(at[distance]) <= RIGHT:
                break
            far = distance
        reach.setdefault(far, []).append(method)
    parts = [
        Clause("finding.distance.part", {"names": Names(methods), "distance": far})
        if far
        else Clause("finding.distance.part_none", {"names": Names(methods)})
        for far, methods in sorted(reach.items(), reverse=True)
    ]
    yield _make("distance", "distance.reach", length=longest, parts=Listed(parts, strong=True))


def _names(spots: Sequence[Spot]) -> Names:
    return Names([spot.method for spot in spots])


def _word(measure: Measure) -> Clause:
    return Clause("word.loss" if measure.lower_is_better else "word.accuracy", {})


def _where(summary: Summary, length: int) -> Clause:
    """The relation of a length to the training length."""
    train = summary.train_length
    if not train or length < train:
        return Clause("word.where.other", {})
    if length == train:
        return Clause("word.where.train", {})
    return Clause("word.where.times", {"n": f"{length / train:,.1f}".removesuffix(".0")})


def _lengths_list(lengths: list[int]) -> Listed:
    return Listed([Clause("word.number", {"n": length}) for length in lengths])


def _diverged_test(summary: Summary, method: str, length: int) -> bool:
    """Whether a finished training of this method has no finite value at this length."""
    return summary.spot(method, length).status == "diverged" and any(
        cell["status"] == "ok" for cell in summary.cells_of(method)
    )


def _last(curve: Mapping[str, Any] | None) -> float | None:
    losses = (curve or {}).get("loss") or ()
    return finite(losses[-1]) if losses else None


def _one_line(message: str | None) -> str:
    return " ".join((message or "").split())
