"""Rankings of nodes by gradients alone: what learned masks have to beat."""

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import logit_difference, pair_loss
from sparse_circuits.taps import replacing
from sparse_circuits.tasks.pairs import Pairs

N_STEP = 8
"""Points of the path that integrated gradients average over."""


class _Dimmed:
    """The edit m · x + (1 − m) · value, with a mask m that has a gradient."""

    acts_at_each_position = True

    def __init__(self, mask: Float[Tensor, " channel"], value: Float[Tensor, " channel"]) -> None:
        self.mask, self.value = mask, value

    def __call__(self, x: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos channel"]:
        return torch.lerp(self.value, x, self.mask)


def mask_gradient(
    model: Transformer, pairs: Pairs, values: Float[Tensor, " node"], *, at: float = 1.0, n_pair: int = 32
) -> Float[Tensor, " node"]:
    """Return the gradient of the task loss by each node's mask, with every mask at one value.

    At 1 it is gradient times activation, measured from the ablation value: the first-order estimate of what a node's
    removal takes from the loss. Negative for nodes that help.

    Args:
        model: Its weights get no gradient.
        pairs: What the loss is averaged over.
        values: What a removed node is set to.
        at: Where between all removed (0) and all kept (1).
        n_pair: Pairs in one pass.
    """
    space = NodeSpace.of(model.config)
    mask = torch.full((space.n_node,), at, requires_grad=True)
    masks, split_values = space.split(mask), space.split(values)
    total = torch.zeros(space.n_node)
    with replacing(model, {name: _Dimmed(masks[name], split_values[name]) for name in space.widths}):
        for part in pairs.batches(n_pair):
            loss = pair_loss(logit_difference(model, part)[0]).sum() / len(pairs)
            total += torch.autograd.grad(loss, mask)[0]
    return total


def gradient_ranking(model: Transformer, pairs: Pairs, values: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """Rank nodes by gradient times activation (attribution patching): higher helps more."""
    return -mask_gradient(model, pairs, values)


def integrated_ranking(
    model: Transformer, pairs: Pairs, values: Float[Tensor, " node"], *, n_step: int = N_STEP
) -> Float[Tensor, " node"]:
    """Rank nodes by integrated gradients from all nodes removed to all kept: higher helps more.

    The scores add up to the difference of the two losses, but for the error of `n_step` midpoints.
    """
    points = [(i + 0.5) / n_step for i in range(n_step)]
    return -torch.stack([mask_gradient(model, pairs, values, at=point) for point in points]).mean(0)
