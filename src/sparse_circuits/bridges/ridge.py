"""Bridges in closed form: ridge regression between recorded streams. Minutes, for a pair of models as they are."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.ablation import run_of, settings_of
from sparse_circuits.bridges.maps import Bridge, Bridges, refuse_other_tokens, site_pairs
from sparse_circuits.bridges.residual import (
    OwnModel,
    ResidualModel,
    as_residual,
    frozen,
    open_residual,
    path_of,
    streams,
)
from sparse_circuits.configs import BridgeConfig, TrainConfig
from sparse_circuits.corpus.shards import Batches, Corpus
from sparse_circuits.errors import ConfigError
from sparse_circuits.formats.hf_residual import is_hf_folder
from sparse_circuits.loading import load
from sparse_circuits.model import Transformer

N_ROW = 16
"""Sequences that are recorded at a time."""


@dataclasses.dataclass
class Moments:
    """First and second moments of both streams at each pair of sites, summed over tokens in float64.

    Each list is by pair of sites; `s` is the sparse stream, `d` the dense one.
    """

    n_token: int
    """Tokens summed over."""

    sum_s: list[Float[Tensor, " d_sparse"]]
    sum_d: list[Float[Tensor, " d_dense"]]
    ss: list[Float[Tensor, "d_sparse d_sparse"]]
    dd: list[Float[Tensor, "d_dense d_dense"]]
    sd: list[Float[Tensor, "d_sparse d_dense"]]
    divisor_s: list[float]
    """Sums of the squared divisors of the norms that read the streams."""
    divisor_d: list[float]

    @property
    def rms(self) -> tuple[tuple[float, float], ...]:
        """Root mean square of each divisor, sparse and dense."""
        pairs = zip(self.divisor_s, self.divisor_d, strict=True)
        return tuple(((s / self.n_token) ** 0.5, (d / self.n_token) ** 0.5) for s, d in pairs)

    def mean_s(self, i: int) -> Float[Tensor, " d_sparse"]:
        """Return the sparse stream's mean at the i-th pair."""
        return (self.sum_s[i] / self.n_token).float()

    def mean_d(self, i: int) -> Float[Tensor, " d_dense"]:
        """Return the dense stream's mean at the i-th pair."""
        return (self.sum_d[i] / self.n_token).float()


@torch.no_grad()
def record_moments(
    sparse: ResidualModel,
    dense: ResidualModel,
    sites: tuple[tuple[int, int], ...],
    batches: Iterable[Int[Tensor, "batch pos"]],
) -> Moments:
    """Run both models over text and sum the moments of their streams."""
    found: Moments | None = None
    for tokens in batches:
        h_s, _ = streams(sparse, tokens, [s for s, _ in sites])
        h_d, _ = streams(dense, tokens, [d for _, d in sites])
        flat_s = [h.flatten(0, 1).double() for h in h_s]  # (token, d_sparse) each
        flat_d = [h.flatten(0, 1).double() for h in h_d]
        new = Moments(
            n_token=tokens.numel(),
            sum_s=[h.sum(0) for h in flat_s],
            sum_d=[h.sum(0) for h in flat_d],
            ss=[h.T @ h for h in flat_s],
            dd=[h.T @ h for h in flat_d],
            sd=[s.T @ d for s, d in zip(flat_s, flat_d, strict=True)],
            divisor_s=[
                float(sparse.divisor(site, h).double().square().sum()) for (site, _), h in zip(sites, h_s, strict=True)
            ],
            divisor_d=[
                float(dense.divisor(site, h).double().square().sum()) for (_, site), h in zip(sites, h_d, strict=True)
            ],
        )
        found = new if found is None else _added(found, new)
    if found is None:
        raise ValueError("batches is empty, expected at least one")
    return found


@torch.no_grad()
def fit_ridge_(bridges: Bridges, moments: Moments, *, ridge: float) -> None:
    """Set the bridges to the maps that minimise the squared error plus a penalty on the weights.

    W = Cov(y, x) (Cov(x) + λ mean variance of x · I)⁻¹, bias = mean y − W mean x. AbsTopK is not in the fit; it acts
    behind the encoder all the same.

    Args:
        bridges: Changed in place.
        moments: Of the two streams.
        ridge: λ, above 0.
    """
    n = moments.n_token
    for i in range(len(bridges.sites)):
        s, d = moments.sum_s[i] / n, moments.sum_d[i] / n
        cov_ss = moments.ss[i] / n - torch.outer(s, s)
        cov_dd = moments.dd[i] / n - torch.outer(d, d)
        cov_sd = moments.sd[i] / n - torch.outer(s, d)
        for linear, cov_in, cross, mean_in, mean_out in (
            (bridges.encoders[i], cov_dd, cov_sd, d, s),
            (bridges.decoders[i], cov_ss, cov_sd.T, s, d),
        ):
            penalty = ridge * cov_in.diagonal().mean().clamp(min=1e-12) * torch.eye(len(cov_in), dtype=torch.double)
            weight = torch.linalg.solve(cov_in + penalty, cross.T).T  # (target, source)
            linear.weight.copy_(weight)  # pyright: ignore
            linear.bias.copy_(mean_out - weight @ mean_in)  # pyright: ignore


def text_batches(
    corpus: Corpus, config: TrainConfig, *, n_token: int, n_ctx: int
) -> Iterable[Int[Tensor, "batch pos"]]:
    """Yield training text in the shares that a model trained on, as whole contexts, at least `n_token` tokens."""
    context = min(config.context, n_ctx)
    n_step = -(-n_token // (N_ROW * context))
    batches = Batches(corpus, shares=config.shares, context=context, batch_size=N_ROW, n_step=n_step, seed=config.seed)
    return (batches(step) for step in range(n_step))


def ridge_bridge(
    *,
    sparse: Transformer,
    dense: Transformer | ResidualModel,
    corpus: Corpus,
    train: TrainConfig,
    config: BridgeConfig | None = None,
    paths: tuple[str | None, str | None] | None = None,
) -> Bridge:
    """Bridge two finished models by regression alone; no weight is changed, and the dense model is frozen.

    Args:
        sparse: The sparse model.
        dense: The dense model.
        corpus: Text.
        train: Settings whose shares, context and seed say which text.
        config: `n_ridge_token`, `ridge`, `encoder_density` and `sites` count here.
        paths: Where the dense and the sparse model lie; the folders that they were opened from if left out.

    Raises:
        ConfigError: Depths differ without a map, or tokenizers differ.

    Source: ours; a public attempt at the paper's Figure 9 did the same.
    """
    config = config or BridgeConfig()
    own, other = OwnModel(sparse), frozen(as_residual(dense))
    refuse_other_tokens(sparse.tokenizer, own.n_vocab, other, mine="the sparse model")
    bridges = new_bridges(own, other, config)
    batches = text_batches(corpus, train, n_token=config.n_ridge_token, n_ctx=min(own.n_ctx, other.n_ctx))
    moments = record_moments(own, other, bridges.sites, batches)
    fit_ridge_(bridges, moments, ridge=config.ridge)
    return Bridge(
        dense=other,
        sparse=sparse,
        bridges=bridges.requires_grad_(False),
        rms=moments.rms,
        kind="ridge",
        settings={"bridge": config.to_json(), "n_token": moments.n_token, "corpus_hash": corpus.hash},
        paths=(path_of(dense), path_of(sparse)) if paths is None else paths,
    )


def quick_bridge(config: BridgeConfig, *, dense: Path, sparse: Path | None, corpus: Path | None = None) -> Bridge:
    """Open two finished models and bridge them by regression.

    Raises:
        ConfigError: No sparse model is given, or the models don't fit together.
    """
    if sparse is None:
        raise ConfigError("a quick bridge joins two finished models: name the sparse one, --sparse RUN")
    return ridge_bridge(
        sparse=load(sparse),
        dense=open_residual(dense),
        corpus=run_of(sparse)[1] if corpus is None else Corpus(corpus),
        train=settings_of(sparse),
        config=config,
        paths=(str(dense), str(sparse)),
    )


def corpus_for(corpus: Corpus | Path | str | None, dense: str | None) -> Corpus:
    """Return the corpus that was given, or the one that the dense run was trained on.

    Raises:
        ConfigError: None is given, and the dense model comes from no run folder.
    """
    if isinstance(corpus, Corpus):
        return corpus
    if corpus is not None:
        return Corpus(corpus)
    if dense is None or is_hf_folder(Path(dense)):
        raise ConfigError("name a corpus: the dense model comes from no run folder")
    return run_of(Path(dense))[1]


def new_bridges(sparse: ResidualModel, dense: ResidualModel, config: BridgeConfig) -> Bridges:
    """Make bridges at random for a pair of models."""
    return Bridges(
        d_sparse=sparse.d_model,
        d_dense=dense.d_model,
        sites=site_pairs(config.sites, sparse=sparse, dense=dense),
        density=config.encoder_density,
        seed=config.seed,
    )


def _added(a: Moments, b: Moments) -> Moments:
    def add(x: list, y: list) -> list:
        return [left + right for left, right in zip(x, y, strict=True)]

    fields = {f.name: getattr(a, f.name) for f in dataclasses.fields(Moments) if f.name != "n_token"}
    return Moments(
        n_token=a.n_token + b.n_token, **{name: add(value, getattr(b, name)) for name, value in fields.items()}
    )
