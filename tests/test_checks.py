"""Each check of a circuit: worked by hand, against a plain version, and on circuits that are known."""

import dataclasses
import math

import pytest
import torch
from known_circuits import FAKES, TRUE, A, circuit_of

from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import VerifyConfig
from sparse_circuits.errors import ConfigError, TaskError
from sparse_circuits.faithfulness import verify
from sparse_circuits.faithfulness.ablations import ablations, other_prompts
from sparse_circuits.faithfulness.agreement import compare
from sparse_circuits.faithfulness.attention import attention_patterns, divergence, uniformity
from sparse_circuits.faithfulness.benchmark import area, benchmark
from sparse_circuits.faithfulness.binarisation import binarisation, two_groups
from sparse_circuits.faithfulness.hypothesis import interchange_interventions, load_variable
from sparse_circuits.faithfulness.interchange import correlations, interchange
from sparse_circuits.faithfulness.report import Report
from sparse_circuits.faithfulness.selectivity import selectivity
from sparse_circuits.faithfulness.stored import from_json, to_json
from sparse_circuits.faithfulness.subject import Subject
from sparse_circuits.faithfulness.subsets import adversarial_subset, projected, random_subsets, subset_ablation
from sparse_circuits.faithfulness.verdict import judge
from sparse_circuits.scoring import CHANCE, all_logit_differences, calibrated, fit_calibrations, pair_loss, task_loss
from sparse_circuits.taps import replacing
from sparse_circuits.tasks.pairs import Pairs

N_PAIR = 24


def subject_of(build, seed: int = 0) -> Subject:
    circuit, task = circuit_of(build, seed)
    return Subject(circuit=circuit, task=task, n_pair=N_PAIR)


@pytest.fixture(scope="module")
def copier() -> Subject:
    return subject_of(TRUE["quote copier"])


@pytest.fixture(scope="module")
def whole(copier: Subject) -> Subject:
    """The circuit of all nodes: the model itself."""
    keep = torch.ones_like(copier.circuit.keep)
    circuit = Circuit.of_nodes(copier.circuit.model, keep, values=copier.circuit.values, task=copier.circuit.task)
    return dataclasses.replace(copier, circuit=circuit)


def model_loss(subject: Subject) -> float:
    """Return the model's loss on the part of test, calibrated on that of select."""
    model = subject.circuit.model
    fitted = fit_calibrations(all_logit_differences(model, subject.select), may_shift=True)
    return float(task_loss(calibrated(all_logit_differences(model, subject.test), fitted))[0])


def test_the_whole_model_passes_every_swap_and_ablation_as_itself(whole: Subject) -> None:
    expected = pytest.approx(model_loss(whole), abs=1e-6)
    for readings in ablations(whole).losses.values():
        assert [found.value for found in readings.values()] == [expected] * len(readings)
    swapped = interchange(whole)
    assert swapped.unexplained == 0
    assert swapped.loss_worst == swapped.loss_half.value == expected
    roles = [role for role in swapped.roles.values() if role is not None]
    assert roles == [pytest.approx(1)] * len(roles)
    assert len(roles) > 20
    assert swapped.share_changed == 0
    assert attention_patterns(whole).divergence_highest == pytest.approx(0, abs=1e-6)
    found = benchmark(whole)
    assert found.faithfulness is not None
    assert found.faithfulness.value == pytest.approx(1)
    assert found.curve[-1] == pytest.approx(1)


def test_zero_and_task_mean_are_what_circuits_with_such_values_lose(copier: Subject) -> None:
    found = ablations(copier)
    assert found.left_out.keys() == {"mean"}  # the model comes from no run folder
    other = dataclasses.replace(copier.circuit, values=torch.zeros_like(copier.circuit.values))
    parts = [other.logit_difference(pairs, calibrated=False)[None] for pairs in (copier.select, copier.test)]
    expected = task_loss(calibrated(parts[1], fit_calibrations(parts[0], may_shift=True)))
    assert found.losses["zero"]["ordinary"].value == pytest.approx(float(expected), abs=1e-6)
    assert "sealed" not in found.losses["resample"]


def test_other_prompts_are_others_at_least_as_long() -> None:
    length = torch.tensor([3, 5, 4, 5, 3, 6])
    for seed in range(20):
        other = other_prompts(length, torch.Generator().manual_seed(seed))
        assert (length[other] >= length).all()
        assert [i for i in range(6) if other[i] == i] == [5]  # the longest alone has no other


def test_random_subsets_have_their_share_of_the_outside_and_none_of_the_circuit() -> None:
    outside = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.8
    gone = random_subsets(outside, 0.25, 30, torch.Generator().manual_seed(1))
    assert set(gone.sum(1).tolist()) == {round(0.25 * int(outside.sum()))}
    assert not (gone & ~outside).any()
    assert len({tuple(row.tolist()) for row in gone}) == 30


@pytest.mark.parametrize("mean", [0.1, 0.5, 0.95])
def test_the_projection_is_the_nearest_point_of_the_box_with_that_mean(mean: float) -> None:
    x = torch.randn(40, generator=torch.Generator().manual_seed(0))
    found = projected(x, mean)
    assert float(found.mean()) == pytest.approx(mean, abs=1e-5)
    assert ((found >= 0) & (found <= 1)).all()
    shift = (found - x)[(found > 0) & (found < 1)]
    assert torch.allclose(shift, shift[:1].expand_as(shift), atol=1e-5)  # the conditions of Karush, Kuhn and Tucker
    assert (x[found == 0] + shift[0] <= 1e-5).all()
    assert (x[found == 1] + shift[0] >= 1 - 1e-5).all()


def test_a_subset_is_the_model_with_those_nodes_ablated(copier: Subject) -> None:
    keep = ~random_subsets(~copier.circuit.keep, 0.5, 2, torch.Generator().manual_seed(3))
    found = copier.masked(keep)
    for mask, difference in zip(keep, found, strict=True):
        with replacing(copier.circuit.model, copier.circuit.space.masks(mask[None], copier.circuit.values)):
            parts = [all_logit_differences(copier.circuit.model, pairs) for pairs in (copier.select, copier.test)]
        expected = calibrated(parts[1], fit_calibrations(parts[0], may_shift=True))[0]
        torch.testing.assert_close(pair_loss(difference), pair_loss(expected), rtol=1e-4, atol=1e-6)


def test_the_adversary_finds_what_random_subsets_miss() -> None:
    subject = subject_of(FAKES["lucky cancellation"][0])
    config = VerifyConfig(n_pair=N_PAIR, n_subset=6, shares=(0.05,), n_adversary_step=8)
    chosen = adversarial_subset(subject, 0.05, config)
    assert int(chosen.sum()) == round(0.05 * int((~subject.circuit.keep).sum()))
    assert not (chosen & subject.circuit.keep).any()
    (point,) = subset_ablation(subject, config).points
    assert point.adversary is not None
    assert point.adversary.value > 0.65
    assert point.adversary.value >= point.loss_mean.value


def test_correlations_by_hand() -> None:
    one = torch.tensor([[1.0, 0.0, 2.0, 5.0], [2.0, 0.0, 1.0, 5.0], [3.0, 0.0, 0.0, 5.0]])
    other = torch.tensor([[2.0, 1.0, 0.0, 7.0], [4.0, 2.0, 1.0, 7.0], [6.0, 3.0, 2.0, 7.0]])
    # The same up to scale; constant in the circuit alone; turned round; constant in both.
    assert correlations(one, other) == [pytest.approx(1), 0.0, pytest.approx(-1), None]


def test_divergence_is_none_of_the_same_and_one_bit_of_the_disjoint() -> None:
    here, there = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    nowhere = torch.zeros(2)  # all to the sink
    assert float(divergence(here, here)) == 0
    assert float(divergence(here, there)) == pytest.approx(1)
    assert float(divergence(here, nowhere)) == pytest.approx(1)
    # Of (1, 0) and (1/2, 1/2): H(3/4, 1/4) − H(1/2, 1/2) / 2.
    expected = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) - 0.5
    assert float(divergence(here, torch.tensor([0.5, 0.5]))) == pytest.approx(expected, abs=1e-6)


def test_uniformity_is_one_of_a_mean_and_zero_of_a_copy() -> None:
    pattern = torch.zeros(3, 3)
    pattern[0, 0], pattern[1, :2], pattern[2, 1] = 1, 0.2, 1  # three fifths of the second go to the sink
    assert uniformity(pattern).tolist() == [0, pytest.approx(1), 0]


def test_agreement_by_hand() -> None:
    model = torch.tensor([[2.0, -2.0], [-1.0, -3.0], [1.0, 1.0]])  # wrong on side 0 of the second, side 1 of the third
    own = torch.tensor([[1.0, -1.0], [-2.0, -1.0], [1.0, -1.0]])
    pairs = Pairs(
        tokens=torch.zeros(3, 2, 1, dtype=torch.long),
        length=torch.ones(3, dtype=torch.long),
        answers=torch.zeros(3, 2, dtype=torch.long),
        templates=("a", "b", "c"),
        levels=("i",) * 3,
    )
    found = compare(own, model, pairs)
    assert (found.n_model_error, found.error_shared, found.error_added) == (2, 0.5, 0.0)
    assert found.same_answer.value == pytest.approx(5 / 6)
    assert compare(3 * model - 1, model, pairs).r_squared == pytest.approx(1)


def test_two_groups_by_hand() -> None:
    threshold, low, high, share = two_groups(torch.tensor([0.0, 10.0, 1.0, 11.0]))
    assert (threshold, low, high) == (5.5, 0.5, 10.5)
    assert share == pytest.approx(100 / 101)  # 4 · 25 between, 4 · 0.25 within
    # With weight on the upper two the best split is between them.
    assert two_groups(torch.tensor([0.0, 10.0, 11.0]), torch.tensor([1e-9, 1.0, 1.0]))[0] == 10.5


def test_a_circuit_of_bits_keeps_its_loss_with_two_values_a_node(copier: Subject) -> None:
    found = binarisation(copier, n_step=30)
    assert found.loss.value < 0.05
    assert found.n_step_node + found.n_constant == copier.circuit.n_node


def test_the_area_under_a_line_is_that_of_its_triangle_and_box() -> None:
    assert area((0.0, 1.0, 3.0), (0.0, 1.0, 1.0)) == 2.5


def test_circuits_are_needed_for_their_own_task_alone() -> None:
    one, other = subject_of(TRUE["backed up"]), subject_of(TRUE["backed up"])
    half, _ = circuit_of(FAKES["half of a backup"][0], 0)
    named = {"marked": one.circuit, "half": half}
    found = selectivity(
        named, {"marked": one.task, "same": dataclasses.replace(other.task, name="same")}, n_pair=N_PAIR
    )
    assert found.losses["none"]["marked"].value < 0.01
    assert found.losses["marked"]["marked"].value == pytest.approx(CHANCE, abs=1e-3)
    assert found.losses["half"]["marked"].value < 0.05
    assert found.others_hurt("marked") == pytest.approx(1, abs=1e-6)  # the other task is the same
    assert found.shared["marked"]["half"] == 0.5
    assert found.corpus_rise("marked") is None


def first_token(prompt: str) -> str:
    return "A" if prompt.startswith(f"{A} ") else "B"


def test_the_circuit_holds_the_variable_that_decides_the_answer(copier: Subject) -> None:
    found = interchange_interventions(copier, first_token)
    assert found.accuracy.value == 1
    assert found.accuracy_elsewhere == found.accuracy_without == 0
    assert found.n_value == 2
    alone = interchange_interventions(copier, first_token, ["0.attn.q:0"])
    assert alone.accuracy.value == 0  # where it looks is not what it finds


def nothing(prompt: str) -> str:
    return prompt[:0]


def row_of(prompt: str) -> list[int]:
    return [1, 2]


def broken(prompt: str) -> int:
    return int(prompt.split()[0]) // 0


def fillers(prompt: str) -> int:
    return prompt.count("2")


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (nothing, "gives '' for prompts with different right answers: pair 0, side 0, and pair 0, side 1"),
        (row_of, r"gave a list of 2, expected one number or word, at pair 0, side 0 of test: '0 "),
        (broken, "raised ZeroDivisionError.*at pair 0, side 0"),
        (fillers, "for prompts with different right answers"),
    ],
)
def test_a_hypothesis_that_says_nothing_is_refused_with_its_prompt(copier: Subject, variable, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        interchange_interventions(copier, variable)


def test_a_hypothesis_is_loaded_from_a_file(tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def size(prompt):\n    return len(prompt)\n")
    assert load_variable(f"{file}:size")("four") == 4
    for reference, message in ((f"{file}:other", "no function 'other'"), ("size", "names no Python file")):
        with pytest.raises(TaskError, match=message):
            load_variable(reference)
    file.write_text("import nothing_of_the_kind\n")
    with pytest.raises(TaskError, match="can't be run: ModuleNotFoundError"):
        load_variable(f"{file}:size")


@pytest.mark.parametrize(("value", "status"), [(0.1, "passed"), (0.3, "weak"), (0.6, "failed"), (None, "failed")])
def test_a_number_is_set_against_its_limits_either_way_round(value: float | None, status: str) -> None:
    assert judge("low is good", "", value, 0.2, 0.5, "").status == status
    turned = None if value is None else -value
    assert judge("high is good", "", turned, -0.2, -0.5, "").status == status


SMALL = VerifyConfig(checks=("subsets", "attention"), n_pair=8, n_set=2, n_subset=2, shares=(0.5,), n_adversary_step=1)


def test_finished_checks_outlast_an_interruption(copier: Subject, tmp_path) -> None:
    made: list[str] = []

    def stop_at_attention(step: str) -> None:
        made.append(step)
        if step == "attention":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(copier.circuit, copier.task, SMALL, folder=tmp_path, on_step=stop_at_attention)
    assert "subsets" in made
    again: list[str] = []
    report = verify(copier.circuit, copier.task, SMALL, folder=tmp_path, on_step=again.append)
    assert again == ["attention"]
    (tmp_path / "checks" / "subsets.json").write_text("{")  # a broken file is made again, and no other
    other: list[str] = []
    same = verify(copier.circuit, copier.task, SMALL, folder=tmp_path, on_step=other.append)
    assert other == ["subsets"]
    assert dataclasses.replace(same, seconds={}) == dataclasses.replace(report, seconds={})
    assert dataclasses.replace(Report.load(tmp_path / "report.json"), seconds={}) == dataclasses.replace(
        same, seconds={}
    )


def test_another_circuit_or_setting_is_checked_anew(copier: Subject, tmp_path) -> None:
    verify(copier.circuit, copier.task, SMALL, folder=tmp_path)
    again: list[str] = []
    verify(copier.circuit, copier.task, SMALL, folder=tmp_path, n_subset=3, on_step=again.append)
    assert again == ["subsets"]
    louder = dataclasses.replace(copier.circuit, calibration=dataclasses.replace(copier.circuit.calibration, scale=2.0))
    other: list[str] = []
    verify(louder, copier.task, SMALL, folder=tmp_path, on_step=other.append)
    assert {"sufficiency", "necessity", "attention"} <= set(other)


def test_results_are_the_same_after_json(copier: Subject) -> None:
    found = interchange(copier)
    assert from_json(type(found), to_json(found)) == found


def test_what_was_not_made_is_said(copier: Subject) -> None:
    report = verify(copier.circuit, copier.task, SMALL, checks=("controls", "selectivity"))
    assert "give the circuit's folder or `cache`" in report.left_out["controls"]
    assert "no other circuits" in report.left_out["selectivity"]
    assert report.left_out["attention"] == "not asked for"
    assert "request only" in report.left_out["uniqueness"]
    assert report.to_json()["shows"]["necessity"].startswith("A loss near ln 2")


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (
        {"shares": (1.0,)},
        {"shares": ()},
        {"n_set": 0},
        {"checks": ("sufficency",)},
        {"n_adversary_step": -1},
    ):
        with pytest.raises(ConfigError):
            VerifyConfig(**wrong)
