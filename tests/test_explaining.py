"""Contributions are what interventions do: exact where the circuit is linear, first order elsewhere."""

import pytest
import torch
from hand_built import FILLER, NODES, A, X, Y, hand_built_model
from test_circuit import circuit_of

import sparse_circuits as sc
from sparse_circuits.editing import NodeEdit, edited
from sparse_circuits.errors import CorpusError, TapError, TaskError
from sparse_circuits.explaining import explain_tokens
from sparse_circuits.readings import read_corpus

PROMPT = [A, FILLER, FILLER]


@pytest.fixture
def circuit():
    return circuit_of(hand_built_model(), NODES)


@pytest.fixture(scope="module")
def shipped():
    return sc.Circuit.load(sc.example("circuits/single_double_quote"))


@torch.no_grad()
def difference(model):
    logits = model(torch.tensor([PROMPT]))[0, -1]
    return float(logits[X] - logits[Y])


def test_the_difference_is_that_of_the_model_and_of_the_circuit(circuit):
    found = explain_tokens(circuit, PROMPT, (X, Y))
    assert found.model.difference == pytest.approx(difference(circuit.model), rel=1e-6)
    with circuit.applied():
        assert found.circuit.difference == pytest.approx(difference(circuit.model), rel=1e-6)


def test_direct_shares_add_up_to_the_difference_on_the_shipped_model(shipped):
    found = sc.explain(shipped, 'def f(a):\n    print("hello', answers=('")\n', "')\n"))
    for trace in (found.model, found.circuit):
        assert sum(trace.direct.values()) == pytest.approx(trace.difference, abs=1e-4)


def test_an_edges_contribution_is_the_derivative_of_cutting_it(shipped):
    ids = shipped.model.tokenizer.encode('def f(a):\n    print("hello')
    answers = tuple(shipped.model.tokenizer.token(text) for text in ('")\n', "')\n"))
    found = explain_tokens(shipped, ids, answers)
    name = next(edge for edge in found.edges if "→ 1.attn.resid_delta" in edge)
    source, target = (int(end.rsplit(":", 1)[1]) for end in name.split(" → "))
    step = 1e-3
    location, weight = "1.attn.out", shipped.model.linears()["1.attn.out"].weight
    keep = torch.ones_like(weight)
    keep[target, source] -= step
    from sparse_circuits.taps import EdgeCut, cutting

    values = shipped.space.split(shipped.values)["1.attn.v"]

    def run(cuts):
        with shipped.applied(), cutting(shipped.model, cuts), torch.no_grad():
            logits = shipped.model(torch.tensor([ids]))[0, -1].double()
        return float(logits[answers[0]] - logits[answers[1]])

    slope = (run({location: EdgeCut(torch.ones_like(weight), values)}) - run({location: EdgeCut(keep, values)})) / step
    assert float(found.circuit.edge_contributions[found.edges.index(name)]) == pytest.approx(slope, rel=0.02, abs=2e-3)


def test_a_nodes_contribution_is_the_derivative_of_scaling_it(circuit):
    found = explain_tokens(circuit, PROMPT, (X, Y))
    with circuit.applied():
        whole = difference(circuit.model)
    with edited(circuit, [NodeEdit("0.attn.v:0", "scale", 1 - 1e-3)]):
        less = difference(circuit.model)
    slope = (whole - less) / 1e-3
    assert float(found.circuit.node_contributions[1].sum()) == pytest.approx(slope, rel=1e-2)


def test_attention_is_the_pattern_that_mixes_values(shipped):
    found = sc.explain(shipped, "def f(a):\n    return a")
    with sc.reading(shipped.model, "1.attn.v", "1.attn.y") as seen, torch.no_grad():
        shipped.model(torch.tensor([found.ids]))
    v = seen["1.attn.v"][0].unflatten(-1, (4, -1)).transpose(0, 1)
    torch.testing.assert_close(
        (found.model.attention["1.attn"] @ v).transpose(0, 1).flatten(1), seen["1.attn.y"][0], atol=1e-5, rtol=1e-5
    )


def test_an_explanation_is_plain_json_values_and_readable_text(shipped):
    import json

    found = sc.explain(shipped, "x = 1")
    back = json.loads(json.dumps(found.to_json()))
    assert len(back["circuit"]["activations"]) == shipped.n_node
    assert len(back["model"]["edge_contributions"]) == shipped.n_edge
    assert str(found).startswith("logit(")


@pytest.mark.parametrize(
    ("prompt", "answers", "message"),
    [
        ("", None, "has 0 tokens, expected 1 to 64"),
        ("a b " * 100, None, "expected 1 to 64"),
        ("a", ("not one token at all", "b"), "expected one"),
    ],
)
def test_prompts_and_answers_that_do_not_fit_are_refused(shipped, prompt, answers, message):
    with pytest.raises(TaskError, match=message):
        sc.explain(shipped, prompt, answers=answers)


def test_a_model_without_a_tokenizer_can_not_be_given_text(circuit):
    with pytest.raises(TaskError, match="no tokenizer"):
        sc.explain(circuit, "a")


@torch.no_grad()
@pytest.mark.parametrize("where", ["model", "circuit"])
def test_an_edit_sets_scales_and_ablates_one_channel_at_the_positions_that_it_names(circuit, where):
    circuit.values = circuit.values + 0.25
    tokens = torch.tensor([PROMPT])
    edits = [
        NodeEdit("0.attn.v:0", "set", 7.0, position=1),
        NodeEdit("0.attn.v:0", "scale", 2.0),
        NodeEdit("0.attn.v:1", "ablate"),
    ]
    with edited(circuit, edits, where=where), sc.reading(circuit.model, "0.attn.v") as seen:
        circuit.model(tokens)
    assert float(seen["0.attn.v"][0, 1, 0]) == 14.0
    assert seen["0.attn.v"][0, :, 1].tolist() == [0.25] * 3
    with sc.reading(circuit.model, "0.attn.v") as after:
        circuit.model(tokens)
    assert float(after["0.attn.v"][0, 1, 0]) != 14.0


def test_an_edit_is_told_as_the_python_that_makes_it():
    edit = NodeEdit("0.attn.v:0", "set", 0.5, position=3)
    assert eval(edit.as_python(), {"sc": sc}) == edit
    assert NodeEdit("0.attn.v:0", "ablate").as_python() == "sc.NodeEdit('0.attn.v:0', 'ablate')"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("0.attn.v:99", "ablate"), "channels 0 to 3"),
        (("0.attn.w:0", "ablate"), "did you mean"),
        (("0.attn.v:0", "double"), "expected ablate, set, scale"),
        (("0.attn.v:0", "set", float("nan")), "finite"),
        (("0.attn.v:0", "set", 1.0, 9), "at token 9, the prompt has 3"),
        (("0.attn.v:0", "set", 1.0, -1), "at token -1; tokens count from 0"),
    ],
)
def test_edits_that_can_not_be_made_are_refused(circuit, edit, message):
    with pytest.raises(TapError, match=message), edited(circuit, [NodeEdit(*edit)]):
        circuit.model(torch.tensor([PROMPT]))


def test_a_corpus_is_read_as_the_model_reads_it(untrained_run):
    model = sc.load(untrained_run)
    names = ["0.attn.v:3", "0.mlp.post_act:5", "0.attn.act_in:1"]
    found = read_corpus(model, names, n_token=256)
    assert found.tokens.shape == (4, 64)
    with sc.reading(model, "0.attn.v", "0.mlp.post_act", "0.attn.act_in") as seen, torch.no_grad():
        model(found.tokens)
    expected = torch.stack([seen["0.attn.v"][..., 3], seen["0.mlp.post_act"][..., 5], seen["0.attn.act_in"][..., 1]])
    torch.testing.assert_close(found.activations, expected, atol=1e-6, rtol=1e-5)


def test_a_model_of_no_run_has_no_corpus(circuit):
    with pytest.raises(CorpusError, match="no run folder"):
        read_corpus(circuit.model, ["0.attn.v:0"])
