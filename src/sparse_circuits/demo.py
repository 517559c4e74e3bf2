"""The main job from end to end, in one folder that a second call goes on with."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from sparse_circuits import viewer
from sparse_circuits.ablation import corpus_means
from sparse_circuits.building import build_corpus
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import DemoConfig, VerifyConfig
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import ConfigError
from sparse_circuits.faithfulness import verify
from sparse_circuits.files import is_done, read_json, write_json
from sparse_circuits.loading import load
from sparse_circuits.model import Transformer
from sparse_circuits.pruning import prune
from sparse_circuits.runlog import read_records, say
from sparse_circuits.sparsity import count_nonzeros
from sparse_circuits.tables import aligned
from sparse_circuits.tasks import task as make_task
from sparse_circuits.training import train

FORMAT, VERSION = "sparse-circuits demo", 1


class Demo:
    """One demo folder: what is done stays, what is missing is made.

    Args:
        config: Settings of every part.
        out: The folder; it is a run folder, with `corpus/` and `circuits/` in it.
        progress: Where progress goes; None is silent.
    """

    def __init__(self, config: DemoConfig, out: Path | str, *, progress: TextIO | None = None) -> None:
        self.config, self.out, self.progress = config, Path(out), progress
        path = self.out / "demo.json"
        if path.exists():
            found = read_json(path, expect=FORMAT, version=VERSION)
            if found["config"] != config.to_json():
                raise ConfigError(f"{path}: the demo was started with other settings; name another folder or remove it")
            self.seconds: dict[str, float] = found["seconds"]
        else:
            self.seconds = {}
        self._remember()

    def run(self) -> dict[str, Any]:
        """Do what is missing and return the summary, which is also written as `summary.json`.

        Raises:
            ConfigError: The folder was started with other settings.
            Interrupted: Ctrl-C while training; the same call goes on.
        """
        with self._timed("corpus"):
            corpus = self._corpus()
        if not is_done(self.out):
            self._say("training")
            train(self.config.train, corpus=corpus, out=self.out, progress=self.progress)
        model = load(self.out)
        with self._timed("means"):
            n_token = self.config.prune.n_mean_token
            corpus_means(model, corpus, self.config.train, n_token=n_token, cache=self.out)
        reports = {name: self._circuit(name, model, corpus) for name in self.config.tasks}
        summary = self._summary(model, reports)
        write_json(self.out / "summary.json", summary)
        return summary

    def pages(self) -> list[Path]:
        """Return where the pages are."""
        return [self.out / "circuits" / name / "circuit.html" for name in self.config.tasks]

    def _corpus(self) -> Corpus:
        folder = self.out / "corpus"
        return Corpus(folder) if is_done(folder) else build_corpus(self.config.corpus, folder, on_step=self._say)

    def _circuit(self, name: str, model: Transformer, corpus: Corpus) -> dict[str, Any]:
        folder = self.out / "circuits" / name
        task = make_task(name, model.tokenizer, seed=self.config.seed, corpus=corpus)
        if not is_done(folder):
            with self._timed(f"prune {name}"):
                prune(model, task, self.config.prune, folder=folder, progress=self.progress)
        report = folder / "report.json"
        if not report.exists():
            with self._timed(f"verify {name}"):
                circuit = Circuit.load(folder, model)
                config = dataclasses.replace(VerifyConfig.quick(), n_split_pair=None, n_set=self.config.n_set)
                verify(circuit, task, config, folder=folder, on_step=self._say)
        viewer.view(folder, task=task)
        return read_json(report)

    def _summary(self, model: Transformer, reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
        records = read_records(self.out / "metrics.jsonl")
        validated = next(record for record in reversed(records) if "validation_loss" in record)
        seconds_training = sum(record["seconds"] for record in records)
        counted = count_nonzeros(model)
        return {
            "format": FORMAT,
            "version": VERSION,
            "seconds_total": round(seconds_training + sum(self.seconds.values()), 1),
            "seconds_training": round(seconds_training, 1),
            "seconds": {"training": round(seconds_training, 1), **self.seconds},
            "matrix_density": counted.matrix_density,
            "embedding_density": counted.embedding_density,
            "n_nonzero": counted.n_nonzero,
            "n_bigram_nonzero": counted.n_bigram_nonzero,
            "n_token": self.config.train.n_step * self.config.train.batch_size * self.config.train.context,
            "shares": self.config.train.shares,
            "validation_loss": validated["validation_loss"],
            "bigram_loss": validated["bigram_loss"],
            "own_bigram_loss": validated["own_bigram_loss"],
            "tasks": {name: _row(report) for name, report in reports.items()},
        }

    def _say(self, text: str) -> None:
        say(self.progress, text)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the time spent to the stage's, however it ends; a stage that had nothing to do adds next to nothing."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.monotonic() - started, 1)
            self._remember()

    def _remember(self) -> None:
        described = {"format": FORMAT, "version": VERSION, "config": self.config.to_json(), "seconds": self.seconds}
        write_json(self.out / "demo.json", described)


def _row(report: dict[str, Any]) -> dict[str, Any]:
    """Pick the numbers of one task, all on `test`, losses in nats."""
    test, hard = report["sufficiency"]["test"], report["sufficiency"]["hard"]
    return {
        "model_accuracy": test["model"]["accuracy"],
        "model_loss": test["model"]["loss"]["value"],
        "hard_accuracy": hard["model"]["accuracy"],
        "circuit_loss": test["circuit"]["loss"]["value"],
        "sealed_loss": test["sealed"]["loss"]["value"],
        "n_node": report["n_node"],
        "n_node_total": report["n_node_total"],
        "n_edge": report["n_edge"],
        "necessity_loss": report["necessity"]["loss"]["value"],
        "necessity_auroc": report["necessity"]["auroc"],
        "random_loss_mean": report["random_sets"]["loss_mean"],
        "random_loss_worst": report["random_sets"]["loss_worst"],
    }


def table(summary: dict[str, Any]) -> str:
    """Write a summary as the table that a demo ends with."""
    names = list(summary["tasks"])
    lines = [
        f"training {summary['seconds_training']:.0f} s of {summary['seconds_total']:.0f} s; "
        f"{summary['n_token']:,} tokens ({', '.join(f'{share:.0%} {s}' for s, share in summary['shares'].items())})",
        f"nonzero: {summary['matrix_density']:.1%} of the matrices, "
        f"{summary['embedding_density']:.1%} of the embeddings",
    ]
    for source, loss in summary["validation_loss"].items():
        lines.append(
            f"validation loss on {source}: {loss:.3f} nats a token (bigram table {summary['bigram_loss'][source]:.3f}, "
            f"of this source alone {summary['own_bigram_loss'][source]:.3f})"
        )
    rows = [["", *names]]
    labels = {
        "model_accuracy": "model: accuracy on test",
        "model_loss": "model: loss",
        "hard_accuracy": "model: accuracy, hard form",
        "n_node": "circuit: nodes",
        "n_edge": "circuit: edges",
        "circuit_loss": "circuit: loss",
        "sealed_loss": "circuit: loss, sealed",
        "necessity_loss": "model without the circuit: loss",
        "necessity_auroc": "model without the circuit: AUROC",
        "random_loss_worst": "model without a random set: worst loss",
    }
    for key, label in labels.items():
        values = [summary["tasks"][name][key] for name in names]
        rows.append([label, *(f"{v:,}" if isinstance(v, int) else f"{v:.3f}" for v in values)])
    lines += ["", *aligned(rows)]
    return "\n".join(lines)
