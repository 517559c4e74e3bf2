"""Readers of damaged files give a value or an error of our tree; scripts/fuzz does the same for longer."""

import contextlib
import importlib.machinery
import importlib.util
import random
import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sparse_circuits as sc

loader = importlib.machinery.SourceFileLoader("fuzz", str(Path(__file__).parent.parent / "scripts/fuzz"))
spec = importlib.util.spec_from_loader("fuzz", loader)
assert spec is not None
fuzz = importlib.util.module_from_spec(spec)
loader.exec_module(fuzz)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return fuzz.seed_folder(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_valid_files_open(reader, seeds):
    name, open_file = fuzz.READERS[reader]
    open_file(seeds / name)


@pytest.mark.parametrize("reader", fuzz.READERS)
@settings(max_examples=30, deadline=5000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=st.integers(0, 10**9))
def test_damaged_files_are_opened_or_refused_by_name(reader, seeds, tmp_path, case):
    name, open_file = fuzz.READERS[reader]
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seeds, folder)
    (folder / name).write_bytes(fuzz.damaged((seeds / name).read_bytes(), random.Random(f"{reader} {case}")))
    with warnings.catch_warnings(), contextlib.suppress(sc.SparseCircuitsError):
        warnings.simplefilter("ignore")
        open_file(folder / name)


def test_damage_is_the_same_each_time_and_nearly_always_damage(seeds):
    data = (seeds / "release/final_model.pt").read_bytes()
    damaged = [fuzz.damaged(data, random.Random(f"a {i}")) for i in range(50)]
    assert damaged == [fuzz.damaged(data, random.Random(f"a {i}")) for i in range(50)]
    assert sum(file != data for file in damaged) > 40
