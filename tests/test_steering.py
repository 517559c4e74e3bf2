"""Steering: the formula is the derivative, a known node steers a known model, and controls that must fail do."""

import dataclasses
import json
import xml.etree.ElementTree as ET

import pytest
import torch
import torch.nn.functional as F
from bridge_models import pair, random_tokens
from hand_built import hand_built_task as known_task
from rotated_pair import NODE, WIDTH, known_bridge

from sparse_circuits.bridges import controls, finding, steering
from sparse_circuits.bridges.directions import (
    Prompts,
    partner,
    read_activations,
    read_changes,
    read_direction,
    read_directions,
    read_locations,
    read_node,
)
from sparse_circuits.bridges.drawing import draw_steering
from sparse_circuits.bridges.effects import EditedReads
from sparse_circuits.bridges.interchange import encoded_change, projection_change
from sparse_circuits.bridges.maps import Bridge
from sparse_circuits.bridges.residual import read_location
from sparse_circuits.bridges.stream_view import on_stream
from sparse_circuits.bridges.transfer import separation
from sparse_circuits.configs import SteerConfig
from sparse_circuits.errors import ConfigError, TapError
from sparse_circuits.taps import reading, replacing


def random_bridge(**dense) -> Bridge:
    sparse, other, bridges = pair(**dense)
    return Bridge(
        dense=other,
        sparse=sparse.model.requires_grad_(False),
        bridges=bridges.requires_grad_(False),
        rms=tuple((0.5 + 0.1 * i, 2.0 - 0.2 * i) for i in range(5)),
        kind="untrained",
    )


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("shape", [{}, {"norm": "layer"}, {"positions": "concatenated", "d_position": 4}], ids=str)
def test_the_formula_is_the_derivative_of_the_dense_read_by_the_sparse_one(place, shape):
    """Both norms' scales are frozen at the reference, the rest of both models is live."""
    bridge = random_bridge(**shape)
    tokens = random_tokens()
    location = read_location(place, 4)
    norm_scale = location.replace("act_in", "norm_scale")
    rms_s, rms_d = bridge.rms[place]

    def reads(shift):
        """Return the sparse read ahead of AbsTopK and the dense read, with the sparse stream shifted."""
        x = bridge.sparse.run(bridge.sparse.embed(tokens), 0, place) + shift
        name = f"{location}.before_topk"
        found = []
        for model, stream, rms in (
            (bridge.sparse, x, rms_s),
            (bridge.dense.model, bridge.bridges.decode(place, x), rms_d),
        ):
            frozen = {norm_scale: lambda scale, rms=rms: torch.full_like(scale, 1 / rms)}
            with torch.no_grad(), replacing(model, frozen), reading(model, name) as seen:
                model.run(stream, place, place + 1)
            found.append(seen[name])
        return found[0], found[1][..., : bridge.dense.d_model]

    before = reads(torch.zeros(8))
    for channel in range(8):
        after = reads(0.25 * F.one_hot(torch.tensor(channel), 8))
        activation = (after[0] - before[0])[..., channel]
        expected = (after[1] - before[1]) / activation[..., None]
        node = read_node(bridge, f"{location}:{channel}")
        torch.testing.assert_close(read_direction(bridge, node).expand_as(expected), expected, rtol=2e-3, atol=1e-4)


def test_adding_to_a_read_is_shifting_the_stream_where_the_norm_does_not_move():
    bridge = known_bridge()
    tokens = torch.tensor([[0, 2, 2, 2]])
    node = read_node(
        bridge, f"{read_location(0, 2)}:5"
    )  # a channel that no embedding uses, so orthogonal to the stream
    x = bridge.dense.embed(tokens)
    logits = []
    for step in (0.0, 1e-2):
        with torch.no_grad(), bridge.dense.adding(0, (step * read_direction(bridge, node)).expand_as(x)):
            logits.append(bridge.dense.run(x, 0, 1))
    shifted = bridge.dense.run(x + 1e-2 * bridge.rms[0][0] * bridge.bridges.decoders[0].weight[:, 5], 0, 1)
    stream_part = shifted - logits[0]
    read_part = logits[1] - logits[0]
    moved = 1e-2 * bridge.rms[0][0] * bridge.bridges.decoders[0].weight[:, 5]
    torch.testing.assert_close(stream_part - moved, read_part, rtol=1e-2, atol=1e-5)


def test_a_known_node_steers_the_rotated_model_exactly_as_its_partner_would():
    bridge, prompts = known_bridge(), Prompts.of(known_task().split("test"))
    node = read_node(bridge, NODE)
    change = read_changes(bridge, node.location, prompts)[..., node.channel]
    assert set(change.nonzero()[:, 1].tolist()) == {0}  # the first token alone
    reads = EditedReads(bridge.dense, node.dense_site, prompts)
    edit = controls.along(change, read_direction(bridge, node))
    plain, steered = reads.answers(None), reads.answers(edit)
    torch.testing.assert_close(edit, reads.natural, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(steered.other, plain.own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(steered.own, plain.other, rtol=1e-4, atol=1e-5)
    flipped = reads.answers(-edit)
    assert bool((flipped.own > plain.own).all())
    half = reads.answers(0.5 * edit)
    torch.testing.assert_close(half.own, half.other, rtol=1e-4, atol=1e-5)


def test_an_edit_of_the_stream_is_an_edit_of_the_stream():
    bridge, prompts = known_bridge(), Prompts.of(known_task().split("test"))
    seen = on_stream(bridge)
    node = read_node(seen, NODE)
    direction = read_direction(seen, node)
    # Δx_s = Δa ρ_s / γ_s, and the decoder's column takes it over.
    torch.testing.assert_close(direction, bridge.bridges.decoders[0].weight[:, 0] * bridge.rms[0][0])
    change = read_changes(seen, node.location, prompts)[..., node.channel]
    reads = EditedReads(seen.dense, node.dense_site, prompts)
    edit = controls.along(change, direction)
    torch.testing.assert_close(edit, reads.natural, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        x = bridge.dense.embed(prompts.tokens)
        with seen.dense.adding(1, edit):
            added = seen.dense.run(x)
        torch.testing.assert_close(added, bridge.dense.run(bridge.dense.run(x, 0, 1) + edit, 1))
        assert torch.equal(seen.dense.run(x), bridge.dense.run(x))


def test_the_search_finds_the_known_node():
    bridge, prompts = known_bridge(), Prompts.of(known_task().split("select"))
    found = finding.find_nodes(bridge, prompts, n_try=4)
    assert found[0].node == NODE
    assert found[0].p_other > 0.5 > found[1].p_other


def test_gradient_of_the_read_is_the_finite_difference():
    bridge, prompts = known_bridge(), Prompts.of(known_task().split("select"))
    reads = EditedReads(bridge.dense, 0, prompts)
    grad = finding.read_gradient(reads)
    step = 1e-2 * torch.randn(grad.shape, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(len(prompts))
    plus, minus = (reads.log_probabilities(rows, sign * step) for sign in (1, -1))
    measured = ((plus - minus)[:, 1] - (plus - minus)[:, 0]) / 2
    torch.testing.assert_close((grad * step).sum((1, 2)), measured, rtol=2e-2, atol=1e-4)


def test_interchanging_the_component_moves_the_answer_and_taking_it_out_removes_it():
    bridge, prompts = known_bridge(), Prompts.of(known_task().split("test"))
    node = read_node(bridge, NODE)
    direction = read_direction(bridge, node)
    reads = EditedReads(bridge.dense, node.dense_site, prompts)
    for edit in (
        projection_change(reads.reads, partner(reads.reads), direction),
        encoded_change(bridge, node, reads, direction),
    ):
        assert float(reads.answers(edit).follows.mean()) == 1
        torch.testing.assert_close(edit, reads.natural, rtol=1e-3, atol=1e-3)
    removed = reads.answers(projection_change(reads.reads, torch.zeros_like(reads.reads), direction))
    torch.testing.assert_close(removed.own, removed.other, rtol=1e-3, atol=1e-4)
    elsewhere = read_direction(bridge, read_node(bridge, "0.attn.act_in:5"))
    assert float(reads.answers(projection_change(reads.reads, partner(reads.reads), elsewhere)).follows.mean()) == 0


def test_what_survives_is_all_with_the_node_and_nothing_without_it():
    bridge, prompts = known_bridge(), Prompts.of(known_task().split("test"))
    reads = EditedReads(bridge.dense, 0, prompts)
    whole = separation(reads, reads.stream)
    encoded = bridge.bridges.encode(0, reads.stream)
    is_node = torch.arange(WIDTH) == 0
    # The other channels at the fillers' values keep the norm as it is.
    filler = bridge.sparse.token_embedding.weight[2].detach()
    kept = separation(reads, bridge.bridges.decode(0, torch.where(is_node, encoded, filler)))
    removed = separation(reads, bridge.bridges.decode(0, torch.where(is_node, filler, encoded)))
    assert whole > 0.5
    assert 0.7 < kept / whole < 1.01
    assert abs(removed) < 1e-4


def test_controls_by_hand():
    prompts = Prompts.of(known_task(6).split("test"))  # lengths 4, 5, 6, 7, 2, 3, each twice
    assert prompts.length[::2].tolist() == [4, 5, 6, 7, 2, 3]
    change = torch.zeros(12, 7)
    change[:, 0] = torch.arange(12).float() + 1
    shifted = controls.at_other_positions(change, prompts)
    assert shifted[0].tolist() == [0, 0, 1, 0, 0, 0, 0]  # half of 4 further on
    assert torch.equal(shifted.sum(1), change.sum(1))
    other = controls.of_another_pair(change, prompts)
    assert other[0].tolist() == [0, 11, 0, 0, 0, 0, 0]  # pair 5, of length 3, its last token on the last of 4
    assert prompts.first_difference.tolist() == [0] * 12
    profile = controls.mean_profile(change, prompts)
    assert profile[:, 0].tolist() == [6, 7]
    assert profile[:, 1:].abs().sum() == 0
    laid = controls.laid_at(profile, torch.tensor([1, 0]), torch.tensor([3, 2]), 4)
    assert laid.tolist() == [[0, 6, 0, 0], [7, 0, 0, 0]]
    wide = controls.mean_profile(change[..., None].expand(-1, -1, 3), prompts)
    assert torch.equal(wide[..., 2], profile)


def test_the_skyline_of_a_model_whose_sides_differ_by_one_token_is_that_difference():
    bridge, task = known_bridge(), known_task()
    select, prompts = (Prompts.of(task.split(name)) for name in ("select", "test"))
    edit = controls.skyline(EditedReads(bridge.dense, 0, select), prompts)
    torch.testing.assert_close(edit, EditedReads(bridge.dense, 0, prompts).natural, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def experiment(idioms_corpus, quick_run, tmp_path_factory):
    """Steer the known model in full; its neutral text is random tokens of its own vocabulary."""

    class Text:
        hash = "text"

        def windows(self, source, split, *, context, n_token):
            generator = torch.Generator().manual_seed(0)
            return torch.randint(5, (max(1, n_token // context), context), generator=generator)

    out = tmp_path_factory.mktemp("steering")
    bridge = known_bridge()
    patch = pytest.MonkeyPatch()
    patch.setattr(steering, "ridge_bridge", lambda **_: bridge)
    config = SteerConfig(other_tasks=(), n_neutral_token=256, n_select_pair=24, strengths=(0.0, 0.5, 1.0, 2.0))
    train = dataclasses.replace(quick_run, shares={"text": 1.0})
    found = steering.steer(bridge, known_task(), None, config, corpus=Text(), train=train, out=out)  # pyright: ignore
    patch.undo()
    return found, out


def test_a_whole_experiment_on_a_known_pair(experiment):
    found, _ = experiment
    rows = {row["name"]: row for row in found["rows"]}
    assert found["node"] == NODE
    plain = rows["no steering"]["p_own"][0]["value"]
    at_one = {
        name: row["p_other"][row["strengths"].index(1.0)]["value"]
        for name, row in rows.items()
        if name != "no steering"
    }
    for name in ("bridged node", "ridge bridge", "difference of means (skyline)"):
        assert at_one[name] == pytest.approx(plain, rel=1e-3)
        assert rows[name]["norm_to_natural"] == pytest.approx(1, rel=1e-3)
    assert at_one["sign flipped"] < rows["no steering"]["p_other"][0]["value"]
    assert at_one["untrained bridge, equal norm"] < 0.6 * plain
    assert found["share_of_skyline"]["p_other"] == pytest.approx(1, rel=1e-3)
    null = found["null"]
    assert null["n_row"] == 128
    assert null["strengths"][-1]["p_value"] == 1 / 129
    assert null["strengths"][-1]["high"] < at_one["bridged node"]
    assert found["mechanism"]["null"]["p_value"] <= 2 / 101
    assert {row["form"] for row in found["mechanism"]["interchange"]} == {"plain", "hard"}
    assert all(part["with"] > part["without"] for part in found["directions"])


def test_what_is_written_is_what_is_returned_and_drawn(experiment):
    found, out = experiment
    assert json.loads((out / "steer.json").read_text()) == json.loads(json.dumps(found))
    svg = (out / "steer.svg").read_text()
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")
    assert "other answer, bridged node" in svg
    text = steering.table(found)
    row = next(row for row in found["rows"] if row["name"] == "bridged node")
    assert row["strengths"] == [0.0, 0.5, 1.0, 2.0]
    shown = next(line for line in text.splitlines() if line.startswith("bridged node"))
    assert shown.split()[2] == f"{row['p_other'][2]['value']:.3f}"  # at strength 1, whatever comes after it
    for part in ("sign flipped", "null band of 128 rows", "interchange between prompts of", "KL on neutral text"):
        assert part in text


def test_probabilities_have_intervals_from_0_to_1(experiment):
    found, _ = experiment
    measured = [e for row in found["rows"] for e in (*row["p_other"], *row["p_own"], *row["follows"])]
    for one in [*measured, *found["mechanism"]["interchange"]]:
        assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1


def test_pairs_of_one_template_give_no_interval_and_are_told_and_drawn(experiment):
    found = json.loads(json.dumps(experiment[0]))
    for row in found["rows"]:
        for one in (*row["p_other"], *row["p_own"], *row["follows"]):
            one |= {"low": None, "high": None, "n_template": 1}
    for row in found["mechanism"]["interchange"]:
        row |= {"low": None, "high": None, "n_template": 1}
    assert "(no interval: 1 template)" in steering.table(found)
    ET.fromstring(draw_steering(found))


def test_a_node_that_is_not_at_a_read_location_is_answered_with_the_nearest():
    bridge = random_bridge()
    for name, message in (
        ("1.attn.q:3", r"the nearest that are: 1.attn.act_in and \S+, channels 0 to 7"),
        ("0.attn.resid_delta:0", r"the nearest that are: 0.mlp.act_in and 0.attn.act_in"),
        ("1.attn.act_in:9", "has channels 0 to 7"),
        ("1.atn.act_in:0", "no location is called '1.atn.act_in'; did you mean 1.attn.act_in"),
    ):
        with pytest.raises(TapError, match=message):
            read_node(bridge, name)


def test_a_position_channel_is_no_channel_of_the_stream():
    bridge = random_bridge()
    from bridge_models import random_model

    wide = dataclasses.replace(bridge, sparse=random_model(0, positions="concatenated", d_position=4))
    with pytest.raises(TapError, match="belongs to the appended positions"):
        read_node(wide, "0.attn.act_in:8")
    prompts = Prompts.of(known_task(2).split("test"))
    assert read_activations(wide, "0.attn.act_in", prompts).shape[-1] == 8


def test_a_site_without_a_bridge_is_no_read_location():
    bridge = random_bridge()
    bridge.bridges.sites = ((0, 0), (4, 4))
    assert read_locations(bridge) == {"0.attn.act_in": 0}
    with pytest.raises(TapError, match="not at a bridged read location"):
        read_node(bridge, "1.mlp.act_in:0")


def test_a_channel_whose_gain_is_zero_is_refused():
    bridge = random_bridge()
    with torch.no_grad():
        bridge.sparse.blocks[0].attn.read.norm.weight[2] = 0
    with pytest.raises(TapError, match="gain or a decoder row of 0"):
        read_direction(bridge, read_node(bridge, "0.attn.act_in:2"))
    assert bool(read_directions(bridge, 0).isfinite().all())


def test_too_few_active_nodes_for_a_null_band_are_an_error():
    bridge, prompts = random_bridge(), Prompts.of(known_task(2).split("test"))
    with pytest.raises(ConfigError, match="null band needs 100 other active nodes"):
        controls.null_directions(
            bridge, read_node(bridge, "0.attn.act_in:0"), prompts, n_row=100, generator=torch.Generator()
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strengths": (0.0, float("nan"), 1.0)}, "strength nan is not a finite number"),
        ({"strengths": (0.0, 0.5)}, "must hold 0 .* and 1"),
        ({"strengths": (0.0, 1.0, 0.5)}, "strengths 0 1 0.5 must rise"),
        ({"n_null_row": 50}, "n_null_row is 50, expected 100 or more"),
    ],
)
def test_settings_that_no_experiment_can_have(settings, message):
    with pytest.raises(ConfigError, match=message):
        SteerConfig(**settings)
