"""Pictures in a real browser: folded groups, many edges, two circuits side by side, files."""

import pytest
from browser import Opened, exported, front_end_parts

import sparse_circuits as sc
from sparse_circuits.viewer.data import view_model
from sparse_circuits.viewer.page import write_page

A, B, C, D = "0.attn.v:0", "0.attn.v:1", "0.mlp.post_act:0", "1.attn.v:0"
VIEW = {
    "format": "sparse-circuits view",
    "version": 2,
    "vocabulary": [],
    "nodes": [
        {"name": A, "layer": 0, "site": "attn.v", "channel": 0, "effect": 0.1},
        {"name": B, "layer": 0, "site": "attn.v", "channel": 1, "effect": 0.5},
        {"name": C, "layer": 0, "site": "mlp.post_act", "channel": 0, "effect": 0.9},
        {"name": D, "layer": 1, "site": "attn.v", "channel": 0, "effect": 0.9},
    ],
    "edges": [
        {"source": A, "target": C, "weight": 2.0},
        {"source": B, "target": C, "weight": -2.0},
        {"source": C, "target": D, "weight": 1.0},
    ],
    "carries": [],
    "scores": [],
    "embedding": [],
    "unembedding": [],
}
"""Two values that a neuron reads with opposite weights."""


@pytest.fixture
def shown(browser):
    """Ask the front end what it draws of `VIEW` with the two values folded."""
    page = browser.new_page()
    front_end_parts(page, "openView", "shownGraph", "startState", "s")

    def ask(**state):
        return page.evaluate(
            """([raw, patch, members]) => {
            const { openView, shownGraph, startState } = window.parts;
            const state = { ...startState(), ...patch, hiddenLayers: new Set(patch.hiddenLayers ?? []) };
            const groups = [{ name: "values", nodes: members, is_folded: true }];
            return shownGraph(openView(raw), state, { groups });
            }""",
            [VIEW, state, [A, B]],
        )

    ask.page = page
    yield ask
    page.close()


def test_a_link_of_a_folded_group_is_the_sum_of_its_edges_and_knows_them_all(shown):
    link = next(link for link in shown()["links"] if link["source"] == "group:values")
    assert link == {
        "kind": "edge", "source": "group:values", "target": C, "n": 2, "indices": [0, 1], "weight": 0, "magnitude": 4,
    }  # fmt: skip


def test_filters_act_on_the_nodes_of_a_folded_group(shown):
    found = shown(minEffect=0.3)
    assert [node.get("members") for node in found["nodes"] if node["name"] == "group:values"] == [[B]]
    assert [link["weight"] for link in found["links"]] == [-2, 1]
    assert [node["name"] for node in shown(hiddenLayers=[0])["nodes"]] == [D]
    assert [link["source"] for link in shown(minEffect=0.6)["links"]] == [C]


def test_a_folded_groups_line_says_that_its_weight_is_a_sum_and_has_the_colour_of_the_contributions_sum(opened, view):
    page, edges = opened.page, view["edges"]
    joined = [edge for edge in edges if edge["target"] == "1.attn.v:12"]
    group = {"name": "sources", "nodes": [edge["source"] for edge in joined], "is_folded": True}
    page.evaluate("(group) => { window.viewer.keep({ ...window.viewer.notes, groups: [group] }); }", group)
    line = f"window.viewer.graphs[0].linkElements.find(({{ link }}) => link.n === {len(joined)})"
    page.evaluate(f"{line}.dispatchEvent(new PointerEvent('pointerover', {{ bubbles: true }}))")
    total = sum(edge["weight"] for edge in joined)
    told = page.locator(".tip").first.inner_text().replace("−", "-")
    assert f"sources → 1.attn.v:12: {len(joined)} weights, {total:+.3f} in sum" in told
    page.evaluate("window.viewer.change({ colours: 'contribution', run: 'model' })")
    by = page.evaluate("[...window.viewer.graphs[0].contributions(window.viewer.state)]")
    kind, width = page.evaluate(f"[{line}.getAttribute('class'), Number({line}.getAttribute('stroke-width'))]")
    values = [by[edges.index(edge)] for edge in joined]
    assert kind.split()[-1] == ("plus" if sum(values) > 0 else "minus")
    assert width == pytest.approx(0.9 + 4.6 * sum(map(abs, values)) / max(map(abs, by)), abs=0.01)


def test_what_is_told_of_a_node_goes_when_the_pointer_leaves_it_though_it_is_chosen(opened):
    page, tip = opened.page, opened.page.locator(".tip").first
    node = opened.node("1.attn.v:12")
    node.click()
    node.hover()
    assert tip.is_visible()
    page.locator("h1").first.hover()
    assert tip.is_hidden()
    assert page.locator(".node.chosen").count() == 1


def test_a_circuit_of_many_edges_opens(browser, view, shown, tmp_path):
    weak = [{"source": f"0.mlp.post_act:{i}", "target": "1.attn.v:12", "weight": 0.001} for i in range(200_000)]
    many = view | {"edges": view["edges"] + weak}
    found = Opened(browser, write_page(many, tmp_path / "many.html").as_uri(), hash="#minWeight=0.01")
    assert found.page.locator(".failure").count() == 0
    assert found.page.locator(".node").count() > 0
    assert found.errors == []
    found.context.close()
    n = shown.page.evaluate("window.parts.s('g', {}, Array.from({ length: 200000 }, () => 'x')).childNodes.length")
    assert n == 200_000


def test_a_name_is_cut_between_characters_and_drawn_into_files(opened):
    page = opened.page
    page.evaluate("window.viewer.write('names', '1.attn.v:12', 'abcdefghijklmno😀 and more')")
    assert opened.node("1.attn.v:12").text_content() == "abcdefghijklmno😀"
    assert exported(opened, "PNG").startswith(b"\x89PNG")
    page.evaluate("() => { HTMLCanvasElement.prototype.toBlob = (taken) => taken(null) }")
    page.locator("summary", has_text="Export").click()
    page.get_by_role("button", name="PNG", exact=True).click()
    page.locator(".said", has_text="PNG is not written: this browser can't").wait_for()


def test_an_imported_circuit_says_so_and_its_settings_are_written_out(browser, view, tmp_path):
    imported = view | {
        "task": view["task"] | {"origin": "viz_data.pt"},
        "settings": {"imported": {"k": 3, "lr": None}, "means": "corpus", "lacks": ["means", "a scale"]},
    }
    found = Opened(browser, write_page(imported, tmp_path / "imported.html").as_uri())
    text = found.page.locator(".panel").text_content()
    assert "Imported from viz_data.pt, not pruned here" in text
    assert "Made again by" not in text
    assert "[object" not in text
    assert "means, a scale" in text
    assert found.errors == []
    found.context.close()


def test_nodes_of_the_second_circuit_are_chosen_pinned_and_listed_as_well(browser, circuit, view, tmp_path):
    keep = circuit.keep.clone()
    keep[circuit.space.index("0.mlp.post_act:3")] = True
    other = sc.Circuit.of_nodes(circuit.model, keep, values=circuit.values, task=circuit.task | {"name": "other"})
    found = Opened(browser, write_page([view, view_model(other, n_token=0)], tmp_path / "two.html").as_uri())
    page, second = found.page, found.page.locator(".half").nth(1)
    second.locator('.node[data-name="1.attn.k:1"]').click()
    assert page.evaluate("document.activeElement.closest('.half') === document.querySelectorAll('.half')[1]")
    page.keyboard.press("/")
    page.keyboard.type("post_act:3")
    page.keyboard.press("Enter")
    assert page.locator(".node-head code").inner_text() == "0.mlp.post_act:3"
    second.locator('.node[data-name="0.mlp.post_act:3"]').click()
    page.keyboard.press("p")
    assert second.locator('.node.pinned[data-name="0.mlp.post_act:3"]').count() == 1
    page.keyboard.press("4")
    assert "0.mlp.post_act:3" in page.locator(".panel").inner_text()
    page.locator("#group-name").fill("neurons")
    page.locator("button", has_text="Group the 1 pinned node").click()
    assert page.evaluate("window.viewer.notes.groups[0].nodes") == ["0.mlp.post_act:3"]
    page.evaluate("window.viewer.pin('9.attn.v:0')")
    assert "9.attn.v:0: not in the picture, so it can't be pinned" in page.locator(".said").inner_text()
    assert found.errors == []
    found.context.close()
