"""Named points of the forward pass where activations are read, replaced and masked, and where edges are cut.

A tap is state on the module, not a forward hook: torch silently skips a hook that is added after a model was compiled.
"""

import contextlib
import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float
from torch import Tensor

from sparse_circuits import kernels
from sparse_circuits.errors import TapError, did_you_mean

if TYPE_CHECKING:
    from sparse_circuits.model import Transformer

Edit = Callable[[Tensor], Tensor]
"""Takes an activation (batch, pos, channel), gives what flows on in its place."""


class Tap:
    """A point where an activation passes: edits in the order they were entered, then readers.

    No module: a model has hundreds of them, and calling one that does nothing must cost next to nothing.
    """

    def __init__(self) -> None:
        self.edits: tuple[Edit, ...] = ()
        self.readers: tuple[Callable[[Tensor], None], ...] = ()

    @property
    def is_idle(self) -> bool:
        """Whether nobody edits or reads here."""
        return not self.edits and not self.readers

    def __call__(self, x: Tensor, n_keep: int | None = None) -> Tensor:
        """Pass `x` on, thinned out by AbsTopK if `n_keep` is given, through the edits; readers see what flows on."""
        edits = self.edits
        if n_keep is not None:
            if edits and isinstance(edits[0], Gate):
                x, edits = edits[0].after_topk(x, n_keep), edits[1:]
            else:
                x = kernels.abs_topk(x, n_keep)
        for edit in edits:
            x = edit(x)
        for read in self.readers:
            read(x)
        return x

    def constants(self) -> Tensor | None:
        """Return what channels behind closed gates are, (run, channel), 0 for the others, if gates come last.

        None where no gate is closed, too.
        """
        last = self.edits[-1] if self.edits else None
        return last.closed if isinstance(last, Gate) else None


class Gate:
    """An edit that lets some channels pass and sets the others to a constant: gate · x + (1 − gate) · ablated.

    The batch may hold several runs one after the other, each with its own gates; these are 0 or 1, and have a gradient.
    """

    acts_at_each_position = True
    acts_on_each_token = True

    def __init__(self, gate: Float[Tensor, "run channel"], ablated: Float[Tensor, "#run channel"]) -> None:
        self.gate, self.ablated = gate, ablated
        # Where no gate is closed, what follows is the model's own computation, bit for bit.
        self.closed = (1 - gate.detach()) * ablated if bool((gate == 0).any()) else None

    def __call__(self, x: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos channel"]:
        """Apply the gates; `batch` is a multiple of `run`."""
        return self.after_topk(x, x.shape[-1])

    def after_topk(self, x: Float[Tensor, "batch pos channel"], n_keep: int) -> Float[Tensor, "batch pos channel"]:
        """Thin `x` out by AbsTopK and apply the gates, in one pass."""
        return kernels.gated_topk(x, self.gate, self.ablated, n_keep)


class NodeMask(Gate):
    """The gates that keep some channels and set the others to a constant: `where(keep, x, value)`."""

    def __init__(self, keep: Bool[Tensor, "run channel"], value: Float[Tensor, " channel"]) -> None:
        super().__init__(keep.to(value.dtype), value[None])
        self.keep, self.value = keep, value


@dataclasses.dataclass(frozen=True)
class EdgeCut:
    """Which weights of a linear map are edges; the others carry their source's ablated value."""

    keep: Bool[Tensor, "*run target source"] | Float[Tensor, "*run target source"]
    """True for an edge; with a run axis, one mask for each of the runs that stand one after the other in a batch. A
    number from 0 to 1 mixes what the edge carries with what it would carry if cut."""

    ablated: Float[Tensor, " source"]
    """What a source is worth to the weights that are cut."""


def match_names(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the names that any of the glob patterns matches, in their own order.

    Raises:
        TapError: A pattern matches nothing; the message offers the nearest names.
    """
    names, wanted = list(names), set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise TapError(f"no activation is called {pattern!r}{did_you_mean(pattern, names)}")
        wanted.update(matched)
    return [name for name in names if name in wanted]


@contextlib.contextmanager
def reading(model: "Transformer", *patterns: str) -> Iterator[dict[str, Tensor]]:
    """Collect activations inside a `with` block; gradients flow through what is collected.

    Args:
        model: The model to read from.
        patterns: Names or globs, such as `"3.mlp.*"`; all locations if none is given.

    Yields:
        A dict that each forward pass fills: name to (batch, pos, channel), after all edits.

    Raises:
        TapError: A pattern matches nothing.
    """
    seen: dict[str, Tensor] = {}
    taps = model.taps()
    chosen = {name: taps[name] for name in match_names(taps, patterns or ("*",))}
    before = {name: tap.readers for name, tap in chosen.items()}
    for name, tap in chosen.items():
        tap.readers = (*tap.readers, lambda x, name=name: seen.__setitem__(name, x))
    try:
        yield seen
    finally:
        for name, tap in chosen.items():
            tap.readers = before[name]


@contextlib.contextmanager
def replacing(model: "Transformer", edits: Mapping[str, Edit]) -> Iterator[None]:
    """Send activations through functions inside a `with` block; blocks nest, the outer edit comes first.

    Args:
        model: The model to edit.
        edits: A function for each name or glob.

    Raises:
        TapError: A name matches nothing.
    """
    taps = model.taps()
    plan = [(taps[name], edit) for pattern, edit in edits.items() for name in match_names(taps, [pattern])]
    before = [(tap, tap.edits) for tap in taps.values()]
    for tap, edit in plan:
        tap.edits = (*tap.edits, edit)
    try:
        yield
    finally:
        for tap, edits_before in before:
            tap.edits = edits_before


@contextlib.contextmanager
def cutting(model: "Transformer", cuts: Mapping[str, EdgeCut]) -> Iterator[None]:
    """Cut edges of linear maps inside a `with` block; an inner block replaces an outer one's cut.

    Args:
        model: The model to edit.
        cuts: By linear map: `0.attn.qkv`, `0.attn.out`, `0.mlp.fc_in`, `0.mlp.fc_out`, …

    Raises:
        TapError: A name is not that of a linear map, a cut is not of its weight's shape, or the model is packed.
    """
    linears = model.linears()
    for name, cut in cuts.items():
        if name not in linears:
            raise TapError(f"no linear map is called {name!r}{did_you_mean(name, linears)}")
        if linears[name].weight is None:
            raise TapError(f"{name} is packed, so its edges can't be cut; load the model with packed=False")
        if cut.keep.shape[-2:] != linears[name].weight.shape:
            raise TapError(
                f"the cut of {name} has shape {tuple(cut.keep.shape)}, its weight {tuple(linears[name].weight.shape)}"
            )
    before = {name: linears[name].cut for name in cuts}
    for name, cut in cuts.items():
        linears[name].cut = cut
    try:
        yield
    finally:
        for name, cut in before.items():
            linears[name].cut = cut
