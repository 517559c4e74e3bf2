"""Opens a checkout of the paper's release or of the replication, so that a benchmark can run its code beside ours.

Nothing of theirs is part of this project: a benchmark that compares takes the path of a checkout.
"""

import argparse
import contextlib
import importlib
import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from sparse_circuits.configs import ModelConfig
from sparse_circuits.formats import official
from sparse_circuits.model import Transformer

LOCATIONS = "attn_in,attn_out,mlp_in,mlp_out,mlp_neuron,attn_v,attn_k,attn_q"


def checkout_of(what: str, *names: str) -> Callable[[str], Path]:
    """Return the type of an argument: the folder of a checkout, which has all files of these names."""

    def checkout(given: str) -> Path:
        for name in names:
            if not (Path(given) / name).exists():
                raise argparse.ArgumentTypeError(f"{given}: no checkout of {what}; it has no {name}")
        return Path(given)

    return checkout


RELEASE = checkout_of("openai/circuit_sparsity", "circuit_sparsity/inference/gpt.py")
TRAINING = checkout_of(
    "openai/circuit_sparsity with its training script", "circuit_sparsity/inference/gpt.py", "circuit_sparsity/train.py"
)
REPLICATION = checkout_of("jacobcd52/sparse_pretrain_public", "src/pruning/trainer.py")


@contextlib.contextmanager
def importing_from(folder: Path, *stand_ins: str) -> Iterator[None]:
    """Import from a checkout; modules it names at its top but that aren't installed are stood in for by empty ones."""
    for name in stand_ins:
        try:
            importlib.import_module(name)
        except ImportError:
            module = sys.modules[name] = types.ModuleType(name)
            module.read_file_cached = None  # pyright: ignore[reportAttributeAccessIssue]
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.path.remove(str(folder))


def release(checkout: Path, module: str) -> ModuleType:
    """Import a module of the release, `inference.gpt` or `train`."""
    with importing_from(checkout, "blobfile", "tiktoken", "tiktoken.load", "tqdm"):
        return importlib.import_module(f"circuit_sparsity.{module}")


def released_model(checkout: Path, model: Transformer, *, recomputes: bool) -> Any:
    """Build the release's model with the weights of ours.

    Args:
        checkout: The release.
        model: Ours; added positions, RMSNorm, bigram table, as the release trains them.
        recomputes: Drop activations in the forward pass and compute them again in the backward pass, its default.
    """
    gpt = release(checkout, "inference.gpt")
    shape: ModelConfig = model.config
    config = gpt.GPTConfig(
        block_size=shape.n_ctx,
        vocab_size=shape.n_vocab,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        d_head=shape.d_head,
        d_model=shape.d_model,
        d_mlp=shape.d_mlp,
        rms_norm=True,
        activation_type="gelu",
        tied_unembed=False,
        afrac=shape.act_density,
        afrac_loctypes=LOCATIONS,
        enable_bigram_table=True,
        learnable_bigram_table=True,
        sink=shape.attention_sink,
        grad_checkpointing=recomputes,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = gpt.GPT(config)
    names = official.parameter_names(shape)
    state = model.state_dict()
    theirs.load_state_dict({names[name]: state[name] for name in state if name in names}, strict=False)
    return theirs


def released_step(
    train: ModuleType, model: Any, adam: torch.optim.Adam, tokens: torch.Tensor, how: dict
) -> torch.Tensor:
    """Take one step as the release's loop does, in float32: its model, its top-k, and what stands between them.

    Args:
        train: Its training module.
        model: Its model.
        adam: Fused Adam over all its parameters.
        tokens: (batch, pos).
        how: `rate`, and the keyword arguments of its projection.
    """
    rate, arguments = how["rate"], {k: v for k, v in how.items() if k != "rate"}
    parameters = list(model.parameters())
    adam.param_groups[0]["lr"] = rate
    adam.zero_grad()
    with torch.autocast(tokens.device.type, enabled=tokens.device.type == "cuda", dtype=torch.float16):
        logits = model(tokens, include_resid_mid=True)[0]
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
    loss.backward()
    with torch.no_grad():
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1e10)
        rms = norm / sum(p.numel() for p in parameters) ** 0.5
        for p in parameters:
            p.grad.data /= rms + 1e-5  # pyright: ignore[reportOptionalMemberAccess]
    adam.step()
    train.apply_topk_(model, **arguments)
    for p in parameters:
        if p.ndim > 1 and p is not model.bigram_table:
            p.data -= 0.1 * rate * p.data
    return loss.detach()
