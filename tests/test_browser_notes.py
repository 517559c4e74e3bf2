"""Notes, pins and groups in a real browser: kept, told where two versions meet, and never lost."""

# ruff: noqa: F811 -- fixtures are asked for by their name
from pathlib import Path
from urllib.parse import urlsplit

from test_browser import browser, circuit, opened, url, view  # noqa: F401

from sparse_circuits.viewer.page import write_page


def test_pins_names_and_folded_groups_are_drawn_and_outlive_a_reload(opened):
    page = opened.page
    for name in ("1.attn.v:3", "1.attn.v:12"):
        opened.node(name).click()
        page.keyboard.press("p")
    page.locator("#own-name").fill("carries the mark")
    page.locator("#own-note").fill("</script> read it in the paper")
    page.keyboard.press("Tab")
    page.get_by_role("tab", name="Notes").click()
    assert "</script> read it" in page.locator(".panel").inner_text()
    page.locator("#group-name").fill("values")
    page.locator("button", has_text="Group the 2 pinned nodes").click()
    page.locator("button", has_text="Fold").click()
    assert opened.node("1.attn.v:3").count() == 0
    assert "values · 2" in opened.node("group:values").text_content()
    page.reload()
    page.wait_for_selector("[data-ready]")
    assert opened.node("group:values").count() == 1
    page.locator("button", has_text="Unfold").click()
    assert "carries the mark" in opened.node("1.attn.v:12").text_content()


def test_notes_saved_in_another_tab_meanwhile_are_told_and_both_kept(opened, url):
    first, second = opened.page, opened.context.new_page()
    second.goto(url)
    second.wait_for_selector("[data-ready]")
    for page, text in ((first, "from the first"), (second, "from the second")):
        page.locator('.node[data-name="1.attn.v:12"]').click()
        page.locator("#own-note").fill(text)
        page.keyboard.press("Tab")
    warning = second.get_by_role("alert")
    assert "saved in another tab" in warning.inner_text()
    second.locator("button", has_text="Keep both").click()
    assert {"from the first", "from the second"} <= set(second.locator(".written dd").inner_text().split("\n"))


def test_a_folded_group_is_pinned_by_its_nodes_and_grouped_again(opened):
    page = opened.page
    for name in ("1.attn.v:3", "1.attn.v:12"):
        opened.node(name).click()
        page.keyboard.press("p")
    page.keyboard.press("4")
    page.locator("#group-name").fill("values")
    page.locator("button", has_text="Group the 2 pinned nodes").click()
    page.locator("button", has_text="Fold").click()
    opened.node("group:values").click()
    page.keyboard.press("p")
    page.keyboard.press("4")
    assert "unpin" in page.locator(".panel").inner_text()
    page.locator("#group-name").fill("again")
    page.locator("button", has_text="Group the 2 pinned nodes").click()
    stored = page.evaluate("JSON.parse(Object.entries(localStorage).find(([key]) => key.includes('notes'))[1]).notes")
    assert stored["pinned"] == []
    assert [group["nodes"] for group in stored["groups"]] == [["1.attn.v:3", "1.attn.v:12"]] * 2


def note(page, text):
    page.locator('.node[data-name="1.attn.v:12"]').click()
    page.locator("#own-note").fill(text)
    page.keyboard.press("Tab")


def test_a_full_store_is_told_and_is_no_conflict(opened):
    page = opened.page
    note(page, "kept")
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('no room') } }")
    for text in ("not kept", "not kept either"):
        note(page, text)
    assert page.get_by_role("alert").count() == 0
    page.keyboard.press("4")
    assert "save them as a file" in page.locator(".panel").inner_text()
    assert "not kept either" in page.locator(".written dd").inner_text()


def test_notes_that_a_page_made_again_comes_with_stand_beside_those_of_the_browser(opened, url, view):
    page = opened.page
    note(page, "mine")
    notes = {"format": "sparse-circuits circuit notes", "version": 1, "names": {}, "groups": [], "pinned": []}
    again = view | {"notes": notes | {"notes": {"1.attn.v:12": "from a colleague"}}}
    write_page(again, Path(urlsplit(url).path))
    try:
        page.reload()
        page.wait_for_selector("[data-ready]")
        assert "the page came with other notes" in page.get_by_role("alert").inner_text()
        page.locator("button", has_text="Keep both").click()
        assert {"mine", "from a colleague"} <= set(page.locator(".written dd").inner_text().split("\n"))
        page.reload()
        page.wait_for_selector("[data-ready]")
        assert page.get_by_role("alert").count() == 0, "asked once"
    finally:
        write_page(view, Path(urlsplit(url).path))
