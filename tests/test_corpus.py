"""Tests of the corpus: nothing is lost or leaks between splits, batches depend on the step alone, counts are right."""

import hashlib
import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_circuits.configs import CorpusConfig
from sparse_circuits.corpus import bigram, python_files, shards, text_files
from sparse_circuits.corpus.bigram import SMOOTHINGS, BigramCounts, baseline_losses, count_batches, count_corpus
from sparse_circuits.corpus.idioms import documents
from sparse_circuits.corpus.shards import Batches, Corpus, build
from sparse_circuits.errors import CorpusError, FormatError, OutputExistsError
from sparse_circuits.files import DONE

CONTEXT = 16


def config_of(*sources: Path | str, **changes: Any) -> CorpusConfig:
    return CorpusConfig(**{"sources": tuple(map(str, sources)), "n_vocab": 300, "max_token": 40_000, **changes})


def folder_of_code(folder: Path, n_file: int = 12, seed: int = 1) -> Path:
    """Write different files, at two depths."""
    for number, text in enumerate(documents(n_file, seed=seed)):
        path = folder / ("deeper" if number % 3 == 0 else ".") / f"file_{number:02d}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Path]:
    """A corpus of a folder and of idioms, and the folder."""
    root = tmp_path_factory.mktemp("corpus")
    code = folder_of_code(root / "code")
    return build(config_of(code, "idioms", max_token=20_000, validation_frac=0.2), root / "out"), code


def texts_of(corpus: Corpus, source: str, split: str) -> list[str]:
    return [corpus.tokenizer.decode(ids) for ids in corpus.documents(source, split)]


def test_the_documents_of_a_corpus_are_the_files_that_went_in(built: tuple[Corpus, Path]) -> None:
    corpus, code = built
    out = texts_of(corpus, str(code), "train") + texts_of(corpus, str(code), "validation")
    assert sorted(out) == sorted(path.read_text(encoding="utf-8") for path in code.rglob("*.py"))


def test_the_idioms_of_a_corpus_are_the_first_of_their_seed(built: tuple[Corpus, Path]) -> None:
    corpus, _ = built
    held_out = texts_of(corpus, "idioms", "validation")
    assert held_out == list(documents(len(held_out), seed=0))


def test_the_split_is_by_document(built: tuple[Corpus, Path]) -> None:
    corpus, code = built
    for source in (str(code), "idioms"):
        train, held_out = texts_of(corpus, source, "train"), texts_of(corpus, source, "validation")
        assert len(train) >= 1
        assert len(held_out) >= 1
        assert not set(train) & set(held_out)
    assert len(texts_of(corpus, str(code), "validation")) == round(0.2 * 12)


def test_the_index_tells_hashes_and_numbers_of_the_files(built: tuple[Corpus, Path]) -> None:
    corpus, _ = built
    index = json.loads((corpus.folder / "index.json").read_text())
    seen = []
    for source, entry in index["sources"].items():
        for split in ("train", "validation"):
            tokens = corpus.tokens(source, split)
            assert tokens.dtype == np.uint16
            assert len(tokens) == entry["n_token"][split]
            assert int((tokens == corpus.tokenizer.end_of_text).sum()) == entry["n_document"][split]
            assert int(tokens.max()) == corpus.tokenizer.end_of_text == 299
            seen.append(entry["sha256"][split])
    assert Counter(seen) == Counter(hashlib.sha256(p.read_bytes()).hexdigest() for p in corpus.folder.glob("*.u16"))
    assert index["tokenizer_sha256"] == hashlib.sha256((corpus.folder / "tokenizer.json").read_bytes()).hexdigest()
    assert CorpusConfig.from_json(index["config"], where="index").n_vocab == corpus.tokenizer.n_vocab


def test_the_same_settings_give_the_same_corpus_and_another_seed_another(tmp_path: Path) -> None:
    code = folder_of_code(tmp_path / "code")
    one, two = (build(config_of(code), tmp_path / name) for name in ("one", "two"))
    other = build(config_of(code, seed=1), tmp_path / "other")
    assert one.hash == two.hash != other.hash
    assert np.array_equal(one.tokens(str(code), "train"), two.tokens(str(code), "train"))


def test_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    code = folder_of_code(tmp_path / "code")
    texts = sorted(path.read_text() for path in code.rglob("*.py"))
    (code / "undecodable.py").write_bytes(b"name = '\xff\xfe'\n")
    for name in ("again.py", "and_again.txt"):
        (code / name).write_text(texts[0])
    (code / "with_returns.py").write_bytes(texts[1].replace("\n", "\r\n").encode())
    (code / "long.py").write_text("x = 1\n" * (shards.MAX_CHARACTER // 6 + 1))
    (code / "empty.py").write_text(" \n\n")
    (code / "no_code.dat").write_text("left alone")
    corpus = build(config_of(code), tmp_path / "out")
    entry = corpus.index["sources"][str(code)]
    assert (entry["n_undecodable"], entry["n_duplicate"], entry["n_too_long"]) == (1, 3, 1)
    assert sorted(texts_of(corpus, str(code), "train") + texts_of(corpus, str(code), "validation")) == texts
    assert entry["version"].startswith(f"{12 + 6} files, ")


def test_a_source_stops_at_its_largest_number_of_tokens(tmp_path: Path) -> None:
    corpus = build(config_of("idioms", max_token=3000), tmp_path / "out")
    n_token = corpus.index["sources"]["idioms"]["n_token"]["train"]
    longest = max(len(ids) for ids in corpus.documents("idioms", "train"))
    assert n_token <= 3000 + longest + 1


def test_sources_that_are_missing_or_empty_are_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"source .*absent: not a folder; expected stdlib, idioms, dist:NAME"):
        build(config_of(tmp_path / "absent"), tmp_path / "out")
    with pytest.raises(CorpusError, match=r"source .*empty: the folder has no \.md, \.py, \.txt files"):
        build(config_of(tmp_path / "empty"), tmp_path / "out")
    with pytest.raises(
        CorpusError, match=r"source dist:numpi: no such distribution is installed; did you mean .*numpy"
    ):
        build(config_of("dist:numpi"), tmp_path / "out")
    assert not (tmp_path / "out" / DONE).exists()


def test_a_source_of_one_readable_document_is_too_short(tmp_path: Path) -> None:
    code = folder_of_code(tmp_path / "code", n_file=1)
    (code / "bad.py").write_bytes(b"\xff")
    with pytest.raises(CorpusError, match=r"1 readable documents \(1 undecodable\), expected at least 2"):
        build(config_of(code), tmp_path / "out")


def test_text_that_gives_too_few_tokens_is_an_error(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"{name} short text\n")
    with pytest.raises(CorpusError, match=r"gives only 2\d\d tokens, expected n_vocab 300"):
        build(config_of(tmp_path), tmp_path / "out")


def test_a_finished_corpus_is_not_written_over_and_an_unfinished_one_not_read(tmp_path: Path) -> None:
    code = folder_of_code(tmp_path / "code")
    build(config_of(code), tmp_path / "out")
    with pytest.raises(OutputExistsError, match="finished corpus"):
        build(config_of(code), tmp_path / "out")
    (tmp_path / "out" / DONE).unlink()
    with pytest.raises(CorpusError, match="no finished corpus"):
        Corpus(tmp_path / "out")
    build(config_of(code), tmp_path / "out")


def test_a_truncated_or_missing_shard_and_a_newer_index_are_refused(tmp_path: Path) -> None:
    code = folder_of_code(tmp_path / "code")
    corpus = build(config_of(code), tmp_path / "out")
    (shard,) = corpus.folder.glob("*.train.u16")
    shard.write_bytes(shard.read_bytes()[:-2])
    for _ in range(2):
        with pytest.raises(CorpusError, match="missing or truncated, expected") as caught:
            corpus.tokens(str(code), "train")
        assert str(shard) in str(caught.value)
        shard.unlink(missing_ok=True)
    index = {**corpus.index, "version": 2}
    (corpus.folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="version 2"):
        Corpus(corpus.folder)


def test_a_corpus_shorter_than_one_context_is_an_error(built: tuple[Corpus, Path]) -> None:
    corpus, code = built
    n_token = len(corpus.tokens(str(code), "train"))
    with pytest.raises(CorpusError, match=f"{n_token} training tokens, less than one context of {n_token + 1}"):
        Batches(corpus, shares={str(code): 1.0}, context=n_token + 1, batch_size=2, n_step=1, seed=0)
    with pytest.raises(CorpusError, match="less than one context of 1000000"):
        corpus.windows("idioms", "validation", context=1_000_000, n_token=5)
    with pytest.raises(CorpusError, match="has no source 'stdlib'; it has"):
        Batches(corpus, shares={"stdlib": 1.0}, context=CONTEXT, batch_size=2, n_step=1, seed=0)


def test_windows_are_the_first_tokens_of_a_shard(built: tuple[Corpus, Path]) -> None:
    corpus, _ = built
    windows = corpus.windows("idioms", "validation", context=CONTEXT, n_token=100)
    assert windows.shape == (100 // CONTEXT, CONTEXT)
    assert windows.dtype == torch.int64
    assert windows.flatten().tolist() == corpus.tokens("idioms", "validation")[: windows.numel()].tolist()
    assert len(corpus.windows("idioms", "validation", context=CONTEXT, n_token=1)) == 1
    n_all = len(corpus.tokens("idioms", "validation")) // CONTEXT
    assert len(corpus.windows("idioms", "validation", context=CONTEXT, n_token=10**9)) == n_all


def batches_of(built: tuple[Corpus, Path], n_step: int, seed: int = 0, share: float = 0.3) -> Batches:
    corpus, code = built
    shares = {str(code): share, "idioms": 1 - share} if share < 1 else {str(code): 1.0}
    return Batches(corpus, shares=shares, context=CONTEXT, batch_size=8, n_step=n_step, seed=seed)


def test_a_batch_depends_on_its_step_alone(built: tuple[Corpus, Path]) -> None:
    forward = batches_of(built, 60)
    expected = [forward(step) for step in range(60)]
    backward = batches_of(built, 60)
    for step in (59, 3, 30, 3, 0):
        assert torch.equal(backward(step), expected[step])
    assert expected[0].shape == (8, CONTEXT)


def test_a_longer_run_begins_with_the_same_batches(built: tuple[Corpus, Path]) -> None:
    short, long = batches_of(built, 20), batches_of(built, 500)
    assert all(torch.equal(short(step), long(step)) for step in range(20))


def test_another_seed_gives_another_order(built: tuple[Corpus, Path]) -> None:
    assert not torch.equal(batches_of(built, 1)(0), batches_of(built, 1, seed=1)(0))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.87])
def test_shares_are_kept_within_one_row_in_a_hundred(built: tuple[Corpus, Path], share: float) -> None:
    source = batches_of(built, 200, share=share).source_of_row
    for start in range(0, len(source) - 100, 7):
        assert abs(int((source[start : start + 100] == 0).sum()) - 100 * share) <= 2
    for n_row in (100, 400, 1600):
        assert abs(int((source[:n_row] == 0).sum()) - share * n_row) <= max(1, n_row / 100)


def test_each_window_is_seen_once_an_epoch_in_an_order_of_its_own(built: tuple[Corpus, Path]) -> None:
    corpus, code = built
    n_window = len(corpus.tokens(str(code), "train")) // CONTEXT
    batches = batches_of(built, 3 * n_window // 8 + 1, share=1.0)
    rows = torch.cat([batches(step) for step in range(batches.n_step)]).tolist()
    expected = corpus.windows(str(code), "train", context=CONTEXT, n_token=10**9).tolist()
    epochs = [rows[epoch * n_window : (epoch + 1) * n_window] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(expected)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_of_one_source_does_not_depend_on_the_other(built: tuple[Corpus, Path]) -> None:
    mixed, alone = batches_of(built, 50), batches_of(built, 50, share=1.0)
    rows = torch.cat([mixed(step) for step in range(50)])[mixed.source_of_row == 0]
    assert torch.equal(rows, torch.cat([alone(step) for step in range(50)])[: len(rows)])


class FakeBatches:
    """Stands in for `Batches` with rows written by hand."""

    def __init__(self, rows: list[list[int]], source_of_row: list[int], names: list[str], batch_size: int) -> None:
        self.rows, self.source_of_row = torch.tensor(rows), np.array(source_of_row)
        self.names, self.batch_size, self.n_step = names, batch_size, len(rows) // batch_size

    def __call__(self, step: int) -> torch.Tensor:
        return self.rows[step * self.batch_size : (step + 1) * self.batch_size]


def of_table(table: torch.Tensor) -> BigramCounts:
    """Make counts of a table."""
    occurred = table.flatten().nonzero().flatten()
    return BigramCounts(len(table), occurred.numpy(), table.flatten()[occurred].double().numpy())


def table_of(counts: BigramCounts) -> torch.Tensor:
    """Return counts as a table."""
    return counts.after(torch.arange(counts.n_vocab))


def test_bigrams_are_counted_by_hand() -> None:
    batches = FakeBatches([[0, 1, 0, 1], [2, 2, 2, 2], [1, 0, 2, 0], [2, 2, 1, 0]], [0, 1, 0, 1], ["a", "b"], 2)
    counts = count_batches(batches, 3)  # pyright: ignore[reportArgumentType]
    # a: 0→1, 1→0, 0→1 and 1→0, 0→2, 2→0; never from one row to the next.
    assert table_of(counts["a"]).tolist() == [[0, 2, 1], [2, 0, 0], [1, 0, 0]]
    assert table_of(counts["b"]).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 4]]


def test_smoothed_probabilities_by_hand() -> None:
    counts = of_table(torch.tensor([[0.0, 3.0], [1.0, 0.0]]))
    # Followers: 1 and 3, with half a count more each: 0.3 and 0.7. Row 0 at smoothing 2: (0 + 0.6) / 5, (3 + 1.4) / 5.
    expected = torch.tensor([[0.6 / 5, 4.4 / 5], [1.6 / 3, 1.4 / 3]])
    torch.testing.assert_close(counts.log_probability(2.0).exp(), expected)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_probabilities_of_a_row_add_up_to_one_also_where_nothing_was_seen(smoothing: float) -> None:
    counts = torch.randint(0, 5, (20, 20), generator=torch.Generator().manual_seed(0)).double()
    counts[3] = 0
    counts[:, 4] = 0
    log_probability = of_table(counts).log_probability(smoothing)
    torch.testing.assert_close(log_probability.exp().sum(1), torch.ones(20))
    assert bool(log_probability.isfinite().all())


def test_a_chain_that_never_varies_has_a_loss_near_zero() -> None:
    windows = torch.arange(5).repeat(200).reshape(10, 100)
    counts = torch.zeros(5, 5, dtype=torch.float64)
    counts[torch.arange(5), (torch.arange(5) + 1) % 5] = 1e6
    assert of_table(counts).best_loss(windows) < 1e-4


def test_nothing_counted_is_as_good_as_chance() -> None:
    windows = torch.randint(0, 8, (4, 50), generator=torch.Generator().manual_seed(0))
    assert of_table(torch.zeros(8, 8)).best_loss(windows) == pytest.approx(math.log(8))


def test_the_best_loss_is_the_lowest_over_the_smoothings(built: tuple[Corpus, Path]) -> None:
    corpus, _ = built
    counts = count_corpus(corpus, ["idioms"])
    windows = corpus.windows("idioms", "validation", context=CONTEXT, n_token=2000)
    table = counts.log_probability(3.0)
    by_hand = [-float(table[a, b]) for row in windows.tolist() for a, b in itertools.pairwise(row)]
    assert counts.loss(windows, 3.0) == pytest.approx(sum(by_hand) / len(by_hand))
    assert counts.best_loss(windows) == min(counts.loss(windows, smoothing) for smoothing in SMOOTHINGS)


def test_a_shard_counted_in_parts_is_counted_whole(built: tuple[Corpus, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, _ = built
    whole = count_corpus(corpus, ["idioms"])
    monkeypatch.setattr(bigram, "N_COUNTED", 777)
    parts = count_corpus(corpus, ["idioms"])
    assert np.array_equal(whole.pairs, parts.pairs)
    np.testing.assert_allclose(whole.counts, parts.counts)


def test_a_vocabulary_as_large_as_a_table_could_not_be_is_counted() -> None:
    counts = BigramCounts.of(np.array([[59_999, 3, 59_999, 3, 7]], dtype=np.uint16), 60_000)
    assert counts.after(torch.tensor([3, 59_999]))[[0, 0, 1], [7, 59_999, 3]].tolist() == [1, 1, 2]
    # 59,999 → 3 has 2 of 2 counts; 3 is 2.5 of all followers, of which there are 4 and half a one for each token.
    share = (2 + 1.0 * 2.5 / 30_004) / (2 + 1.0)
    assert counts.loss(torch.tensor([[59_999, 3]]), 1.0) == pytest.approx(-math.log(share))


@given(st.data())
def test_counts_agree_with_a_plain_table(data: st.DataObject) -> None:
    n_vocab = data.draw(st.integers(2, 6))
    rows = data.draw(st.lists(st.lists(st.integers(0, n_vocab - 1), min_size=5, max_size=5), min_size=1, max_size=6))
    table = torch.zeros(n_vocab, n_vocab, dtype=torch.float64)
    for row in rows:
        for current, following in itertools.pairwise(row):
            table[current, following] += 1
    counts = BigramCounts.of(np.array(rows), n_vocab)
    assert torch.equal(table_of(counts), table)
    twice = BigramCounts.sum_of((counts, counts.times(3.0)), n_vocab)
    assert torch.equal(table_of(twice), 4 * table)
    tokens = torch.tensor(data.draw(st.lists(st.integers(0, n_vocab - 1), min_size=1, max_size=8)))
    assert torch.equal(counts.after(tokens), table[tokens])
    unigram = (table.sum(0) + 0.5) / (table.sum(0) + 0.5).sum()
    expected = ((table + 3 * unigram) / (table.sum(1, keepdim=True) + 3)).log()
    torch.testing.assert_close(counts.log_probability(3.0), expected.float())
    windows = torch.tensor([tokens.tolist() * 2])
    by_hand = [-float(expected[a, b]) for a, b in itertools.pairwise(windows[0].tolist())]
    assert counts.loss(windows, 3.0) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)


def test_the_baselines_are_the_tables_at_their_best(built: tuple[Corpus, Path]) -> None:
    corpus, code = built
    batches = batches_of(built, 40)
    counts = count_batches(batches, corpus.tokenizer.n_vocab)
    together = BigramCounts.sum_of(counts.values(), corpus.tokenizer.n_vocab)
    for source in (str(code), "idioms"):
        windows = corpus.windows(source, "validation", context=CONTEXT, n_token=1000)
        baselines = baseline_losses(counts, source, windows)
        assert baselines == (together.best_loss(windows), counts[source].best_loss(windows))
    assert together.counts.sum() == 40 * 8 * (CONTEXT - 1)


def test_counts_of_a_corpus_weigh_its_sources_alike(built: tuple[Corpus, Path]) -> None:
    corpus, _ = built
    alone = {name: table_of(count_corpus(corpus, [name])) for name in corpus.sources}
    n_pair = {name: len(corpus.tokens(name, "train")) - 1 for name in corpus.sources}
    assert {name: float(counts.sum()) for name, counts in alone.items()} == n_pair
    mixed = table_of(count_corpus(corpus, list(alone)))
    weights = {name: sum(n + 1 for n in n_pair.values()) / 2 / (n_pair[name] + 1) for name in alone}
    torch.testing.assert_close(mixed, sum((weights[name] * alone[name] for name in weights), torch.zeros(())))


def test_the_standard_library_is_listed_without_its_tests() -> None:
    files = python_files.standard_library()
    names = {path.name for path in files.paths}
    assert {"argparse.py", "random.py"} <= names
    assert not any({"test", "tests", "site-packages", "__pycache__"} & set(path.parts) for path in files.paths)
    assert files.paths == sorted(files.paths)
    assert files.version.startswith("Python 3.")


def test_an_installed_distribution_is_listed_without_its_tests() -> None:
    files = python_files.distribution("numpy")
    assert len(files.paths) > 50
    assert all(path.suffix == ".py" and "tests" not in path.parts for path in files.paths)
    assert files.version == f"numpy {np.__version__}"


def test_newlines_are_made_plain_and_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n")
    assert text_files.read(tmp_path / "a.txt") == "one\ntwo\nthree\n"
    (tmp_path / "b.txt").write_bytes(b"\xff")
    assert text_files.read(tmp_path / "b.txt") is None
    assert text_files.read(tmp_path / "absent.txt") is None
