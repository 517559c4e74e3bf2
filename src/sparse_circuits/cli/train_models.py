"""Commands that make models and look at them: corpus, audit, train, match, inspect, generate, and the demo."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from sparse_circuits import presets as known
from sparse_circuits.cli.told import Json, ModelFolder, Out, say, tell, wrote
from sparse_circuits.configs import CorpusConfig, DemoConfig, MatchConfig, PruneConfig, TrainConfig
from sparse_circuits.settings import Config

from_file: dict[str, Config] = {}
"""Presets that were read from settings files named on the command line."""


def presets(kind: dict[str, Any]) -> Callable[[], Any]:
    """Return the parser of a preset's name, what files hold included."""
    return lambda: tyro.extras.subcommand_type_from_defaults({**kind, **from_file})


def demo(
    config: Annotated[DemoConfig, tyro.conf.arg(name="", constructor_factory=presets(known.DEMO_PRESETS))],
    out: Out = Path("runs/demo"),
    json: Json = False,
) -> None:
    """Train a sparse model on this machine's Python, cut circuits out of it, test and draw them."""
    from sparse_circuits import demo as made
    from sparse_circuits.runlog import terminal

    found = made.Demo(config, out, progress=terminal())
    summary = found.run()
    tell(summary, made.table(summary), json=json)
    for page in found.pages():
        wrote(page)


def corpus(
    config: Annotated[CorpusConfig, tyro.conf.arg(name="")],
    out: Out,
    tokenizer: Annotated[
        Path | None, tyro.conf.arg(help="A tokenizer.json to use as it is; its size takes the place of n_vocab.")
    ] = None,
    json: Json = False,
) -> None:
    """Read text, train a tokenizer on it, and write token shards."""
    from sparse_circuits.building import build_corpus
    from sparse_circuits.tokenizer import Tokenizer

    given = None if tokenizer is None else Tokenizer.load(tokenizer)
    if given is not None:
        config = dataclasses.replace(config, n_vocab=given.n_vocab)
    built = build_corpus(config, out, tokenizer=given, on_step=say)
    lines = [
        f"{name}: {entry['n_token']['train']:,} training tokens in {entry['n_document']['train']:,} documents, "
        f"{entry['n_token']['validation']:,} held out; {entry['n_undecodable']} undecodable, "
        f"{entry['n_duplicate']} duplicate, {entry['n_too_long']} too long, {entry['n_leaking']} like a task's prompts "
        f"({entry['version']})"
        for name, entry in built.index["sources"].items()
    ]
    tell(built.index, "\n".join(lines), json=json)
    wrote(out)


def audit(
    corpus: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="A finished corpus.")], json: Json = False
) -> None:
    """Say whether a corpus and the tasks fit together, and note it in the corpus's index."""
    from sparse_circuits import audit as audits
    from sparse_circuits.corpus.shards import Corpus

    report = audits.audit(Corpus(corpus))
    tell(report, audits.table(report), json=json)
    wrote(corpus / "index.json")


def train(
    config: Annotated[TrainConfig, tyro.conf.arg(name="", constructor_factory=presets(known.TRAIN_PRESETS))],
    out: Out,
    corpus: Annotated[Path, tyro.conf.arg(help="A finished corpus.")],
    dry_run: Annotated[bool, tyro.conf.arg(help="Say what it will take, and stop.")] = False,
    profile: Annotated[bool, tyro.conf.arg(help="Say where a step's time goes, and stop.")] = False,
    device: Annotated[str, tyro.conf.arg(help="Where to compute: cpu, cuda or cuda:N.")] = "cpu",
    json: Json = False,
) -> None:
    """Train a model from a preset or a settings file, or go on with the run that OUT holds."""
    from sparse_circuits import training
    from sparse_circuits.runlog import read_records, terminal

    if dry_run:
        plan = training.plan(config, corpus)
        tell(dataclasses.asdict(plan), str(plan), json=json)
        return
    if profile:
        from sparse_circuits import profiling

        found = profiling.profile_training(config, corpus=corpus, device=device)
        tell({"profiles": [dataclasses.asdict(one) for one in found]}, profiling.table(found), json=json)
        return
    training.train(config, corpus=corpus, out=out, progress=terminal(), device=device)
    last = read_records(out / "metrics.jsonl")[-1]
    lines = [
        f"validation loss on {name}: {loss:.3f} nats a token (bigram table {last['bigram_loss'][name]:.3f})"
        for name, loss in last["validation_loss"].items()
    ]
    tell(last, "\n".join(lines), json=json)
    wrote(out)


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
    tell(found, matching.table(found), json=json)
    wrote(out / "match.json")


def inspect(model: ModelFolder, json: Json = False) -> None:
    """Say what a model is: its layout and shape, how sparse it is, its hash."""
    from sparse_circuits.checkpoint import model_hash
    from sparse_circuits.loading import layout_of, load
    from sparse_circuits.released import locate
    from sparse_circuits.sparsity import count_nonzeros

    opened = load(model)
    folder = locate(model)
    counted = dataclasses.asdict(count_nonzeros(opened))
    told = {"folder": str(folder), "layout": layout_of(folder), "hash": model_hash(opened), **counted}
    told |= {"n_node": sum(opened.config.node_widths().values())}
    told["tokenizer"] = "none" if opened.tokenizer is None else f"{opened.tokenizer.n_vocab:,} tokens"
    told["config"] = opened.config.to_json()
    lines = [f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}" for key, value in told.items()]
    tell(told, "\n".join(lines), json=json)


def generate(
    model: ModelFolder,
    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="Text; \\n stands for a newline.")],
    n_token: Annotated[int, tyro.conf.arg(help="Tokens to continue with, the likeliest each time.")] = 12,
    json: Json = False,
) -> None:
    """Continue a prompt, and show the likeliest next tokens."""
    import torch

    from sparse_circuits.errors import ConfigError, FormatError
    from sparse_circuits.loading import load

    if n_token < 0:
        raise ConfigError(f"n_token is {n_token}, expected 0 or more")
    opened = load(model)
    if opened.tokenizer is None:
        raise FormatError(f"{model}: the model has no tokenizer.json, so text can't be given to it")
    ids = opened.tokenizer.encode(prompt.replace("\\n", "\n")) or [opened.tokenizer.end_of_text]
    n_unread = max(0, len(ids) - opened.config.n_ctx)
    if n_unread:
        say(f"the prompt has {len(ids)} tokens; the model reads the last {opened.config.n_ctx}")
    tokens = torch.tensor([ids[n_unread:]])
    with torch.no_grad():
        top = opened(tokens)[0, -1].softmax(-1).topk(5)
    continued = opened.tokenizer.decode(ids[:n_unread] + opened.generate(tokens, n_token)[0].tolist())
    likeliest = {opened.tokenizer.show(int(t)): round(float(p), 4) for p, t in zip(*top, strict=True)}
    text = "\n".join([continued, "", *(f"{p:.3f}  {token!r}" for token, p in likeliest.items())])
    tell({"text": continued, "next": likeliest}, text, json=json)
