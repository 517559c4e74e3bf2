"""Encoders and decoders between the residual streams of a dense and a sparse model, and the pair that they join."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparse_circuits import kernels
from sparse_circuits.ablation import run_of
from sparse_circuits.bridges.residual import OwnModel, ResidualModel, as_residual, frozen, open_residual
from sparse_circuits.checkpoint import load_arrays, save_arrays
from sparse_circuits.configs import TrainConfig
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import ConfigError, FormatError, WrongModelError
from sparse_circuits.files import is_done, mark_done, read_json, refuse_finished, write_json
from sparse_circuits.model import Transformer
from sparse_circuits.tokenizer import Tokenizer

FORMAT, VERSION = "sparse-circuits bridge", 1
DESCRIPTION, MAPS = "bridge.json", "bridges.safetensors"


class Bridges(nn.Module):
    """A linear encoder with AbsTopK and a linear decoder at each pair of sites.

    encode_i(h) = AbsTopK(E_i h + e_i, n_keep) takes the dense stream to the sparse one, decode_i(h) = D_i h + d_i back.

    Args:
        d_sparse: Width of the sparse stream.
        d_dense: Width of the dense stream.
        sites: Pairs (sparse site, dense site); both rise.
        density: Share of an encoding's channels that AbsTopK keeps; None keeps all.
        seed: Decides the random start.

    Source: paper section 2.3 and appendix A.3.
    """

    def __init__(
        self,
        *,
        d_sparse: int,
        d_dense: int,
        sites: tuple[tuple[int, int], ...],
        density: float | None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sites, self.density = sites, density
        self.n_keep = None if density is None else max(1, int(density * d_sparse))
        self.encoders = nn.ModuleList(nn.Linear(d_dense, d_sparse) for _ in sites)
        self.decoders = nn.ModuleList(nn.Linear(d_sparse, d_dense) for _ in sites)
        generator = torch.Generator().manual_seed(seed)
        for linear in [*self.encoders, *self.decoders]:
            linear.weight.data.normal_(0, linear.in_features**-0.5, generator=generator)  # pyright: ignore
            linear.bias.data.zero_()  # pyright: ignore

    def encode(self, i: int, x: Float[Tensor, "batch pos d_dense"]) -> Float[Tensor, "batch pos d_sparse"]:
        """Take the dense stream at the i-th pair of sites to the sparse one."""
        x = self.encoders[i](x)
        return x if self.n_keep is None else kernels.abs_topk(x, self.n_keep)

    def decode(self, i: int, x: Float[Tensor, "batch pos d_sparse"]) -> Float[Tensor, "batch pos d_dense"]:
        """Take the sparse stream at the i-th pair of sites to the dense one."""
        return self.decoders[i](x)

    @property
    def sparse_sites(self) -> list[int]:
        """Sites of the sparse model."""
        return [sparse for sparse, _ in self.sites]

    @property
    def dense_sites(self) -> list[int]:
        """Sites of the dense model."""
        return [dense for _, dense in self.sites]


@dataclasses.dataclass(kw_only=True)
class Bridge:
    """A dense model, a sparse model, and the bridges between them."""

    dense: ResidualModel
    """The dense model, frozen."""

    sparse: Transformer
    """The sparse model."""

    bridges: Bridges
    """Encoders and decoders."""

    rms: tuple[tuple[float, float], ...]
    """By pair of sites, the root mean square of the sparse and of the dense stream's divisor over reference text."""

    kind: str
    """How the bridges came about: `trained` or `ridge`."""

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The `BridgeConfig`, and what else fixed them."""

    paths: tuple[str | None, str | None] = (None, None)
    """Where the dense and the sparse model lie, as given."""

    @property
    def sparse_stream(self) -> ResidualModel:
        """The sparse model as bridges see it."""
        return OwnModel(self.sparse)

    def text(self, train: TrainConfig | None = None, corpus: Corpus | None = None) -> tuple[TrainConfig, Corpus]:
        """Return the settings and the corpus that say what text to record, measure and edit on.

        Args:
            train: Settings whose shares and context count; those of the sparse model's run if left out.
            corpus: The text, likewise.

        Raises:
            ConfigError: One is left out, and the sparse model comes from no run folder.
        """
        if train is not None and corpus is not None:
            return train, corpus
        if self.sparse.folder is None:
            raise ConfigError("the sparse model comes from no run folder: name corpus and settings")
        own_train, own_corpus = run_of(self.sparse.folder)
        return train or own_train, corpus or own_corpus

    def shown(self) -> str:
        """Say what this is in a line."""
        how = {"ridge": "ridge regression on recorded streams; no model was trained", "trained": "trained"}
        return (
            f"bridges at {len(self.bridges.sites)} sites, {how.get(self.kind, self.kind)}; "
            f"sparse stream {self.sparse.config.d_model} wide, dense {self.dense.d_model}"
        )

    def save(self, folder: Path | str) -> None:
        """Write a folder with the bridges alone; it names its models by hash and by relative path.

        Raises:
            OutputExistsError: It already holds a finished bridge.
        """
        folder = Path(folder)
        refuse_finished(folder, "bridge")
        self.write(folder)
        mark_done(folder)

    def write(self, folder: Path) -> None:
        """Write `bridge.json` and `bridges.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: t.detach().cpu().numpy() for name, t in self.bridges.state_dict().items()}
        save_arrays(folder / MAPS, arrays, {"format": FORMAT, "version": VERSION})
        hashes = (self.dense.hash, self.sparse_stream.hash)
        entries = {
            name: {"path": None if path is None else os.path.relpath(Path(path).resolve(), folder.resolve()), "hash": h}
            for name, path, h in zip(("dense", "sparse"), self.paths, hashes, strict=True)
        }
        write_json(
            folder / DESCRIPTION,
            {
                "format": FORMAT,
                "version": VERSION,
                "kind": self.kind,
                **entries,
                "sites": [list(pair) for pair in self.bridges.sites],
                "density": self.bridges.density,
                "rms": [list(pair) for pair in self.rms],
                "settings": self.settings,
            },
        )

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        dense: "Transformer | ResidualModel | None" = None,
        sparse: Transformer | None = None,
    ) -> "Bridge":
        """Open a bridge.

        Args:
            folder: What `sc.train_bridges` or `sc.ridge_bridge` wrote.
            dense: Its dense model; the recorded one is opened if it is left out.
            sparse: Its sparse model, likewise.

        Raises:
            FormatError: The folder is not a whole bridge.
            WrongModelError: A model is not the one that the bridges were made for; both are named by hash.
        """
        folder = Path(folder)
        described = _description(folder / DESCRIPTION)
        if not is_done(folder):
            raise FormatError(f"{folder}: the bridge was not written to its end")
        opened_dense = _opened(folder, described, "dense") if dense is None else as_residual(dense)
        opened_sparse = _opened(folder, described, "sparse") if sparse is None else OwnModel(sparse)
        for name, model in (("dense", opened_dense), ("sparse", opened_sparse)):
            expected = described[name]["hash"]
            if model.hash != expected:
                raise WrongModelError(
                    f"{folder}: its {name} model is {expected[:12]} ({described[name]['path']}), "
                    f"this is model {model.hash[:12]}"
                )
        assert isinstance(opened_sparse, OwnModel)
        bridges = Bridges(
            d_sparse=opened_sparse.d_model,
            d_dense=opened_dense.d_model,
            sites=tuple((int(s), int(d)) for s, d in described["sites"]),
            density=described["density"],
        )
        _, arrays = load_arrays(folder / MAPS, FORMAT, VERSION)
        fill_bridges(bridges, arrays, where=folder / MAPS)
        return cls(
            dense=frozen(opened_dense),
            sparse=opened_sparse.model,
            bridges=bridges.requires_grad_(False),
            rms=tuple((float(s), float(d)) for s, d in described["rms"]),
            kind=described["kind"],
            settings=described["settings"],
            paths=tuple(
                None if described[name]["path"] is None else str(folder / described[name]["path"])
                for name in ("dense", "sparse")
            ),  # pyright: ignore[reportArgumentType]
        )


def fill_bridges(bridges: Bridges, arrays: dict[str, Any], *, where: Path) -> None:
    """Copy stored arrays into bridges.

    Raises:
        FormatError: One is missing or of another shape.
    """
    state = bridges.state_dict()
    for name, tensor in state.items():
        if name not in arrays or arrays[name].shape != tuple(tensor.shape):
            raise FormatError(f"{where}: {name} is missing or not of shape {tuple(tensor.shape)}")
        tensor.copy_(torch.from_numpy(arrays[name].copy()))


def site_pairs(given: tuple[str, ...], *, sparse: ResidualModel, dense: ResidualModel) -> tuple[tuple[int, int], ...]:
    """Return the pairs of sites that bridges stand at.

    Args:
        given: Such as `("0:0", "2:4")`, sparse site first; none takes every site of two models of equal depth.
        sparse: The sparse model.
        dense: The dense model.

    Raises:
        ConfigError: Depths differ and no map is given, or the map is not one.
    """
    n_sparse, n_dense = sparse.n_sublayer, dense.n_sublayer
    if not given:
        if n_sparse != n_dense:
            raise ConfigError(
                f"the sparse model has {n_sparse // 2} layers, the dense one {n_dense // 2}: give a map in `sites`, "
                f"such as 0:0 {n_sparse}:{n_dense} (sparse site first; site 2i is before attention of layer i)"
            )
        return tuple((site, site) for site in range(n_sparse + 1))
    pairs = []
    for text in given:
        parts = text.split(":")
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            raise ConfigError(f"sites names {text!r}, expected two numbers such as 2:4, sparse site first")
        pair = (int(parts[0]), int(parts[1]))
        if pair[0] > n_sparse or pair[1] > n_dense:
            raise ConfigError(
                f"sites names {text!r}; the sparse model has sites 0 to {n_sparse}, the dense 0 to {n_dense}"
            )
        if pairs and (pair[0] <= pairs[-1][0] or pair[1] <= pairs[-1][1]):
            raise ConfigError(f"sites {' '.join(given)}: both numbers must rise from pair to pair")
        pairs.append(pair)
    return tuple(pairs)


def refuse_other_tokens(
    tokenizer: Tokenizer | None, n_vocab: int, other: ResidualModel, *, mine: str, name: str = "the dense model"
) -> None:
    """Refuse to join models whose tokens mean different things, or are not as many.

    Args:
        tokenizer: That of the sparse model, or of its corpus.
        n_vocab: Tokens that the sparse model has logits for.
        other: The dense model, or one that is compared with it.
        mine: What has the tokenizer, for the message.
        name: What the other model is, likewise.

    Raises:
        ConfigError: They differ, or a tokenizer is unknown.
    """
    if tokenizer is None or other.tokenizer is None:
        raise ConfigError(f"{mine if tokenizer is None else name} has no tokenizer; a bridge needs both")
    if not tokenizer.means_the_same(other.tokenizer):
        raise ConfigError(
            f"{mine} has another tokenizer ({tokenizer.n_vocab:,} tokens) than {name} ({other.tokenizer.n_vocab:,}): "
            "train a sparse model on the dense one's tokens, with `sparse-circuits corpus --tokenizer TOKENIZER.json` "
            "and then `train` or `bridge`"
        )
    if other.n_vocab != n_vocab:
        raise ConfigError(
            f"{name} has logits for {other.n_vocab:,} tokens, the sparse model for {n_vocab:,}: KL over the whole "
            "vocabulary needs as many; cut the padding off its embedding and unembedding"
        )


def _description(path: Path) -> dict[str, Any]:
    """Read a `bridge.json`, and check that every field that `load` uses is there and of its kind."""
    described = read_json(path, expect=FORMAT, version=VERSION)
    kinds = {"dense": dict, "sparse": dict, "sites": list, "rms": list, "kind": str, "settings": dict}
    for name, kind in kinds.items():
        if not isinstance(described.get(name), kind):
            raise FormatError(f"{path}: {name} is {described.get(name)!r:.60}, expected a {kind.__name__}")
    for name in ("dense", "sparse"):
        model = described[name]
        if not isinstance(model.get("hash"), str) or not isinstance(model.setdefault("path", None), str | None):
            raise FormatError(f"{path}: {name} needs a hash, and a path or null")
    sites, rms, density = described["sites"], described["rms"], described.setdefault("density", None)
    if not all(_is_pair(pair, int) for pair in sites) or not all(_is_pair(pair, int | float) for pair in rms):
        raise FormatError(f"{path}: sites must be pairs of whole numbers, rms pairs of numbers")
    if not sites or len(sites) != len(rms):
        raise FormatError(f"{path}: {len(sites)} sites and {len(rms)} rms, expected as many, and one or more")
    if density is not None and not (type(density) in (int, float) and 0 < density <= 1):
        raise FormatError(f"{path}: density is {density!r:.60}, expected a number in (0, 1] or null")
    return described


def _is_pair(value: Any, kind: Any) -> bool:
    """Say whether a JSON value is two numbers of a kind."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(x, kind) and x is not True for x in value)


def _opened(folder: Path, described: dict[str, Any], name: str) -> ResidualModel:
    path = described[name]["path"]
    if path is None:
        raise FormatError(f"{folder}: the bridge does not say where its {name} model lies; pass the model")
    return open_residual((folder / path).resolve())
