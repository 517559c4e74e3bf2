"""Predictions: on a model that counts by averaging, the circuit fails at the length at which the model does."""

import json
from pathlib import Path

import pytest
import torch
from known_circuits import END, FILLER, TRUE, A, X, Y, circuit_of

import sparse_circuits as sc
from sparse_circuits.errors import TaskError
from sparse_circuits.faithfulness.predictions import family_from_file, predict
from sparse_circuits.tasks.pairs import Pairs
from sparse_circuits.viewer.families import draw_families


def of_length(n: int) -> Pairs:
    """Two marks or one, then fillers, in ten prompts that differ in name alone."""
    tokens = torch.full((10, 2, n), FILLER)
    tokens[:, :, 0], tokens[:, 0, 1], tokens[:, :, -1] = A, A, END
    return Pairs(
        tokens=tokens,
        length=torch.full((10,), n),
        answers=torch.tensor([[X, Y]]).repeat(10, 1),
        templates=tuple(f"{i}" for i in range(10)),
        levels=("i",) * 10,
    )


def test_an_average_that_dilutes_fails_where_the_circuit_says() -> None:
    circuit, _ = circuit_of(TRUE["depth counter"], 0)
    family = {float(n): of_length(n) for n in (4, 5, 6, 7, 9, 12, 20)}
    (found,) = predict(circuit, {"length": family}).families
    # Two marks of n must beat the threshold that lies between 1/4 and 2/6.
    assert found.predicted_failure == found.measured_failure
    assert found.predicted_failure in (7.0, 9.0)
    last = found.points[-1]
    assert last.measured.accuracy[0].value == last.predicted.accuracy[0].value == 0  # two are taken for one
    assert last.measured.accuracy[1].value == 1


def test_a_fit_of_the_dilution_meets_zero_where_a_line_in_one_over_x_does() -> None:
    from sparse_circuits.faithfulness.predictions import _diluted_failure

    points = [(float(x), 12 / x - 2) for x in (1, 2, 3, 4, 6, 8)]
    assert _diluted_failure(points) == pytest.approx(6)
    assert _diluted_failure([(int(x), d) for x, d in points if x == int(x)]) == pytest.approx(6)
    assert _diluted_failure([(x, -d) for x, d in points]) is None  # it rises
    assert _diluted_failure([("a", 1.0), ("b", 2.0)]) is None  # words have no length


def test_members_with_too_few_pairs_are_left_out_and_said() -> None:
    circuit, _ = circuit_of(TRUE["depth counter"], 0)
    family = {"few": of_length(5).take(torch.arange(3)), "enough": of_length(5)}
    (found,) = predict(circuit, {"words": family}).families
    assert (found.left_out, [point.x for point in found.points]) == (["few"], ["enough"])
    with pytest.raises(TaskError, match="no member has 8 pairs"):
        predict(circuit, {"words": {"few": family["few"]}})


def test_a_task_without_families_asks_for_some() -> None:
    circuit, _ = circuit_of(TRUE["quote copier"], 0)
    with pytest.raises(TaskError, match="no families of prompts for marked; give your own"):
        predict(circuit)


def test_a_picture_has_a_panel_for_each_side_and_what_was_measured() -> None:
    circuit, _ = circuit_of(TRUE["depth counter"], 0)
    found = predict(circuit, {"length <": {float(n): of_length(n) for n in (4, 12)}})
    picture = draw_families(found.to_json())
    assert picture.count("share right on side") == 2
    assert "length &lt;" in picture
    assert picture.count("<circle") == 2 * 2 * 2
    assert "model, measured: 0.000" in picture
    assert "predicted" in str(found)


def test_a_family_is_read_from_a_file_by_its_templates(tmp_path: Path) -> None:
    tokenizer = sc.load(sc.example()).tokenizer
    assert tokenizer is not None
    row = {"prompt_a": 'log("one', "answer_a": '")\n', "prompt_b": "log('one", "answer_b": "')\n"}
    rows = [row | {"template": x} for x in ("10", "2")]
    file = tmp_path / "quotes.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert list(family_from_file(file, tokenizer, max_token=64)) == [2.0, 10.0]
    file.write_text(json.dumps(rows[0] | {"template": "long"}) + "\n" + json.dumps(rows[1]) + "\n")
    assert list(family_from_file(file, tokenizer, max_token=64)) == ["long", "2"]
    file.write_text("".join(json.dumps(row | {"template": x}) + "\n" for x in ("1", "1.0")))
    with pytest.raises(TaskError, match=r"the templates '1' and '1\.0' are the same number"):
        family_from_file(file, tokenizer, max_token=64)
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(TaskError, match="line 1: a family needs the column template"):
        family_from_file(file, tokenizer, max_token=64)
