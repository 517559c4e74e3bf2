"""Train weight-sparse transformers, cut out circuits, test them, look at them.

The names below are loaded when they are first used, so that importing the package does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_circuits import kernels as kernels
    from sparse_circuits.bridges.learning import train_bridges as train_bridges
    from sparse_circuits.bridges.maps import Bridge as Bridge
    from sparse_circuits.bridges.paths import evaluate_hybrids as evaluate_hybrids
    from sparse_circuits.bridges.ridge import ridge_bridge as ridge_bridge
    from sparse_circuits.bridges.steering import steer as steer
    from sparse_circuits.building import build_corpus as build_corpus
    from sparse_circuits.circuit import Circuit as Circuit
    from sparse_circuits.configs import BridgeConfig as BridgeConfig
    from sparse_circuits.configs import CorpusConfig as CorpusConfig
    from sparse_circuits.configs import MatchConfig as MatchConfig
    from sparse_circuits.configs import ModelConfig as ModelConfig
    from sparse_circuits.configs import OptimizerConfig as OptimizerConfig
    from sparse_circuits.configs import PruneConfig as PruneConfig
    from sparse_circuits.configs import SparsityConfig as SparsityConfig
    from sparse_circuits.configs import SteerConfig as SteerConfig
    from sparse_circuits.configs import TrainConfig as TrainConfig
    from sparse_circuits.configs import VerifyConfig as VerifyConfig
    from sparse_circuits.converting import convert as convert
    from sparse_circuits.corpus.shards import Corpus as Corpus
    from sparse_circuits.downloads import download as download
    from sparse_circuits.editing import NodeEdit as NodeEdit
    from sparse_circuits.editing import edited as edited
    from sparse_circuits.ensemble import prune_seeds as prune_seeds
    from sparse_circuits.errors import SparseCircuitsError as SparseCircuitsError
    from sparse_circuits.examples import example as example
    from sparse_circuits.explaining import explain as explain
    from sparse_circuits.faithfulness import verify as verify
    from sparse_circuits.faithfulness.predictions import predict as predict
    from sparse_circuits.interop.exporting import export as export
    from sparse_circuits.interop.viz_data import read_viz_data as read_viz_data
    from sparse_circuits.loading import load as load
    from sparse_circuits.matching import match as match
    from sparse_circuits.model import Transformer as Transformer
    from sparse_circuits.plots import draw as draw
    from sparse_circuits.plots import draw_attention as draw_attention
    from sparse_circuits.plots import draw_curves as draw_curves
    from sparse_circuits.plots import draw_ratios as draw_ratios
    from sparse_circuits.predicates import score_predicate as score_predicate
    from sparse_circuits.pruning import prune as prune
    from sparse_circuits.search import search_settings as search_settings
    from sparse_circuits.survey import prune_all as prune_all
    from sparse_circuits.taps import cutting as cutting
    from sparse_circuits.taps import reading as reading
    from sparse_circuits.taps import replacing as replacing
    from sparse_circuits.tasks import task as task
    from sparse_circuits.training import train as train
    from sparse_circuits.viewer import view as view
    from sparse_circuits.viewer.widget import show as show

_HOMES = {
    "Bridge": "bridges.maps",
    "BridgeConfig": "configs",
    "SteerConfig": "configs",
    "evaluate_hybrids": "bridges.paths",
    "steer": "bridges.steering",
    "ridge_bridge": "bridges.ridge",
    "train_bridges": "bridges.learning",
    "Circuit": "circuit",
    "CorpusConfig": "configs",
    "MatchConfig": "configs",
    "ModelConfig": "configs",
    "OptimizerConfig": "configs",
    "PruneConfig": "configs",
    "SparsityConfig": "configs",
    "TrainConfig": "configs",
    "VerifyConfig": "configs",
    "convert": "converting",
    "Corpus": "corpus.shards",
    "build_corpus": "building",
    "download": "downloads",
    "SparseCircuitsError": "errors",
    "NodeEdit": "editing",
    "edited": "editing",
    "prune_seeds": "ensemble",
    "example": "examples",
    "explain": "explaining",
    "predict": "faithfulness.predictions",
    "verify": "faithfulness",
    "export": "interop.exporting",
    "read_viz_data": "interop.viz_data",
    "load": "loading",
    "match": "matching",
    "Transformer": "model",
    "draw": "plots",
    "draw_attention": "plots",
    "draw_curves": "plots",
    "draw_ratios": "plots",
    "score_predicate": "predicates",
    "prune": "pruning",
    "search_settings": "search",
    "prune_all": "survey",
    "cutting": "taps",
    "reading": "taps",
    "replacing": "taps",
    "task": "tasks",
    "train": "training",
    "show": "viewer.widget",
    "view": "viewer",
    "kernels": "",
}
"""Public name: the module that has it; an empty one marks a module."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Load a public name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sparse_circuits' has no attribute {name!r}")
    if not _HOMES[name]:
        return importlib.import_module(f"sparse_circuits.{name}")
    module = importlib.import_module(f"sparse_circuits.{_HOMES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
