"""Nodes that the full model can't be without, though a circuit may do without them."""

import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_circuits.attribution import effect_by_prompt
from sparse_circuits.candidates import Evaluator
from sparse_circuits.scoring import task_loss

N_LIKELY = 256
"""Nodes that are removed one by one: those that matter most by gradient times activation."""

N_PAIR = 64
"""Pairs that each removal is measured on, spread evenly over what is given."""


def needed_nodes(evaluator: Evaluator, least: float) -> Bool[Tensor, " node"]:
    """Mark the nodes whose removal alone raises the full model's task loss by more than `least`.

    A circuit is found by what is enough. That leaves out nodes that the model leans on and could do without if others
    went too, such as one of many channels of a position: with all of them at their means attention finds its way by the
    rest, with one of them it is misled. A set of such nodes outside the circuit then breaks the model.

    The loss is that of the logits as they come. Only the `N_LIKELY` nodes with the largest mean magnitude of gradient
    times activation are tried, each by a real removal.

    Args:
        evaluator: Model, pairs and ablation values; candidates' calibration plays no part.
        least: In nats, above 0.

    Source: ours; in the spirit of the completeness of Wang et al. 2022 (arXiv 2211.00593, section 4).
    """
    ranked = effect_by_prompt(evaluator.model, evaluator.on_part(2 * N_PAIR).pairs, evaluator.values)
    likely = ranked.argsort(descending=True, stable=True)[:N_LIKELY]
    part = evaluator.on_part(N_PAIR)
    whole = torch.ones(evaluator.n_node, dtype=torch.bool)
    removed = whole.repeat(len(likely), 1).scatter(1, likely[:, None], False)
    losses = task_loss(part.differences(torch.cat((removed, whole[None])), base=whole))
    return ~whole.index_fill(0, likely[losses[:-1] - losses[-1] > least], False)
