"""Pairs of prompts as one row of tokens, in which what the two sides begin with stands once.

The prompts of a pair read alike up to where they differ, which is mostly near the end. What a causal model computes of
these tokens depends on nothing behind them, so one computation does for both. All that acts on each token by itself
takes the row as it is; attention alone needs the prompts side by side.
"""

import dataclasses
import functools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.kernels.compiled import OnceDifferentiable


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedPrefixes:
    """Where the tokens of prompts stand in a row, and the tokens of the row in the prompts.

    There may be several rows, with as many prompts each; a shorter one ends with tokens that no prompt has.
    """

    n_token: Int[Tensor, " row"]
    """Tokens of each row; what stands behind them is of no prompt."""

    tokens: Int[Tensor, "row token"]
    """Token ids."""

    position: Int[Tensor, "row token"]
    """Position of each token in its prompts."""

    last: Int[Tensor, "row prompt"]
    """Where in the row each prompt's last token stands."""

    index: Int[Tensor, "row prompt pos"]
    """Where in the row each prompt's tokens stand; beyond its length, the last one."""

    first: Int[Tensor, "row token"]
    """Where in the row's prompts, laid end to end, each token stands first; for those of no prompt, where none does."""

    is_again: Tensor
    """Marks in (row, prompt, pos) what stands in an earlier prompt, too."""

    @classmethod
    def of(cls, tokens: Int[Tensor, "row pair 2 pos"], length: Int[Tensor, "row pair"]) -> "SharedPrefixes":
        """Lay pairs of prompts side by side.

        Args:
            tokens: Right-padded.
            length: Tokens of each prompt, the same on both sides, 1 or more.
        """
        n_row, n_pair, _, n_pos = tokens.shape
        position = torch.arange(n_pos)
        n_alike = (tokens[:, :, 0] == tokens[:, :, 1]).cumprod(-1).sum(-1).minimum(length)
        is_in_prompt = position < length[..., None, None]  # (row, pair, 1, pos)
        is_again = torch.stack((torch.zeros(n_row, n_pair, n_pos).bool(), position < n_alike[..., None]), 2)
        is_own = is_in_prompt & ~is_again  # (row, pair, 2, pos)
        number = is_own.flatten(1).cumsum(1).view_as(is_own) - 1
        clamped = position.minimum(length[..., None] - 1)
        index = number.gather(3, clamped[:, :, None].expand_as(number))
        shared = index[:, :, 0]
        index = torch.stack((shared, torch.where(clamped < n_alike[..., None], shared, index[:, :, 1])), 2)
        n_token = number[:, -1, -1, -1] + 1
        row, _, _, at = is_own.nonzero(as_tuple=True)
        to, flat = number[is_own], torch.arange(n_pair * 2 * n_pos).view(is_own.shape[1:]).expand_as(is_own)
        # A row that is shorter than another one repeats a token or is padded, so there is a place that is not its own.
        nowhere = is_own.flatten(1).byte().argmin(1, keepdim=True)
        made = [torch.zeros(n_row, int(n_token.max()), dtype=torch.long) for _ in range(2)]
        first = nowhere.repeat(1, int(n_token.max()))
        for into, values in zip((*made, first), (tokens[is_own], at, flat[is_own]), strict=True):
            into[row, to] = values
        index = index.flatten(1, 2)
        return cls(
            n_token=n_token,
            tokens=made[0],
            position=made[1],
            last=index[:, :, -1],
            index=index,
            first=first,
            is_again=(is_again & is_in_prompt).flatten(1, 2),
        )

    def repeat(self, n: int) -> "SharedPrefixes":
        """Return all rows n times, one copy after the other."""
        if n == 1:
            return self
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return SharedPrefixes(**{name: part.repeat(n, *[1] * (part.ndim - 1)) for name, part in parts.items()})

    def spread(self, x: Float[Tensor, "row token channel"]) -> Float[Tensor, "prompt pos channel"]:
        """Lay the prompts of all rows side by side."""
        spread: Tensor = _Spread.apply(x.reshape(-1, x.shape[-1]), self._places)  # pyright: ignore[reportAssignmentType]
        return spread.view(-1, self.index.shape[2], x.shape[-1])

    @functools.cached_property
    def spans(self) -> Int[Tensor, "pair 4"]:
        """Where the prompts of each pair stand, rows laid end to end; see `kernels.reference.shared_attention`."""
        n_row, n_token = self.tokens.shape
        length, place = (x.unflatten(1, (-1, 2)) for x in (self.last_position + 1, self.index))  # (row, pair, 2[, pos])
        n_alike = self.is_again.unflatten(1, (-1, 2))[:, :, 1].sum(-1)
        # The second prompt's last token ends what is its own; if it has none, any place does.
        rest = place[:, :, 1, -1] + 1 - (length[:, :, 1] - n_alike)
        start = n_token * torch.arange(n_row)[:, None]
        spans = (place[:, :, 0, 0] + start, n_alike, rest + start, length[:, :, 0])
        return torch.stack(spans, -1).flatten(0, 1).contiguous()

    @functools.cached_property
    def last_position(self) -> Int[Tensor, "row prompt"]:
        """Position of each prompt's last token."""
        return self.position.gather(1, self.last)

    @functools.cached_property
    def _places(self) -> "_Places":
        n_row, n_token = self.tokens.shape
        row = torch.arange(n_row)
        index = (self.index + n_token * row[:, None, None]).flatten()
        again = self.is_again.flatten().nonzero().flatten()
        first = (self.first + self.index[0].numel() * row[:, None]).flatten()
        unused = (torch.arange(n_token) >= self.n_token[:, None]).flatten().nonzero().flatten()
        return _Places(index=index, first=first, unused=unused, again=again, shared=index[again])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Places:
    """Places in all rows laid end to end, and in all prompts laid end to end."""

    index: Int[Tensor, " place_in_prompts"]
    """By place in the prompts, the place in the rows."""

    first: Int[Tensor, " place_in_rows"]
    """By place in the rows, the place in the prompts where it stands first."""

    unused: Int[Tensor, " unused"]
    """Places in the rows of tokens that are of no prompt."""

    again: Int[Tensor, " repeated"]
    """Places in the prompts where a token stands the second time."""

    shared: Int[Tensor, " repeated"]
    """And the place in the rows of each of them."""


class _Spread(OnceDifferentiable):
    """x[index]; back, both gradients of a token that stands twice, where torch's own adds them up one by one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: _Places) -> Tensor:
        ctx.places = places
        return x.index_select(0, places.index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        places: _Places = ctx.places
        by_x = grads[0].index_select(0, places.first).index_fill_(0, places.unused, 0)
        both = by_x.index_select(0, places.shared) + grads[0].index_select(0, places.again)
        return by_x.index_copy_(0, places.shared, both), None
