"""What a trained network looks at and has learned: features, neighbours, heat maps, affinity of superclasses.

Nothing here changes the network: each function restores the mode of every module, and does not touch weights, `.grad`
and running statistics. `progress` takes the values of the setting; "none" shows no bar.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import ImageData, stratified_split
from ..loader import BatchLoader
from ..models import evaluating
from ..network import TrainedNetwork
from ..system import autocast, in_parts, with_bar


def features_of(model: nn.Module, loader: BatchLoader, precision: str = "fp32", progress: str = "none") -> Tensor:
    """The classifier's input for each image: pooled features, float32 [N, C] on the CPU, in evaluation mode."""
    return features_and_logits(model, loader, precision, progress)[0]


@torch.no_grad()
def features_and_logits(model: nn.Module, loader: BatchLoader, precision: str = "fp32",
                        progress: str = "none") -> tuple[Tensor, Tensor]:
    """Features float32 [N, C] and logits float32 [N, num_classes] on the CPU, from one pass in evaluation mode. The
    features are the input of the network's last linear layer; the logits equal those of `network.predict`."""
    found, seen = [], {}
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    hook = classifier.register_forward_pre_hook(lambda _, inputs: seen.update(features=inputs[0].float().cpu()))

    def of(images: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(loader.device, precision):
            logits = model(images).float().cpu()
        return seen["features"], logits

    try:
        with evaluating(model):
            for images, _ in with_bar(loader.batches(), len(loader), "features", progress):
                found += in_parts(of, images)
    finally:
        hook.remove()
    features, logits = zip(*found)
    return torch.cat(features), torch.cat(logits)


def neighbours(features: Tensor, query: Tensor, data: ImageData, k: int) -> list[tuple[Tensor, str, float]]:
    """The `k` training images, or all if there are fewer, whose features, float [N, C], have the largest cosine
    similarity to one query, float [1, C], most similar first: (pixels uint8 [32, 32, 3], class name, similarity)."""
    similarities, places = F.cosine_similarity(features, query).topk(max(0, min(k, len(features))))
    return [(data.train_images[place], data.class_names[data.train_labels[place]], similarity)
            for place, similarity in zip(places.tolist(), similarities.tolist())]


def class_map(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, float]:
    """A map of the classes in a plane: classes that look alike to the network are near each other.

    t-SNE (van der Maaten & Hinton 2008) of the mean feature of each class, by the cosine between the centred means.
    Unlike a projection it sacrifices distances to keep neighbours: directions, the unit, and distances between far
    points mean nothing. It starts from the principal plane, so it is reproducible.

    features: float [N, C], C at least 2; labels: int64 [N]. Returns points float32 [num_classes, 2], NaN for a class
    without images, and the share, in [0, 1], of a class's four nearest in the plane that are also among its four
    nearest by cosine; NaN below 20 classes, where chance explains much of it, and if all means are equal.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64).index_add_(0, labels, features.double())
    present = counts > 0
    means = sums[present] / counts[present, None]
    centred = means - means.mean(0)
    directions = F.normalize(centred, dim=1)
    distances = 1 - directions @ directions.T
    points = torch.full((num_classes, 2), math.nan)
    points[present] = _tsne(distances, _principal_plane(centred)).float()
    if present.sum() < 20 or not centred.any():
        return points, math.nan
    near_here = _neighbours(torch.cdist(points[present], points[present]), 4)
    return points, (near_here & _neighbours(distances, 4)).sum().item() / near_here.sum().item()


def _principal_plane(centred: Tensor) -> Tensor:
    """Project rows float64 [M, C] of mean zero onto the plane in which they spread most: float64 [M, 2]."""
    axes = torch.linalg.svd(centred).Vh[:2]
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()       # the SVD leaves them open
    return centred @ (axes * signs).T


def _neighbours(distances: Tensor, k: int) -> Tensor:
    """bool [M, M]: is the column one of the row's `k` nearest others?"""
    others = distances.clone().fill_diagonal_(math.inf)
    return torch.zeros_like(others, dtype=torch.bool).scatter_(1, others.topk(k, largest=False).indices, True)


def _tsne(distances: Tensor, start: Tensor, perplexity: float = 6.0, steps: int = 1000) -> Tensor:
    """Exact t-SNE (van der Maaten & Hinton 2008) of a few points from their distances, float64 [M, M]: float64 [M, 2].
    The perplexity is small, since a class has four others in its superclass."""
    count = len(distances)
    if count < 3:
        return start
    nearness = neighbour_probabilities(distances, min(perplexity, (count - 1) / 2))
    nearness = ((nearness + nearness.T) / (2 * count)).clamp(min=1e-12)
    points = 1e-2 * start / start.std().clamp(min=1e-12)
    velocity = torch.zeros_like(points)
    for step in range(steps):
        exaggeration, momentum = (4, 0.5) if step < steps // 4 else (1, 0.8)        # groups form early
        velocity = momentum * velocity - count / 4 * tsne_gradient(points, exaggeration * nearness)
        points = points + velocity
        points = points - points.mean(0)
    return points


def tsne_gradient(points: Tensor, nearness: Tensor) -> Tensor:
    """Gradient, [M, 2], with respect to `points`, [M, 2], of KL(`nearness` ‖ their closeness), both [M, M]."""
    closeness = 1 / (1 + torch.cdist(points, points) ** 2)
    closeness.fill_diagonal_(0)
    pull = (nearness - closeness / closeness.sum()) * closeness
    return 4 * (pull.sum(1, keepdim=True) * points - pull @ points)


def neighbour_probabilities(distances: Tensor, perplexity: float) -> Tensor:
    """Rows of `distances`, float64 [M, M], as probabilities of this perplexity, 0 on the diagonal, by bisection."""
    low, high = torch.zeros(len(distances), 1).double(), torch.full((len(distances), 1), 1e6).double()
    for _ in range(60):
        sharpness = torch.where(low > 0, (low * high).sqrt(), high / 1e3)
        shares = (-sharpness * distances).fill_diagonal_(-math.inf).softmax(1)
        entropy = -torch.xlogy(shares, shares).sum(1, keepdim=True)
        too_wide = entropy > math.log(perplexity)
        low, high = torch.where(too_wide, sharpness, low), torch.where(too_wide, high, sharpness)
    return shares


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor, layer: nn.Module | None = None,
             shifts: int = 2) -> Tensor:
    """Which parts of each image speak for its class: heat maps float32 [N, H, W] in [0, 1] on the CPU.

    Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) weights each channel of a layer's output by the spatial mean of
    the gradient of the class's logit, sums the channels, sets negative values to 0, enlarges the map bilinearly to the
    image, and scales its maximum to 1. A map of zeros means that nothing in this layer speaks for the class.

    The last group of FlipCNN has only 3×3 places at 32 pixels. So the map is the mean over shifts × shifts copies of
    the image, moved by fractions of a quarter of its side and padded by reflection; shifts=1 is plain Grad-CAM. One
    extra pixel makes the copies 41 wide, so that the maps to be pooled have even sides (40, 20, 10).

    images: normalised float [N, 3, H, W]; classes: int64 [N]; layer: a module with output [N, C, h, w], by default
    `grad_cam_layer`. Computes in fp32, in evaluation mode; parameters may be frozen.
    """
    layer, (height, width) = layer or grad_cam_layer(model), images.shape[2:]
    margin = height // 4 + 1 if shifts > 1 else 0
    offsets = [place * margin // shifts for place in range(shifts)]
    heat = torch.zeros(len(images), height, width, device=images.device)
    with evaluating(model):
        for top, left in itertools.product(offsets, offsets):
            moved = F.pad(images.float(), (left, margin - left, top, margin - top), mode="reflect")
            coarse = torch.cat(in_parts(functools.partial(_weighted_activations, model, layer), moved, classes))
            fine = F.interpolate(coarse, moved.shape[2:], mode="bilinear", align_corners=False)[:, 0]
            heat += fine[:, top:top + height, left:left + width]
    return (heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu()


def _weighted_activations(model: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """float32 [N, 1, h, w]: the channels of `layer`, weighted by mean gradients and summed, without negatives."""
    kept = {}

    def start_here(_module, _inputs, output):
        kept["output"] = output.detach().requires_grad_()       # start the graph here, even after frozen layers
        return kept["output"]

    hook = layer.register_forward_hook(start_here)
    try:
        with torch.enable_grad():
            chosen = model(images).gather(1, classes.to(images.device)[:, None]).sum()
            gradient, = torch.autograd.grad(chosen, kept["output"])
    finally:
        hook.remove()
    return (gradient.mean((2, 3), keepdim=True) * kept["output"].detach()).sum(1, keepdim=True).relu()


def grad_cam_layer(model: nn.Module) -> nn.Module:
    """The default layer of `grad_cam`: the last group of FlipCNN, the last stage of CIFAR100CNN."""
    return model.groups[-1] if hasattr(model, "groups") else model.layer3


def superclass_affinity(model: nn.Module, loader: BatchLoader, superclass_of: Tensor, progress: str = "none") -> Tensor:
    """Do superclasses pull the shared filters in the same direction? Cosine similarities float32 [S, S] on the CPU.

    Entry (a, b) is the cosine between two gradients with respect to all trainable convolution filters: of the mean
    cross entropy over the images of superclass a, and over those of b (Yu et al. 2020, arXiv 2001.06782). If it is
    positive, a small enough step of these filters down the gradient for a also lowers the loss of b; if negative, it
    raises it (the first-order term of Fifty et al. 2021, arXiv 2109.04617).

    Limits: this holds for plain gradient descent at these weights and on this sample, with a fixed classifier; not for
    other moments of training, nor for steps of Muon or momentum. It does not prove that training without a superclass
    helps or harms another. All classes share one softmax, so superclasses also compete for probability. The smaller the
    sample, the closer noise brings all entries to 0.

    loader: unaugmented images in any order, fastest if sorted by superclass; never the test split if the result decides
    anything. superclass_of: int64 [num_classes]. Rows and columns of a superclass without images are NaN. Computes in
    fp32, with the running statistics of the norms; needs S times the memory of the filters. Raises ValueError if no
    filter is trainable.
    """
    filters = [module.weight for module in model.modules()
               if isinstance(module, nn.Conv2d) and module.weight.requires_grad]
    if not filters:
        raise ValueError("superclass_affinity: no convolution filter of the network is trainable; call "
                         "model.requires_grad_(True) first")
    superclass_of = superclass_of.to(loader.device)
    counts = torch.bincount(superclass_of[loader.labels], minlength=int(superclass_of.max()) + 1)
    gradients = torch.zeros(len(counts), sum(weight.numel() for weight in filters), device=loader.device)

    def gradient_of_sum(images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(model(images.float()), labels, reduction="sum")
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, filters)])

    with evaluating(model), torch.enable_grad():
        for images, labels in with_bar(loader.batches(), len(loader), "gradients", progress):
            members = superclass_of[labels]
            for place in members.unique().tolist():
                chosen = members == place
                gradients[place] += sum(in_parts(gradient_of_sum, images[chosen], labels[chosen])) / counts[place]
    gradients /= gradients.norm(dim=1, keepdim=True)
    return (gradients @ gradients.T).clamp(-1, 1).cpu()


def affinity_of_superclasses(network: TrainedNetwork, data: ImageData, val_size: int, seed: int,
                             progress: str = "none") -> tuple[Tensor, float]:
    """`superclass_affinity` on the validation split or, without one, at most 5,000 training images; and the
    `agreement` of two halves of them."""
    count = val_size or min(5000, len(data.train_labels) // 10)
    chosen = stratified_split(data.train_labels, count, seed)[1]
    chosen = chosen[data.superclass_of[data.train_labels[chosen]].argsort()]
    images, labels = data.train_images[chosen], data.train_labels[chosen]
    loaders = [network.loader(images[start::step], labels[start::step]) for start, step in ((0, 1), (0, 2), (1, 2))]
    matrix, *halves = [superclass_affinity(network.model, one, data.superclass_of, progress) for one in loaders]
    return matrix, agreement(*halves)


def ranked_pairs(matrix: Tensor, names) -> list[tuple[float, str]]:
    """The finite entries below the diagonal of a symmetric matrix [S, S] with "name and name", largest first."""
    return sorted(((matrix[a, b].item(), f"{names[a]} and {names[b]}") for a in range(len(names)) for b in range(a)
                   if matrix[a, b].isfinite()), reverse=True)


def agreement(one: Tensor, other: Tensor) -> float:
    """Correlation of two symmetric matrices [S, S] over the off-diagonal entries that are finite in both; NaN for fewer
    than three. For the affinities of two halves of the images, 0 means that they are pure chance."""
    rows, columns = torch.triu_indices(len(one), len(one), 1)
    pairs = torch.stack([one, other])[:, rows, columns]
    pairs = pairs[:, pairs.isfinite().all(0)]
    return torch.corrcoef(pairs)[0, 1].item() if pairs.shape[1] > 2 else math.nan
