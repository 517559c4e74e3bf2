"""Where a training step's time goes, beside its floor: the bare matrix products of the same step."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from sparse_circuits.configs import TrainConfig
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.devices import usable_device
from sparse_circuits.footprint import check_memory
from sparse_circuits.model import Transformer
from sparse_circuits.optimizer import Optimizer
from sparse_circuits.tables import aligned
from sparse_circuits.training import MAX_GPU_TOKENS, check_settings, initial_model, loss_and_gradients

PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear", "_Linear"),
    "products with packed weights": ("_PackedLinear", "_PackedLinearBackward"),
    "AbsTopK": ("_AbsTopK", "_AbsTopKBackward"),
    "attention": (
        "aten::_scaled_dot_product",
        "_SinkAttention",
        "_NarrowAttention",
        "aten::_flash_attention",
        "aten::_efficient_attention",
    ),
    "activation function": ("aten::gelu", "aten::relu", "aten::threshold_backward"),
    "loss": ("aten::_log_softmax", "aten::nll_loss", "_CrossEntropy"),
    "Adam": ("aten::_fused_adam_",),
    "gradient scale": ("aten::linalg_vector_norm", "aten::_foreach_norm"),
    "projection": ("projection",),
}
"""Parts of a step, and how the operations that belong to each begin; everything else is `the rest`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepProfile:
    """One training step's time, by part, in seconds."""

    density: float
    """Density of the matrices."""

    step: float
    """Median of whole steps, without the profiler."""

    floor: float
    """Forward, input-gradient and weight-gradient products of all linear maps and the unembedding, dense."""

    parts: dict[str, float]
    """Time in each part under the profiler, largest first; they add up to the profiled step."""


def profile_training(
    config: TrainConfig, *, corpus: Corpus | Path | str, device: str = "cpu", n_step: int = 5
) -> list[StepProfile]:
    """Time a few steps at the first density of a run and at its last; writes nothing.

    Args:
        config: The run's settings.
        corpus: A finished corpus.
        device: Where to compute.
        n_step: Steps to take the median of, 1 or more.

    Raises:
        ConfigError: The settings don't fit the corpus or each other.
        DeviceError: The device is not there, or its memory is too small.
    """
    place = usable_device(device)
    corpus = corpus if isinstance(corpus, Corpus) else Corpus(corpus)
    check_settings(config, corpus)
    check_memory(config, place, max_token=MAX_GPU_TOKENS if place.type == "cuda" else None)
    model = initial_model(dataclasses.replace(config, bigram_init="zeros"), corpus).to(place)
    optimizer = Optimizer(model, optimizer=config.optimizer, sparsity=config.sparsity, n_step=config.n_step)
    generator = torch.Generator().manual_seed(config.seed)
    tokens = torch.randint(config.model.n_vocab, (config.batch_size, config.context), generator=generator).to(place)
    first = int(config.sparsity.anneal_start_frac * config.n_step)
    densities = [first] if config.sparsity.anneal == "none" else [first, config.n_step - 1]
    return [_profile_at(step, model, optimizer, tokens, n_step) for step in densities]


def _profile_at(step: int, model: Transformer, optimizer: Optimizer, tokens: Tensor, n_step: int) -> StepProfile:
    def act() -> float:
        loss_and_gradients(model, tokens)
        return optimizer.step(step).matrix_density

    density = act()
    whole = _median(act, n_step, tokens.device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (tokens.device.type == "cuda")
    with profile(activities=activities) as seen:
        profiled = _median(act, 1, tokens.device)
    floor = _median(bare_products(model, tokens), n_step, tokens.device)
    parts = dict.fromkeys([*PARTS, "the rest"], 0.0)
    for event in seen.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel by its own name, whose time the operation that called it has as its device time
        own = event.self_device_time_total if tokens.device.type == "cuda" else event.self_cpu_time_total
        name = event.key
        part = next((p for p, starts in PARTS.items() if name.startswith(starts)), "the rest")
        parts[part] += own / 1e6
    parts["the rest"] += max(0.0, profiled - sum(parts.values()))  # between operations
    ordered = dict(sorted(parts.items(), key=lambda item: -item[1]))
    return StepProfile(density=density, step=whole, floor=floor, parts={p: s for p, s in ordered.items() if s > 0})


def bare_products(model: Transformer, tokens: Tensor) -> Callable[[], None]:
    """Return an action that makes the dense matrix products of a step on these tokens, and nothing else.

    Forward, input-gradient and weight-gradient products of all linear maps and the unembedding; on a GPU in bfloat16
    and in parts, as training makes them.
    """
    is_gpu = tokens.device.type == "cuda"
    kind = torch.bfloat16 if is_gpu else torch.float32
    n_row = min(tokens.numel(), MAX_GPU_TOKENS) if is_gpu else tokens.numel()
    weights = [linear.weight.detach() for linear in model.linears().values()]
    weights.append((model.token_embedding if model.config.tied_unembedding else model.unembedding).weight.detach())
    operands = []
    for weight in weights:
        x, grad = (torch.randn(n_row, n, device=tokens.device, dtype=kind) for n in weight.T.shape)
        operands.append((x, weight.to(kind), grad))

    def act() -> None:
        for _ in range(-(-tokens.numel() // n_row)):
            for x, w, g in operands:
                _ = (x @ w.T, g @ w, g.T @ x)

    return act


def _median(act: Callable[[], object], n_time: int, device: torch.device) -> float:
    seconds = []
    for _ in range(n_time):
        start = _now(device)
        act()
        seconds.append(_now(device) - start)
    return sorted(seconds)[n_time // 2]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def table(profiles: list[StepProfile]) -> str:
    """Write profiles as columns, one a density."""
    names = list(dict.fromkeys(name for found in profiles for name in found.parts))
    rows = [["part of a step", *(f"density {found.density:.3g}" for found in profiles)]]
    for name in names:
        shares = []
        for found in profiles:
            part, total = found.parts.get(name, 0.0), sum(found.parts.values())
            shares.append(f"{1e3 * part:,.1f} ms, {part / total:.0%}")
        rows.append([name, *shares])
    rows.append(["a whole step, not profiled", *(f"{1e3 * found.step:,.1f} ms" for found in profiles)])
    rows.append(["its dense matrix products alone", *(f"{1e3 * found.floor:,.1f} ms" for found in profiles)])
    return "\n".join(aligned(rows))
