"""Attempts to break the project, by the thousand, and what came of them.

    python tests/campaigns.py                               all campaigns in full
    python tests/campaigns.py flips kills --share 0.1       a tenth of the tries of two of them

A campaign takes a folder of its own, a random generator and a number of tries, and yields outcomes as (words, whether
that is right). Writes their counts to the file --out, and as a table beside it, after each campaign.
"""

import argparse
import logging
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests")) if path not in sys.path]

from break_pictures import pictures  # noqa: E402
from break_runs import flips, kills, processes, sectors  # noqa: E402
from break_settings import settings  # noqa: E402

from helpers.files import write_json, write_text  # noqa: E402
from helpers.logs import outlast_readers  # noqa: E402
from helpers.text import table  # noqa: E402

# Name: the campaign, and its tries in full.
CAMPAIGNS = {"flips": (flips, 2000), "sectors": (sectors, 244), "kills": (kills, 200), "processes": (processes, 36),
             "pictures": (pictures, 2000), "settings": (settings, 10_000)}


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 if every outcome was right, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("campaigns", nargs="*", metavar="CAMPAIGN", help=f"of {', '.join(CAMPAIGNS)}; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="of the tries in full")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "campaigns.json", help="file to write")
    args = parser.parse_args(arguments)
    if unknown := set(args.campaigns) - set(CAMPAIGNS):
        parser.error(f"no campaign {', '.join(sorted(unknown))}; there are {', '.join(CAMPAIGNS)}")
    logging.getLogger("cifar100").setLevel(logging.ERROR)
    torch.set_num_threads(1)        # also since a forked process has no other threads
    report = {}
    for name in args.campaigns or CAMPAIGNS:
        campaign, tries = CAMPAIGNS[name]
        tries, began = max(1, round(args.share * tries)), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")     # Pillow's, of what is damaged
            outcomes = Counter(campaign(Path(folder), random.Random(f"{name} {args.seed}"), tries))
        report[name] = {"tries": tries, "seconds": round(time.perf_counter() - began, 1),
                        "wrong": sum(count for (_, is_right), count in outcomes.items() if not is_right),
                        "outcomes": {what: count for (what, _), count in outcomes.most_common()}}
        rows = [{"campaign": name, "tries": one["tries"], "outcome": what, "times": times}
                for name, one in report.items() for what, times in one["outcomes"].items()]
        write_json({"seed": args.seed, **report}, args.out)
        write_text(table(rows) + "\n", args.out.with_suffix(".txt"))
        print(f"{name}: {report[name]}", flush=True)
    return int(any(one["wrong"] for one in report.values()))


if __name__ == "__main__":
    outlast_readers()
    sys.exit(main())
