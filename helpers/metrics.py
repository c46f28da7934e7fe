"""History of a training, and Evaluation of a trained network.

Accuracies are in percent; confidences, probabilities and the calibration error are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

HISTORY_KEYS = (
    "epoch",                                    # from 1
    "train_loss", "train_accuracy",             # on augmented images, against the targets used, hard or soft
    "val_loss", "val_top1", "val_top5",         # None without a validation split
    "learning_rate",
    "seconds",                                  # of training so far
    "images_per_second",
    "image_size",                               # pixels
    "petaflops",                                # of training so far
    "peak_memory_mb")
CALIBRATION_BINS = 15
RELIABLE = 0.9          # share of right predictions at which a confidence counts as reliable
LEAST_RELIABLE = 20     # predictions that must reach it


def topk_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of images, in %, whose label is among the `k` largest logits (all of them when k > C).

    logits: float [N, C]; labels: int64 [N]. Raises ValueError if N is 0 or the shapes do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise ValueError(f"top-{k} accuracy needs logits [N, C] and labels [N], N at least 1; found "
                         f"{list(logits.shape)} and {list(labels.shape)}")
    hits = logits.topk(min(k, logits.shape[1]), dim=1).indices == labels[:, None]
    return 100 * hits.sum().item() / len(labels)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The number that divides logits, float [N, C], so that their cross entropy with `labels`, int64 [N], is the lowest
    (Guo et al. 2017, arXiv 1706.04599): from 0.05 to 20, by bisection, as cross entropy is convex in its inverse. 1
    where all are right, and none tells how sure is too sure."""
    if (logits.argmax(1) == labels).all():
        return 1.0
    logits, (low, high) = logits.double(), (0.05, 20.0)
    of_label = logits.gather(1, labels[:, None])[:, 0]
    for _ in range(50):
        scale = math.sqrt(low * high)
        slope = (((scale * logits).softmax(1) * logits).sum(1) - of_label).mean()
        low, high = (low, scale) if slope > 0 else (scale, high)
    return 1 / scale


class History:
    """The training record: `rows`, plain dicts with the keys of HISTORY_KEYS, one per epoch.

    `history["val_top1"]` is the column of that name, None where an epoch has no value. `stopped` is "" if training ran
    to its end, "early" if patience ran out, "interrupted" if somebody stopped it.
    """

    def __init__(self, rows: Sequence[dict] = (), stopped: str = ""):
        self.rows: list[dict] = []
        self.stopped = stopped
        for row in rows:
            self.append(**row)

    def append(self, **row) -> None:
        """Add a row; `epoch` defaults to the next one. Raises ValueError for an unknown key or a past epoch."""
        unknown = sorted(set(row) - set(HISTORY_KEYS))
        if unknown:
            raise ValueError(f"unknown history key {unknown[0]!r}; keys are {', '.join(HISTORY_KEYS)}")
        last = self.rows[-1]["epoch"] if self.rows else 0
        epoch = row.get("epoch", last + 1)
        if epoch <= last:
            raise ValueError(f"epoch={epoch} follows epoch {last}: epochs count up from 1")
        # NumPy and tensor scalars become floats, which JSON can write.
        plain = {key: value if value is None or isinstance(value, int) else float(value) for key, value in row.items()}
        self.rows.append({"epoch": epoch} | plain)

    def __getitem__(self, key: str) -> list:
        if key not in HISTORY_KEYS:
            raise KeyError(f"no history key {key!r}; keys are {', '.join(HISTORY_KEYS)}")
        return [row.get(key) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"History({len(self)} epochs, best_epoch={self.best_epoch}, stopped={self.stopped!r})"

    @property
    def best_top1(self) -> float | None:
        """Validation accuracy in % at `best_epoch`."""
        return None if self.best_epoch is None else self["val_top1"][self["epoch"].index(self.best_epoch)]

    @property
    def best_epoch(self) -> int | None:
        """The first epoch with the highest val_top1; None without validation."""
        validated = [row for row in self.rows
                     if row.get("val_top1") is not None and not math.isnan(row["val_top1"])]
        return max(validated, key=lambda row: row["val_top1"])["epoch"] if validated else None

    def to_list(self) -> list[dict]:
        """Copies of the rows, ready for JSON, without `stopped`."""
        return [dict(row) for row in self.rows]


class RunningMeans:
    """Mean loss and accuracy (%) of the epoch so far; numbers stay on the device until `read`."""

    def __init__(self, loss_sum: float = 0.0, correct: float = 0.0, count: int = 0):
        self.loss_sum, self.correct, self.count = loss_sum, correct, count
        self._unread = []

    def add(self, loss: Tensor, correct: Tensor, count: int) -> None:
        self._unread.append((loss, correct, count))

    def read(self) -> list[float]:
        """The losses of the steps since the last call, in one transfer from the device."""
        if not self._unread:
            return []
        losses, corrects, counts = zip(*self._unread)
        values = torch.stack([*losses, *corrects]).tolist()
        losses, corrects = values[:len(losses)], values[len(losses):]
        self.loss_sum += sum(loss * count for loss, count in zip(losses, counts))
        self.correct += sum(corrects)
        self.count += sum(counts)
        self._unread = []
        return losses

    @property
    def loss(self) -> float:
        return self.loss_sum / max(self.count, 1)

    @property
    def accuracy(self) -> float:
        return 100 * self.correct / max(self.count, 1)

    def state(self) -> dict:
        return {"loss_sum": self.loss_sum, "correct": self.correct, "count": self.count}


@dataclass(frozen=True)
class Calibration:
    """Predictions in equal-width bins of confidence (Guo et al. 2017, arXiv 1706.04599).

    edges: float [B+1]; count: int64 [B]; confidence, accuracy: float [B], means in [0, 1], NaN in empty bins.
    """

    edges: Tensor
    count: Tensor
    confidence: Tensor
    accuracy: Tensor


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The quality of a set of predictions; `Evaluation.from_logits` computes it. Tensors are on the CPU.

    With N images, C classes and S superclasses: labels, predictions: int64 [N]; confidences: float32 [N], the largest
    softmax value; probabilities: float32 [N, C]; confusion: int64 [C, C], true classes by predicted ones; loss: cross
    entropy without smoothing; top1, top5: %; superclass_of: int64 [C] or None.
    """

    labels: Tensor = field(repr=False)
    predictions: Tensor = field(repr=False)
    confidences: Tensor = field(repr=False)
    probabilities: Tensor = field(repr=False)
    confusion: Tensor = field(repr=False)
    loss: float
    top1: float
    top5: float
    class_names: tuple[str, ...] = field(repr=False)
    superclass_of: Tensor | None = field(default=None, repr=False)
    superclass_names: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor, class_names: Sequence[str],
                    superclass_of: Tensor | None = None, superclass_names: Sequence[str] = ()) -> Evaluation:
        """logits: float [N, C]; labels: int64 [N]; superclass_of: int64 [C]. Raises ValueError if shapes do not fit, N
        is 0, a label or superclass has no name, or a logit is not finite."""
        logits, labels = logits.detach().float().cpu(), labels.detach().long().cpu()
        if superclass_of is not None:
            superclass_of = torch.as_tensor(superclass_of).long().cpu()
        _check_predictions(logits, labels, class_names)
        _check_superclasses(len(class_names), superclass_of, superclass_names)
        probabilities = logits.softmax(dim=1)
        confidences, predictions = probabilities.max(dim=1)
        classes = len(class_names)
        pairs = torch.bincount(labels * classes + predictions, minlength=classes**2)
        return cls(labels=labels, predictions=predictions, confidences=confidences, probabilities=probabilities,
                   confusion=pairs.reshape(classes, classes), loss=F.cross_entropy(logits, labels).item(),
                   top1=topk_accuracy(logits, labels, 1), top5=topk_accuracy(logits, labels, 5),
                   class_names=tuple(class_names), superclass_of=superclass_of,
                   superclass_names=tuple(superclass_names))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def class_accuracy(self) -> Tensor:
        """float64 [C], %; NaN for a class without images."""
        return 100 * self.confusion.diagonal().double() / self.confusion.sum(dim=1)

    @property
    def _accuracies(self) -> Tensor:
        """Accuracies of the classes with images."""
        return self.class_accuracy[~self.class_accuracy.isnan()]

    @property
    def class_mean(self) -> float:
        return self._accuracies.mean().item()

    @property
    def class_std(self) -> float:
        """Population standard deviation over the classes."""
        return self._accuracies.std(correction=0).item()

    @property
    def class_min(self) -> float:
        return self._accuracies.min().item()

    @property
    def class_max(self) -> float:
        return self._accuracies.max().item()

    @property
    def worst_class(self) -> str:
        return self.class_names[self.class_accuracy.nan_to_num(math.inf).argmin()]

    @property
    def best_class(self) -> str:
        return self.class_names[self.class_accuracy.nan_to_num(-math.inf).argmax()]

    @cached_property
    def superclass_accuracy(self) -> Tensor | None:
        """float64 [S], %: share of each superclass's images predicted within it, NaN without images; None without
        superclasses, like `superclass_top1`."""
        if self.superclass_of is None:
            return None
        groups, true = len(self.superclass_names), self.superclass_of[self.labels]
        hits = true[true == self.superclass_of[self.predictions]]
        return 100 * torch.bincount(hits, minlength=groups).double() / torch.bincount(true, minlength=groups)

    @property
    def superclass_top1(self) -> float | None:
        """%: share of the images predicted within their superclass."""
        if self.superclass_of is None:
            return None
        hits = self.superclass_of[self.labels] == self.superclass_of[self.predictions]
        return 100 * hits.sum().item() / len(self)

    def most_confused_classes(self, n: int) -> list[tuple[int, int, int, float]]:
        """As `most_confused`, with class indices instead of names."""
        wrong = self.confusion.clone().fill_diagonal_(0)
        images = self.confusion.sum(dim=1)
        order = wrong.flatten().argsort(descending=True, stable=True)[:n].tolist()
        pairs = [divmod(place, len(self.class_names)) for place in order]
        return [(true, predicted, count, 100 * count / images[true].item())
                for true, predicted in pairs if (count := wrong[true, predicted].item()) > 0]

    def most_confused(self, n: int) -> list[tuple[str, str, int, float]]:
        """The `n` most frequent mistakes: (true class, predicted class, images, % of the true class's images)."""
        return [(self.class_names[true], self.class_names[predicted], count, share)
                for true, predicted, count, share in self.most_confused_classes(n)]

    def most_confident_errors(self, n: int) -> Tensor:
        """Indices of the wrong predictions, most confident first: int64 [at most n]."""
        wrong = (self.predictions != self.labels).nonzero()[:, 0]
        return wrong[self.confidences[wrong].argsort(descending=True, stable=True)][:n]

    @cached_property
    def calibration(self) -> Calibration:
        """The 15 bins of the reliability diagram; bin b holds confidences in (b/15, (b+1)/15]."""
        edges = torch.linspace(0, 1, CALIBRATION_BINS + 1)
        bins = torch.bucketize(self.confidences, edges[1:-1])
        count = torch.bincount(bins, minlength=CALIBRATION_BINS)
        confidence, accuracy = (torch.bincount(bins, weights=values.double(), minlength=CALIBRATION_BINS) / count
                                for values in (self.confidences, self.predictions == self.labels))
        return Calibration(edges, count, confidence, accuracy)

    @property
    def expected_calibration_error(self) -> float:
        """In [0, 1]: |accuracy - confidence| in each bin of `calibration`, weighted by its images."""
        bins = self.calibration
        gap = (bins.accuracy - bins.confidence).abs().nan_to_num(0.0)
        return ((gap * bins.count).sum() / bins.count.sum()).item()

    def reliable_confidence(self, target: float = RELIABLE, least: int = LEAST_RELIABLE) -> float | None:
        """The lowest confidence at which at least the share `target` of predictions is right; None if fewer than
        `least` images reach it.

        That share comes from isotonic regression, the best fit of rising steps (Zadrozny & Elkan 2002, doi
        10.1145/775047.775151), to these same images: expect slightly less on others.
        """
        confidences, place, count = self.confidences.unique(return_inverse=True, return_counts=True)
        correct = torch.bincount(place, weights=(self.predictions == self.labels).double())
        steps = []      # (lowest confidence, right, images); a step merges with the one before unless more often right
        for lowest, right, images in zip(confidences.tolist(), correct.tolist(), count.tolist()):
            while steps and steps[-1][1] * images >= right * steps[-1][2]:
                lowest, right_before, images_before = steps.pop()
                right, images = right + right_before, images + images_before
            steps.append((lowest, right, images))
        good = [(lowest, images) for lowest, right, images in steps if right >= target * images]
        return good[0][0] if sum(images for _, images in good) >= max(least, 1) else None

    def summary(self) -> dict:
        """Plain values for metrics.json; None means undefined."""
        numbers = ("loss", "top1", "top5", "superclass_top1", "class_mean", "class_std", "class_min", "class_max",
                   "worst_class", "best_class")
        return {
            "images": len(self), **{name: getattr(self, name) for name in numbers},
            "mean_confidence": self.confidences.mean().item(),
            "expected_calibration_error": self.expected_calibration_error,
            "confidence_for_90_percent": self.reliable_confidence(RELIABLE),
            "class_accuracy": dict(zip(self.class_names, _or_none(self.class_accuracy))),
            "superclass_accuracy": (None if self.superclass_accuracy is None else
                                    dict(zip(self.superclass_names, _or_none(self.superclass_accuracy)))),
            "calibration": {name: _or_none(getattr(self.calibration, name))
                            for name in ("edges", "count", "confidence", "accuracy")},
            "confusion": self.confusion.tolist(),
            "most_confused": [{"true": true, "predicted": predicted, "images": count, "percent": share}
                              for true, predicted, count, share in self.most_confused(20)]}


def _or_none(values: Tensor) -> list:
    """A list with None for NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _check_predictions(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
    if logits.ndim != 2 or labels.ndim != 1 or len(logits) != len(labels):
        raise ValueError(f"logits must be [N, C] and labels [N] with the same N; found {list(logits.shape)} and "
                         f"{list(labels.shape)}")
    if len(labels) == 0:
        raise ValueError("logits and labels are empty; an evaluation needs at least one image")
    classes = logits.shape[1]
    if len(class_names) != classes:
        raise ValueError(f"class_names holds {len(class_names)} names, but the logits have {classes} classes; "
                         "give one name per class")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= classes:
        raise ValueError(f"labels run from {low} to {high}, but must lie in 0..{classes - 1} for {classes} classes; "
                         "do the labels belong to this network?")
    if not logits.isfinite().all():
        wrong = int((~logits.isfinite()).any(dim=1).sum())
        raise ValueError(f"logits of {wrong} of {len(logits)} images are not finite: the network has diverged; "
                         "train with a lower learning_rate or set gradient_clip")


def _check_superclasses(classes: int, superclass_of: Tensor | None, superclass_names: Sequence[str]) -> None:
    if superclass_of is None:
        if len(superclass_names):
            raise ValueError(f"superclass_names holds {len(superclass_names)} names, but superclass_of is None; "
                             "give both or neither")
        return
    if superclass_of.shape != (classes,):
        raise ValueError(f"superclass_of must be [{classes}], one entry per class; found {list(superclass_of.shape)}")
    low, high = superclass_of.min().item(), superclass_of.max().item()
    if low < 0 or high >= len(superclass_names):
        raise ValueError(f"superclass_of runs from {low} to {high}, but superclass_names holds "
                         f"{len(superclass_names)} names; give one name per superclass")
