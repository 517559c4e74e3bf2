"""The kernels' definitions, in plain PyTorch."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.kernels.packed import PackedWeight


def top_k_mask(x: Float[Tensor, "*batch channel"], n_keep: int) -> Bool[Tensor, "*batch channel"]:
    """Mark the `n_keep` entries of largest magnitude in each vector.

    Exactly `n_keep` are marked: ties go to the lower index, zeros count as entries, NaN ranks above infinity.

    Args:
        x: Vectors along the last axis.
        n_keep: Entries to keep in each, in [0, channel].

    Raises:
        ValueError: `n_keep` is outside its range.
    """
    magnitude = x.detach().abs()
    # A sort puts NaN after infinity; stable, so that equal magnitudes stay in their order.
    order = magnitude.argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(x, dtype=torch.bool)
    return keep.scatter_(-1, order[..., :n_keep], True)


def abs_topk(x: Float[Tensor, "*batch channel"], n_keep: int) -> Float[Tensor, "*batch channel"]:
    """Keep the `n_keep` entries of largest magnitude in each vector, set the others to zero.

    The gradient of a kept entry passes, kept zeros included; that of the others is zero.

    Args:
        x: Vectors along the last axis.
        n_keep: Entries to keep in each, in [0, channel]; ties go to the lower index, NaN ranks above infinity.

    Source: paper section 2.1, AbsTopK.
    """
    return torch.where(top_k_mask(x, n_keep), x, 0.0)


def gated_topk(
    x: Float[Tensor, "batch pos channel"],
    gate: Float[Tensor, "run channel"],
    value: Float[Tensor, "#run channel"],
    n_keep: int,
) -> Float[Tensor, "batch pos channel"]:
    """Thin vectors out, then let channels through or set them to a value: gate · abs_topk(x) + (1 − gate) · value.

    A gate is 0 or 1; its gradient is that of this line. What is not finite behind a closed gate may be left out, or may
    make NaN.

    Args:
        x: Runs one after the other along `batch`, equally many rows each.
        gate: For each run, which channels pass.
        value: What the others are set to, one for each run or one for all.
        n_keep: See `abs_topk`.
    """
    runs = abs_topk(x, n_keep).unflatten(0, (len(gate), -1))  # (run, batch of a run, pos, channel)
    gate, value = gate[:, None, None], value[:, None, None]
    return (gate * runs + (1 - gate) * value).flatten(0, 1)


def rms_norm(
    x: Float[Tensor, "*batch channel"], gain: Float[Tensor, " channel"], eps: float
) -> tuple[Float[Tensor, "*batch channel"], Float[Tensor, "*batch 1"]]:
    """Scale each vector to unit mean square, then by the gain; return that, and each vector's scale.

    Args:
        x: Vectors along the last axis.
        gain: One a channel.
        eps: Added to the mean square.
    """
    scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return x * scale * gain, scale


def linear(
    x: Float[Tensor, "*batch source"], weight: Float[Tensor, "target source"], bias: Float[Tensor, " target"] | None
) -> Float[Tensor, "*batch target"]:
    """Map vectors by a whole weight: x @ weight.T + bias.

    What is not finite in a weight may be left out where `x` is zero, or may make NaN; so may it where a gradient is.
    """
    return F.linear(x, weight, bias)


def linear_around(
    x: Float[Tensor, "batch pos source"],
    weight: Float[Tensor, "target source"],
    bias: Float[Tensor, " target"] | None,
    around: Float[Tensor, "run source"],
) -> Float[Tensor, "batch pos target"]:
    """Map vectors by a weight, x @ weight.T + bias.

    Args:
        x: Runs one after the other along `batch`, equally many rows each.
        weight: Target by source.
        bias: One a target, or none.
        around: What most channels of a run's vectors are, such as the values behind closed gates. It says where work
            can be saved and changes nothing else: the product is that of x − around, plus that of around.
    """
    return F.linear(x, weight, bias)


def attention_pattern(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    sink: Float[Tensor, " head"] | None,
) -> Float[Tensor, "batch head query pos"]:
    """Return how much each query attends to each position; what a sink takes is missing from a row's sum.

    The queries are the last `query` of the `pos` positions; each sees itself and what came before.

    Args:
        q: Queries.
        k: Keys.
        sink: Logit of a slot that holds nothing, one a head, not scaled; None for no slot.
    """
    n_query, n_pos = q.shape[-2], k.shape[-2]
    score = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5  # (batch, head, query, pos)
    position = torch.arange(n_pos, device=q.device)
    is_seen = position <= position[n_pos - n_query :, None]  # (query, pos)
    return softmax_with_sink(score.masked_fill(~is_seen, -torch.inf), sink)


def softmax_with_sink(
    score: Float[Tensor, "batch head query pos"], sink: Float[Tensor, " head"] | None
) -> Float[Tensor, "batch head query pos"]:
    """Normalise scores over positions and, where there is one, the sink."""
    if sink is None:
        return score.softmax(-1)
    slot = sink[:, None, None].expand(*score.shape[:-1], 1)  # (batch, head, query, 1)
    return torch.cat((score, slot.to(score.dtype)), -1).softmax(-1)[..., :-1]


def sink_attention(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_head"],
    sink: Float[Tensor, " head"] | None,
) -> Float[Tensor, "batch head query d_head"]:
    """Mix the values of earlier positions; a share of each query may go to a sink, whose value is zero.

    Args:
        q: Queries; the last `query` of the `pos` positions. Scores are scaled by d_head to the power −1/2.
        k: Keys.
        v: Values.
        sink: The sink's logit, one a head; None for plain causal attention.
    """
    return attention_pattern(q, k, sink) @ v


def shared_attention(
    q: Float[Tensor, "token head d_head"],
    k: Float[Tensor, "token head d_head"],
    v: Float[Tensor, "token head d_head"],
    sink: Float[Tensor, " head"] | None,
    spans: Int[Tensor, "pair 4"],
) -> Float[Tensor, "token head d_head"]:
    """Mix values causally in pairs of prompts that begin alike, whose common tokens stand once.

    Args:
        q: Queries of all tokens.
        k: Keys.
        v: Values.
        sink: See `sink_attention`.
        spans: For each pair, where the first prompt starts, how many tokens both begin with, where the rest of the
            second starts, and the tokens of either. Tokens of no prompt get zeros.
    """
    out = torch.zeros_like(q)
    for first, n_alike, rest, length in spans.tolist():
        whole = torch.arange(first, first + length)
        other = torch.cat((whole[:n_alike], torch.arange(rest, rest + length - n_alike)))
        for places, own in ((whole, whole), (other, other[n_alike:])):
            heads = [x[places].transpose(0, 1)[None] for x in (q, k, v)]  # (1, head, pos, d_head)
            mixed = sink_attention(heads[0], heads[1], heads[2], sink)[0].transpose(0, 1)
            out = out.index_copy(0, own, mixed[length - len(own) :])
    return out


def last_attention(
    q: Float[Tensor, "prompt head d_head"],
    k: Float[Tensor, "token head d_head"],
    v: Float[Tensor, "token head d_head"],
    sink: Float[Tensor, " head"] | None,
    spans: Int[Tensor, "prompt 4"],
) -> Float[Tensor, "prompt head d_head"]:
    """Mix the values of each prompt's tokens for its last query alone.

    Args:
        q: One query a prompt, at its last token.
        k: Keys of all tokens.
        v: Values.
        sink: See `sink_attention`.
        spans: For each prompt, where it starts, how many of its tokens stand there, where the rest stands, and how many
            they are in all, at least 1. Prompts may have tokens in common.
    """
    start, n_first, rest, length = spans[:, :, None].unbind(1)  # (prompt, 1) each
    j = torch.arange(int(length.max()), device=q.device)
    places = torch.where(j < n_first, start + j, rest + j - n_first).where(j < length, start)  # (prompt, pos)
    score = torch.einsum("phd,pjhd->phj", q, k[places]) * q.shape[-1] ** -0.5
    share = softmax_with_sink(score.masked_fill((j >= length)[:, None], -torch.inf)[:, :, None], sink)[:, :, 0]
    return torch.einsum("phj,pjhd->phd", share, v[places])


def cross_entropy(logits: Float[Tensor, "row vocab"], target: Int[Tensor, " row"]) -> Float[Tensor, ""]:
    """Return the loss of predicting the targets, −ln softmax(logits)[target], in nats, averaged over rows.

    Args:
        logits: One row a prediction.
        target: Tokens in [0, vocab).

    Raises:
        IndexError: A target is outside its range.
    """
    return F.cross_entropy(logits, target, ignore_index=torch.iinfo(target.dtype).min)  # by default −100 is left out


def keep_largest_(weight: Float[Tensor, "..."], n_keep: int, *, n_alive: int = 0, neuron_axis: int = 0) -> None:
    """Zero, in place, all but the `n_keep` entries of largest magnitude.

    Args:
        weight: Any shape; ranked as one flat vector, ties to the lower index.
        n_keep: Entries that survive, in [0, weight.numel()].
        n_alive: Of each neuron so many of its largest entries survive first, whatever their size, inside `n_keep`; they
            use it up even where they are zero. At most the entries that a neuron has; 0 protects none.
        neuron_axis: The axis whose entries are the neurons, 0 for rows and 1 for columns; `weight` is then a matrix.

    Raises:
        ValueError: A number is outside its range, or the neurons' entries exceed `n_keep`.
    """
    if n_alive == 0:
        weight.masked_fill_(~top_k_mask(weight.flatten(), n_keep).view(weight.shape), 0.0)
        return
    by_neuron = weight if neuron_axis == 0 else weight.T
    protected = top_k_mask(by_neuron, n_alive)
    is_free = ~(protected if neuron_axis == 0 else protected.T)
    free = weight[is_free]  # in the order of their flat places
    weight[is_free] = torch.where(top_k_mask(free, n_keep - int(protected.sum())), free, 0.0)


def packed_rows(weight: PackedWeight, chosen: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch source"]:
    """Return some rows of a packed weight, with their zeros.

    Args:
        weight: The weight.
        chosen: Rows, each in [0, target).

    Raises:
        IndexError: There is no such row.
    """
    flat = chosen.flatten()
    if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < weight.shape[0]:
        raise IndexError(f"rows from {int(flat.min())} to {int(flat.max())} of a weight that has {weight.shape[0]}")
    start, count = weight.offsets[flat], weight.offsets.diff()[flat]
    target = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), count)
    first = torch.repeat_interleave(start - count.cumsum(0) + count, count)
    place = first + torch.arange(len(target), device=flat.device)
    found = weight.values.new_zeros(len(flat), weight.shape[1])
    found[target, weight.columns[place].long()] = weight.values[place]
    return found.view(*chosen.shape, weight.shape[1])


def packed_linear(
    x: Float[Tensor, "*batch source"],
    weight: PackedWeight,
    bias: Float[Tensor, " target"] | None,
    dense: Float[Tensor, "target source"] | None,
) -> Float[Tensor, "*batch target"]:
    """Map vectors by a packed weight: out = x @ weight.T + bias.

    An entry that is not stored multiplies nothing, be the input infinite or NaN.

    Args:
        x: Vectors along the last axis.
        weight: The nonzeros; no gradient goes to them.
        bias: Added to each result; None for none.
        dense: The same weight with its zeros, if all its entries shall get their gradient, those of zeros included.
    """
    product = x[..., weight.columns.long()] * weight.values  # (batch, nonzero)
    out = x.new_zeros(*x.shape[:-1], weight.shape[0]).index_add(-1, weight.indices(), product)
    if dense is not None:
        out = out + _GradientOnly.apply(x, dense)
    return out if bias is None else out + bias


class _GradientOnly(torch.autograd.Function):
    """Zero, with the gradient of x @ dense.T for `dense` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dense: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.new_zeros(*x.shape[:-1], dense.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        return None, grads[0].reshape(-1, grads[0].shape[-1]).T @ x.reshape(-1, x.shape[-1])
