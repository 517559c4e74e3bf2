"""Models whose circuits are known by construction, and circuits that are wrong by construction.

All have prompts whose first token, or number of marks, decides between the answers X and Y. Every embedding has length
1, so that norms are the same everywhere before anything is written. A seed draws bystanders: weights of nodes that look
at fillers and say nothing about the answer.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import ModelConfig
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import fit_calibration
from sparse_circuits.tasks.pairs import Pairs, Task, hash_splits

A, B, FILLER, END, X, Y, OTHER = range(7)
"""Two marks, two tokens that say nothing, the last token of every prompt, the two answers, and a third filler."""

Build = Callable[[int], tuple[Transformer, list[str], Task]]
"""Given a seed: a model, the nodes of a circuit, the task."""


def blank(*, n_layer: int = 1, d_model: int = 16, d_head: int = 8, d_mlp: int = 8, **settings) -> Transformer:
    """Make a model of zero weights, with one head and nothing that thins activations out unless asked."""
    fields = {"act_density": None, "attention_sink": False, "linear_bias": True} | settings
    config = ModelConfig(
        n_vocab=7,
        n_ctx=64,
        n_layer=n_layer,
        d_model=d_model,
        n_head=1,
        d_head=d_head,
        d_mlp=d_mlp,
        bigram="none",
        **fields,
    )
    model = Transformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
    return model.eval()


def embed(model: Transformer, **channels: Sequence[float]) -> None:
    """Give tokens their embeddings: `A=(0, 1.0)` sets channel 0 of A to 1, further pairs further channels."""
    names = {"A": A, "B": B, "FILLER": FILLER, "END": END, "OTHER": OTHER}
    for name, pairs in channels.items():
        for channel, value in zip(pairs[::2], pairs[1::2], strict=True):
            model.token_embedding.weight[names[name], int(channel)] = value


def answers_from(model: Transformer, channel: int, strength: float = 2.0) -> None:
    """Let a channel of the stream say X where it is positive, Y where it is negative."""
    model.unembedding.weight[X, channel] = strength
    model.unembedding.weight[Y, channel] = -strength


def bystanders(
    model: Transformer, seed: int, *, layer: int = 0, channel: int = 12, width: int = 4, size: float = 1.0
) -> None:
    """Let the last neurons look at fillers and write into channels that nothing reads; `size` scales what they write.

    What they write counts in the norms of the layers above.
    """
    generator = torch.Generator().manual_seed(seed)
    linears = model.linears()
    n_neuron = linears[f"{layer}.mlp.fc_in"].weight.shape[0]
    for neuron in range(n_neuron // 2, n_neuron):
        linears[f"{layer}.mlp.fc_in"].weight[neuron, 1] = torch.randn((), generator=generator)
        target = channel + int(torch.randint(width, (), generator=generator))
        linears[f"{layer}.mlp.fc_out"].weight[target, neuron] = 0.3 * size * torch.randn((), generator=generator)


def marked_task(seed: int, *, n_pair: int = 48, longest: int = 6) -> Task:
    """A or B comes first, then fillers, then END; X is right after A, Y after B."""
    return _task(
        "marked", seed, lambda length, side, rng: [(A, B)[side], *_fillers(length - 2, rng), END], n_pair, longest
    )


def nested_task(seed: int, *, n_pair: int = 48) -> Task:
    """Two marks A or one come first, then fillers, then END; X is right after two, Y after one."""

    def prompt(length: int, side: int, rng: torch.Generator) -> list[int]:
        return [A, (A, FILLER)[side], *_fillers(length - 3, rng), END]

    return _task("nested", seed, prompt, n_pair, 6, shortest=4)


def _fillers(n: int, rng: torch.Generator) -> list[int]:
    return [(FILLER, OTHER)[int(torch.randint(2, (), generator=rng))] for _ in range(n)]


def _task(
    name: str,
    seed: int,
    prompt: Callable[[int, int, torch.Generator], list[int]],
    n_pair: int,
    longest: int,
    shortest: int = 3,
) -> Task:
    rng = torch.Generator().manual_seed(seed)
    splits = {}
    for split in ("fit", "select", "test", "hard"):
        n_length = longest - shortest + 1
        length = torch.arange(n_pair) % n_length + shortest
        tokens = torch.full((n_pair, 2, longest), END)
        for i, n in enumerate(length.tolist()):
            if i // n_length % 2:  # the fillers of the last pair of this length turned round: they are balanced
                before = tokens[i - n_length]
                tokens[i] = before.where(before != FILLER, -1).where(before != OTHER, FILLER)
                tokens[i][tokens[i] == -1] = OTHER
                continue
            state = rng.get_state()
            for side in (0, 1):
                rng.set_state(state)  # the same fillers on both sides
                tokens[i, side, :n] = torch.tensor(prompt(n, side, rng))
        splits[split] = Pairs(
            tokens=tokens,
            length=length,
            answers=torch.tensor([[X, Y]]).repeat(n_pair, 1),
            templates=tuple(f"{split} {i % 12}" for i in range(n_pair)),
            levels=tuple("i" if i % 2 else "ii" for i in range(n_pair)),
        )
    return Task(
        name=name,
        seed=seed,
        splits=splits,
        n_dropped={},
        answers_vary=False,
        hash=hash_splits(splits),
        max_token=longest,
    )


def circuit_of(build: Build, seed: int) -> tuple[Circuit, Task]:
    """Make a circuit of these nodes with all their edges, mean ablation over the task, calibrated on `select`."""
    from sparse_circuits.ablation import task_means

    model, names, task = build(seed)
    space = NodeSpace.of(model.config)
    keep = space.marked(names)
    described = {"name": task.name, "hash": task.hash, "seed": task.seed, "max_token": task.max_token}
    circuit = Circuit.of_nodes(model, keep, values=task_means(model, task.split("fit")), task=described)
    difference = circuit.logit_difference(task.split("select"), calibrated=False)
    return dataclasses.replace(circuit, calibration=fit_calibration(difference, may_shift=True)), task


@torch.no_grad()
def copier(seed: int, *, sharp: float = 6.0, strength: float = 2.0) -> tuple[Transformer, list[str], Task]:
    """A quote copier: the last token's query finds the mark, whose value says which one it is.

    act_in 0 is which mark, 2 that it is one, 3 that a token is the last.
    """
    model = blank()
    embed(model, A=(0, 0.6, 2, 0.8), B=(0, -0.6, 2, 0.8), FILLER=(1, 1.0), OTHER=(1, 0.6, 5, 0.8), END=(3, 1.0))
    qkv, out = model.linears()["0.attn.qkv"].weight, model.linears()["0.attn.out"].weight
    qkv[0, 3] = sharp  # the query of END
    qkv[8, 2] = 2.0  # the key of a mark
    qkv[16, 0] = strength
    out[8, 0] = 2.0
    answers_from(model, 8)
    bystanders(model, seed)
    nodes = ["act_in:0", "act_in:2", "act_in:3", "q:0", "k:0", "v:0", "resid_delta:8"]
    return model, [f"0.attn.{node}" for node in nodes], marked_task(seed)


@torch.no_grad()
def depth_counter(seed: int) -> tuple[Transformer, list[str], Task]:
    """Layer 0 averages marks over the prompt; in layer 1 the average is a query that must beat a sink.

    The average is the number of marks over the length, so the circuit fails on prompts that are too long.
    """
    model = blank(n_layer=2, attention_sink=True)
    embed(model, A=(0, 1.0), FILLER=(1, 1.0), OTHER=(1, 0.6, 5, 0.8), END=(3, 1.0))
    linears = model.linears()
    linears["0.attn.qkv"].weight[16, 0] = 1.0
    linears["0.attn.out"].weight[8, 0] = 0.25
    model.blocks[0].attn.sink.fill_(-30.0)
    linears["1.attn.qkv"].weight[0, 8] = 16.0  # the query is the average
    linears["1.attn.qkv"].bias[8] = 8.0  # the key is the same everywhere
    linears["1.attn.qkv"].bias[16] = 1.0  # so is the value
    linears["1.attn.out"].weight[9, 0] = 4.0
    model.blocks[1].attn.sink.fill_(52.0)
    answers_from(model, 9, 4.0)
    model.logit_bias[Y] = 10.0
    bystanders(model, seed, size=0.25)
    bystanders(model, seed + 1, layer=1)
    nodes = ["0.attn.act_in:0", "0.attn.v:0", "0.attn.resid_delta:8", "1.attn.act_in:8", "1.attn.q:0", "1.attn.k:0"]
    return model, [*nodes, "1.attn.v:0", "1.attn.resid_delta:9"], nested_task(seed)


@torch.no_grad()
def distributed(seed: int, *, n_path: int = 8) -> tuple[Transformer, list[str], Task]:
    """Every value channel carries a part of the answer, with noise of its own from the fillers; no few of them do."""
    model = blank(d_head=8)
    rng = torch.Generator().manual_seed(seed)
    embed(model, A=(0, 1.0), B=(0, -1.0), FILLER=(1, 1.0), OTHER=(1, -0.6, 5, 0.8), END=(3, 1.0))
    qkv, out = model.linears()["0.attn.qkv"].weight, model.linears()["0.attn.out"].weight
    noise = torch.randn(n_path, generator=rng)
    noise = noise - noise.mean()  # what the fillers add cancels over all paths
    for path in range(n_path):
        qkv[16 + path, 0] = 1.0
        qkv[16 + path, 1] = 3.0 * noise[path]
        out[8, path] = 1.0
    answers_from(model, 8)
    bystanders(model, seed)
    nodes = ["act_in:0", "act_in:1", *(f"v:{path}" for path in range(n_path)), "resid_delta:8"]
    return model, [f"0.attn.{node}" for node in nodes], marked_task(seed)


@torch.no_grad()
def backed_up(seed: int) -> tuple[Transformer, list[str], Task]:
    """Two paths, each enough: the mark stands in two channels, read, moved and written apart. The circuit is both."""
    model = blank()
    embed(model, A=(0, 0.8, 4, 0.6), B=(0, -0.8, 4, -0.6), FILLER=(1, 1.0), OTHER=(1, 0.6, 5, 0.8), END=(3, 1.0))
    qkv, out = model.linears()["0.attn.qkv"].weight, model.linears()["0.attn.out"].weight
    for path, source in ((0, 0), (1, 4)):
        qkv[16 + path, source] = 2.0
        out[8 + path, path] = 2.0
        answers_from(model, 8 + path)
    bystanders(model, seed)
    nodes = ["act_in:0", "act_in:4", "v:0", "v:1", "resid_delta:8", "resid_delta:9"]
    return model, [f"0.attn.{node}" for node in nodes], marked_task(seed)


def first_path_of_backup(seed: int) -> tuple[Transformer, list[str], Task]:
    """A fake: one of the two paths alone; the model answers as well without it."""
    model, _, task = backed_up(seed)
    return model, ["0.attn.act_in:0", "0.attn.v:0", "0.attn.resid_delta:8"], task


@torch.no_grad()
def lucky(seed: int) -> tuple[Transformer, list[str], Task]:
    """A fake: outside the circuit one value shouts the wrong answer, and thirty others together the right one.

    With all of them there or all of them gone the answer is right. With a few of the thirty gone it is wrong.
    """
    model = blank(d_head=32)
    embed(model, A=(0, 1.0), B=(0, -1.0), FILLER=(1, 1.0), OTHER=(1, 0.6, 5, 0.8), END=(3, 1.0))
    qkv, out = model.linears()["0.attn.qkv"].weight, model.linears()["0.attn.out"].weight
    qkv[64:, 0] = 2.0
    loud = 3.0 + 2.0 * torch.rand(30, generator=torch.Generator().manual_seed(seed))
    out[8, 0], out[8, 1], out[8, 2:] = 1.0, -loud.sum(), loud
    answers_from(model, 8)
    bystanders(model, seed)
    return model, ["0.attn.act_in:0", "0.attn.v:0", "0.attn.resid_delta:8"], marked_task(seed)


@torch.no_grad()
def bias_only(seed: int) -> tuple[Transformer, list[str], Task]:
    """A fake: its nodes never change; the embedding of the last token alone tells the answer, past all nodes."""
    model = blank()
    embed(model, A=(0, 1.0), B=(0, -1.0), FILLER=(1, 1.0), OTHER=(1, 0.6, 5, 0.8), END=(3, 1.0))
    answers_from(model, 0, 1.0)
    linears = model.linears()
    shift = 0.5 + float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
    for neuron in range(3):
        linears["0.mlp.fc_in"].bias[neuron] = shift + neuron
        linears["0.mlp.fc_out"].weight[10, neuron] = 1.0
    model.unembedding.weight[X, 10] = 0.1
    bystanders(model, seed)
    task = _task("ends with its mark", seed, lambda n, side, rng: [*_fillers(n - 1, rng), (A, B)[side]], 48, 6)
    nodes = [f"0.mlp.post_act:{neuron}" for neuron in range(3)]
    return model, [*nodes, "0.mlp.resid_delta:10"], task


@torch.no_grad()
def competing(seed: int) -> tuple[Transformer, list[str], Task]:
    """A fake: a constant write that survives AbsTopK after A alone, since after B a write outside is larger.

    The circuit keeps the constant; what tells A from B is the write outside, which competes before it is ablated.
    """
    model = blank(act_density=1 / 8, act_sites=("mlp.resid_delta",), d_model=8, d_mlp=8)
    generator = torch.Generator().manual_seed(seed)
    embed(model, A=(0, 1.0), B=(0, -1.0), FILLER=(1, 1.0), OTHER=(1, 0.6, 5, 0.8), END=(3, 1.0))
    linears = model.linears()
    linears["0.attn.qkv"].weight[16, 0] = 4.0
    linears["0.attn.out"].weight[4, 0] = 2.0  # the mark, at the last position, in the stream's channel 4
    linears["0.mlp.fc_in"].weight[0, 4] = -4.0  # a neuron that is on after B
    linears["0.mlp.fc_out"].weight[7, 0] = 2.0 + float(torch.rand((), generator=generator))
    linears["0.mlp.fc_in"].bias[1] = 2.0
    linears["0.mlp.fc_out"].weight[6, 1] = 1.0
    answers_from(model, 6, 4.0)
    model.unembedding.weight[X, 7], model.unembedding.weight[Y, 7] = -2.0, 2.0
    nodes = ["0.attn.act_in:0", "0.attn.v:0", "0.attn.resid_delta:4", "0.mlp.act_in:4", "0.mlp.post_act:0"]
    return model, [*nodes, "0.mlp.post_act:1", "0.mlp.resid_delta:6"], marked_task(seed)


def uniform(seed: int) -> tuple[Transformer, list[str], Task]:
    """A fake: the copier without its query and key. It attends everywhere alike, and the mark is still in the mean."""
    model, _, task = copier(seed, strength=6.0)
    return model, ["0.attn.act_in:0", "0.attn.v:0", "0.attn.resid_delta:8"], task


@torch.no_grad()
def role_changer(seed: int) -> tuple[Transformer, list[str], Task]:
    """A fake: a value and its write that tell in the model which fillers came, and in the circuit which mark did.

    The model answers by a louder write. It reads the mark from the same channel, so the circuit looks necessary.
    """
    model = blank()
    embed(model, A=(0, 1.0), B=(0, -1.0), FILLER=(1, 1.0), OTHER=(1, -1.0), END=(3, 1.0))
    qkv, out = model.linears()["0.attn.qkv"].weight, model.linears()["0.attn.out"].weight
    qkv[16, 0], qkv[16, 1], qkv[17, 0] = 1.5, 9.0, 2.0
    out[8, 0], out[9, 1] = 1.0, 1.0
    answers_from(model, 8, 1.0)
    answers_from(model, 9, 60.0)
    bystanders(model, seed)
    return model, ["0.attn.act_in:0", "0.attn.v:0", "0.attn.resid_delta:8"], marked_task(seed)


TRUE: dict[str, Build] = {
    "quote copier": copier,
    "depth counter": depth_counter,
    "distributed": distributed,
    "backed up": backed_up,
}
"""Circuits that are right by construction."""

FAKES: dict[str, tuple[Build, str]] = {
    "lucky cancellation": (lucky, "random subsets"),
    "bias only": (bias_only, "varying nodes"),
    "competing channels": (competing, "sealed"),
    "uniform attention": (uniform, "attention"),
    "half of a backup": (first_path_of_backup, "necessity"),
    "changed role": (role_changer, "roles"),
}
"""Circuits that are wrong by construction, and the check that is meant for each."""
