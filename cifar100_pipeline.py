"""CIFAR100Pipeline: data, model, training, benchmark and plots of a CIFAR-100 CNN behind one object.

    from cifar100_pipeline import CIFAR100Pipeline
    pipeline = CIFAR100Pipeline.from_preset("demo", epochs=3)
    model, metrics, results = pipeline.run()
"""

from __future__ import annotations

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
from helpers.checkpoint import CheckpointError
from helpers.config import ConfigError, TrainingConfig, preset_names
from helpers.data import IMAGE_SIZE, DataError, ImageData, load_cifar100
from helpers.image_files import network_input
from helpers.lesson import explain, plots, speed, widgets
from helpers.lesson.lr_range import lr_range_test
from helpers.lesson.own_picture import answer, attention, look_at
from helpers.lesson.runs import finished_runs, published_beside, runs_text, write_metrics
from helpers.logs import log_to
from helpers.metrics import Evaluation, History
from helpers.models import CIFAR100CNN, FastCNN, FlipCNN, describe_model, layer_table, training_flops
from helpers.network import TrainedNetwork, pretrained_path, settings_here
from helpers.notebook_settings import notebook_settings
from helpers.system import SystemInfo, lies_on_drive, mount_drive, pick_device, pick_precision, progress_style
from helpers.text import duration, layers_text, readable, results_text
from helpers.trainer import Trainer, TrainingDiverged

__all__ = ["CIFAR100CNN", "CIFAR100Pipeline", "CheckpointError", "ConfigError", "DataError", "Evaluation", "FastCNN",
           "FlipCNN", "History", "TrainedNetwork", "Trainer", "TrainingConfig", "TrainingDiverged", "describe_model",
           "preset_names", "train_cifar100"]

log = logging.getLogger("cifar100")


class CIFAR100Pipeline:
    """Everything from the data to the figures of one training run.

    Each step can be called on its own, as the notebook does; a step that needs an earlier one runs it. Figures
    are returned and also kept in `run_dir/figures`.

    Args:
        config: all settings; `None` takes TrainingConfig's defaults, the 150-epoch reference recipe.

    On Colab this mounts Google Drive where `drive` or a folder's name asks for it. Raises ValueError when it cannot.
    """

    def __init__(self, config: TrainingConfig | None = None):
        self.config = config or TrainingConfig()
        folders = (self.config.data_dir, self.config.runs_dir, self.config.checkpoint_dir)
        if self.config.drive or any(lies_on_drive(folder) for folder in folders if folder):
            mount_drive()       # before anything is written, which would make a plain folder of its name
        self.device = pick_device(self.config.device)
        self.precision = pick_precision(self.device, self.config.mixed_precision, self.config.precision)
        self.run_dir = self.config.run_dir
        self.system = SystemInfo.of(self.device, self.precision)
        self.data: ImageData | None = None
        self.trainer: Trainer | None = None
        self.network: TrainedNetwork | None = None      # what is evaluated and shown: trained here, or loaded
        self.history = History()
        self.evaluation: Evaluation | None = None       # of `network`, as the features are
        self.speeds: dict = {}                          # what was benchmarked, for metrics.json
        self._training_features: Tensor | None = None
        self._test_features: Tensor | None = None
        self._checkpoint_dir: Path | None = None

    @classmethod
    def from_preset(cls, name: str, **overrides) -> CIFAR100Pipeline:
        """The preset `name` (a file in configs/experiments) with `overrides` on top. Raises ConfigError."""
        return cls(TrainingConfig.from_preset(name, **overrides))

    @classmethod
    def from_notebook(cls, namespace: dict) -> CIFAR100Pipeline:
        """The settings of a notebook's parameter cells; `namespace` is its `globals()`. Raises ConfigError."""
        return cls(TrainingConfig.from_settings(notebook_settings(namespace), "the notebook's parameters"))

    @classmethod
    def from_checkpoint(cls, path, **overrides) -> CIFAR100Pipeline:
        """A pipeline with the network and weights of a checkpoint of this project, ready to evaluate.

        Raises CheckpointError when the file holds no configuration of this project's; `load_weights` takes
        weights alone.
        """
        state = checkpoint.load(path)
        if "name" not in state:
            raise CheckpointError(f"{path}: holds weights but no configuration of this project; make a pipeline with "
                                  "the network's sizes and call pipeline.load_weights(path)")
        pipeline = cls(TrainingConfig.from_settings(settings_here(state) | overrides, str(path)))
        pipeline.load_weights(path)
        return pipeline

    @classmethod
    def from_pretrained(cls, name: str = "fast", **overrides) -> CIFAR100Pipeline:
        """A pipeline with the trained weights that come with the project, ready to evaluate without training.

        Raises CheckpointError when there are no weights of that name.
        """
        return cls.from_checkpoint(pretrained_path(name), **({"run_name": f"pretrained-{name}"} | overrides))

    # Look ------------------------------------------------------------------------------------------------------

    def check_system(self) -> SystemInfo:
        """Print and return the machine, the device and the precision that training will use."""
        print(self.system)
        return self.system

    def prepare_data(self) -> ImageData:
        """Load the images (and keep them). Raises DataError."""
        if self.data is None:
            self.data = load_cifar100(self.config)
            print(self.data)
        if self.network is not None:
            self.network.adopt(self.data)
        return self.data

    def show_samples(self) -> Figure:
        """One training image of each class, by superclass."""
        data = self.prepare_data()
        return self._keep("samples", plots.sample_grid(data.train_images, data.train_labels, data.class_names,
                                                       data.superclass_of, data.superclass_names, note=data.note))

    def show_augmentation(self, images: int = 5, draws: int = 8) -> Figure:
        """A few training images beside random draws of the augmentation that training uses."""
        data, loader = self.prepare_data(), self.build_trainer().loader
        chosen = torch.linspace(0, len(data.train_images) - 1, images + 2).long()[1:-1]
        originals = data.train_images[chosen].to(self.device)
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        augmented = augment(originals.repeat_interleave(draws, 0), loader.augmentation, generator)
        names = [data.class_names[label] for label in data.train_labels[chosen]]
        return self._keep("augmentation", plots.augmentation_preview(
            originals.cpu(), augmented.unflatten(0, (images, draws)).cpu(), names, note=data.note))

    def build_model(self) -> nn.Module:
        """The network, on the device: the loaded or trained one, else a new or resumed one."""
        return self.build_trainer().model if self.network is None else self.network.model

    def build_trainer(self, config: TrainingConfig | None = None) -> Trainer:
        """The Trainer, which finds the checkpoint to continue from. Raises CheckpointError."""
        if self.trainer is None:
            data = self.prepare_data()
            log_to(self.run_dir / "train.log", progress_style(self.config.progress))
            config = config or self.config
            self._warn_of(config)
            self.trainer = Trainer(config, data, self.checkpoint_dir)
            if self.network is None:
                self.history, self.precision = self.trainer.history, self.trainer.precision
        return self.trainer

    def _warn_of(self, config: TrainingConfig) -> None:
        """Say what is allowed but probably a mistake."""
        for name, need in config.idle_settings().items():
            log.warning("%s has no effect here: it needs %s", name, need)
        steps = checkpoint.list_steps(self.checkpoint_dir) if config.resume == "never" else []
        if steps:
            log.warning("resume='never': starts over beside %s, which the next checkpoints push out; resume='auto' "
                        "continues it", steps[0])

    def summarise_model(self) -> Figure:
        """Print parameters, memory and FLOPs, in all and by layer; return the figure of them."""
        model = self.build_model()
        rows = layer_table(model)
        print(layers_text(rows))
        print(describe_model(model))
        return self._keep("model", plots.model_layers(rows, note=self.note))

    def benchmark_training(self, steps: int = 1, repeats: int = 3) -> dict:
        """Time real training steps; print and return their speed and `minutes`, an estimate for what is left to train.

        The steps have full-size images. Smaller ones are taken to be faster in proportion to their FLOPs.
        """
        trainer = self.build_trainer()
        measured = speed.training_throughput(trainer, steps, repeats, progress=self.config.progress)
        flops_a_minute = 60 * measured["steps_per_second"] * measured["batch_size"] * training_flops(trainer.model)
        left = 0 if trainer.is_finished else trainer.total_flops() - trainer.flops
        minutes = measured["minutes"] = left / flops_a_minute
        self.speeds["training"] = measured
        growing = ", small images first," if self.config.start_image_size < IMAGE_SIZE else ""
        whole = f"{self.config.epochs} epochs{growing}"
        take = f"about {duration(60 * minutes)} on this machine"
        outlook = (f"the training of {whole} is complete" if trainer.is_finished else
                   f"what is left of {whole} takes {take}" if trainer.step else f"{whole} take {take}")
        print(f"{measured['steps_per_second']:.2f} training steps/s of {measured['batch_size']} images, "
              f"{measured['images_per_second']:,.0f} images/s at full size; {outlook}")
        if minutes > speed.LONG_MINUTES:
            print(speed.shorter_ways(self.config, self.data, flops_a_minute, minutes, self.device))
        return measured

    def profile_loader(self) -> dict:
        """Print and return how fast batches are made, stage by stage, and their share of a training step if known."""
        loader, step = self.build_trainer().loader, self.speeds.get("training")
        milliseconds = step and step["milliseconds"] * loader.batch_size / step["batch_size"]    # for one batch
        profile = speed.profile_loader(loader, step_milliseconds=milliseconds)
        self.speeds["loader"] = profile
        print(speed.format_rows([profile]))
        return profile

    def benchmark_inference(self, batch_sizes=(32, 64, 128, 256)) -> Figure:
        """Measure inference throughput and memory by batch size; print the table, return the figure."""
        rows = speed.inference_throughput(self.build_model(), self.device, self.precision, batch_sizes,
                                          progress=self.config.progress)
        self.speeds["inference"] = rows
        print(speed.format_rows(rows))
        return self._keep("throughput", plots.throughput(rows, note=self.note))

    def preview_schedule(self) -> Figure:
        """The learning rate of each step to come."""
        schedule = self.build_trainer().schedule
        rates = [schedule.learning_rate(step) for step in range(schedule.total_steps)]
        return self._keep("schedule", plots.learning_rate_schedule(rates, schedule.steps_per_epoch, note=self.note))

    def find_learning_rate(self, low: float | None = None, high: float | None = None, steps: int = 60) -> Figure:
        """Try `steps` real training steps at rising learning rates on a copy of the untrained network; the figure.

        By default the rates go from a thousandth of `learning_rate` to 30 times it. The rate that is printed is a
        rule of thumb. Nothing that is trained here is kept, and a training afterwards gives the weights it would
        have given anyway.
        """
        rate = self.config.learning_rate
        trainer = self.build_trainer()
        found = lr_range_test(trainer, low or rate / 1000, high or 30 * rate, steps, self.config.progress)
        best = found["suggested"]
        print(f"{len(found['losses'])} steps, learning rate {found['rates'][0]:.2g} to {found['rates'][-1]:.2g}; "
              + ("the loss never fell" if best is None else f"the loss fell most steeply at {best:.2g}")
              + f" (a rule of thumb); learning_rate is {rate:g}")
        return self._keep("learning_rate_range", plots.learning_rate_range(**found, configured=rate, note=self.note))

    # Train -----------------------------------------------------------------------------------------------------

    def train(self, on_epoch=None, live: bool | str = "auto") -> History:
        """Train, or continue a run that was cut off. Writes train.log, metrics.json and checkpoints.

        `on_epoch(trainer)` is called after each epoch. `live` shows curves and a Stop button in place of the
        progress bar: True, False, or "auto", where a notebook's front end shows a bar. Stop and Ctrl-C end cleanly
        with a checkpoint; calling `train` again goes on. Raises TrainingDiverged when the loss is no longer finite.
        """
        live = widgets.shows_live_view(live, self.config.progress)
        if self.history.stopped == "interrupted":
            # From its newest checkpoint; where it left none, as it was begun.
            config = self.config.replace(resume="auto") if self.trainer.has_saved else self.config
            self.trainer = None
            self.build_trainer(config)
        trainer = self.build_trainer()
        self._use(None)
        self.history, self.precision, was_finished = trainer.history, trainer.precision, trainer.is_finished
        note = f" ({self.note})" if self.note else ""
        if was_finished:
            log.info("run %r%s is complete after %d epochs; give another run_name or resume='never' to train anew",
                     self.config.name, note, len(trainer.history))
        else:
            log.info("run %r%s: training %s on %s in %s, on %s images", self.config.name, note, self.config.model,
                     self.device, self.precision, f"{trainer.loader.count:,}")
        try:
            self.history = self._fit(on_epoch, live and not was_finished)
        except TrainingDiverged as error:
            log.error("%s", error)
            raise
        self._use(TrainedNetwork(
            trainer.model, self.config, self.device, trainer.precision, class_names=self.data.class_names,
            mean=trainer.mean, std=trainer.std, note=self.data.note,
            validation=None if trainer.val_loader is None else (trainer.val_loader, trainer.val_labels)))
        if self.history.stopped == "interrupted":
            log.info("stopped after step %d of %d; train again with the same settings to continue from %s",
                     trainer.step, trainer.total_steps, self.checkpoint_dir)
        if not was_finished:            # else the file also holds its results
            self._write_metrics()
        return self.history

    def _fit(self, on_epoch, live: bool) -> History:
        """Train under the live view, or with what `progress` says."""
        trainer = self.trainer
        log_to(self.run_dir / "train.log", "bar" if live else progress_style(self.config.progress))
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
            if self.history.stopped == "interrupted":       # a notebook's cells below go on with what there is
                print("Training was stopped before its first epoch ended: there is nothing to plot yet.")
                return None
            raise RuntimeError("there is no finished epoch to plot; call pipeline.train() first")
        return self._keep("training", plots.training_curves(self.history, self.note, self.config.has_soft_targets))

    # Evaluate --------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict:
        """Measure the trained network on the test split, once a run; print and return plain values.

        All of it is of one plain forward pass; `flip_tta` is of the mean over an image and its mirror image. Writes
        metrics.json, unless the weights were loaded: then the file is another pipeline's.
        """
        network, data = self._need_network(), self.prepare_data()
        if self.evaluation is None:
            network.check_classes(data)
            loader = network.loader(data.test_images)
            self._test_features, logits = explain.features_and_logits(network.model, loader, network.precision,
                                                                      self.config.progress)
            self.evaluation = network.evaluation(logits, data)
            flipped = network.evaluation(network.logits(loader, flip=True, bar=self._bar(
                "test images and their mirror images")), data)
            network.results = {"note": self.note, **self.evaluation.summary(),
                               "flip_tta": {"top1": flipped.top1, "top5": flipped.top5}}
            self._write_metrics()
        if self.history.stopped == "interrupted":
            print(f"This training was stopped after {len(self.history)} of {self.config.epochs} epochs.")
        print(results_text(self.results))
        return self.results

    def plot_class_accuracy(self) -> Figure:
        """Accuracy of every class."""
        return self._keep("class_accuracy", plots.class_accuracy_bars(self._evaluated(), note=self.note))

    def plot_confusion(self) -> Figure:
        """Confusion matrix, grouped by superclass."""
        return self._keep("confusion", plots.confusion_matrix(self._evaluated(), note=self.note))

    def plot_calibration(self) -> Figure:
        """How often the network is right when it claims a certain confidence."""
        return self._keep("calibration", plots.reliability_diagram(self._evaluated(), note=self.note))

    def explain_errors(self, pairs: int = 6) -> Figure:
        """The most confused pairs of classes, with pictures; the table is printed."""
        evaluation = self._evaluated()
        for true, predicted, count, share in evaluation.most_confused(pairs):
            print(f"{count:3d} images ({share:4.1f} %) of {true} were taken for {predicted}")
        return self._keep("confused_pairs", plots.confused_pairs(evaluation, self.data.test_images, pairs,
                                                                 note=self.note))

    def show_confident_errors(self, n: int = 12) -> Figure:
        """The wrong predictions the network was surest of."""
        return self._keep("confident_errors", plots.confident_errors(self._evaluated(), self.data.test_images, n,
                                                                     note=self.note))

    def explore_errors(self):
        """Test images by class, outcome, confidence and loss, to click through; a click explains one.

        Returns a widget, which a notebook shows. Where none can be clicked, it is the figure of the most confident
        errors.
        """
        self._evaluated()
        if not widgets.can_show():
            print("These are the most confident errors. To filter, sort and click all test images, open the notebook "
                  "in Jupyter or Colab with ipywidgets installed and call pipeline.explore_errors().")
            return self.show_confident_errors()
        self._features_of_training_images()
        return widgets.ErrorExplorer(self.evaluation, self.data.test_images, self.explain_image, self.note).box

    def explain_image(self, index: int, neighbours: int = 8) -> Figure:
        """Test image `index`: the five most probable classes, Grad-CAM, and the nearest training images.

        Nearest are those whose features before the classifier have the largest cosine similarity.
        """
        evaluation, data, network = self._evaluated(), self.data, self.network
        pixels = data.test_images[index]
        query = explain.features_of(network.model, network.loader(pixels[None]), network.precision)
        found, similarities = explain.nearest(self._features_of_training_images(), query, neighbours)
        nearest = [(data.train_images[place], data.class_names[data.train_labels[place]], similarity)
                   for place, similarity in zip(found[0].tolist(), similarities[0].tolist())]
        true = data.class_names[evaluation.labels[index]]
        return self._keep("explained_image", plots.explained_prediction(
            pixels, *look_at(network, pixels), true=true, neighbours=nearest, note=self.note))

    def try_your_own_image(self, path=None):
        """What the network makes of a picture of yours: a Figure for a `path`, else a widget to upload one.

        A confidence below what the validation split calls reliable is said to be so. A file that is no picture
        gets one line, as does a call without a path where nothing can be clicked.
        """
        network = self._ready_network()
        if path is not None:
            try:
                return self._keep("own_image", answer(network, path)[0])
            except DataError as error:
                print(error)
                return None
        if widgets.can_show():
            _ = network.reliable_confidence     # measured now, so that the first picture need not wait for it
            return widgets.OwnPicture(lambda content, name: answer(network, io.BytesIO(content), name)).box
        print("Give the path of a picture, pipeline.try_your_own_image('cat.jpg'); to upload one, open the notebook "
              "in Jupyter or Colab with ipywidgets installed.")

    def predict(self, image, top: int = 5) -> list[tuple[str, float]]:
        """The `top` most probable classes of one image, as (name, probability).

        `image` is the index of a test image, a path, a PIL image, or uint8 [H, W, 3]; anything but 32×32
        is cropped to a square and resized. Raises DataError when a file is no picture.
        """
        pixels, network = self.as_input(image), self._ready_network()
        return network.most_probable(network.logits(pixels[None])[0], top)

    def as_input(self, image) -> Tensor:
        """Any picture as the uint8 [32, 32, 3] that the network sees."""
        if isinstance(image, (int, np.integer)) or isinstance(image, Tensor) and image.ndim == 0:
            return self.prepare_data().test_images[int(image)]
        return network_input(image)

    # What it learned -------------------------------------------------------------------------------------------

    def show_filters(self) -> Figure:
        """The filters of the first layer; those of FastCNN and FlipCNN are computed from the training images."""
        model = self._need_network().model
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        return self._keep("filters", plots.first_layer_filters(first.weight, note=self.note))

    def show_class_map(self) -> Figure:
        """The classes in a plane: near each other where the network sees the test images of both alike."""
        evaluation, data = self._evaluated(), self.data
        points, kept = explain.class_map(self._test_features, evaluation.labels, data.num_classes)
        return self._keep("class_map", plots.class_map(points, data.class_names, data.superclass_of,
                                                       data.superclass_names, kept, note=self.note))

    def show_superclass_affinity(self, pairs: int = 3) -> Figure | None:
        """Which superclasses help each other: how far the gradients of their losses point the same way.

        Measured on the validation split, or on 5,000 training images where there is none; see
        `explain.superclass_affinity` for what this says and what it does not. The most alike and the most opposed
        `pairs` are printed, and how well two halves of the images agree. None, with a sentence, where the classes have
        no superclasses.
        """
        network, data = self._need_network(), self.prepare_data()
        if data.superclass_of is None:      # a notebook's cells below go on
            print(f"No superclasses are known for the {data.num_classes} classes from {data.source}; only CIFAR-100 "
                  "and the drawn set have them.")
            return None
        network.check_classes(data)
        matrix, agreement = explain.affinity_of_superclasses(network, data, self.config.val_size, self.config.seed,
                                                             self.config.progress)
        names = data.superclass_names
        ranked = sorted(((matrix[a, b].item(), f"{names[a]} and {names[b]}") for a in range(len(names))
                         for b in range(a) if matrix[a, b].isfinite()), reverse=True)
        for similarity, pair in [*ranked[:pairs], *ranked[-pairs:]]:
            print(f"{similarity:+.2f}  {pair}")
        print(f"Two halves of the images agree with a correlation of {agreement:.2f}; 0 would be chance.")
        return self._keep("superclass_affinity", plots.superclass_affinity(matrix, names, note=self.note))

    def show_attention(self, images=None, class_name: str | None = None) -> Figure:
        """Where the network looks for the class it predicts, or for `class_name`: Grad-CAM heat maps.

        `images`: one or more of what `predict` takes, the indices of test images among them; by default nine test
        images of different classes. Raises ValueError for an unknown class.
        """
        network = self._ready_network()
        if images is None:
            test_labels = self.prepare_data().test_labels
            network.check_classes(self.data)
            images = [(test_labels == label).nonzero()[0, 0].item()
                      for label in torch.linspace(0, self.data.num_classes - 1, 9).long().unique()]
        if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 1:
            images = images.tolist()
        images = list(images) if isinstance(images, (list, tuple, range)) else [images]
        pixels = torch.stack([self.as_input(image) for image in images])
        heat, answers = attention(network, pixels, class_name)
        titles = [f"true: {readable(self.class_names[self.data.test_labels[int(image)]])}\n{text}"
                  if isinstance(image, (int, np.integer)) else text for image, text in zip(images, answers)]
        return self._keep("attention", plots.grad_cam_overlay(pixels, heat, titles, note=self.note))

    # Compare and save ------------------------------------------------------------------------------------------

    def compare(self, pattern: str | None = None) -> Figure | None:
        """Finished runs whose folders match `pattern` (all of `runs_dir` by default), beside published results.

        Raises RuntimeError when a `pattern` is given and there is none.
        """
        folder = Path(self.config.runs_dir).expanduser()
        runs = finished_runs(pattern or f"{glob.escape(str(folder))}/*")
        if not runs and pattern is None:        # as after from_pretrained: a notebook's cells below go on
            print(f"There is no finished run in {folder} to compare; one is finished once it is trained and evaluated.")
            return None
        if not runs:
            raise RuntimeError(f"no finished run matches {pattern}; a run is finished once pipeline.evaluate() has "
                               "written its metrics.json")
        published = published_beside(runs)
        print(runs_text(runs, published))
        note = "; ".join(sorted({f"{run['name']}: {run['note']}" for run in runs if run["note"]}))
        return self._keep("comparison", plots.compare_runs(runs, published, note=note))

    def save(self) -> Path:
        """Write the final checkpoint: `model_state_dict`, `config`, `test_results`, `model_stats`."""
        path = self._ready_network().save(self.checkpoint_dir / "final.pt")
        print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MB)")
        return path

    def load_weights(self, path) -> nn.Module:
        """Put the weights of a checkpoint, this project's or the reference's, into the configured network."""
        network = TrainedNetwork.load(path, self.config, self.device, self.precision)
        self.trainer, self.history = None, History()
        self._use(network)
        return network.model

    def run(self) -> tuple[nn.Module, dict, dict]:
        """Train, evaluate, draw the figures of data, training and results, and save.

        Returns the network; the training record as a dict of lists by name, one value an epoch; and the test
        results as `evaluate` gives them. Raises KeyboardInterrupt when training was interrupted: the test
        split is then left alone.
        """
        self.train()
        if self.history.stopped == "interrupted":
            raise KeyboardInterrupt(f"training was interrupted after {len(self.history)} epochs; the checkpoint is "
                                    f"in {self.checkpoint_dir}")
        self.evaluate()
        for draw in (self.show_samples, self.show_augmentation, self.preview_schedule, self.plot_training,
                     self.plot_class_accuracy, self.plot_confusion, self.plot_calibration, self.explain_errors,
                     self.show_confident_errors):
            draw()
        self.save()
        return self.model, self.metrics, self.results

    @property
    def model(self) -> nn.Module | None:
        """The network that was loaded or is trained; None before there is one."""
        return self.network.model if self.network else self.trainer and self.trainer.model

    @property
    def results(self) -> dict:
        """What `evaluate` found; empty before."""
        return self.network.results if self.evaluation else {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those the network knows, or else those of the data."""
        known = self.network and self.network.class_names
        return known or (self.data.class_names if self.data else ())

    @property
    def note(self) -> str:
        """Not empty when the network, or else the data, are not the real thing."""
        if self.network and self.network.class_names:
            return self.network.note
        return self.data.note if self.data else ""

    @property
    def metrics(self) -> dict[str, list]:
        """The training record by name: `train_loss`, `val_top1`, `learning_rate`, …, one value an epoch."""
        return {key: self.history[key] for key in self.history.rows[0]} if len(self.history) else {}

    @property
    def checkpoint_dir(self) -> Path:
        """Where this run keeps its checkpoints; with `drive=True` on Google Drive."""
        if self._checkpoint_dir is None:
            if self.config.drive:
                self._checkpoint_dir = mount_drive() / "checkpoints" / self.config.name
            elif self.config.checkpoint_dir:
                self._checkpoint_dir = Path(self.config.checkpoint_dir).expanduser() / self.config.name
            else:
                self._checkpoint_dir = self.run_dir / "checkpoints"
        return self._checkpoint_dir

    # Inside ----------------------------------------------------------------------------------------------------

    def _use(self, network: TrainedNetwork | None) -> None:
        """Make `network` the one that is evaluated and shown."""
        self.network, self.evaluation = network, None
        self._training_features = self._test_features = None

    def _need_network(self) -> TrainedNetwork:
        if self.network is None:
            raise RuntimeError("there is no trained network yet; call pipeline.train() or "
                               "pipeline.load_weights(path) first")
        return self.network

    def _ready_network(self) -> TrainedNetwork:
        """The network with its class names and normalisation, if need be those of the data."""
        if not self._need_network().class_names:
            self.prepare_data()
        return self.network

    def _evaluated(self) -> Evaluation:
        if self.evaluation is None:
            self.evaluate()
        return self.evaluation

    def _features_of_training_images(self) -> Tensor:
        """float32 [N, C]: what the classifier sees of each training image, computed once."""
        if self._training_features is None:
            loader = self.network.loader(self.data.train_images)
            self._training_features = explain.features_of(self.network.model, loader, self.network.precision,
                                                          self.config.progress)
        return self._training_features

    def _bar(self, text: str) -> str:
        """The text of a progress bar, or none where `progress` wants no bars."""
        return text if progress_style(self.config.progress) == "bar" else ""

    def _keep(self, name: str, figure: Figure) -> Figure:
        path = self.run_dir / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        return figure

    def _write_metrics(self) -> None:
        if self.trainer and self.network and self.trainer.model is self.network.model:      # not of loaded weights
            write_metrics(self.run_dir / "metrics.json", self.trainer, self.speeds, self.results)


def train_cifar100(**settings) -> tuple[nn.Module, dict, dict]:
    """Train with TrainingConfig's settings (`augmentation` and `lr` are short names) and evaluate.

    `train_cifar100(epochs=150, batch_size=256, learning_rate=0.1, mixed_precision=True, augmentation="moderate")`
    is the reference recipe. Returns what `CIFAR100Pipeline.run` does. Raises ConfigError and DataError.
    """
    return CIFAR100Pipeline(TrainingConfig.from_settings(settings)).run()
