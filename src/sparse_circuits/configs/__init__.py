"""Every setting of the package; needs no torch."""

from sparse_circuits.configs.bridges import BridgeConfig, SteerConfig
from sparse_circuits.configs.checks import CHECKS, COSTLY, Check, VerifyConfig
from sparse_circuits.configs.circuits import MatchConfig, PruneConfig
from sparse_circuits.configs.demos import DemoConfig
from sparse_circuits.configs.models import NODE_SITES, STREAM_SITES, ModelConfig
from sparse_circuits.configs.runs import CorpusConfig, OptimizerConfig, SparsityConfig, TrainConfig

__all__ = [
    "CHECKS",
    "COSTLY",
    "NODE_SITES",
    "STREAM_SITES",
    "BridgeConfig",
    "Check",
    "CorpusConfig",
    "DemoConfig",
    "MatchConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PruneConfig",
    "SparsityConfig",
    "SteerConfig",
    "TrainConfig",
    "VerifyConfig",
]
