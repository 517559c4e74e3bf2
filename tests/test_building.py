"""Nothing that a prompt of level ii consists of is trained on."""

import numpy as np
import pytest

from sparse_circuits import building
from sparse_circuits.building import build_corpus, unseen_grams
from sparse_circuits.configs import CorpusConfig
from sparse_circuits.corpus.grams import hash_grams, is_among
from sparse_circuits.corpus.idioms import documents
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import OutputExistsError
from sparse_circuits.tasks import BEHAVIOURS, task
from sparse_circuits.tasks.sampling import SplitSizes

NAMES = ("if_ternary", "set_or_string_fixedvarname")


@pytest.fixture(scope="module", autouse=True)
def two_tasks():
    """Two tasks stand for all twenty, which take a quarter of a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "BEHAVIOURS", {name: BEHAVIOURS[name] for name in NAMES})
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A corpus of idioms and of twenty files; tokens of a prompt of level ii, and a file that is trained on."""
    folder = tmp_path_factory.mktemp("built")
    config = CorpusConfig(
        sources=(str(folder / "code"), "idioms"), n_vocab=1024, max_token=20_000, validation_frac=0.05, seed=1
    )
    (folder / "code").mkdir()
    texts = list(documents(20, seed=3))
    for number, text in enumerate(texts):
        (folder / "code" / f"{number}.py").write_text(text)
    plain = build_corpus(config, folder / "plain")
    pairs = task(NAMES[0], plain.tokenizer, sizes=SplitSizes(fit=16, select=16, hard=16)).split("test").at_level("ii")
    tokens = pairs.tokens[0, 0, : pairs.length[0]].tolist()
    trained = next(plain.documents(str(folder / "code"), "train"))
    number = texts.index(plain.tokenizer.decode(trained))
    return folder, config, plain, tokens, folder / "code" / f"{number}.py"


def grams_of(corpus: Corpus) -> np.ndarray:
    return np.concatenate([hash_grams(np.asarray(corpus.tokens(source, "train"))) for source in corpus.sources])


def test_a_document_with_a_piece_of_a_prompt_is_left_out_and_counted(built):
    folder, config, plain, tokens, file = built
    source = config.sources[0]
    before = plain.index["sources"][source]
    whole = file.read_text()
    file.write_text(whole + plain.tokenizer.decode(tokens))
    leaking = build_corpus(config, folder / "leaking", tokenizer=plain.tokenizer)
    file.write_text(whole)
    after = leaking.index["sources"][source]
    assert after["n_leaking"] == before["n_leaking"] + 1
    assert after["n_document"]["train"] == before["n_document"]["train"] - 1
    assert after["n_document"]["validation"] == before["n_document"]["validation"]
    assert not is_among(grams_of(leaking), unseen_grams(plain.tokenizer)).any()


def test_the_prompts_of_level_ii_are_all_among_what_is_kept_out(built):
    _, _, plain, _, _ = built
    grams = unseen_grams(plain.tokenizer)
    for name in NAMES:
        pairs = task(name, plain.tokenizer, sizes=SplitSizes(fit=16, select=16, hard=16)).split("test").at_level("ii")
        for prompts, length in zip(pairs.tokens.numpy(), pairs.length.tolist(), strict=True):
            assert is_among(hash_grams(prompts[:, :length]), grams).all()


def test_a_tokenizer_that_makes_no_task_keeps_nothing_out(tmp_path):
    (tmp_path / "text").mkdir()
    for name in ("one", "two", "three"):
        (tmp_path / "text" / f"{name}.txt").write_text(f"{name} words and then some more of them " * 40)
    corpus = build_corpus(CorpusConfig(sources=(str(tmp_path / "text"),), n_vocab=280), tmp_path / "out")
    assert corpus.index["sources"][str(tmp_path / "text")]["n_leaking"] == 0
    with pytest.raises(OutputExistsError):
        build_corpus(CorpusConfig(sources=(str(tmp_path / "text"),), n_vocab=280), tmp_path / "out")


def test_no_gram_is_among_none_and_each_is_among_itself():
    hashes = hash_grams(np.arange(40))
    assert len(hashes) == 28
    assert not is_among(hashes, np.zeros(0, dtype=np.uint64)).any()
    assert is_among(hashes, np.sort(hashes)).all()
    assert is_among(hashes, np.sort(hashes)[:9]).sum() == 9
