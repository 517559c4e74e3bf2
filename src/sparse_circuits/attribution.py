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


class Dimmed:
    """The edit m · x + (1 − m) · value, with a mask m that has a gradient, one for all prompts or one for each."""

    acts_at_each_position = True

    def __init__(self, mask: Float[Tensor, "*#batch channel"], value: Float[Tensor, " channel"]) -> None:
        self.mask, self.value = mask, value

    def __call__(self, x: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos channel"]:
        """Mix with the ablation value."""
        return torch.lerp(self.value.expand_as(x), x, self.mask)


def _gradients(
    model: Transformer, pairs: Pairs, mask: Float[Tensor, "row node"], values: Float[Tensor, " node"]
) -> Float[Tensor, "row node"]:
    """Return the gradient of the pairs' summed loss by a mask of one row, or of one row for each prompt."""
    space = NodeSpace.of(model.config)
    mask.requires_grad_()
    edits = {name: Dimmed(mask[:, None, part], values[part]) for name, part in space.slices()}
    with replacing(model, edits):
        loss = pair_loss(logit_difference(model, pairs)[0]).sum()
    return torch.autograd.grad(loss, mask)[0]


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
    n_node = NodeSpace.of(model.config).n_node
    total = torch.zeros(n_node)
    for part in pairs.batches(n_pair):
        total += _gradients(model, part, torch.full((1, n_node), at), values)[0] / len(pairs)
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


def effect_by_prompt(
    model: Transformer, pairs: Pairs, values: Float[Tensor, " node"], *, n_pair: int = 32
) -> Float[Tensor, " node"]:
    """Return how much each node matters to a prompt, in nats: the mean magnitude of gradient times activation.

    Effects of both signs count, where `gradient_ranking` lets those of one prompt cancel those of another.
    """
    n_node = NodeSpace.of(model.config).n_node
    total = torch.zeros(n_node)
    for part in pairs.batches(n_pair):
        total += _gradients(model, part, torch.ones(2 * len(part), n_node), values).abs().sum(0)
    return total / len(pairs)  # a pair's loss is half the sum of its prompts'
