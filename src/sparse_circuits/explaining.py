"""What a circuit does on one prompt, beside what the model does: `sc.explain`.

Two decompositions of the logit difference. *Direct* is exact: the stream before the last norm is a sum of writes, so
with the norm's factor as it came out each write has its share. *Contributions* along edges and of nodes are first
order: the derivative of the difference by the edge's (or node's) mask, from its ablated value to what it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.circuit import Circuit
from sparse_circuits.configs.models import STREAM_SITES
from sparse_circuits.edges import EdgeSpace, edges_between, source_values
from sparse_circuits.errors import TaskError
from sparse_circuits.kernels import attention_pattern
from sparse_circuits.model import Block, Transformer
from sparse_circuits.taps import EdgeCut, cutting, reading, replacing

N_NEXT = 8
"""Next tokens that are told."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """One run of one prompt."""

    difference: float
    """Logit of the first answer minus that of the second after the last token, in nats, uncalibrated."""

    next: list[tuple[str, float]]
    """The likeliest next tokens and their probabilities."""

    activations: Float[Tensor, "node pos"]
    """Of the circuit's nodes."""

    node_contributions: Float[Tensor, "node pos"]
    """First-order share of each node at each token in the difference, in nats, from its ablation value."""

    edge_contributions: Float[Tensor, " edge"]
    """The same of each edge, all tokens together."""

    direct: dict[str, float]
    """Exact shares in the difference, in nats: each write of the circuit at the last token, then `embedding`, `outside`
    (writes of no node of the circuit), `bias` and `bigram`. They add up to it; empty where the stream is no sum."""

    queries_and_keys: dict[str, Float[Tensor, "2 head pos d_head"]]
    """Behind AbsTopK, by layer, such as `1.attn`."""

    attention: dict[str, Float[Tensor, "head pos pos"]]
    """How much each query attends to each position; what is missing to 1 goes to the sink."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """A prompt in the full model and in the circuit."""

    ids: list[int]
    """Its tokens."""

    tokens: list[str]
    """Their texts."""

    answers: tuple[str, str]
    """The two next tokens whose logits are compared."""

    nodes: list[str]
    """Nodes of the circuit, in forward order."""

    edges: list[str]
    """Edges of the circuit, such as `1.attn.act_in:3 → 1.attn.v:25`."""

    model: Trace
    """Nothing ablated."""

    circuit: Trace
    """Every node outside the circuit at its ablation value."""

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values, with the attention of all heads."""
        return {**dataclasses.asdict(self), "model": _trace_json(self.model), "circuit": _trace_json(self.circuit)}

    def __str__(self) -> str:
        first, second = self.answers
        lines = [
            f"logit({first!r}) − logit({second!r}): "
            f"model {self.model.difference:+.3f}, circuit {self.circuit.difference:+.3f}"
        ]
        ranked = self.circuit.edge_contributions.abs().argsort(descending=True).tolist()
        lines += [f"  {self.edges[i]}  {float(self.circuit.edge_contributions[i]):+.3f}" for i in ranked[:8]]
        return "\n".join(lines)


def explain(circuit: Circuit, prompt: str, *, answers: tuple[str, str] | None = None) -> Explanation:
    """Say what the circuit's nodes and edges do on a prompt.

    Args:
        circuit: Its model needs a tokenizer.
        prompt: Text, of at most n_ctx tokens.
        answers: Two texts of one token each; the two likeliest next tokens of the model if left out.

    Raises:
        TaskError: There is no tokenizer, the prompt is empty or too long, or an answer is not one token.
    """
    tokenizer = circuit.model.tokenizer
    if tokenizer is None:
        raise TaskError("the model has no tokenizer, so text can't be given to it")
    ids = tokenizer.encode(prompt)
    check_length(circuit.model, len(ids))
    if answers is None:
        with torch.no_grad():
            first, second = circuit.model(torch.tensor([ids]))[0, -1].topk(2).indices.tolist()
    else:
        found = [tokenizer.token(answer) for answer in answers]
        for answer, token in zip(answers, found, strict=True):
            if token is None:
                raise TaskError(f"the answer {answer!r} is {len(tokenizer.encode(answer))} tokens, expected one")
        first, second = (token for token in found if token is not None)
    return explain_tokens(circuit, ids, (first, second))


def check_length(model: Transformer, n_token: int) -> None:
    """Refuse prompts that the model can't read.

    Raises:
        TaskError: There is no token, or more than the model's context.
    """
    if not 1 <= n_token <= model.config.n_ctx:
        raise TaskError(f"the prompt has {n_token} tokens, expected 1 to {model.config.n_ctx}")


def explain_tokens(circuit: Circuit, ids: list[int], answers: tuple[int, int]) -> Explanation:
    """Explain a prompt given as token ids; see `explain`."""
    show = _texts_of(circuit.model)
    space = EdgeSpace.of(circuit.edges)
    whole = edges_between(circuit.model, circuit.keep)
    # Weights that are edges of no circuit stay live between kept and ablated nodes; see Circuit.applied.
    live = {name: ~whole[name] | edges for name, edges in circuit.edges.items()}
    everything = {name: torch.ones_like(edges) for name, edges in circuit.edges.items()}
    return Explanation(
        ids=ids,
        tokens=[show(token) for token in ids],
        answers=(show(answers[0]), show(answers[1])),
        nodes=circuit.node_names(),
        edges=space.names(torch.ones(space.n_edge, dtype=torch.bool)),
        model=_trace(circuit, ids, answers, space, everything, is_masked=False),
        circuit=_trace(circuit, ids, answers, space, live, is_masked=True),
    )


def _texts_of(model: Transformer) -> Callable[[int], str]:
    tokenizer = model.tokenizer
    return str if tokenizer is None else (lambda token: tokenizer.decode([token]))


def _trace(
    circuit: Circuit,
    ids: list[int],
    answers: tuple[int, int],
    space: EdgeSpace,
    live: dict[str, Tensor],
    *,
    is_masked: bool,
) -> Trace:
    """Run the prompt once, forward and back."""
    model, nodes = circuit.model, circuit.space
    values = nodes.split(circuit.values)
    # The masks of edges are numbers here, so that the difference has a derivative by each.
    masks = {name: keep.float().requires_grad_() for name, keep in live.items()}
    cuts = {name: EdgeCut(mask, source_values(values, name)) for name, mask in masks.items()}
    edits = nodes.masks(circuit.keep[None], circuit.values) if is_masked else {}
    tokens = torch.tensor([ids])
    with torch.enable_grad(), cutting(model, cuts), replacing(model, edits), reading(model) as seen:
        stream = model.embed(tokens).detach().requires_grad_()
        logits = model.unembed(model.run(stream), tokens)[0, -1]  # (vocab,)
        difference = logits[answers[0]] - logits[answers[1]]
        read = [seen[name] for name in nodes.widths]
        grads = torch.autograd.grad(difference, [*read, *masks.values()], allow_unused=True)
    by_mask = dict(zip(masks, grads[len(read) :], strict=True))
    active = nodes.join({name: x.detach()[0] for name, x in zip(nodes.widths, read, strict=True)})  # (pos, node)
    by_node = nodes.join(
        {
            name: torch.zeros_like(x[0]) if grad is None else grad[0]
            for name, x, grad in zip(nodes.widths, read, grads[: len(read)], strict=True)
        }
    )
    probabilities, top = logits.detach().softmax(-1).topk(min(N_NEXT, len(logits)))
    show = _texts_of(model)
    queries_and_keys = _queries_and_keys(model, seen)
    return Trace(
        difference=float(difference.detach()),
        next=[(show(t), p) for t, p in zip(top.tolist(), probabilities.tolist(), strict=True)],
        activations=active[:, circuit.keep].T,
        node_contributions=((active - circuit.values) * by_node)[:, circuit.keep].T,
        edge_contributions=torch.cat(
            [torch.zeros(0)]
            + [
                torch.zeros(len(ends)) if (grad := by_mask[name]) is None else grad[ends[:, 0], ends[:, 1]]
                for name, ends in space.ends.items()
            ]
        ),
        direct=_direct(circuit, seen, active[-1], ids, answers),
        queries_and_keys=queries_and_keys,
        attention={
            name: attention_pattern(qk[:1], qk[1:], head_sinks(model, int(name.split(".")[0])))[0]
            for name, qk in queries_and_keys.items()
        },
    )


def _queries_and_keys(model: Transformer, seen: dict[str, Tensor]) -> dict[str, Float[Tensor, "2 head pos d_head"]]:
    return {
        f"{layer}.attn": torch.stack(
            [seen[f"{layer}.attn.{name}"].detach()[0].unflatten(-1, (model.config.n_head, -1)) for name in "qk"]
        ).transpose(1, 2)
        for layer in range(model.config.n_layer)
    }


def head_sinks(model: Transformer, layer: int) -> Float[Tensor, " head"] | None:
    """Return the logit of each head's sink, or None if the model has no sinks."""
    sink = cast(Block, model.blocks[layer]).attn.sink
    return None if sink is None else sink.detach()


def answer_direction(model: Transformer, answers: tuple[int, int]) -> Float[Tensor, " d_model"]:
    """Return what a unit of each channel of the normed, ungained stream adds to the logit difference, in nats."""
    tied = model.config.tied_unembedding
    weight = (model.token_embedding if tied else model.unembedding).weight.detach()
    direction = (weight[answers[0]] - weight[answers[1]]) * model.final_norm.weight.detach()
    return direction - direction.mean() if model.final_norm.centres else direction


@torch.no_grad()
def _direct(
    circuit: Circuit, seen: dict[str, Tensor], last: Float[Tensor, " node"], ids: list[int], answers: tuple[int, int]
) -> dict[str, float]:
    """Share out the difference among what wrote into the last position's stream."""
    model, config = circuit.model, circuit.model.config
    if config.residual_activation != "none" or set(config.act_sites) & set(STREAM_SITES):
        return {}
    direction = answer_direction(model, answers) * seen["final_norm_scale"][0, -1]
    shares: dict[str, float] = {}
    outside = 0.0
    for name, part in circuit.space.slices():
        if not name.endswith("resid_delta"):
            continue
        keep, share = circuit.keep[part], last[part] * direction
        outside += float(share[~keep].sum())
        shares |= {f"{name}:{c}": float(share[c]) for c in keep.nonzero().flatten().tolist()}
    first, second = answers
    shares["embedding"] = float(seen["0.resid_in"][0, -1] @ direction)
    shares["outside"] = outside
    bias = model.logit_bias[first] - model.logit_bias[second]
    if model.final_norm.bias is not None:
        tied = config.tied_unembedding
        weight = (model.token_embedding if tied else model.unembedding).weight
        bias = bias + model.final_norm.bias @ (weight[first] - weight[second])
    shares["bias"] = float(bias)
    shares["bigram"] = 0.0 if config.bigram == "none" else _bigram_difference(model, ids[-1], answers)
    return shares


def _bigram_difference(model: Transformer, token: int, answers: tuple[int, int]) -> float:
    return float(model.bigram[token, answers[0]] - model.bigram[token, answers[1]])


def _trace_json(trace: Trace) -> dict[str, Any]:
    fields: dict[str, Any] = {field.name: getattr(trace, field.name) for field in dataclasses.fields(trace)}
    plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in fields.items()}
    for name in ("queries_and_keys", "attention"):
        plain[name] = {layer: value.tolist() for layer, value in fields[name].items()}
    return plain
