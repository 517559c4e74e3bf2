"""One training step, against the release's on the same weights and tokens, and against its own matrix products.

    python benchmarks/train_step.py [--peer CHECKOUT] [--shapes small large] [--rounds 5] [--clock processor]

CHECKOUT is openai/circuit_sparsity with its training script. Its step is taken as published, where activations are
dropped and computed again in the backward pass, and once more without that. Shapes: `small` has 4 layers, d_model 256,
heads of 16, 2,048 tokens; `large` 8 layers, d_model 1024, 512 tokens; `example` (for a GPU) 512 sequences of 256 tokens
of the latter. AbsTopK keeps a quarter at all eight sites. Sparse means 5 % of the matrices in `small`, 1/64 in the
others; dense is 90 %, so that there is a projection to make. The floor is the step's bare matrix products, dense.
"""

from pathlib import Path

import torch
from measuring import in_turn, parser, report, told
from peers import TRAINING, release, released_model, released_step

from sparse_circuits import kernels
from sparse_circuits.configs import ModelConfig, OptimizerConfig, SparsityConfig
from sparse_circuits.memory import keep_freed_memory
from sparse_circuits.model import Transformer
from sparse_circuits.optimizer import Optimizer, gradient_scale
from sparse_circuits.profiling import bare_products
from sparse_circuits.sparsity import project_
from sparse_circuits.training import MAX_GPU_TOKENS, loss_and_gradients

SHAPES = {
    "small": (1, 4, (8, 256), 0.05),
    "large": (4, 8, (2, 256), 1 / 4),
    "example": (4, 8, (512, 256), 1 / 4),
}
"""Expansion factor, layers, tokens, and the release's final pfrac."""


def model_of(factor: int, n_layer: int) -> Transformer:
    """Build a model as the release's script does for an expansion factor."""
    width = 256 * factor
    config = ModelConfig(
        n_ctx=1024,
        n_layer=n_layer,
        d_model=width,
        n_head=width // 16,
        d_head=16,
        d_mlp=4 * width,
        attention_sink=False,
        positions="added",
        bigram_trains_last_row=False,
    )
    model, generator = Transformer(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.02, generator=generator)
    return model


def measure(name: str, phase: str, peer: Path | None, arguments) -> dict[str, float | int | str]:
    """Time the step of one shape in one phase, and its parts."""
    factor, n_layer, size, final = SHAPES[name]
    device = arguments.device
    density = 0.9 if phase == "dense" else final / factor**2
    sparsity = SparsityConfig(
        matrix_density=density, embedding_density=min(1.0, density * factor), bias_density=1.0, anneal="none"
    )
    model = model_of(factor, n_layer).to(device)
    tokens = torch.randint(2048, size, generator=torch.Generator().manual_seed(1)).to(device)
    ours = Optimizer(model, optimizer=OptimizerConfig(), sparsity=sparsity, n_step=1000)
    parts: dict[str, float] = {}

    def step() -> None:
        parts["loss"] = loss_and_gradients(model, tokens)[0]
        ours.step(500)

    def adam_alone() -> None:
        gradient_scale(ours.parameters, "normalise")
        ours.adam.param_groups[0]["lr"].fill_(0.0)  # the weights must stay as sparse as they are
        ours.adam.step()

    actions = {
        "ours": step,
        "floor": bare_products(model, tokens),
        "ours, forward and backward": lambda: loss_and_gradients(model, tokens),
        "ours, projection": lambda: project_(model, density, config=sparsity),
        "ours, gradient scale and Adam": adam_alone,
        "ours, AbsTopK": absolute_topk(model, tokens),
    }
    if peer:
        train = release(peer, "train")
        how = {
            "rate": 0.0064,
            "pfrac": density * factor**2,
            "final_pfrac": density * factor**2,
            "expansion_factor": factor,
            "expansion_factor_mlp": factor,
            "achyuta_mixed_neuronwise_v2": True,
            "minimum_alive_per_neuron": 4,
        }
        for label, recomputes in (("release", True), ("release, without recomputation", False)):
            theirs = released_model(peer, model, recomputes=recomputes).to(device)
            adam = torch.optim.Adam(theirs.parameters(), lr=0.0, eps=0.1, betas=(0.9, 0.95), fused=True)
            try:
                first = released_step(train, theirs, adam, tokens, how | {"rate": 0.0})
            except torch.OutOfMemoryError:
                print(f"{label}: does not fit into this GPU's memory at {tokens.numel():,} tokens")
                continue
            mine = loss_and_gradients(model, tokens)[0]
            # AbsTopK turns a difference of rounding into one of channels: at d_model 1024, weights that differ by one
            # part in 10 million gave losses up to 0.012 apart.
            assert abs(float(first) - float(mine.detach())) < 0.05, (first, mine)
            actions[label] = lambda t=theirs, a=adam: released_step(train, t, a, tokens, how)
    model.zero_grad()
    loss_and_gradients(model, tokens)
    found = in_turn(actions, rounds=arguments.rounds, clock=arguments.clock, device=device)
    return {"tokens": tokens.numel(), "density": density, **found}


def absolute_topk(model: Transformer, tokens: torch.Tensor):
    """Return an action that makes the step's AbsTopK calls, forward and backward, and nothing else."""
    calls, n_row = [], min(tokens.numel(), MAX_GPU_TOKENS) if tokens.device.type == "cuda" else tokens.numel()
    for width in model.config.site_widths().values():
        x = torch.randn(n_row, width, device=tokens.device)
        calls.append((x.requires_grad_(), torch.randn_like(x), width // 4))

    def act() -> None:
        for _ in range(model.config.n_layer * -(-tokens.numel() // n_row)):
            for x, grad, n_keep in calls:
                torch.autograd.grad(kernels.abs_topk(x, n_keep), x, grad)

    return act


def main() -> None:
    """Measure each shape in both phases."""
    parse = parser(__doc__)
    parse.add_argument("--peer", type=TRAINING)
    parse.add_argument("--shapes", nargs="+", choices=SHAPES, default=["small", "large"])
    parse.add_argument("--phases", nargs="+", choices=("dense", "sparse"), default=["dense", "sparse"])
    arguments = parse.parse_args()
    keep_freed_memory()
    rows = [["step", "ours", "floor", "AbsTopK, projection, Adam", "release", "ratio", "not recomputing", "ratio"]]
    results = {}
    for name in arguments.shapes:
        for phase in arguments.phases:
            found = results[f"{name}, {phase}"] = measure(name, phase, arguments.peer, arguments)
            own = ("ours, AbsTopK", "ours, projection", "ours, gradient scale and Adam")
            share = sum(float(found[k]) for k in own) / float(found["ours"])
            peers = [found.get("release"), found.get("release, without recomputation")]
            compared = [t for p in peers for t in ((told(p), f"{p / found['ours']:.2f}") if p else ("–", "–"))]
            rows.append([f"{name}, {phase}", told(found["ours"]), told(found["floor"]), f"{share:.0%}", *compared])
    notes = [f"medians of {arguments.rounds}, {arguments.clock} time, {torch.get_num_threads()} threads"]
    if not arguments.peer:
        notes.append("not compared with the release: --peer names a checkout of openai/circuit_sparsity with train.py")
    report("train_step", arguments, rows, results, notes)


if __name__ == "__main__":
    main()
