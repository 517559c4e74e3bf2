"""Attribution graphs for Neuronpedia and circuit-tracer: what a circuit does on one prompt.

A node of the circuit stands at each position where it is active. A link is a linear contribution: source activation
times weight, times attention where positions are crossed, times the norm's scale and gain where the stream is read.
Before AbsTopK and the nonlinearity, the links into a node, the constants of ablated nodes and the bias add up to it.

Lost are queries and keys (the pattern that they make is taken as it is), the bigram table, biases, ablated constants;
where a model has them, added position vectors and the mean that LayerNorm takes away.
"""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits import kernels
from sparse_circuits.checkpoint import model_hash
from sparse_circuits.circuit import Circuit
from sparse_circuits.edges import EDGE_ENDS
from sparse_circuits.errors import FormatError
from sparse_circuits.files import written_whole
from sparse_circuits.model import Transformer
from sparse_circuits.taps import reading

LEVEL = {"act_in": 0, "q": 1, "k": 1, "v": 1, "post_act": 1, "resid_delta": 2}
"""Within a sublayer: what is read, what is made of it, what is written. Rows of the picture."""


def write_neuronpedia(
    circuit: Circuit, path: Path, *, prompt: str | None = None, answers: tuple[str, ...] = ()
) -> None:
    """Write the graph of a prompt.

    Args:
        circuit: The circuit.
        path: The JSON file.
        prompt: Its text; side 0 of the task's example if left out.
        answers: Tokens whose logits are shown; those of the example if left out, else the likeliest.

    Raises:
        FormatError: The model has no tokenizer, or its stream is no sum of what is written; there is neither prompt nor
            example, or the prompt exceeds the context, or an answer is not one token.
    """
    tokenizer, example = circuit.model.tokenizer, circuit.task.get("example")
    if tokenizer is None:
        raise FormatError("an attribution graph shows text, and the model has no tokenizer")
    if circuit.model.config.residual_activation != "none":
        raise FormatError("the stream of this model passes a nonlinearity, so what is read is no sum of links")
    if prompt is None:
        if not example:
            raise FormatError("the circuit's task has no example; give a prompt")
        prompt, answers = str(example[0]["prompt"]), answers or tuple(side["answer"] for side in example)
    ids = tokenizer.encode(prompt)
    wanted = [tokenizer.token(answer) for answer in answers]
    if None in wanted or not ids:
        raise FormatError(f"not one token each: {answers}" if ids else "the prompt is empty")
    if len(ids) > circuit.model.config.n_ctx:
        raise FormatError(f"the prompt has {len(ids)} tokens, the model's context {circuit.model.config.n_ctx}")
    graph = attribution_graph(circuit, ids, [token for token in wanted if token is not None])
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(graph, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@torch.no_grad()
def attribution_graph(circuit: Circuit, tokens: list[int], answers: list[int]) -> dict[str, Any]:
    """Return the graph.

    Args:
        circuit: The circuit.
        tokens: The prompt.
        answers: Tokens whose logits after the prompt are shown; the likeliest if there is none.
    """
    trace = _Trace(circuit, tokens)
    answers = answers or [int(trace.logits.argmax())]
    nodes, n_row = trace.nodes(), 6 * circuit.model.config.n_layer
    nodes += [trace.embedding_node(p, token) for p, token in enumerate(tokens)]
    nodes += [trace.logit_node(token, n_row, is_first=token == answers[0]) for token in answers]
    links = [*trace.weights(), *trace.carries(), *trace.embeddings(), *trace.to_logits(answers, n_row)]
    ends = {node["node_id"] for node in nodes}
    show = circuit.model.tokenizer
    texts = [str(t) if show is None else show.decode([t]) for t in tokens]
    name = re.sub(r"[^a-z0-9-]+", "-", str(circuit.task["name"]).lower()).strip("-") or "circuit"
    return {
        "metadata": {
            "slug": f"{name}-{model_hash(circuit.model)[:8]}",
            "scan": "sparse-circuits",
            "prompt_tokens": texts,
            "prompt": "".join(texts) if show is None else show.decode(tokens),  # a character may be of several tokens
            "schema_version": 1,
            "info": {"generator": {"name": "sparse-circuits", "version": version("sparse-circuits")}},
            "generation_settings": {"n_node": circuit.n_node, "n_edge": circuit.n_edge},
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": [
            {"source": source, "target": target, "weight": float(weight)}
            for source, target, weight in links
            if weight != 0 and source in ends and target in ends
        ],
    }


class _Trace:
    """One run of the circuit on a prompt, and what passes on from where to where in it."""

    def __init__(self, circuit: Circuit, tokens: list[int]) -> None:
        self.circuit, self.model, self.tokens = circuit, circuit.model, tokens
        self.keep = {
            name: part.nonzero().flatten().tolist() for name, part in circuit.space.split(circuit.keep).items()
        }
        batch = torch.tensor([tokens])
        scales = [name for name in self.model.taps() if name.endswith("norm_scale")]
        with circuit.applied(), reading(self.model, *self.keep, *scales) as seen:
            self.logits = self.model(batch)[0, -1]
        self.seen: dict[str, Float[Tensor, "pos channel"]] = {name: x[0] for name, x in seen.items()}
        self.start = {name: part.start for name, part in circuit.space.slices()}

    def row(self, location: str) -> int:
        """Return the row of the picture that a location stands in."""
        layer, kind, site = location.split(".")
        return 6 * int(layer) + 3 * (kind == "mlp") + LEVEL[site]

    def name(self, location: str, channel: int, position: int) -> str:
        """Return the id of a node at a position."""
        return f"{self.row(location)}_{self.start[location] + channel}_{position}"

    def nodes(self) -> list[dict[str, Any]]:
        """Return each node at each position where it is active."""
        return [
            {
                "node_id": self.name(location, channel, p),
                "feature": self.start[location] + channel,
                "layer": str(self.row(location)),
                "ctx_idx": p,
                "feature_type": location.split(".", 1)[1],
                "jsNodeId": f"{self.row(location)}_{self.start[location] + channel}-{p}",
                "clerp": f"{location}:{channel}",
                "activation": float(self.seen[location][p, channel]),
                "influence": None,
            }
            for location, channels in self.keep.items()
            for channel in channels
            for p in self.seen[location][:, channel].nonzero().flatten().tolist()
        ]

    def embedding_node(self, position: int, token: int) -> dict[str, Any]:
        """Return the node of a prompt's token."""
        text = str(token) if self.model.tokenizer is None else self.model.tokenizer.decode([token])
        name = f"E_{token}_{position}"
        kinds = {"feature": token, "layer": "E", "ctx_idx": position, "feature_type": "embedding"}
        return {"node_id": name, **kinds, "jsNodeId": f"E_{token}-{position}", "clerp": f"Emb: {text!r}"}

    def logit_node(self, token: int, n_row: int, *, is_first: bool) -> dict[str, Any]:
        """Return the node of a logit."""
        text = str(token) if self.model.tokenizer is None else self.model.tokenizer.decode([token])
        p = float(self.logits.softmax(-1)[token])
        return {
            "node_id": f"{n_row}_{token}_{len(self.tokens) - 1}",
            "feature": token,
            "layer": str(n_row),
            "ctx_idx": len(self.tokens) - 1,
            "feature_type": "logit",
            "jsNodeId": f"L_{token}-{len(self.tokens) - 1}",
            "clerp": f"Logit: {text!r} (p={p:.3f})",
            "token_prob": p,
            "is_target_logit": is_first,
        }

    def weights(self) -> list[tuple[str, str, float]]:
        """Return the links along the circuit's edges; those from values cross positions by attention."""
        links, positions = [], range(len(self.tokens))
        for linear, edges in self.circuit.edges.items():
            layer, kind = linear.split(".", 1)
            source, targets = f"{layer}.{EDGE_ENDS[kind][0]}", EDGE_ENDS[kind][1]
            weight, width = self.model.linears()[linear].weight, len(edges) // len(targets)
            pattern = self.pattern(int(layer)) if kind == "attn.out" and edges.any() else None
            for row, column in edges.nonzero().tolist():
                target, channel = f"{layer}.{targets[row // width]}", row % width
                for s in positions:
                    passed = float(self.seen[source][s, column] * weight[row, column])
                    if pattern is None:
                        links.append((self.name(source, column, s), self.name(target, channel, s), passed))
                        continue
                    head = column // self.model.config.d_head
                    links += [
                        (
                            self.name(source, column, s),
                            self.name(target, channel, t),
                            passed * float(pattern[head, t, s]),
                        )
                        for t in positions
                        if t >= s
                    ]
        return links

    def pattern(self, layer: int) -> Float[Tensor, "head query pos"]:
        """Return a layer's attention in the circuit."""
        with self.circuit.applied(), reading(self.model, f"{layer}.attn.q", f"{layer}.attn.k") as seen:
            self.model.run(self.model.embed(torch.tensor([self.tokens])))
        n_head = self.model.config.n_head
        q, k = (seen[f"{layer}.attn.{x}"].unflatten(-1, (n_head, -1)).transpose(1, 2) for x in "qk")
        return kernels.reference.attention_pattern(q, k, self.model.blocks[layer].attn.sink)[0]  # pyright: ignore

    def reads(self) -> list[tuple[int, str, int, Float[Tensor, " pos"]]]:
        """Return each kept read of the stream: sublayer, location, channel, what the norm multiplies it with."""
        found = []
        for location, channels in self.keep.items():
            layer, kind, site = location.split(".")
            if site == "act_in":
                gain = getattr(self.model.blocks[int(layer)], kind).read.norm.weight
                scale = self.seen[f"{layer}.{kind}.norm_scale"][:, 0]
                sublayer = 2 * int(layer) + (kind == "mlp")
                found += [(sublayer, location, c, scale * gain[c]) for c in channels if c < len(gain)]
        return found

    def carries(self) -> list[tuple[str, str, float]]:
        """Return the links from writes to later reads of the same channel of the stream."""
        links = []
        for location, channels in self.keep.items():
            layer, kind, site = location.split(".")
            sublayer = 2 * int(layer) + (kind == "mlp")
            for later, read, channel, factor in self.reads() if site == "resid_delta" else []:
                if later > sublayer and channel in channels:
                    passed = self.seen[location][:, channel] * factor
                    links += [
                        (self.name(location, channel, p), self.name(read, channel, p), float(x))
                        for p, x in enumerate(passed)
                    ]
        return links

    def embeddings(self) -> list[tuple[str, str, float]]:
        """Return the links from the prompt's tokens to the reads."""
        table = self.model.token_embedding.weight[torch.tensor(self.tokens)]  # (pos, d_model)
        return [
            (f"E_{token}_{p}", self.name(read, channel, p), float(table[p, channel] * factor[p]))
            for _, read, channel, factor in self.reads()
            for p, token in enumerate(self.tokens)
        ]

    def to_logits(self, answers: list[int], n_row: int) -> list[tuple[str, str, float]]:
        """Return the links into logits, from writes and from the last token."""
        links, last = [], len(self.tokens) - 1
        unembedding = _unembedding(self.model)[torch.tensor(answers)]  # (answer, d_model)
        factor = (
            self.seen["final_norm_scale"][last, 0] * self.model.final_norm.weight * unembedding
        )  # (answer, d_model)
        embedded = self.model.token_embedding.weight[self.tokens[last]]
        for i, token in enumerate(answers):
            target = f"{n_row}_{token}_{last}"
            for location, channels in self.keep.items():
                if location.endswith("resid_delta"):
                    value = self.seen[location][last]
                    links += [(self.name(location, c, last), target, float(value[c] * factor[i, c])) for c in channels]
            links.append((f"E_{self.tokens[last]}_{last}", target, float(embedded @ factor[i])))
        return links


def _unembedding(model: Transformer) -> Float[Tensor, "n_vocab d_model"]:
    return (model.token_embedding if model.config.tied_unembedding else model.unembedding).weight
