"""Train on CIFAR-100 from the command line.

    python train.py --preset demo
    python train.py --config configs/experiments/quick.yaml --epochs 30 --batch-size 256 --lr 0.1
"""

from __future__ import annotations

import argparse
import sys

from cifar100_pipeline import (CheckpointError, CIFAR100Pipeline, ConfigError, DataError, TrainingConfig,
                               TrainingDiverged)
from helpers.config import ALIASES, EVERYDAY, HINTS, SETTINGS, by_group, layered_settings, read_settings, value_faults
from helpers.logs import outlast_readers
from helpers.retired import RETIRED, last_version, without_fp32
from helpers.system import is_out_of_memory
from helpers.text import did_you_mean


def build_parser(everything: bool = False) -> argparse.ArgumentParser:
    """One option per setting, with its short name; the help shows the settings in EVERYDAY, or `everything`."""
    defaults = TrainingConfig.from_settings(layered_settings())
    parser = argparse.ArgumentParser(
        description=__doc__, usage="train.py [--SETTING VALUE ...]", argument_default=argparse.SUPPRESS,
        add_help=False, allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
        epilog=f"Values in brackets are those of preset {defaults.preset!r}; another --preset has others.")
    general = parser.add_argument_group("Options")
    general.add_argument("-h", "--help", action="help", help="show the commonly changed settings")
    general.add_argument("--help-all", action="store_true", help="show all settings")
    general.add_argument("--config", metavar="FILE", help="YAML file of settings; options override it")
    short_names = {full: short for short, full in ALIASES.items()}
    for title, names in by_group().items():
        group = parser.add_argument_group(title)
        for name in names:
            options = [_option(one) for one in (name, short_names.get(name)) if one]
            value, text = getattr(defaults, name), SETTINGS[name].metadata["help"]
            text = text if everything else text.split("; ")[0].split(" (")[0]
            value = " ".join(map(str, value)) if isinstance(value, tuple) else value
            text = text.replace("%", "%%") + ("" if value is None else f" [{value}]")
            text = text if everything or name in EVERYDAY else argparse.SUPPRESS
            form = {"nargs": "+", "metavar": "N"} if "tuple" in str(HINTS[name]) else {"metavar": "…"}
            if HINTS[name] is bool:
                form = {"nargs": "?", "const": True, "metavar": "false"}
                group.add_argument(_option(f"no_{name}"), dest=name, action="store_false", help=argparse.SUPPRESS)
            group.add_argument(*options, dest=name, help=text, **form)
    return parser


def read_arguments(arguments: list[str]) -> TrainingConfig:
    """The configuration from command-line arguments. Raises ConfigError; exits after --help and --help-all."""
    parser = build_parser()
    known, unknown = parser.parse_known_args(arguments)
    settings = vars(known)
    if settings.pop("help_all", False):
        build_parser(everything=True).print_help()
        parser.exit()
    path = settings.pop("config", None)
    faults = _unknown_arguments(unknown)
    try:
        from_file = read_settings(path) if path else {}
    except ConfigError as error:
        faults += [f"{path}: {fault}" for fault in error.faults]
    if faults:
        raise ConfigError(faults + list(value_faults(without_fp32(settings)).values()), "the command line")
    return TrainingConfig.from_settings(layered_settings(from_file, settings),
                                        f"{path} with the options given" if path else "the command line")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unknown_arguments(unknown: list[str]) -> list[str]:
    """A fault for each option that the parser does not know, with the nearest known one."""
    options = ["--config", "--help", "--help-all", *map(_option, [*SETTINGS, *ALIASES])]
    options += [_option(f"no_{name}") for name in SETTINGS if HINTS[name] is bool]
    faults = []
    for text in unknown:
        name = text.split("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if name in RETIRED:
            now = "; --model FlipCNN replaces it" if name == "flip_equivariant" else ""
            faults.append(f"option {text!r}: is no longer a setting{now}; {last_version(name)} has it")
        elif text.startswith("--"):
            faults.append(f"unknown option {text!r}{did_you_mean(text.split('=')[0], options) or '; see --help-all'}")
    return faults or ([f"unexpected {' '.join(unknown)!r}; write settings as --name value"] if unknown else [])


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 wrong settings, 130 interrupted."""
    try:
        pipeline = CIFAR100Pipeline(read_arguments(sys.argv[1:] if arguments is None else arguments))
        pipeline.check_system()
        pipeline.run()
    except ConfigError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except (DataError, CheckpointError, TrainingDiverged, ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(error):
            raise
        print(f"train.py: out of memory ({(str(error).splitlines() or ['the computer'])[0]}). Close other programs or "
              "choose a smaller batch_size or network; the same command continues from the last checkpoint, if any",
              file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"train.py: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    print(f"everything is in {pipeline.run_dir}")
    return 0


if __name__ == "__main__":
    outlast_readers()
    sys.exit(main())
