"""TrainingConfig: every setting, its default and its check; presets are read from `configs/`.

The notebook, papermill, `train.py` and Python code all come through here, so a setting has one name, one
type and one error message wherever it is given.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import difflib
import math
import typing
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import yaml

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"
PRESET_DIR = CONFIG_DIR / "experiments"

# Short names that are accepted wherever the full name is.
ALIASES = {"lr": "learning_rate", "augmentation": "augmentation_strength", "scheduler": "lr_scheduler"}


class ConfigError(ValueError):
    """One or more settings are wrong. `faults` lists all of them, the message shows them one a line."""

    def __init__(self, faults: list[str], where: str = "the configuration"):
        self.faults = list(faults)
        super().__init__(f"{len(faults)} fault{'s' * (len(faults) != 1)} in {where}:\n"
                         + "\n".join(f"  - {fault}" for fault in faults))


def setting(default, help, *, choices=None, low=None, above=None, high=None, below=None, shapes_training=True):
    """A dataclass field with its documentation and allowed values.

    `low`/`high` are inclusive bounds, `above`/`below` exclusive ones. `shapes_training=False` marks settings
    that do not change the trained weights, so that a run may be resumed with another value of them.
    """
    return field(default=default, metadata={
        "help": help, "choices": choices, "low": low, "above": above, "high": high, "below": below,
        "shapes_training": shapes_training})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """All settings of a run. The defaults are the reference recipe (150 epochs, SGD, cosine).

    Raises ConfigError, naming every fault at once, when a value has the wrong type or is out of range; a
    misspelt name is answered with the nearest right one. `preset` is only recorded here: `from_preset` and
    `from_settings` are what applies it.
    """

    # What is run
    preset: str | None = setting(None, "preset the settings start from: a file name in configs/experiments",
                                 shapes_training=False)
    run_name: str | None = setting(None, "folder of this run under runs_dir; None builds it from the preset and "
                                   "what differs from it", shapes_training=False)
    runs_dir: str = setting("runs", "folder that holds all runs", shapes_training=False)
    seed: int = setting(42, "seed of the split, the initial weights, the batches and the dropout", low=0,
                        high=2**31 - 1)

    # Data
    data_dir: str = setting("data", "folder with cifar100.npz, train/ and test/ class folders, or torchvision's "
                            "files; downloads go there", shapes_training=False)
    data_source: str = setting("auto", "auto takes what data_dir holds and else downloads; 'drawn' is the "
                               "procedurally drawn demo set",
                               choices=("auto", "npz", "folder", "torchvision", "drawn"))
    download: bool = setting(True, "may CIFAR-100 be downloaded when it is not in data_dir?", shapes_training=False)
    num_classes: int = setting(100, "number of classes; must equal what the data hold", low=2)
    val_size: int = setting(5000, "training images set aside, the same share of each class, to watch training "
                            "by and, with patience, to choose the best epoch; 0 sets none aside", low=0)
    train_size: int | None = setting(None, "training images used of those that val_size leaves, the same share of each "
                                     "class; None uses all", low=1)
    data_placement: str = setting("auto", "where the images lie in training: on the device, or in host memory "
                                  "with batches copied ahead; auto by size", choices=("auto", "device", "host"),
                                  shapes_training=False)

    # Model
    model: str = setting("CIFAR100CNN", "network", choices=("CIFAR100CNN", "FastCNN"))
    widths: tuple[int, ...] | None = setting(None, "channels of the stages; None takes the network's own", low=1)
    dropout_rate: float = setting(0.3, "dropout of CIFAR100CNN: of channels in each block, of features before "
                                  "the classifier", low=0, below=1)
    whitening: bool = setting(True, "FastCNN: fix the first layer's filters to whitening ones of the training images")
    pool_first: bool = setting(False, "FastCNN: groups after the first pool before their first convolution, not after")
    skip: bool = setting(True, "FastCNN: a skip over the last two convolutions of each group")
    norm_scale: bool = setting(False, "FastCNN: train the scales of the batch norms")
    input_skip: bool = setting(False, "FastCNN: groups after the first also have a skip over their first convolution")
    mean_features: bool = setting(False, "FastCNN: the classifier also takes each channel's mean over the image, not "
                                  "only its maximum")
    flip_equivariant: bool = setting(False, "FastCNN: layers that commute with mirroring, at half the arithmetic; an "
                                     "image and its mirror image get the same logits")

    # Optimiser
    optimizer: str = setting("sgd", "sgd: SGD with Nesterov momentum; muon: Muon for convolution filters, SGD "
                             "for the rest", choices=("sgd", "muon"))
    learning_rate: float = setting(0.1, "peak learning rate (of the convolution filters under muon)", above=0)
    momentum: float = setting(0.9, "momentum of the optimiser that learning_rate belongs to", low=0, below=1)
    weight_decay: float = setting(5e-4, "L2 weight decay of SGD", low=0)
    decay_norm_and_bias: bool = setting(True, "does weight decay also act on norm parameters and biases?")
    norm_learning_rate: float = setting(0.05, "under muon: peak learning rate of norm parameters and biases", above=0)
    head_learning_rate: float = setting(0.5, "under muon: peak learning rate of the classifier", above=0)
    head_momentum: float = setting(0.85, "under muon: momentum of the SGD part", low=0, below=1)
    gradient_clip: float = setting(1.0, "largest norm of the whole gradient, 0 for no clipping", low=0)

    # Schedule
    epochs: int = setting(150, "passes over the training images", low=1)
    batch_size: int = setting(256, "images in a forward pass", low=1)
    gradient_accumulation_steps: int = setting(1, "forward passes for one optimiser step; the effective batch is "
                                               "this times batch_size", low=1)
    lr_scheduler: str = setting("cosine", "fall of the learning rate after the warm-up",
                                choices=("cosine", "linear", "step"))
    warmup_epochs: float = setting(5.0, "epochs of linear warm-up; at most half of all epochs are used", low=0)
    lr_milestones: tuple[int, ...] = setting((60, 100, 130), "for step: epochs after which the rate falls", low=1)
    lr_gamma: float = setting(0.2, "for step: factor at each milestone", above=0, high=1)
    patience: int = setting(15, "epochs without a better validation accuracy before training stops; 0 never stops "
                            "early and keeps the last weights", low=0)
    min_delta: float = setting(0.001, "least gain in validation accuracy that counts, as a fraction (0.001 is 0.1 "
                               "points)", low=0, below=1)

    # Regularisation and augmentation
    label_smoothing: float = setting(0.1, "share of the target spread over all classes (Szegedy et al. 2016)",
                                     low=0, below=1)
    self_distillation: float = setting(0.0, "share of the target that the network itself predicted for the image an "
                                       "epoch before (Kim et al. 2021, arXiv 2006.12000), 0 for none; not for mixed "
                                       "images", low=0, below=1)
    self_distillation_from: float = setting(0.75, "share of the epochs after which self-distillation begins", low=0,
                                            high=1)
    augmentation_strength: str = setting("moderate", "basic is crop and flip; light, moderate and strong add affine "
                                         "and colour changes, strong cutout as well",
                                         choices=("none", "basic", "light", "moderate", "strong"))
    crop_mode: str = setting("constant", "what surrounds an image before the random crop: black or its mirror",
                             choices=("constant", "reflect"))
    crop_padding: int | None = setting(None, "pixels that surround a 32-pixel image before the random crop, 0 for no "
                                       "crop; None: as augmentation_strength says", low=0, high=16)
    flip: str = setting("random", "horizontal flip: drawn each time, or alternating between epochs (Jordan 2024)",
                        choices=("random", "alternating"))
    cutout_size: int | None = setting(None, "side of the cutout square in pixels of a 32-pixel image, 0 for none; "
                                      "None: as augmentation_strength says", low=0, high=32)
    mixup_alpha: float = setting(0.0, "mixup (Zhang et al. 2018): Beta parameter, 0 for none", low=0)
    cutmix_alpha: float = setting(0.0, "CutMix (Yun et al. 2019): Beta parameter, 0 for none; with mixup as well, "
                                  "each batch takes one of the two", low=0)
    mix_probability: float = setting(1.0, "share of the batches that mixup or CutMix changes", low=0, high=1)
    mix_until: float = setting(1.0, "share of training after which mixup and CutMix end, so that the last steps see "
                                    "whole images (He et al. 2019, arXiv 1909.09148)", low=0, high=1)
    start_image_size: int = setting(32, "image side at the start; grows to 32 during the first "
                                    "image_growth_fraction of training (progressive resizing)", low=12, high=32)
    image_growth_fraction: float = setting(0.6, "share of training in which the image side grows", low=0, high=1)
    ema_decay: float = setting(0.0, "decay a step of the averaged weights used for evaluation, 0 for none; less at "
                               "first", low=0, below=1)

    # Machine
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps, …", shapes_training=False)
    mixed_precision: bool = setting(True, "run the network in 16-bit floating point under autocast")
    precision: str = setting("auto", "16-bit type: auto takes bf16 where it is fast, fp16 with loss scaling on "
                             "other GPUs, fp32 else", choices=("auto", "fp32", "bf16", "fp16"))
    channels_last: bool = setting(True, "NHWC memory layout, faster on tensor cores and in oneDNN; not used on MPS")
    compile: bool = setting(False, "torch.compile the network: slow to start, faster afterwards on a recent GPU")

    # Evaluation and files
    eval_batch_size: int = setting(500, "images in a forward pass of the evaluation", low=1, shapes_training=False)
    flip_tta: bool = setting(True, "also report the mean prediction over each test image and its mirror image",
                             shapes_training=False)
    checkpoint_dir: str | None = setting(None, "folder of the checkpoints, None for the run's own",
                                         shapes_training=False)
    checkpoint_interval: int = setting(5, "epochs between two checkpoints", low=1, shapes_training=False)
    checkpoint_minutes: float = setting(10.0, "a checkpoint is also written when the last is this old, even in "
                                        "mid-epoch; 0 for never", low=0, shapes_training=False)
    resume: str = setting("auto", "auto continues the newest readable checkpoint of the run, never starts over, "
                          "a path continues that file", shapes_training=False)
    drive: bool = setting(False, "on Colab: mount Google Drive and keep the checkpoints there", shapes_training=False)
    progress: str = setting("auto", "bar, one line an epoch, or nothing; auto takes the bar where somebody watches",
                            choices=("auto", "bar", "lines", "none"), shapes_training=False)

    def __new__(cls, *args, **settings):
        # Comes before dataclass' own __init__, whose TypeError for an unknown name suggests nothing.
        faults = name_faults(settings, full_names_only=True)
        if faults:
            raise ConfigError(faults + list(value_faults(settings).values()))
        return super().__new__(cls)

    def __post_init__(self):
        faults = value_faults(self._values())
        for name, value in self._values().items():
            object.__setattr__(self, name, _coerce(value, HINTS[name])[0])
        every_fault = list(faults.values()) + _cross_faults(self, wrong=set(faults))
        if every_fault:
            raise ConfigError(every_fault)

    # Reading -----------------------------------------------------------------------------------------------

    @classmethod
    def from_settings(cls, settings: dict, where: str = "the settings") -> TrainingConfig:
        """Build from a mapping that may hold aliases, `preset`, and `None` for "as the preset says".

        Names and values are checked together, so all faults come in one ConfigError.
        """
        faults = name_faults(settings)
        known = _given({name: value for name, value in settings.items() if name in KNOWN_NAMES})
        try:
            base = _below(known, preset_settings(known["preset"])) if "preset" in known else {}
        except ConfigError as error:    # without the preset, values can only be checked one by one
            raise ConfigError(faults + error.faults + list(value_faults(known).values()), where) from error
        try:
            config = cls(**(base | known))
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
        """A YAML file of settings with `overrides` on top; the format papermill's `-f` reads.

        Where neither names a preset, that of `default_settings` is taken, as the notebook does.
        """
        return cls.from_settings(layered_settings(read_settings(path), overrides), str(path))

    # Writing -----------------------------------------------------------------------------------------------

    def replace(self, **changes) -> TrainingConfig:
        """A copy with some settings changed, checked again. A `None` is a value here: `widths=None` unsets them."""
        faults = name_faults(changes)
        if faults:
            raise ConfigError(faults + list(value_faults(_full_names(changes)).values()))
        return type(self)(**(self._values() | _full_names(changes)))

    def to_dict(self) -> dict:
        """Plain values (tuples as lists), as they go into metrics.json, checkpoints and YAML."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self._values().items()}

    def _values(self) -> dict:
        return {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}

    def training_settings(self) -> dict:
        """The settings that shape the trained weights: a run may only be resumed with the same ones."""
        values = self.to_dict()
        return {spec.name: values[spec.name] for spec in dataclasses.fields(self)
                if spec.metadata["shapes_training"]}

    @classmethod
    def with_defaults(cls, training_settings: dict) -> dict:
        """Those of an earlier run with what was no setting yet: it stood, in effect, at its default."""
        return cls().training_settings() | training_settings

    def changed_settings(self) -> dict:
        """The training settings that differ from the preset's (from the defaults where there is no preset)."""
        base = type(self)(**_below(self._values(), preset_settings(self.preset))) if self.preset else type(self)()
        before = base.training_settings()
        return {name: value for name, value in self.training_settings().items() if value != before[name]}

    def idle_settings(self) -> dict[str, str]:
        """Those of `changed_settings` that have no effect beside the others, each with what it needs."""
        changed = self.changed_settings()
        return {name: need for names, need, is_met in _NEEDS if not is_met(self) for name in names if name in changed}

    def model_arguments(self) -> dict:
        """The settings that `models.build_model` takes, by its names."""
        names = ("num_classes", "widths", "dropout_rate", "whitening", "pool_first", "skip", "norm_scale", "input_skip",
                 "mean_features", "flip_equivariant")
        return {"name": self.model, **{name: getattr(self, name) for name in names}}

    def training_images(self, available: int) -> int:
        """How many of `available` images with labels are trained on."""
        return available - self.val_size if self.train_size is None else self.train_size

    @property
    def has_soft_targets(self) -> bool:
        """Is the training loss measured against more than the label?"""
        return max(self.label_smoothing, self.self_distillation, self.mixup_alpha, self.cutmix_alpha) > 0

    @property
    def has_mirrored_pairs(self) -> bool:
        """Does the network say the same of an image and its mirror image?"""
        return self.model == "FastCNN" and self.flip_equivariant

    @property
    def effective_batch_size(self) -> int:
        """Images in one optimiser step."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def name(self) -> str:
        """`run_name`, or the preset with what differs from it: `quick-epochs=3`."""
        if self.run_name:
            return self.run_name
        changes = [f"{name}={short_text(value)}" for name, value in self.changed_settings().items()]
        return shortened("-".join([self.preset or "reference", *changes]), 120)

    @property
    def run_dir(self) -> Path:
        """Folder of this run's log, metrics and figures."""
        return Path(self.runs_dir).expanduser() / self.name


SETTINGS = {spec.name: spec for spec in dataclasses.fields(TrainingConfig)}
SETTING_NAMES = frozenset(SETTINGS)
KNOWN_NAMES = SETTING_NAMES | set(ALIASES)
HINTS = typing.get_type_hints(TrainingConfig)


# (settings, what they need to have an effect, is it so?)
_NEEDS = [
    (("dropout_rate",), "model='CIFAR100CNN'", lambda config: config.model == "CIFAR100CNN"),
    (("whitening", "pool_first", "skip", "norm_scale", "input_skip", "mean_features",
      "flip_equivariant"), "model='FastCNN'",
     lambda config: config.model == "FastCNN"),
    (("flip",), "flip_equivariant=False", lambda config: not config.has_mirrored_pairs),
    (("norm_learning_rate", "head_learning_rate", "head_momentum"), "optimizer='muon'",
     lambda config: config.optimizer == "muon"),
    (("lr_milestones", "lr_gamma"), "lr_scheduler='step'", lambda config: config.lr_scheduler == "step"),
    (("min_delta",), "patience above 0", lambda config: config.patience > 0),
    (("mix_probability", "mix_until"), "mixup_alpha or cutmix_alpha above 0",
     lambda config: config.mixup_alpha > 0 or config.cutmix_alpha > 0),
    (("self_distillation_from",), "self_distillation above 0", lambda config: config.self_distillation > 0),
    (("image_growth_fraction",), "start_image_size below 32", lambda config: config.start_image_size < 32)]


def name_faults(settings, full_names_only: bool = False) -> list[str]:
    """A sentence for each unknown name, with the nearest right one, and for each name given twice."""
    names = SETTING_NAMES if full_names_only else KNOWN_NAMES
    faults = []
    for name in settings:
        if name not in names:
            near = [ALIASES[name]] if name in ALIASES else difflib.get_close_matches(
                str(name).lower(), sorted(names), n=1, cutoff=0.6)
            faults.append(f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else
                          "; `python train.py --help` lists all settings"))
        elif name in ALIASES and settings[name] is not None and settings.get(ALIASES[name]) is not None:
            faults.append(f"{name!r} and {ALIASES[name]!r} are the same setting; give one of them")
    return faults


def value_faults(settings: dict) -> dict[str, str]:
    """A sentence by name for each setting whose own value is wrong; unknown names are passed over."""
    faults = {}
    for name, value in settings.items():
        if name in SETTING_NAMES:
            coerced, fault = _coerce(value, HINTS[name])
            fault = fault or _range_fault(coerced, SETTINGS[name].metadata)
            if fault:
                faults[name] = f"{name}={value!r}: {fault}"
    return faults


def preset_names() -> list[str]:
    """Names that `preset` takes, sorted."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def preset_settings(name: str) -> dict:
    """The settings of a preset, with those of the preset that it starts from below. Raises ConfigError."""
    chain, merged = [], {}
    while name is not None and name not in chain:
        path = PRESET_DIR / f"{name}.yaml"
        if name not in preset_names():
            near = difflib.get_close_matches(str(name), preset_names(), n=1, cutoff=0.5)
            raise ConfigError([f"preset={name!r}: no such file in configs/experiments"
                               + (f"; did you mean {near[0]!r}?" if near else "")
                               + f"; there are {', '.join(preset_names())}"])
        chain.append(name)
        try:
            own = read_settings(path)
        except ConfigError as error:
            raise ConfigError([f"preset={name!r}: {path.name}: {fault}" for fault in error.faults]) from error
        merged = _below(merged, own) | merged
        name = own.get("preset")
    return merged | {"preset": chain[0]}


def _below(given: dict, base: dict) -> dict:
    """What of `base` stands below `given`: an augmentation strength of its own brings its crop and cutout along."""
    if given.get("augmentation_strength") in (None, base.get("augmentation_strength")):
        return base
    return {name: value for name, value in base.items() if name not in ("crop_padding", "cutout_size")}


def default_settings() -> dict:
    """What the notebook and train.py start from when no preset is named: `configs/default.yaml`."""
    return read_settings(CONFIG_DIR / "default.yaml")


def read_settings(path) -> dict:
    """The mapping in a YAML file, with full names and without the `None`s. Raises ConfigError with all faults."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"no such file; presets are {', '.join(preset_names())}"], str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"cannot be read as YAML: {error}"], str(path)) from None
    if not isinstance(content or {}, dict):
        raise ConfigError(["must hold lines of the form 'setting: value'"], str(path))
    settings = _given(content or {})
    faults = name_faults(content or {}) + list(value_faults(settings).values())
    if faults:
        raise ConfigError(faults, str(path))
    return settings


def layered_settings(*layers: dict) -> dict:
    """Mappings as one, later ones going first, on `configs/default.yaml` where none names a preset.

    `None`s are left out. A short name replaces the full one of an earlier layer; unknown names and names given
    twice within a layer stay, so that `TrainingConfig.from_settings` reports them.
    """
    if all(layer.get("preset") is None for layer in layers):
        layers = (default_settings(), *layers)
    merged = {}
    for layer in layers:
        given = {name: value for name, value in layer.items() if value is not None}
        replaced = _full_names(given)
        merged = {name: value for name, value in merged.items() if ALIASES.get(name, name) not in replaced} | given
    return merged


def notebook_settings(namespace: dict) -> dict:
    """The settings a notebook's parameter cells hold, misspelt names included.

    papermill puts what it is given, unknown names too, into a cell of its own below the one tagged
    `parameters`; both have a comment `# Parameters`, papermill's with nothing else in that line. Reading
    the names that these cells assign (their text is in IPython's `In`) finds a misspelt one without mistaking
    a user's own variables for settings. Of each kind the cell run last counts, so that a line taken out of it is
    out. Where cells leave no text (nbval keeps no history) the variables named like settings are taken.
    `namespace` is the notebook's `globals()`.
    """
    last_run = {}
    for source in namespace.get("In", []):
        marks = [line.rstrip() for line in source.splitlines() if line.startswith("# Parameters")]
        assigned = _assigned_names(source) if marks else None
        if assigned is not None:
            last_run[marks[0] == "# Parameters"] = assigned
    names = sorted(set().union(*last_run.values())) if last_run else KNOWN_NAMES & set(namespace)
    return layered_settings({name: namespace.get(name) for name in names})


def _assigned_names(source: str) -> set[str] | None:
    """The names that the statements of a cell assign; None for a cell that is no Python and so did not run."""
    python = "\n".join(line for line in source.splitlines() if not line.startswith(("%", "!")))      # no magics
    try:
        statements = ast.parse(python).body
    except SyntaxError:
        return None
    targets = [target for node in statements for target in getattr(node, "targets", [getattr(node, "target", None)])
               if target is not None]
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


# Checks ----------------------------------------------------------------------------------------------------

def _coerce(value, hint):
    """(value as the hinted type, fault or ""). YAML reads 1e-3 as text and 1 as int; both are meant as numbers."""
    options = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    if value is None:
        return value, "" if type(None) in options else "must not be empty"
    kind = options[0]
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, (tuple, list)) else [value]
        pairs = [_coerce(item, typing.get_args(kind)[0]) for item in items]
        return tuple(item for item, _ in pairs), next((fault for _, fault in pairs if fault), "")
    if kind is bool:
        return value, "" if isinstance(value, bool) else "must be true or false"
    if kind is str:     # a run_name such as 7 or 2025-01-31 is a number or a date to YAML and papermill
        is_text = isinstance(value, (str, Path, int, float, datetime.date)) and not isinstance(value, bool)
        if value == "None" and type(None) in options:
            return value, "is the text 'None'; leave the setting out for none (in YAML: null)"
        return (str(value), "") if is_text else (value, "must be text")
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        return value, f"must be {'a whole' if kind is int else 'a'} number"
    if kind is int:
        return (int(number), "") if number.is_integer() else (value, "must be a whole number")
    return number, ""


def _range_fault(value, rules) -> str:
    for item in value if isinstance(value, tuple) else [value]:
        if item is None:
            continue
        if rules["choices"] and item not in rules["choices"]:
            near = difflib.get_close_matches(str(item), rules["choices"], n=1)
            return (f"must be one of {', '.join(rules['choices'])}"
                    + (f"; did you mean {near[0]!r}?" if near else ""))
        if rules["low"] is not None and item < rules["low"]:
            return f"must be at least {rules['low']}"
        if rules["above"] is not None and item <= rules["above"]:
            return f"must be above {rules['above']}"
        if rules["high"] is not None and item > rules["high"]:
            return f"must be at most {rules['high']}"
        if rules["below"] is not None and item >= rules["below"]:
            return f"must be below {rules['below']}"
    return ""


def _cross_faults(config: TrainingConfig, wrong: set[str]) -> list[str]:
    """Faults between settings that are each right on their own, not those that involve the settings in `wrong`."""
    def right(*names: str) -> bool:
        return not wrong & set(names)

    faults = []
    if right("model", "widths") and config.widths is not None:
        stages = {"CIFAR100CNN": 4, "FastCNN": 3}[config.model]
        if len(config.widths) != stages:
            faults.append(f"widths={list(config.widths)}: {config.model} takes {stages} of them")
    if right("model", "flip_equivariant", "widths", "input_skip") and config.has_mirrored_pairs:
        if any(width % 2 for width in config.widths or ()):
            faults.append(f"widths={list(config.widths)}: with flip_equivariant=True channels come in pairs; "
                          "make them even")
        if config.input_skip:
            faults.append("input_skip=True: not with flip_equivariant=True, whose pairs of channels it would part")
    if right("precision", "mixed_precision") and config.precision in ("bf16", "fp16") and not config.mixed_precision:
        faults.append(f"precision={config.precision!r}: contradicts mixed_precision=False; "
                      "set mixed_precision=True, or precision to 'auto' or 'fp32'")
    if right("lr_scheduler", "lr_milestones", "epochs") and config.lr_scheduler == "step":
        if list(config.lr_milestones) != sorted(set(config.lr_milestones)):
            faults.append(f"lr_milestones={list(config.lr_milestones)}: must rise")
        elif not config.lr_milestones or config.lr_milestones[0] >= config.epochs:
            faults.append(f"lr_milestones={list(config.lr_milestones)}: none lies within epochs={config.epochs}; "
                          "name earlier epochs or use lr_scheduler='cosine'")
    if right("run_name") and config.run_name and (set(config.run_name) & set('/\\:*?"<>|')
                                                  or config.run_name.strip(". ") == ""):
        faults.append(f"run_name={config.run_name!r}: must be a plain folder name; runs_dir says where it lies")
    if right("drive", "checkpoint_dir") and config.drive and config.checkpoint_dir:
        faults.append(f"checkpoint_dir={config.checkpoint_dir!r}: drive=True puts checkpoints on Google Drive; "
                      "give one of the two")
    return faults


def _full_names(settings: dict) -> dict:
    return {ALIASES.get(name, name): value for name, value in settings.items()}


def _given(settings: dict) -> dict:
    """Full names, without the `None`s: these are left out first, or `lr=None` would undo a `learning_rate`."""
    return _full_names({name: value for name, value in settings.items() if value is not None})


def shortened(name: str, length: int) -> str:
    """A name of at most `length` characters; two that only differ in what is cut off stay different."""
    return name if len(name) <= length else f"{name[:length - 9]}-{zlib.crc32(name.encode()):08x}"


def short_text(value) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
