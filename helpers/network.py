"""TrainedNetwork: weights with all they need for use; load, save, predict."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoint
from .checkpoint import CheckpointError, take
from .config import TrainingConfig
from .data import DataError, ImageData
from .loader import BatchLoader
from .metrics import RELIABLE, Evaluation, fit_temperature
from .models import build_model, evaluating, model_stats
from .retired import NETWORK, RETIRED, refusals, without_retired
from .system import DTYPES, autocast, in_parts, memory_format, with_bar
from .text import did_you_mean

log = logging.getLogger("cifar100")

PREFIXES = ("module.", "_orig_mod.", "model.")      # of DataParallel, torch.compile and Lightning
EVALUATION_BATCH = 500      # images in a forward pass
_MAY_LACK = dict.fromkeys(("config", "test_results", "temperature", "reliable_confidence"))
PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"


class TrainedNetwork:
    """A network in evaluation mode with its class names, normalisation and results.

    Args:
        model: the network, on `device`.
        config: the settings it was trained with.
        precision: of its predictions: "fp32", "bf16" or "fp16".
        class_names, mean, std: of its training data; () and None if the weights lack them, until `adopt` adds them.
        note: a warning to display when it was not trained on the real CIFAR-100, else "".
        results: known test results, as `CIFAR100Pipeline.evaluate` returns them.
        temperature, reliable: see `temperature` and `reliable_confidence`.
        validation: a loader and its labels, to measure these two on first use.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig, device: torch.device, precision: str = "fp32", *,
                 class_names=(), mean=None, std=None, note: str = "", results: dict | None = None,
                 temperature: float | None = None, reliable: float | None = None,
                 validation: tuple[BatchLoader, Tensor] | None = None):
        self.model, self.config, self.device, self.precision = model.eval(), config, device, precision
        self.class_names, self.mean, self.std, self.note = tuple(class_names), mean, std, note
        self.results = results or {}
        self._temperature, self._reliable, self._validation = temperature, reliable, validation

    @classmethod
    def load(cls, path, config: TrainingConfig, device: torch.device, precision: str = "fp32") -> TrainedNetwork:
        """Load a checkpoint, this project's or the reference's, into the network that `config` describes. Raises
        CheckpointError when the file cannot be read or its weights do not fit."""
        return cls.from_state(checkpoint.load(path), config, device, precision, path)

    @classmethod
    def from_state(cls, state: dict, config: TrainingConfig, device: torch.device, precision: str = "fp32",
                   path="the checkpoint") -> TrainedNetwork:
        """As `load`, from the dict of `checkpoint.load`; messages call it `path`. Of the weights in a step_*.pt, takes
        those the run would evaluate, not those training continues from."""
        config_then = take(_MAY_LACK | state, "config", (dict, None), path) or {}
        gone = without_retired(config_then)[1]
        if faults := refusals({name: value for name, value in gone.items() if name in NETWORK}):
            raise CheckpointError(f"{path}: " + "; ".join(faults))
        model = build_model(**config.model_arguments())
        name = next((name for name in ("best_weights", "ema") if state.get(name) is not None), "model_state_dict")
        weights = take(state, name, {str: Tensor}, path)
        try:
            prefixes = load_fitting(model, weights)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: does not fit {config.model} with widths={config.widths} and num_classes="
                                  f"{config.num_classes}; set model, widths and num_classes to the checkpoint's\n"
                                  f"{error}") from error
        if prefixes or "under" in state:
            log.warning("%s: took the weights%s%s", path, f" under {state['under']!r}" if "under" in state else "",
                        f", without {' and '.join(prefixes)} before their names" if prefixes else "")
        known = ({"class_names": take(state, "classes", [str], path), "mean": take(state, "mean", [float], path),
                  "std": take(state, "std", [float], path), "note": take(state, "note", str, path)}
                 if "classes" in state else {})
        results, temperature, reliable = (take(_MAY_LACK | state, name, (kind, None), path) for name, kind in
                                          (("test_results", dict), ("temperature", float),
                                           ("reliable_confidence", float)))
        return cls(model.to(device, memory_format=memory_format(device)), config, device, precision, **known,
                   results=results, temperature=temperature, reliable=reliable)

    def save(self, path) -> Path:
        """Write weights, configuration and results as a checkpoint. `test_results` also has `test_acc` and
        `test_acc_top5`, the reference's names. Raises OSError."""
        results = dict(self.results)
        if "top1" in results:
            results |= {"test_acc": results["top1"], "test_acc_top5": results["top5"]}
        state = {"model_state_dict": self.model.state_dict(), "config": self.config.to_dict(), "test_results": results,
                 "model_stats": model_stats(self.model), "mean": list(self.mean), "std": list(self.std),
                 "classes": list(self.class_names), "note": self.note, "name": self.config.name,
                 "temperature": self.temperature, "reliable_confidence": self.reliable_confidence}
        return checkpoint.save_atomically(state, path)

    def adopt(self, data: ImageData) -> None:
        """Take class names and normalisation from `data` if the weights lack them."""
        if not self.class_names:
            self.class_names, self.note = data.class_names, data.note
            self.mean, self.std = data.channel_statistics()

    def check_classes(self, data: ImageData) -> None:
        """Raise DataError when the labels of `data` mean other classes than the network learned."""
        if self.class_names != tuple(data.class_names):
            raise DataError(f"the data from {data.source} hold other classes than the weights know, or in another "
                            "order; use the data that the weights were trained on")

    def loader(self, images: Tensor, labels: Tensor | None = None) -> BatchLoader:
        """Batches for the network from images, uint8 [N, 32, 32, 3]."""
        if self.mean is None:
            raise ValueError("these weights come without class names and normalisation; call adopt(data) first")
        labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
        return BatchLoader(images, labels, EVALUATION_BATCH, self.device, self.mean, self.std,
                           dtype=DTYPES[self.precision])

    def logits(self, images: Tensor | BatchLoader, mirrored: bool = False, progress: str = "none") -> Tensor:
        """Logits float32 [N, num_classes] on the CPU, of images uint8 [N, 32, 32, 3] or their loader; see `predict`."""
        loader = images if isinstance(images, BatchLoader) else self.loader(images)
        return predict(self.model, loader, self.precision, mirrored, progress)

    def most_probable(self, logits: Tensor, top: int = 5) -> list[tuple[str, float]]:
        """The `top` most probable classes of one image's logits, float [num_classes], as (name, probability)."""
        values, classes = self.probabilities(logits[None])[0].topk(min(top, len(logits)))
        return [(self.class_names[index], value) for index, value in zip(classes.tolist(), values.tolist())]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of the classes, float [N, num_classes], from logits: what a person should see."""
        return (logits / self.temperature).softmax(1)

    def class_index(self, name: str) -> int:
        """The index of the class `name`. Raises ValueError with the nearest name if there is none."""
        if name not in self.class_names:
            hint = did_you_mean(name, self.class_names)
            raise ValueError(f"class_name={name!r}: not a class of this network{hint}")
        return self.class_names.index(name)

    def evaluation(self, logits: Tensor, data: ImageData) -> Evaluation:
        """Evaluate the logits of the test images, divided by the temperature."""
        return Evaluation.from_logits(logits / self.temperature, data.test_labels, data.class_names, data.superclass_of,
                                      data.superclass_names)

    @property
    def temperature(self) -> float:
        """Divides the logits, so that confidences are as high as the share of right predictions: fitted to the
        validation images; of loaded weights, the value in their file. 1 if unknown."""
        if self._temperature is None and self._validation is not None:
            self._temperature = fit_temperature(*self._validated)
        return self._temperature or 1.0

    @property
    def reliable_confidence(self) -> float | None:
        """The lowest confidence at which the share RELIABLE of the validation images is classified right; of loaded
        weights, the value in their file. NaN if no confidence suffices; None if unknown, since the test split never
        replaces the validation split."""
        if self._reliable is None and self._validation is not None:
            logits, labels = self._validated
            evaluation = Evaluation.from_logits(logits / self.temperature, labels, self.class_names)
            found = evaluation.reliable_confidence(RELIABLE)
            self._reliable = float("nan") if found is None else found
        return self._reliable

    @cached_property
    def _validated(self) -> tuple[Tensor, Tensor]:
        """Logits and labels of the validation images."""
        loader, labels = self._validation
        return self.logits(loader), labels


def load_fitting(model: nn.Module, weights: dict) -> list[str]:
    """Load weights whose names, without PREFIXES, and shapes are the network's; return the prefixes taken off. Raises
    ValueError listing what is missing, over and of another shape."""
    wanted, found, over, taken = model.state_dict(), {}, [], []
    for name, tensor in weights.items():
        bare = name
        while prefix := next((prefix for prefix in PREFIXES if bare.startswith(prefix)), ""):
            bare = bare.removeprefix(prefix)
            taken += [prefix] if prefix not in taken else []
        if bare in wanted and bare not in found:
            found[bare] = tensor
        else:
            over.append(name)
    faults = [("missing", [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]),
              ("over", over),
              ("of another shape", [f"{name} {list(tensor.shape)} instead of {list(wanted[name].shape)}"
                                    for name, tensor in found.items() if tensor.shape != wanted[name].shape])]
    lines = [f"  {kind}: {', '.join(names[:10])}" + f" and {len(names) - 10} more" * (len(names) > 10)
             for kind, names in faults if names]
    if lines:
        raise ValueError("\n".join(lines))
    model.load_state_dict(found, strict=False)      # the norms' counters of batches may be missing
    return taken


def portable_settings(state: dict, path="the checkpoint") -> dict:
    """The configuration in a checkpoint without retired settings and those of the machine and session that wrote it;
    no folder either, which a file from elsewhere should not choose. Raises CheckpointError."""
    elsewhere = {"preset": None, "run_name": take(state, "name", str, path), "checkpoint_dir": None, "drive": False,
                 "resume": "auto", "device": "auto", "precision": None, "data_dir": None, "runs_dir": None}
    saved = take(state, "config", dict, path)
    return {name: value for name, value in saved.items() if name not in RETIRED} | elsewhere


def pretrained_path(name: str = "fast") -> Path:
    """The file of the project's weights `name`. Raises CheckpointError if there is none."""
    path = PRETRAINED / f"{name}.pt"
    if not path.is_file():
        names = sorted(other.stem for other in PRETRAINED.glob("*.pt"))
        raise CheckpointError(f"pretrained weights {name!r}: no such file in {PRETRAINED.name}/; there are "
                              f"{', '.join(names) or 'none'}")
    return path


@torch.no_grad()
def predict(model: nn.Module, loader: BatchLoader, precision: str = "fp32", mirrored: bool = False,
            progress: str = "none") -> Tensor:
    """Logits float32 [N, num_classes] on the CPU, in evaluation mode, of the images or of their mirror images."""
    def of(images: Tensor) -> Tensor:
        with autocast(loader.device, precision):
            return model(images.flip(3) if mirrored else images).float()

    outputs = []
    with evaluating(model):
        for images, _ in with_bar(loader.batches(), len(loader), "predictions", progress):
            outputs += in_parts(of, images)
    return torch.cat(outputs).cpu()
