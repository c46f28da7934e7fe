"""Train on CIFAR-100 from the command line.

    python train.py --preset demo
    python train.py --config configs/experiments/quick.yaml --epochs 30 --batch-size 256 --lr 0.1

The defaults shown are those of the preset that configs/default.yaml names; another --preset has others.
"""

from __future__ import annotations

import argparse
import difflib
import sys

from cifar100_pipeline import (CheckpointError, CIFAR100Pipeline, ConfigError, DataError, TrainingConfig,
                               TrainingDiverged)
from helpers.config import ALIASES, HINTS, SETTINGS, layered_settings, read_settings, value_faults


def build_parser() -> argparse.ArgumentParser:
    """One option for each setting, its short names included."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; options given here go before it")
    short_names = {full: short for short, full in ALIASES.items()}
    defaults = TrainingConfig.from_settings(layered_settings())
    for name, spec in SETTINGS.items():
        options = [_option(name)] + ([_option(short_names[name])] if name in short_names else [])
        help_text = f"{spec.metadata['help']} (default: {getattr(defaults, name)})".replace("%", "%%")
        if HINTS[name] is bool:
            parser.add_argument(*options, dest=name, action=argparse.BooleanOptionalAction, help=help_text)
        else:
            many = "tuple" in str(HINTS[name])
            parser.add_argument(*options, dest=name, nargs="+" if many else None, metavar="N" if many else "VALUE",
                                help=help_text)
    return parser


def read_arguments(arguments: list[str]) -> TrainingConfig:
    """The configuration that command-line arguments mean. Raises ConfigError; exits for --help."""
    parser = build_parser()
    known, unknown = parser.parse_known_args(arguments)
    settings = vars(known)
    path = settings.pop("config", None)
    faults = _unknown_arguments(unknown, parser)
    try:
        from_file = read_settings(path) if path else {}
    except ConfigError as error:
        faults += [f"{path}: {fault}" for fault in error.faults]
    if faults:
        raise ConfigError(faults + list(value_faults(settings).values()), "the command line")
    return TrainingConfig.from_settings(layered_settings(from_file, settings),
                                        f"{path} with the options given" if path else "the command line")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unknown_arguments(unknown: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """A sentence for each option that the parser does not know, with the nearest right one."""
    options = [option for action in parser._actions for option in action.option_strings]
    faults = []
    for text in unknown:
        if text.startswith("--"):
            near = difflib.get_close_matches(text.split("=")[0], options, n=1)
            faults.append(f"unknown option {text!r}"
                          + (f"; did you mean {near[0]}?" if near else "; --help lists all"))
    return faults or ([f"unexpected {' '.join(unknown)!r}; settings are given as --name value"] if unknown else [])


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
    except KeyboardInterrupt as error:
        print(f"train.py: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    print(f"everything is in {pipeline.run_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
