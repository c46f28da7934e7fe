"""TrainingConfig: every setting with its default and checks; presets are read from `configs/`.

Notebook, papermill, `train.py` and Python code all use it, so a setting has one name, one type and one error message
everywhere. `make docs` writes docs/SETTINGS.md from this file.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass, field
from pathlib import Path

from .checks import coerce, cross_faults, plain, range_fault, unmet_needs
from .retired import RETIRED, refusals, without_fp32, without_retired
from .text import did_you_mean, short_text, shortened, shown
from .yaml_files import YamlError, read_yaml

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"
PRESET_DIR = CONFIG_DIR / "experiments"

# Short names, accepted wherever the full name is, except by TrainingConfig's constructor.
ALIASES = {"lr": "learning_rate", "augmentation": "augmentation_strength", "scheduler": "lr_scheduler"}


class ConfigError(ValueError):
    """One or more settings are wrong: `faults` lists them, the message shows one per line."""

    def __init__(self, faults: list[str], where: str = "the configuration"):
        self.faults = list(faults)
        super().__init__(f"{len(faults)} fault{'s' * (len(faults) != 1)} in {where}:\n"
                         + "\n".join(f"  - {fault}" for fault in faults))


def setting(default, help, *, choices=None, low=None, above=None, high=None, below=None, least=None,
            shapes_training=True, everyday=False):
    """A dataclass field with help text and allowed values: `low`, `high` inclusive, `above`, `below` exclusive bounds;
    `least` that of values other than 0.

    `shapes_training=False` marks settings that do not change the trained weights, so a run may be resumed with another
    value. `everyday=True` marks commonly changed ones: `train.py --help` and the notebook's parameters cell show them.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "above": above, "high": high,
                                            "below": below, "least": least, "shapes_training": shapes_training,
                                            "everyday": everyday})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """All settings of a run. The defaults are the reference recipe (150 epochs, SGD, cosine).

    Raises one ConfigError for all wrong names, types, values and combinations. The constructor only records `preset`;
    `from_preset` and `from_settings` apply it.
    """

    # What is run
    preset: str | None = setting(None, "preset the settings start from: a file name in configs/experiments",
                                 shapes_training=False, everyday=True)
    run_name: str | None = setting(None, "folder of this run in runs_dir; None: the preset and what differs from it",
                                   shapes_training=False, everyday=True)
    runs_dir: str = setting("runs", "folder that holds all runs", shapes_training=False)
    seed: int = setting(42, "seed of split, initial weights, batches and dropout", low=0, high=2**31 - 1, everyday=True)

    # Data
    data_dir: str = setting("data", "folder with CIFAR-100; downloads go there", shapes_training=False, everyday=True)
    data_source: str = setting("auto", "auto uses what data_dir holds, else downloads; 'drawn' is the drawn demo set",
                               choices=("auto", "npz", "folder", "parquet", "torchvision", "drawn"))
    download: bool = setting(True, "download CIFAR-100 when data_dir does not hold it", shapes_training=False)
    resize: bool = setting(False, "take the central square of pictures of another size and resize it to 32×32 pixels")
    num_classes: int = setting(100, "number of classes; must match the data", low=2, high=100_000)
    val_size: int = setting(5000, "training images, the same share of each class, held out to validate each epoch and, "
                            "with patience, to choose the best one; 0 for none", low=0)
    train_size: int | None = setting(None, "images used, of those val_size leaves, stratified; None for all", low=1)

    # Model
    model: str = setting("CIFAR100CNN", "CIFAR100CNN, the residual reference; FlipCNN, of mirrored channel pairs, for "
                         "short trainings", choices=("CIFAR100CNN", "FlipCNN"))
    widths: tuple[int, ...] | None = setting(None, "channels of each stage; None: its default", low=1, high=4096,
                                             everyday=True)
    dropout_rate: float = setting(0.3, "dropout of CIFAR100CNN: of channels in each block, of features before "
                                  "the classifier", low=0, below=1)

    # Optimiser
    optimizer: str = setting("sgd", "sgd: SGD with Nesterov momentum; muon: Muon for convolution filters, SGD "
                             "for the rest", choices=("sgd", "muon"))
    learning_rate: float = setting(0.1, "peak learning rate; under muon, of the filters", low=1e-8, high=1000,
                                   everyday=True)
    momentum: float = setting(0.9, "momentum of the optimiser that learning_rate belongs to", low=0, below=1)
    weight_decay: float = setting(5e-4, "L2 weight decay of SGD", low=0, high=10)
    gradient_clip: float = setting(1.0, "largest norm of the whole gradient; 0 for no clipping", low=0, least=1e-6)

    # Schedule
    epochs: int = setting(150, "passes over the training images", low=1, high=100_000, everyday=True)
    batch_size: int = setting(256, "images in a forward pass", low=1, high=1_000_000, everyday=True)
    gradient_accumulation_steps: int = setting(1, "batches per step; effective batch: this times batch_size", low=1,
                                               high=100_000)
    lr_scheduler: str = setting("cosine", "decay after the warm-up", choices=("cosine", "linear", "step"))
    warmup_epochs: float = setting(5.0, "epochs of linear warm-up, at most half of all epochs", low=0, high=100_000)
    lr_milestones: tuple[int, ...] = setting((60, 100, 130), "for step: epochs after which the rate falls", low=1)
    lr_gamma: float = setting(0.2, "for step: factor at each milestone", above=0, high=1)
    patience: int = setting(15, "epochs without a better validation accuracy before training stops; 0 never stops "
                            "early and keeps the last weights", low=0)
    min_delta: float = setting(0.001, "for patience: least gain in validation accuracy that counts, as a fraction "
                               "(0.001 is 0.1 points)", low=0, below=1)

    # Regularisation and augmentation
    label_smoothing: float = setting(0.1, "share of the target spread over all classes (Szegedy et al. 2016)",
                                     low=0, below=1, everyday=True)
    self_distillation: float = setting(0.0, "in the last quarter of the epochs, share of the target that the network "
                                       "predicted for the image an epoch earlier (Kim et al. 2021, arXiv 2006.12000); "
                                       "0 for none; not for mixed images", low=0, below=1)
    augmentation_strength: str = setting("moderate", "none, basic, light, moderate or strong; basic is crop and flip, "
                                         "the others add affine and colour changes, strong also cutout; one that "
                                         "is not the preset's has its own crop (4 pixels; none: no crop) and cutout",
                                         choices=("none", "basic", "light", "moderate", "strong"), everyday=True)
    crop_mode: str = setting("constant", "padding of an image before the random crop: black or mirrored",
                             choices=("constant", "reflect"))
    crop_padding: int | None = setting(None, "pixels of padding before the random crop, 0 for no crop; if neither set "
                                       "nor in the preset, as augmentation_strength says", low=0, high=16)
    flip: str = setting("random", "horizontal flip: drawn each time, or alternating between epochs (Jordan 2024)",
                        choices=("random", "alternating"))
    cutout_size: int | None = setting(None, "side of the cutout square in pixels of a 32-pixel image, 0 for none; "
                                      "if neither set nor in the preset, as augmentation_strength says", low=0, high=32)
    mixup_alpha: float = setting(0.0, "mixup (Zhang et al. 2018): Beta parameter, 0 for none", low=0, least=0.01,
                                 high=1000)
    cutmix_alpha: float = setting(0.0, "CutMix (Yun et al. 2019): Beta parameter, 0 for none; with mixup as well, "
                                  "each batch takes one of the two", low=0, least=0.01, high=1000)
    mix_probability: float = setting(1.0, "share of the batches that mixup or CutMix changes", low=0, high=1)
    start_image_size: int = setting(32, "image side at the start; grows by up to 8 at a time to 32, which it has "
                                    "after image_growth_fraction of training (progressive resizing)", low=12, high=32)
    image_growth_fraction: float = setting(0.6, "share of training before the image side is 32", low=0, high=1)
    ema_decay: float = setting(0.0, "decay per step of the averaged weights used for evaluation, smaller at first; 0 "
                               "for no average", low=0, below=1)

    # Machine
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps, …", shapes_training=False)
    mixed_precision: bool = setting(True, "compute in 16 bits where that is faster; false: in fp32", everyday=True)
    precision: str = setting("auto", "16-bit type of mixed_precision; auto: bf16 where it is fast, fp16 with loss "
                             "scaling on other GPUs, fp32 elsewhere", choices=("auto", "bf16", "fp16"))
    compile: bool = setting(False, "torch.compile the network: slow to start, then faster on a recent GPU")

    # Files and progress
    checkpoint_dir: str | None = setting(None, "folder of the checkpoints; None for the run's own",
                                         shapes_training=False, everyday=True)
    checkpoint_interval: int = setting(5, "epochs between two checkpoints, which are at least 10 s apart", low=1,
                                       shapes_training=False)
    checkpoint_minutes: float = setting(10.0, "also save when the last checkpoint is this old, even within an epoch; 0 "
                                        "for never", low=0, shapes_training=False)
    resume: str = setting("auto", "'auto' continues the run's newest checkpoint, 'never' trains anew, a path "
                          "continues that file, or the newest in that folder", shapes_training=False, everyday=True)
    drive: bool = setting(False, "on Colab: mount Google Drive and keep the checkpoints there", shapes_training=False,
                          everyday=True)
    progress: str = setting("auto", "bar, one line per epoch, or none; auto: a bar where somebody watches, else lines",
                            choices=("auto", "bar", "lines", "none"), shapes_training=False)

    def __new__(cls, *args, **settings):
        # Runs before the dataclass' __init__, whose TypeError for an unknown name suggests nothing.
        faults = name_faults(settings, full_names_only=True)
        if faults:
            raise ConfigError(faults + list(value_faults(settings).values()))
        return super().__new__(cls)

    def __post_init__(self):
        faults = value_faults(self._values())
        for name, value in self._values().items():
            object.__setattr__(self, name, coerce(value, HINTS[name])[0])
        if "preset" not in faults and self.preset is not None and self.preset not in preset_names():
            faults["preset"] = _no_such_preset(self.preset, f"preset={shown(self.preset)}")
        every_fault = list(faults.values()) + cross_faults(self, wrong=set(faults))
        if every_fault:
            raise ConfigError(every_fault)

    @classmethod
    def from_settings(cls, settings: dict, where: str = "the settings") -> TrainingConfig:
        """Build from a mapping that may hold aliases, `preset`, `None` for the preset's value, and retired settings
        (see `helpers.retired`). Raises one ConfigError for all faults."""
        settings, gone = without_retired({name: plain(value) for name, value in settings.items()})
        faults = refusals(gone) + name_faults(settings)
        known = _given({name: value for name, value in settings.items() if name in KNOWN_NAMES})
        try:
            if settings.get(EXTENDS) is not None:       # a preset's file, perhaps with another preset
                known = on_top(known, preset_settings(settings[EXTENDS]))
            base = preset_settings(known["preset"]) if "preset" in known else {}
        except ConfigError as error:    # without a preset, values can only be checked one by one
            faults += error.faults + list(value_faults(without_fp32(known)).values())
            raise ConfigError(faults, where) from error
        try:
            config = cls(**without_fp32(on_top(known, base)))
        except ConfigError as error:
            faults += error.faults
        if faults:
            raise ConfigError(faults, where)
        return config

    @classmethod
    def from_preset(cls, name: str, **overrides) -> TrainingConfig:
        """The preset `name` (a file in configs/experiments) with `overrides` on top."""
        return cls.from_settings({**overrides, "preset": name}, f"preset {name!r} with its overrides")

    @classmethod
    def from_file(cls, path, **overrides) -> TrainingConfig:
        """A YAML file of settings, as for papermill's `-f`, with `overrides` on top; see `layered_settings`."""
        return cls.from_settings(layered_settings(read_settings(path), overrides), str(path))

    def replace(self, **changes) -> TrainingConfig:
        """A checked copy with some settings changed. Here `None` is a value: `widths=None` unsets them."""
        faults = name_faults(changes)
        if faults:
            raise ConfigError(faults + list(value_faults(_full_names(changes)).values()))
        return type(self)(**on_top(changes, self._values()))

    def to_dict(self) -> dict:
        """Plain values (tuples as lists) for metrics.json, checkpoints and YAML."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self._values().items()}

    def _values(self) -> dict:
        return {name: getattr(self, name) for name in SETTINGS}

    def training_settings(self) -> dict:
        """The settings that shape the trained weights; a resumed run must keep them."""
        return {name: value for name, value in self.to_dict().items() if SETTINGS[name].metadata["shapes_training"]}

    @classmethod
    def training_settings_of(cls, settings: dict) -> dict:
        """The `training_settings` of an earlier run, in today's names. Settings added since have their default; retired
        ones stay only where they differ from today's behaviour."""
        kept, gone = without_retired(without_fp32(settings))
        known = {name: value for name, value in kept.items()
                 if name in SETTINGS and SETTINGS[name].metadata["shapes_training"]}
        return cls().training_settings() | known | gone

    def changed_settings(self) -> dict:
        """The training settings that differ from the preset's, or from the defaults without a preset."""
        base = preset_settings(self.preset) if self.preset else {}
        before = type(self)(**without_fp32(_without_strength_details(base, self._values()))).training_settings()
        return {name: value for name, value in self.training_settings().items() if value != before[name]}

    def idle_settings(self) -> dict[str, str]:
        """The settings without effect that differ from the preset's or are ingredients, each with what it needs."""
        data = [name for name in ("data_dir", "download") if getattr(self, name) != SETTINGS[name].default]
        return unmet_needs(self, [*self.changed_settings(), *data])

    def model_arguments(self) -> dict:
        """Arguments of `models.build_model`."""
        return {"name": self.model, "num_classes": self.num_classes, "widths": self.widths,
                "dropout_rate": self.dropout_rate}

    def training_images(self, available: int) -> int:
        """Images trained on, of `available` labelled ones."""
        return available - self.val_size if self.train_size is None else self.train_size

    @property
    def has_soft_targets(self) -> bool:
        return has_soft_targets(self.to_dict())

    @property
    def mixes(self) -> bool:
        """Are images mixed, two to one?"""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    @property
    def effective_batch_size(self) -> int:
        return self.batch_size * self.gradient_accumulation_steps

    @functools.cached_property      # the preset's file may be edited while a run goes on
    def name(self) -> str:
        """`run_name`, or the preset and its changes: `quick-epochs=3`."""
        if self.run_name:
            return self.run_name
        changes = (f"{name}={short_text(value)}" for name, value in self.changed_settings().items())
        return shortened("-".join([self.preset or "reference", *changes]), 120)

    @property
    def run_dir(self) -> Path:
        """Folder of this run's log, metrics and figures."""
        return Path(self.runs_dir).expanduser() / self.name


SETTINGS = {spec.name: spec for spec in dataclasses.fields(TrainingConfig)}
KNOWN_NAMES = {*SETTINGS, *ALIASES}
HINTS = typing.get_type_hints(TrainingConfig)
EVERYDAY = tuple(name for name, spec in SETTINGS.items() if spec.metadata["everyday"])
# The first setting of each group, and the group's title.
GROUPS = {"preset": "What is run", "data_dir": "Data", "model": "Model", "optimizer": "Optimiser", "epochs": "Schedule",
          "label_smoothing": "Regularisation and augmentation", "device": "Machine",
          "checkpoint_dir": "Files and progress"}
EXTENDS = "extends"     # in a preset file: the preset it starts from


def by_group() -> dict[str, list[str]]:
    """Names of the settings by the title of their group, in this file's order."""
    groups = {}
    for name in SETTINGS:
        if name in GROUPS:
            names = groups[GROUPS[name]] = []
        names.append(name)
    return groups


def has_soft_targets(settings: dict) -> bool:
    """Do runs with these `training_settings` train on targets other than the label alone?"""
    return any(settings[name] for name in ("label_smoothing", "self_distillation", "mixup_alpha", "cutmix_alpha"))


def name_faults(settings, full_names_only: bool = False) -> list[str]:
    """A sentence for each unknown name, with the nearest known one, and for each name given twice."""
    names = SETTINGS if full_names_only else KNOWN_NAMES
    faults = []
    for name in settings:
        if name in (*RETIRED, EXTENDS):
            if full_names_only:
                faults.append(f"{name}: belongs in files and mappings; TrainingConfig.from_settings reads it")
        elif name not in names:
            hint = did_you_mean(ALIASES.get(name, shown(name).lower().strip("'")), sorted(names))
            faults.append(f"unknown setting {shown(name)}{hint or '; `python train.py --help-all` lists all settings'}")
        elif name in ALIASES and settings[name] is not None and settings.get(ALIASES[name]) is not None:
            faults.append(f"{name!r} and {ALIASES[name]!r} are the same setting; give one of them")
    return faults


def value_faults(settings: dict) -> dict[str, str]:
    """A sentence, by name, for each setting whose value alone is wrong; ignores unknown names."""
    faults = {}
    for name, value in settings.items():
        if name in SETTINGS:
            coerced, fault = coerce(value, HINTS[name])
            fault = fault or range_fault(coerced, SETTINGS[name].metadata)
            if fault:
                hint = "; fp32 is mixed_precision=False" if (name, coerced) == ("precision", "fp32") else ""
                refused = refusals(without_retired({name: coerced})[1])
                faults[name] = refused[0] if refused else f"{name}={shown(value)}: {fault}{hint}"
    return faults


def preset_names() -> list[str]:
    """Sorted names of the presets."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def _no_such_preset(name, asked: str) -> str:
    hint = did_you_mean(shown(name).strip("'"), preset_names(), cutoff=0.5)
    return f"{asked}: no such file in configs/experiments{hint}; there are {', '.join(preset_names())}"


def preset_settings(name: str, extended_by: tuple[str, ...] = ()) -> dict:
    """The settings of a preset on top of those it extends. Raises ConfigError."""
    name, fault = coerce(name, str)
    if fault or name not in preset_names():
        asked = f"{extended_by[-1]}.yaml extends {shown(name)}" if extended_by else f"preset={shown(name)}"
        raise ConfigError([_no_such_preset(name, asked)])
    path = PRESET_DIR / f"{name}.yaml"
    try:
        own = read_settings(path)
    except ConfigError as error:
        raise ConfigError([f"preset={name!r}: {path.name}: {fault}" for fault in error.faults]) from error
    extends, preset = own.pop(EXTENDS, None), own.pop("preset", name)
    if extends and preset != name:
        raise ConfigError([f"preset={name!r}: {path.name} names preset={preset!r} beside extends={extends!r}; write "
                           f"preset: {name} there"])
    parent = extends or preset
    base = {} if parent in (name, *extended_by) else preset_settings(parent, (*extended_by, name))
    return on_top(own, base) | {"preset": name}


def on_top(given: dict, base: dict) -> dict:
    """`given`, perhaps by short names, over `base`, without the crop and cutout of `base` where `given` changes the
    augmentation strength, which brings its own."""
    given = _full_names(given)
    return _without_strength_details(base, given) | given


def _without_strength_details(base: dict, given: dict) -> dict:
    if given.get("augmentation_strength") in (None, base.get("augmentation_strength")):
        return base
    return {name: value for name, value in base.items() if name not in ("crop_padding", "cutout_size")}


def default_settings() -> dict:
    """`configs/default.yaml`: where the notebook and train.py start when no preset is named."""
    return read_settings(CONFIG_DIR / "default.yaml")


def read_settings(path) -> dict:
    """The settings in a YAML file, with full names and without `None`s. Raises ConfigError with all faults."""
    path = Path(path)
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError([f"no such file; presets are {', '.join(preset_names())}"], str(path)) from None
    except OSError as error:
        raise ConfigError([f"cannot be read: {error}"], str(path)) from None
    except YamlError as error:
        raise ConfigError([str(error)], str(path)) from None
    if not isinstance(content or {}, dict):
        raise ConfigError(["must hold lines of the form 'setting: value'"], str(path))
    content, gone = without_retired(content or {})
    settings = _given(content)
    faults = refusals(gone) + name_faults(content) + list(value_faults(without_fp32(settings)).values())
    if faults:
        raise ConfigError(faults, str(path))
    return settings


def layered_settings(*layers: dict) -> dict:
    """Merge mappings; later ones win. `configs/default.yaml` comes first if none names or extends a preset.

    Drops `None`s. A short name replaces the full one of an earlier layer. Unknown names and names given twice within a
    layer stay, for `TrainingConfig.from_settings` to report.
    """
    if all(layer.get("preset") is None and layer.get(EXTENDS) is None for layer in layers):
        layers = (default_settings(), *layers)
    merged = {}
    for layer in layers:
        given = {name: value for name, value in layer.items() if not _is_left_out(name, value)}
        replaced = _full_names(given)
        merged = {name: value for name, value in merged.items() if ALIASES.get(name, name) not in replaced} | given
    return merged


def _full_names(settings: dict) -> dict:
    return {ALIASES.get(name, name): value for name, value in settings.items()}


def _given(settings: dict) -> dict:
    """Full names, without `None`s: these go first, or `lr=None` would undo a `learning_rate`."""
    return _full_names({name: value for name, value in settings.items() if not _is_left_out(name, value)})


def _is_left_out(name: str, value) -> bool:
    """Is the value None, or text that says so for a setting that is no text itself, as papermill's -p brings it, and
    the command line in a list?"""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return value is None or (isinstance(value, str) and value.strip().lower() in ("null", "none", "~")
                             and str not in (hint := HINTS.get(ALIASES.get(name, name), str), *typing.get_args(hint)))
