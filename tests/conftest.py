"""What the tests share: a small corpus, runs on it, the command line; the page in a browser is in `browser`."""

import shutil
import sys

import pytest
from hypothesis import settings
from release_models import CASES

from sparse_circuits import cli
from sparse_circuits.configs import CorpusConfig, ModelConfig, SparsityConfig, TrainConfig
from sparse_circuits.corpus import shards
from sparse_circuits.training import train

pytest_plugins = ["browser"]

# No test asserts a time; on a busy machine an example takes many times as long.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def idioms_corpus(tmp_path_factory):
    """Thirty thousand tokens of idioms."""
    config = CorpusConfig(sources=("idioms",), n_vocab=512, max_token=30_000, n_tokenizer_byte=100_000)
    return shards.build(config, tmp_path_factory.mktemp("corpus") / "idioms")


@pytest.fixture(scope="session")
def quick_run():
    """Settings of a run of 40 steps that takes a second."""
    return TrainConfig(
        model=ModelConfig(n_vocab=512, n_ctx=16, n_layer=1, d_model=16, n_head=2, d_head=8, d_mlp=32),
        sparsity=SparsityConfig(matrix_density=0.5, embedding_density=0.5, bias_density=0.5, n_alive=2),
        shares={"idioms": 1.0},
        n_token=40 * 4 * 16,
        batch_size=4,
        context=16,
        validate_every=10,
        n_validation_token=256,
        checkpoint_every=10,
    )


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory):
    """The run folder of a model that read 128 tokens, with a tokenizer that most tasks can be made with."""
    folder = tmp_path_factory.mktemp("untrained")
    config = CorpusConfig(sources=("idioms",), n_vocab=1024, max_token=30_000, n_tokenizer_byte=500_000)
    corpus = shards.build(config, folder / "corpus")
    run = TrainConfig(
        model=ModelConfig(n_vocab=1024, n_ctx=64, n_layer=1, d_model=16, n_head=2, d_head=8, d_mlp=32, bigram="none"),
        sparsity=SparsityConfig(matrix_density=0.5, embedding_density=0.5, bias_density=0.5, n_alive=2),
        shares={"idioms": 1.0},
        n_token=2 * 64,
        batch_size=1,
        context=64,
        n_validation_token=256,
    )
    train(run, corpus=corpus, out=folder / "run")
    return folder / "run"


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own, and no mirror."""
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARSE_CIRCUITS_MIRROR", raising=False)


@pytest.fixture
def release_folder(tmp_path):
    """A release folder of a small model, to be damaged."""
    return shutil.copytree(CASES[1], tmp_path / "release")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command line; return exit code (0 or the message), stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sparse-circuits", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run
