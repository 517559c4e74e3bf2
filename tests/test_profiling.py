"""A profile names the parts of a step and adds up; it writes nothing."""

import json

import pytest

from sparse_circuits import profiling
from sparse_circuits.cli import main
from sparse_circuits.errors import DeviceError
from sparse_circuits.profiling import profile_training, table


def test_a_profile_has_both_ends_of_the_annealing_and_its_parts_add_up(idioms_corpus, quick_run):
    dense, sparse = profile_training(quick_run, corpus=idioms_corpus, n_step=1)
    assert dense.density == 1.0
    assert sparse.density == 0.5
    for found in (dense, sparse):
        assert {"matrix products", "AbsTopK", "attention", "Adam", "the rest"} <= set(found.parts)
        assert list(found.parts.values()) == sorted(found.parts.values(), reverse=True)
        assert found.floor > 0
    assert "projection" in sparse.parts
    lines = table([dense, sparse]).splitlines()
    assert lines[0].split() == ["part", "of", "a", "step", "density", "1", "density", "0.5"]
    assert lines[-1].startswith("its dense matrix products alone")


def test_time_between_operations_belongs_to_the_rest(idioms_corpus, quick_run, monkeypatch):
    monkeypatch.setattr(profiling, "_median", lambda act, n_time, device: act() and 1000.0)
    for found in profile_training(quick_run, corpus=idioms_corpus, n_step=1):
        assert sum(found.parts.values()) == pytest.approx(1000)


def test_a_device_that_is_not_there_is_named(idioms_corpus, quick_run):
    with pytest.raises(DeviceError, match="expected cpu, cuda"):
        profile_training(quick_run, corpus=idioms_corpus, device="meta")


def test_the_command_prints_the_profile_and_makes_no_folder(idioms_corpus, quick_run, tmp_path, capsys, monkeypatch):
    quick_run.save(tmp_path / "quick.json")
    out = tmp_path / "run"
    arguments = ["train", str(tmp_path / "quick.json"), "--corpus", str(idioms_corpus.folder), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["sparse-circuits", *arguments, "--profile", "--json"])
    main()
    assert [found["density"] for found in json.loads(capsys.readouterr().out)["profiles"]] == [1.0, 0.5]
    assert not out.exists()
