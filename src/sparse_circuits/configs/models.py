"""The shape of a model."""

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
