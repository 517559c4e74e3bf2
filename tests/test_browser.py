"""The page in a real browser: found, filtered, chosen, compared, grouped, exported, by mouse and by keyboard alone."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from urllib.parse import parse_qs, urlsplit

import networkx
import numpy as np
import pytest
import torch
from browser import SIZES, Opened, exported, wait_until, widget_cells
from live_server import live_server

import sparse_circuits as sc
from sparse_circuits.viewer.data import view_model
from sparse_circuits.viewer.page import write_page

HOSTILE = '</script><img src=x onerror="window.ran=1">\u202e\x00\x1b'


def named(found):
    return [element.get_attribute("data-name") for element in found.page.locator(".node:not(.end)").all()]


def test_every_node_and_edge_is_drawn_and_nothing_leaves_the_page(opened, view):
    assert set(named(opened)) == {node["name"] for node in view["nodes"]}
    assert opened.page.locator(".picture .link.edge").count() == len(view["edges"])
    assert opened.page.locator(".picture .link.carry").count() == len(view["carries"])
    assert opened.page.locator(".node.end").count() == 4
    assert [request for request in opened.requests if not request.startswith("file:")] == []


def test_search_marks_what_it_finds_and_enter_chooses_it(opened):
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("v:12")
    assert opened.page.locator(".node.found").count() == 1
    opened.page.keyboard.press("Enter")
    assert opened.page.locator(".node-head code").inner_text() == "1.attn.v:12"


def test_a_chosen_node_shows_its_effect_edges_and_head(opened, view):
    opened.node("1.attn.k:1").click()
    panel = opened.page.locator(".panel")
    estimate = next(node for node in view["nodes"] if node["name"] == "1.attn.k:1")["effect_estimate"]
    assert f"+{estimate['value']:.3f} nats" in panel.inner_text()
    assert panel.locator("table.edges").first.locator("tbody tr").count() == 6
    assert panel.locator("canvas").count() == 2
    assert "sink" in panel.inner_text()
    assert "No examples" in panel.inner_text()


def test_filters_hide_edges_by_weight_nodes_by_effect_and_layers(opened, view):
    page = opened.page
    page.locator("summary", has_text="Filter").click()
    sliders = page.locator(".menu-body input[type=range]")
    sliders.nth(0).fill("100")
    assert page.locator(".picture .link.edge").count() == 1
    sliders.nth(0).fill("0")
    sliders.nth(1).fill("100")
    assert len(named(opened)) == 1
    page.locator("button", has_text="Show everything").click()
    assert len(named(opened)) == len(view["nodes"])
    page.get_by_label("1", exact=True).uncheck()
    assert {name.split(".")[0] for name in named(opened)} == {"0"}
    page.get_by_label("tokens and logits").uncheck()
    assert page.locator(".node.end").count() == 0


def test_the_address_keeps_the_state(opened, browser):
    opened.node("1.attn.v:12").click()
    opened.page.keyboard.press("]")
    address = opened.page.evaluate("location.href")  # `page.url` hears of it later
    assert parse_qs(urlsplit(address).fragment)["node"] == ["1.attn.v:12"]
    again = Opened(browser, address)
    assert again.page.locator(".node-head code").inner_text() == "1.attn.v:12"
    assert "pair 2 of 4" in again.page.locator(".panel").inner_text()
    again.context.close()


def test_all_of_it_goes_by_keyboard(opened):
    page = opened.page
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('node')"):
            break
    assert page.evaluate("document.activeElement.classList.contains('node')")
    visited = set()
    for key in ["ArrowUp", "Home", *["ArrowRight"] * 7, "ArrowUp", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowUp"]:
        page.keyboard.press(key)
        visited.add(page.evaluate("document.activeElement.dataset.name"))
    assert len(visited) >= 10
    page.keyboard.press("Home")
    while page.evaluate("document.activeElement.classList.contains('end')"):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    chosen = page.evaluate("document.activeElement.dataset.name")
    assert page.locator(".node-head code").inner_text() == chosen
    page.keyboard.press("p")
    page.keyboard.press("4")
    assert chosen in page.locator(".panel").inner_text()
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_zoom_pan_and_fit_move_the_picture(opened):
    page = opened.page

    def width():
        return page.locator(".picture").bounding_box()["width"]

    before = width()
    page.keyboard.press("+")
    assert width() == pytest.approx(before * 1.3, rel=0.01)
    box = page.locator(".frame").bounding_box()
    at = page.locator(".picture").bounding_box()["x"]
    page.mouse.move(box["x"] + 300, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 380, box["y"] + 30, steps=5)
    page.mouse.up()
    assert page.locator(".picture").bounding_box()["x"] == pytest.approx(at + 80, abs=2)
    page.keyboard.press("f")
    assert width() == pytest.approx(before, rel=0.01)


def test_exports_hold_the_whole_circuit(opened, view):
    picture = ET.fromstring(exported(opened, "SVG"))
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}circle")) == 2 * len(view["nodes"])
    assert exported(opened, "PNG").startswith(b"\x89PNG")
    assert json.loads(exported(opened, "JSON"))["nodes"] == view["nodes"]
    nodes = list(csv.DictReader(io.StringIO(exported(opened, "CSV, nodes").decode())))
    assert [row["name"] for row in nodes] == [node["name"] for node in view["nodes"]]
    edges = list(csv.DictReader(io.StringIO(exported(opened, "CSV, edges").decode())))
    weights = [float(row["weight"]) for row in edges if row["kind"] == "edge"]
    assert weights == pytest.approx([edge["weight"] for edge in view["edges"]])
    graph = networkx.parse_graphml(exported(opened, "GraphML").decode())
    assert set(graph.nodes) == {node["name"] for node in view["nodes"]}
    assert graph.number_of_edges() == len(view["edges"]) + len(view["carries"]) + len(view["scores"])


def test_two_circuits_stand_side_by_side_with_what_they_share_marked(browser, circuit, view, tmp_path):
    keep = circuit.keep.clone()
    keep[circuit.space.index("1.attn.v:12")] = False
    keep[circuit.space.index("0.mlp.post_act:3")] = True
    other = sc.Circuit.of_nodes(circuit.model, keep, values=circuit.values, task=circuit.task | {"name": "other"})
    page = write_page([view, view_model(other, n_token=0)], tmp_path / "two.html")
    found = Opened(browser, page.as_uri())
    assert found.page.locator(".frame").count() == 2
    assert found.page.locator(".half").nth(0).locator(".node.shared").count() == circuit.n_node - 1
    assert f"{circuit.n_node - 1} nodes" in found.page.locator(".panel").inner_text()
    found.page.locator(".half").nth(1).locator('.node[data-name="1.attn.k:1"]').click()
    assert found.page.locator(".node.chosen").count() == 2
    assert found.errors == []
    found.context.close()


def test_attention_in_the_page_is_the_models_and_the_circuits(opened, view, circuit):
    opened.node("1.attn.k:1").click()
    pair = view["prompts"]["pairs"][0]
    texts = [circuit.model.tokenizer.decode([token]) for token in pair["answers"]]
    prompt = circuit.model.tokenizer.decode(pair["tokens"][0])
    found = sc.explain(circuit, prompt, answers=(texts[0], texts[1]))
    assert_attention_is_shown(opened.page, found, layer=1, head=0)
    opened.page.get_by_role("tab", name="Prompts").click()
    assert_attention_is_shown(opened.page, found, layer=1, head=0)


def test_of_several_heads_the_chosen_ones_attention_is_shown(browser, circuit, tmp_path):
    keep = circuit.keep.clone()
    keep[circuit.space.index("0.attn.v:0")] = True
    task = sc.task("single_double_quote", circuit.model.tokenizer, seed=0, sizes=SIZES)
    own = circuit.task | {"hash": task.hash}
    two = sc.Circuit.of_nodes(circuit.model, keep, values=circuit.values, task=own)
    view = view_model(two, task=task, n_pair=1, n_token=0)
    opened = Opened(browser, write_page(view, tmp_path / "two.html").as_uri(), hash="#tab=prompt")
    pair = view["prompts"]["pairs"][0]
    found = sc.explain(two, circuit.model.tokenizer.decode(pair["tokens"][0]))
    assert_attention_is_shown(opened.page, found, layer=0, head=0)
    opened.page.get_by_label("head", exact=True).select_option("layer 1, head 0")
    assert_attention_is_shown(opened.page, found, layer=1, head=0)
    assert opened.errors == []
    opened.context.close()


def assert_attention_is_shown(page, found, *, layer, head):
    """Check the row of the last token, the sink's share last, full model and circuit, against an explanation."""
    rows = page.locator(".panel .strip-row", has=page.locator(".sink")).all()
    for row, trace in zip(rows, (found.model, found.circuit), strict=True):
        shown = [float(token.get_attribute("title")) for token in row.locator(".tok").all()]
        expected = trace.attention[f"{layer}.attn"][head, -1].numpy()
        np.testing.assert_allclose(shown, [*expected, 1 - expected.sum()], atol=6e-4)


def test_what_a_model_says_is_shown_and_never_run(browser, view, tmp_path):
    bad = json.loads(json.dumps(view))
    bad["title"] = HOSTILE
    bad["task"]["example"] = [{"prompt": HOSTILE, "answer": HOSTILE}] * 2
    bad["vocabulary"] = [HOSTILE] * len(bad["vocabulary"])
    bad["notes"]["names"] = {"1.attn.v:12": HOSTILE}
    bad["notes"]["notes"] = {"1.attn.v:12": HOSTILE}
    bad["notes"]["groups"] = [{"name": HOSTILE, "nodes": ["1.attn.v:12"], "is_folded": False}]
    found = Opened(browser, write_page(bad, tmp_path / "bad.html").as_uri())
    for key in "1", "2", "3", "4":
        found.page.keyboard.press(key)
        found.page.wait_for_timeout(50)
    found.node("1.attn.v:12").click()
    assert found.page.evaluate("window.ran") is None
    assert found.page.locator("img").count() == 0
    assert "⟨202e⟩" in found.page.locator("h1").inner_text()
    assert found.errors == []
    found.context.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "of version 9; this page reads up to"),
        ({"version": 1}, "Make it again"),
        ({"format": "x"}, "not a view-model"),
    ],
)
def test_a_view_model_that_can_not_be_shown_is_told_in_one_sentence(browser, view, tmp_path, change, message):
    found = Opened(browser, write_page(view | change, tmp_path / "a.html").as_uri())
    assert message in found.page.locator(".failure").inner_text()
    assert found.errors == []
    found.context.close()


def test_a_browser_without_webgl_or_a_store_shows_the_page_as_well(browser, url):
    script = (
        "HTMLCanvasElement.prototype.getContext = ((real) => function (kind, ...more) {"
        " return /webgl/.test(kind) ? null : real.call(this, kind, ...more); })"
        "(HTMLCanvasElement.prototype.getContext);"
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no store'); } });"
    )
    found = Opened(browser, url, script=script)
    found.node("1.attn.k:1").click()
    found.page.keyboard.press("p")
    assert found.page.locator(".node.pinned").count() == 1
    found.page.keyboard.press("4")
    assert "save them as a file" in found.page.locator(".panel").inner_text()
    assert found.errors == []
    found.context.close()


def test_an_empty_circuit_and_one_without_prompts_open(browser, circuit, tmp_path):
    for names in ([], ["1.attn.v:12"]):
        keep = torch.zeros_like(circuit.keep)
        keep[[circuit.space.index(name) for name in names]] = True
        bare = sc.Circuit.of_nodes(circuit.model, keep, values=circuit.values, task=circuit.task)
        found = Opened(browser, write_page(view_model(bare, n_token=0), tmp_path / "bare.html").as_uri())
        for key in "1", "2", "3", "4":
            found.page.keyboard.press(key)
            found.page.wait_for_timeout(30)
        assert found.errors == []
        found.page.keyboard.press("3")
        assert "No prompts: the page was made without the task" in found.page.locator(".panel").inner_text()
        found.context.close()


@pytest.mark.parametrize(
    ("size", "theme", "states"),
    [((1280, 800), "light", ["#node=1.attn.k:1"]), ((390, 844), "dark", ["", "#tab=prompt"])],
)
def test_no_serious_finding_of_the_accessibility_check(browser, url, size, theme, states):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    serious = []
    for state in states:
        found = Opened(browser, url, size=size, theme=theme, hash=state)
        report = axe.Axe().run(found.page).response
        serious += [
            (state, violation["id"], violation["nodes"][0]["html"][:150], violation["nodes"][0].get("failureSummary"))
            for violation in report["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
        assert found.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        found.context.close()
    assert serious == []


def test_a_live_ablation_moves_the_probabilities_as_the_python_api_says(browser, circuit, tmp_path):
    with live_server(tmp_path) as live:
        found = Opened(browser, live.url, hash="#tab=live&node=1.attn.v:12")
        page, prompt = found.page, 'def f(a):\n    print("hello'
        page.locator("#live-prompt").fill(prompt)
        page.locator("button", has_text=re.compile("^Run$")).click()
        page.wait_for_selector(".next")
        page.locator("button", has_text=re.compile("^Ablate$")).click()
        page.wait_for_selector(".edits li")
        wait_until(page, "window.viewer.live.result.python.includes('ablate')")
        shown = page.evaluate("window.viewer.live.result.next")
        tokens = torch.tensor([circuit.model.tokenizer.encode(prompt)])
        with torch.no_grad(), sc.edited(circuit, [sc.NodeEdit("1.attn.v:12", "ablate")]):
            expected = circuit.model(tokens)[0, -1].softmax(-1).topk(len(shown)).values.tolist()
        assert [p for _, p in shown] == pytest.approx(expected, abs=1e-5)
        assert f"{expected[0]:.3f}" in page.locator(".panel").inner_text()
        page.locator("button", has_text="Undo last").click()
        wait_until(page, "!window.viewer.live.result.python.includes('ablate')")
        assert page.locator(".edits li").count() == 0
        page.locator("button", has_text=re.compile("^Explain$")).click()
        page.wait_for_selector(".matrix")
        assert_attention_is_shown(page, sc.explain(circuit, prompt), layer=1, head=0)
        page.locator("#live-prompt").fill("a b " * 100)
        page.locator("button", has_text=re.compile("^Run$")).click()
        assert "expected 1 to 64" in page.get_by_role("alert").inner_text()
        assert {urlsplit(request).netloc for request in found.requests} == {f"127.0.0.1:{live.port}"}
        found.context.close()


@pytest.mark.parametrize(
    "is_shadow", [False, True], ids=["in the document, as in Jupyter", "in a shadow tree, as in marimo"]
)
def test_the_widgets_module_draws_into_a_notebooks_cell_and_hands_notes_to_its_trait(browser, view, is_shadow):
    page = browser.new_page()
    widget_cells(page, view, is_shadow=is_shadow)
    assert page.locator("[data-ready]").bounding_box()["height"] == 480
    page.locator('.node[data-name="1.attn.v:12"]').click()
    page.keyboard.press("p")
    assert page.evaluate("window.model.get('notes').pinned") == ["1.attn.v:12"]
    page.keyboard.press("4")
    assert page.get_by_role("tab", name="Notes").get_attribute("aria-selected") == "true"
    page.close()
