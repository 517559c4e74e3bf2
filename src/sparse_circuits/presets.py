"""Settings to start from."""

import dataclasses

from sparse_circuits.configs import (
    CorpusConfig,
    DemoConfig,
    ModelConfig,
    OptimizerConfig,
    PruneConfig,
    SparsityConfig,
    TrainConfig,
)

SMALL = TrainConfig(
    model=ModelConfig(bigram="none", positions="concatenated", d_position=32),
    n_token=6_200_000,
    optimizer=OptimizerConfig(lr=0.024),
    validate_every=500,
)
"""Three layers that learn in some seven minutes on two cores.

With positions the loss on text is lower, and behaviours come that do not come without (docs/log.md).
Without a bigram table: with one the loss on text is a little lower and some behaviours come sooner, but most carry over
worse to contexts that the model has not seen (docs/log.md).
"""

DENSE = dataclasses.replace(
    SMALL,
    model=dataclasses.replace(SMALL.model, act_density=None),
    sparsity=SparsityConfig(matrix_density=1.0, embedding_density=1.0, bias_density=1.0, n_alive=0, anneal="none"),
    optimizer=OptimizerConfig(lr=0.004, scale_lr_with_density=False),
)
"""The same shape with every weight and activation free."""

TINY = TrainConfig(
    model=ModelConfig(n_vocab=1024, n_ctx=64, n_layer=2, d_model=64, n_head=4, d_mlp=256),
    sparsity=SparsityConfig(matrix_density=0.25, embedding_density=0.25),
    optimizer=OptimizerConfig(lr=0.02),
    shares={"idioms": 1.0},
    context=64,
    batch_size=8,
    n_token=1_000_000,
    n_validation_token=8_192,
    validate_every=1_000,
)
"""Two layers that learn to close quotes, more or less, in half a minute."""

TRAIN_PRESETS = {"small": SMALL, "tiny": TINY, "dense": DENSE}
"""Training settings to start from."""

DEMO_PRESETS = {
    "small": DemoConfig(train=SMALL, prune=PruneConfig(cuts_edges=False, needed_loss=0.006)),
    "tiny": DemoConfig(
        corpus=CorpusConfig(sources=("idioms",), n_vocab=1024, max_token=1_200_000, n_tokenizer_byte=2_000_000),
        train=TINY,
        prune=PruneConfig(n_step=100, n_mean_token=50_000, target_loss=0.45),
        tasks=("single_double_quote",),
        n_set=20,
    ),
}
"""Demos to start from: `small` takes twelve to twenty minutes, `tiny` two to five."""
