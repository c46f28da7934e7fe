"""CIFAR100Pipeline: data, model, training, benchmarks and plots of a CIFAR-100 CNN in one object.

    from cifar100_pipeline import CIFAR100Pipeline
    pipeline = CIFAR100Pipeline.from_preset("demo", epochs=3)
    model, metrics, results = pipeline.run()
"""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import logging
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from helpers import checkpoint
from helpers.augment import augment
from helpers.checkpoint import CheckpointError, NotSaved
from helpers.config import ConfigError, TrainingConfig, on_top, preset_names
from helpers.data import DataError, ImageData, load_cifar100
from helpers.files import replacing
from helpers.image_files import network_input
from helpers.lesson import explain, plots, speed, widgets
from helpers.lesson.lr_range import lr_range_test
from helpers.lesson.own_picture import answer, attention, look_at
from helpers.lesson.runs import finished_runs, joint_note, published_beside, runs_text, write_metrics
from helpers.locks import claim, why_read_only
from helpers.logs import forget_epochs, log_to
from helpers.metrics import Evaluation, History
from helpers.models import CIFAR100CNN, FlipCNN, describe_model, layer_table
from helpers.network import TrainedNetwork, pretrained_path, portable_settings
from helpers.notebook_settings import notebook_settings
from helpers.system import SystemInfo, lies_on_drive, mount_drive, pick_device, pick_precision, progress_style
from helpers.text import layers_text, readable, results_text
from helpers.trainer import Trainer, TrainingDiverged

__all__ = ["CIFAR100CNN", "CIFAR100Pipeline", "CheckpointError", "ConfigError", "DataError", "Evaluation", "FlipCNN",
           "History", "TrainedNetwork", "Trainer", "TrainingConfig", "TrainingDiverged", "describe_model",
           "preset_names", "train_cifar100"]

log = logging.getLogger("cifar100")


class CIFAR100Pipeline:
    """One training run, from the data to the figures.

    Call the steps one by one, as the notebook does; a step runs the earlier ones it needs, except training. Figures are
    returned and also saved in `run_dir/figures`; one that fails is a warning and None. Without a `config`,
    TrainingConfig's defaults apply: the 150-epoch reference recipe. With `drive=True`, or a folder on Google Drive,
    this mounts Drive; raises ValueError if it cannot.
    """

    def __init__(self, config: TrainingConfig | None = None):
        self.config = config or TrainingConfig()
        folders = (self.config.data_dir, self.config.runs_dir, self.config.checkpoint_dir)
        if self.config.drive or any(lies_on_drive(folder) for folder in folders if folder):
            mount_drive()       # before anything is written there: that would create a plain folder
        self.device = pick_device(self.config.device)
        self.precision = pick_precision(self.device, self.config.mixed_precision, self.config.precision)
        self.run_dir = self.config.run_dir
        self.system = SystemInfo.of(self.device, self.precision)
        self.data: ImageData | None = None
        self.trainer: Trainer | None = None
        self.history = History()
        self.speeds: dict = {}      # benchmark results, for metrics.json
        self._has_saved = False     # has a Trainer that was interrupted written a checkpoint to continue from?
        self._read_only: OSError | None = None      # why the run's folder may only be looked at
        self._unwritten: dict[Path, str] = {}       # files that could not be written, and why
        self._use(None)

    @classmethod
    def from_preset(cls, name: str, **overrides) -> CIFAR100Pipeline:
        """The preset `name`, a file in configs/experiments, with `overrides`. Raises ConfigError."""
        return cls(TrainingConfig.from_preset(name, **overrides))

    @classmethod
    def from_notebook(cls, namespace: dict) -> CIFAR100Pipeline:
        """The settings of a notebook's parameter cells; `namespace` is its `globals()`. Raises ConfigError."""
        return cls(TrainingConfig.from_settings(notebook_settings(namespace), "the notebook's parameters"))

    @classmethod
    def from_checkpoint(cls, path, **overrides) -> CIFAR100Pipeline:
        """A pipeline with the network and weights of a checkpoint, ready to evaluate. Raises CheckpointError if the
        file holds no configuration of this project; `load_weights` reads bare weights."""
        state = checkpoint.load(path)
        if "name" not in state:
            raise CheckpointError(f"{path}: holds weights but no configuration of this project; make a pipeline with "
                                  "the network's sizes and call pipeline.load_weights(path)")
        pipeline = cls(TrainingConfig.from_settings(on_top(overrides, portable_settings(state, path)), str(path)))
        pipeline._use(TrainedNetwork.from_state(state, pipeline.config, pipeline.device, pipeline.precision, path))
        return pipeline

    @classmethod
    def from_pretrained(cls, name: str = "fast", **overrides) -> CIFAR100Pipeline:
        """A pipeline with the trained weights pretrained/`name`.pt, ready to evaluate. Raises CheckpointError."""
        return cls.from_checkpoint(pretrained_path(name), **({"run_name": f"pretrained-{name}"} | overrides))

    # Look ------------------------------------------------------------------------------------------------------

    def check_system(self) -> SystemInfo:
        """Print and return the machine, and the device and precision that training will use."""
        print(self.system)
        return self.system

    def prepare_data(self) -> ImageData:
        """Load the images once; print and return them. Raises DataError."""
        if self.data is None:
            self.data = load_cifar100(self.config)
            print(self.data)
        if self.network is not None:
            self.network.adopt(self.data)
        return self.data

    def show_samples(self) -> Figure | None:
        """One training image of each class, by superclass."""
        data = self.prepare_data()
        return self._keep("samples", plots.sample_grid, data.train_images, data.train_labels, data.class_names,
                          data.superclass_of, data.superclass_names, note=data.note)

    def show_augmentation(self, images: int = 5, draws: int = 8) -> Figure | None:
        """A few training images beside random draws of the training's augmentation."""
        data, loader = self.prepare_data(), self.build_trainer().loader
        chosen = torch.linspace(0, len(data.train_images) - 1, images + 2).long()[1:-1]
        originals = data.train_images[chosen].to(self.device)
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        augmented = augment(originals.repeat_interleave(draws, 0), loader.augmentation, generator)
        names = [data.class_names[label] for label in data.train_labels[chosen]]
        return self._keep("augmentation", plots.augmentation_preview, originals.cpu(),
                          augmented.unflatten(0, (images, draws)).cpu(), names, note=data.note)

    def build_model(self) -> nn.Module:
        """The network, on the device: loaded or trained, else new or resumed."""
        return self.build_trainer().model if self.network is None else self.network.model

    def build_trainer(self, config: TrainingConfig | None = None) -> Trainer:
        """The Trainer, at the checkpoint to continue from, if any; only to look at while another process has the run's
        folder or where nothing can be written. Raises CheckpointError."""
        if self.trainer is None:
            data = self.prepare_data()
            self._read_only = why_read_only(self.run_dir, self.checkpoint_dir)
            self._log(progress_style(self.config.progress))
            if self._read_only:
                log.warning("%s", self._read_only)
            config = config or self.config
            if self.network is None:        # else they are those of whoever trained it
                self._warn_of(config)
            self.trainer = Trainer(config, data, self.checkpoint_dir)
            if self.network is None:
                self.history, self.precision = self.trainer.history, self.trainer.precision
        return self.trainer

    def _log(self, style: str) -> None:
        """Log to the screen, and to the run's file unless that may only be looked at."""
        log_to(None if self._read_only else self.run_dir / "train.log", style)

    def _warn_of(self, config: TrainingConfig) -> None:
        """Warn of settings that are probably a mistake."""
        for name, need in config.idle_settings().items():
            log.warning("%s has no effect here: it needs %s", name, need)
        if config.resume != "auto" and (steps := checkpoint.list_steps(self.checkpoint_dir)):
            log.warning("resume=%r: the next checkpoints replace %s; 'auto' continues there", config.resume, steps[0])

    def summarise_model(self) -> Figure | None:
        """Print parameters, memory and FLOPs, by layer and in total; return their figure."""
        model = self.build_model()
        rows = layer_table(model)
        print(layers_text(rows), describe_model(model), sep="\n")
        return self._keep("model", plots.model_layers, rows, note=self.note)

    def benchmark_training(self, steps: int = 1, repeats: int = 3) -> dict:
        """Time training steps at full image size; print and return their speed and `minutes`, the estimated time left.
        The estimate assumes that smaller images are faster in proportion to their FLOPs."""
        trainer = self.build_trainer()
        measured = self.speeds["training"] = speed.training_throughput(trainer, steps, repeats, self.config.progress)
        measured["minutes"], text = speed.outlook(trainer, measured)
        print(text)
        return measured

    def profile_loader(self) -> dict:
        """Print and return how long each stage of a batch takes, and its share of a training step if benchmarked."""
        loader, step = self.build_trainer().loader, self.speeds.get("training")
        milliseconds = step and step["milliseconds"] * loader.batch_size / step["batch_size"]    # for one batch
        profile = self.speeds["loader"] = speed.profile_loader(loader, step_milliseconds=milliseconds)
        print(speed.format_rows([profile]))
        return profile

    def benchmark_inference(self, batch_sizes=(32, 64, 128, 256)) -> Figure | None:
        """Measure inference throughput and memory by batch size; print the table, return the figure."""
        rows = self.speeds["inference"] = speed.inference_throughput(
            self.build_model(), self.device, self.precision, batch_sizes, progress=self.config.progress)
        print(speed.format_rows(rows))
        return self._keep("throughput", plots.throughput, rows, note=self.note)

    def preview_schedule(self) -> Figure | None:
        """The planned learning rate of each step."""
        schedule = self.build_trainer().schedule
        rates = [schedule.learning_rate(step) for step in range(schedule.total_steps)]
        return self._keep("schedule", plots.learning_rate_schedule, rates, schedule.steps_per_epoch, note=self.note)

    def find_learning_rate(self, low: float | None = None, high: float | None = None, steps: int = 60) -> Figure | None:
        """Try training steps at rising learning rates on a copy of the untrained network; print a rule of thumb, return
        the figure. By default the rates go from `learning_rate` / 1000 to 30 times it. Later training is unaffected."""
        trainer, rate = self.build_trainer(), self.config.learning_rate
        found = lr_range_test(trainer, low, high, steps, self.config.progress)
        best = found["suggested"]
        print(f"{len(found['losses'])} steps, learning rate {found['rates'][0]:.2g} to {found['rates'][-1]:.2g}; "
              + ("the loss never fell" if best is None else f"the loss fell most steeply at {best:.2g}")
              + f" (a rule of thumb); learning_rate is {rate:g}")
        return self._keep("learning_rate_range", plots.learning_rate_range, **found, configured=rate, note=self.note)

    # Train -----------------------------------------------------------------------------------------------------

    def train(self, on_epoch=None, live: bool | str = "auto") -> History:
        """Train, or resume an interrupted run. Writes train.log, metrics.json and checkpoints.

        Calls `on_epoch(trainer)` after each epoch. `live` shows curves and a Stop button instead of the progress bar:
        True, False, or "auto" (where a notebook's front end shows a bar). Stop and Ctrl-C save a checkpoint, from which
        the next `train` continues. Raises TrainingDiverged if the loss is not finite, and OSError where nothing can be
        written, as FolderInUse if another process trains in the run's folder. If a finished training cannot be saved,
        logs an error and goes on.
        """
        live, config = widgets.shows_live_view(live, self.config.progress), self.config
        if self.history.stopped == "interrupted" or self._read_only:    # that process may have changed the files since
            self._has_saved |= self.trainer is not None and self.trainer.has_saved
            self.trainer = None
        trainer = self.build_trainer(config.replace(resume="auto", run_name=config.name) if self._has_saved else config)
        if self._read_only and not trainer.is_finished:
            raise self._read_only
        note, was_finished = f" ({self.note})" if self.note else "", trainer.is_finished
        live = live and not was_finished
        self._log("bar" if live else progress_style(self.config.progress))
        if was_finished:
            log.info("run %r%s is complete after %d epochs; give another run_name or resume='never' to train anew",
                     self.config.name, note, len(trainer.history))
            if self.network and self.network.model is trainer.model and not self._unwritten:
                return self.history         # and keep its test results
        self._use(None)
        self._unwritten.clear()
        self.history, self.precision = trainer.history, trainer.precision
        if not was_finished:
            log.info("run %r%s: training %s on %s in %s, on %s images", self.config.name, note, self.config.model,
                     self.device, self.precision, f"{trainer.loader.count:,}")
        try:
            self.history = self._fit(on_epoch, live)
        except TrainingDiverged as error:
            log.error("%s", error)
            raise
        except NotSaved as error:
            if not trainer.is_finished:
                raise
            log.error("%s", error)
            path, cause = checkpoint.step_path(self.checkpoint_dir, trainer.step), error.__cause__
            self._unwritten[path] = cause.strerror or str(cause)
            self.history = trainer.history
        self._use(TrainedNetwork(
            trainer.model, self.config, self.device, trainer.precision, class_names=self.data.class_names,
            mean=trainer.mean, std=trainer.std, note=self.data.note,
            validation=None if trainer.val_loader is None else (trainer.val_loader, trainer.val_labels)))
        if not was_finished:        # else the file already holds the results too
            self._write_metrics()
        return self.history

    def _fit(self, on_epoch, live: bool) -> History:
        """Train with the live view, or with the bar or lines that `progress` asks for."""
        trainer = self.trainer
        if not self._read_only:
            forget_epochs(self.run_dir / "train.log", after=len(trainer.history))
        if not live:
            trainer.on_epoch = on_epoch
            return trainer.fit()
        with widgets.LiveView(trainer, self.note) as view:
            def after_epoch(trainer: Trainer) -> None:
                view.update(trainer)
                if on_epoch is not None:
                    on_epoch(trainer)
            trainer.on_epoch, trainer.on_progress = after_epoch, view.update
            return trainer.fit(show_bar=False)

    def plot_training(self) -> Figure | None:
        """Loss, accuracy and learning rate by epoch."""
        if not len(self.history):
            if self.history.stopped == "interrupted":       # the notebook's next cells still run
                print("Training was stopped before its first epoch ended: there is nothing to plot yet.")
                return None
            raise RuntimeError("there is no finished epoch to plot; call pipeline.train() first")
        return self._keep("training", plots.training_curves, self.history, self.note, self.config.has_soft_targets)

    # Evaluate --------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict:
        """Test the trained network, once per run; print and return the results as plain values.

        They come from one plain forward pass, except `flip_tta`: the mean over an image and its mirror image. All but
        `uncalibrated_error` divide the logits by `temperature`. Writes metrics.json, unless the weights were loaded:
        then that file belongs to another pipeline.
        """
        network, data, config = self._need_network(), self.prepare_data(), self.config
        if self.evaluation is None:
            network.check_classes(data)
            loader = network.loader(data.test_images)
            features, logits = explain.features_and_logits(network.model, loader, network.precision, config.progress)
            mirrored = network.logits(loader, mirrored=True, progress=config.progress)
            evaluation, flipped = network.evaluation(logits, data), network.evaluation((logits + mirrored) / 2, data)
            self._as_trained = Evaluation.from_logits(logits, data.test_labels, data.class_names)
            network.results = {"note": self.note, **evaluation.summary(), "temperature": network.temperature,
                               "uncalibrated_error": self._as_trained.expected_calibration_error,
                               "flip_tta": {"top1": flipped.top1, "top5": flipped.top5}}
            self._test_features, self.evaluation = features, evaluation     # last: the passes may be interrupted
            self._write_metrics()
        if self.history.stopped == "interrupted":
            print(f"This training was stopped after {len(self.history)} of {config.epochs} epochs.")
        print(results_text(self.results))
        return self.results

    def plot_class_accuracy(self) -> Figure | None:
        """Accuracy of every class."""
        return self._keep("class_accuracy", plots.class_accuracy_bars, self._evaluated(), note=self.note)

    def plot_confusion(self) -> Figure | None:
        """Confusion matrix, grouped by superclass."""
        return self._keep("confusion", plots.confusion_matrix, self._evaluated(), note=self.note)

    def plot_calibration(self) -> Figure | None:
        """How often the network is right at each confidence, with and without the temperature."""
        return self._keep("calibration", plots.reliability_diagram, self._evaluated(), self._as_trained, self.note)

    def explain_errors(self, pairs: int = 6) -> Figure | None:
        """Print the most confused pairs of classes; return their figure, with pictures."""
        evaluation = self._evaluated()
        for true, other, count, share in evaluation.most_confused(pairs):
            print(f"{count:3d} images ({share:4.1f} %) of {readable(true, 40)} were taken for {readable(other, 40)}")
        return self._keep("confused_pairs", plots.confused_pairs, evaluation, self.data.test_images, pairs, self.note)

    def show_confident_errors(self, n: int = 12) -> Figure | None:
        """The `n` wrong predictions that the network was surest of."""
        evaluation = self._evaluated()
        return self._keep("confident_errors", plots.confident_errors, evaluation, self.data.test_images, n, self.note)

    def explore_errors(self):
        """A widget to browse and explain test images; where nothing can be clicked, the most confident errors."""
        evaluation = self._evaluated()
        if not widgets.can_show():
            print("These are the most confident errors. To filter, sort and click all test images, open the notebook "
                  "in Jupyter or Colab with ipywidgets installed and call pipeline.explore_errors().")
            return self.show_confident_errors()
        self._features_of_training_images()
        return widgets.ErrorExplorer(evaluation, self.data.test_images, self.explain_image, self.note,
                                     lambda: self.evaluation is evaluation).box

    def explain_image(self, index: int, neighbours: int = 8) -> Figure | None:
        """Test image `index`, or the last one if there are fewer: its five most probable classes, its Grad-CAM, and the
        nearest training images. Nearest means the largest cosine similarity of the features before the classifier."""
        evaluation, data, network = self._evaluated(), self.data, self.network
        index = min(index, len(data.test_images) - 1)       # the notebook's next cells still run
        pixels = data.test_images[index]
        query = explain.features_of(network.model, network.loader(pixels[None]), network.precision)
        nearest = explain.neighbours(self._features_of_training_images(), query, data, neighbours)
        true = data.class_names[evaluation.labels[index]]
        return self._keep("explained_image", plots.explained_prediction, pixels, *look_at(network, pixels), true=true,
                          neighbours=nearest, note=self.note)

    def try_your_own_image(self, path=None):
        """What the network makes of your picture: a Figure of the file `path`; without `path`, a widget to upload one.

        Warns if the confidence is below what the validation split shows to be reliable. If the file is not a picture,
        or nothing can be clicked, prints a line and returns None.
        """
        network = self._ready_network()
        if path is not None:
            try:
                return self._keep("own_image", lambda: answer(network, path)[0])
            except DataError as error:
                print(error)
                return None
        if widgets.can_show():
            _ = network.reliable_confidence     # measures it now, so that the first picture need not wait
            return widgets.OwnPicture(lambda file, name: answer(self._ready_network(), io.BytesIO(file), name)).box
        print("Give the path of a picture, pipeline.try_your_own_image('cat.jpg'); to upload one, open the notebook "
              "in Jupyter or Colab with ipywidgets installed.")

    def predict(self, image, top: int = 5) -> list[tuple[str, float]]:
        """The `top` most probable classes as (name, probability). `image`: a path, a PIL image, uint8 [H, W, 3], or the
        index of a test image; cropped to a square and resized to 32×32. Raises DataError if it is no picture."""
        pixels, network = self.as_input(image), self._ready_network()
        return network.most_probable(network.logits(pixels[None])[0], top)

    def as_input(self, image) -> Tensor:
        """What `predict` takes, as the uint8 [32, 32, 3] that the network sees."""
        if isinstance(image, (int, np.integer)) or isinstance(image, Tensor) and image.ndim == 0:
            images = self.prepare_data().test_images
            if not 0 <= image < len(images):
                raise DataError(f"no picture: there is no test image {int(image)}; they are numbered from 0 to "
                                f"{len(images) - 1:,}")
            return images[int(image)]
        return network_input(image)

    # What it learned -------------------------------------------------------------------------------------------

    def show_filters(self) -> Figure | None:
        """The first layer's filters; FlipCNN computes its own from the training images."""
        model = self._need_network().model
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        return self._keep("filters", plots.first_layer_filters, first.weight, note=self.note)

    def show_class_map(self) -> Figure | None:
        """A map of the classes; neighbours are classes whose test images look alike to the network."""
        evaluation, data = self._evaluated(), self.data
        points, kept = explain.class_map(self._test_features, evaluation.labels, data.num_classes)
        return self._keep("class_map", plots.class_map, points, data.class_names, data.superclass_of,
                          data.superclass_names, kept, note=self.note)

    def show_superclass_affinity(self, pairs: int = 3) -> Figure | None:
        """Which superclasses help each other: cosine similarities between the gradients of their losses.

        Measured on the validation split or, without one, at most 5,000 training images; `explain.superclass_affinity`
        states what this shows and what not. Prints the `pairs` most alike and most opposed, and how well two halves of
        the images agree. Without superclasses, prints a line and returns None.
        """
        network, data = self._need_network(), self.prepare_data()
        if data.superclass_of is None:      # no error: the notebook's next cells still run
            print(f"No superclasses are known for the {data.num_classes} classes from {data.source}; only CIFAR-100 "
                  "and the drawn set have them.")
            return None
        network.check_classes(data)
        matrix, agreement = explain.affinity_of_superclasses(network, data, self.config.val_size, self.config.seed,
                                                             self.config.progress)
        ranked = explain.ranked_pairs(matrix, names := data.superclass_names)
        for similarity, pair in [*ranked[:pairs], *ranked[max(pairs, len(ranked) - pairs):]]:
            print(f"{similarity:+.2f}  {pair}")
        print(f"Two halves of the images agree with a correlation of {agreement:.2f}; 0 would be chance.")
        return self._keep("superclass_affinity", plots.superclass_affinity, matrix, names, note=self.note)

    def show_attention(self, images=None, class_name: str | None = None) -> Figure | None:
        """Grad-CAM heat maps of `images`, one or more of what `predict` takes, by default nine test images: where the
        network looks for the class it predicts, or for `class_name`. Raises ValueError for an unknown class."""
        network = self._ready_network()
        if images is None:
            test_labels = self.prepare_data().test_labels
            network.check_classes(self.data)
            images = [(test_labels == label).nonzero()[0, 0].item()
                      for label in torch.linspace(0, self.data.num_classes - 1, 9).long().unique()]
        if isinstance(images, (np.ndarray, Tensor)) and images.ndim <= 1:
            images = images.tolist()
        images = list(images) if isinstance(images, (list, tuple, range)) else [images]
        if not images:
            raise ValueError("show_attention: there is no picture in images")
        pixels = torch.stack([self.as_input(image) for image in images])
        heat, answers = attention(network, pixels, class_name)
        titles = [f"true: {readable(self.data.class_names[self.data.test_labels[int(image)]])}\n{text}"
                  if isinstance(image, (int, np.integer)) else text for image, text in zip(images, answers)]
        return self._keep("attention", plots.grad_cam_overlay, pixels, heat, titles, note=self.note)

    # Compare and save ------------------------------------------------------------------------------------------

    def compare(self, pattern: str | None = None) -> Figure | None:
        """Compare the finished runs whose folders match `pattern`, by default all of `runs_dir`, and published results.
        Without any run, raises RuntimeError if `pattern` is given, else prints a line and returns None."""
        folder = Path(self.config.runs_dir).expanduser()
        runs = finished_runs(pattern or f"{glob.escape(str(folder))}/*")
        if not runs and pattern is None:        # as after from_pretrained; the notebook's next cells still run
            print(f"There is no finished run in {folder} to compare; one is finished once it is trained and evaluated.")
            return None
        if not runs:
            raise RuntimeError(f"no finished run matches {pattern}; a run is finished once pipeline.evaluate() has "
                               "written its metrics.json")
        published = published_beside(runs)
        print(runs_text(runs, published))
        return self._keep("comparison", plots.compare_runs, runs, published, note=joint_note(runs))

    def save(self) -> Path:
        """Write the checkpoint final.pt: `model_state_dict`, `config`, `test_results`, `model_stats` and more. Raises
        OSError, also if another process trains in this folder."""
        claim(self.checkpoint_dir)
        path = self._ready_network().save(self.checkpoint_dir / "final.pt")
        print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")
        return path

    def load_weights(self, path) -> nn.Module:
        """Load the weights of a checkpoint, this project's or the reference's, into the configured network."""
        network = TrainedNetwork.load(path, self.config, self.device, self.precision)
        self.trainer, self.history, self._has_saved = None, History(), False
        self._use(network)
        return network.model

    def run(self) -> tuple[nn.Module, dict, dict]:
        """Train, evaluate, save, and then draw the main figures; return `model`, `metrics` and `results`. Raises
        KeyboardInterrupt if training is interrupted, before the test split is read; OSError at the end if a file could
        not be written."""
        self.train()
        if self.history.stopped == "interrupted":
            raise KeyboardInterrupt(f"training was interrupted after {len(self.history)} epochs; the checkpoint is "
                                    f"in {self.checkpoint_dir}")
        self.evaluate()
        with self._noting_failure(self.checkpoint_dir / "final.pt"):
            self.save()
        for draw in (self.show_samples, self.show_augmentation, self.preview_schedule, self.plot_training,
                     self.plot_class_accuracy, self.plot_confusion, self.plot_calibration, self.explain_errors,
                     self.show_confident_errors):
            draw()
        if self._unwritten:
            lost = "\n".join(f"  - {path}: {why}" for path, why in self._unwritten.items())
            raise OSError(f"the training is complete and its results are above, but not kept are:\n{lost}\nSafe: "
                          f"{checkpoint.safe_files(self.checkpoint_dir)}. Once there is space, run again with the same "
                          "settings: it continues from there")
        return self.model, self.metrics, self.results

    @property
    def model(self) -> nn.Module | None:
        """The network, loaded or in training; None before there is one."""
        return self.network.model if self.network else self.trainer and self.trainer.model

    @property
    def results(self) -> dict:
        """The test results that `evaluate` returned; empty before."""
        return self.network.results if self.evaluation else {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The network's class names, or else the data's."""
        return self.network and self.network.class_names or (self.data.class_names if self.data else ())

    @property
    def note(self) -> str:
        """Says so if the network, or else the data, is not of real CIFAR-100; else empty."""
        if self.network and self.network.class_names:
            return self.network.note
        return self.data.note if self.data else ""

    @property
    def metrics(self) -> dict[str, list]:
        """The training record by name: `train_loss`, `val_top1`, `learning_rate`, …, one value an epoch."""
        return {key: self.history[key] for key in self.history.rows[0]} if len(self.history) else {}

    @functools.cached_property
    def checkpoint_dir(self) -> Path:
        """Where this run keeps its checkpoints; with `drive=True` on Google Drive."""
        if self.config.drive:
            return mount_drive() / "checkpoints" / self.config.name
        if self.config.checkpoint_dir:
            return Path(self.config.checkpoint_dir).expanduser() / self.config.name
        return self.run_dir / "checkpoints"

    def _use(self, network: TrainedNetwork | None) -> None:
        """Evaluate and show `network` from now on: trained here, or loaded."""
        self.network: TrainedNetwork | None = network
        self.evaluation: Evaluation | None = None
        self._training_features: Tensor | None = None
        self._test_features: Tensor | None = None
        self._as_trained: Evaluation | None = None      # without the temperature

    def _need_network(self) -> TrainedNetwork:
        if self.network is None:
            raise RuntimeError("there is no trained network yet; call pipeline.train() or pipeline.load_weights(path)")
        return self.network

    def _ready_network(self) -> TrainedNetwork:
        """The network with class names and normalisation; weights that lack them adopt the data's."""
        if not self._need_network().class_names:
            self.prepare_data()
        return self.network

    def _evaluated(self) -> Evaluation:
        if self.evaluation is None:
            self.evaluate()
        return self.evaluation

    def _features_of_training_images(self) -> Tensor:
        """float32 [N, C]: the classifier's input for each training image, computed once."""
        if self._training_features is None:
            network, loader = self.network, self.network.loader(self.data.train_images)
            self._training_features = explain.features_of(network.model, loader, network.precision,
                                                          self.config.progress)
        return self._training_features

    def _keep(self, name: str, draw, *args, **kwargs) -> Figure | None:
        """The figure that `draw(*args, **kwargs)` makes, also saved. No picture is worth a run: what fails is said in a
        line; None if there is no figure."""
        figure, path = None, self.run_dir / "figures" / f"{name}.png"
        try:
            figure = draw(*args, **kwargs)
            if not self._read_only:
                with self._noting_failure(path), replacing(path) as file:
                    figure.savefig(file, format="png")
        except DataError:
            raise
        except Exception as error:      # of matplotlib, seaborn and fonts
            log.warning("the figure %s could not be %s (%s: %s); the run goes on", name, "saved" if figure else "drawn",
                        type(error).__name__, " ".join(str(error).split())[:300])
        return figure

    def _write_metrics(self) -> None:
        is_trained = self.trainer and self.network and self.trainer.model is self.network.model     # and not loaded
        if is_trained and not self._read_only:
            with self._noting_failure(path := self.run_dir / "metrics.json"):
                write_metrics(path, self.trainer, self.speeds, self.results)

    @contextlib.contextmanager
    def _noting_failure(self, path: Path):
        """Write `path` in the block; a failure is a line in the log, and in the error at the end of `run`."""
        self._unwritten.pop(path, None)
        try:
            yield
        except OSError as error:
            self._unwritten[path] = error.strerror or str(error)
            log.error("could not write %s: %s", path, self._unwritten[path])


def train_cifar100(**settings) -> tuple[nn.Module, dict, dict]:
    """Train with TrainingConfig's settings and evaluate; returns what `CIFAR100Pipeline.run` does.

    `train_cifar100(epochs=150, batch_size=256, learning_rate=0.1, mixed_precision=True, augmentation="moderate")`
    is the reference recipe; `augmentation` and `lr` are short names. Raises ConfigError and DataError.
    """
    return CIFAR100Pipeline(TrainingConfig.from_settings(settings)).run()
