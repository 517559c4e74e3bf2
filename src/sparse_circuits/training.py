"""Training a weight-sparse (or dense) transformer: `sc.train`."""

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits import checkpoint, kernels
from sparse_circuits.configs import TrainConfig
from sparse_circuits.corpus.bigram import baseline_losses, count_batches, count_corpus
from sparse_circuits.corpus.shards import Batches, Corpus
from sparse_circuits.devices import usable_device
from sparse_circuits.errors import ConfigError, FormatError, OutputExistsError
from sparse_circuits.files import is_done, mark_done, read_json, write_json
from sparse_circuits.footprint import check_memory, training_size_bytes
from sparse_circuits.model import Transformer
from sparse_circuits.optimizer import Optimizer
from sparse_circuits.runlog import RunLog, duration
from sparse_circuits.sparse_products import sparse_products
from sparse_circuits.sparsity import budgets, check_quota, count_nonzeros, n_keep
from sparse_circuits.step_records import N_UNREAD, StepRecords

MAX_GPU_TOKENS = 16_384
"""Tokens that go through a GPU together; a larger batch goes in parts, whose gradients add up: room is scarce."""

FORMAT, VERSION = "sparse-circuits run", 1
BASELINE_FORMAT = "sparse-circuits bigram baseline"


class Interrupted(KeyboardInterrupt):
    """Training was interrupted after a checkpoint was written; the message says how to go on."""


def train(
    config: TrainConfig,
    *,
    corpus: Corpus | Path | str,
    out: Path | str,
    progress: TextIO | None = None,
    stop_after: int | None = None,
    device: str = "cpu",
) -> Transformer:
    """Train a model, or go on with the training that `out` holds.

    Args:
        config: The run's settings.
        corpus: A finished corpus.
        out: The run folder. If it holds an unfinished run of the same settings, that goes on from its last checkpoint.
        progress: Where a progress line goes; None is silent.
        stop_after: Stop, with a checkpoint, after this many steps in all, as an interrupt would.
        device: Where to compute, such as `cuda`; there products are in bfloat16, weights, stream and loss in float32.

    Returns:
        The trained model in evaluation mode.

    Raises:
        ConfigError: Settings that don't fit the corpus or each other, or another run's in `out`.
        OutputExistsError: `out` holds a finished run.
        Interrupted: Ctrl-C; the run can go on from where it was.
        DivergedError: No gradient was finite for ten steps in a row.
        DeviceError: The device is not there, or its memory is too small.
    """
    place = usable_device(device)
    corpus = corpus if isinstance(corpus, Corpus) else Corpus(corpus)
    check_memory(config, place, max_token=MAX_GPU_TOKENS if place.type == "cuda" else None)
    out = Path(out)
    prepare_folder(config, corpus, out)
    batches = batches_of(config, corpus)
    model, optimizer, first_step, skipped = _start(config, corpus, out, place)
    validator = Validator(config, corpus, batches, out)
    n_step = batches.n_step
    last_step = n_step if stop_after is None else min(n_step, stop_after)
    if first_step >= last_step < n_step:
        raise Interrupted(f"stopped after step {first_step}; the same command goes on from there")
    log = RunLog(out / "metrics.jsonl", n_step=n_step, cut_at=first_step, stream=progress)
    n_unread = 1 if place.type == "cpu" else N_UNREAD
    records = StepRecords(log, out, n_token=config.batch_size * config.context, n_unread=n_unread, skipped=skipped)
    with log, interrupt_between_steps() as interrupted:
        model.train()
        for step in range(first_step, last_step):
            loss, n_sparse = loss_and_gradients(model, sent(batches(step), place))
            update = optimizer.step(step)
            is_last = step + 1 == n_step
            is_validated = (step + 1) % config.validate_every == 0 or is_last
            records.add(step, loss, update, n_sparse_product=n_sparse, **(validator(model) if is_validated else {}))
            is_stopped = bool(interrupted) or step + 1 == last_step < n_step
            if is_stopped or (step + 1) % config.checkpoint_every == 0 or is_last:
                records.flush()
                log.flush()
                if records.n_in_a_row == 0 or is_stopped or is_last:  # nobody goes back to what fails already
                    notes = {"step": step + 1, "n_thread": torch.get_num_threads(), "skipped": records.skipped}
                    checkpoint.save_checkpoint(
                        out, step + 1, model, optimizer.state(), weights=config.weights, notes=notes
                    )
            if is_stopped and not is_last:
                raise Interrupted(f"stopped after step {step + 1}; the same command goes on from there")
    mark_done(out)
    model.folder = out
    return model.eval()


def check_settings(config: TrainConfig, corpus: Corpus) -> None:
    """Refuse settings that no run can have, before anything is written.

    Raises:
        ConfigError: The settings don't fit the corpus or each other.
        CorpusError: The corpus lacks a source.
    """
    if corpus.tokenizer.n_vocab != config.model.n_vocab:
        raise ConfigError(
            f"model.n_vocab is {config.model.n_vocab}, the corpus {corpus.folder} has {corpus.tokenizer.n_vocab} tokens"
        )
    batches_of(config, corpus)
    with torch.device("meta"):
        check_quota(Transformer(config.model), config.sparsity)


def prepare_folder(config: TrainConfig, corpus: Corpus, out: Path, *, more: dict[str, Any] | None = None) -> None:
    """Check the settings, and write them into a new run folder or compare them with what it holds.

    Args:
        config: The run's settings.
        corpus: What it trains on.
        out: Its folder.
        more: What else fixes the run, as objects by name; written beside the settings, and compared likewise.

    Raises:
        ConfigError: The settings don't fit the corpus, or are not those of the run in `out`.
        OutputExistsError: `out` holds a finished run.
    """
    if is_done(out):
        raise OutputExistsError(f"{out} already holds a finished run; name another folder or remove it")
    check_settings(config, corpus)
    described = {
        "format": FORMAT,
        "version": VERSION,
        "model_type": "sparse-circuits",  # by which Hugging Face's classes know the folder
        "train": config.to_json(),
        "corpus": {"path": os.path.relpath(corpus.folder.resolve(), out.resolve()), "hash": corpus.hash},
        **(more or {}),
    }
    path = out / "config.json"
    if path.exists():
        found = read_json(path, expect=FORMAT, version=VERSION)
        if found["corpus"]["hash"] != corpus.hash:
            raise ConfigError(f"{path}: the run was started on another corpus; name another folder")
        changed = [
            name
            for part in ("train", *(more or {}))
            for name, value in described[part].items()
            if found.get(part, {}).get(name) != value
        ]
        if changed:
            raise ConfigError(f"{path}: the run was started with another {', '.join(changed)}; name another folder")
    else:
        out.mkdir(parents=True, exist_ok=True)
        corpus.tokenizer.save(out / "tokenizer.json")
        write_json(path, described)


def batches_of(config: TrainConfig, corpus: Corpus) -> Batches:
    """Return a run's batches, the extra step's included."""
    return Batches(
        corpus,
        shares=config.shares,
        context=config.context,
        batch_size=config.batch_size,
        n_step=config.n_step + config.extra_step,
        seed=config.seed,
    )


def initial_model(config: TrainConfig, corpus: Corpus) -> Transformer:
    """Make a model as GPT-2 starts: N(0, 0.02), the writes by 1/sqrt(2 · n_layer) less, biases and positions 0.

    Source: the release's training script; the bigram table's log counts are ours.
    """
    model = Transformer(config.model, corpus.tokenizer)
    generator = torch.Generator().manual_seed(config.seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("attn.out.weight", "mlp.fc_out.weight")):
            parameter.data.normal_(0, 0.02 / math.sqrt(2 * config.model.n_layer), generator=generator)
        elif name == "position_embedding.weight" and config.model.positions == "added":
            parameter.data.zero_()
        elif name == "bigram":
            if config.bigram_init == "counts":
                parameter.data.copy_(count_corpus(corpus, list(config.shares)).log_probability(1.0))
            elif config.bigram_init == "uniform":
                parameter.data.uniform_(0, 0.02, generator=generator)
        elif parameter.ndim == 2 and parameter.requires_grad:
            parameter.data.normal_(0, 0.02, generator=generator)
        elif name.endswith(".bias"):
            parameter.data.zero_()
    return model


def sent(tokens: Int[Tensor, "batch pos"], place: torch.device) -> Int[Tensor, "batch pos"]:
    """Bring tokens to where the model is; a GPU fetches them while the host goes on."""
    return tokens.pin_memory().to(place, non_blocking=True) if place.type == "cuda" else tokens


def loss_and_gradients(model: Transformer, tokens: Int[Tensor, "batch pos"]) -> tuple[Float[Tensor, ""], int]:
    """Run forward and backward, with sparse products where they are faster.

    Returns:
        The loss, and the number of weights whose zeros were left out of the products.
    """
    is_gpu = tokens.device.type == "cuda"
    n_row = max(1, MAX_GPU_TOKENS // tokens.shape[1]) if is_gpu else len(tokens)
    loss = torch.zeros((), device=tokens.device)
    with sparse_products(model) as chosen:
        for rows in tokens.split(n_row):
            with torch.autocast("cuda", torch.bfloat16, enabled=is_gpu):
                part = next_token_loss(model, rows)
            if len(rows) < len(tokens):
                part = part * (len(rows) / len(tokens))
            part.backward()
            loss += part.detach()
    return loss, len(chosen)


def next_token_loss(model: Transformer, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Return the cross-entropy of each token given those before it, in nats, averaged over batch · (pos − 1)."""
    logits = model(tokens[:, :-1])  # the last token predicts nothing that is known
    return kernels.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


class Validator:
    """Loss on each source's held-out documents, beside that of a bigram count table of the run's own tokens."""

    def __init__(self, config: TrainConfig, corpus: Corpus, batches: Batches, out: Path) -> None:
        self.windows = {
            name: corpus.windows(name, "validation", context=config.context, n_token=config.n_validation_token)
            for name in config.shares
        }
        stored = out / "bigram_baseline.json"
        if stored.exists():
            found = read_json(stored, expect=BASELINE_FORMAT, version=VERSION)
            self.losses: dict[str, dict[str, float]] = found["losses"]
        else:
            counts = count_batches(batches, corpus.tokenizer.n_vocab)
            found = {name: baseline_losses(counts, name, w) for name, w in self.windows.items()}
            self.losses = {
                "bigram_loss": {name: together for name, (together, _) in found.items()},
                "own_bigram_loss": {name: alone for name, (_, alone) in found.items()},
            }
            write_json(stored, {"format": BASELINE_FORMAT, "version": VERSION, "losses": self.losses})

    @torch.no_grad()
    def __call__(self, model: Transformer) -> dict[str, object]:
        """Return losses by source, in nats a token, and how many weights are left.

        `validation_loss` is the model's, `bigram_loss` that of a table of all tokens trained on, `own_bigram_loss` that
        of a table of the source's tokens alone.
        """
        model.eval()
        loss = {
            name: sum(
                float(next_token_loss(model, part)) * len(part)
                for part in windows.to(model.logit_bias.device).split(16)
            )
            / len(windows)
            for name, windows in self.windows.items()
        }
        model.train()
        counted = count_nonzeros(model)
        return {
            "validation_loss": loss,
            **self.losses,
            "n_nonzero": counted.n_nonzero,
            "n_alive_neuron": counted.n_alive_neuron,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will take, before it runs."""

    n_parameter: int
    """Trainable entries, the bigram table included."""

    n_bigram: int
    """Entries of the bigram table."""

    n_nonzero: int
    """Nonzero entries at the end, without the bigram table."""

    n_step: int
    """Steps."""

    size_bytes: int
    """Memory of weights, gradients and Adam's moments, and the largest activations: an estimate."""

    seconds: float
    """Time of the training itself: three steps measured here on random tokens, times the number of steps."""

    def __str__(self) -> str:
        return (
            f"{self.n_parameter:,} parameters ({self.n_bigram:,} of them the bigram table), "
            f"{self.n_nonzero:,} nonzero at the end without it\n"
            f"{self.n_step:,} steps, about {self.size_bytes / 1e6:,.0f} MB of memory, "
            f"about {duration(self.seconds)} on this machine"
        )


def plan(config: TrainConfig, corpus: Corpus | Path | str) -> Plan:
    """Say what a run will take; writes nothing.

    Raises:
        ConfigError: The settings don't fit the corpus or each other.
        DeviceError: They need more memory than is free.
    """
    check_settings(config, corpus if isinstance(corpus, Corpus) else Corpus(corpus))
    check_memory(config, torch.device("cpu"))
    model = Transformer(config.model)
    optimizer = Optimizer(model, optimizer=config.optimizer, sparsity=config.sparsity, n_step=config.n_step)
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    sparse = {b.name: n_keep(sizes[b.name], b.density) for b in budgets(model, config.sparsity)}
    n_bigram = sizes.get("bigram", 0)
    tokens = torch.randint(config.model.n_vocab, (config.batch_size, config.context))
    seconds = []
    for step in (0, config.n_step // 2, config.n_step - 1):
        start = time.monotonic()
        loss_and_gradients(model, tokens)
        optimizer.step(step)
        seconds.append(time.monotonic() - start)
    return Plan(
        n_parameter=sum(sizes.values()),
        n_bigram=n_bigram,
        n_nonzero=sum((sizes | sparse).values()) - n_bigram,
        n_step=config.n_step,
        size_bytes=training_size_bytes(config),
        seconds=sorted(seconds)[1] * config.n_step,
    )


def _start(
    config: TrainConfig, corpus: Corpus, out: Path, device: torch.device
) -> tuple[Transformer, Optimizer, int, tuple[int, int]]:
    """Make a new model and optimizer, or those of the last checkpoint; the step to go on with, and steps skipped."""
    found = checkpoint.latest_checkpoint(out)
    if found is None:
        model = initial_model(config, corpus)
    else:
        model = checkpoint.load_model(found / checkpoint.MODEL_NAME, corpus.tokenizer)
        if model.config != config.model:
            raise FormatError(f"{found}: the checkpoint's model is not the one that config.json describes")
    model = model.to(device)
    optimizer = Optimizer(model, optimizer=config.optimizer, sparsity=config.sparsity, n_step=config.n_step)
    if found is None:
        return model, optimizer, 0, (0, 0)
    notes, state = checkpoint.load_state(found)
    optimizer.load_state(state)
    warn_of_threads(notes, found)
    n_skipped, n_in_a_row = notes.get("skipped", (0, 0))  # runs begun before steps could be skipped have none
    return model, optimizer, notes["step"], (n_skipped, n_in_a_row)


def warn_of_threads(notes: dict[str, Any], found: Path) -> None:
    """Warn where a checkpoint was written under another thread count than this process has."""
    if notes["n_thread"] != torch.get_num_threads():
        warnings.warn(
            f"{found} was written with {notes['n_thread']} threads, this is {torch.get_num_threads()}: "
            "the run goes on, but not bit for bit as it would have",
            stacklevel=4,
        )


@contextlib.contextmanager
def interrupt_between_steps() -> Iterator[list[int]]:
    """Collect Ctrl-C in a list, so that a step is never cut in half; a second one interrupts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)
