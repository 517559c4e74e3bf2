"""What a removed node is set to: its mean over the corpus, over the task's prompts, or zero."""

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.checkpoint import load_arrays, model_hash, save_arrays
from sparse_circuits.configs import TrainConfig
from sparse_circuits.corpus.shards import Batches, Corpus
from sparse_circuits.errors import ConfigError, CorpusError, FormatError
from sparse_circuits.files import read_json
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.taps import reading
from sparse_circuits.tasks.pairs import Pairs

FORMAT, VERSION = "sparse-circuits means", 1


@torch.no_grad()
def sum_activations(
    model: Transformer, tokens: Int[Tensor, "batch pos"], *, counts: Int[Tensor, "batch pos"] | None = None
) -> Float[Tensor, " node"]:
    """Return each node's activation, after AbsTopK, summed over tokens in float64.

    Args:
        model: The model.
        tokens: What it reads.
        counts: How often each token counts, such as 0 for padding; once each if left out.
    """
    space = NodeSpace.of(model.config)
    with reading(model, *space.widths) as seen:
        model.run(model.embed(tokens))
    weight = torch.ones_like(tokens) if counts is None else counts
    flat = weight.flatten().double()
    return space.join({name: flat @ seen[name].flatten(0, 1).double() for name in space.widths})


def corpus_means(
    model: Transformer, corpus: Corpus, config: TrainConfig, *, n_token: int, cache: Path | None = None
) -> Float[Tensor, " node"]:
    """Return each node's mean activation over training text, in the shares that the model trained on.

    Args:
        model: The model.
        corpus: Its corpus.
        config: The run's settings: shares, context and seed say which text.
        n_token: Least tokens to average over.
        cache: The run folder, to keep the means in, those over other numbers of tokens beside them; None keeps nothing.
    """
    n_row = -(-n_token // config.context)
    n_token, name = n_row * config.context, corpus.hash[:16]
    if cache is not None and (kept := _kept_means(model, cache, f"{name}*").get(n_token)) is not None:
        return kept
    batches = Batches(
        corpus, shares=config.shares, context=config.context, batch_size=n_row, n_step=1, seed=config.seed
    )
    total = torch.zeros(NodeSpace.of(model.config).n_node, dtype=torch.double)
    for part in batches(0).split(32):
        total += sum_activations(model, part)
    mean = (total / n_token).float()
    if cache is not None:
        header = {
            "format": FORMAT,
            "version": VERSION,
            "model_hash": model_hash(model),
            "corpus_hash": corpus.hash,
            "n_token": n_token,
        }
        save_arrays(cache / "means" / f"{name}-{n_token}.safetensors", {"mean": mean.numpy()}, header)
    return mean


def stored_means(model: Transformer, folder: Path, *, n_token: int = 0) -> Float[Tensor, " node"] | None:
    """Return the means that lie in a run folder, if there are some of this very model over as many tokens or more.

    Of several, those over the fewest tokens that are enough.
    """
    kept = _kept_means(model, folder)
    return min(((n, mean) for n, mean in kept.items() if n >= n_token), key=lambda one: one[0], default=(0, None))[1]


def _kept_means(model: Transformer, folder: Path, name: str = "*") -> dict[int, Float[Tensor, " node"]]:
    """Return the means of this very model that lie in a run folder, by the tokens that they are taken over."""
    hash_, found = model_hash(model), {}
    for path in sorted((folder / "means").glob(f"{name}.safetensors")):
        header, arrays = load_arrays(path, FORMAT, VERSION)
        if header["model_hash"] == hash_:
            found.setdefault(header["n_token"], torch.from_numpy(arrays["mean"].copy()))
    return found


def task_means(model: Transformer, pairs: Pairs) -> Float[Tensor, " node"]:
    """Return each node's mean activation over the tokens of a task's prompts, padding left out."""
    total = torch.zeros(NodeSpace.of(model.config).n_node, dtype=torch.double)
    for part in pairs.batches(128):
        tokens = part.tokens.flatten(0, 1)
        is_prompt = torch.arange(tokens.shape[1]) < part.length.repeat_interleave(2)[:, None]
        total += sum_activations(model, tokens, counts=is_prompt.long())
    return (total / (2 * int(pairs.length.sum()))).float()


def ablation_values(
    model: Transformer, how: Literal["mean", "zero", "task_mean"], *, fit: Pairs, n_token: int
) -> Float[Tensor, " node"]:
    """Return what removed nodes are set to.

    Means over the corpus are the same for the same `n_token`, whatever others were asked for before; only where the
    corpus is gone do those over more tokens stand in.

    Args:
        model: A model of a run folder, for `mean`.
        how: The mean over the corpus, zero, or the mean over the fit split's prompts.
        fit: That split.
        n_token: Least tokens of the corpus to average over.

    Raises:
        ConfigError: Means are asked for, and neither they, over as many tokens, nor the corpus can be found.
    """
    if how == "zero":
        return torch.zeros(NodeSpace.of(model.config).n_node)
    if how == "task_mean":
        return task_means(model, fit)
    folder = model.folder
    found = None if folder is None else stored_means(model, folder, n_token=n_token)
    if folder is None or not is_run(folder):
        if found is None:
            raise ConfigError(
                "ablation mean needs the corpus, and this model comes from no run folder; take task_mean or zero"
            )
        return found
    try:
        config, corpus = run_of(folder)
        return corpus_means(model, corpus, config, n_token=n_token, cache=folder)
    except (CorpusError, FormatError) as error:
        if found is not None:
            return found
        if stored_means(model, folder) is None:
            raise
        raise ConfigError(
            f"{folder}: the means there are over fewer than the {n_token:,} tokens asked for (n_mean_token), "
            f"and the corpus for more is gone: {error}"
        ) from None


def is_run(folder: Path) -> bool:
    """Say whether the folder is that of a run, which knows its corpus."""
    path = folder / "config.json"
    return path.exists() and read_json(path).get("format") == "sparse-circuits run"


def run_of(folder: Path) -> tuple[TrainConfig, Corpus]:
    """Return the settings and the corpus of a run.

    Raises:
        FormatError: The corpus is no longer the one that the run was trained on.
    """
    path = folder / "config.json"
    named = read_json(path, expect="sparse-circuits run")["corpus"]
    corpus = Corpus(folder / named["path"])
    if corpus.hash != named["hash"]:
        raise FormatError(f"{corpus.folder}: not the corpus that {path} names; its hash differs")
    return settings_of(folder), corpus


def settings_of(folder: Path) -> TrainConfig:
    """Return the settings of a run, whose corpus may be gone."""
    path = folder / "config.json"
    return TrainConfig.from_json(read_json(path, expect="sparse-circuits run")["train"], where=str(path))
