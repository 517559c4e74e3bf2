"""Every setting of the package, and the presets. Needs no torch."""

import dataclasses
from typing import Literal

from sparse_circuits.settings import Config, require

NODE_SITES = (
    "attn.act_in",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.resid_delta",
    "mlp.act_in",
    "mlp.post_act",
    "mlp.resid_delta",
)
"""The locations of a layer whose channels are nodes, in the order of the forward pass."""

STREAM_SITES = ("resid_mid", "resid_out")
"""Where AbsTopK may cut the residual stream itself: after attention's and after the MLP's addition."""

MAX_BIGRAM_VOCAB = 8192
"""Above this a dense bigram table is refused: it has the square of the vocabulary as entries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The shape of a model; with its weights, enough to rebuild it."""

    n_vocab: int = 2048
    """Tokens in the vocabulary."""

    n_ctx: int = 128
    """Longest context, in tokens."""

    n_layer: int = 3
    """Blocks; each is attention, then MLP."""

    d_model: int = 128
    """Width of the residual stream."""

    n_head: int = 8
    """Attention heads of a block."""

    d_head: int = 16
    """Width of a head; n_head · d_head may differ from d_model."""

    d_mlp: int = 512
    """Neurons of a block."""

    activation: Literal["gelu", "relu"] = "gelu"
    """The neurons' nonlinearity; gelu is the exact one."""

    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm (machine epsilon), or LayerNorm (epsilon 1e-5)."""

    norm_bias: bool = False
    """A bias in each LayerNorm."""

    linear_bias: bool = True
    """Biases in the four linear maps of a block."""

    act_density: float | None = 0.25
    """Share of each activation vector that AbsTopK keeps, in (0, 1]; None keeps all."""

    act_sites: tuple[str, ...] = NODE_SITES
    """Where AbsTopK acts."""

    attention_sink: bool = True
    """One learned logit a head that attention may go to instead of a position."""

    tied_unembedding: bool = False
    """Unembed with the embedding's weights."""

    bigram: Literal["none", "learned", "fixed"] = "learned"
    """A dense table of logits by current token, added to the output: a parameter, or a constant."""

    bigram_trains_last_row: bool = True
    """Whether the last token's row gets a gradient; in the release it does not."""

    positions: Literal["none", "added", "concatenated", "sinusoidal"] = "none"
    """Position vectors: none; learned, added to the embedding; learned or fixed waves, concatenated to every read."""

    d_position: int | None = None
    """Width of concatenated position vectors."""

    residual_activation: Literal["none", "relu"] = "none"
    """Nonlinearity on the residual stream after each addition."""

    def __post_init__(self) -> None:
        for name in ("n_vocab", "n_ctx", "n_layer", "d_model", "n_head", "d_head", "d_mlp"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected 1 or more")
        known = NODE_SITES + STREAM_SITES
        for site in self.act_sites:
            require(site in known, f"act_sites names {site!r}, expected some of {', '.join(known)}")
        if self.act_density is not None:
            require(0 < self.act_density <= 1, f"act_density is {self.act_density}, expected (0, 1] or null")
            narrowest = min(self.d_model, self.d_attn, self.d_mlp)
            require(
                self.act_density * narrowest >= 1,
                f"act_density {self.act_density} keeps none of {narrowest} channels; try {1 / narrowest:.3g}",
            )
        require(
            self.norm == "layer" or not self.norm_bias,
            "norm_bias has no effect with norm rms; leave it false or take norm layer",
        )
        require(
            (self.d_position is not None) == self.has_concatenated_positions,
            f"d_position is {self.d_position} with positions {self.positions}: it belongs to "
            "concatenated and sinusoidal positions, and they need it",
        )
        require(self.d_position is None or self.d_position >= 1, f"d_position is {self.d_position}, expected 1 or more")
        require(
            self.bigram == "learned" or self.bigram_trains_last_row,
            f"bigram_trains_last_row has no effect with bigram {self.bigram}; leave it true",
        )
        require(
            self.bigram == "none" or self.n_vocab <= MAX_BIGRAM_VOCAB,
            f"bigram is {self.bigram} with n_vocab {self.n_vocab}; above {MAX_BIGRAM_VOCAB} tokens it must be none",
        )

    @property
    def has_concatenated_positions(self) -> bool:
        """Whether position vectors are appended to what attention and MLP read."""
        return self.positions in ("concatenated", "sinusoidal")

    @property
    def d_read(self) -> int:
        """Width of what attention and MLP read: d_model, and concatenated positions."""
        return self.d_model + (self.d_position or 0)

    @property
    def d_attn(self) -> int:
        """Width of q, k, v and the mixed values: all heads together."""
        return self.n_head * self.d_head

    def site_widths(self) -> dict[str, int]:
        """Return the number of channels of each site of `NODE_SITES`."""
        read, attn, model = self.d_read, self.d_attn, self.d_model
        return dict(zip(NODE_SITES, (read, attn, attn, attn, model, read, self.d_mlp, model), strict=True))

    def node_widths(self) -> dict[str, int]:
        """Return the census of nodes: channels by location name, such as `0.attn.q`, in forward order."""
        return {f"{layer}.{site}": width for layer in range(self.n_layer) for site, width in self.site_widths().items()}


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig(Config):
    """The text that models are trained on; frozen and hashed before any task is sampled."""

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
class PruneConfig(Config):
    """How a circuit is cut out (paper section 2.2, appendix A.2)."""

    target_loss: float = 0.15
    """Loss that the circuit may have, in nats: of the task after calibration, or against the model."""

    margin: float = 0.15
    """Share of target_loss by which a circuit must stay below it on the select split, in [0, 1): it does worse on other
    templates than on those that its nodes were decided on."""

    goal: Literal["labels", "model"] = "labels"
    """Do the task, or answer as the model does, its errors and its confidence included, without calibration."""

    max_auroc: float = 0.6
    """Refinement keeps the AUROC of the model without the circuit (on select) at or below this where it can; 1 asks for
    nothing."""

    count_coefficient: float | None = None
    """Price of a node in the objective task loss + this · nodes; if left out, a price that follows the loss so that
    this ends at target_loss."""

    calibrates: bool = True
    """Learn a scale and a shift of the logit difference along with the masks."""

    ties_query_and_key: bool = False
    """Keep a query channel and its key channel together or not at all (paper, footnote 17)."""

    exclude: tuple[str, ...] = ()
    """Nodes that must not be in the circuit, such as 0.attn.q:17."""

    necessity_coefficient: float = 1.0
    """Weight of a second term: what the model without the circuit still tells; 0 prunes for sufficiency alone."""

    n_step: int = 300
    """Steps of mask learning."""

    n_pair: int = 16
    """Pairs of prompts a step."""

    n_run: int = 1
    """Masks learned side by side from different seeds; the smallest circuit is kept."""

    lr: float = 1e-2
    """Adam's rate on the node parameters, falling linearly to 0."""

    warmup_frac: float = 0.05
    """Share of the steps over which the rate rises."""

    beta2: float = 0.95
    """Adam's second decay rate, in [0, 1)."""

    weight_decay: float = 1e-3
    """AdamW's decay of the node parameters."""

    temperature: float = 1.0
    """Width of the sigmoid that stands in for the step's derivative."""

    init_bias: float = 0.1
    """Start of every node parameter; above 0 every node starts kept."""

    init_noise: float = 0.08
    """Standard deviation around that start."""

    cuts_edges: bool = True
    """Whether refinement removes edges too, after the nodes."""

    n_order: int = 1
    """Orders of removal that refinement tries; the smallest circuit is kept, and the sizes of all are recorded."""

    ablation: Literal["mean", "zero", "task_mean"] = "mean"
    """What a removed node is set to: its mean over the corpus, zero, or its mean over the fit pairs."""

    n_mean_token: int = 500_000
    """Least tokens that corpus means are taken over."""

    seed: int = 0
    """Decides initial noise and batches."""

    def __post_init__(self) -> None:
        price = self.count_coefficient
        require(price is None or price > 0, f"count_coefficient is {price}, expected above 0")
        for name in ("target_loss", "lr", "temperature"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}, expected above 0")
        for name in ("n_step", "n_pair", "n_run", "n_order", "n_mean_token"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected 1 or more")
        require(0 <= self.warmup_frac < 1, f"warmup_frac is {self.warmup_frac}, expected [0, 1)")
        for name in ("beta2", "margin"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}, expected [0, 1)")
        require(0.5 <= self.max_auroc <= 1, f"max_auroc is {self.max_auroc}, expected [0.5, 1]")
        for name in ("weight_decay", "init_noise", "necessity_coefficient"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, expected 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchConfig(Config):
    """How dense models around a sparse one's loss are found."""

    lr: float = 0.004
    """Learning rate of the dense models; all else is the sparse run's."""

    first_width: int | None = None
    """d_model to start from; if left out, that of a dense model with as many weights as the sparse one has nonzeros."""

    n_model: int = 6
    """Most dense models to train, 2 or more."""

    def __post_init__(self) -> None:
        require(0 < self.lr < float("inf"), f"lr is {self.lr}, expected above 0")
        require(
            self.first_width is None or self.first_width >= 1, f"first_width is {self.first_width}, expected 1 or more"
        )
        require(self.n_model >= 2, f"n_model is {self.n_model}, expected 2 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """The main job from end to end: corpus, training, pruning, verification, pages."""

    corpus: CorpusConfig = CorpusConfig()
    """What to train on."""

    train: TrainConfig = TrainConfig()
    """How to train."""

    prune: PruneConfig = PruneConfig()
    """How to cut circuits out."""

    tasks: tuple[str, ...] = ("single_double_quote", "bracket_counting")
    """Behaviours to look for."""

    n_set: int = 200
    """Random sets that a circuit is compared with."""

    seed: int = 0
    """Decides the tasks' prompts."""

    def __post_init__(self) -> None:
        require(self.n_set >= 1, f"n_set is {self.n_set}, expected 1 or more")
        require(
            self.corpus.n_vocab == self.train.model.n_vocab,
            f"corpus.n_vocab is {self.corpus.n_vocab}, train.model.n_vocab {self.train.model.n_vocab}; make them equal",
        )
