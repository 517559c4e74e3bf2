"""The live server answers as the Python API does, answers nobody else, and outlives every bad question."""

import base64
import json
import socket

import numpy as np
import pytest
import torch
import uvicorn
from live_server import TOKEN, live_server

import sparse_circuits as sc
from sparse_circuits.errors import ConfigError
from sparse_circuits.kernels import attention_pattern
from sparse_circuits.viewer.notes import read_notes
from sparse_circuits.viewer.server import MOST_BYTES, serve

PROMPT = 'def f(a):\n    print("hello'
EDIT = {"node": "1.attn.v:12", "action": "ablate"}


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with live_server(tmp_path_factory.mktemp("live")) as server:
        yield server


def probabilities(circuit, edits, where):
    tokens = torch.tensor([circuit.model.tokenizer.encode(PROMPT)])
    with torch.no_grad(), sc.edited(circuit, edits, where=where):
        return circuit.model(tokens)[0, -1].softmax(-1)


@pytest.mark.parametrize("where", ["model", "circuit"])
def test_probabilities_are_those_of_the_python_api(live, where):
    status, found = live.ask("POST", "/api/run", {"prompt": PROMPT, "edits": [EDIT], "where": where, "watch": ['")\n']})
    assert status == 200
    circuit = live.session.circuit
    before = probabilities(circuit, [], where)
    after = probabilities(circuit, [sc.NodeEdit("1.attn.v:12", "ablate")], where)
    top = after.topk(8)
    assert [p for _, p in found["next"]] == pytest.approx(top.values.tolist(), abs=1e-6)
    token = circuit.model.tokenizer.token('")\n')
    assert found["watched"][0] == ['")\n', pytest.approx(float(before[token])), pytest.approx(float(after[token]))]


def test_the_python_that_is_told_gives_the_same_probabilities(live):
    edits = [
        EDIT,
        {"node": "1.attn.k:1", "action": "scale", "value": 0.5},
        {"node": "1.attn.v:3", "action": "set", "value": -1, "position": 2},
    ]
    _, found = live.ask("POST", "/api/run", {"prompt": PROMPT, "edits": edits})
    scope: dict = {}
    exec(found["python"], scope)
    assert [p for _, p in found["next"]] == pytest.approx(scope["probabilities"].topk(8).values.tolist(), abs=1e-6)


def test_a_prompt_is_explained_as_the_api_does_it(live):
    _, found = live.ask("POST", "/api/explain", {"prompt": PROMPT, "answers": ['")\n', "')\n"]})
    expected = sc.explain(live.session.circuit, PROMPT, answers=('")\n', "')\n"))
    assert found["circuit"]["difference"] == pytest.approx(expected.circuit.difference, rel=1e-6)
    assert found["circuit"]["edge_contributions"] == pytest.approx(
        expected.circuit.edge_contributions.tolist(), rel=1e-5
    )


@pytest.mark.parametrize("run", ["model", "circuit"])
def test_queries_and_keys_of_an_explanation_give_the_models_attention(live, run):
    _, found = live.ask("POST", "/api/explain", {"prompt": PROMPT})
    expected = getattr(sc.explain(live.session.circuit, PROMPT), run)
    packed = found[run]["queries_and_keys"]
    numbers = np.frombuffer(base64.b64decode(packed["data"]), dtype="<i2").reshape(packed["shape"])
    rows = torch.tensor(numbers * np.array(packed["scales"])[:, None, None]).float().unflatten(0, (-1, 2))
    assert len(rows) == len(found["heads"]) > 0
    for (q, k), head in zip(rows, found["heads"], strict=True):
        pattern = attention_pattern(q[None, None], k[None, None], torch.tensor([head["sink"]]))[0, 0]
        torch.testing.assert_close(
            pattern, expected.attention[f"{head['layer']}.attn"][head["head"]], atol=1e-3, rtol=0
        )


def test_only_loopback_is_listened_on(live, monkeypatch):
    found = {}

    def run(server, sockets):
        (listening,) = sockets
        listening.listen()
        found["port"] = listening.getsockname()[1]
        for address in ("127.0.0.1", "127.0.0.2", "::1"):
            try:
                socket.create_connection((address, found["port"]), timeout=5).close()
                found[address] = "answers"
            except OSError:
                found[address] = "nobody there"

    monkeypatch.setattr(uvicorn.Server, "run", run)
    urls = []
    serve(live.session.folder, {}, circuit=live.session.circuit, on_ready=urls.append)
    assert urls[0].startswith(f"http://127.0.0.1:{found['port']}/?token=")
    # On Linux all of 127.0.0.0/8 is this machine: whoever listens on every address answers on 127.0.0.2 too.
    assert (found["127.0.0.1"], found["127.0.0.2"], found["::1"]) == ("answers", "nobody there", "nobody there")


def test_a_port_that_is_taken_is_told(live):
    with pytest.raises(ConfigError, match=f"port {live.port} can't be listened on"):
        serve(live.session.folder, {}, port=live.port, circuit=live.session.circuit)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"X_Token": "wrong"}, 403),
        ({"X_Token": None}, 403),
    ],
)
def test_whoever_is_not_the_page_is_turned_away(live, headers, status):
    found, told = live.ask("POST", "/api/run", {"prompt": PROMPT}, **headers)
    assert found == status
    assert "next" not in told


def test_the_page_needs_the_token_in_its_address(live):
    assert live.ask("GET", "/")[0] == 403
    assert live.ask("GET", "/?token=wrong")[0] == 403
    status, text = live.ask("GET", f"/?token={TOKEN}", X_Token=None)
    assert status == 200
    assert text.startswith("<!doctype html>")


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/assets/viewer.js", "/%2e%2e/pyproject.toml", "/circuit.json"])
def test_no_file_is_served(live, path):
    assert live.ask("GET", f"{path}?token={TOKEN}")[0] in (400, 404)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/run", b"not json", 400, "not JSON"),
        ("/api/run", b"\xff\xfe", 400, "not JSON"),
        ("/api/run", b"[" * 100_000, 400, "not JSON"),
        ("/api/run", [1], 400, "expected an object"),
        ("/api/run", {}, 400, "prompt is NoneType"),
        ("/api/run", {"prompt": ""}, 400, "has 0 tokens"),
        ("/api/run", {"prompt": "a b " * 200}, 400, "expected 1 to 64"),
        ("/api/run", {"prompt": "a", "where": "elsewhere"}, 400, "expected 'model' or 'circuit'"),
        ("/api/run", {"prompt": "a", "edits": {}}, 400, "edits is not a list"),
        ("/api/run", {"prompt": "a", "edits": ["x"]}, 400, "an edit has"),
        ("/api/run", {"prompt": "a", "edits": [{"node": "9.attn.v:0", "action": "ablate"}]}, 400, "no location"),
        ("/api/run", {"prompt": "a", "edits": [{"node": "1.attn.v:0", "action": "rm"}]}, 400, "expected ablate"),
        ("/api/run", {"prompt": "a", "edits": [{**EDIT, "value": "1"}]}, 400, "expected a number"),
        ("/api/run", {"prompt": "a", "edits": [{**EDIT, "value": 10**400}]}, 400, "expected a number"),
        ("/api/run", {"prompt": "a", "edits": [{**EDIT, "position": 50}]}, 400, "at token 50"),
        ("/api/run", {"prompt": "a", "edits": [{**EDIT, "value": float("nan")}]}, 400, "finite"),
        ("/api/run", {"prompt": "\ud800"}, 400, "lone surrogate"),
        ("/api/run", {"prompt": "a", "watch": ["\ud800"]}, 400, "lone surrogate"),
        ("/api/explain", {"prompt": "a", "answers": ["b", "\ud800"]}, 400, "lone surrogate"),
        ("/api/explain", {"prompt": "a", "answers": ["b"]}, 400, "two texts"),
        ("/api/predicate", {"node": "1.attn.v:12", "expression": "open('x')"}, 400, "a rule has no 'open'"),
        ("/api/predicate", {"node": "1.attn.v:12", "expression": "True"}, 400, "no finished corpus"),
        ("/api/run", b" " * (MOST_BYTES + 1), 413, "more than 1,000,000 bytes"),
    ],
)  # fmt: skip
def test_a_bad_question_is_told_what_is_wrong_and_the_server_goes_on(live, path, body, status, message):
    found, told = live.ask("POST", path, body)
    assert found == status
    assert message in told["error"]
    assert "\n" not in told["error"].strip()
    assert live.ask("POST", "/api/run", {"prompt": "x ="})[0] == 200


def test_the_later_save_of_notes_gets_the_earlier_one(live):
    _, read = live.ask("GET", "/api/notes")
    mine = read["notes"] | {"notes": {"1.attn.v:12": "first"}}
    assert live.ask("PUT", "/api/notes", {"notes": mine, "revision": read["revision"]})[0] == 200
    theirs = read["notes"] | {"notes": {"1.attn.v:12": "second"}}
    status, told = live.ask("PUT", "/api/notes", {"notes": theirs, "revision": read["revision"]})
    assert status == 409
    assert told["conflict"]["notes"] == {"1.attn.v:12": "first"}
    assert live.ask("PUT", "/api/notes", {"notes": theirs, "revision": told["revision"]})[0] == 200
    assert read_notes(live.session.folder)["notes"] == {"1.attn.v:12": "second"}
    assert json.loads((live.session.folder / "notes.json").read_text())["version"] == 1
