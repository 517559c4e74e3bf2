"""The main job from end to end."""

import dataclasses

from sparse_circuits.configs.circuits import PruneConfig
from sparse_circuits.configs.runs import CorpusConfig, TrainConfig
from sparse_circuits.settings import Config, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """The main job from end to end: corpus, training, pruning, verification, pages."""

    corpus: CorpusConfig = CorpusConfig()
    """What to train on."""

    train: TrainConfig = TrainConfig()
    """How to train."""

    prune: PruneConfig = PruneConfig()
    """How to cut circuits out."""

    tasks: tuple[str, ...] = ("single_double_quote", "bracket_counting")
    """Behaviours to look for."""

    n_set: int = 200
    """Random sets that a circuit is compared with."""

    seed: int = 0
    """Decides the tasks' prompts."""

    def __post_init__(self) -> None:
        require(self.n_set >= 1, f"n_set is {self.n_set}, expected 1 or more")
        require(
            self.corpus.n_vocab == self.train.model.n_vocab,
            f"corpus.n_vocab is {self.corpus.n_vocab}, train.model.n_vocab {self.train.model.n_vocab}; make them equal",
        )
