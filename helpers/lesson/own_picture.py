"""What the network makes of one picture: a test image or the user's own."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..data import IMAGE_SIZE
from ..image_files import open_picture, square_pixels
from ..metrics import LEAST_RELIABLE, RELIABLE
from ..network import TrainedNetwork
from ..text import readable
from . import plots
from .explain import grad_cam


def look_at(network: TrainedNetwork, pixels: Tensor) -> tuple[tuple[str, ...], tuple[float, ...], Tensor]:
    """For an image, uint8 [32, 32, 3]: the most probable classes, their probabilities, and the Grad-CAM of the first,
    float32 [32, 32] in [0, 1]."""
    loader = network.loader(pixels[None])
    names, probabilities = zip(*network.most_probable(network.logits(loader)[0]))
    first = torch.tensor([network.class_index(names[0])])      # not argmax, which may decide a tie otherwise
    return names, probabilities, grad_cam(network.model, loader.batch(0, 0)[0], first)[0]


def attention(network: TrainedNetwork, pixels: Tensor, class_name: str | None = None) -> tuple[Tensor, list[str]]:
    """Grad-CAM of images, uint8 [N, 32, 32, 3], for their predicted class or for `class_name`: float32 [N, 32, 32] in
    [0, 1], and the class with its probability in words. Raises ValueError for an unknown class."""
    loader = network.loader(pixels)
    probabilities = network.probabilities(network.logits(loader))
    classes = probabilities.argmax(1)
    if class_name is not None:
        classes = torch.full_like(classes, network.class_index(class_name))
    heat = torch.cat([grad_cam(network.model, images, chosen) for (images, _), chosen
                      in zip(loader.batches(), classes.split(loader.batch_size))])
    what = "predicted" if class_name is None else "looks for"
    return heat, [f"{what}: {readable(network.class_names[index])}, {100 * share[index]:.0f} %"
                  for index, share in zip(classes.tolist(), probabilities)]


def answer(network: TrainedNetwork, source, name: str = "") -> tuple[Figure, str]:
    """The figure for a user's picture, a path or a file called `name`, and its classes in words. Raises DataError."""
    picture = open_picture(source, name)
    pixels = square_pixels(picture, IMAGE_SIZE)
    names, probabilities, heat = look_at(network, pixels)
    remark = trust(probabilities[0], network.reliable_confidence, len(network.class_names))
    figure = plots.explained_prediction(pixels, names, probabilities, heat, square_pixels(picture, 256),
                                        remark=remark, note=network.note)
    return figure, ", ".join(f"{readable(name)} {100 * share:.0f} %" for name, share in zip(names, probabilities))


def trust(confidence: float, reliable: float | None, classes: int) -> str:
    """How far to trust a prediction of this confidence; `reliable` is `TrainedNetwork.reliable_confidence`."""
    share = f"{100 * RELIABLE:.0f} %"
    if reliable is None:
        verdict = "Its reliability is not known: these weights come without a validation split."
    elif math.isnan(reliable):
        verdict = (f"Take this with care: on the validation split no confidence was found from which on {share} of at "
                   f"least {LEAST_RELIABLE} predictions were right.")
    elif confidence < reliable:
        verdict = (f"Take this with care: the confidence of {100 * confidence:.1f} % is below {100 * reliable:.1f} %, "
                   f"the lowest at which at least {share} of predictions were right on the validation split.")
    else:
        verdict = (f"On the validation split, predictions as confident as this ({100 * reliable:.1f} % or more) were "
                   f"right at least {share} of the time.")
    return f"{verdict} The network knows {classes} classes and assigns one of them to any picture."
