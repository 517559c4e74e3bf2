"""How many weights of each tensor may be nonzero at a step, and the projection that makes it so."""

import dataclasses
import warnings

import torch

from sparse_circuits import kernels
from sparse_circuits.configs import SparsityConfig
from sparse_circuits.errors import ConfigError
from sparse_circuits.model import Transformer

NEURON_AXIS = {"attn.qkv.weight": 0, "mlp.fc_in.weight": 0, "attn.out.weight": 1, "mlp.fc_out.weight": 1}
"""Which axis of a matrix counts neurons and attention channels: rows where they are written, columns where read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """One parameter and how much of it may be nonzero."""

    name: str
    """The parameter's name in the model."""

    density: float
    """Final share of nonzeros, in (0, 1]."""

    is_matrix: bool
    """Whether it follows the matrices' schedule exactly."""

    neuron_axis: int | None
    """The axis whose entries are neurons or attention channels; None where none is protected."""


def budgets(model: Transformer, config: SparsityConfig) -> list[Budget]:
    """List the parameters that are made sparse.

    These are the matrices (and added position vectors) at `matrix_density`, embedding and unembedding at
    `embedding_density`, and biases at `bias_density`. Norms, sinks, the bigram table and concatenated position
    vectors stay dense.

    Source: paper section 2.1; the release's training script for the list.
    """
    found = []
    for name, parameter in model.named_parameters():
        kind = name.split(".", 2)[-1] if name.startswith("blocks.") else name
        if kind in NEURON_AXIS or (kind == "position_embedding.weight" and model.config.positions == "added"):
            axis = NEURON_AXIS.get(kind)
            found.append(Budget(name=name, density=config.matrix_density, is_matrix=True, neuron_axis=axis))
        elif kind in ("token_embedding.weight", "unembedding.weight"):
            found.append(Budget(name=name, density=config.embedding_density, is_matrix=False, neuron_axis=None))
        elif parameter.ndim == 1 and name.endswith(".bias") and "norm" not in name:
            found.append(Budget(name=name, density=config.bias_density, is_matrix=False, neuron_axis=None))
    return found


def matrix_density_at(step: int, *, n_step: int, config: SparsityConfig) -> float:
    """Return the matrices' density at a step, from 1 to `matrix_density`.

    Linear: 1 + (final − 1)·(1 − (1 − progress)^exponent). Power law: a straight line in log density against log step.

    Args:
        step: In [0, n_step].
        n_step: Steps of the schedule.
        config: When annealing starts and stops, and how.

    Source: the release's training script.
    """
    final = config.matrix_density
    if config.anneal == "none":
        return final
    start, stop = config.anneal_start_frac * n_step, config.anneal_stop_frac * n_step
    if step >= min(stop, n_step - 1):  # the last step leaves the final density, however late annealing stops
        return final
    if config.anneal == "linear":
        progress = max((step - start) / (stop - start), 0.0)
        return 1 + (final - 1) * (1 - (1 - progress) ** config.anneal_exponent)
    if step <= start:
        return 1.0
    start = max(start, 1.0)
    progress = torch.tensor([step / start, stop / start], dtype=torch.float64).log()
    return float(final ** float(progress[0] / progress[1]))


def density_at(budget: Budget, matrix_density: float, *, config: SparsityConfig) -> float:
    """Return a parameter's density while the matrices' is `matrix_density`.

    `with_matrices`: as far from 1 to its own final density as the matrices are. `late`: in proportion to the
    matrices', capped at 1, so that it stays dense until near the end (the paper's models).
    """
    if budget.is_matrix:
        return matrix_density
    if config.matrix_density == 1 or config.anneal == "none":
        return budget.density
    if config.embedding_schedule == "late":
        return min(1.0, matrix_density * budget.density / config.matrix_density)
    progress = (1 - matrix_density) / (1 - config.matrix_density)
    return 1 + (budget.density - 1) * progress


def n_keep(numel: int, density: float) -> int:
    """Return how many of `numel` entries a density allows, rounded down.

    A billionth is added before rounding, so that 0.9 · 1,000 computed a bit low is still 900.
    """
    return min(numel, int(numel * density + 1e-9 * numel))


def check_quota(model: Transformer, config: SparsityConfig) -> None:
    """Refuse a number of protected weights that the final budget can't hold; warn when it takes over half.

    Raises:
        ConfigError: A matrix's quota exceeds its budget.
    """
    parameters = dict(model.named_parameters())
    for budget in budgets(model, config):
        if budget.neuron_axis is None or config.n_alive == 0:
            continue
        weight = parameters[budget.name]
        quota = config.n_alive * weight.shape[budget.neuron_axis]
        allowed = n_keep(weight.numel(), budget.density)
        per_neuron = allowed / weight.shape[budget.neuron_axis]
        told = (
            f"sparsity.n_alive {config.n_alive} asks for {quota} weights of {budget.name}, whose budget at "
            f"matrix_density {config.matrix_density} is {allowed} ({per_neuron:.1f} a neuron)"
        )
        if quota > allowed:
            raise ConfigError(f"{told}; lower n_alive to {int(per_neuron)} or raise the density")
        if 2 * quota > allowed and budget.density < 1:
            warnings.warn(f"{told}: over half is spent on every neuron alike", stacklevel=2)


@torch.no_grad()
def project_(model: Transformer, matrix_density: float, *, config: SparsityConfig) -> None:
    """Zero, in place, all but the largest weights of each parameter, exactly as many as its budget allows.

    Args:
        model: The model; its gradients and optimizer state stay dense, so that weights can come back.
        matrix_density: The matrices' density at this step.
        config: Final densities and the number of protected weights.
    """
    parameters, jobs = dict(model.named_parameters()), []
    for budget in budgets(model, config):
        weight = parameters[budget.name].data
        allowed = n_keep(weight.numel(), density_at(budget, matrix_density, config=config))
        if allowed == weight.numel():
            continue
        n_alive = 0 if budget.neuron_axis is None else config.n_alive
        jobs.append((weight, allowed, n_alive, budget.neuron_axis or 0))
    kernels.keep_largest_many_(jobs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nonzeros:
    """How sparse a model is."""

    n_parameter: int
    """Entries of all parameters but the bigram table."""

    n_nonzero: int
    """Those that are not zero."""

    n_bigram_nonzero: int
    """Nonzero entries of the bigram table; it is dense by design and counted apart."""

    matrix_density: float
    """Share of nonzeros in the attention and MLP matrices."""

    embedding_density: float
    """Share of nonzeros in embedding and unembedding."""

    n_alive_neuron: int
    """MLP neurons with an input and an output weight."""

    n_neuron: int
    """MLP neurons."""


def count_nonzeros(model: Transformer) -> Nonzeros:
    """Count the nonzero weights of a model."""
    matrix, embedding = [0, 0], [0, 0]
    total, bigram = [0, 0], 0
    for name, parameter in model.named_parameters():
        nonzero, size = int(parameter.count_nonzero()), parameter.numel()
        if name == "bigram":
            bigram = nonzero
            continue
        total[0] += nonzero
        total[1] += size
        if name in ("token_embedding.weight", "unembedding.weight"):
            embedding[0] += nonzero
            embedding[1] += size
        elif name.split(".", 2)[-1] in NEURON_AXIS:
            matrix[0] += nonzero
            matrix[1] += size
    linears = model.linears()
    n_alive = 0
    for i in range(model.config.n_layer):
        has_input = (linears[f"{i}.mlp.fc_in"].weight != 0).any(1)
        has_output = (linears[f"{i}.mlp.fc_out"].weight != 0).any(0)
        n_alive += int((has_input & has_output).sum())
    return Nonzeros(
        n_parameter=total[1],
        n_nonzero=total[0],
        n_bigram_nonzero=bigram,
        matrix_density=matrix[0] / matrix[1],
        embedding_density=embedding[0] / embedding[1],
        n_alive_neuron=n_alive,
        n_neuron=model.config.n_layer * model.config.d_mlp,
    )
