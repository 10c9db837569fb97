"""What the page may ask: each field is checked, and said in one sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from served import Client

BAD: list[tuple[Any, str]] = [
    ([], "expected a request as a JSON object"),
    ("x", "expected a request as a JSON object"),
    ({}, "expected view, which is missing"),
    ({"view": "nope"}, "expected view to be one of stepper"),
    ({"view": ["head"]}, "expected view to be one of stepper"),
    ({"view": "head", "path": "/etc"}, "got 'path'"),
    ({"view": "head", "text": 3}, "expected text to be a text, got 3"),
    ({"view": "head", "text": "x" * 100_001}, "at most 100,000 characters, got 100,001"),
    ({"view": "head", "text": "   "}, "at least one word"),
    ({"view": "head", "text": "a " * 1025}, "at most 1,024 tokens here, got 1,025"),
    ({"view": "head", "layer": -1}, "expected layer to be a whole number from 0"),
    ({"view": "head", "layer": 0.5}, "expected layer"),
    ({"view": "head", "head": True}, "expected head"),
    ({"view": "head", "head": "0"}, "expected head"),
    ({"view": "head", "query": 10**9}, "expected query"),
    ({"view": "head", "slot": "a b"}, "expected slot"),
    ({"view": "head", "model": {}}, "expected a model as one of fresh, run and live"),
    ({"view": "head", "model": {"fresh": {}, "live": True}}, "expected a model as one of"),
    ({"view": "head", "model": {"live": 1}}, "expected model.live to be true"),
    ({"view": "head", "model": {"path": "x"}}, "got 'path'"),
    ({"view": "head", "model": {"fresh": {"dim": 10**6}}}, "expected dim to be a whole number from 1 to 256"),
    ({"view": "head", "model": {"fresh": {"dim": 30, "heads": 4}}}, "expected"),
    ({"view": "head", "model": {"fresh": {"layers": 100}}}, "expected layers"),
    ({"view": "head", "model": {"fresh": {"seed": -1}}}, "expected seed"),
    ({"view": "head", "model": {"fresh": {"position": "rotory"}}}, "did you mean rotary"),
    ({"view": "head", "model": {"fresh": {"position": "__import__('os')"}}}, "expected a position method"),
    ({"view": "head", "model": {"fresh": {"position": "learned(max_length=1000000000)"}}}, "at most 10,000,000 param"),
    ({"view": "head", "model": {"run": "unknown"}}, "expected the id of a run"),
    ({"view": "head", "model": {"live": True}}, "expected a training"),
    ({"view": "head", "others": [{}] * 8}, "expected others to be a list of at most 7"),
    ({"view": "head", "others": {}}, "expected others to be a list"),
    ({"view": "head", "options": []}, "expected options to be an object"),
    ({"view": "head", "options": {"a": 1}}, "expected only by, change"),
    ({"view": "head", "options": {"what": {"b": 1}}}, "expected options.what to be"),
    ({"view": "scaling", "options": {"dim": 1.5}}, "expected options.dim to be"),
    ({"view": "scaling", "options": {"dim": 10**30}}, "expected options.dim to be"),
    (
        {"view": "whatif", "options": {"change": "swap", "position": "learned(max_length=99999999)"}},
        "parameters, got more",
    ),
    ({"view": "long", "options": {"tiles": "x"}}, "expected only by, change"),
    ({"view": "longer", "results": "unknown"}, "expected the id of a comparison"),
]


@pytest.mark.parametrize(("body", "said"), BAD, ids=range(len(BAD)))
def test_bad_requests_are_answered_in_one_sentence(client: Client, body: Any, said: str) -> None:
    given = {"text": "the cat", **body} if isinstance(body, dict) else body
    reply = client.post("/api/view", given)
    assert reply.status == 400, reply.body[:200]
    error = reply.json()["error"]
    assert said in error
    assert "\n" not in error
    assert "Traceback" not in error
    assert len(error) < 2500


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"view": NaN}', b'{"layer": Infinity}', b'{"layer": 1' + b"0" * 5000],
)
def test_what_is_no_json_is_refused(client: Client, body: bytes) -> None:
    reply = client.ask("POST", "/api/view", body)
    assert reply.status == 400
    assert "JSON" in reply.json()["error"]


@pytest.mark.parametrize(
    ("body", "said"),
    [({"optimizer": "rmsprop"}, "optimizer to be one of"), ({"lr": 0}, "expected lr"), ({"lr": "1"}, "expected lr"),
     ({"steps": 0}, "expected steps"), ({"text": 3}, "expected text"), ({"dim": 4096}, "expected dim"),
     ({"folder": "/tmp"}, "got 'folder'"), ({"position": "learned(max_length=99999999)"}, "parameters")],
)  # fmt: skip
def test_bad_trainings_are_refused(client: Client, body: dict[str, Any], said: str) -> None:
    reply = client.post("/api/live", body)
    assert reply.status == 400
    assert said in reply.json()["error"]


def test_a_fault_of_ours_tells_the_page_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("at /secret-place/file.py")

    monkeypatch.setattr("headway.studio.routes.view", broken)
    reply = client.view("head", "a text asked for once")
    assert reply.status == 500
    assert "secret" not in reply.json()["error"]
    assert "Traceback" not in reply.json()["error"]
    assert "at /secret-place/file.py" in capsys.readouterr().err  # the terminal shows it all


def test_choices_beyond_the_model_become_the_nearest(client: Client) -> None:
    meta = client.view("head", "a b c", layer=9, head=9, query=99, column=99).json()["meta"]
    assert (meta["layer"], meta["head"], meta["query"]) == (1, 2, 2)
    assert (meta["layers"], meta["heads"], meta["head_dim"], meta["tokens"]) == (2, 3, 8, ["a", "b", "c"])


@pytest.mark.parametrize("view", ["vectors", "similarity", "bias", "rotation"])
def test_position_views_never_open_with_an_error(client: Client, view: str) -> None:
    run = client.get("/api/state").json()["runs"][0]["id"]
    for model in ({"fresh": {"position": "rotary"}}, {"fresh": {"position": "none"}}, {"run": run}):
        reply = client.view(view, "the cat sat on a mat", model=model)
        assert reply.status == 200, reply.body
        meta = reply.json()["meta"]
        suits = view in ("similarity", "rotation") if model != {"fresh": {"position": "none"}} else False
        assert ("instead" in meta) != suits
        if not suits:
            assert meta["position"].partition("(")[0] in meta["instead"]["suits"]
            assert meta["instead"]["of"].partition("(")[0] == ("none" if "none" in str(model) else "rotary")


def test_fresh_models_read_the_tokens_of_the_trained_ones_they_stand_beside(client: Client) -> None:
    run = client.get("/api/state").json()["runs"][0]["id"]
    fresh, trained = {"fresh": {"position": "alibi"}}, {"run": run}
    for model, others in ((fresh, [trained]), (trained, [fresh]), (fresh, [fresh, trained])):
        reply = client.view("sidebyside", "a 猫", model=model, others=others)
        assert reply.json()["meta"]["tokens"] == ["a", "␣", "猫₁", "猫₂", "猫₃"]
    windows = client.view("distance", "a 猫", model=trained, options={"sample": "windows"}).json()
    assert "50" in json.dumps(windows["view"]["notes"] + [windows["view"]["finding"]])
    assert client.view("distance", "a cat", options={"sample": "windows"}).status == 400


def test_answers_are_strict_json(client: Client) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(client.view("softmax").body, parse_constant=refuse)
