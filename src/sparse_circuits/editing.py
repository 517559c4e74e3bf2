"""Single nodes ablated, set or scaled, in the model or in the circuit: what one does by hand to see what moves."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from sparse_circuits.circuit import Circuit
from sparse_circuits.errors import TapError
from sparse_circuits.taps import Edit, replacing

Action = Literal["ablate", "set", "scale"]
"""To the ablation value, to a value, by a factor."""


@dataclasses.dataclass(frozen=True)
class NodeEdit:
    """One change to one node, at every position or at one."""

    node: str
    """Such as `1.attn.v:25`."""

    action: Action
    """What is done to it."""

    value: float = 0.0
    """The value that it is set to, or the factor; without meaning for `ablate`."""

    position: int | None = None
    """Token from 0 that it is done at; all if None."""

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise TapError(f"action is {self.action!r}, expected {', '.join(get_args(Action))}")
        if not math.isfinite(self.value):
            raise TapError(f"the value for {self.node} is {self.value}, expected a finite number")
        if self.position is not None and self.position < 0:
            raise TapError(f"the edit of {self.node} is at token {self.position}; tokens count from 0")

    def as_python(self) -> str:
        """Return the expression that makes it again."""
        parts = [repr(self.node), repr(self.action)]
        parts += [] if self.action == "ablate" else [repr(self.value)]
        parts += [] if self.position is None else [f"position={self.position}"]
        return f"sc.NodeEdit({', '.join(parts)})"


@contextlib.contextmanager
def edited(
    circuit: Circuit, edits: Sequence[NodeEdit], *, where: Literal["model", "circuit"] = "circuit"
) -> Iterator[None]:
    """Make the circuit's model run with some nodes changed inside a `with` block.

    Args:
        circuit: Its model runs; its ablation values are what `ablate` sets to.
        edits: In the order in which they act; nodes outside the circuit can be changed too.
        where: Whether all other nodes are free, or those outside the circuit ablated.

    Raises:
        TapError: A node is not one of the model.
    """
    values = circuit.space
    plan: dict[str, list[Edit]] = {}
    for edit in edits:
        index = values.index(edit.node)
        location, _, channel = edit.node.partition(":")
        plan.setdefault(location, []).append(_ChannelEdit(edit, int(channel), float(circuit.values[index])))
    with contextlib.ExitStack() as stack:
        if where == "circuit":
            stack.enter_context(circuit.applied())
        for location, changes in plan.items():
            for change in changes:
                stack.enter_context(replacing(circuit.model, {location: change}))
        yield


class _ChannelEdit:
    """The edit of one channel."""

    def __init__(self, edit: NodeEdit, channel: int, ablated: float) -> None:
        self.edit, self.channel, self.ablated = edit, channel, ablated

    def __call__(self, x: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos channel"]:
        position = slice(None) if self.edit.position is None else self.edit.position
        if self.edit.position is not None and self.edit.position >= x.shape[1]:
            raise TapError(
                f"the edit of {self.edit.node} is at token {self.edit.position}, the prompt has {x.shape[1]}"
            )
        changed = x.clone()
        if self.edit.action == "scale":
            changed[:, position, self.channel] *= self.edit.value
        else:
            changed[:, position, self.channel] = self.ablated if self.edit.action == "ablate" else self.edit.value
        return changed
