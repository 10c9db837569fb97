"""The sentences: their values come from the data, and they claim no more than the seeds allow."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
from sample import all_failed, crowded, diverged, interrupted, recall, results

from headway.figures.words import LANGUAGES, strings
from headway.results import Finding, findings


def by_key(found: list[Finding]) -> dict[str, Finding]:
    keyed: dict[str, Finding] = {}
    for finding in found:
        keyed.setdefault(finding.key, finding)
    return keyed


def two_methods(bits: dict[str, list[list[float]]], lengths: list[int]) -> dict[str, Any]:
    """Results with exactly these bits per byte: method → seed → length."""
    made = results(list(bits), seeds=len(next(iter(bits.values()))), lengths=lengths)
    for cell in made["cells"]:
        for test, value in zip(cell["tests"], bits[cell["method"]][cell["seed"]], strict=True):
            test |= {"status": "ok", "bits_per_byte": value, "loss": value * math.log(2)}
    return made


def test_a_flat_method_is_told_with_both_values() -> None:
    found = by_key(findings(two_methods({"alibi": [[2.30, 2.27], [2.32, 2.29]]}, [64, 1024])))
    assert found["lengths.loss.held.one"].en == "`alibi` stays flat: 2.31 → 2.28 bits per byte from 64 to 1,024 tokens."
    assert found["lengths.loss.held.one"].zh == "`alibi` 保持平稳：从 64 到 1,024 个词元，2.31 → 2.28 比特/字节。"


def test_a_rise_is_told_as_a_share_of_the_start() -> None:
    found = by_key(findings(two_methods({"sinusoidal": [[2.0, 3.74], [2.0, 3.74]]}, [64, 1024])))
    expected = "`sinusoidal` rises by 87 %: 2.00 → 3.74 bits per byte from 64 to 1,024 tokens."
    assert found["lengths.loss.worse.one"].en == expected


def test_an_improvement_is_told() -> None:
    found = by_key(findings(two_methods({"alibi": [[2.0, 1.8], [2.0, 1.8]]}, [64, 128])))
    assert found["lengths.loss.better.one"].en.startswith("`alibi` improves by 10 %: 2.00 → 1.80")


def test_several_methods_come_in_order_of_their_change() -> None:
    made = two_methods({"none": [[2.0, 4.0]] * 2, "rotary": [[2.0, 3.0]] * 2}, [64, 512])
    sentence = by_key(findings(made))["lengths.loss.worse.many"].en
    assert (
        sentence
        == "From 64 to 512 tokens the loss rises: `rotary` by 50 % (2.00 → 3.00), `none` by 100 % (2.00 → 4.00)."
    )


def test_a_long_list_is_cut() -> None:
    sentence = by_key(findings(crowded()))["lengths.loss.held.many"].en
    assert sentence.count("→") == 6
    assert "and 8 more" in sentence


def test_the_best_is_clear_only_where_seed_ranges_are_apart() -> None:
    apart = two_methods({"none": [[2.50], [2.52]], "rotary": [[2.28], [2.30]]}, [64])
    assert by_key(findings(apart))["lengths.best.clear"].en == (
        "At 64 tokens (the training length) `rotary` has the lowest loss, 2.29 bits per byte; "
        "next comes `none` with 2.51. Their seed ranges do not overlap."
    )
    near = two_methods({"none": [[2.29], [2.52]], "rotary": [[2.28], [2.30]]}, [64])
    found = by_key(findings(near))
    assert "lengths.best.clear" not in found
    assert "cannot be distinguished from `none`" in found["lengths.best.tied"].en


def test_one_seed_claims_nothing_about_noise() -> None:
    made = two_methods({"none": [[2.5]], "rotary": [[2.3]]}, [64])
    found = findings(made)
    assert "a lead may be noise" in by_key(found)["lengths.best.one_seed"].en
    assert not any("do not overlap" in finding.en for finding in found)


def test_equal_values_from_one_seed_are_the_same() -> None:
    made = two_methods({"none": [[2.3001]], "rotary": [[2.3002]]}, [64])
    assert by_key(findings(made))["lengths.best.same"].en.startswith(
        "At 64 tokens (the training length) `none` and `rotary`"
    )


def test_a_seed_that_failed_at_one_end_does_not_shift_the_change() -> None:
    made = two_methods({"alibi": [[2.0, 2.0], [9.0, 9.0]]}, [64, 128])
    made["cells"][1]["tests"][1] |= {"status": "diverged", "bits_per_byte": None, "loss": None}
    assert "2.00 → 2.00" in by_key(findings(made))["lengths.loss.held.one"].en


def test_where_the_longest_stands_to_the_training_length() -> None:
    found = [finding.en for finding in findings(results())]
    assert any("At 1,024 tokens (16 times the training length)" in sentence for sentence in found)


def test_a_method_that_cannot_go_on() -> None:
    assert by_key(findings(results()))["lengths.cannot"].en == "`learned` worked up to 64 tokens and cannot run at 128."


def test_only_the_training_length_tested() -> None:
    found = findings(results(lengths=[64]))
    assert not any("→" in finding.en for finding in found)
    assert any(finding.key.startswith("lengths.best") for finding in found)


def test_training_length_not_tested() -> None:
    made = two_methods({"alibi": [[2.0, 2.0], [2.1, 2.1]]}, [128, 512])
    found = by_key(findings(made))
    assert "from 128 to 512 tokens" in found["lengths.loss.held.one"].en


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_method(seeds: int) -> None:
    found = by_key(findings(results(["rotary"], seeds=seeds)))
    assert "lengths.best.alone" in found
    assert "cost.alone" in found
    assert not any(word in finding.en for finding in found.values() for word in ("lowest", "fastest", "next comes"))


def test_diverged_trainings_are_named_with_seed_and_message() -> None:
    found = by_key(findings(diverged()))
    assert (
        found["run.diverged"].en == "Training diverged: `shaw` with every seed, `t5` with seed 1 (diverged at step 31)."
    )
    assert found["lengths.no_number"].en == "No finite loss: `none` at 512, 1,024 tokens."


def test_all_failed_compares_nothing() -> None:
    found = findings(all_failed())
    assert {finding.figure for finding in found} == {"run"}
    assert "nothing to compare" in found[0].en


def test_an_interrupted_run_says_so_first() -> None:
    first = findings(interrupted())[0]
    assert first.en == "The run was interrupted: 5 of 14 trainings are in this report."


def test_nothing_at_all() -> None:
    made = results()
    made |= {"cells": [], "complete": False}
    assert [finding.key for finding in findings(made)] == ["run.interrupted", "run.nothing"]


def test_recall_speaks_of_accuracy_in_points() -> None:
    found = findings(recall())
    keyed = by_key(found)
    assert "points" in keyed["lengths.accuracy.worse.many"].en
    assert "`shaw` up to distance 256" in keyed["distance.reach"].en
    assert not any("bits" in finding.en for finding in found)


def test_accuracy_change_numbers() -> None:
    made = recall()
    made["methods"] = made["methods"][:1]
    made["cells"] = made["cells"][:2]
    for cell in made["cells"]:
        cell["tests"] = [cell["tests"][0] | {"accuracy": 0.98}, cell["tests"][-1] | {"accuracy": 0.60}]
        cell["by_distance"] = []
    made["settings"]["test_lengths"] = [64, 1024]
    sentence = by_key(findings(made))["lengths.accuracy.worse.one"].en
    assert sentence == "`none` loses 38.0 points of accuracy: 98.0 % → 60.0 % from 64 to 1,024 tokens."


def test_training_finding_uses_the_unit_of_the_figure() -> None:
    made = results(["rotary"], seeds=1)
    made["cells"][0]["validation"] = {"steps": [400], "loss": [1.5]}
    assert f"{1.5 / math.log(2):.2f} bits per byte" in by_key(findings(made))["training.alone"].en
    made["settings"]["vocabulary"] = "bpe 1024"  # then a token is not a byte, and only nats can be told
    assert "1.50 nats per token" in by_key(findings(made))["training.alone"].en


def test_equal_speeds_are_not_ranked() -> None:
    made = results(["none", "rotary"])
    for cell in made["cells"]:
        cell["tokens_per_second"] = 40_000 + 500 * cell["seed"]
    assert (
        by_key(findings(made))["cost.even"].en
        == "All trained at about the same speed: 40,250 to 40,250 tokens per second."
    )


def test_slower_is_told_as_a_factor() -> None:
    made = results(["none", "shaw"])
    for cell in made["cells"]:
        cell["tokens_per_second"] = 40_000 if cell["method"] == "none" else 20_000
    sentence = by_key(findings(made))["cost.clear"].en
    assert (
        sentence
        == "`none` trained fastest, 40,000 tokens per second; `shaw` was slowest, 20,000, and took 2.0 times as long."
    )


@pytest.mark.parametrize("make", [results, recall, diverged, interrupted, all_failed, crowded])
def test_every_sentence_is_whole_in_both_languages(make: Any) -> None:
    for finding in findings(make()):
        for sentence in (finding.en, finding.zh):
            assert not re.search(r"[{}]|nan|inf\b|None", sentence), sentence
        assert finding.en.endswith(".")
        assert finding.zh.endswith("。")
        assert sorted(re.findall(r"`[^`]+`", finding.en)) == sorted(re.findall(r"`[^`]+`", finding.zh))


def test_findings_leave_the_results_alone() -> None:
    made = diverged()
    before = copy.deepcopy(made)
    findings(made)
    assert repr(made) == repr(before)


def test_both_languages_have_the_same_keys_and_places() -> None:
    words = {language: strings(language) for language in LANGUAGES}
    assert words["en"].keys() == words["zh"].keys()
    for key, text in words["en"].items():
        # 中文 writes large numbers in full where English says "million".
        if key != "millions":
            assert set(re.findall(r"\{(\w+)\}", text)) == set(re.findall(r"\{(\w+)\}", words["zh"][key])), key


def test_a_method_that_never_learned_is_not_said_to_keep_its_accuracy() -> None:
    made = recall()
    made["settings"]["chance"] = 0.125
    method = made["methods"][0]["spec"]
    for cell in made["cells"]:
        if cell["method"] == method:
            for test in cell["tests"]:
                test["accuracy"] = 0.13
    said = [finding for finding in findings(made) if finding.key == "lengths.accuracy.guess"]
    assert len(said) == 1
    assert f"`{method}` 13.0 % at 64 tokens, where guessing gives 12.5 %" in said[0].en
    held = [finding.en for finding in findings(made) if ".held" in finding.key or ".worse" in finding.key]
    assert not any(f"`{method}`" in text for text in held)
