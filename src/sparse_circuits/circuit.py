"""The circuit: nodes and edges of one model that carry one behaviour; it runs, saves, loads, and knows its model."""

import contextlib
import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.checkpoint import load_arrays, model_hash, pack, save_arrays, unpack
from sparse_circuits.configs import PruneConfig
from sparse_circuits.edges import edges_between, source_values
from sparse_circuits.errors import FormatError, WrongModelError
from sparse_circuits.files import is_done, mark_done, read_json, refuse_finished, write_json, written_whole
from sparse_circuits.loading import load as load_model
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.runlog import read_records
from sparse_circuits.scoring import CHANCE, Calibration, all_logit_differences, logit_difference
from sparse_circuits.taps import EdgeCut, cutting, reading, replacing
from sparse_circuits.tasks.pairs import Pairs

FORMAT, VERSION = "sparse-circuits circuit", 1

MISSING_MASK = "which nodes are the circuit's; without it nothing can be run or checked"
MISSING_VALUES = (
    "what removed nodes are set to; without it the circuit can't be run. Made anew, by `verify --ablation zero` "
    "or another, everything can be checked under that ablation, but not that published numbers come out"
)
"""What an imported circuit may lack."""


@dataclasses.dataclass(kw_only=True)
class Circuit:
    """Some nodes and edges of a model, what everything else is set to, and how its answers are calibrated."""

    model: Transformer
    """The model that it was cut from."""

    keep: Bool[Tensor, " node"]
    """True for a node of the circuit; see `NodeSpace` for the order."""

    edges: dict[str, Bool[Tensor, "target source"]]
    """True for an edge, by linear map; each is a nonzero weight between two nodes of the circuit."""

    values: Float[Tensor, " node"]
    """What a node outside is set to."""

    task: dict[str, Any]
    """Of the task: name, hash, seed, most tokens of a prompt, path if it is a file, and a pair as an example."""

    calibration: Calibration = dataclasses.field(default_factory=Calibration)
    """Applied to logit differences."""

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How it was pruned."""

    losses: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of circuit and model on the pairs that removals were decided on, in nats."""

    effects: dict[str, float] = dataclasses.field(default_factory=dict)
    """By node and edge: how much higher the loss that removals were decided by is without it, on a part of these pairs,
    in nats."""

    removed: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """What refinement did, step by step; first which size it began from. Empty where pruning did not make it."""

    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """The training curve of the masks; after a search its last step alone."""

    test_readings: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Every reading of the test split."""

    @classmethod
    def of_nodes(cls, model: Transformer, keep: Bool[Tensor, " node"], **fields: Any) -> "Circuit":
        """Make a circuit of these nodes and all nonzero weights between them."""
        return cls(model=model, keep=keep, edges=edges_between(model, keep), **fields)

    @property
    def space(self) -> NodeSpace:
        """The model's node space."""
        return NodeSpace.of(self.model.config)

    @property
    def n_node(self) -> int:
        """Nodes of the circuit."""
        return int(self.keep.sum())

    @property
    def n_node_total(self) -> int:
        """Nodes of the model: the census."""
        return self.space.n_node

    @property
    def n_edge(self) -> int:
        """Edges in the six matrices: read to q, k, v and neuron; v and neuron to write."""
        return sum(int(keep.sum()) for keep in self.edges.values())

    def n_embedding_edge(self) -> dict[str, int]:
        """Count the edges with embedding and unembedding apart, those of every token of the vocabulary.

        A token has an edge to each channel of the stream that a kept read looks at, its logit one from each channel
        that a kept node writes, where the weight is not 0.
        """
        keeps = self.space.split(self.keep)
        read = torch.zeros(self.model.config.d_model, dtype=torch.bool)
        written = torch.zeros_like(read)
        for name, keep in keeps.items():
            if name.endswith("act_in"):
                read |= keep[: len(read)]
            elif name.endswith("resid_delta"):
                written |= keep
        tied = self.model.config.tied_unembedding
        unembedding = (self.model.token_embedding if tied else self.model.unembedding).weight
        return {
            "embedding": int((self.model.token_embedding.weight[:, read] != 0).sum()),
            "unembedding": int((unembedding[:, written] != 0).sum()),
        }

    def size_curve(self) -> list[dict[str, float]]:
        """Return the loss of the learned mask's best-ranked nodes by size; empty where pruning did not make it."""
        return self.removed[0]["scan"]["sizes"] if self.removed else []

    def node_names(self) -> list[str]:
        """Return the names of its nodes, such as `0.attn.q:17`, in forward order."""
        return self.space.names(self.keep)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Make the model run as the circuit inside a `with` block: every node outside at its ablation value."""
        whole = edges_between(self.model, self.keep)
        cuts = {
            name: EdgeCut(~whole[name] | edges, source_values(self.space.split(self.values), name))
            for name, edges in self.edges.items()
            if not torch.equal(edges, whole[name])
        }
        with cutting(self.model, cuts), replacing(self.model, self.space.masks(self.keep[None], self.values)):
            yield

    @contextlib.contextmanager
    def sealed(
        self, tokens: Int[Tensor, "batch pos"], *, at: Int[Tensor, " batch"] | None = None, freezes_norms: bool = True
    ) -> Iterator[None]:
        """Make the model run as the circuit in the strict reading, on these very tokens and, if given, this `at`.

        Every weight that is not an edge carries its source's ablated value, also into channels that only compete in
        AbsTopK; read channels outside enter AbsTopK at their ablation value; each norm's scale is the full model's,
        unless `freezes_norms` is False.
        """
        values = self.space.split(self.values)
        cuts = {name: EdgeCut(edges, source_values(values, name)) for name, edges in self.edges.items()}
        masks = self.space.masks(self.keep[None], self.values)
        edits = masks | {f"{name}.before_topk": mask for name, mask in masks.items() if name.endswith("act_in")}
        frozen = norms_frozen(self.model, tokens, at=at) if freezes_norms else contextlib.nullcontext()
        with frozen, cutting(self.model, cuts), replacing(self.model, edits):
            yield

    @torch.no_grad()
    def run(self, tokens: Int[Tensor, "batch pos"], *, sealed: bool = False) -> Float[Tensor, "batch pos n_vocab"]:
        """Return the circuit's logits after each position, uncalibrated."""
        with self.sealed(tokens) if sealed else self.applied():
            return self.model(tokens)

    @torch.no_grad()
    def logit_difference(
        self, pairs: Pairs, *, sealed: bool = False, calibrated: bool = True
    ) -> Float[Tensor, "pair 2"]:
        """Return logit(answer of side 0) − logit(answer of side 1) after each prompt, in nats."""
        if sealed:
            difference = self._sealed_differences(pairs)
        else:
            with self.applied():
                difference = all_logit_differences(self.model, pairs)[0]
        return self.calibration(difference) if calibrated else difference

    def save(self, folder: Path | str) -> None:
        """Write the circuit's folder.

        Raises:
            OutputExistsError: It already holds a finished circuit.
        """
        folder = Path(folder)
        refuse_finished(folder, "circuit")
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"keep": self.keep.numpy(), "values": self.values.numpy()}
        for name, edges in self.edges.items():
            parts = pack(edges.numpy())
            arrays |= {f"edges.{name}.{part}": parts[part] for part in ("values", "columns", "offsets")}
        save_arrays(folder / "masks.safetensors", arrays, {"format": FORMAT, "version": VERSION})
        with written_whole(folder / "history.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in self.history))
        self._write_description(folder)
        notes = folder / "notes.json"
        if not notes.exists():
            write_json(notes, {"format": f"{FORMAT} notes", "version": VERSION, "notes": {}})
        mark_done(folder)

    def log_test_reading(self, folder: Path, what: str) -> None:
        """Note in the artifact that its test split was looked at; nothing else in it changes."""
        path = folder / "circuit.json"
        described = _description(path)
        described["test_readings"].append({"what": what, "version": version("sparse-circuits")})
        write_json(path, described)
        self.test_readings = described["test_readings"]

    def other_settings(self, config: PruneConfig) -> dict[str, Any]:
        """Return the settings that it was cut out with, where they differ from these."""
        wanted = config.deciding()
        return {name: value for name, value in self.settings.items() if name in wanted and wanted[name] != value}

    @classmethod
    def load(
        cls,
        folder: Path | str,
        model: Transformer | None = None,
        *,
        values: Callable[[Transformer], Float[Tensor, " node"]] | None = None,
    ) -> "Circuit":
        """Open a circuit.

        Args:
            folder: What `save` wrote.
            model: Its model; the recorded one is opened if it is left out.
            values: Makes the ablation values for one that has none, such as an imported one.

        Raises:
            FormatError: The folder is not a whole circuit.
            WrongModelError: The model is not the one that it was cut from.
        """
        folder = Path(folder)
        described = _description(folder / "circuit.json")
        if not is_done(folder):
            raise FormatError(f"{folder}: the circuit was not written to its end")
        if model is None:
            if not described["model"]["path"]:
                raise FormatError(f"{folder}: the circuit does not say where its model lies; pass the model")
            model = load_model((folder / described["model"]["path"]).resolve())
        found = model_hash(model)
        if found != described["model"]["hash"]:
            raise WrongModelError(
                f"{folder}: cut from model {described['model']['hash'][:12]} ({described['model']['path']}), "
                f"this is model {found[:12]}"
            )
        path = folder / "masks.safetensors"
        _, arrays = load_arrays(path, FORMAT, VERSION)
        model.require_whole()
        if "values" not in arrays and values is not None:
            arrays["values"] = values(model).numpy()
        _check_masks(arrays, path, NodeSpace.of(model.config).n_node)
        edges = {
            name: torch.from_numpy(unpack(arrays, f"edges.{name}", tuple(linear.weight.shape), str(path)))
            for name, linear in model.linears().items()
        }
        return cls(
            model=model,
            keep=torch.from_numpy(np.array(arrays["keep"])),
            edges=edges,
            values=torch.from_numpy(np.array(arrays["values"])),
            calibration=Calibration(**described["calibration"]),
            history=read_records(folder / "history.jsonl"),
            **{name: described[name] for name in ("task", "settings", "losses", "effects", "removed", "test_readings")},
        )

    def __str__(self) -> str:
        loss = self.losses.get("circuit", float("nan"))
        model = self.losses.get("model", float("nan"))
        return (
            f"{self.n_node} nodes of {self.n_node_total:,}, {self.n_edge} edges; "
            f"loss {loss:.2f} (model {model:.2f}, chance {CHANCE:.2f})"
        )

    def _sealed_differences(self, pairs: Pairs) -> Float[Tensor, "pair 2"]:
        out = torch.empty(len(pairs), 2)
        for index in pairs.length.argsort(descending=True, stable=True).split(128):
            part = pairs.take(index)
            with self.sealed(part.tokens.flatten(0, 1), at=(part.length - 1).repeat_interleave(2)):
                out[index] = logit_difference(self.model, part)[0]
        return out

    def _write_description(self, folder: Path) -> None:
        home = self.model.folder
        path = None if home is None else os.path.relpath(home.resolve(), folder.resolve())
        write_json(
            folder / "circuit.json",
            {
                "format": FORMAT,
                "version": VERSION,
                "model": {"hash": model_hash(self.model), "path": path},
                "task": self.task,
                "settings": self.settings,
                "census": self.space.widths,
                "n_node": self.n_node,
                "n_edge": self.n_edge,
                "nodes": self.node_names(),
                "calibration": dataclasses.asdict(self.calibration),
                "losses": self.losses,
                "effects": self.effects,
                "removed": self.removed,
                "test_readings": self.test_readings,
                "versions": {
                    "sparse-circuits": version("sparse-circuits"),
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                },
            },
        )


@contextlib.contextmanager
def norms_frozen(
    model: Transformer, tokens: Int[Tensor, "batch pos"], *, at: Int[Tensor, " batch"] | None = None
) -> Iterator[None]:
    """Give every norm the scale that it has in the model as it runs when this is entered, on these tokens."""
    scales = [name for name in model.taps() if name.endswith("norm_scale")]
    with torch.no_grad(), reading(model, *scales) as seen:
        model(tokens, at=at, vocab=tokens[:, :1])
    with replacing(model, {name: Frozen(scale) for name, scale in seen.items()}):
        yield


class Frozen:
    """An edit that puts a recorded activation in place of whatever comes, recorded at the same positions."""

    acts_at_each_position = True

    def __init__(self, recorded: Tensor) -> None:
        self.recorded = recorded

    def __call__(self, x: Tensor) -> Tensor:
        """Return what was recorded."""
        return self.recorded


def _check_masks(arrays: dict[str, np.ndarray], path: Path, n_node: int) -> None:
    """Refuse masks and ablation values that are missing, of another model, or of another type."""
    for name, what, dtype in (("keep", MISSING_MASK, np.bool_), ("values", MISSING_VALUES, np.float32)):
        if name not in arrays:
            raise FormatError(f"{path}: {name} is missing: {what}")
        if arrays[name].shape != (n_node,):
            shape = arrays[name].shape
            raise FormatError(f"{path}: {name} has shape {shape}, expected the model's {n_node:,} nodes")
        if arrays[name].dtype != dtype:
            raise FormatError(f"{path}: {name} holds {arrays[name].dtype}, expected {np.dtype(dtype)}")
    for name, array in arrays.items():
        if name.startswith("edges.") and name.endswith(".values") and array.dtype != np.bool_:
            raise FormatError(f"{path}: {name} holds {array.dtype}, expected bool")


def _description(path: Path) -> dict[str, Any]:
    """Read a `circuit.json`, and check that every field that `load` uses is there and of its kind."""
    described = read_json(path, expect=FORMAT, version=VERSION)
    kinds = dict.fromkeys(("model", "task", "settings", "calibration", "losses", "effects"), dict)
    kinds |= {"removed": list, "test_readings": list}
    for name, kind in kinds.items():
        if not isinstance(described.get(name), kind):
            raise FormatError(f"{path}: {name} is {described.get(name)!r:.60}, expected a {kind.__name__}")
    for name, kind in {"name": str, "hash": str, "seed": int, "path": str | None, "max_token": int | None}.items():
        found = described["task"].get(name)
        if not isinstance(found, kind):
            expected = kind.__name__ if isinstance(kind, type) else f"{kind}"
            raise FormatError(f"{path}: task.{name} is {found!r:.60}, expected {expected}")
    model, calibration = described["model"], described["calibration"]
    model.setdefault("path", None)
    if not isinstance(model.get("hash"), str) or not isinstance(model["path"], str | None):
        raise FormatError(f"{path}: model needs a hash, and a path or null")
    if set(calibration) != {"scale", "shift"} or any(type(v) not in (int, float) for v in calibration.values()):
        raise FormatError(f"{path}: calibration is {calibration!r:.60}, expected a scale and a shift")
    return described
