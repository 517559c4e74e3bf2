"""The view-model says what the circuit is; the page holds all of it, runs none of it, and needs nothing else."""

import base64
import gzip
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from hand_built import NODES, hand_built_model, hand_built_task
from test_circuit import circuit_of

import sparse_circuits as sc
from sparse_circuits.errors import FormatError, TaskError
from sparse_circuits.files import write_json
from sparse_circuits.readings import CorpusReading
from sparse_circuits.viewer import view, view_model, view_of, write_page
from sparse_circuits.viewer.drawing import draw_graph
from sparse_circuits.viewer.graph import channel_tokens, embedding_edges, scores, unembedding_edges
from sparse_circuits.viewer.notes import NotesChangedError, read_notes, revision, save_notes
from sparse_circuits.viewer.packing import pack_numbers, pack_tokens
from sparse_circuits.viewer.page import front_end, page
from sparse_circuits.viewer.prompts import node_effects, show_pairs
from sparse_circuits.viewer.samples import AFTER, BEFORE, FRACTIONS, N_EXAMPLE, sample_nodes

ASSETS = Path(__file__).parents[1] / "src/sparse_circuits/viewer/assets"
GOLDEN = Path(__file__).parent / "golden/view-model.json"


@pytest.fixture
def circuit():
    made = circuit_of(
        hand_built_model(),
        NODES,
        effects={"0.attn.v:0": 0.5},
        history=[{"step": i, "loss": 1 / (i + 1), "n_node": 48.0 - i} for i in range(5)],
    )
    task = hand_built_task()
    made.task |= {"name": task.name, "hash": task.hash, "example": [{"prompt": 'a < b & "c', "answer": '")\n'}]}
    return made


def shown(circuit, **more):
    return view_model(circuit, n_token=0, **more)


def test_the_view_model_has_nodes_and_edges_with_their_weights(circuit):
    found = shown(circuit)
    assert [node["name"] for node in found["nodes"]] == NODES
    assert found["nodes"][1] == {
        "name": "0.attn.v:0",
        "layer": 0,
        "site": "attn.v",
        "channel": 0,
        "head": 0,
        "channel_in_head": 0,
        "effect": 0.5,
    }
    assert found["edges"] == [
        {"source": "0.attn.act_in:0", "target": "0.attn.v:0", "weight": 3.0},
        {"source": "0.attn.v:0", "target": "0.attn.resid_delta:3", "weight": 2.0},
    ]
    assert found["carries"] == []


def test_a_later_read_of_a_written_channel_is_carried_by_the_stream():
    circuit = circuit_of(hand_built_model(), ["0.attn.resid_delta:3", "0.mlp.act_in:3", "0.attn.act_in:3"])
    assert shown(circuit)["carries"] == [{"source": "0.attn.resid_delta:3", "target": "0.mlp.act_in:3"}]


def test_a_query_meets_the_key_of_its_own_channel_alone():
    circuit = circuit_of(hand_built_model(), ["0.attn.q:1", "0.attn.q:2", "0.attn.k:2", "0.attn.k:3"])
    assert scores(circuit) == [{"query": "0.attn.q:2", "key": "0.attn.k:2"}]


def test_tokens_that_tell_the_sides_apart_stand_below_what_reads_them(circuit):
    assert embedding_edges(circuit, [[[0, 2, 2], [1, 2, 2]]]) == [
        {"token": 0, "target": "0.attn.act_in:0", "weight": 1.0},
        {"token": 1, "target": "0.attn.act_in:0", "weight": -1.0},
    ]
    assert embedding_edges(circuit, []) == []


def test_logits_stand_above_with_the_last_norms_gain_multiplied_in(circuit):
    with torch.no_grad():
        circuit.model.final_norm.weight[3] = 0.5
    assert unembedding_edges(circuit, [3, 4]) == [
        {"source": "0.attn.resid_delta:3", "token": 3, "weight": 1.0},
        {"source": "0.attn.resid_delta:3", "token": 4, "weight": -1.0},
    ]
    assert channel_tokens(circuit)["3"] == {"embedding": [], "unembedding": [(3, 1.0), (4, -1.0)]}
    assert channel_tokens(circuit)["0"]["embedding"] == [(0, 1.0), (1, -1.0)]


def test_packed_numbers_come_back_within_half_a_step_of_their_rows_scale():
    values = (
        torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e-6, 0.0])[:, None, None]
    )
    packed = pack_numbers(values)
    numbers = np.frombuffer(base64.b64decode(packed["data"]), "<i2").reshape(packed["shape"])
    back = numbers * np.array(packed["scales"])[:, None, None]
    assert np.abs(back - values.numpy()).max(axis=(1, 2)) == pytest.approx(0, abs=0.51 / 32_767 * 4)
    assert (np.abs(back - values.numpy()) <= 0.51 * np.array(packed["scales"])[:, None, None] + 1e-12).all()


def test_packed_numbers_are_finite_and_tokens_exact():
    assert pack_numbers(torch.tensor([[torch.nan, torch.inf, 1.0]]))["scales"] == [pytest.approx(1 / 32_767)]
    packed = pack_tokens(torch.tensor([0, 2047, 65_535]))
    assert np.frombuffer(base64.b64decode(packed["data"]), "<u2").tolist() == [0, 2047, 65_535]


def test_a_nodes_effect_is_the_loss_without_it_less_the_loss_with_it(circuit):
    found = node_effects(circuit, hand_built_task())
    assert list(found) == NODES
    # Each node carries all of the behaviour: without it the answer is a coin flip.
    chance = sc.Circuit.of_nodes(circuit.model, torch.zeros_like(circuit.keep), values=circuit.values, task={})
    assert chance.n_node == 0
    for effect in found.values():
        assert effect["low"] <= effect["value"] <= effect["high"]
        assert effect["value"] == pytest.approx(found[NODES[0]]["value"])
        assert 0.4 < effect["value"] <= 0.6932


def test_a_shown_pair_holds_what_the_nodes_do_in_the_model_and_in_the_circuit(circuit):
    task = hand_built_task()
    found = show_pairs(circuit, task, n_pair=2)
    pair = found["pairs"][0]
    split = task.split("select")
    place = int(split.spread(2)[0])
    length = int(split.length[place])
    assert pair["tokens"] == split.tokens[place, :, :length].tolist()
    for run in ("model", "circuit"):
        packed = pair[run]["activations"]
        assert packed["shape"] == [3, 2, length]
    for side, tokens in enumerate(pair["tokens"]):
        logits = circuit.run(torch.tensor([tokens]))[0, -1]
        first, second = pair["answers"]
        assert pair["circuit"]["differences"][side] == pytest.approx(float(logits[first] - logits[second]), rel=1e-5)
    assert found["heads"][0] | {} == {
        "layer": 0,
        "head": 0,
        "d_head": 4,
        "sink": None,
        "ablated": [[0.0] * 4] * 2,
        "kept": [[], []],
    }


def test_examples_are_taken_where_the_ranking_says(circuit):
    tokens = torch.arange(64 * 32).reshape(64, 32) % 500
    activation = torch.zeros(64, 32)
    activation[7, 20] = 5.0
    activation[3, 2] = -4.0
    reading = CorpusReading(names=["0.attn.v:0"], tokens=tokens, activations=activation[None], corpus_hash="x")
    found = sample_nodes(reading)
    node = found["nodes"]["0.attn.v:0"]
    width = BEFORE + AFTER + 1
    shape = (2 * len(FRACTIONS) + 1, N_EXAMPLE, width)
    shown_tokens = np.frombuffer(base64.b64decode(node["tokens"]["data"]), "<u2").reshape(shape)
    values = (
        np.frombuffer(base64.b64decode(node["activations"]["data"]), "<i2").reshape(shape)
        * node["activations"]["scales"][0]
    )
    assert values[0, 0, BEFORE] == pytest.approx(5.0, rel=1e-4)
    assert shown_tokens[0, 0].tolist() == tokens[7, 20 - BEFORE : 20 + AFTER + 1].tolist()
    assert values[len(FRACTIONS), 0, BEFORE] == pytest.approx(-4.0, rel=1e-4)
    # Beyond the window's start there is nothing.
    assert shown_tokens[len(FRACTIONS), 0, : BEFORE - 2].tolist() == [65_535] * (BEFORE - 2)
    assert node["n_nonzero"] == 2
    assert sum(node["histogram"]["counts"]) == 2


def test_a_node_that_is_never_active_has_an_empty_histogram():
    reading = CorpusReading(
        names=["a"], tokens=torch.zeros(2, 4, dtype=torch.long), activations=torch.zeros(1, 2, 4), corpus_hash="x"
    )
    assert sample_nodes(reading)["nodes"]["a"]["histogram"] == {"low": 0.0, "high": 0.0, "counts": []}


def test_the_view_model_fits_its_schema_and_is_that_of_the_golden_file(circuit, tmp_path):
    schema = json.loads((ASSETS / "view-model.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    task = hand_built_task()
    circuit.save(tmp_path / "circuit")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    write_json(tmp_path / "circuit/report.json", golden["report"])
    found = json.loads(json.dumps(shown(circuit, folder=tmp_path / "circuit", task=task, n_pair=2)))
    jsonschema.validate(found, schema)
    jsonschema.validate(golden, schema)

    def form(value):
        if isinstance(value, dict):
            return {key: form(item) for key, item in value.items() if key not in ("versions", "test_readings")}
        if isinstance(value, list):
            return [form(value[0])] if value else []
        return type(value).__name__.replace("int", "float")

    assert form(found) == form(golden)
    for name in ("nodes", "edges", "carries", "scores", "embedding", "unembedding", "channels"):
        flat, wanted = (re.findall(r"-?\d+\.\d+(?:e-?\d+)?", json.dumps(view[name])) for view in (found, golden))
        assert [float(x) for x in flat] == pytest.approx([float(x) for x in wanted], rel=1e-3, abs=1e-4)


def test_a_view_model_that_lacks_nodes_does_not_fit(circuit):
    schema = json.loads((ASSETS / "view-model.schema.json").read_text(encoding="utf-8"))
    found = json.loads(json.dumps(shown(circuit)))
    del found["nodes"]
    with pytest.raises(jsonschema.ValidationError, match="nodes"):
        jsonschema.validate(found, schema)


def test_without_task_and_corpus_the_view_model_says_what_is_missing(circuit):
    found = view_model(circuit)
    assert found["prompts"] is None
    assert found["samples"] is None
    assert "without the task" in found["missing"]["prompts"]
    assert "no run folder" in found["missing"]["samples"]


def test_prompts_of_another_task_are_refused(circuit):
    circuit.task["hash"] = "0" * 64
    with pytest.raises(TaskError, match="other prompts"):
        shown(circuit, task=hand_built_task())


def test_the_command_that_makes_it_again_names_what_differs_from_the_defaults(circuit):
    circuit.settings = {
        **sc.PruneConfig().to_json(),
        "target_loss": 0.05,
        "cuts_edges": False,
        "exclude": ["0.attn.v:3"],
    }
    command = shown(circuit)["provenance"]["command"]
    assert command.endswith("--target-loss 0.05 --exclude 0.attn.v:3 --no-cuts-edges")
    assert "--max-token" not in command
    circuit.task |= {"path": "/home/somebody/pairs.jsonl", "max_token": 32}
    command = shown(circuit)["provenance"]["command"]
    assert " pairs.jsonl --out OUT --max-token 32 " in command


@pytest.mark.parametrize("path", ["/home/somebody/pairs.jsonl", "C:\\Users\\somebody\\pairs.jsonl"])
def test_a_page_names_a_tasks_file_and_not_where_it_lies(path):
    circuit = sc.Circuit.load(sc.example("circuits/single_double_quote"))
    circuit.task |= {"path": path}
    found = view_of(circuit)
    assert found["task"]["path"] == "pairs.jsonl"
    assert found["missing"]["prompts"] == "pairs.jsonl: there is no such file"
    assert "somebody" not in json.dumps(found)
    assert circuit.task["path"] == path


def test_an_imported_circuits_command_imports_it(circuit):
    circuit.task |= {"name": "imported", "hash": "", "origin": "viz_data.pt"}
    circuit.settings = {"imported": {"k": 3}, "means": "corpus", "lacks": []}
    command = "sparse-circuits import viz_data.pt --model RUN --out OUT --corpus CORPUS --task imported"
    assert shown(circuit)["provenance"]["command"] == command
    circuit.settings["means"] = "prompts"
    assert "--corpus" not in shown(circuit)["provenance"]["command"]


def test_the_drawing_is_well_formed_and_draws_everything_once(circuit):
    svg = ET.fromstring(draw_graph(shown(circuit)))
    titles = [title.text for title in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert sum("→" in title for title in titles) == 2
    for name in NODES:
        assert sum(title.startswith(name) and "→" not in title for title in titles) == 1
    assert "0.attn.v:0 (head 0, channel 0); without it the loss is +0.500 nats higher" in titles


def test_no_two_nodes_of_a_row_lie_on_each_other():
    model = hand_built_model()
    circuit = circuit_of(
        model, [f"0.mlp.{site}:{i}" for site in ("act_in", "post_act", "resid_delta") for i in range(4)]
    )
    places = re.findall(r'<circle cx="([\d.]+)" cy="(\d+)"', draw_graph(shown(circuit)))
    assert len(set(places)) == len(places) == 12


HOSTILE = '</script><script>document.title="run"</script><!-- \u2028 \u202e \x00 \x1b " \' & \ud800'


def test_nothing_that_a_model_says_can_end_the_element_that_holds_it(circuit):
    circuit.task |= {"name": HOSTILE, "example": [{"prompt": HOSTILE, "answer": HOSTILE}] * 2}
    text = page(shown(circuit))
    assert text.encode("utf-8")
    assert text.count("</script>") == 2
    assert "<script>document" not in text
    back = held(text)["views"][0]
    assert back["task"]["example"][0]["prompt"] == HOSTILE.replace("\ud800", "?")


def held(text):
    """Return what a page holds, as its script unpacks it."""
    start = re.search(r'<script type="text/plain" id="start">([\w+/=]*)</script>', text)
    assert start is not None
    return json.loads(gzip.decompress(base64.b64decode(start[1])))


def test_a_page_holds_the_same_json_and_is_the_same_page_each_time(circuit):
    data = shown(circuit) | {"title": '<b>&amp; \u2029 日本 "'}
    assert held(page(data))["views"] == [json.loads(json.dumps(data))]
    assert page(data) == page(data)


def test_the_page_needs_no_network(circuit):
    text = page(shown(circuit))
    assert not re.search(r"<(link|img|iframe|script[^>]+src)|@import|url\(", text)
    assert "default-src 'none'" in text
    addresses = set(re.findall(r"https?://[^\s\"'`<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://graphml.graphdrawing.org/xmlns"}


def test_the_front_end_is_one_module_and_every_file_of_it_is_there():
    text = front_end()
    assert not re.search(r"^(import|export) ", text, re.MULTILINE)
    for file in ASSETS.glob("*.js"):
        first = re.search(
            r"^export (?:async )?(?:function|class|const) (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE
        )
        assert first is not None
        assert first[1] in text
    # One scope: a name that two files declare would be a syntax error.
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", text, re.MULTILINE)
    assert len(names) == len(set(names))


def test_a_circuit_without_a_folder_needs_a_place_for_its_page(circuit, tmp_path):
    with pytest.raises(ValueError, match="out is needed"):
        view(circuit)
    task = hand_built_task()
    assert view(circuit, tmp_path / "a.html", task=task).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_two_circuits_stand_in_one_page(circuit, tmp_path):
    path = write_page([shown(circuit), shown(circuit_of(hand_built_model(), NODES[:1]))], tmp_path / "a.html")
    views = held(path.read_text(encoding="utf-8"))["views"]
    assert [len(found["nodes"]) for found in views] == [len(NODES), 1]


def test_an_empty_circuit_still_has_a_page():
    assert held(page(shown(circuit_of(hand_built_model(), []))))["views"][0]["nodes"] == []


def test_notes_are_kept_beside_the_circuit_and_the_circuit_is_as_before(circuit, tmp_path):
    circuit.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "notes.json"}
    notes = read_notes(tmp_path)
    assert notes["notes"] == {}
    first = revision(notes)
    mine = notes | {"notes": {"0.attn.v:0": "</script> carries the mark"}, "pinned": ["0.attn.v:0"]}
    second = save_notes(tmp_path, mine, read=first)
    assert read_notes(tmp_path)["notes"] == {"0.attn.v:0": "</script> carries the mark"}
    assert second == revision(read_notes(tmp_path)) != first
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "notes.json"} == before


def test_the_later_of_two_saves_is_told_and_writes_nothing(circuit, tmp_path):
    circuit.save(tmp_path)
    notes = read_notes(tmp_path)
    read = revision(notes)
    save_notes(tmp_path, notes | {"names": {"0.attn.v:0": "first"}}, read=read)
    with pytest.raises(NotesChangedError, match="changed since"):
        save_notes(tmp_path, notes | {"names": {"0.attn.v:0": "second"}}, read=read)
    assert read_notes(tmp_path)["names"] == {"0.attn.v:0": "first"}


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("notes", {"../x": "a"}, "notes is not"),
        ("names", {"0.attn.v:0": 3}, "names is not"),
        ("groups", [{"name": "a"}], "groups is not"),
        ("pinned", ["everything"], "pinned is not"),
    ],
)
def test_notes_of_another_form_are_refused_by_name(circuit, tmp_path, part, value, message):
    circuit.save(tmp_path)
    notes = read_notes(tmp_path)
    with pytest.raises(FormatError, match=message):
        save_notes(tmp_path, notes | {part: value}, read=revision(notes))


def test_notes_of_a_newer_version_are_refused(circuit, tmp_path):
    circuit.save(tmp_path)
    (tmp_path / "notes.json").write_text('{"format": "sparse-circuits circuit notes", "version": 9, "notes": {}}')
    with pytest.raises(FormatError, match="version 9"):
        read_notes(tmp_path)


def test_the_report_in_the_view_model_is_the_one_on_disk(circuit, tmp_path):
    circuit.save(tmp_path)
    report = json.loads(GOLDEN.read_text(encoding="utf-8"))["report"] | {"a_new_check": {"value": 0.5}}
    write_json(tmp_path / "report.json", report)
    assert shown(circuit, folder=tmp_path)["report"] == report
