"""What training minimises: next-token loss, reconstruction and KL through hybrid forward passes, and its gradients.

With h_d the dense stream, h_s the sparse one, f_i and g_i the encoder and decoder at the i-th pair of sites, y the
dense model's distribution, and `tail` the sublayers from a site on and the unembedding:

    CE(sparse) + a Σ_i [NMSE(f_i(h_d), ⌊h_s⌋) + NMSE(g_i(h_s), h_d)]
               + b Σ_i [KL(y ‖ sparse tail of f_i(h_d)) + KL(y ‖ dense tail of g_i(h_s))]

⌊·⌋ is detached. The dense model is frozen, so y and h_d are constants. The encoder's target is the one place where
the sparse model could lower a loss by shrinking or simplifying its stream; there it gets no gradient. It is trained by
the next-token loss, by both KL terms, and by what its stream tells of the dense one, whose size is fixed.

NMSE(x, t) = Σ ‖x − t‖² / Σ ‖t − mean t‖², sums over all tokens of the batch, the denominator detached: 1 − R². KL is
KL(dense ‖ hybrid) over the whole vocabulary, averaged over tokens.

Source: paper appendix A.3; the normaliser, the detached target and KL's average are ours: the paper leaves them open.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.bridges.maps import Bridges
from sparse_circuits.bridges.residual import ResidualModel, run_tails, streams
from sparse_circuits.configs import BridgeConfig


def nmse(x: Float[Tensor, "batch pos channel"], target: Float[Tensor, "batch pos channel"]) -> Float[Tensor, ""]:
    """Return the squared error over the target's variance around its mean: 0 is exact, 1 is as good as the mean."""
    spread = (target - target.mean((0, 1))).square().sum().detach()
    return (x - target).square().sum() / spread.clamp(min=1e-12)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The dense model's distribution at some positions: what hybrids should predict."""

    p: Float[Tensor, "batch pos vocab"]
    """Probabilities."""

    negative_entropy: Float[Tensor, "batch pos"]
    """Σ p ln p, nats."""

    @classmethod
    def of(cls, logits: Float[Tensor, "batch pos vocab"]) -> "Wanted":
        """Take the distribution of logits."""
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        return cls(p, (p * log_p).sum(-1))

    def kl(self, logits: Float[Tensor, "*hybrid batch pos vocab"]) -> Float[Tensor, "*hybrid"]:
        """Return KL(dense ‖ hybrid) in nats, averaged over tokens."""
        cross = logits.logsumexp(-1) - torch.einsum("btv,...btv->...bt", self.p, logits)
        return (self.negative_entropy + cross).mean((-1, -2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Losses:
    """The terms of one step; lists are by pair of sites."""

    next_token: float
    """Cross-entropy of the sparse model, nats a token."""

    nmse_encoder: list[float]
    """Of f_i(h_d) against h_s."""

    nmse_decoder: list[float]
    """Of g_i(h_s) against h_d."""

    kl_to_sparse: dict[int, float]
    """KL(dense ‖ sparse tail on f_i(h_d)), nats a token, of the pairs that had a hybrid in this step."""

    kl_to_dense: dict[int, float]
    """KL(dense ‖ dense tail on g_i(h_s)), likewise."""

    total: float
    """The weighted sum; where a subset of sites was taken, its unbiased estimate."""


def chosen_sites(n_site: int, config: BridgeConfig, step: int) -> list[int]:
    """Return which pairs of sites get hybrids in a step: all, or `sites_per_step` drawn by seed and step."""
    if config.sites_per_step is None or config.sites_per_step >= n_site:
        return list(range(n_site))
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    return sorted(torch.randperm(n_site, generator=generator)[: config.sites_per_step].tolist())


def chosen_positions(n_pos: int, config: BridgeConfig, step: int) -> Int[Tensor, " chosen"] | None:
    """Return the positions whose KL is computed in a step, or None for all."""
    if config.position_share == 1:
        return None
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step + 500_000)
    n = max(1, round(config.position_share * n_pos))
    return torch.randperm(n_pos, generator=generator)[:n].sort().values


def backward(
    bridges: Bridges,
    *,
    sparse: ResidualModel,
    dense: ResidualModel,
    tokens: Int[Tensor, "batch pos"],
    config: BridgeConfig,
    step: int = 0,
) -> Losses:
    """Compute a step's loss and add its gradients to those of the bridges and the sparse model.

    Hybrids run in groups of at most `config.hybrids_at_once`, each group's backward pass at once, its gradient kept at
    the sites; one last pass takes those through the bridges and the sparse model. So memory holds the sparse model's
    own pass without logits, and one group.

    Args:
        bridges: Encoders and decoders.
        sparse: The sparse model.
        dense: The dense model, without gradients of its own.
        tokens: A batch; the last token of a row is predicted, not read.
        config: Weights of the terms, and how much runs at once.
        step: Decides the random choices.
    """
    inputs, following = tokens[:, :-1], tokens[:, 1:]
    sites = chosen_sites(len(bridges.sites), config, step)
    positions = chosen_positions(inputs.shape[1], config, step)
    with torch.no_grad():
        h_dense, last = streams(dense, inputs, bridges.dense_sites)
        wanted = Wanted.of(dense.unembed(_at(last, positions), _at(inputs, positions)))
    h_sparse, last = streams(sparse, inputs, bridges.sparse_sites)

    at_end = last.detach().requires_grad_()
    next_token = F.cross_entropy(sparse.unembed(at_end, inputs).flatten(0, 1), following.flatten())
    next_token.backward()

    encoded = [bridges.encode(i, h) for i, h in enumerate(h_dense)]
    decoded = [bridges.decode(i, h) for i, h in enumerate(h_sparse)]
    errors = [
        [nmse(x, t.detach()) for x, t in zip(encoded, h_sparse, strict=True)],
        [nmse(x, t) for x, t in zip(decoded, h_dense, strict=True)],
    ]
    reconstruction = config.nmse_weight * torch.stack([*errors[0], *errors[1]]).sum()

    weight = config.kl_weight * len(bridges.sites) / len(sites)
    ends, grads, kls = [last], [at_end.grad], []
    for model, streams_in, model_sites in (
        (sparse, encoded, bridges.sparse_sites),
        (dense, decoded, bridges.dense_sites),
    ):
        found: dict[int, float] = {}
        for group in _groups(sites, config.hybrids_at_once):
            leaves = {i: streams_in[i].detach().requires_grad_() for i in group}
            end = run_tails(model, {model_sites[i]: leaf for i, leaf in leaves.items()})
            kl = _kl_of(model, end, inputs, wanted, positions)
            (weight * kl.sum()).backward()
            found |= dict(zip(group, kl.tolist(), strict=True))
            ends += [streams_in[i] for i in group]
            grads += [leaf.grad for leaf in leaves.values()]
        kls.append(found)
    torch.autograd.backward([reconstruction, *ends], [None, *grads])  # pyright: ignore[reportArgumentType]
    return Losses(
        next_token=float(next_token.detach()),
        nmse_encoder=[float(e.detach()) for e in errors[0]],
        nmse_decoder=[float(e.detach()) for e in errors[1]],
        kl_to_sparse=kls[0],
        kl_to_dense=kls[1],
        total=float(next_token.detach() + reconstruction.detach()) + weight * sum(sum(k.values()) for k in kls),
    )


def _kl_of(
    model: ResidualModel, end: Tensor, inputs: Tensor, wanted: Wanted, positions: Tensor | None
) -> Float[Tensor, " hybrid"]:
    """Return the KL of hybrids from their streams at the last site (hybrid, batch, pos, d_model)."""
    n_hybrid = len(end)
    end = end if positions is None else end[:, :, positions]
    tokens = _at(inputs, positions).repeat(n_hybrid, 1)
    return wanted.kl(model.unembed(end.flatten(0, 1), tokens).unflatten(0, (n_hybrid, -1)))


def _at(x: Tensor, positions: Tensor | None) -> Tensor:
    return x if positions is None else x[:, positions]


def _groups(sites: Sequence[int], n: int | None) -> Iterator[Sequence[int]]:
    size = n or len(sites)
    for start in range(0, len(sites), size):
        yield sites[start : start + size]
