"""Take the first images of each class out of an archive of CIFAR-100 class folders.

    python tests/real_subset.py cifar100-png.tar.gz FOLDER --train 60 --test 10
"""

from __future__ import annotations

import argparse
import tarfile
from collections import Counter
from pathlib import Path


def extract_subset(archive, folder, per_class: dict[str, int]) -> int:
    """Write `per_class` = {"train": n, "test": m} images of each class under `folder`; return how many."""
    taken = Counter()
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if not member.isfile() or len(parts) < 3 or parts[-3] not in per_class:
                continue
            if taken[parts[-3:-1]] < per_class[parts[-3]]:
                taken[parts[-3:-1]] += 1
                path = Path(folder, "cifar100", *parts[-3:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())
    return sum(taken.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("folder")
    parser.add_argument("--train", type=int, default=60, help="training images a class")
    parser.add_argument("--test", type=int, default=10, help="test images a class")
    arguments = parser.parse_args()
    counts = {"train": arguments.train, "test": arguments.test}
    print(extract_subset(arguments.archive, arguments.folder, counts), "images")
