"""Training: what a run reads, how sparse it becomes and how it learns."""

import dataclasses
from typing import Literal

from sparse_circuits.configs.models import ModelConfig
from sparse_circuits.settings import Config, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig(Config):
    """The text that models are trained on; frozen and hashed before any pair is mined from it."""

    sources: tuple[str, ...] = ("stdlib", "idioms")
    """Each is `stdlib`, `idioms`, `dist:NAME` for an installed distribution, or a folder of .py or .txt files."""

    n_vocab: int = 2048
    """Tokens of the tokenizer; the last is the end of text."""

    n_tokenizer_byte: int = 8_000_000
    """Most bytes that the tokenizer is trained on, sources weighted equally."""

    max_token: int = 4_500_000
    """Most tokens taken of a source."""

    validation_frac: float = 0.05
    """Share of the documents held out, in (0, 0.5]."""

    seed: int = 0
    """Decides the idioms and the split."""

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "sources is empty, expected at least one")
        require(len(set(self.sources)) == len(self.sources), f"sources {self.sources} repeat")
        require(258 <= self.n_vocab <= 65_536, f"n_vocab is {self.n_vocab}, expected 258 to 65536")
        require(0 < self.validation_frac <= 0.5, f"validation_frac is {self.validation_frac}, expected (0, 0.5]")
        for name in ("max_token", "n_tokenizer_byte"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsityConfig(Config):
    """How many weights of each tensor may be nonzero, and how it comes to that (paper section 2.1)."""

    matrix_density: float = 0.1
    """Final share of nonzero weights in each attention and MLP matrix, in (0, 1]; 1 is a dense model."""

    embedding_density: float = 0.1
    """The same for embedding and unembedding."""

    bias_density: float = 0.1
    """The same for each bias vector; the release's training keeps them dense (1)."""

    embedding_schedule: Literal["with_matrices", "late"] = "with_matrices"
    """Embeddings and biases thin out along with the matrices, or stay dense until the matrices' density falls below
    matrix_density / embedding_density."""

    anneal: Literal["linear", "power_law", "none"] = "linear"
    """From dense to the final density: linearly, as a power of the step, or sparse from the start."""

    anneal_start_frac: float = 0.01
    """Share of the steps after which annealing starts, in [0, 1)."""

    anneal_stop_frac: float = 0.5
    """Share of the steps after which the final density is reached, in (start, 1]."""

    anneal_exponent: float = 1.0
    """Linear annealing goes by 1 − (1 − progress)^exponent; above 1 it is fast at first."""

    n_alive: int = 4
    """Weights kept in each neuron and attention channel whatever their size, inside the budget; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("matrix_density", "embedding_density", "bias_density"):
            value = getattr(self, name)
            require(0 < value <= 1, f"{name} is {value}, expected (0, 1]")
        require(
            0 <= self.anneal_start_frac < self.anneal_stop_frac <= 1,
            f"anneal_start_frac {self.anneal_start_frac} and anneal_stop_frac {self.anneal_stop_frac}: "
            "expected 0 <= start < stop <= 1",
        )
        require(self.anneal_exponent > 0, f"anneal_exponent is {self.anneal_exponent}, expected above 0")
        require(self.n_alive >= 0, f"n_alive is {self.n_alive}, expected 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """Adam on normalised gradients, with the learning rate tied to the density (paper section 2.1)."""

    lr: float = 0.0128
    """Learning rate of the sparse phase."""

    warmup_frac: float = 0.01
    """Share of the steps over which the rate rises from 0, in [0, 1)."""

    decay_lr: bool = True
    """Let the rate fall linearly to 0 after warm-up."""

    scale_lr_with_density: bool = True
    """Multiply the rate by sqrt(final density / density now), the paper's sharkfin: low while dense."""

    beta1: float = 0.9
    """Adam's first decay rate, in [0, 1)."""

    beta2: float = 0.95
    """Adam's second decay rate, in [0, 1)."""

    eps: float = 0.1
    """Added to Adam's denominator; this size has a meaning only with gradients of RMS 1."""

    weight_decay: float = 0.1
    """Decay by rate · this a step, after the projection, of everything with two axes but the bigram table."""

    gradient: Literal["normalise", "clip", "keep"] = "normalise"
    """Divide all gradients by their common RMS + 1e-5 (the release), only where it is above 1 (the paper's words), or
    never."""

    def __post_init__(self) -> None:
        require(0 < self.lr < float("inf"), f"lr is {self.lr}, expected above 0")
        require(0 <= self.warmup_frac < 1, f"warmup_frac is {self.warmup_frac}, expected [0, 1)")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}, expected [0, 1)")
        require(self.eps > 0, f"eps is {self.eps}, expected above 0")
        require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}, expected 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """One training run."""

    model: ModelConfig = ModelConfig()
    """The model's shape."""

    sparsity: SparsityConfig = SparsityConfig()
    """How sparse, and when."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """How it learns."""

    shares: dict[str, float] = dataclasses.field(default_factory=lambda: {"stdlib": 0.3, "idioms": 0.7})
    """Share of the training tokens by source of the corpus; they add up to 1."""

    n_token: int = 5_000_000
    """Tokens to train on; never a time."""

    batch_size: int = 16
    """Sequences a step."""

    context: int = 128
    """Tokens a sequence, at most the model's n_ctx."""

    bigram_init: Literal["counts", "uniform", "zeros"] = "counts"
    """The bigram table's start: smoothed log counts of the corpus, uniform in [0, 0.02) as in the release, or zeros."""

    extra_step: bool = False
    """Run one step more than the tokens give, at rate 0 when the rate decays, as the release does."""

    seed: int = 0
    """Decides the initial weights and the order of the data."""

    validate_every: int = 250
    """Steps between two validations."""

    n_validation_token: int = 65_536
    """Tokens of each source's held-out documents that a validation reads."""

    checkpoint_every: int = 500
    """Steps between two checkpoints."""

    weights: Literal["packed", "plain"] = "packed"
    """Store weights as nonzeros with their columns, or as plain arrays."""

    def __post_init__(self) -> None:
        for name in ("n_token", "batch_size", "validate_every", "n_validation_token", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected 1 or more")
        require(
            2 <= self.context <= self.model.n_ctx,
            f"context is {self.context}, expected 2 to model.n_ctx {self.model.n_ctx}",
        )
        require(
            abs(sum(self.shares.values()) - 1) < 1e-6 and min(self.shares.values(), default=-1) > 0,
            f"shares are {self.shares}, expected positive numbers that add up to 1",
        )
        require(self.n_step >= 1, f"n_token {self.n_token} is less than one step of {self.batch_size} · {self.context}")

    @property
    def n_step(self) -> int:
        """Steps of the schedule: whole batches in `n_token`."""
        return self.n_token // (self.batch_size * self.context)
