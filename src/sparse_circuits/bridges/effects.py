"""What the dense model answers when something is added to one of its reads."""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.bridges.directions import Prompts, partner
from sparse_circuits.bridges.residual import ResidualModel

N_ROW = 128
"""Prompts in one pass."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """Probabilities after each prompt, out of the whole vocabulary."""

    own: Float[Tensor, " prompt"]
    """Of the right answer."""

    other: Float[Tensor, " prompt"]
    """Of the partner's answer."""

    @property
    def mass(self) -> float:
        """Mean probability of the two answers together, in [0, 1]."""
        return float((self.own + self.other).mean())

    @property
    def follows(self) -> Float[Tensor, " prompt"]:
        """1 where the partner's answer is the likelier of the two."""
        return (self.other > self.own).float()


class EditedReads:
    """The dense model on some prompts, its stream at one site at hand, for edits of the read there.

    Args:
        dense: The dense model.
        site: Whose read is edited.
        prompts: What it reads.
    """

    def __init__(self, dense: ResidualModel, site: int, prompts: Prompts) -> None:
        self.dense, self.site, self.prompts = dense, site, prompts
        with torch.no_grad():
            parts = [dense.run(dense.embed(tokens), 0, site) for tokens in prompts.tokens.split(N_ROW)]
        self.stream = torch.cat(parts)  # (prompt, pos, d_dense)

    @property
    def reads(self) -> Float[Tensor, "prompt pos d_dense"]:
        """What the sublayer reads, but for a norm's bias; 0 where a prompt has ended."""
        with torch.no_grad():
            scaled = self.dense.to_read(self.site, self.stream) / self.dense.divisor(self.site, self.stream)[..., None]
        return scaled * self.prompts.is_prompt[..., None]

    @property
    def natural(self) -> Float[Tensor, "prompt pos d_dense"]:
        """The difference that the other prompt would make to the read: partner's minus own."""
        reads = self.reads
        return partner(reads) - reads

    @torch.no_grad()
    def answers(self, edit: Float[Tensor, "prompt pos d_dense"] | None) -> Answers:
        """Return the answers with `edit` added to the read; None adds nothing."""
        found = torch.cat([self.log_probabilities(rows, None if edit is None else edit[rows]) for rows in self.rows()])
        return Answers(found[:, 0].exp(), found[:, 1].exp())

    @torch.no_grad()
    def answers_to(
        self, edit_for: Callable[[Float[Tensor, "row d_dense"]], Tensor], directions: Float[Tensor, "row d_dense"]
    ) -> list[Answers]:
        """Return the answers to many edits, one a direction; several run in one pass.

        Args:
            edit_for: Makes edits (row, prompt, pos, d_dense) from directions.
            directions: One a row.
        """
        n, found = len(self.prompts), []
        for part in directions.split(max(1, N_ROW // n)):
            index = torch.arange(n).repeat(len(part))
            log_p = self.log_probabilities(index, edit_for(part).flatten(0, 1)).unflatten(0, (len(part), n))
            found += [Answers(p[:, 0].exp(), p[:, 1].exp()) for p in log_p]
        return found

    def log_probabilities(
        self, rows: Int[Tensor, " row"], edit: Float[Tensor, "row pos d_dense"] | None
    ) -> Float[Tensor, "row 2"]:
        """Return ln P of own and other answer of some prompts; gradients flow to the edit."""
        prompts = self.prompts
        length = prompts.length[rows]
        n_pos = int(length.max())
        x, tokens = self.stream[rows, :n_pos], prompts.tokens[rows, :n_pos]
        if edit is None:
            x = self.dense.run(x, self.site)
        else:
            with self.dense.adding(self.site, edit[:, :n_pos]):
                x = self.dense.run(x, self.site, self.site + 1)
            x = self.dense.run(x, self.site + 1)
        at = (length - 1)[:, None]
        end = x.gather(1, at[..., None].expand(-1, 1, x.shape[-1]))
        log_p = self.dense.unembed(end, tokens.gather(1, at))[:, 0].log_softmax(-1)
        return log_p.gather(1, torch.stack((prompts.own[rows], prompts.other[rows]), 1))

    def rows(self) -> Iterator[Int[Tensor, " row"]]:
        """Yield the prompts' numbers in parts."""
        yield from torch.arange(len(self.prompts)).split(N_ROW)


def edit_norm(edit: Float[Tensor, "prompt pos d_dense"]) -> float:
    """Return the mean over prompts of the norm of an edit, all tokens together."""
    return float(edit.flatten(1).norm(dim=1).mean())
