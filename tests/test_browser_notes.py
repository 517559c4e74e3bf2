"""Notes, pins and groups in a real browser: kept, told where two versions meet, and never lost."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import Opened, front_end_parts, wait_until, widget_cells
from live_server import live_server

from sparse_circuits.viewer.notes import read_notes
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
    page.keyboard.press("2")
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


def test_a_save_while_one_chooses_between_two_versions_is_told_too(opened, url):
    first, second = opened.page, opened.context.new_page()
    second.goto(url)
    second.wait_for_selector("[data-ready]")
    note(first, "from the first")
    note(second, "from the second")
    note(first, "from the first again")
    second.locator("button", has_text="Keep both").click()
    assert "saved in another tab" in second.get_by_role("alert").inner_text()
    second.locator("button", has_text="Keep both").click()
    assert second.get_by_role("alert").count() == 0
    kept = second.locator(".written dd").inner_text().split("\n")
    assert kept == ["from the second", "from the first", "from the first again"]


@pytest.fixture
def blank(browser):
    page = browser.new_page()
    yield page
    page.close()


A, B, C = "1.attn.v:3", "1.attn.v:12", "1.attn.k:1"


def of(**parts):
    return {"notes": {}, "names": {}, "groups": [], "pinned": []} | parts


def test_keeping_both_keeps_names_and_groups_of_both(blank):
    front_end_parts(blank, "merged")
    mine = of(
        names={A: "mark", B: "mark / sign"},
        notes={A: "one\ntwo", B: "same"},
        groups=[{"name": "values", "nodes": [A, B], "is_folded": True}],
    )
    theirs = of(
        names={A: "quote", B: "sign", C: "key"},
        notes={A: "two", B: "same"},
        groups=[{"name": "values", "nodes": [B, C], "is_folded": False}, {"name": "keys", "nodes": [C]}],
    )
    kept = blank.evaluate("([mine, theirs]) => window.parts.merged(mine, theirs)", [mine, theirs])
    assert kept["names"] == {A: "mark / quote", B: "mark / sign", C: "key"}
    assert kept["notes"] == {A: "one\ntwo", B: "same"}
    assert kept["groups"] == [
        {"name": "values", "nodes": [A, B, C], "is_folded": True},
        {"name": "keys", "nodes": [C]},
    ]


def test_texts_that_are_too_long_together_are_told_and_stay_two_versions(opened, url):
    first, second = opened.page, opened.context.new_page()
    second.goto(url)
    second.wait_for_selector("[data-ready]")
    note(first, "a" * 6000)
    note(second, "b" * 6000)
    second.locator("button", has_text="Keep both").click()
    assert "together have more than 10,000 characters" in second.locator(".said").inner_text()
    assert second.get_by_role("alert").count() == 1
    note(second, "b" * 3000)
    second.locator("button", has_text="Keep both").click()
    assert second.get_by_role("alert").count() == 0
    assert len(second.locator(".written dd").inner_text()) == 9001


def test_two_views_of_one_widget_and_python_show_each_others_notes(blank, view):
    widget_cells(blank, view, n=2)
    cells = blank.locator("[data-ready]")
    cells.nth(0).locator(f'.node[data-name="{A}"]').click()
    blank.keyboard.press("p")
    assert cells.nth(1).locator(f'.node.pinned[data-name="{A}"]').count() == 1
    cells.nth(1).locator(f'.node[data-name="{B}"]').click()
    blank.keyboard.press("p")
    assert blank.evaluate("window.model.get('notes').pinned") == [A, B]
    blank.evaluate("(notes) => window.model.set('notes', notes)", of(names={A: "set by Python"}))
    for cell in cells.all():
        assert "set by Python" in cell.locator(f'.node[data-name="{A}"]').text_content()
    blank.evaluate("window.ends[0]()")
    blank.evaluate("(notes) => window.model.set('notes', notes)", of(names={A: "later"}))
    assert "set by Python" in cells.nth(0).locator(f'.node[data-name="{A}"]').text_content(), "a cell that is gone"


def test_notes_set_by_python_while_one_writes_are_told_and_both_kept(blank, view):
    widget_cells(blank, view)
    blank.locator(f'.node[data-name="{B}"]').click()
    blank.locator("#own-note").fill("from the cell")
    blank.evaluate("(notes) => window.model.set('notes', notes)", of(notes={B: "from Python"}))
    assert blank.locator("#own-note").input_value() == "from the cell"
    blank.keyboard.press("Tab")
    assert blank.evaluate("window.model.get('notes').notes") == {B: "from Python"}
    assert "set by Python or another view meanwhile" in blank.get_by_role("alert").inner_text()
    blank.locator("button", has_text="Keep both").click()
    assert blank.evaluate("window.model.get('notes').notes") == {B: "from the cell\nfrom Python"}


def test_a_live_page_is_in_no_conflict_with_itself_and_tells_when_the_server_is_gone(browser, tmp_path):
    with live_server(tmp_path) as live:
        found = Opened(browser, live.url)
        for name in (A, B, C):
            found.page.evaluate("(name) => { window.viewer.pin(name); }", name)
        for text in ("a", "b", "c"):
            found.page.evaluate("([name, text]) => { window.viewer.write('notes', name, text); }", [A, text])
        wait_until(found.page, "(async () => { await window.viewer.store.turn; return true; })()")
        kept = read_notes(live.session.folder)
        assert (kept["pinned"], kept["notes"]) == ([A, B, C], {A: "c"})
        found.page.keyboard.press("4")
        assert found.page.get_by_role("alert").count() == 0
        assert "Kept in notes.json beside the circuit" in found.page.locator(".panel").inner_text()
        assert found.errors == []
    found.page.evaluate("(name) => window.viewer.pin(name)", A)
    assert "Kept in this page only" in found.page.locator(".panel").inner_text()
    found.context.close()
