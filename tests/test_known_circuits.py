"""Circuits that are right by construction pass every check; wrong ones fail the check that is meant for them.

`benchmarks/known_circuits.py` does the same with twenty seeds.
"""

import pytest
from known_circuits import FAKES, TRUE, circuit_of

from sparse_circuits.configs import VerifyConfig
from sparse_circuits.faithfulness import verify
from sparse_circuits.faithfulness.verdict import HALF

SMALL = VerifyConfig(n_pair=24, n_set=4, n_subset=6, shares=(0.1, 0.5), n_adversary_step=4, n_step=60)
"""Enough for models of a hundred nodes."""

NEEDS = {"random subsets": ("subsets",), "attention": ("attention",), "roles": ("interchange",)}
"""Checks to ask for, by finding; the others are in every report."""


@pytest.mark.parametrize("name", TRUE)
def test_a_true_circuit_passes_every_check(name: str) -> None:
    circuit, task = circuit_of(TRUE[name], 0)
    report = verify(circuit, task, SMALL)
    assert {found.check: found.value for found in report.verdict if found.status != "passed"} == {}
    assert {"adversarial subset", "interchange", "roles", "agreement", "faithfulness", "two values"} <= {
        found.check for found in report.verdict
    }


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", FAKES)
def test_a_fake_looks_sufficient_and_fails_the_check_meant_for_it(name: str, seed: int) -> None:
    build, meant = FAKES[name]
    circuit, task = circuit_of(build, seed)
    report = verify(circuit, task, SMALL, checks=NEEDS.get(meant, ()), n_set=1)
    status = {found.check: found.status for found in report.verdict}
    assert report.sufficiency["test"].circuit.loss.value < HALF
    assert status["task"] == status["sufficiency"] == "passed"
    assert status[meant] == "failed"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", TRUE)
def test_a_true_circuit_passes_the_checks_meant_for_fakes(name: str, seed: int) -> None:
    circuit, task = circuit_of(TRUE[name], seed)
    report = verify(circuit, task, SMALL, checks=("subsets", "attention", "interchange"), n_set=1, n_adversary_step=0)
    status = {found.check: found.status for found in report.verdict}
    assert {status[meant] for _, meant in FAKES.values()} == {"passed"}
