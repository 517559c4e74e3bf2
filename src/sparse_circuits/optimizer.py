"""One update: gradient normalisation, Adam, the projection, weight decay, and the rates they use."""

import dataclasses
import math

import torch
from torch import Tensor, nn

from sparse_circuits.configs import OptimizerConfig, SparsityConfig
from sparse_circuits.model import Transformer
from sparse_circuits.sparsity import matrix_density_at, project_


def base_lr_at(step: int, *, n_step: int, config: OptimizerConfig) -> float:
    """Return the rate of warm-up and decay alone: it rises linearly from 0, then falls linearly to 0 at `n_step`.

    Source: the release's training script.
    """
    warmup = config.warmup_frac * n_step
    if step < warmup:
        return config.lr * step / warmup
    return config.lr * min(1.0, 1 - (step - warmup) / (n_step - warmup)) if config.decay_lr else config.lr


def lr_at(step: int, *, n_step: int, optimizer: OptimizerConfig, sparsity: SparsityConfig) -> float:
    """Return the rate at a step: warm-up and decay, times sqrt(final density / density now), the sharkfin.

    Source: paper section 2.1 (rate ∝ 1/sqrt(L0)), normalised to 1 at the end as in the release.
    """
    lr = base_lr_at(step, n_step=n_step, config=optimizer)
    if optimizer.scale_lr_with_density:
        density = matrix_density_at(step, n_step=n_step, config=sparsity)
        lr *= math.sqrt(sparsity.matrix_density / density)
    return lr


@torch.no_grad()
def gradient_scale(parameters: list[nn.Parameter], how: str) -> tuple[Tensor, Tensor | None]:
    """Return the gradients' RMS over all entries, and what all of them are to be divided by; both scalars.

    Nothing is divided here: Adam's own pass over the gradients does it.

    Args:
        parameters: Their gradients count.
        how: As `OptimizerConfig.gradient`; `keep` divides by nothing (None).

    Source: the release divides by the RMS at every step; the paper's text says clip. Adam's eps of 0.1 has a
    meaning only together with this.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    rms = norm / math.sqrt(sum(p.numel() for p in parameters))
    if how == "normalise":
        return rms, rms + 1e-5
    return rms, rms.clamp(min=1.0) if how == "clip" else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """What one update did."""

    lr: float
    """Rate used."""

    matrix_density: float
    """Density that the matrices were projected to."""

    grad_rms: Tensor
    """RMS of the gradient's entries before scaling, a scalar tensor."""

    is_skipped: Tensor
    """1 where the gradient was not finite, so that Adam did nothing, else 0; a scalar tensor."""


class Optimizer:
    """Adam with everything that sparse training adds to it, in the release's order.

    The order is: scale gradients, Adam, project to the budget, decay. Adam's moments stay dense. A gradient that is not
    finite leaves the weights to the projection alone, whose budget goes by the schedule; that is decided on the device,
    so that the host waits for nothing.

    Args:
        model: Its trainable parameters are updated in place.
        optimizer: Rates.
        sparsity: Budgets.
        n_step: Steps of the schedules.
    """

    def __init__(
        self, model: Transformer, *, optimizer: OptimizerConfig, sparsity: SparsityConfig, n_step: int
    ) -> None:
        self.model, self.config, self.sparsity, self.n_step = model, optimizer, sparsity, n_step
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(
            self.parameters,
            lr=torch.zeros((), device=self.parameters[0].device),
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
            fused=True,
        )
        if sparsity.anneal == "none":
            project_(model, sparsity.matrix_density, config=sparsity)

    def step(self, step: int) -> Update:
        """Update the weights from their gradients, then clear these.

        Args:
            step: Which step this is, from 0.
        """
        lr = lr_at(step, n_step=self.n_step, optimizer=self.config, sparsity=self.sparsity)
        density = matrix_density_at(step, n_step=self.n_step, config=self.sparsity)
        rms, scale = gradient_scale(self.parameters, self.config.gradient)
        is_skipped = (~rms.isfinite()).to(torch.float32)
        # What mixed precision's loss scaling hands to the fused step: divide by this, and do nothing if that is 1.
        self.adam.grad_scale, self.adam.found_inf = scale, is_skipped  # pyright: ignore[reportAttributeAccessIssue]
        self.adam.param_groups[0]["lr"].fill_(lr)
        self.adam.step()
        with torch.profiler.record_function("projection"):
            project_(self.model, density, config=self.sparsity)
        decayed = [
            p.data for name, p in zip(self.names, self.parameters, strict=True) if p.ndim > 1 and name != "bigram"
        ]
        torch._foreach_mul_(decayed, 1 - self.config.weight_decay * lr * (1 - is_skipped.double()))
        self.adam.zero_grad()
        return Update(lr=lr, matrix_density=density, grad_rms=rms, is_skipped=is_skipped)

    def state(self) -> dict[str, Tensor]:
        """Return Adam's moments and step count by parameter name."""
        return {
            f"{kind}.{name}": self.adam.state[p][kind]
            for name, p in zip(self.names, self.parameters, strict=True)
            for kind in ("exp_avg", "exp_avg_sq", "step")
            if p in self.adam.state
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        for name, p in zip(self.names, self.parameters, strict=True):
            kinds = {kind: state[f"{kind}.{name}"].clone().to(p.device) for kind in ("exp_avg", "exp_avg_sq", "step")}
            self.adam.state[p] = kinds
