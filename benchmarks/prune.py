"""Steps × runs of mask learning a second, against the replication's trainer: same shape, prompts and token lengths.

    python benchmarks/prune.py [--peer CHECKOUT] [--runs 8] [--steps 5] [--rounds 3] [--clock processor]

CHECKOUT is jacobcd52/sparse_pretrain_public. The model has the demo's shape without positions, with random weights of
its density. Prompts are the last tokens of those of single_double_quote, of which ours computes once what the sides of
a pair begin with; and once more random tokens, which begin alike nowhere. Ours learns the runs side by side, once for
sufficiency alone, as the replication does, and once with all that `sc.prune` learns by default (what the model can do
without the circuit, which doubles the prompts). The replication's trainer has one run, whose step is timed once at the
prompts' own length and once padded to 256 tokens, its default.
"""

import dataclasses
import importlib
import itertools
import sys
import types
from pathlib import Path
from typing import Any

import torch
from measuring import in_turn, parser, report
from peers import REPLICATION
from prune_runs import SHAPES, pairs

from sparse_circuits.configs import PruneConfig
from sparse_circuits.corpus.idioms import documents
from sparse_circuits.masks import MaskRun, learn_masks
from sparse_circuits.memory import keep_freed_memory
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.presets import SMALL
from sparse_circuits.sparsity import project_
from sparse_circuits.tasks import task
from sparse_circuits.tasks.pairs import Pairs
from sparse_circuits.tokenizer import Tokenizer

OURS = {"sufficiency alone": 0.0, "by default": PruneConfig().necessity_coefficient}
"""What ours learns: by the weight of what the model can do without the circuit."""

SHAPE = dataclasses.replace(SMALL.model, n_ctx=256, positions="none", d_position=None)


def model() -> Transformer:
    """Build the model with random sparse weights."""
    made, generator = Transformer(SHAPE), torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.1, generator=generator)
    project_(made, SMALL.sparsity.matrix_density, config=SMALL.sparsity)
    return made.eval()


def task_pairs(n_pair: int, n_token: int) -> Pairs:
    """Return the last tokens of a task's prompts that have as many; answers are as they are."""
    tokenizer = Tokenizer.train(documents(4000, seed=0), SHAPE.n_vocab)
    fit = task("single_double_quote", tokenizer, max_token=SHAPE.n_ctx).split("fit")
    chosen = (fit.length >= n_token).nonzero().flatten()[: 4 * n_pair]
    assert len(chosen) == 4 * n_pair, f"{len(chosen)} prompts of {n_token} tokens, {4 * n_pair} are needed"
    places = fit.length[chosen, None, None] - n_token + torch.arange(n_token)
    length = torch.full((len(chosen),), n_token)
    return dataclasses.replace(
        fit.take(chosen), tokens=fit.tokens[chosen].gather(2, places.expand(-1, 2, -1)), length=length
    )


PROMPTS = {"": task_pairs, "random tokens, ": pairs}
"""By name, what prompts are."""


def trainer(checkout: Path, tokens: torch.Tensor, n_pair: int, n_pos: int) -> Any:
    """Return the replication's trainer on the same prompts, padded to a length.

    Its packages are entered without their `__init__`, which import what a trainer doesn't need; `transformers`, needed
    for an annotation, is stood in for where it isn't installed.
    """
    for name, folder in (("replication", "src"), ("replication.pruning", "src/pruning")):
        package = sys.modules.setdefault(name, types.ModuleType(name))
        package.__path__ = [str(checkout / folder)]
    try:
        importlib.import_module("transformers")
    except ImportError:
        stand_in = sys.modules["transformers"] = types.ModuleType("transformers")
        stand_in.PreTrainedTokenizer = object  # pyright: ignore[reportAttributeAccessIssue]
    config, gpt = (importlib.import_module(f"replication.{name}") for name in ("config", "model"))
    pruning, masked, trainers = (
        importlib.import_module(f"replication.pruning.{name}") for name in ("config", "masked_model", "trainer")
    )
    shape = config.ModelConfig(
        n_layer=SHAPE.n_layer,
        d_model=SHAPE.d_model,
        n_ctx=SHAPE.n_ctx,
        d_head=SHAPE.d_head,
        d_mlp=SHAPE.d_mlp,
        vocab_size=SHAPE.n_vocab,
        use_bigram_table=SHAPE.bigram != "none",
        use_attention_sinks=SHAPE.attention_sink,
    )
    sparsity = config.SparsityConfig(enable_weight_sparsity=False, enable_activation_sparsity=True)
    sparsity.activation_topk_fraction = SHAPE.act_density
    settings = pruning.PruningConfig(batch_size=n_pair, seq_length=n_pos, num_steps=10_000, device="cpu")
    generator, length = torch.Generator().manual_seed(0), tokens.shape[-1]

    def batch(batch_size: int, max_length: int = 0) -> tuple[torch.Tensor, ...]:
        chosen = tokens[torch.randint(len(tokens), (batch_size,), generator=generator)]  # (pair, 2, pos)
        padded = torch.nn.functional.pad(chosen, (0, max_length - length))
        last = torch.full((batch_size,), length - 1)
        return padded[:, 0], padded[:, 1], chosen[:, 0, 0], chosen[:, 1, 0], last

    task = types.SimpleNamespace(generate_batch=batch, name="random")
    return trainers.PruningTrainer(masked.MaskedSparseGPT(gpt.SparseGPT(shape, sparsity), settings), task, settings)


def main() -> None:
    """Time both in turn."""
    parse = parser(__doc__)
    parse.add_argument("--peer", type=REPLICATION)
    parse.add_argument("--runs", type=int, default=8)
    parse.add_argument("--steps", type=int, default=5)
    arguments = parse.parse_args()
    keep_freed_memory()
    made = model()
    values = torch.zeros(NodeSpace.of(made.config).n_node)
    rows, results = [["steps × runs a second", "ours", "replication", "ratio", "padded to 256", "ratio"]], {}
    for kind, size in itertools.product(PROMPTS, SHAPES):
        n_pair, n_token = SHAPES[size]
        name, fit = f"{kind}{size}", PROMPTS[kind](n_pair, n_token)
        config = PruneConfig(n_step=arguments.steps, n_pair=n_pair, count_coefficient=1e-9)
        actions, n_done = {}, {}
        for label, coefficient in OURS.items():
            runs = [
                MaskRun(
                    fit=fit,
                    values=values,
                    config=dataclasses.replace(config, seed=seed, necessity_coefficient=coefficient),
                )
                for seed in range(arguments.runs)
            ]
            actions[label] = lambda runs=runs: learn_masks(made, runs)
            n_done[label] = arguments.runs * arguments.steps
        if arguments.peer:
            for label, n_pos in (("replication", n_token), ("replication, padded", 256)):
                theirs = trainer(arguments.peer, fit.tokens, n_pair, n_pos)
                actions[label] = theirs.train_step
                n_done[label] = 1
        found = in_turn(actions, rounds=arguments.rounds, clock=arguments.clock)
        rates = results[name] = {label: n_done[label] / seconds for label, seconds in found.items()}
        for label in OURS:
            others = [rates.get("replication"), rates.get("replication, padded")]
            compared = [t for r in others for t in ((f"{r:.2f}", f"{rates[label] / r:.2f}") if r else ("–", "–"))]
            rows.append([f"{name}, {label}", f"{rates[label]:.2f}", *compared])
    notes = [f"medians of {arguments.rounds}, {arguments.clock} time, {torch.get_num_threads()} threads"]
    if not arguments.peer:
        notes.append("not compared: --peer names a checkout of jacobcd52/sparse_pretrain_public")
    report("prune", arguments, rows, results, notes)


if __name__ == "__main__":
    main()
