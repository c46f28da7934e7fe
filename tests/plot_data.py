"""What the tests of the plots share: small data to draw, and what a figure says."""

import matplotlib
import numpy as np
import torch

from helpers.metrics import Evaluation, History

NAMES = [f"class_{label}" for label in range(10)]
SUPERCLASS_OF = torch.arange(10) // 2
SUPERCLASSES = [f"group_{place}" for place in range(5)]
ROWS = [{"batch_size": 64, "images_per_second": 900.0, "images_per_second_min": 850.0,
         "images_per_second_max": 950.0, "memory_mb": 300.0, "error": None},
        {"batch_size": 128, "images_per_second": None, "images_per_second_min": None,
         "images_per_second_max": None, "memory_mb": None, "error": "out of memory"}]


def history(epochs=6, validated=True):
    record = History()
    for epoch in range(1, epochs + 1):
        scores = (2.0 / epoch, 10.0 * epoch, 12.0 * epoch) if validated else (None, None, None)
        record.append(epoch=epoch, train_loss=3.0 / epoch, train_accuracy=9.0 * epoch, val_loss=scores[0],
                      val_top1=scores[1], val_top5=scores[2], learning_rate=0.1 / epoch, seconds=30.0 * epoch,
                      petaflops=0.1 * epoch)
    return record


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def evaluated(grouped=True, perfect=False, absent=False):
    """Evaluation of 90 images of ten classes; `absent`: none of the last class."""
    labels = torch.arange(90) % (9 if absent else 10)
    logits = torch.randn(90, 10, generator=torch.Generator().manual_seed(3))
    logits[torch.arange(90), labels] += 50.0 if perfect else 1.0
    groups = (SUPERCLASS_OF, SUPERCLASSES) if grouped else ()
    return Evaluation.from_logits(logits, labels, NAMES, *groups)


def texts(figure):
    """Every text on a figure, tick labels too."""
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return [text for text in found if text]


RUNS = [{"name": "long", "history": history(), "top1": 61.0, "top5": 85.0, "seconds": 180.0, "petaflops": 0.6,
         "epochs": 3},
        {"name": "short", "history": history(1), "top1": 40.0, "top5": 70.0, "seconds": 2.0, "petaflops": 0.01,
         "epochs": 1},
        {"name": "stopped", "history": History(stopped="interrupted"), "top1": 1.0, "top5": 5.0, "seconds": 0.0,
         "petaflops": 0.0, "epochs": 0}]
PUBLISHED = [("ResNet", 75.0, 93.0), ("other", 70.0, 90.0)]
