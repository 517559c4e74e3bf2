"""Losses of many candidate circuits on one split: side by side, and the sublayers that they share run once."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.edges import EdgeSpace
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import calibrated, fit_calibrations, logit_difference, match_loss, task_loss
from sparse_circuits.taps import cutting, replacing
from sparse_circuits.tasks.pairs import Pairs

N_SIDE_BY_SIDE = 8
"""Candidates that run in one pass."""

N_ROW = 256
"""Prompts in one pass, those of all candidates together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Measures candidate circuits on one split.

    A candidate is a mask over all nodes of the model, with a mask over the edges of `edges` behind it: an item that is
    False is a node at its ablation value, or a weight that carries its source's.
    """

    model: Transformer
    """The model."""

    pairs: Pairs
    """The split."""

    values: Float[Tensor, " node"]
    """What removed nodes are set to."""

    may_shift: bool
    """Whether the calibration has a shift."""

    wanted: Float[Tensor, "pair 2"] | None = None
    """Differences that candidates have to match; None asks for the right answers, calibrated."""

    edges: EdgeSpace = dataclasses.field(default_factory=lambda: EdgeSpace({}, {}))
    """Edges that may be cut."""

    @property
    def n_node(self) -> int:
        """Nodes of the model: the items before the edges."""
        return len(self.values)

    @functools.cached_property
    def _ends(self) -> Int[Tensor, "edge 2"]:
        return self.edges.node_ends(NodeSpace.of(self.model.config))

    def on(self, chosen: Int[Tensor, " chosen"]) -> "Evaluator":
        """Return the same on some pairs of the split."""
        wanted = None if self.wanted is None else self.wanted[chosen]
        return dataclasses.replace(self, pairs=self.pairs.take(chosen), wanted=wanted)

    def removable(self, keep: Bool[Tensor, " item"]) -> Bool[Tensor, " item"]:
        """Mark the items that a candidate can lose: its nodes, and its edges between them."""
        nodes = keep[: self.n_node]
        return torch.cat((nodes, keep[self.n_node :] & nodes[self._ends].all(1)))

    def without(self, keep: Bool[Tensor, " item"], gone: Int[Tensor, " gone"]) -> Bool[Tensor, " item"]:
        """Return a candidate without some items; weights of a node that goes are no edges any more, so none is cut."""
        left = keep.index_fill(0, gone, False)
        nodes = gone[gone < self.n_node]
        if len(nodes):
            left[self.n_node :] |= torch.isin(self._ends, nodes).any(1)
        return left

    def without_each(self, keep: Bool[Tensor, " item"], items: Int[Tensor, " gone"]) -> Bool[Tensor, "gone item"]:
        """Return the candidates that lack one of these items each."""
        return torch.stack([self.without(keep, item[None]) for item in items])

    def names(self, items: Bool[Tensor, " item"]) -> list[str]:
        """Return the names of some items: nodes, then edges."""
        nodes = NodeSpace.of(self.model.config).names(items[: self.n_node])
        return nodes + self.edges.names(items[self.n_node :])

    @torch.no_grad()
    def differences(
        self, keep: Bool[Tensor, "run item"], *, base: Bool[Tensor, " item"] | None = None
    ) -> Float[Tensor, "run pair 2"]:
        """Return the uncalibrated logit differences of each candidate.

        Args:
            keep: The candidates.
            base: A mask that they mostly agree with: what comes before the first difference runs once for all.
        """
        n_site = 2 * self.model.config.n_layer
        base = None if len(keep) == 1 else base
        first = torch.zeros(len(keep), dtype=torch.long) if base is None else self._first_difference(keep, base)
        out = torch.empty(len(keep), len(self.pairs), 2)
        n_pair = max(1, N_ROW // (2 * min(len(keep), N_SIDE_BY_SIDE)))
        for index in self.pairs.length.argsort(descending=True, stable=True).split(n_pair):
            part = self.pairs.take(index)
            stream = self.model.embed(part.tokens.flatten(0, 1))
            for site in range(n_site + 1):
                here = (first == site).nonzero().flatten()
                for runs in here.split(N_SIDE_BY_SIDE) if len(here) else ():
                    with self._applied(keep[runs]):
                        found = logit_difference(self.model, part, n_run=len(runs), stream=(site, stream))
                    out[runs[:, None], index] = found
                if base is not None and (first > site).any():
                    with self._applied(base[None]):
                        stream = self.model.run(stream, site, site + 1, at=(part.length - 1).repeat_interleave(2))
        return out

    def losses(
        self, keep: Bool[Tensor, "run item"], *, base: Bool[Tensor, " item"] | None = None
    ) -> Float[Tensor, " run"]:
        """Return each candidate's task loss after its own calibration, or its loss against the wanted, in nats."""
        difference = self.differences(keep, base=base)
        if self.wanted is not None:
            return match_loss(difference, self.wanted)
        fitted = fit_calibrations(difference, may_shift=self.may_shift)
        return task_loss(calibrated(difference, fitted))

    def _first_difference(self, keep: Tensor, base: Tensor) -> Int[Tensor, " run"]:
        """Return the first sublayer in which each candidate differs from the base; the last site if none."""
        space = NodeSpace.of(self.model.config)
        first = torch.full((len(keep),), 2 * self.model.config.n_layer)
        parts = [*space.slices()]
        parts += [(name, slice(p.start + self.n_node, p.stop + self.n_node)) for name, p in self.edges.slices()]
        for name, part in parts:
            layer, kind, _ = name.split(".", 2)
            sublayer = 2 * int(layer) + (kind == "mlp")
            differs = (keep[:, part] != base[part]).any(1)
            first[differs] = first[differs].clamp(max=sublayer)
        return first

    @contextlib.contextmanager
    def _applied(self, keep: Bool[Tensor, "run item"]) -> Iterator[None]:
        space = NodeSpace.of(self.model.config)
        cuts = self.edges.cuts(keep[:, self.n_node :], space.split(self.values))
        with cutting(self.model, cuts), replacing(self.model, space.masks(keep[:, : self.n_node], self.values)):
            yield
