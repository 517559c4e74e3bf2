"""A search of the pruner's settings for the smallest circuit, on Optuna (extra `search`): `sc.search_settings`."""

import dataclasses
from pathlib import Path
from typing import Any, TextIO

import torch

from sparse_circuits.checkpoint import load_arrays, save_arrays
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import ConfigError, FormatError, PruneError
from sparse_circuits.files import refuse_finished, sha256_of_json
from sparse_circuits.masks import LearnedMasks, Stops
from sparse_circuits.model import Transformer
from sparse_circuits.pruning import Pruning
from sparse_circuits.refinement import scan_sizes
from sparse_circuits.runlog import say
from sparse_circuits.settings import require
from sparse_circuits.tasks.pairs import Task
from sparse_circuits.unfinished import refuse_other

FORMAT, VERSION = "sparse-circuits search", 2

RANGES = {
    "lr": (2e-3, 5e-2),
    "weight_decay": (1e-4, 1e-2),
    "temperature": (0.1, 10.0),
    "init_bias": (0.03, 1.0),
    "init_noise": (1e-3, 0.3),
    "necessity_coefficient": (0.1, 10.0),
}
"""Settings that are drawn log-uniformly; around the paper's centres (appendix A.2) and the defaults."""

COUNT_RANGE = (1e-4, 3e-2)
"""The same for a fixed price, which is searched if the configuration has one."""

BEST = "best.safetensors"
"""Name of the file with the best trial's mask."""

Best = tuple[dict[str, Any], torch.Tensor]
"""What is told of that trial, and the parameters of its mask."""

MISS = 10.0
"""A trial that misses the target counts as two whole models, and as this many more for each nat that it misses."""

JUDGED_AT = (1 / 3, 2 / 3)
"""Shares of the steps after which a trial is stopped if it stands worse than the median of those that were finished."""

N_JUDGED_STEP = 10
"""Steps before that whose loss says how a trial stands."""


def search_settings(
    model: Transformer,
    task: Task,
    out: Path | str,
    config: PruneConfig | None = None,
    *,
    n_trial: int = 32,
    n_at_once: int = 8,
    progress: TextIO | None = None,
) -> Circuit:
    """Try settings, several side by side, stop the poor ones early, and refine the smallest circuit found.

    Args:
        model: The model.
        task: What to prune for.
        out: Folder of the search's journal and its best mask, and at the end of the circuit; a search that was
            interrupted goes on.
        config: Settings that are not searched, and the target.
        n_trial: Trials in all.
        n_at_once: Trials that are drawn together; they are learned in as few passes as save time, see `learn_masks`.
        progress: Where progress goes; None is silent.

    Returns:
        The refined circuit of the best trial; its `removed[0]` has the trial and its settings.

    Raises:
        ConfigError: Optuna is not installed, or n_run is not 1.
        OutputExistsError: The folder holds a finished circuit, or the beginning of another search.
        PruneError: The model, or every trial, misses the target.

    Source: the paper searched with CARBS (appendix A.2); Optuna's TPE and its median rule are ours.
    """
    require(n_at_once >= 1, f"n_at_once is {n_at_once}, expected 1 or more")
    require(n_trial >= 1, f"n_trial is {n_trial}, expected 1 or more")
    out, config = Path(out), config or PruneConfig()
    require(config.n_run == 1, f"n_run is {config.n_run}, expected 1: every trial of a search learns one mask")
    optuna = _optuna()
    refuse_finished(out, "circuit")
    out.mkdir(parents=True, exist_ok=True)
    pruning = Pruning(model, task, config, folder=out, command="search", progress=progress)
    best = _stored_best(out / BEST, pruning)
    study = _open(optuna, out, pruning)
    best = best or _learned_again(study, out / BEST, pruning)
    while (n_done := _n_done(study)) < n_trial:
        trials = [study.ask() for _ in range(min(n_at_once, n_trial - n_done))]
        configs = [_drawn(trial, config) for trial in trials]
        learned = pruning.learn(configs, stops=_median_rule(trials, configs))
        for trial, tau, drawn, history in zip(trials, learned.tau, configs, learned.history, strict=True):
            n_done += 1
            if len(history) < drawn.n_step:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                say(progress, f"trial {n_done} of {n_trial}: stopped after {len(history)} steps, {_standing(history)}")
                continue
            value, is_reached, lowest = _value(pruning, tau)
            trial.set_user_attr("lowest", lowest)
            if is_reached and (best is None or value < best[0]["value"]):
                header = {"value": value, "trial": trial.number, "config": drawn.to_json(), "last": history[-1]}
                best = _keep(out / BEST, pruning, header, tau)
            study.tell(trial, value)  # a trial that counts as done has its mask kept
            say(progress, f"trial {n_done} of {n_trial}: {'' if value < len(tau) else 'counts as '}{value:,.0f} nodes")
    if best is None:
        raise _unreached(study, pruning, n_trial)
    header, tau = best
    found = LearnedMasks(tau=tau[None], history=[[header["last"]]])
    pruning.config = PruneConfig.from_json(header["config"], where=str(out))
    circuit = pruning.cut_out(found)
    circuit.removed[0]["search"] = {"trial": header["trial"], "n_trial": n_trial, "best_value": header["value"]}
    circuit.save(out)
    pruning.unfinished.remove()
    return circuit


def _unreached(study: Any, pruning: Pruning, n_trial: int) -> PruneError:
    """Say that no trial reaches the target, and how near the best one comes."""
    lowest, config = study.best_trial.user_attrs["lowest"], pruning.config
    return PruneError(
        f"no trial of {n_trial} meets target_loss {config.target_loss} less the margin of {config.margin:.0%} on "
        f"{pruning.task.name}, the best of the sizes tried is {lowest['n_node']} nodes at loss {lowest['loss']:.3f}; "
        "raise target_loss, or try more"
    )


def _median_rule(trials: list[Any], configs: list[PruneConfig]) -> Stops:
    """Say when trials are given up: `JUDGED_AT` tells the study how each stands, and asks its median rule."""

    def is_poor(run: int, history: list[dict[str, float]]) -> bool:
        if len(history) not in {round(share * configs[run].n_step) for share in JUDGED_AT}:
            return False
        missed = sum(record["loss"] for record in history[-N_JUDGED_STEP:]) / N_JUDGED_STEP / configs[run].target_loss
        trials[run].report(history[-1]["n_node"] * max(1.0, missed), len(history))
        return trials[run].should_prune()

    return is_poor


def _standing(history: list[dict[str, float]]) -> str:
    return f"{history[-1]['n_node']:,} nodes at loss {history[-1]['loss']:.3f}"


def _value(pruning: Pruning, tau: torch.Tensor) -> tuple[float, bool, dict[str, float]]:
    """Return what a trial counts as, the fewer the better, whether it reaches the target, and its lowest loss.

    It counts as its nodes; where no size keeps to the limit on AUROC, which pruning gives up then, as its nodes and
    those of the model.
    """
    n_node, tried = len(tau), []
    for max_auroc in sorted({pruning.max_auroc, 1.0}):
        keep, curve = scan_sizes(pruning.goal(max_auroc), tau)
        tried += curve
        if keep is not None:
            value, is_reached = float(keep.sum() + n_node * (max_auroc > pruning.max_auroc)), True
            break
    else:
        missed = min(point["loss"] for point in tried) - pruning.goal(1.0).target_loss
        value, is_reached = n_node * (2 + MISS * max(missed, 0.0)), False
    return value, is_reached, min(tried, key=lambda point: point["loss"])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError('searching needs Optuna: pip install "sparse-circuits[search]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open(optuna: Any, out: Path, pruning: Pruning) -> Any:
    """Open the journal, or begin a new one beside a journal that can't be read."""
    path = out / "journal.log"
    name = f"{pruning.task.name}, {sha256_of_json(pruning.unfinished.made_of)[:16]}"

    def study() -> Any:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        made = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
        # The sampler's state is not kept; with the seed alone a second call would draw what the first one drew.
        drawn = int(sha256_of_json([pruning.config.seed, len(made.get_trials(deepcopy=False))])[:8], 16)
        made.sampler = optuna.samplers.TPESampler(seed=drawn, constant_liar=True)
        made.pruner = optuna.pruners.MedianPruner()
        for trial in made.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            made.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # nobody goes on with what was interrupted
        if any(trial.state.name == "COMPLETE" and trial.value is None for trial in made.get_trials(deepcopy=False)):
            raise ValueError("a finished trial has no value")
        return made

    try:
        return study()
    except (ValueError, KeyError, TypeError, AssertionError) as error:  # what a broken line makes the library raise
        aside = path.with_suffix(f".broken-{len(list(out.glob('journal.broken-*'))) + 1}")
        path.rename(aside)
        told = f"{path} can't be read ({type(error).__name__}: {error}); kept as {aside.name}, begun anew"
        say(pruning.progress, told)
        return study()


def _n_done(study: Any) -> int:
    return sum(trial.state.name in {"COMPLETE", "PRUNED"} for trial in study.get_trials(deepcopy=False))


def _drawn(trial: Any, config: PruneConfig) -> PruneConfig:
    drawn = {name: trial.suggest_float(name, *ends, log=True) for name, ends in RANGES.items()}
    drawn["beta2"] = 1 - trial.suggest_float("inv_beta2", 0.01, 0.2, log=True)
    if config.necessity_coefficient == 0:
        drawn["necessity_coefficient"] = 0.0
    if config.count_coefficient is not None:
        drawn["count_coefficient"] = trial.suggest_float("count_coefficient", *COUNT_RANGE, log=True)
    return dataclasses.replace(config, seed=config.seed + trial.number, **drawn)


def _keep(path: Path, pruning: Pruning, header: dict[str, Any], tau: torch.Tensor) -> Best:
    """Write the best mask so far, which a search that was interrupted goes on from."""
    made_of = pruning.unfinished.made_of
    save_arrays(path, {"tau": tau.numpy()}, {"format": FORMAT, "version": VERSION, "made_of": made_of, **header})
    return header, tau


def _stored_best(path: Path, pruning: Pruning) -> Best | None:
    """Return what an interrupted search found best; None if its file is absent or damaged.

    Raises:
        OutputExistsError: It was another search.
    """
    if not path.exists():
        return None
    try:
        header, arrays = load_arrays(path, FORMAT, VERSION)
    except FormatError as error:
        pruning.say(str(error))
        return None
    refuse_other(path, header.get("made_of", {}), pruning.unfinished.made_of, what="search")
    return header, torch.from_numpy(arrays["tau"].copy())


def _learned_again(study: Any, path: Path, pruning: Pruning) -> Best | None:
    """Learn the mask of the journal's best trial again; None if no trial there reached the target."""
    if not _n_done(study) or study.best_value > 2 * len(pruning.values):
        return None
    trial = study.best_trial
    pruning.say(f"{path} does not hold the mask of trial {trial.number + 1}, the best so far: it is learned again")
    drawn = _drawn(trial, pruning.config)
    learned = pruning.learn([drawn])
    value, is_reached, _ = _value(pruning, learned.tau[0])
    if not is_reached:
        return None
    header = {"value": value, "trial": trial.number, "config": drawn.to_json(), "last": learned.history[0][-1]}
    return _keep(path, pruning, header, learned.tau[0])
