"""Tests of files that are whole or absent, and of what reading says about those that are wrong."""

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_circuits.errors import FormatError, OutputExistsError
from sparse_circuits.files import (
    DONE,
    is_done,
    mark_done,
    read_json,
    refuse_finished,
    sha256_of_json,
    write_json,
    written_whole,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def break_off(path: Path, error: BaseException) -> None:
    """Write half a file, then raise."""
    with written_whole(path) as temporary:
        temporary.write_text("half of the n")
        raise error


def test_a_file_is_replaced_only_when_the_body_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names_in(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), OSError(errno.ENOSPC, "disk full")])
def test_the_old_file_stays_when_the_body_raises(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        break_off(path, error)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file.txt"]


def test_the_old_file_stays_when_the_disk_is_full_at_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sparse_circuits.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert names_in(tmp_path) == ["file.json"]


@pytest.mark.parametrize("name", [".", "..", "folder", "/"])
def test_a_folder_is_no_place_for_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here/folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with (
        pytest.raises(IsADirectoryError, match=f"^{re.escape(name)} is a folder; name a file"),
        written_whole(Path(name)),
    ):
        pytest.fail("nothing is written for it")
    assert names_in(tmp_path / "here") == ["folder"]


def test_no_file_appears_when_the_first_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        break_off(tmp_path / "made" / "file.txt", RuntimeError("broken"))
    assert names_in(tmp_path / "made") == []


def test_a_body_that_writes_nothing_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), written_whole(path):
        pass
    assert path.read_text() == "old"


def test_values_that_are_no_json_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    bad: list[tuple[Any, type[Exception]]] = [(float("nan"), ValueError), (float("inf"), ValueError), ({1}, TypeError)]
    for value, error in bad:
        with pytest.raises(error):
            write_json(path, {"a": value})
    assert read_json(path) == {"a": 1}
    assert names_in(tmp_path) == ["file.json"]


@settings(max_examples=40)
@given(data=st.dictionaries(st.text(), JSON, max_size=5), indent=st.sampled_from([None, 1]))
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, data: dict, indent: int | None) -> None:
    path = tmp_path_factory.getbasetemp() / "round trip.json"
    write_json(path, data, indent=indent)
    assert read_json(path) == data


@settings(max_examples=40)
@given(data=st.dictionaries(st.text(), JSON, max_size=5))
def test_the_hash_of_json_ignores_the_order_of_keys(data: dict) -> None:
    backwards = dict(reversed(list(data.items())))
    assert sha256_of_json(data) == sha256_of_json(backwards)
    assert sha256_of_json(data) == sha256_of_json(json.loads(json.dumps(data)))
    assert sha256_of_json(data) != sha256_of_json({**data, "one more": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "file.json: no such file, so .* holds no ours, or one that is not finished"),
        ("", "not a whole JSON file"),
        ('{"format": "ours", "vers', "not a whole JSON file"),
        ('{"format": "ours", "version": 1} trailing', "not a whole JSON file"),
        ("[1, 2]", "holds a list, expected an object"),
        ('{"a": ' + "9" * 5000 + "}", "not a whole JSON file .*5000 digits"),
        ("[" * 200_000, "not a whole JSON file .*recursion"),
        ("{}", "format is None, expected 'ours'"),
        ('{"format": "theirs", "version": 1}', "format is 'theirs', expected 'ours'"),
        ('{"format": "ours", "version": 2}', "ours version 2; this program reads up to version 1"),
        ('{"format": "ours"}', "ours version None"),
        ('{"format": "ours", "version": "1"}', "ours version '1'"),
    ],
)
def test_reading_says_which_file_is_wrong_and_how(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(FormatError, match=message) as caught:
        read_json(path, expect="ours")
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_a_format_error(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(FormatError, match="not a whole JSON file"):
        read_json(tmp_path / "file.json")


def test_older_versions_and_added_fields_are_read(tmp_path: Path) -> None:
    data = {"format": "ours", "version": 1, "added later": [1]}
    write_json(tmp_path / "file.json", data)
    assert read_json(tmp_path / "file.json", expect="ours", version=2) == data


def test_a_finished_folder_is_not_written_over(tmp_path: Path) -> None:
    assert not is_done(tmp_path)
    refuse_finished(tmp_path, "corpus")
    mark_done(tmp_path)
    assert is_done(tmp_path)
    assert names_in(tmp_path) == [DONE]
    with pytest.raises(OutputExistsError, match="already holds a finished corpus"):
        refuse_finished(tmp_path, "corpus")
