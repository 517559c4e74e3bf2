"""Training a sparse model and its bridges on a frozen dense model: `sc.train_bridges`."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from sparse_circuits import checkpoint
from sparse_circuits.ablation import settings_of
from sparse_circuits.bridges.maps import Bridge, Bridges, fill_bridges, refuse_other_tokens
from sparse_circuits.bridges.objective import Losses, backward
from sparse_circuits.bridges.residual import OwnModel, ResidualModel, as_residual, frozen, open_residual, path_of
from sparse_circuits.bridges.ridge import Moments, corpus_for, fit_ridge_, new_bridges, record_moments, text_batches
from sparse_circuits.checkpoint import model_hash
from sparse_circuits.configs import BridgeConfig, OptimizerConfig, TrainConfig
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import ConfigError, DivergedError, FormatError
from sparse_circuits.files import is_done, mark_done
from sparse_circuits.loading import load
from sparse_circuits.model import Transformer
from sparse_circuits.optimizer import Optimizer, base_lr_at
from sparse_circuits.presets import SMALL
from sparse_circuits.runlog import RunLog
from sparse_circuits.training import (
    Interrupted,
    Validator,
    batches_of,
    initial_model,
    interrupt_between_steps,
    prepare_folder,
    warn_of_threads,
)

N_DIVERGED = 2.0
"""A next-token loss above this many times ln n_vocab, the loss of a uniform guess, has diverged."""


def train_bridges(
    config: BridgeConfig,
    *,
    dense: Transformer | ResidualModel | Path | str,
    out: Path | str,
    sparse: Path | str | None = None,
    train: TrainConfig | None = None,
    corpus: Corpus | Path | str | None = None,
    progress: TextIO | None = None,
    stop_after: int | None = None,
) -> Bridge:
    """Train a sparse model and bridges together, or go on with the training that `out` holds.

    The folder is a run folder as `sc.train` writes it, so that the sparse model can be opened, pruned and viewed, with
    `bridge.json` and `bridges.safetensors` beside.

    Args:
        config: The bridges' settings.
        dense: The dense model, or its folder.
        out: The run folder.
        sparse: A finished sparse run to start from, its density kept, its bridges started by ridge regression.
        train: The settings of a new sparse model instead, annealed as in `sc.train`.
        corpus: A finished corpus; the dense run's if left out.
        progress: Where a progress line goes; None is silent.
        stop_after: Stop, with a checkpoint, after this many steps in all, as an interrupt would.

    Raises:
        ConfigError: Settings, models, corpus or tokenizers don't fit together.
        DivergedError: The loss is not a number, or far above that of a uniform guess.
        OutputExistsError: `out` holds a finished run.
        Interrupted: Ctrl-C; the same command goes on from there.

    Source: paper section 2.3 and appendix A.3; starting from a finished sparse run is ours.
    """
    out, sparse = Path(out), None if sparse is None else Path(sparse)
    if (sparse is None) == (train is None):
        raise ConfigError("give either a finished sparse run to start from, or the settings of a new sparse model")
    dense_path = path_of(dense)
    other = frozen(open_residual(dense) if isinstance(dense, Path | str) else as_residual(dense))
    corpus = corpus_for(corpus, dense_path)
    if sparse is not None:
        train = continued(sparse, config)
    assert train is not None
    if train.context > other.n_ctx:
        raise ConfigError(f"context is {train.context}, the dense model's n_ctx {other.n_ctx}; lower context")
    described = {"hash": other.hash, "start": None if sparse is None else model_hash(load(sparse))}
    with torch.device("meta"):
        new_bridges(OwnModel(Transformer(train.model)), other, config)  # refuses a wrong map before anything is written
    refuse_other_tokens(corpus.tokenizer, train.model.n_vocab, other, mine=f"the corpus {corpus.folder}")
    prepare_folder(train, corpus, out, more={"bridge": config.to_json(), "dense": described})
    trainer = _Trainer(config, train, dense=other, corpus=corpus, out=out, sparse=sparse)
    trainer.run(progress, stop_after)
    return trainer.finish((dense_path, str(out)))


def continued(sparse: Path, config: BridgeConfig) -> TrainConfig:
    """Return the settings under which a finished sparse run goes on beside bridges: its density, another order of data.

    Raises:
        FormatError: The run is not finished.
    """
    if not is_done(sparse):
        raise FormatError(f"{sparse}: not a finished run; train it to its end first")
    run = settings_of(sparse)
    return dataclasses.replace(
        run,
        n_token=config.n_token,
        batch_size=config.batch_size,
        sparsity=dataclasses.replace(run.sparsity, anneal="none"),
        optimizer=dataclasses.replace(run.optimizer, lr=config.sparse_lr),
        seed=run.seed + 1 + config.seed,
    )


def start_of(dense: Path, sparse: Path | None, train: TrainConfig | None) -> TrainConfig | None:
    """Return the settings of a new sparse model: those given, or preset `small` with the dense one's depth and tokens.

    None where the sparse model starts from a finished run.

    Raises:
        ConfigError: Both a run and settings are given.
    """
    if sparse is not None:
        if train is not None:
            raise ConfigError("give either a finished sparse run to start from, or the settings of a new sparse model")
        return None
    if train is not None:
        return train
    found = open_residual(dense)
    context = min(SMALL.context, found.n_ctx)
    shape = dataclasses.replace(SMALL.model, n_layer=found.n_sublayer // 2, n_vocab=found.n_vocab, n_ctx=context)
    return dataclasses.replace(SMALL, model=shape, context=context)


class BridgeOptimizer:
    """Adam on the bridges, its rate following the sparse model's warm-up and decay."""

    def __init__(self, bridges: Bridges, *, config: BridgeConfig, optimizer: OptimizerConfig, n_step: int) -> None:
        self.bridges, self.n_step = bridges, n_step
        self.schedule = dataclasses.replace(optimizer, lr=config.lr)
        self.adam = torch.optim.Adam(bridges.parameters(), lr=torch.tensor(0.0), betas=(0.9, 0.95), fused=True)

    def step(self, step: int) -> float:
        """Update the bridges from their gradients, clear these, and return the rate."""
        lr = base_lr_at(step, n_step=self.n_step, config=self.schedule)
        self.adam.param_groups[0]["lr"].fill_(lr)
        self.adam.step()
        self.adam.zero_grad()
        return lr

    def state(self) -> dict[str, Tensor]:
        """Return the bridges and Adam's state by name, each with `bridge.` before it."""
        found = {f"bridge.{name}": p.detach() for name, p in self.bridges.named_parameters()}
        for name, p in self.bridges.named_parameters():
            found |= {f"bridge.{kind}.{name}": value for kind, value in self.adam.state[p].items()}
        return found

    def load_state(self, state: dict[str, Tensor], where: Path) -> None:
        """Take over what `state` returned."""
        own = {name.removeprefix("bridge."): t for name, t in state.items() if name.startswith("bridge.")}
        fill_bridges(self.bridges, {name: t.numpy() for name, t in own.items()}, where=where)
        for name, p in self.bridges.named_parameters():
            self.adam.state[p] = {kind: own[f"{kind}.{name}"].clone() for kind in ("exp_avg", "exp_avg_sq", "step")}


class _Trainer:
    """A run's model, bridges and optimizers, new or as the last checkpoint has them."""

    def __init__(
        self,
        config: BridgeConfig,
        train: TrainConfig,
        *,
        dense: ResidualModel,
        corpus: Corpus,
        out: Path,
        sparse: Path | None,
    ) -> None:
        self.config, self.train, self.dense, self.corpus, self.out = config, train, dense, corpus, out
        self.batches = batches_of(train, corpus)
        self.validator = Validator(train, corpus, self.batches, out)
        found = checkpoint.latest_checkpoint(out)
        if found is not None:
            self.model = checkpoint.load_model(found / checkpoint.MODEL_NAME, corpus.tokenizer)
        elif sparse is not None:
            self.model = load(sparse)
        else:
            self.model = initial_model(train, corpus)
        self.sparse = OwnModel(self.model)
        self.bridges = new_bridges(self.sparse, dense, config)
        n_step = train.n_step  # rates end at 0 there, before the extra step if there is one
        self.optimizer = Optimizer(self.model, optimizer=train.optimizer, sparsity=train.sparsity, n_step=n_step)
        self.bridge_optimizer = BridgeOptimizer(self.bridges, config=config, optimizer=train.optimizer, n_step=n_step)
        self.first_step = 0
        if found is not None:
            notes, state = checkpoint.load_state(found)
            self.optimizer.load_state(state)
            self.bridge_optimizer.load_state(state, found / checkpoint.STATE_NAME)
            warn_of_threads(notes, found)
            self.first_step = notes["step"]
        elif sparse is not None:
            fit_ridge_(self.bridges, self.moments(), ridge=config.ridge)

    def moments(self) -> Moments:
        """Record both models' streams over reference text."""
        n_ctx = min(self.sparse.n_ctx, self.dense.n_ctx)
        batches = text_batches(self.corpus, self.train, n_token=self.config.n_ridge_token, n_ctx=n_ctx)
        return record_moments(self.sparse, self.dense, self.bridges.sites, batches)

    def run(self, progress: TextIO | None, stop_after: int | None) -> None:
        """Take the steps that are left."""
        n_step = self.batches.n_step
        last_step = n_step if stop_after is None else min(n_step, stop_after)
        if self.first_step >= last_step < n_step:
            raise Interrupted(f"stopped after step {self.first_step}; the same command goes on from there")
        log = RunLog(self.out / "metrics.jsonl", n_step=n_step, cut_at=self.first_step, stream=progress)
        with log, interrupt_between_steps() as interrupted:
            self.model.train()
            for step in range(self.first_step, last_step):
                started = time.monotonic()
                losses = backward(
                    self.bridges,
                    sparse=self.sparse,
                    dense=self.dense,
                    tokens=self.batches(step),
                    config=self.config,
                    step=step,
                )
                self.refuse_divergence(losses, step)
                record = self.update(losses, step)
                if (step + 1) % self.train.validate_every == 0 or step + 1 == n_step:
                    record |= self.validator(self.model)
                seconds = time.monotonic() - started
                rate = self.train.batch_size * self.train.context / seconds
                log.write(step, **record, token_per_second=round(rate), seconds=round(seconds, 4))
                log.show(step, _shown(losses, rate))
                is_stopped = bool(interrupted) or (step + 1 == last_step and last_step < n_step)
                if is_stopped or (step + 1) % self.train.checkpoint_every == 0 or step + 1 == n_step:
                    log.flush()
                    self.save(step + 1)
                if is_stopped and step + 1 < n_step:
                    raise Interrupted(f"stopped after step {step + 1}; the same command goes on from there")

    def update(self, losses: Losses, step: int) -> dict[str, Any]:
        """Update model and bridges, and return what the log keeps."""
        update = self.optimizer.step(step)
        bridge_lr = self.bridge_optimizer.step(step)
        record = dataclasses.asdict(losses)
        return {
            "loss": record.pop("next_token"),
            **record,
            "lr": update.lr,
            "bridge_lr": bridge_lr,
            "matrix_density": update.matrix_density,
            "grad_rms": float(update.grad_rms),
        }

    def refuse_divergence(self, losses: Losses, step: int) -> None:
        """Stop before a bad step is taken.

        Raises:
            DivergedError: The loss is not a number, or far above that of a uniform guess.
        """
        most = N_DIVERGED * math.log(self.train.model.n_vocab)
        if not math.isfinite(losses.total) or losses.next_token > most:
            raise DivergedError(
                f"the loss is {losses.total:.4g} at step {step} (next token {losses.next_token:.4g}): it diverged; "
                f"{checkpoint.last_good(self.out)}: lower the sparse model's rate (now {self.train.optimizer.lr}; "
                f"sparse_lr, or that of a new model's own settings) or lr (now {self.config.lr}) and start in another "
                "folder"
            )

    def save(self, step: int) -> None:
        """Write a checkpoint."""
        notes = {"step": step, "n_thread": torch.get_num_threads()}
        state = self.optimizer.state() | self.bridge_optimizer.state()
        checkpoint.save_checkpoint(self.out, step, self.model, state, weights=self.train.weights, notes=notes)

    def finish(self, paths: tuple[str | None, str]) -> Bridge:
        """Write the bridges into the run folder and close it."""
        self.model.folder = self.out
        frozen(self.sparse)
        bridge = Bridge(
            dense=self.dense,
            sparse=self.model,
            bridges=self.bridges.requires_grad_(False),
            rms=self.moments().rms,
            kind="trained",
            settings={"bridge": self.config.to_json(), "corpus_hash": self.corpus.hash},
            paths=paths,
        )
        bridge.write(self.out)
        mark_done(self.out)
        return bridge


def _shown(losses: Losses, rate: float) -> str:
    kl_s, kl_d = ([*kl.values()] for kl in (losses.kl_to_sparse, losses.kl_to_dense))
    return (
        f"loss {losses.next_token:.3f}  KL {sum(kl_s) / len(kl_s):.3f} {sum(kl_d) / len(kl_d):.3f}  "
        f"error {sum(losses.nmse_encoder) / len(losses.nmse_encoder):.3f} "
        f"{sum(losses.nmse_decoder) / len(losses.nmse_decoder):.3f}  {rate:,.0f} tokens/s"
    )
