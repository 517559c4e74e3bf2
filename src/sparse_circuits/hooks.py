"""Running a model with a cache or with hooks, as users of TransformerLens are used to; their names work too."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.errors import TapError
from sparse_circuits.taps import Edit, match_names, reading, replacing

if TYPE_CHECKING:
    from sparse_circuits.model import Transformer

ALIASES = {
    "blocks.{i}.hook_resid_pre": "{i}.resid_in",
    "blocks.{i}.attn.hook_q": "{i}.attn.q",
    "blocks.{i}.attn.hook_k": "{i}.attn.k",
    "blocks.{i}.attn.hook_v": "{i}.attn.v",
    "blocks.{i}.attn.hook_z": "{i}.attn.y",
    "blocks.{i}.hook_attn_out": "{i}.attn.resid_delta",
    "blocks.{i}.hook_resid_mid": "{i}.resid_mid",
    "blocks.{i}.mlp.hook_post": "{i}.mlp.post_act",
    "blocks.{i}.hook_mlp_out": "{i}.mlp.resid_delta",
    "blocks.{i}.hook_resid_post": "{i}.resid_out",
}
"""TransformerLens's name of a location, and ours. All mean the value after AbsTopK."""

BY_HEAD = ("hook_q", "hook_k", "hook_v", "hook_z")
"""Aliases whose activations have a head axis: (batch, pos, head, d_head)."""

Hook = Callable[[Tensor, "HookPoint"], Tensor | None]
"""Takes an activation and where it is; gives what flows on in its place, or None to leave it."""


@dataclasses.dataclass(frozen=True)
class HookPoint:
    """Where a hook is."""

    name: str
    """As it was asked for."""

    def layer(self) -> int:
        """Return the layer.

        Raises:
            TapError: The location belongs to none.
        """
        found = re.search(r"\d+", self.name)
        if found is None:
            raise TapError(f"{self.name} belongs to no layer")
        return int(found[0])


def aliases(n_layer: int) -> dict[str, str]:
    """Return TransformerLens's names of a model's locations, and ours."""
    return {theirs.format(i=i): ours.format(i=i) for i in range(n_layer) for theirs, ours in ALIASES.items()}


class Hooked:
    """What a model can do for those who come from TransformerLens."""

    def run_with_cache(
        self,
        tokens: Int[Tensor, "batch pos"],
        names: str | Iterable[str] | Callable[[str], bool] | None = None,
        *,
        stop_at: int | None = None,
    ) -> tuple[Float[Tensor, "batch pos _"], dict[str, Tensor]]:
        """Run the model and keep activations.

        Args:
            tokens: What it reads.
            names: Names or globs, ours or TransformerLens's; or a test of names of ours; all of ours if left out.
            stop_at: Layer to stop before; what comes later is neither computed nor kept.

        Returns:
            The logits, or the stream before layer `stop_at`; and the activations under the names asked for, after all
            edits: (batch, pos, channel), under an alias of q, k, v or z (batch, pos, head, d_head).

        Raises:
            TapError: A name matches nothing, or comes after `stop_at`.
        """
        model = cast("Transformer", self)
        if callable(names):
            names = [name for name in model.taps() if names(name)]
        wanted = _locations(model, ("*",) if names is None else (names,) if isinstance(names, str) else tuple(names))
        with reading(model, *set(wanted.values())) if wanted else contextlib.nullcontext({}) as seen:
            out = _run(model, tokens, stop_at)
        late = [name for name, location in wanted.items() if location not in seen]
        if late and names is not None:
            raise TapError(f"{late[0]} comes after layer {stop_at}, where the run stops")
        return out, {
            name: _by_head(model, name, seen[location]) for name, location in wanted.items() if location in seen
        }

    def run_with_hooks(
        self,
        tokens: Int[Tensor, "batch pos"],
        fwd_hooks: Sequence[tuple[str, Hook]] = (),
        *,
        stop_at: int | None = None,
    ) -> Float[Tensor, "batch pos _"]:
        """Run the model with functions at some locations.

        Args:
            tokens: What it reads.
            fwd_hooks: Name or glob, ours or TransformerLens's, and a function of activation and `HookPoint` that
                returns what flows on, or None. They run in this order.
            stop_at: Layer to stop before.

        Returns:
            The logits, or the stream before layer `stop_at`.

        Raises:
            TapError: A name matches nothing.
        """
        model = cast("Transformer", self)
        with contextlib.ExitStack() as stack:
            for pattern, hook in fwd_hooks:
                for name, location in _locations(model, (pattern,)).items():
                    stack.enter_context(replacing(model, {location: _edit(model, name, hook)}))
            return _run(model, tokens, stop_at)


def _run(model: "Transformer", tokens: Tensor, stop_at: int | None) -> Tensor:
    if stop_at is None:
        return model(tokens)
    n_layer = model.config.n_layer
    if not 0 <= stop_at <= n_layer:
        raise TapError(f"stop_at is {stop_at}, expected a layer from 0 to {n_layer}")
    return model.run(model.embed(tokens), stop=2 * stop_at)


def _locations(model: "Transformer", patterns: Sequence[str]) -> dict[str, str]:
    """Return the names that patterns match, ours or aliases, with our location of each."""
    theirs = aliases(model.config.n_layer)
    known = {name: name for name in model.taps()} | theirs
    found: dict[str, str] = {}
    for pattern in patterns:
        names = theirs if "hook_" in pattern else [name for name in known if name not in theirs]
        found |= {name: known[name] for name in match_names(names, [pattern])}
    return found


def _by_head(model: "Transformer", name: str, x: Tensor) -> Tensor:
    return x.unflatten(-1, (model.config.n_head, -1)) if name.endswith(BY_HEAD) else x


def _edit(model: "Transformer", name: str, hook: Hook) -> Edit:
    def edit(x: Tensor) -> Tensor:
        replaced = hook(_by_head(model, name, x), HookPoint(name))
        if replaced is None:
            return x
        return replaced.flatten(-2) if name.endswith(BY_HEAD) else replaced

    return edit
