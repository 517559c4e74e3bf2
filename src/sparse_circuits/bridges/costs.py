"""What a steering edit costs elsewhere: on neutral text, and on other tasks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.bridges.controls import along, laid_at, mean_profile
from sparse_circuits.bridges.directions import Prompts
from sparse_circuits.bridges.effects import EditedReads
from sparse_circuits.bridges.objective import Wanted
from sparse_circuits.bridges.residual import ResidualModel


class TypicalEdit:
    """An edit without its prompts: the mean change by distance from the first token that differs, along a direction.

    Args:
        change: Of the steered prompts.
        direction: In the dense read.
        prompts: The steered prompts.
    """

    def __init__(
        self, change: Float[Tensor, "prompt pos"], direction: Float[Tensor, " d_dense"], prompts: Prompts
    ) -> None:
        self.profile, self.direction = mean_profile(change, prompts), direction

    def on(self, start: Int[Tensor, " prompt"], length: Int[Tensor, " prompt"], n_pos: int) -> Tensor:
        """Lay it onto other prompts, those of the two sides in turn; (prompt, pos, d_dense)."""
        return along(laid_at(self.profile, start, length, n_pos), self.direction)


@torch.no_grad()
def neutral_kl(
    dense: ResidualModel, site: int, windows: Int[Tensor, "window pos"], edit: TypicalEdit, *, n_row: int = 16
) -> float:
    """Return KL(dense ‖ edited) in nats a token on text, over the tokens from the edit on.

    The edit starts at the window's middle; even windows get side 0's, odd ones side 1's.
    """
    n_pos = windows.shape[1]
    start = torch.full((len(windows),), n_pos // 2)
    edits = edit.on(start, torch.full_like(start, n_pos), n_pos)
    total = 0.0
    for tokens, delta in zip(windows.split(n_row), edits.split(n_row), strict=True):
        x = dense.run(dense.embed(tokens), 0, site)
        wanted = Wanted.of(dense.unembed(dense.run(x, site), tokens)[:, n_pos // 2 :])
        with dense.adding(site, delta):
            changed = dense.run(x, site)
        total += float(wanted.kl(dense.unembed(changed, tokens)[:, n_pos // 2 :])) * len(tokens)
    return total / len(windows)


def other_accuracy(dense: ResidualModel, site: int, prompts: Prompts, edit: TypicalEdit) -> tuple[float, float]:
    """Return the dense model's accuracy on another task, without and with the edit, laid at its first difference."""
    reads = EditedReads(dense, site, prompts)
    laid = edit.on(prompts.first_difference, prompts.length, prompts.tokens.shape[1])
    plain, edited = (1 - float(reads.answers(e).follows.mean()) for e in (None, laid))
    return plain, edited
