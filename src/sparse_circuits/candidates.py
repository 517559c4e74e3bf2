"""Losses of many candidate circuits on one split: side by side, and the sublayers that they share run once."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.attribution import Dimmed
from sparse_circuits.edges import EdgeSpace, source_values
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import Passage, calibrated, fit_calibrations, logit_difference, match_losses, pair_loss
from sparse_circuits.taps import EdgeCut, cutting, replacing
from sparse_circuits.tasks.pairs import Pairs

N_SIDE_BY_SIDE = 8
"""Candidates that run in one pass."""

N_PAIR = 16
"""Pairs in one pass."""

N_MASK = 1 << 26
"""Most weights that are masked at once for estimates, all prompts of a pass together."""

KNOWN_BYTES = 256 << 20
"""Most memory that the residual streams of one candidate may take, to be kept for the next ones; where they take more,
those of a part of the pairs go with it."""


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

    def on_part(self, n_pair: int) -> "Evaluator":
        """Return the same on `n_pair` pairs that stand for all; always the same object, for it remembers streams."""
        if n_pair not in self._smaller:
            self._smaller[n_pair] = self.on(self.pairs.spread(n_pair).sort().values)
        return self._smaller[n_pair]

    @functools.cached_property
    def _smaller(self) -> dict[int, "Evaluator"]:
        return {}

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
            base: A mask that they mostly agree with. What comes before the first difference runs once for all, and not
                even once for a base that was the last one, or the last candidate that came alone.
        """
        if len(keep) == 1:
            return self._differences_alone(keep[0], base)[None]
        first = torch.zeros(len(keep), dtype=torch.long) if base is None else self._first_differences(keep, base)
        out, shared = torch.empty(len(keep), len(self.pairs), 2), []
        for number, (index, passage) in enumerate(self._passages):
            streams = self._streams(base, number)
            if base is not None:
                self._extend(streams, base, passage, int(first.max()))
            for site in first.unique().tolist():
                for runs in (first == site).nonzero().flatten().split(N_SIDE_BY_SIDE):
                    n_run = len(runs)
                    with self._applied(keep[runs]):
                        x = passage.run(streams[site].repeat(n_run, 1, 1), site, n_run=n_run)
                        out[runs[:, None], index] = passage.difference(x, n_run=n_run)
            shared.append(streams if self._remembers else [])
        if base is not None:
            self._remember({_key(base): shared})
        return out

    def losses(
        self, keep: Bool[Tensor, "run item"], *, base: Bool[Tensor, " item"] | None = None
    ) -> Float[Tensor, " run"]:
        """Return each candidate's task loss after its own calibration, or its loss against the wanted, in nats."""
        return self.pair_losses(keep, base=base).mean(1)

    def pair_losses(
        self, keep: Bool[Tensor, "run item"], *, base: Bool[Tensor, " item"] | None = None
    ) -> Float[Tensor, "run pair"]:
        """Return what each pair contributes to `losses`, which is the mean over pairs."""
        difference = self.differences(keep, base=base)
        if self.wanted is not None:
            return match_losses(difference, self.wanted)
        fitted = fit_calibrations(difference, may_shift=self.may_shift)
        return pair_loss(calibrated(difference, fitted))

    def estimated_effects(self, keep: Bool[Tensor, " item"]) -> Float[Tensor, "prompt item"]:
        """Return the first-order estimate of how much each prompt's loss rises when an item goes.

        The mean over prompts is that of `losses`. One pass forward and one back for all items, the calibration held:
        minus the derivative by a mask that mixes a node with its ablation value, or what an edge carries with its
        source's. 0 for what is gone already.
        """
        fitted = fit_calibrations(self.differences(keep[None]), may_shift=self.may_shift)
        found = torch.zeros(len(self.pairs), 2, len(keep))
        n_weight = sum(math.prod(self.edges.shapes[name]) for name, ends in self.edges.ends.items() if len(ends))
        n_pair = max(1, N_MASK // max(1, 2 * n_weight))
        for index in (some for whole, _ in self._passages for some in whole.split(n_pair)):
            part = self.pairs.take(index)
            mask = keep.float().expand(2 * len(part), -1).clone().requires_grad_()
            with self._dimmed(mask):
                difference = logit_difference(self.model, part)
            if self.wanted is None:
                losses = pair_loss(calibrated(difference, fitted))
            else:
                losses = match_losses(difference, self.wanted[index])
            # A pair's loss is the mean of its prompts'.
            found[index] = -2 * torch.autograd.grad(losses.sum(), mask)[0].unflatten(0, (-1, 2))
        return found.flatten(0, 1) * self.removable(keep)

    @contextlib.contextmanager
    def _dimmed(self, mask: Float[Tensor, "prompt item"]) -> Iterator[None]:
        """Put nodes and edges to masks between 0 and 1 that have gradients, one for each prompt."""
        space = NodeSpace.of(self.model.config)
        nodes, edges = mask[:, None, : self.n_node], mask[:, self.n_node :]
        edits = {name: Dimmed(nodes[..., part], self.values[part]) for name, part in space.slices()}
        values, cuts = space.split(self.values), {}
        for name, part in self.edges.slices():
            if part.start == part.stop:
                continue
            live = torch.ones(len(mask), *self.edges.shapes[name])
            target, source = self.edges.ends[name].T
            prompt = torch.arange(len(mask))[:, None]
            live = live.index_put((prompt, target, source), edges[:, part])
            cuts[name] = EdgeCut(live, source_values(values, name))
        with cutting(self.model, cuts), replacing(self.model, edits):
            yield

    @functools.cached_property
    def _passages(self) -> list[tuple[Int[Tensor, " pair"], Passage]]:
        """Pairs of alike length that go through the model together, longest first, with their places in the split."""
        parts = self.pairs.length.argsort(descending=True, stable=True).split(N_PAIR)
        return [(index, Passage.of(self.model, self.pairs.take(index))) for index in parts]

    @functools.cached_property
    def _known(self) -> dict[bytes, list[list[Tensor]]]:
        """By candidate and part, the residual stream at sites 0, 1, …, as far as it is known."""
        return {}

    @functools.cached_property
    def _remembers(self) -> bool:
        """Whether the streams of a candidate are few enough to be kept."""
        n_bytes = 8 * int(self.pairs.length.sum()) * self.model.config.d_model * 2 * self.model.config.n_layer
        return n_bytes <= KNOWN_BYTES

    def _streams(self, keep: Bool[Tensor, " item"] | None, number: int) -> list[Tensor]:
        """Return what is known of a candidate's streams of one part; the first site's always is."""
        if keep is not None and _key(keep) in self._known:
            return self._known[_key(keep)][number]
        return [self._passages[number][1].embed()]

    def _extend(self, streams: list[Tensor], keep: Bool[Tensor, " item"], passage: Passage, site: int) -> None:
        """Run a candidate's streams up to a site."""
        if len(streams) <= site:
            with self._applied(keep[None]):
                for start in range(len(streams) - 1, site):
                    streams.append(passage.run(streams[start], start, start + 1))

    def _remember(self, known: dict[bytes, list[list[Tensor]]]) -> None:
        """Keep these streams, if they are few enough, and forget all others."""
        self._known.clear()
        if self._remembers:
            self._known.update(known)

    def _differences_alone(self, keep: Bool[Tensor, " item"], base: Bool[Tensor, " item"] | None) -> Tensor:
        known = self._known.get(_key(keep))
        first = 0 if base is None else int(self._first_differences(keep[None], base))
        out, shared, own = torch.empty(len(self.pairs), 2), [], []
        for number, (index, passage) in enumerate(self._passages):
            streams = self._streams(base, number)
            if known is None and base is not None:
                self._extend(streams, base, passage, first)
            mine = streams[: first + 1] if known is None else known[number]
            self._extend(mine, keep, passage, 2 * self.model.config.n_layer)
            out[index] = passage.difference(mine[-1])[0]
            shared.append(streams if self._remembers else [])
            own.append(mine if self._remembers else [])
        self._remember({_key(keep): own} if base is None else {_key(base): shared, _key(keep): own})
        return out

    def _first_differences(self, keep: Tensor, base: Tensor) -> Int[Tensor, " run"]:
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


def _key(keep: Bool[Tensor, " item"]) -> bytes:
    return keep.numpy().tobytes()
