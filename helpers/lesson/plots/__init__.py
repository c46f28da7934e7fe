"""Every figure of the project: a function takes data and returns a matplotlib Figure.

No function makes a figure in pyplot, so a notebook shows each figure once, whatever the backend: as the value of its
cell, or by `display`. The theme applies only inside these functions. `note` appears in a coloured box on top, for
what a reader must not miss: "drawn demo data".
"""

from .data import augmentation_preview, sample_grid
from .evaluation import (class_accuracy_bars, confident_errors, confused_pairs, confusion_matrix, explained_prediction,
                         reliability_diagram)
from .learned import class_map, first_layer_filters, grad_cam_overlay, superclass_affinity
from .runs import ablation, compare_runs, record, small_multiples
from .speed import model_layers, throughput
from .theme import png_of
from .training import learning_rate_range, learning_rate_schedule, live_curves, training_curves

__all__ = ["ablation", "augmentation_preview", "class_accuracy_bars", "class_map", "compare_runs", "confident_errors",
           "confused_pairs", "confusion_matrix", "explained_prediction", "first_layer_filters", "grad_cam_overlay",
           "learning_rate_range", "learning_rate_schedule", "live_curves", "model_layers", "png_of", "record",
           "reliability_diagram", "sample_grid", "small_multiples", "superclass_affinity", "throughput",
           "training_curves"]
