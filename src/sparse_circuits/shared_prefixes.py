"""Pairs of prompts as one row of tokens, in which what the two sides begin with stands once.

The prompts of a pair read alike up to where they differ, which is mostly near the end. What a causal model computes of
these tokens depends on nothing behind them, so one computation does for both. All that acts on each token by itself
takes the row as it is; attention alone needs to know where each prompt's tokens stand.
"""

import dataclasses
import functools

import torch
from jaxtyping import Int
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedPrefixes:
    """Rows of tokens, and where in them each prompt stands.

    There may be several rows, with as many pairs each; a shorter one ends with tokens that no prompt has. A pair is the
    first prompt, then what of the second is not the first's.
    """

    tokens: Int[Tensor, "row token"]
    """Token ids."""

    position: Int[Tensor, "row token"]
    """Position of each token in its prompts."""

    start: Int[Tensor, "row pair"]
    """Where in its row each pair starts."""

    n_alike: Int[Tensor, "row pair"]
    """Tokens that both prompts of a pair begin with."""

    length: Int[Tensor, "row pair"]
    """Tokens of either."""

    @classmethod
    def of(cls, tokens: Int[Tensor, "row pair 2 pos"], length: Int[Tensor, "row pair"]) -> "SharedPrefixes":
        """Lay pairs of prompts end to end.

        Args:
            tokens: Right-padded.
            length: Tokens of each prompt, the same on both sides, 1 or more.
        """
        n_alike = (tokens[:, :, 0] == tokens[:, :, 1]).cumprod(-1).sum(-1).minimum(length)
        end = (2 * length - n_alike).cumsum(1)
        empty = torch.zeros(len(tokens), int(end[:, -1].max()), dtype=torch.long)
        laid = cls(tokens=empty, position=empty, start=end - 2 * length + n_alike, n_alike=n_alike, length=length)
        place = laid.index.flatten(1)
        at = torch.arange(tokens.shape[-1]).minimum(length[..., None, None] - 1).expand(tokens.shape)[..., : laid.n_pos]
        filled = (empty.scatter(1, place, values.flatten(1)) for values in (tokens.gather(3, at), at))
        return dataclasses.replace(laid, tokens=next(filled), position=next(filled))

    def repeat(self, n: int) -> "SharedPrefixes":
        """Return all rows n times, one copy after the other."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return self if n == 1 else SharedPrefixes(**{name: part.repeat(n, 1) for name, part in parts.items()})

    @property
    def n_pos(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.length.max())

    @functools.cached_property
    def index(self) -> Int[Tensor, "row pair 2 pos"]:
        """Where in its row each prompt's tokens stand; beyond its length, the last one."""
        position = torch.arange(self.n_pos).minimum(self.length[..., None] - 1)
        first = self.start[..., None] + position
        own = first + (self.length - self.n_alike)[..., None]
        return torch.stack((first, torch.where(position < self.n_alike[..., None], first, own)), 2)

    @functools.cached_property
    def last(self) -> Int[Tensor, "row prompt"]:
        """Where in its row each prompt's last token stands."""
        return self.index[..., -1].flatten(1)

    @functools.cached_property
    def last_position(self) -> Int[Tensor, "row prompt"]:
        """Position of each prompt's last token."""
        return self.length.repeat_interleave(2, 1) - 1

    @functools.cached_property
    def spans(self) -> Int[Tensor, "pair 4"]:
        """Where the prompts of each pair stand, rows laid end to end; see `kernels.reference.shared_attention`."""
        start = self.start + self.tokens.shape[1] * torch.arange(len(self.tokens))[:, None]
        return torch.stack((start, self.n_alike, start + self.length, self.length), -1).flatten(0, 1)

    @functools.cached_property
    def prompt_spans(self) -> Int[Tensor, "prompt 4"]:
        """Where each prompt stands, rows laid end to end; see `kernels.reference.last_attention`."""
        start, _, rest, length = self.spans.unbind(1)
        return torch.stack((torch.stack((start, length, rest, length), -1), self.spans), 1).flatten(0, 1)


def spans_to(at: Int[Tensor, "row 1"], n_pos: int) -> Int[Tensor, "prompt 4"]:
    """Return where the tokens up to a position of each row stand, rows laid end to end; see `prompt_spans`."""
    start, length = n_pos * torch.arange(len(at), device=at.device), at[:, 0] + 1
    return torch.stack((start, length, start, length), 1)
