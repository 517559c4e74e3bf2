"""What passed, what is weak and what failed: one row a check, its limits beside it, never one grade."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from sparse_circuits.scoring import CHANCE
from sparse_circuits.tables import aligned

if TYPE_CHECKING:
    from sparse_circuits.faithfulness.report import Report

Status = Literal["passed", "weak", "failed"]

HALF, MOST = 0.5 * CHANCE, 0.75 * CHANCE
"""Losses up to which an answer is there (half of chance), and above which it is lost (three quarters of chance)."""

THERE = "half of chance: the answer is still there; three quarters: it is nearly lost"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's number against its limits."""

    check: str
    """Name of the check."""

    measure: str
    """What the number is."""

    value: float | None
    """The number; None where it can't be formed, which is a failure that `measure` explains."""

    passed_at: float
    """Limit of passing."""

    failed_at: float | None
    """Limit of failing; between the two a check is weak. Above the other limit if low values are good, else below; None
    where low values are good and none fails."""

    status: Status
    """Passed, weak or failed."""

    why: str
    """Why these limits."""


def judge(
    check: str, measure: str, value: float | None, passed_at: float, failed_at: float | None, why: str
) -> Finding:
    """Set a number against its limits: at `passed_at` or better it passes, beyond `failed_at` it fails."""
    status: Status = "failed"
    if value is not None:
        sign = 1 if failed_at is None or passed_at <= failed_at else -1
        is_weak = failed_at is None or sign * value <= sign * failed_at
        status = "passed" if sign * value <= sign * passed_at else "weak" if is_weak else "failed"
    return Finding(
        check=check, measure=measure, value=value, passed_at=passed_at, failed_at=failed_at, status=status, why=why
    )


def verdict(report: "Report", *, target_loss: float) -> list[Finding]:
    """Return the findings of a report, in the order of its checks; checks that were not made have no row.

    All limits are ours: round numbers, the same for every task and model. But for those of `roles`, whose measure a
    planted fake had passed, they were set before a trained circuit was measured against them.
    """
    return [
        *_is_it_enough(report, target_loss),
        *_is_it_needed(report),
        *_is_it_the_same(report),
        *_is_it_special(report),
    ]


def _is_it_enough(report: "Report", target_loss: float) -> Iterator[Finding]:
    test = report.sufficiency["test"]
    yield judge(
        "task", "loss of the full model on test", test.model.loss.value, HALF, MOST,
        "a circuit for what the model does not do explains nothing; " + THERE,
    )  # fmt: skip
    yield judge(
        "sufficiency", "loss of the circuit on test", test.circuit.loss.value, target_loss, HALF,
        "the target that it was cut for; half of chance",
    )  # fmt: skip
    if "test ii" in report.sufficiency:
        found = report.sufficiency["test ii"].circuit.loss.value
        yield judge("new templates", "loss of the circuit on level ii", found, HALF, MOST, THERE)
    yield judge("sealed", "loss sealed, recalibrated", test.sealed_recalibrated.loss.value, HALF, MOST, THERE)
    if report.ablations is not None:
        found = report.ablations.worst_ordinary
        yield judge("other ablations", "highest loss of zero, mean, task mean, resample", found, HALF, MOST, THERE)
    if report.subsets is not None:
        found = report.subsets.loss_mean_highest
        yield judge("random subsets", "highest mean loss of all shares ablated", found, HALF, MOST, THERE)
        adversary = report.subsets.adversary_highest
        if adversary is not None:
            why = "half of chance; chance: the adversary takes the answer away altogether"
            yield judge("adversarial subset", "highest loss of all shares ablated", adversary, HALF, CHANCE, why)


def _is_it_needed(report: "Report") -> Iterator[Finding]:
    need, model_loss = report.necessity, report.random_sets.model_loss
    yield judge(
        "necessity", "loss of the model without it", need.loss.value, MOST, HALF, "the same limits, turned round"
    )
    yield judge(
        "information left", "distance of the AUROC without it from one half", abs(need.auroc - 0.5), 0.1, 0.25,
        "0.6 is what the pruner aims at; 0.75 ranks three pairs of four one way",
    )  # fmt: skip
    rise = need.loss.value - model_loss
    for check, sets in (("random sets", report.random_sets), ("strong sets", report.strong_sets)):
        if sets is not None:
            share = (sets.loss_mean - sets.model_loss) / rise if rise > 0 else None
            yield judge(
                check, "mean rise without a set alike, over that without the circuit", share, 0.2, 0.5,
                "a fifth; half: any such nodes would do half as well",
            )  # fmt: skip
    if report.selectivity is not None:
        others = report.selectivity.others_hurt(report.task)
        if others is not None:
            yield judge(
                "selectivity", "mean rise of other tasks without it, over its own", others, 0.25, 0.75,
                "a quarter; three quarters: it is nearly as needed for other tasks",
            )  # fmt: skip
        text = report.selectivity.corpus_rise(report.task)
        if text is not None:
            why = "a tenth of a nat a token; half a nat: the model is broken without it"
            yield judge("text", "rise of the loss on held-out text without it", text, 0.1, 0.5, why)


def _is_it_the_same(report: "Report") -> Iterator[Finding]:
    swap = report.interchange
    if swap is not None:
        yield judge("interchange", "higher loss with all activations swapped", swap.loss_worst, HALF, MOST, THERE)
        why = "half; 1: no closer to the model than a constant"
        yield judge("same activations", "unexplained variance of its nodes", swap.unexplained, 0.5, 1.0, why)
        if swap.share_changed is not None:
            why = "one in ten; a third: another computation with the same nodes"
            measure = "share of its nodes with a correlation below one half with the model's"
            yield judge("roles", measure, swap.share_changed, 0.1, 1 / 3, why)
    if report.attention is not None and report.attention.heads:
        share = len(report.attention.turned_uniform) / len(report.attention.heads)
        yield judge("attention", "share of heads turned uniform", share, 0.0, 0.5, "none; half of them")
    if report.agreement is not None:
        splits = report.agreement.splits
        why = "half and a quarter of the variance"
        yield judge("agreement", "R² of logit differences on test", splits["test"].r_squared, 0.5, 0.25, why)
        for split in ("hard", "longer"):
            if split in splits:
                same, why = splits[split].same_answer.value, "nine of ten; three of four, half is chance"
                yield judge(f"agreement, {split}", "share of prompts answered as the model does", same, 0.9, 0.75, why)
    if report.benchmark is not None:
        f = report.benchmark.faithfulness
        off = None if f is None else abs(1 - f.value)
        why = "answers half or one and a half times as large; nothing, or twice as large"
        yield judge("faithfulness", "distance of f from 1; none if the model beats nothing", off, 0.5, 1.0, why)


def _is_it_special(report: "Report") -> Iterator[Finding]:
    yield judge(
        "no table", "accuracy with every node ablated, above one half",
        report.card.all_ablated.accuracy - 0.5, 0.05, 0.25,
        "a task right more than 55 % of the time is answered without any node; 75 %",
    )  # fmt: skip
    constant = report.n_node_constant / max(report.n_node, 1)
    yield judge(
        "varying nodes", "share of its nodes that never change", constant, 0.5, 0.9, "half; nine of ten: biases"
    )
    if report.binarisation is not None:
        loss = report.binarisation.loss.value
        why = "half of chance; a node may carry a quantity, so this never fails"
        yield judge("two values", "loss with every node a step between two values", loss, HALF, None, why)
    if report.controls is not None and report.controls.ratio is not None:
        ratio = report.controls.ratio.value
        yield judge("controls", "size of controls over its own", ratio, 2.0, 1.0, "twice; no larger than the circuit")
    if report.uniqueness is not None:
        n = float(report.uniqueness.n_disjoint)
        yield judge("uniqueness", "other circuits without any of its nodes", n, 0.0, 1.0, "none; two or more")


def verdict_table(findings: list[Finding]) -> list[str]:
    """Write findings as lines: check, number, limits, status."""
    rows = [["check", "number", "passed", "failed", "", "of"]]
    for found in findings:
        low_is_good = found.failed_at is None or found.passed_at <= found.failed_at
        limits = ("≤ {}", "> {}") if low_is_good else ("≥ {}", "< {}")
        failed = "never" if found.failed_at is None else limits[1].format(f"{found.failed_at:.3g}")
        value = "—" if found.value is None else f"{found.value:.3f}"
        rows.append(
            [found.check, value, limits[0].format(f"{found.passed_at:.3g}"), failed, found.status, found.measure]
        )
    return aligned(rows)
