"""The command `sparse-circuits`: parse, call one function, say what was written."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from sparse_circuits import presets
from sparse_circuits.configs import CorpusConfig, DemoConfig, MatchConfig, PruneConfig, TrainConfig
from sparse_circuits.errors import SparseCircuitsError
from sparse_circuits.memory import keep_freed_memory
from sparse_circuits.settings import Config

app = tyro.extras.SubcommandApp()

Out = Annotated[Path, tyro.conf.arg(help="Folder to write.")]
Json = Annotated[bool, tyro.conf.arg(help="Print the result as JSON on stdout.", name="json")]
ModelFolder = Annotated[
    Path, tyro.conf.Positional, tyro.conf.arg(help="A run folder, a checkpoint, or a release's folder.")
]
MaxToken = Annotated[
    int | None, tyro.conf.arg(help="Longest prompt, in tokens; 64 if left out, or 256 of a file of pairs.")
]
CircuitFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="A circuit's folder.")]

_from_file: dict[str, Config] = {}
"""Presets that were read from settings files named on the command line."""


def _presets(kind: dict[str, Any]) -> Callable[[], Any]:
    return lambda: tyro.extras.subcommand_type_from_defaults({**kind, **_from_file})


@app.command
def demo(
    config: Annotated[DemoConfig, tyro.conf.arg(name="", constructor_factory=_presets(presets.DEMO_PRESETS))],
    out: Out = Path("runs/demo"),
    json: Json = False,
) -> None:
    """Train a sparse model on this machine's Python, cut circuits out of it, test and draw them."""
    from sparse_circuits import demo as made
    from sparse_circuits.runlog import terminal

    found = made.Demo(config, out, progress=terminal())
    summary = found.run()
    _tell(summary, made.table(summary), json=json)
    for page in found.pages():
        _wrote(page)


@app.command
def corpus(config: Annotated[CorpusConfig, tyro.conf.arg(name="")], out: Out, json: Json = False) -> None:
    """Read text, train a tokenizer on it, and write token shards."""
    from sparse_circuits.corpus import shards

    built = shards.build(config, out, on_step=_say)
    lines = [
        f"{name}: {entry['n_token']['train']:,} training tokens in {entry['n_document']['train']:,} documents, "
        f"{entry['n_token']['validation']:,} held out; {entry['n_undecodable']} undecodable, "
        f"{entry['n_duplicate']} duplicate, {entry['n_too_long']} too long ({entry['version']})"
        for name, entry in built.index["sources"].items()
    ]
    _tell(built.index, "\n".join(lines), json=json)
    _wrote(out)


@app.command
def audit(
    corpus: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="A finished corpus.")], json: Json = False
) -> None:
    """Say whether a corpus and the tasks fit together, and note it in the corpus's index."""
    from sparse_circuits import audit as audits
    from sparse_circuits.corpus.shards import Corpus

    report = audits.audit(Corpus(corpus))
    _tell(report, audits.table(report), json=json)
    _wrote(corpus / "index.json")


@app.command
def train(
    config: Annotated[TrainConfig, tyro.conf.arg(name="", constructor_factory=_presets(presets.TRAIN_PRESETS))],
    out: Out,
    corpus: Annotated[Path, tyro.conf.arg(help="A finished corpus.")],
    dry_run: Annotated[bool, tyro.conf.arg(help="Say what it will take, and stop.")] = False,
    json: Json = False,
) -> None:
    """Train a model from a preset or a settings file, or go on with the run that OUT holds."""
    from sparse_circuits import training
    from sparse_circuits.runlog import read_records, terminal

    if dry_run:
        plan = training.plan(config, corpus)
        _tell(dataclasses.asdict(plan), str(plan), json=json)
        return
    training.train(config, corpus=corpus, out=out, progress=terminal())
    last = read_records(out / "metrics.jsonl")[-1]
    lines = [
        f"validation loss on {name}: {loss:.3f} nats a token (bigram table {last['bigram_loss'][name]:.3f})"
        for name, loss in last["validation_loss"].items()
    ]
    _tell(last, "\n".join(lines), json=json)
    _wrote(out)


@app.command
def tasks(
    model: ModelFolder,
    task: Annotated[
        str | None, tyro.conf.arg(help="One task, with its card: how it could be cheated. All if left out.")
    ] = None,
    seed: Annotated[int, tyro.conf.arg(help="Decides the prompts.")] = 0,
    json: Json = False,
) -> None:
    """Show what each task asks, with an example, and how well a model does it."""
    from sparse_circuits import survey
    from sparse_circuits.ablation import ablation_values
    from sparse_circuits.faithfulness.card import task_card
    from sparse_circuits.loading import load

    opened = load(model)
    names = [task] if task else None
    found = survey.describe_tasks(opened, names=names, seed=seed, corpus=_corpus_of(opened))
    text = survey.tasks_table(found)
    if task is not None:
        made = _task(task, opened, seed)
        values = ablation_values(opened, "task_mean", fit=made.split("fit"), n_token=1)
        card = dataclasses.asdict(task_card(opened, made, values))
        found[task]["card"] = card
        text += "\n" + "\n".join(f"  {key}: {value}" for key, value in card.items())
    _tell(found, text, json=json)


@app.command
def prune(
    model: ModelFolder,
    out: Out,
    config: Annotated[PruneConfig, tyro.conf.arg(name="")],
    task: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(help="Name of the task, or a .jsonl or .csv file of pairs.")
    ] = None,
    all: Annotated[bool, tyro.conf.arg(help="Every task that the model solves, each in a folder of OUT.")] = False,
    controls: Annotated[
        bool, tyro.conf.arg(help="With --all: nonsense tasks, and models that never learned, too.")
    ] = False,
    seeds: Annotated[int, tyro.conf.arg(help="Prune one task from this many seeds, and compare the circuits.")] = 1,
    max_token: MaxToken = None,
    json: Json = False,
) -> None:
    """Cut out the circuit behind a task, or those behind all tasks."""
    from sparse_circuits.errors import ConfigError
    from sparse_circuits.files import refuse_finished
    from sparse_circuits.loading import load
    from sparse_circuits.pruning import prune as cut_out
    from sparse_circuits.runlog import terminal

    if all == (task is not None):
        raise ConfigError("name one task, or say --all" if task is None else f"{task} and --all: say one of them")
    if all:
        from sparse_circuits import survey

        opened = load(model)
        summary = survey.prune_all(
            opened, out, config, controls=controls, corpus=_corpus_of(opened), progress=terminal()
        )
        _tell(summary, survey.table(summary), json=json)
        _wrote(out / "summary.json")
        return
    assert task is not None
    refuse_finished(out, "circuit")
    opened = load(model)
    made = _task(task, opened, config.seed, max_token)
    for line, reason in made.dropped_rows.items():
        _say(f"{task}, line {line} dropped: {reason}")
    if seeds > 1:
        from sparse_circuits import ensemble

        found = ensemble.prune_seeds(opened, made, out, config, n_seed=seeds, progress=terminal())
        _tell(found, ensemble.table(found), json=json)
        _wrote(out / "ensemble.json")
        return
    circuit = cut_out(opened, made, config, progress=terminal())
    circuit.save(out)
    told = {"n_node": circuit.n_node, "n_node_total": circuit.n_node_total, "n_edge": circuit.n_edge, **circuit.losses}
    _tell(told, str(circuit), json=json)
    _wrote(out)


@app.command
def search(
    model: ModelFolder,
    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="Name of the task, or a file of pairs.")],
    out: Out,
    config: Annotated[PruneConfig, tyro.conf.arg(name="")],
    n_trial: Annotated[int, tyro.conf.arg(help="Settings to try in all.")] = 32,
    n_at_once: Annotated[int, tyro.conf.arg(help="Settings that are learned in one pass.")] = 8,
    json: Json = False,
) -> None:
    """Search the pruner's settings for the smallest circuit, or go on with the search that OUT holds."""
    from sparse_circuits import search as searching
    from sparse_circuits.files import refuse_finished
    from sparse_circuits.loading import load
    from sparse_circuits.runlog import terminal

    refuse_finished(out, "circuit")
    opened = load(model)
    circuit = searching.search_settings(
        opened,
        _task(task, opened, config.seed),
        out,
        config,
        n_trial=n_trial,
        n_at_once=n_at_once,
        progress=terminal(),
    )
    circuit.save(out)
    _tell({"n_node": circuit.n_node, "n_edge": circuit.n_edge, **circuit.losses}, str(circuit), json=json)
    _wrote(out)


@app.command
def match(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="The sparse model's finished run folder.")],
    out: Out,
    config: Annotated[MatchConfig, tyro.conf.arg(name="")],
    prune: PruneConfig,
    tasks: Annotated[
        tuple[str, ...], tyro.conf.arg(help="Tasks to prune in the sparse model and in both dense ones.")
    ] = (),
    json: Json = False,
) -> None:
    """Find the dense model that predicts as well as a sparse one, and compare their circuits."""
    from sparse_circuits import matching
    from sparse_circuits.runlog import terminal

    found = matching.match(run, out, config, tasks=tasks, prune_config=prune, progress=terminal())
    _tell(found, matching.table(found), json=json)
    _wrote(out / "match.json")


@app.command
def verify(circuit: CircuitFolder, json: Json = False) -> None:
    """Test a circuit on prompts that nothing was decided on, and write report.json beside it."""
    from sparse_circuits.circuit import Circuit
    from sparse_circuits.faithfulness import verify as check

    opened = Circuit.load(circuit)
    task = _task(
        opened.task.get("path") or opened.task["name"],
        opened.model,
        opened.task["seed"],
        opened.task.get("max_token"),
    )
    report = check(opened, task, folder=circuit, on_step=_say)
    _tell(report.to_json(), str(report), json=json)
    _wrote(circuit / "report.json")


@app.command
def view(
    circuit: CircuitFolder,
    out: Annotated[Path | None, tyro.conf.arg(help="The file; circuit.html beside the circuit if left out.")] = None,
) -> None:
    """Write the page of a circuit: one file that needs no network."""
    from sparse_circuits.viewer import view as write

    _wrote(write(circuit, out))


@app.command
def inspect(model: ModelFolder, json: Json = False) -> None:
    """Say what a model is: its shape, how sparse it is, its hash."""
    from sparse_circuits.checkpoint import model_hash
    from sparse_circuits.loading import load
    from sparse_circuits.sparsity import count_nonzeros

    opened = load(model)
    counted = dataclasses.asdict(count_nonzeros(opened))
    told = {"hash": model_hash(opened), **counted, "n_node": sum(opened.config.node_widths().values())}
    told["config"] = opened.config.to_json()
    lines = [f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}" for key, value in told.items()]
    _tell(told, "\n".join(lines), json=json)


@app.command
def predict(
    model: ModelFolder,
    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="Text; \\n stands for a newline.")],
    n_token: Annotated[int, tyro.conf.arg(help="Tokens to continue with, the likeliest each time.")] = 12,
    json: Json = False,
) -> None:
    """Continue a prompt, and show the likeliest next tokens."""
    import torch

    from sparse_circuits.errors import FormatError
    from sparse_circuits.loading import load

    opened = load(model)
    if opened.tokenizer is None:
        raise FormatError(f"{model}: the model has no tokenizer.json, so text can't be given to it")
    ids = opened.tokenizer.encode(prompt.replace("\\n", "\n")) or [opened.tokenizer.end_of_text]
    tokens = torch.tensor([ids[-opened.config.n_ctx :]])
    with torch.no_grad():
        top = opened(tokens)[0, -1].softmax(-1).topk(5)
    continued = opened.tokenizer.decode(opened.generate(tokens, n_token)[0].tolist())
    likeliest = {opened.tokenizer.show(int(t)): round(float(p), 4) for p, t in zip(*top, strict=True)}
    text = "\n".join([continued, "", *(f"{p:.3f}  {token!r}" for token, p in likeliest.items())])
    _tell({"text": continued, "next": likeliest}, text, json=json)


def main() -> None:
    """Run the command; an expected error is one line on stderr and exit code 1."""
    arguments = sys.argv[1:]
    keep_freed_memory()
    try:
        if len(arguments) > 1 and arguments[0] in ("train", "demo") and arguments[1].endswith(".json"):
            kind = TrainConfig if arguments[0] == "train" else DemoConfig
            _from_file["file"] = kind.load(arguments[1])
            arguments[1] = "file"
        elif arguments[:1] == ["demo"] and (len(arguments) == 1 or arguments[1].startswith("--")):
            arguments.insert(1, "small")
        app.cli(prog="sparse-circuits", args=arguments, config=(tyro.conf.CascadeSubcommandArgs,))
    except SparseCircuitsError as error:
        sys.exit(f"sparse-circuits: {error}")
    except KeyboardInterrupt as stopped:
        sys.exit(f"sparse-circuits: interrupted; {stopped}" if str(stopped) else "sparse-circuits: interrupted")
    except OSError as error:
        sys.exit(f"sparse-circuits: {error}")


def _task(name: str, model: Any, seed: int, max_token: int | None = None) -> Any:
    """Make a task for a model, with mined pairs if the run's corpus is still there."""
    from sparse_circuits.tasks import task

    return task(name, model.tokenizer, seed=seed, corpus=_corpus_of(model), max_token=max_token)


def _corpus_of(model: Any) -> Any:
    """Return the corpus that a model's run was trained on, if it is still there."""
    from sparse_circuits.ablation import run_of
    from sparse_circuits.errors import CorpusError, FormatError

    if model.folder is None:
        return None
    try:
        return run_of(model.folder)[1]
    except (CorpusError, FormatError) as error:
        _say(f"no mined pairs: {error}")
        return None


def _tell(data: dict[str, Any], text: str, *, json: bool) -> None:
    sys.stdout.write((_dump(data) if json else text) + "\n")


def _dump(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _wrote(path: Path) -> None:
    _say(f"wrote {path}")
