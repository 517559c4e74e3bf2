"""By keyboard and by ear in a real browser: where the focus is after each act, what Escape closes, what is told."""


def active(page, what="textContent"):
    """Say what has the focus."""
    return page.evaluate(f"document.activeElement.{what}")


def press(page, button):
    """Go to a button of the panel and press it by keyboard."""
    button.focus()
    page.keyboard.press("Enter")


def test_buttons_of_the_panel_keep_the_focus(opened):
    page, panel = opened.page, opened.page.locator(".panel")
    opened.node("1.attn.v:12").click()
    press(page, panel.locator("button", has_text="Pin"))
    assert active(page) == "Unpin"
    for _ in range(2):
        press(page, panel.get_by_label("next pair"))
        assert active(page, "ariaLabel") == "next pair"
    assert "pair 3 of 4" in panel.inner_text()
    press(page, panel.locator("button", has_text="full model"))
    assert active(page) == "full model"


def test_the_focus_goes_on_to_the_next_of_a_list_and_to_the_panel_after_the_last(opened):
    page, panel = opened.page, opened.page.locator(".panel")
    for name in ("1.attn.v:3", "1.attn.v:12"):
        opened.node(name).click()
        page.keyboard.press("p")
    page.keyboard.press("4")
    press(page, panel.locator("button", has_text="unpin").first)
    assert active(page) == "unpin"
    page.keyboard.press("Enter")
    assert active(page, "className") == "panel"
    page.locator("#group-name").fill("values")
    page.keyboard.press("Enter")
    press(page, panel.locator("button", has_text="Fold"))
    assert active(page) == "Unfold"
    press(page, panel.locator("button", has_text="Remove"))
    assert active(page, "className") == "panel"


def test_the_caret_and_what_is_typed_outlive_a_redraw_and_are_saved(opened):
    page = opened.page
    opened.node("1.attn.v:12").click()
    page.locator("#own-note").focus()
    page.keyboard.type("carries the mark")
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    page.evaluate("window.viewer.render()")
    page.keyboard.type("quote ")
    assert page.locator("#own-note").input_value() == "carries the quote mark"
    page.evaluate("window.viewer.render()")
    page.keyboard.press("Tab")
    assert page.evaluate("window.viewer.notes.notes") == {"1.attn.v:12": "carries the quote mark"}


def test_showing_everything_leaves_the_focus_in_the_menu(opened):
    page = opened.page
    page.locator("summary", has_text="Filter").click()
    press(page, page.locator("button", has_text="Show everything"))
    assert active(page) == "Show everything"


def test_escape_closes_a_menu_and_no_more(opened):
    page = opened.page
    opened.node("1.attn.v:12").click()
    page.locator("summary", has_text="Filter").click()
    page.locator(".menu-body input[type=range]").first.focus()
    page.keyboard.press("Escape")
    assert page.locator("details.menu[open]").count() == 0
    assert active(page) == "Filter"
    assert opened.node("1.attn.v:12").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert opened.node("1.attn.v:12").get_attribute("aria-pressed") == "false"


def test_keys_do_nothing_behind_the_list_of_keys(opened):
    page = opened.page
    opened.node("1.attn.v:12").click()
    page.keyboard.press("?")
    page.keyboard.press("?")
    page.keyboard.press("4")
    assert page.locator("dialog").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog").count() == 0
    assert page.locator(".node-head code").inner_text() == "1.attn.v:12"


def test_rows_of_tokens_are_told_with_their_tokens(opened, view):
    opened.node("1.attn.v:12").click()
    pair, names = view["prompts"]["pairs"][0], view["vocabulary"]
    told = [row.get_attribute("aria-label") for row in opened.page.locator(".pair .strip").all()[:3]]
    for side in (0, 1):
        assert told[side].startswith(
            names[pair["answers"][side]].replace("\n", "↵") + ": activations of 1.attn.v:12 on "
        )
        assert told[side].endswith("".join(names[token] for token in pair["tokens"][side]).replace("\n", "↵"))
    assert told[2].startswith("difference: activations of 1.attn.v:12 on ")
    labels = opened.page.locator("[aria-label]").evaluate_all("(all) => all.map((one) => one.ariaLabel)")
    assert [label for label in labels if "[object" in label] == []


def test_a_node_is_told_with_the_readers_name_and_whether_it_is_pinned(opened):
    page, node = opened.page, opened.node("1.attn.v:12")
    node.click()
    page.locator("#own-name").fill("carries the mark")
    page.keyboard.press("Tab")
    node.click()
    page.keyboard.press("p")
    told = node.get_attribute("aria-label")
    assert told.startswith("carries the mark, 1.attn.v:12, value")
    assert told.endswith(", pinned")


def test_another_address_fills_the_search_field(opened):
    page = opened.page
    page.evaluate("location.hash = '#query=v:12'")
    page.wait_for_selector(".node.found")
    assert page.get_by_label("search nodes").input_value() == "v:12"
