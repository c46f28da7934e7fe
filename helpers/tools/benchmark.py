"""Speed of training steps, augmentation and predictions, and two comparisons with the usual way.

    python -m helpers.tools.benchmark inference --preset quick
    python -m helpers.tools.benchmark augmentation --data-dir data
    python -m helpers.tools.benchmark training --data-dir data
    python -m helpers.tools.benchmark step --preset fast --data-dir data

Each command writes its timings to figures/benchmark_<command>.json and prints a summary.
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import tempfile
import time
from importlib import metadata
from statistics import median

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from ..augment import Augmentation
from ..config import SETTINGS, ConfigError, TrainingConfig
from ..data import IMAGE_SIZE, DataError, ImageData, load_cifar100
from ..files import write_json
from ..layers.winograd import direct_convolutions
from ..lesson.speed import (announced, format_rows, images_of_step, inference_throughput, repeated_step, seconds_of,
                            short_number)
from ..loader import BatchLoader
from ..models import build_model, training_flops
from ..system import DTYPES, SystemInfo, cpu_cores, pick_device, pick_precision, synchronize
from ..trainer import Trainer
from . import FIGURES


def bare_convolutions(model: nn.Module, batch_size: int, image_size: int, device: torch.device, precision: str):
    """A function that runs only the convolutions of a training step of `model`, forward and backward: with their shapes
    and gradients, without bias, on random numbers in `precision` and channels_last order, and always PyTorch's own, not
    helpers.layers.winograd's."""
    with _Convolutions() as convolutions:       # on "meta" there is one way to compute a layer, and it costs nothing
        copy.deepcopy(model).to("meta").eval()(torch.empty(1, 3, image_size, image_size, device="meta"))

    def random(shape, requires_grad: bool) -> Tensor:
        tensor = torch.randn(shape, device=device).to(DTYPES[precision], memory_format=torch.channels_last)
        return tensor.requires_grad_(requires_grad)

    work = []
    for shape, input_has_gradient, weight_shape, weight_has_gradient, stride, padding in convolutions.calls:
        convolution = functools.partial(F.conv2d, stride=stride, padding=padding)
        inputs = random((batch_size, *shape), input_has_gradient)
        weight = random(weight_shape, weight_has_gradient)
        wanted = [tensor for tensor in (inputs, weight) if tensor.requires_grad]
        with torch.no_grad():
            gradient = torch.randn_like(convolution(inputs, weight))
        work.append((convolution, inputs, weight, wanted, gradient))

    def step() -> None:
        for convolution, inputs, weight, wanted, gradient in work:
            output = convolution(inputs, weight)
            if wanted:
                torch.autograd.grad(output, wanted, gradient)
    return step


class _Convolutions(TorchDispatchMode):
    """Records the shapes and arguments of each convolution in its context, as `calls`."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            inputs, weight, _, *stride_and_padding = args[:5]
            self.calls.append((inputs.shape[1:], inputs.requires_grad, weight.shape, weight.requires_grad,
                               *stride_and_padding))
        return func(*args, **(kwargs or {}))


def step_profile(trainer: Trainer, image_size: int = IMAGE_SIZE, steps: int = 2) -> dict[str, float]:
    """Seconds of one training step by kind of operation, from torch's profiler; on CUDA, those of its kernels."""
    # Not replayed: a graph has kernels, but no operations.
    step = repeated_step(trainer, trainer.train_step, image_size, capture=None)
    cuda = trainer.device.type == "cuda"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]
                                + [torch.profiler.ProfilerActivity.CUDA] * cuda) as profiler:
        for _ in range(steps):
            step()
    seconds = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiler.key_averages():
        if event.device_type == torch.autograd.DeviceType.CPU:      # includes the time of its kernels
            spent = event.self_device_time_total if cuda else event.self_cpu_time_total
            operation = event.key.lower()
            kind = next((kind for kind, names in KINDS.items() if any(name in operation for name in names)), "other")
            seconds[kind] += spent / 1e6 / steps
    return seconds


# Parts of the profiler's operation names, by kind; the first match counts (upsample_bilinear is not linear).
# Winograd's convolutions are matrix products and copies. A fused kernel's time is that of its autograd function.
KINDS = {"convolution": ("convolution", "conv2d"), "norm": ("batch_norm",), "norm and activation": ("normgelu",),
         "channel pairs": ("pairs", "neighbours"), "activation": ("gelu", "relu", "threshold"),
         "pooling": ("pool", "amax", "mean"), "resize": ("upsample", "interpolate"),
         "matrix product": ("mm", "matmul", "linear"), "copy and fill": ("copy_", "fill_", "zero_", "clone", "::cat")}


def pil_pipeline(mean, std) -> transforms.Compose:
    """torchvision's transforms at `moderate` strength, for one PIL image at a time."""
    return transforms.Compose([
        transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
        transforms.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), interpolation=transforms.InterpolationMode.BILINEAR),
        transforms.ColorJitter(0.2, 0.2, 0.2, 0.1), transforms.ToTensor(), transforms.Normalize(mean, std)])


class PilDataset(Dataset):
    """Pairs (float32 [3, 32, 32], label) from uint8 [N, 32, 32, 3] in memory, through PIL images."""

    def __init__(self, images: Tensor, labels: Tensor, transform):
        self.images, self.labels, self.transform = images.numpy(), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def plain_training(config: TrainingConfig, data: ImageData, device: torch.device, steps: int):
    """A function that returns the seconds of `steps` steps of a plain training loop, after one for warm-up.

    fp32, NCHW, torch's SGD, and a DataLoader over PIL images with one worker per core. The workers make only the
    batches of a call, so they are idle while anything else is timed. Batches that are ready when the clock starts
    favour this loop.
    """
    dataset = PilDataset(data.train_images, data.train_labels, pil_pipeline(*data.channel_statistics()))
    loader = DataLoader(dataset, config.batch_size, num_workers=cpu_cores(), pin_memory=device.type == "cuda",
                        sampler=RandomSampler(dataset, num_samples=(1 + steps) * config.batch_size))
    torch.manual_seed(config.seed)
    model = build_model(**config.model_arguments()).to(device)
    optimizer = torch.optim.SGD(model.parameters(), config.learning_rate, config.momentum,
                                weight_decay=config.weight_decay, nesterov=True)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)

    @direct_convolutions()      # PyTorch's own, not helpers.layers.winograd's
    def measure() -> float:
        clock = {}
        for step, (images, labels) in enumerate(loader):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            optimizer.step()
            if step in (0, steps):      # before the workers shut down
                synchronize(device)
                clock[step] = time.perf_counter()
        return clock[steps] - clock[0]
    return measure


def main(arguments: list[str] | None = None) -> None:
    """Run a command of COMMANDS."""
    parser = argparse.ArgumentParser(prog="python -m helpers.tools.benchmark", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, options) in COMMANDS.items():
        command = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for option in options.split():
            command.add_argument("--" + option, **OPTIONS[option])
    args = parser.parse_args(arguments)
    for name in ("repeats", "images", "steps"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name} {getattr(args, name)}: must be at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # The reference recipe, or that of --preset, with the options given.
    settings = {name: value for name, value in vars(args).items() if name in SETTINGS} | {"val_size": 0}
    if args.command == "augmentation":
        settings |= {"device": "cpu", "mixed_precision": False}
    if args.command != "inference" and not args.data_dir:
        settings["data_source"] = "drawn"
    try:
        config = TrainingConfig.from_settings(settings)
        data = None if args.command == "inference" else load_cifar100(config)
    except (ConfigError, DataError) as error:
        parser.exit(2, f"{error}\n")
    device = pick_device(config.device)
    precision = pick_precision(device, config.mixed_precision, config.precision)
    content = {"benchmark": args.command, "machine": SystemInfo.of(device, precision).to_dict(),
               "pillow": metadata.version("pillow"), "seed": args.seed, "repeats": args.repeats}
    if data is not None:        # without the path: others read the file
        content["data"] = "drawn demo data" if data.note else f"{len(data.train_images):,} images of --data-dir"
    torch.manual_seed(args.seed)
    result = COMMANDS[args.command][0](args, config, data)
    print(format_rows(result["rows"]) if "rows" in result else f"{args.command}: {result['summary']}")
    print("wrote", write_json(content | result, args.out or FIGURES / f"benchmark_{args.command}.json"))


def _augmentation(args, config: TrainingConfig, data: ImageData) -> dict:
    """On one CPU core: PIL, image by image, or BatchLoader, 256 at once; PIL's tensors are not even stacked."""
    cpu, statistics = torch.device("cpu"), data.channel_statistics()
    transform = pil_pipeline(*statistics)
    loader = BatchLoader(data.train_images[:args.images], data.train_labels[:args.images], 256, cpu, *statistics,
                         Augmentation.of_strength("moderate"), seed=args.seed)
    raw = data.train_images[:len(loader) * loader.batch_size].numpy()

    def by_image():
        for image in raw:
            transform(Image.fromarray(image))

    def by_batch():
        for _ in loader.batches():
            pass

    torch.set_num_threads(1)
    by_batch()      # warm-up
    return _alternate("images", len(raw), lambda: seconds_of(by_image, cpu), lambda: seconds_of(by_batch, cpu),
                      args.repeats)


def _training(args, config: TrainingConfig, data: ImageData) -> dict:
    """The plain loop, or the Trainer's step with its loader: `--steps` steps after one for warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, data, folder)
        step = repeated_step(trainer, trainer.train_step)

        def ours() -> float:
            step()
            return seconds_of(step, trainer.device, args.steps)

        baseline = plain_training(config, data, trainer.device, args.steps)
        result = _alternate("steps", args.steps, baseline, ours, args.repeats)
    return {"model": config.model, "widths": args.widths, "batch_size": args.batch_size, **result}


def _inference(args, config: TrainingConfig, data: None) -> dict:
    device = pick_device(config.device)
    precision = pick_precision(device, config.mixed_precision, config.precision)
    model = build_model(**config.model_arguments())
    rows = inference_throughput(model, device, precision, args.batch_sizes, repeats=args.repeats)
    return {"preset": args.preset, "model": config.model, "rows": rows}


def _step(args, config: TrainingConfig, data: ImageData) -> dict:
    """GFLOP/s of training steps by image size, and of only their convolutions, in turn. Both count the FLOPs of direct
    convolutions, so a step may be faster than PyTorch's convolutions alone. `optimizer_gflop`, of one step, is extra:
    no other number here or in metrics.json includes it."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in announced(args.image_sizes, "training step at image side"):
            trainer = Trainer(config.replace(resume="never"), data, folder)
            flops = training_flops(trainer.model, size)         # per image
            convolutions = bare_convolutions(trainer.model, trainer.loader.batch_size, size, trainer.device,
                                             trainer.precision)
            step = repeated_step(trainer, trainer.train_step, size)
            convolutions()
            timings = {"step": [], "convolutions": []}
            for _ in range(args.repeats):
                timings["step"].append(seconds_of(step, trainer.device))
                timings["convolutions"].append(seconds_of(convolutions, trainer.device))
            images = {"step": images_of_step(trainer), "convolutions": trainer.loader.batch_size}
            speed = {name: flops * images[name] / median(values) / 1e9 for name, values in timings.items()}
            rows.append({"image_size": size, "step_gflops": speed["step"], "convolutions_gflops": speed["convolutions"],
                         "percent": 100 * speed["step"] / speed["convolutions"], "seconds": timings,
                         **{f"{kind}_s": value for kind, value in step_profile(trainer, size).items()}})
    return {"preset": args.preset, "batch_size": images["step"], "optimizer_gflop": _optimizer_flops(trainer) / 1e9,
            "rows": rows}


def _optimizer_flops(trainer: Trainer) -> int:
    """FLOPs of an optimiser step, for Muon those of Newton-Schulz; spoils the weights."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    with FlopCounterMode(display=False) as counter:
        trainer.train_step.optimizer.step()
    return counter.get_total_flops()


def _alternate(unit: str, count: int, baseline, ours, repeats: int) -> dict:
    """Call both (each returns the seconds for `count` of `unit`) in turn, so that a slow spell affects both."""
    seconds = {"baseline": [], "ours": []}
    for _ in announced(range(1, repeats + 1), "baseline and ours, repeat"):
        seconds["baseline"].append(baseline())
        seconds["ours"].append(ours())
    speed = {name: count / median(values) for name, values in seconds.items()}
    ratio = speed["ours"] / speed["baseline"]
    summary = f"{short_number(speed['ours'])} {unit}/s, {ratio:.2f} times the usual {short_number(speed['baseline'])}"
    return {"threads": torch.get_num_threads(), "unit": unit, "count": count, "seconds": seconds, "per_second": speed,
            "ratio": ratio, "summary": summary}


OPTIONS = {
    "repeats": {"type": int, "default": 5, "help": "timings of each"},
    "seed": {"type": int, "default": 42, "help": "seed of network and batches"},
    "out": {"help": "file to write instead of figures/benchmark_<command>.json"},
    "data-dir": {"help": "folder with CIFAR-100 instead of drawn data"},
    "device": {"default": "auto", "help": "cpu, cuda, …"},
    "images": {"type": int, "default": 8192, "help": "training images per timing"},
    "batch-size": {"type": int, "default": 128, "help": "images per step"},
    "widths": {"type": int, "nargs": "+", "help": "channels of the stages instead of the network's own"},
    "steps": {"type": int, "default": 2, "help": "steps per timing"},
    "preset": {"default": "quick", "help": "preset with the network: a file name in configs/experiments"},
    "image-sizes": {"type": int, "nargs": "+", "default": [20, 24, 28, 32], "help": "sides in pixels"},
    "batch-sizes": {"type": int, "nargs": "+", "default": [32, 64, 128, 256], "help": "images per batch"}}
COMMANDS = {"augmentation": (_augmentation, "data-dir images repeats seed out"),
            "training": (_training, "data-dir batch-size widths steps device repeats seed out"),
            "step": (_step, "preset data-dir image-sizes device repeats seed out"),
            "inference": (_inference, "preset batch-sizes device repeats seed out")}


if __name__ == "__main__":
    main()
