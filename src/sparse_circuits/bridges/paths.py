"""How well hybrids predict: every single transition on held-out text, random paths, and anchors to read them by."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits import kernels
from sparse_circuits.bridges.drawing import draw_hybrids
from sparse_circuits.bridges.maps import Bridge, refuse_other_tokens
from sparse_circuits.bridges.objective import Wanted, nmse
from sparse_circuits.bridges.residual import ResidualModel, streams
from sparse_circuits.bridges.ridge import Moments, record_moments, ridge_bridge, text_batches
from sparse_circuits.configs import BridgeConfig, TrainConfig
from sparse_circuits.corpus.bigram import count_corpus
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import ConfigError
from sparse_circuits.files import write_json, written_whole
from sparse_circuits.runlog import say
from sparse_circuits.tables import aligned

FORMAT, VERSION = "sparse-circuits hybrids", 1
N_ROW = 8
"""Sequences at a time."""

N_RECONSTRUCTED = 4096
"""Held-out tokens that the maps' errors are taken over."""

DENSE = "dense model"
"""The anchor that increases are counted from."""

Forward = Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos vocab"]]
"""Tokens to logits."""


def run_path(
    bridge: Bridge, tokens: Int[Tensor, "batch pos"], path: Sequence[bool]
) -> Float[Tensor, "batch pos vocab"]:
    """Run a path that changes models at the sites.

    Args:
        bridge: Bridges at every site of two models of equal depth.
        tokens: What is read.
        path: For the embedding, each sublayer and the unembedding, whether it is the sparse model's; 2L + 2 entries.
            Between two entries stands a site.

    Raises:
        ConfigError: Some sites have no bridge.
    """
    n = bridge.dense.n_sublayer
    if bridge.bridges.sites != tuple((s, s) for s in range(n + 1)) or len(path) != n + 2:
        raise ConfigError(f"a path needs bridges at all {n + 1} sites, and {n + 2} entries")
    models = [bridge.sparse_stream if is_sparse else bridge.dense for is_sparse in path]
    x = models[0].embed(tokens)
    for site in range(n + 1):
        if path[site] != path[site + 1]:
            x = bridge.bridges.encode(site, x) if path[site + 1] else bridge.bridges.decode(site, x)
        if site < n:
            x = models[site + 1].run(x, site, site + 1)
    return models[-1].unembed(x, tokens)


def transition(bridge: Bridge, place: int, *, to_sparse: bool) -> Forward:
    """Return the forward pass that changes models once, at one pair of sites."""
    sparse_site, dense_site = bridge.bridges.sites[place]
    sparse, dense = bridge.sparse_stream, bridge.dense

    def forward(tokens: Tensor) -> Tensor:
        if to_sparse:
            x = bridge.bridges.encode(place, dense.run(dense.embed(tokens), 0, dense_site))
            return sparse.unembed(sparse.run(x, sparse_site), tokens)
        x = bridge.bridges.decode(place, sparse.run(sparse.embed(tokens), 0, sparse_site))
        return dense.unembed(dense.run(x, dense_site), tokens)

    return forward


def plain(model: ResidualModel) -> Forward:
    """Return a model's own forward pass."""
    return lambda tokens: model.unembed(model.run(model.embed(tokens)), tokens)


@torch.no_grad()
def measure(
    forwards: Mapping[Any, Forward], dense: ResidualModel, windows: Int[Tensor, "window pos"]
) -> dict[Any, tuple[float, float]]:
    """Return each forward pass's cross-entropy and KL(dense ‖ it), nats a token."""
    totals = {name: [0.0, 0.0] for name in forwards}
    for rows in windows.split(N_ROW):
        inputs, following = rows[:, :-1], rows[:, 1:]
        wanted = Wanted.of(plain(dense)(inputs))
        for name, forward in forwards.items():
            logits = forward(inputs)
            totals[name][0] += float(F.cross_entropy(logits.flatten(0, 1), following.flatten())) * len(rows)
            totals[name][1] += float(wanted.kl(logits)) * len(rows)
    return {name: (ce / len(windows), kl / len(windows)) for name, (ce, kl) in totals.items()}


def evaluate_hybrids(
    bridge: Bridge,
    *,
    corpus: Corpus | None = None,
    train: TrainConfig | None = None,
    n_token: int = 16_384,
    n_ridge_token: int = 50_000,
    n_path: int = 8,
    others: dict[str, ResidualModel] | None = None,
    out: Path | str | None = None,
    progress: TextIO | None = None,
) -> dict[str, Any]:
    """Measure hybrids on held-out text, with anchors beside them.

    Args:
        bridge: Models and bridges.
        corpus: Held-out files by source, mixed in the shares of `train`; the sparse run's if left out.
        train: Settings whose shares and context count.
        n_token: Held-out tokens.
        n_ridge_token: Training tokens that the ridge anchor and the means are taken from.
        n_path: Random paths through both models; they were never trained.
        others: More anchors by name, such as a second dense seed.
        out: Folder for `hybrids.json` and `hybrids.svg`; None writes nothing.
        progress: Where progress goes; None is silent.

    Returns:
        What `hybrids.json` holds; see docs/formats.md.
    """
    train, corpus = bridge.text(train, corpus)
    others = others or {}
    for name, other in others.items():
        refuse_other_tokens(bridge.sparse.tokenizer, bridge.dense.n_vocab, other, mine="the sparse model", name=name)
    n_ctx = min(model.n_ctx for model in (bridge.dense, bridge.sparse_stream, *others.values()))
    windows = held_out(corpus, train, n_token=n_token, n_ctx=n_ctx)
    say(progress, "the ridge bridge and the means")
    anchors = _anchors(bridge, corpus, train, others)
    transitions = _transitions(bridge, corpus, train, n_ridge_token=n_ridge_token)
    paths = _random_paths(bridge, n_path)
    forwards = {("anchor", name): forward for name, forward in anchors.items()}
    forwards |= {("transition", *key): forward for key, forward in transitions.items()}
    forwards |= {("path", path): lambda t, p=path: run_path(bridge, t, [c == "s" for c in p]) for path in paths}
    say(progress, f"{len(forwards)} forward passes over {windows.numel():,} tokens")
    measured = measure(forwards, bridge.dense, windows)
    entries = {key: _entry(pair, measured["anchor", DENSE][0]) for key, pair in measured.items()}
    found: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "bridge": bridge.kind,
        "n_token": windows.numel(),
        "dense_hash": bridge.dense.hash,
        "sparse_hash": bridge.sparse_stream.hash,
        "anchors": [{"name": name, **entries["anchor", name]} for name in anchors],
        "transitions": [
            {
                "site": bridge.bridges.sparse_sites[place],
                "dense_site": bridge.bridges.dense_sites[place],
                "to": to,
                "kind": kind,
                **entries["transition", kind, to, place],
            }
            for kind, to, place in transitions
        ],
        "random_paths_untrained": [{"path": path, **entries["path", path]} for path in paths],
        "reconstruction": reconstruction(bridge, _some_windows(windows, N_RECONSTRUCTED)),
    }
    if out is not None:
        write_json(Path(out) / "hybrids.json", found)
        with written_whole(Path(out) / "hybrids.svg") as temporary:
            temporary.write_text(draw_hybrids(found), encoding="utf-8")
    return found


def held_out(corpus: Corpus, train: TrainConfig, *, n_token: int, n_ctx: int) -> Int[Tensor, "window pos"]:
    """Return held-out windows, each source by its share; fewer of all where one is too short for its share."""
    context = min(train.context, n_ctx)
    found = {
        name: corpus.windows(name, "validation", context=context, n_token=round(share * n_token))
        for name, share in train.shares.items()
    }
    wanted = {name: max(1, round(share * n_token) // context) for name, share in train.shares.items()}
    covered = min(len(windows) / wanted[name] for name, windows in found.items())
    return torch.cat([windows[: max(1, round(covered * wanted[name]))] for name, windows in found.items()])


def _some_windows(windows: Int[Tensor, "window pos"], n_token: int) -> Int[Tensor, "some pos"]:
    """Return about `n_token` tokens of windows, evenly spread, so that each source keeps its share."""
    n_window = max(1, n_token // windows.shape[1])
    return windows[torch.linspace(0, len(windows) - 1, min(n_window, len(windows))).round().long()]


@torch.no_grad()
def reconstruction(bridge: Bridge, tokens: Int[Tensor, "batch pos"]) -> list[dict[str, float]]:
    """Return each pair's NMSE both ways, and the share of the sparse stream's variance that AbsTopK drops.

    That share is the floor of the encoder's NMSE: even a perfect encoder is behind AbsTopK.
    """
    h_s, _ = streams(bridge.sparse_stream, tokens, bridge.bridges.sparse_sites)
    h_d, _ = streams(bridge.dense, tokens, bridge.bridges.dense_sites)
    n_keep = bridge.bridges.n_keep
    return [
        {
            "site": site,
            "nmse_encoder": float(nmse(bridge.bridges.encode(i, d), s)),
            "nmse_decoder": float(nmse(bridge.bridges.decode(i, s), d)),
            "dropped_by_topk": 0.0 if n_keep is None else float(nmse(kernels.abs_topk(s, n_keep), s)),
        }
        for i, (site, s, d) in enumerate(zip(bridge.bridges.sparse_sites, h_s, h_d, strict=True))
    ]


def table(found: dict[str, Any]) -> str:
    """Write the evaluation as a table."""
    kinds = list(dict.fromkeys(row["kind"] for row in found["transitions"]))
    rows = [["site", "to", *(f"{kind}: KL, increase" for kind in kinds), "NMSE", "dropped"]]
    by_key = {(r["site"], r["to"], r["kind"]): r for r in found["transitions"]}
    for error in found["reconstruction"]:
        for to in ("sparse", "dense"):
            cells = [by_key.get((error["site"], to, kind)) for kind in kinds]
            shown = ["" if c is None else f"{c['kl']:.3f}, {c['increase']:+.3f}" for c in cells]
            is_encoder = to == "sparse"
            value = f"{error['nmse_encoder' if is_encoder else 'nmse_decoder']:.3f}"
            rows.append(
                [str(error["site"]), to, *shown, value, f"{error['dropped_by_topk']:.3f}" if is_encoder else ""]
            )
    anchors = [["anchor", "KL", "cross-entropy", "increase"]]
    for anchor in found["anchors"]:
        anchors.append([anchor["name"], *(f"{anchor[k]:.3f}" for k in ("kl", "ce", "increase"))])
    for path in found["random_paths_untrained"]:
        anchors.append(
            [f"random path {path['path']}, untrained", *(f"{path[k]:.3f}" for k in ("kl", "ce", "increase"))]
        )
    return "\n".join([*aligned(rows), "", *aligned(anchors)])


def _entry(measured: tuple[float, float], base: float) -> dict[str, float]:
    return {"kl": measured[1], "ce": measured[0], "increase": measured[0] - base}


def _anchors(
    bridge: Bridge, corpus: Corpus, train: TrainConfig, others: dict[str, ResidualModel]
) -> dict[str, Forward]:
    """Return the forward passes without a bridge, by name."""
    models = {DENSE: bridge.dense, "sparse model alone": bridge.sparse_stream, **others}
    counts = count_corpus(corpus, list(train.shares))

    def bigram(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        return counts.log_probability_after(tokens.flatten(), 1.0).unflatten(0, tokens.shape)

    return {name: plain(model) for name, model in models.items()} | {"bigram table": bigram}


def _transitions(
    bridge: Bridge, corpus: Corpus, train: TrainConfig, *, n_ridge_token: int
) -> dict[tuple[str, str, int], Forward]:
    """Return every single transition by its kind, the model that it changes to, and the pair of sites."""
    sites = tuple(f"{s}:{d}" for s, d in bridge.bridges.sites)
    kinds = {bridge.kind: bridge}
    if bridge.kind != "ridge":
        settings = BridgeConfig(sites=sites, n_ridge_token=n_ridge_token, encoder_density=bridge.bridges.density)
        kinds["ridge"] = ridge_bridge(
            sparse=bridge.sparse, dense=bridge.dense, corpus=corpus, train=train, config=settings
        )
    n_ctx = min(bridge.dense.n_ctx, bridge.sparse.config.n_ctx)
    batches = text_batches(corpus, train, n_token=n_ridge_token, n_ctx=n_ctx)
    moments = record_moments(bridge.sparse_stream, bridge.dense, bridge.bridges.sites, batches)
    found: dict[tuple[str, str, int], Forward] = {}
    for to in ("sparse", "dense"):
        for place in range(len(sites)):
            for kind, maps in kinds.items():
                found[kind, to, place] = transition(maps, place, to_sparse=to == "sparse")
            found["mean-ablated", to, place] = _ablated(bridge, moments, place, to)
    return found


def _ablated(bridge: Bridge, moments: Moments, place: int, to: str) -> Forward:
    """Return a model with the stream at a site set to its mean: what a transition to it must beat."""
    if to == "sparse":
        model, site, mean = bridge.sparse_stream, bridge.bridges.sparse_sites[place], moments.mean_s(place)
    else:
        model, site, mean = bridge.dense, bridge.bridges.dense_sites[place], moments.mean_d(place)
    return lambda tokens: model.unembed(model.run(mean.expand(*tokens.shape, -1), site), tokens)


def _random_paths(bridge: Bridge, n_path: int) -> list[str]:
    """Draw paths such as `ddssdsds`, a letter for the embedding, each sublayer and the unembedding.

    All change models twice or more, fewer than `n_path` of them where a shallow model has no more: single transitions
    are trained, and stand in a table of their own.
    """
    n = bridge.dense.n_sublayer
    if bridge.bridges.sites != tuple((s, s) for s in range(n + 1)):
        return []
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(2, (16 * n_path, n + 2), generator=generator)
    drawn = drawn[(drawn.diff(dim=1) != 0).sum(1) >= 2].tolist()
    return list(dict.fromkeys("".join("s" if bit else "d" for bit in path) for path in drawn))[:n_path]
