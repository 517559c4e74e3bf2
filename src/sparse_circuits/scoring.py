"""What a model or circuit answers on a task: the logit difference, and loss, accuracy and calibration made from it."""

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.model import Transformer
from sparse_circuits.shared_prefixes import SharedPrefixes
from sparse_circuits.tasks.pairs import Pairs

CHANCE = 0.6931471805599453
"""Task loss of a coin flip: ln 2 nats."""

MAX_SCALE = 3.0
"""Largest scale that a calibration may have; beyond it, differences too small to mean anything become answers."""

MIN_SCALE = 1e-3
"""Smallest: a scale is positive, so that answers can't be flipped for free."""


MOST_LEFT = 0.9
"""Share of the tokens that sharing has to leave at most: laying prompts side by side takes time, too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passage:
    """Pairs on their way through a model: as one row of tokens where that is the same, else prompt beside prompt."""

    model: Transformer
    """With whatever edits are in force."""

    pairs: Pairs
    """The prompts."""

    prompts: SharedPrefixes | None
    """Where each prompt stands in the rows, if what the sides of a pair share stands once."""

    @classmethod
    def of(cls, model: Transformer, pairs: Pairs, *, n_group: int = 1) -> "Passage":
        """Begin one.

        Args:
            model: With whatever edits are in force.
            pairs: Prompts.
            n_group: How many groups of as many pairs, one after the other, gates tell apart.
        """
        prompts = pairs.shared(n_group) if model.can_share_prefixes() and pairs.tokens.device.type == "cpu" else None
        if prompts is not None and prompts.tokens.numel() > MOST_LEFT * pairs.tokens.numel():
            prompts = None
        return cls(model=model, pairs=pairs, prompts=prompts)

    def embed(self) -> Float[Tensor, "row token d_model"]:
        """Return the stream before the first sublayer."""
        if self.prompts is None:
            return self.model.embed(self.pairs.tokens.flatten(0, 1))
        return self.model.embed(self.prompts.tokens, position=self.prompts.position)

    def run(
        self, x: Float[Tensor, "row token d_model"], start: int, stop: int | None = None, *, n_run: int = 1
    ) -> Float[Tensor, "row token d_model"]:
        """Run sublayers, with the prompts `n_run` times one after the other; see `Transformer.run`."""
        if self.prompts is None:
            return self.model.run(x, start, stop, at=self._at.repeat(n_run))
        return self.model.run(x, start, stop, prompts=self.prompts.repeat(n_run))

    def difference(self, x: Float[Tensor, "row token d_model"], *, n_run: int = 1) -> Float[Tensor, "run pair 2"]:
        """Return logit(answer of side 0) − logit(answer of side 1) after each prompt, from the stream at the end."""
        tokens, answers = self.pairs.tokens.flatten(0, 1), self.pairs.answers.repeat_interleave(2, 0)
        last = x if self.prompts is None else x.flatten(0, 1)[:, None]  # (run · pair · 2, 1, d_model)
        at, vocab = self._at.repeat(n_run), answers.repeat(n_run, 1)
        logits = self.model.unembed(last, tokens.repeat(n_run, 1), at=at, vocab=vocab)
        return (logits[:, 0, 0] - logits[:, 0, 1]).unflatten(0, (n_run, len(self.pairs), 2))

    @property
    def _at(self) -> Int[Tensor, " prompt"]:
        return (self.pairs.length - 1).repeat_interleave(2)


def logit_difference(
    model: Transformer, pairs: Pairs, *, n_run: int = 1, n_group: int = 1
) -> Float[Tensor, "run pair 2"]:
    """Return logit(answer of side 0) − logit(answer of side 1) after each prompt, in nats.

    Args:
        model: With whatever edits are in force.
        pairs: Prompts.
        n_run: How many masks are applied side by side; all see the same prompts.
        n_group: How many groups of as many pairs, one after the other, masks tell apart as well.
    """
    passage = Passage.of(model, pairs, n_group=n_group)
    return passage.difference(passage.run(passage.embed().repeat(n_run, 1, 1), 0, n_run=n_run), n_run=n_run)


@torch.no_grad()
def all_logit_differences(
    model: Transformer, pairs: Pairs, *, n_run: int = 1, n_row: int = 512
) -> Float[Tensor, "run pair 2"]:
    """Return `logit_difference` of many pairs, in batches of alike length and at most `n_row` prompts."""
    out = torch.empty(n_run, len(pairs), 2)
    for index in pairs.length.argsort(descending=True, stable=True).split(max(1, n_row // (2 * n_run))):
        out[:, index] = logit_difference(model, pairs.take(index), n_run=n_run)
    return out


def pair_loss(difference: Float[Tensor, "*run pair 2"]) -> Float[Tensor, "*run pair"]:
    """Return each pair's loss in nats: binary over the two answers, averaged over the two sides."""
    return (F.softplus(-difference[..., 0]) + F.softplus(difference[..., 1])) / 2


def task_loss(difference: Float[Tensor, "*run pair 2"]) -> Float[Tensor, "*run"]:
    """Return the task loss in nats, averaged over pairs; chance is ln 2 = 0.693.

    Source: paper section 2.2; the release stores the sum over the two sides.
    """
    return pair_loss(difference).mean(-1)


def match_loss(difference: Float[Tensor, "*run pair 2"], wanted: Float[Tensor, "pair 2"]) -> Float[Tensor, "*run"]:
    """Return how far answers are from the wanted ones: KL(wanted ‖ given) over the two answers, nats a prompt.

    Zero exactly where the differences agree, whatever the labels; a rule that the model does not follow has no fit.

    Source: ours; the paper prunes to the labels.
    """
    return match_losses(difference, wanted).mean(-1)


def match_losses(
    difference: Float[Tensor, "*run pair 2"], wanted: Float[Tensor, "pair 2"]
) -> Float[Tensor, "*run pair"]:
    """Return what each pair contributes to `match_loss`."""
    p = torch.sigmoid(wanted)
    entropy = F.softplus(wanted) - p * wanted
    return (F.softplus(difference) - p * difference - entropy).mean(-1)


def r_squared(difference: Float[Tensor, "pair 2"], model: Float[Tensor, "pair 2"]) -> float:
    """Return the share of the variance of the model's differences that a line through these explains, in [0, 1]."""
    x, y = (d.flatten().double() - d.double().mean() for d in (difference, model))
    spread = float(x.square().sum() * y.square().sum())
    return float((x * y).sum().square()) / spread if spread else 0.0


def accuracy(difference: Float[Tensor, "*run pair 2"]) -> Float[Tensor, "*run"]:
    """Return the share of prompts whose right answer has the larger logit, in [0, 1]; a tie is half right."""
    right = torch.stack((difference[..., 0], -difference[..., 1]), -1)
    return ((right > 0).double() + 0.5 * (right == 0).double()).mean((-1, -2))


def paired_auroc(difference: Float[Tensor, "*run pair 2"]) -> Float[Tensor, "*run"]:
    """Return how often the logit difference ranks side 0 of a pair above its own side 1; 0.5 is no information."""
    first, second = difference[..., 0], difference[..., 1]
    return ((first > second).double() + 0.5 * (first == second).double()).mean(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """scale · difference + shift; undoes what cutting does to the size and the balance of the answers."""

    scale: float = 1.0
    """Positive."""

    shift: float = 0.0
    """Nats, towards side 0."""

    def __call__(self, difference: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Apply it."""
        return self.scale * difference + self.shift


def fit_calibrations(difference: Float[Tensor, "run pair 2"], *, may_shift: bool) -> Float[Tensor, "run 2"]:
    """Return the scale and shift that minimise each run's task loss.

    The loss is convex in both; Newton's method with a small ridge, then the scale is held within
    [`MIN_SCALE`, `MAX_SCALE`] and the shift fitted again.

    Args:
        difference: Uncalibrated differences.
        may_shift: Whether a shift has a meaning: not where answers vary from pair to pair.

    Source: paper appendix A.2 (scale and shift of the logits, by LBFGS); on two answers only these two numbers matter.
    """
    x = difference.double().flatten(1)  # (run, prompt)
    # Newton's steps are bounded, so differences are brought to mean 0 and RMS 1 first.
    centre = x.mean(1) * may_shift
    width = (x - centre[:, None]).square().mean(1).sqrt().clamp(min=1e-9)
    x = (x - centre[:, None]) / width[:, None]
    sign = torch.tensor([1.0, -1.0], dtype=torch.double).repeat(difference.shape[1])  # (prompt,)
    scale, shift = torch.ones(len(x), dtype=torch.double), torch.zeros(len(x), dtype=torch.double)
    for is_scale_fixed in (False, True):
        for _ in range(30):
            logit = (scale[:, None] * x + shift[:, None]) * sign
            residual = -torch.sigmoid(-logit) * sign  # derivative by the calibrated difference
            curvature = torch.sigmoid(logit) * torch.sigmoid(-logit)
            grad = torch.stack(((residual * x).mean(1), residual.mean(1)), -1)  # (run, 2)
            cross = (curvature * x).mean(1)
            rows = ((curvature * x * x).mean(1), cross, cross, curvature.mean(1))
            hessian = torch.stack(rows, -1).unflatten(-1, (2, 2))
            free = torch.tensor([not is_scale_fixed, may_shift], dtype=torch.double)
            hessian = hessian * free * free[:, None] + torch.diag(1e-4 * free + (1 - free))
            step = torch.linalg.solve(hessian, grad * free).clamp(-1, 1)
            before, scale, shift = scale, scale - step[:, 0], shift - step[:, 1]
            held = torch.minimum(torch.maximum(scale, MIN_SCALE * width), MAX_SCALE * width)
            moved = torch.stack(((held - before).abs(), step[:, 1].abs()))
            scale = held
            if float(moved.max()) < 1e-9:
                break
    scale = scale / width
    return torch.stack((scale, shift - scale * centre), -1).float()


def calibrated(
    difference: Float[Tensor, "run pair 2"], scale_and_shift: Float[Tensor, "run 2"]
) -> Float[Tensor, "run pair 2"]:
    """Apply each run's scale and shift."""
    return difference * scale_and_shift[:, 0, None, None] + scale_and_shift[:, 1, None, None]


def fit_calibration(difference: Float[Tensor, "pair 2"], *, may_shift: bool) -> Calibration:
    """Return the calibration that minimises one run's task loss."""
    scale, shift = fit_calibrations(difference[None], may_shift=may_shift)[0].tolist()
    return Calibration(scale=scale, shift=shift)
