"""Models that never learned a task, as sparse as one that did: what a pruner finds in them is no finding."""

import copy
from pathlib import Path
from typing import Literal, get_args

import torch

from sparse_circuits.ablation import is_run, run_of
from sparse_circuits.checkpoint import model_hash, save_checkpoint
from sparse_circuits.errors import ConfigError, FormatError
from sparse_circuits.files import is_done, mark_done, read_json
from sparse_circuits.loading import load
from sparse_circuits.model import Transformer
from sparse_circuits.training import prepare_folder

Kind = Literal["random", "shuffled"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Weights drawn anew, and the trained weights of each row in another order."""


@torch.no_grad()
def control_model(model: Transformer, kind: Kind, *, seed: int = 0) -> Transformer:
    """Return a model that knows nothing, with as many nonzeros in each matrix.

    The bigram table stays in either: it answers by the last token, which the two sides of a pair share. So do
    sinusoidal positions, which nobody learned.

    Args:
        model: The trained model; it is not changed.
        kind: `random`: each matrix has as many nonzeros, at random places, normal with the RMS of the trained ones;
            biases and sinks are 0, gains 1. `shuffled`: the weights of each row of each matrix are put in random
            order, so every neuron and channel has the very weights that it had, from other sources; all else stays.
        seed: Decides places and values.

    Raises:
        TapError: The model is packed.

    Source: the controls are those that a replication of February 2026 asked for; how they are drawn is ours.
    """
    model.require_whole()
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    never_learned = {"bigram"} | ({"position_embedding.weight"} if model.config.positions == "sinusoidal" else set())
    for name, parameter in made.named_parameters():
        if name in never_learned:
            continue
        if parameter.ndim == 2:
            order = torch.rand(parameter.shape, generator=generator)
            if kind == "shuffled":
                parameter.copy_(parameter.gather(1, order.argsort(1)))
            else:
                n_nonzero = int(parameter.count_nonzero())
                rms = parameter.square().sum().div(max(n_nonzero, 1)).sqrt()
                places = order.flatten().argsort()[:n_nonzero]
                parameter.zero_().view(-1)[places] = rms * torch.randn(n_nonzero, generator=generator)
        elif kind == "random":
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return made.eval()


def control_run(model: Transformer, kind: Kind, out: Path | str, *, seed: int = 0) -> Transformer:
    """Write a control of a run's model as a run folder of its own, or open the one that is there.

    Args:
        model: The model of a run folder.
        kind: See `control_model`.
        out: The folder; circuits of the control name it as their model.
        seed: Decides places and values.

    Raises:
        FormatError: The model comes from no run folder.
        ConfigError: The folder holds a control of another model, kind or seed.
    """
    out = Path(out)
    what = {"control": {"model": model_hash(model), "kind": kind, "seed": seed}}
    if is_done(out):
        if read_json(out / "config.json").get("control") != what["control"]:
            raise ConfigError(f"{out} holds a control of another model, kind or seed; name another folder or remove it")
    else:
        if model.folder is None or not is_run(model.folder):
            raise FormatError("controls need the run folder of the model, for its settings and its corpus")
        config, corpus = run_of(model.folder)
        prepare_folder(config, corpus, out, more=what)
        made, notes = control_model(model, kind, seed=seed), {"step": 0, "n_thread": torch.get_num_threads()}
        save_checkpoint(out, 0, made, {}, weights="packed", notes=notes)
        mark_done(out)
    return load(out)
