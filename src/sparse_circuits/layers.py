"""What a block is made of: linear maps whose edges can be cut, norms, AbsTopK, and what a sublayer reads.

Weights multiply on the right, as in torch: a map's weight is (target, source) and out = x @ weight.T + bias.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparse_circuits import kernels
from sparse_circuits.configs import ModelConfig
from sparse_circuits.kernels import PackedWeight
from sparse_circuits.taps import EdgeCut, Tap


class Linear(nn.Linear):
    """A linear map whose edges can be cut.

    With `packed`, the nonzeros of its weight, products go through these alone. Its owner sees to it that they are those
    of `weight`; in a packed model there is no other weight.
    """

    cut: EdgeCut | None = None
    packed: PackedWeight | None = None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Float[Tensor, "batch pos source"],
        ablated: Float[Tensor, "batch pos source"] | None = None,
        around: Float[Tensor, "run source"] | None = None,
    ) -> Float[Tensor, "batch pos target"]:
        """Map `x`; where edges are cut, the source's ablated value passes instead.

        Args:
            x: Source activations.
            ablated: What a cut source is worth at each position, if that differs from `cut.ablated`.
            around: What most channels of `x` are, where that is known; it saves work and changes nothing else.
        """
        if self.cut is None and around is not None and self.packed is None:
            return kernels.linear_around(x, self.weight, self.bias, around)
        if self.cut is None:
            return self.product(x, self.bias)
        kept = self.weight * self.cut.keep  # (target, source), or (run, target, source)
        n_run = len(kept) if kept.ndim == 3 else 1
        rest = self.cut.ablated.expand(n_run, 1, -1) if ablated is None else ablated
        x, rest = (_map_by_run(x, weight) for x, weight in ((x, kept), (rest, self.weight - kept)))
        out = x.unflatten(0, (n_run, -1)) + rest.unflatten(0, (n_run, -1))  # (run, batch of a run, pos, target)
        return out.flatten(0, 1) if self.bias is None else out.flatten(0, 1) + self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Linear":
        """Move the nonzeros along, when torch moves a module or gives it another type."""
        super()._apply(fn, recurse)
        self.packed = self.packed and self.packed.mapped(fn)
        return self

    def product(self, x: Float[Tensor, "batch pos source"], bias: Tensor | None) -> Float[Tensor, "batch pos target"]:
        """Map `x` by the whole weight, and add a bias."""
        if self.packed is None:
            return kernels.linear(x, self.weight, bias)
        return kernels.packed_linear(x, self.packed, bias, dense=self.weight)

    def rows(self, chosen: Int[Tensor, "batch answer"]) -> Float[Tensor, "batch answer source"]:
        """Return some rows of the weight."""
        return kernels.packed_rows(self.packed, chosen) if self.packed and self.weight is None else self.weight[chosen]


def _map_by_run(
    x: Float[Tensor, "batch pos source"], weight: Float[Tensor, "*run target source"]
) -> Float[Tensor, "batch pos target"]:
    """Map each run's part of the batch by its own weight, or all of it by one."""
    if weight.ndim == 2:
        return F.linear(x, weight)
    return torch.einsum("rbps,rts->rbpt", x.unflatten(0, (len(weight), -1)), weight).flatten(0, 1)


class Norm(nn.Module):
    """RMSNorm or LayerNorm; the factor that it multiplies with passes a tap, so that it can be frozen."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.centres = config.norm == "layer"
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if config.norm_bias else None
        self.scale = Tap()

    def forward(self, x: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos channel"]:
        """Scale each vector to unit mean square (LayerNorm: after centring), then by the gain."""
        if self.centres:
            x = x - x.mean(-1, keepdim=True)
        eps = 1e-5 if self.centres else torch.finfo(x.dtype).eps
        out, scale = kernels.rms_norm(x, self.weight, eps)
        scale = self.scale(scale)  # (batch, pos, 1)
        if self.scale.edits:
            out = x * scale * self.weight
        return out if self.bias is None else out + self.bias


class AbsTopK(nn.Module):
    """Keeps a share of the largest magnitudes, where the config says so, and passes the result through a tap."""

    def __init__(self, site: str, width: int, config: ModelConfig) -> None:
        super().__init__()
        acts = config.act_density is not None and site in config.act_sites
        self.n_keep = int((config.act_density or 1) * width) if acts else None
        self.before = Tap()
        self.after = Tap()

    @property
    def is_idle(self) -> bool:
        """Whether nobody edits or reads here, be it by a tap, a hook of torch's, or in place of `forward` (nnsight)."""
        hooks = (self._forward_pre_hooks, self._forward_hooks, self._backward_pre_hooks, self._backward_hooks)
        is_watched = any(hooks) or "forward" in vars(self)
        return self.before.is_idle and self.after.is_idle and not is_watched

    def forward(self, x: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos channel"]:
        """Thin `x` out, if this site does."""
        return self.after(self.before(x), self.n_keep)


class Read(nn.Module):
    """What a sublayer reads: the normalised stream, with normalised positions behind it where there are some."""

    def __init__(self, site: str, config: ModelConfig) -> None:
        super().__init__()
        self.norm = Norm(config.d_model, config)
        self.position_norm = Norm(cast(int, config.d_position), config) if config.has_concatenated_positions else None
        self.act_in = AbsTopK(site, config.d_read, config)

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], positions: Float[Tensor, "rows pos d_position"] | None
    ) -> Float[Tensor, "batch pos d_read"]:
        """Normalise, append positions, thin out."""
        read = self.norm(x)
        if self.position_norm is not None and positions is not None:
            read = torch.cat((read, self.position_norm(positions).expand(len(x), -1, -1)), -1)
        return self.act_in(read)
