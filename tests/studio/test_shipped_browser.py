"""The first screen: a model that ships, trained, in the reader's language; new models are marked as random."""

from __future__ import annotations

from typing import Any

from browser import assert_accessible, browser  # noqa: F401
from served import Client, studio
from test_studio_browser import opened

from headway.shipped import NAMES, OPENING, measured


def test_the_first_screen_shows_a_head_that_learned_something(browser: Any) -> None:  # noqa: F811
    layer, head = measured()["strongest"]["induction"]
    with studio() as client:
        client.enter()
        found = opened(client, browser)
        page, shown = found.page, found.settle("head")
        assert (found.choice("layer"), found.choice("head")) == (str(layer), str(head))
        group = page.locator('[data-choose="run"] optgroup')
        assert group.get_attribute("label") == "Ships with headway"
        assert [text.split(" · ")[0] for text in group.locator("option").all_inner_texts()] == sorted(NAMES)
        assert page.locator('[data-choose="run"]').input_value().startswith(NAMES[0])
        assert "untrained" not in page.locator(".studio-main").inner_text()
        page.click('[data-keep="language-zh"]')  # the text goes with the language until there is another
        found.becomes(lambda: page.locator("textarea").input_value() == OPENING["zh"])
        found.becomes(lambda: "猫" in shown.inner_text())
        assert_accessible(page)
        page.fill("textarea", "猫坐")
        page.click('[data-keep="language-en"]')
        found.settle("head")
        assert page.locator("textarea").input_value() == "猫坐"
        found.open("vectors", position="sinusoidal")
        assert page.locator(".view .mark").count() == 0  # of the method alone: nothing is random
        section = found.open("head", position="alibi")
        assert section.locator("h2 .mark").inner_text() == "untrained, random"
        assert not page.locator(".of-model .mark").is_visible()  # it is said once
        assert_accessible(page)
        assert found.complaints == []
        page.context.close()


def test_an_encoder_is_masked_and_says_what_it_cannot_do(browser: Any) -> None:  # noqa: F811
    with studio() as client:
        client.enter()
        run = next(one["id"] for one in client.get("/api/state").json()["runs"] if one["title"] == "encoder-sinusoidal")
        beside = {"model": {"fresh": {"position": "alibi"}}, "others": [{"run": run}]}
        assert client.view("sidebyside", **beside).status == 200
        assert client.view("generation", **beside).status == 400  # it stands beside an encoder: it is one, too
        found = opened(client, browser)
        section, page = found.open("prediction", kind="run", run=run, query="3"), found.page
        assert "With a mask in place of" in section.locator(".finding").inner_text()
        assert "(stood there)" in section.inner_text()
        strip = page.locator('.next-strip[aria-busy="false"]')
        strip.wait_for()
        assert strip.get_attribute("aria-label") == "At a mask after the text"
        assert page.locator(".next-token:visible").count() == 5
        assert_accessible(page)
        assert found.complaints == []
        section = found.open("step", kind="run", run=run)
        assert "Hidden, and to be predicted" in section.inner_text()
        assert "[MASK]" in section.inner_text()
        page.evaluate("hash => { location.hash = hash; }", f"view=generation&kind=run&run={run}")
        found.becomes(lambda: "This model is an encoder" in page.locator(".screen").inner_text())
        page.context.close()


def test_folders_that_are_given_come_first(client: Client) -> None:
    state = client.get("/api/state").json()
    kinds = [one["kind"] for one in state["runs"]]
    assert kinds == ["run", "cell", "cell", *["shipped"] * len(NAMES)]
    assert state["opening"]["asked"]["model"] == {"run": state["runs"][0]["id"]}
    assert state["runs"][0]["title"] == "my run"
