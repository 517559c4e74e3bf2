"""Tests of the scores: losses worked by hand, and calibrations against a plain fit."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_circuits.configs import ModelConfig
from sparse_circuits.model import Transformer
from sparse_circuits.scoring import (
    CHANCE,
    MAX_SCALE,
    MIN_SCALE,
    Calibration,
    accuracy,
    all_logit_differences,
    calibrated,
    fit_calibration,
    fit_calibrations,
    logit_difference,
    match_loss,
    pair_loss,
    paired_auroc,
    r_squared,
    task_loss,
)
from sparse_circuits.tasks.pairs import Pairs


def informative(seed: int, *, strength: float = 1.0, shift: float = 0.0, n_pair: int = 80) -> Tensor:
    """Differences that tell the sides apart with errors."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.tensor([0.7, -0.7])
    return strength * (side + torch.randn(n_pair, 2, generator=generator)) + shift


def plain_fit(difference: Tensor, *, may_shift: bool) -> tuple[float, float]:
    """Fit scale and shift by torch's LBFGS, without limits."""
    parameter = torch.tensor([1.0, 0.0], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameter], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task_loss(difference.double() * parameter[0] + parameter[1] * may_shift)
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    scale, shift = parameter.detach().tolist()
    return scale, shift


def test_a_model_that_cannot_tell_has_a_loss_of_ln_2() -> None:
    assert math.log(2) == CHANCE
    assert float(task_loss(torch.zeros(5, 2))) == pytest.approx(CHANCE)


def test_the_loss_of_one_pair_worked_by_hand() -> None:
    # Side 0 is right with odds 3 : 1, side 1 (answer 1) with odds 1 : 4: losses ln(4/3) and ln 5.
    difference = torch.tensor([[math.log(3), math.log(4)]])
    expected = (math.log(4 / 3) + math.log(5)) / 2
    assert float(pair_loss(difference)) == pytest.approx(expected)
    assert float(task_loss(torch.cat((difference, torch.zeros(1, 2))))) == pytest.approx((expected + CHANCE) / 2)


def test_the_loss_is_the_binary_cross_entropy_over_the_two_answers() -> None:
    logits = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(0))  # (pair, side, answer)
    target = torch.tensor([0, 1]).expand(6, 2)
    expected = F.cross_entropy(logits.flatten(0, 1), target.flatten())
    torch.testing.assert_close(task_loss(logits[..., 0] - logits[..., 1]), expected)


def test_accuracy_gives_half_a_point_for_a_tie() -> None:
    # Right, right; a tie, wrong; wrong, a tie.
    difference = torch.tensor([[2.0, -1.0], [0.0, 3.0], [-1.0, 0.0]])
    assert float(accuracy(difference)) == pytest.approx((2 + 0.5 + 0.5) / 6)


def test_paired_auroc_by_hand() -> None:
    # Side 0 above its own side 1, a tie, below; that all are positive does not matter.
    difference = torch.tensor([[5.0, 1.0], [2.0, 2.0], [1.0, 3.0], [4.0, 3.5]])
    assert float(paired_auroc(difference)) == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    torch.testing.assert_close(paired_auroc(difference), paired_auroc(difference * 3 + 7))
    torch.testing.assert_close(paired_auroc(difference.flip(-1)), 1 - paired_auroc(difference))


def test_scores_of_runs_side_by_side_are_those_of_each_alone() -> None:
    runs = torch.stack([informative(seed) for seed in range(3)])
    for score in (task_loss, accuracy, paired_auroc):
        torch.testing.assert_close(score(runs), torch.stack([score(run) for run in runs]))


@pytest.mark.parametrize("may_shift", [True, False])
@pytest.mark.parametrize(("strength", "shift"), [(1.0, 0.0), (0.5, 0.7), (5.0, -4.0), (30.0, 10.0)])
@pytest.mark.parametrize("seed", range(3))
def test_a_calibration_agrees_with_a_plain_fit(seed: int, strength: float, shift: float, may_shift: bool) -> None:
    difference = informative(seed, strength=strength, shift=shift)
    scale_expected, shift_expected = plain_fit(difference, may_shift=may_shift)
    assert MIN_SCALE < scale_expected < MAX_SCALE
    found = fit_calibration(difference, may_shift=may_shift)
    expected = task_loss(difference * scale_expected + shift_expected * may_shift)
    assert float(task_loss(found(difference))) == pytest.approx(float(expected), abs=1e-5)
    assert found.scale == pytest.approx(scale_expected, rel=5e-3, abs=1e-3)
    assert found.shift == pytest.approx(shift_expected * may_shift, rel=5e-3, abs=1e-2)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), log_strength=st.floats(-2, 2), shift=st.floats(-5, 5), flips=st.booleans())
def test_a_calibration_never_makes_the_loss_worse(seed: int, log_strength: float, shift: float, flips: bool) -> None:
    difference = informative(seed, strength=10**log_strength * (-1 if flips else 1), shift=shift, n_pair=24)
    for may_shift in (True, False):
        found = fit_calibration(difference, may_shift=may_shift)
        assert MIN_SCALE <= found.scale <= MAX_SCALE
        assert float(task_loss(found(difference))) <= float(task_loss(difference)) + 1e-5
        assert float(task_loss(found(difference))) <= CHANCE + max(1e-3, MIN_SCALE * float(difference.abs().max()))


@pytest.mark.parametrize("seed", range(3))
def test_flipped_answers_are_not_turned_round(seed: int) -> None:
    difference = -informative(seed, strength=2.0)
    for may_shift in (True, False):
        found = fit_calibration(difference, may_shift=may_shift)
        assert found.scale == pytest.approx(MIN_SCALE)
        assert float(task_loss(found(difference))) == pytest.approx(CHANCE, abs=5e-3)


def test_answers_without_an_error_stop_at_the_largest_scale() -> None:
    difference = torch.tensor([[0.1, -0.1]]).repeat(20, 1)
    found = fit_calibration(difference, may_shift=True)
    assert found.scale == pytest.approx(MAX_SCALE)
    assert found.shift == pytest.approx(0, abs=1e-5)


def test_the_shift_stays_zero_where_there_may_be_none() -> None:
    for seed in range(5):
        assert fit_calibration(informative(seed, shift=3.0), may_shift=False).shift == 0


def test_the_shift_undoes_a_constant_that_was_added() -> None:
    difference = informative(0)
    plain, shifted = (fit_calibration(difference + constant, may_shift=True) for constant in (0.0, 2.0))
    assert shifted.scale == pytest.approx(plain.scale, rel=1e-3)
    assert shifted.shift == pytest.approx(plain.shift - 2 * plain.scale, abs=5e-3)


@pytest.mark.parametrize(("strength", "constant"), [(1.0, 20.0), (1.0, 100.0), (30.0, 100.0)])
def test_a_constant_of_any_size_is_undone(strength: float, constant: float) -> None:
    difference = informative(0, strength=strength)
    near, far = (fit_calibration(d, may_shift=True) for d in (difference, difference + constant))
    assert float(task_loss(far(difference + constant))) == pytest.approx(float(task_loss(near(difference))), abs=1e-4)


def test_each_run_is_calibrated_as_if_it_were_alone() -> None:
    runs = torch.stack([informative(seed, strength=1.0 + seed) for seed in range(4)])
    together = fit_calibrations(runs, may_shift=True)
    alone = torch.cat([fit_calibrations(run[None], may_shift=True) for run in runs])
    torch.testing.assert_close(together, alone)
    one = calibrated(runs, together)[2]
    torch.testing.assert_close(one, Calibration(scale=float(alone[2, 0]), shift=float(alone[2, 1]))(runs[2]))


CONFIG = ModelConfig(n_vocab=30, n_ctx=12, n_layer=2, d_model=16, n_head=2, d_head=8, d_mlp=24)


@pytest.fixture(scope="module")
def model() -> Transformer:
    generator, model = torch.Generator().manual_seed(0), Transformer(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model.eval()


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    generator = torch.Generator().manual_seed(1)
    return Pairs(
        tokens=torch.randint(30, (7, 2, 12), generator=generator),
        length=torch.tensor([3, 12, 7, 1, 9, 12, 5]),
        answers=torch.randint(30, (7, 2), generator=generator),
        templates=("t",) * 7,
        levels=("i",) * 7,
    )


def test_the_difference_is_that_of_the_full_logits_at_the_last_position(model: Transformer, pairs: Pairs) -> None:
    with torch.no_grad():
        found = logit_difference(model, pairs)
        assert found.shape == (1, 7, 2)
        for i in range(len(pairs)):
            for side in range(2):
                logits = model(pairs.tokens[i, side, : int(pairs.length[i])][None])[0, -1]
                expected = logits[pairs.answers[i, 0]] - logits[pairs.answers[i, 1]]
                torch.testing.assert_close(found[0, i, side], expected, rtol=1e-5, atol=1e-5)


def test_runs_without_edits_all_give_the_numbers_of_one(model: Transformer, pairs: Pairs) -> None:
    with torch.no_grad():
        alone, together = logit_difference(model, pairs), logit_difference(model, pairs, n_run=3)
    assert together.shape == (3, 7, 2)
    for run in together:
        torch.testing.assert_close(run, alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n_run", "n_row"), [(1, 2), (1, 5), (2, 8), (3, 1), (1, 512)])
def test_batches_of_any_size_give_the_same_differences(
    n_run: int, n_row: int, model: Transformer, pairs: Pairs
) -> None:
    expected = logit_difference(model, pairs, n_run=n_run).detach()
    found = all_logit_differences(model, pairs, n_run=n_run, n_row=n_row)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_loss_against_the_model_is_zero_only_at_its_own_answers() -> None:
    wanted = torch.tensor([[2.0, -1.0], [0.0, 0.5]])
    assert float(match_loss(wanted, wanted)) == pytest.approx(0, abs=1e-7)
    p, q = torch.sigmoid(wanted), torch.sigmoid(wanted + 1)
    by_hand = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert float(match_loss(wanted + 1, wanted)) == pytest.approx(float(by_hand), rel=1e-5)
    assert match_loss(torch.stack((wanted, wanted + 1)), wanted).shape == (2,)


def test_r_squared_is_one_for_any_line_and_zero_for_what_is_unrelated() -> None:
    model = torch.tensor([[1.0, -1.0], [2.0, 0.0]])
    assert r_squared(3 * model - 5, model) == pytest.approx(1)
    assert r_squared(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([[1.0, -1.0], [0.0, 0.0]])) == pytest.approx(
        0
    )
    assert r_squared(torch.ones(2, 2), model) == 0.0
