"""explain: against plain loops and formulas; and what the pipeline shows of a trained network."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from cifar100_pipeline import CIFAR100Pipeline
from helpers.data import DataError, ImageData, stratified_split
from helpers.lesson import explain
from helpers.loader import BatchLoader
from helpers.models import CIFAR100CNN, FlipCNN
from helpers.network import predict

MODELS = {"FlipCNN": lambda: FlipCNN(10, widths=(16, 16, 16)),
          "CIFAR100CNN": lambda: CIFAR100CNN(10, widths=(16, 16, 16, 16))}


@pytest.fixture(params=MODELS)
def model(request):
    """A network whose norms have seen some images, so that nothing is at its initial value."""
    torch.manual_seed(0)
    model = MODELS[request.param]()
    with torch.no_grad():
        model.train()(torch.randn(20, 3, 32, 32))
    return model.eval()


def loader_of(count=11, classes=10, batch_size=4):
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
    labels = torch.arange(count) % classes
    return BatchLoader(images, labels, batch_size, torch.device("cpu"), (0.5,) * 3, (0.25,) * 3)


def all_of(loader):
    images, labels = zip(*loader.batches())
    return torch.cat(images), torch.cat(labels)


def state_of(model):
    """All that must not change: tensors, modes, gradients and what is trainable."""
    return ({name: tensor.clone() for name, tensor in model.state_dict().items()},
            [module.training for module in model.modules()],
            [(parameter.requires_grad, None if parameter.grad is None else parameter.grad.clone())
             for parameter in model.parameters()])


def assert_unchanged(model, before):
    tensors, modes, gradients = before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    assert [module.training for module in model.modules()] == modes
    for parameter, (trainable, gradient) in zip(model.parameters(), gradients):
        assert parameter.requires_grad == trainable
        assert parameter.grad is None if gradient is None else torch.equal(parameter.grad, gradient)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# Features --------------------------------------------------------------------------------------------------

def test_features_and_logits_are_those_of_the_network(model):
    loader = loader_of()
    images, _ = all_of(loader)
    with torch.no_grad():
        expected = model.features(images)
    features, logits = explain.features_and_logits(model, loader)
    assert features.dtype == logits.dtype == torch.float32 and logits.shape == (11, 10)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(logits, predict(model, loader))
    assert torch.equal(explain.features_of(model, loader), features)


def test_nothing_changes_the_network(model):
    loader = loader_of()
    images, labels = all_of(loader)
    model.train()
    next(model.children()).eval()           # a module in a mode of its own
    for number, parameter in enumerate(model.parameters()):
        if parameter.requires_grad and number % 2:
            parameter.grad = torch.full_like(parameter, 3.0)
    before = state_of(model)
    explain.features_of(model, loader)
    explain.grad_cam(model, images, labels)
    explain.superclass_affinity(model, loader, torch.arange(10) // 5)
    with pytest.raises(RuntimeError):
        explain.features_of(model, _BrokenLoader())
    assert_unchanged(model, before)


class _BrokenLoader:
    device = torch.device("cpu")

    def __len__(self):
        return 1

    def batches(self):
        yield torch.zeros(1, 5, 8, 8), None         # five channels


def test_neighbours_agree_with_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randint(256, (30, 32, 32, 3), dtype=torch.uint8, generator=generator), torch.arange(30) % 3
    data = ImageData(images, labels, None, None, ("a", "b", "c"))
    features, query = torch.randn(30, 6, generator=generator), torch.randn(1, 6, generator=generator)
    cosines = [(query[0] @ feature / query.norm() / feature.norm()).item() for feature in features]
    best = sorted(range(30), key=lambda place: -cosines[place])
    for k in (0, 4, 31):
        found = explain.neighbours(features, query, data, k)
        assert [similarity for *_, similarity in found] == pytest.approx(
            [cosines[place] for place in best[:k]], abs=1e-6)
        for (pixels, name, _), place in zip(found, best):
            assert torch.equal(pixels, data.train_images[place])
            assert name == data.class_names[data.train_labels[place]]


def test_class_map_lays_classes_that_are_alike_side_by_side():
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(40) // 5              # eight groups of five classes, mixed up below
    order = torch.randperm(40, generator=generator)
    # Their centres are orthogonal and equally long: no plane holds them apart.
    means = (3 * torch.eye(8, 24)[groups] + 0.5 * torch.randn(40, 24, generator=generator))[order]
    labels = torch.arange(40).repeat(3)
    labels[labels == 7] = 8                     # a class without images
    features = means[labels] + 0.1 * torch.randn(120, 24, generator=generator)
    points, kept = explain.class_map(features, labels, 40)
    assert points.shape == (40, 2) and points.dtype == torch.float32 and points[7].isnan().all()
    present = [label for label in range(40) if label != 7]
    distances = torch.cdist(points[present], points[present]).fill_diagonal_(torch.inf)
    assert torch.equal(groups[order][present][distances.argmin(1)], groups[order][present])
    centred = means[present] - means[present].mean(0)
    plane = centred @ torch.linalg.svd(centred).Vh[:2].T
    near = torch.cdist(plane, plane).fill_diagonal_(torch.inf).argmin(1)
    assert (groups[order][present][near] == groups[order][present]).float().mean() < 0.9
    assert 0.7 < kept <= 1
    again, _ = explain.class_map(features.clone(), labels, 40)
    assert torch.equal(points.nan_to_num(), again.nan_to_num())


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_class_map_of_a_few_classes(classes):
    features = torch.randn(classes, 8, generator=torch.Generator().manual_seed(0))
    points, kept = explain.class_map(features, torch.arange(classes), classes)
    assert points.isfinite().all() and len(points.unique(dim=0)) == classes and math.isnan(kept)


def test_tsne_gradient_is_that_of_the_divergence():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(9, 2, generator=generator).double().requires_grad_()
    nearness = torch.rand(9, 9, generator=generator).double().fill_diagonal_(0)
    nearness = (nearness + nearness.T) / (2 * nearness.sum())
    apart = ~torch.eye(9, dtype=torch.bool)
    closeness = 1 / (1 + (points[:, None] - points[None]).square().sum(2)[apart])
    divergence = (nearness[apart] * (nearness[apart] / (closeness / closeness.sum())).log()).sum()
    expected, = torch.autograd.grad(divergence, points)
    assert torch.allclose(explain.tsne_gradient(points.detach(), nearness), expected)


def test_classes_without_difference_make_no_claim():
    points, kept = explain.class_map(torch.ones(30, 4), torch.arange(30), 30)
    assert points.isfinite().all() and math.isnan(kept)


def test_neighbour_probabilities_have_the_perplexity_asked_for():
    distances = torch.rand(30, 30, generator=torch.Generator().manual_seed(0)).double()
    shares = explain.neighbour_probabilities((distances + distances.T).fill_diagonal_(0), 6.0)
    assert torch.allclose(shares.sum(1), torch.ones(30).double()) and not shares.diagonal().any()
    assert torch.allclose((-torch.xlogy(shares, shares).sum(1)).exp(), torch.full((30,), 6.0).double(), atol=1e-3)


def test_class_map_of_one_class_is_a_point():
    points, kept = explain.class_map(torch.ones(3, 4), torch.zeros(3, dtype=torch.long), 1)
    assert points.tolist() == [[0.0, 0.0]] and math.isnan(kept)


# Heat maps -------------------------------------------------------------------------------------------------

def plain_grad_cam(model, stages, image, label, offsets=(0,), margin=0):
    """One image, [3, H, W]; `stages` = (everything up to the layer, everything after it)."""
    until, after = stages
    height, width = image.shape[1:]
    total = torch.zeros(height, width)
    for top in offsets:
        for left in offsets:
            moved = F.pad(image[None], (left, margin - left, top, margin - top), mode="reflect")
            output = until(moved).detach().requires_grad_()
            gradient, = torch.autograd.grad(after(output)[0, label], output)
            heat = torch.zeros(output.shape[2:])
            for channel in range(output.shape[1]):
                heat += gradient[0, channel].mean() * output[0, channel].detach()
            heat = heat.clamp(min=0)[None, None]
            heat = F.interpolate(heat, size=moved.shape[2:], mode="bilinear", align_corners=False)[0, 0]
            total += heat[top:top + height, left:left + width]
    return total / total.max() if total.max() > 0 else total


def stages_of(model, last_but_one=False):
    if isinstance(model, FlipCNN):
        count = len(model.groups) - last_but_one

        def until(images):
            return model.groups[:count](F.gelu(model.whitening(images)))

        def after(output):
            first, second = model.groups[count:](output).amax((2, 3)).chunk(2, 1)       # of the pairs of channels
            return model.head((first + second) / 2 ** 0.5) / model.logit_divisor
        return until, after
    layers = [model.layer1, model.layer2, model.layer3]
    count = len(layers) - last_but_one

    def until(images):
        return nn.Sequential(*layers[:count])(F.relu(model.bn1(model.conv1(images))))
    return until, lambda output: model.fc(nn.Sequential(*layers[count:])(output).mean((2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_agrees_with_a_plain_loop(model, frozen):
    model.requires_grad_(not frozen)
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([1, 7, 2])
    with torch.no_grad():                   # as a caller may be
        plain = explain.grad_cam(model, images, labels, shifts=1)
        moved = explain.grad_cam(model, images, labels)
    last_but_one = model.groups[1] if isinstance(model, FlipCNN) else model.layer2
    finer = explain.grad_cam(model, images, labels, last_but_one, shifts=1)
    assert plain.shape == (3, 32, 32) and plain.dtype == torch.float32
    assert plain.min() >= 0 and plain.max() <= 1
    for place, (image, label) in enumerate(zip(images, labels)):
        torch.testing.assert_close(plain[place], plain_grad_cam(model, stages_of(model), image, label))
        torch.testing.assert_close(moved[place], plain_grad_cam(model, stages_of(model), image, label, (0, 4), 9))
        torch.testing.assert_close(finer[place], plain_grad_cam(model, stages_of(model, True), image, label))


class BrightSpot(nn.Module):
    """Its first logit is the mean brightness of 4×4 tiles, its second the negative of it."""

    def __init__(self):
        super().__init__()
        self.layer3 = nn.AvgPool2d(4)
        self.sign = nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, images):
        return self.layer3(images).mean((1, 2, 3))[:, None] * self.sign


@pytest.mark.parametrize("shifts", [1, 2, 4])
def test_heat_lies_where_the_class_is(shifts):
    images = torch.zeros(2, 3, 32, 32)
    images[0, :, 4:8, 20:24] = 1.0
    images[1, :, 24:28, 8:12] = 1.0
    heat = explain.grad_cam(BrightSpot(), images, torch.tensor([0, 0]), shifts=shifts)
    for place, centre in enumerate(((5.5, 21.5), (25.5, 9.5))):
        weight = heat[place] / heat[place].sum()
        rows, columns = weight.sum(1) @ torch.arange(32.0), weight.sum(0) @ torch.arange(32.0)
        assert (rows.item(), columns.item()) == pytest.approx(centre, abs=0.3 if shifts == 1 else 0.8)
        assert heat[place].max() == 1
    nothing = explain.grad_cam(BrightSpot(), images, torch.tensor([1, 1]), shifts=shifts)
    assert torch.equal(nothing, torch.zeros(2, 32, 32))


@pytest.mark.parametrize("row, column", [(8, 12), (16, 20), (24, 24)])
def test_heat_of_a_network_that_pools_as_flipcnn_does_lies_where_the_class_is(row, column):
    spot = BrightSpot()
    spot.layer3 = nn.Sequential(nn.AvgPool2d(2, 1), nn.AvgPool2d(2), nn.AvgPool2d(2), nn.AvgPool2d(2))
    images = torch.zeros(1, 3, 32, 32)
    images[0, :, row - 1:row + 2, column - 1:column + 2] = 1.0
    heat = explain.grad_cam(spot, images, torch.tensor([0]), shifts=2)[0]
    hottest = (heat == heat.max()).nonzero().float().mean(0)
    assert hottest.tolist() == pytest.approx([row, column], abs=0.5)


def test_grad_cam_takes_half_precision_images(model):
    images, labels = torch.randn(2, 3, 32, 32).half(), torch.tensor([1, 7])
    assert torch.equal(explain.grad_cam(model, images, labels), explain.grad_cam(model, images.float(), labels))


# Superclasses ----------------------------------------------------------------------------------------------

def gradient_of(model, images, labels, filters):
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    return torch.cat([weight.grad.flatten() for weight in filters])


def filters_of(model):
    frozen = model.whitening if isinstance(model, FlipCNN) else None
    return [module.weight for module in model.modules() if isinstance(module, nn.Conv2d) and module is not frozen]


def test_affinity_agrees_with_a_plain_loop(model):
    loader, superclass_of = loader_of(23), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    images, labels = all_of(loader)
    found = explain.superclass_affinity(model, loader, superclass_of)
    gradients = [gradient_of(model, images[superclass_of[labels] == place], labels[superclass_of[labels] == place],
                             filters_of(model)) for place in range(3)]
    expected = [[(a @ b / a.norm() / b.norm()).item() for b in gradients] for a in gradients]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=1e-4)


def test_affinity_tells_whether_a_step_for_one_helps_the_other(model):
    loader, superclass_of = loader_of(24, classes=4), torch.arange(10) % 4
    images, labels = all_of(loader)
    matrix, filters = explain.superclass_affinity(model, loader, superclass_of), filters_of(model)

    def loss(place):
        with torch.no_grad():
            return F.cross_entropy(model(images[labels == place]), labels[labels == place]).item()

    for a in range(4):
        gradient = gradient_of(model, images[labels == a], labels[labels == a], filters)
        before = [loss(b) for b in range(4)]
        step = 1e-2 / gradient.norm()
        parts = gradient.split([weight.numel() for weight in filters])
        with torch.no_grad():
            for weight, part in zip(filters, parts):
                weight -= step * part.view_as(weight)
            for b in range(4):
                if abs(matrix[a, b]) > 0.1:
                    assert (loss(b) < before[b]) == (matrix[a, b] > 0).item(), (a, b)
            for weight, part in zip(filters, parts):
                weight += step * part.view_as(weight)


def test_affinity_of_a_superclass_without_images_is_nan(model):
    matrix = explain.superclass_affinity(model, loader_of(6, classes=2), torch.tensor([0, 2] + [1] * 8))
    assert matrix[1].isnan().all() and matrix[:, 1].isnan().all() and not matrix[0, 2].isnan()
    assert matrix[0, 0].item() == pytest.approx(1)


def test_affinity_needs_a_trainable_filter(model):
    with pytest.raises(ValueError, match="requires_grad_"):
        explain.superclass_affinity(model.requires_grad_(False), loader_of(), torch.zeros(10, dtype=torch.long))


# The pipeline ----------------------------------------------------------------------------------------------

TINY = {"model": "FlipCNN", "widths": [16, 16, 16], "optimizer": "muon", "train_size": 1000, "mixed_precision": False,
        "epochs": 1, "progress": "none"}


def test_out_of_memory_cuts_the_batches_and_nothing_else(model):
    """In forward and backward passes, of more than two images."""
    def run_out(_module, inputs):
        counts.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    loader, counts = loader_of(), []
    images, labels = all_of(loader)
    superclass_of = torch.arange(10) % 3

    def measure():
        return (*explain.features_and_logits(model, loader), explain.grad_cam(model, images, labels),
                explain.superclass_affinity(model, loader, superclass_of))

    expected = measure()
    hook = model.register_forward_pre_hook(run_out)
    found = measure()
    hook.remove()
    assert max(counts) > 2
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pipeline = CIFAR100Pipeline.from_preset("demo", run_name="tiny", runs_dir=str(tmp_path_factory.mktemp("runs")),
                                            **TINY)
    pipeline.train()
    pipeline.save()
    return pipeline


@pytest.fixture(scope="module")
def loaded(trained, tmp_path_factory):
    return CIFAR100Pipeline.from_checkpoint(trained.checkpoint_dir / "final.pt", run_name="again",
                                            runs_dir=str(tmp_path_factory.mktemp("loaded")))


SHOWN = {"filters": lambda pipeline: pipeline.show_filters(),
         "class_map": lambda pipeline: pipeline.show_class_map(),
         "superclass_affinity": lambda pipeline: pipeline.show_superclass_affinity(),
         "learning_rate_range": lambda pipeline: pipeline.find_learning_rate(steps=8),
         "attention": lambda pipeline: pipeline.show_attention([0, 3])}


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("which", ["trained", "loaded"])
def test_everything_is_shown_of_trained_and_of_loaded_weights(which, name, request):
    pipeline = request.getfixturevalue(which)
    weights = {key: tensor.clone() for key, tensor in pipeline.model.state_dict().items()}
    figure = SHOWN[name](pipeline)
    assert (pipeline.run_dir / "figures" / f"{name}.png").stat().st_size > 0
    assert any("drawn demo data" in text.get_text() for text in figure.texts)
    for key, tensor in pipeline.model.state_dict().items():
        assert torch.equal(tensor, weights[key]), key


@pytest.mark.parametrize("name", sorted(set(SHOWN) - {"learning_rate_range"}))
def test_there_must_be_weights_to_show_something_of(name, tmp_path):
    pipeline = CIFAR100Pipeline.from_preset("demo", runs_dir=str(tmp_path), **TINY)
    with pytest.raises(RuntimeError, match="train"):
        SHOWN[name](pipeline)


def test_test_images_go_through_the_network_once(loaded, trained, monkeypatch):
    loaded.evaluate()
    monkeypatch.setattr(explain, "features_and_logits", None)       # nothing is computed again
    loaded.evaluate()
    written = {text.get_text() for text in loaded.show_class_map().axes[0].texts}
    assert written == {name.replace("_", " ") for name in loaded.class_names}
    loaded.load_weights(trained.checkpoint_dir / "final.pt")
    with pytest.raises(TypeError):          # forgotten with the old weights
        loaded.show_class_map()


def test_pairs_are_ranked_without_those_not_measured():
    matrix = torch.tensor([[1, 0.2, math.nan], [0.2, 1, -0.5], [math.nan, -0.5, 1]])
    assert [pair for _, pair in explain.ranked_pairs(matrix, "abc")] == ["b and a", "c and b"]


def test_affinity_is_measured_on_the_validation_split(trained, monkeypatch, capsys):
    seen = []

    def measured(model, loader, superclass_of, progress):
        seen.append((torch.cat([loader.pixels(0, index) for index in range(len(loader))]), loader.labels))
        return torch.eye(int(superclass_of.max()) + 1)

    monkeypatch.setattr(explain, "superclass_affinity", measured)
    trained.show_superclass_affinity(pairs=2)
    data, config = trained.data, trained.config
    chosen = stratified_split(data.train_labels, config.val_size, config.seed)[1]
    (images, labels), *halves = seen
    assert sorted(images.sum((1, 2, 3)).tolist()) == sorted(data.train_images[chosen].sum((1, 2, 3)).tolist())
    assert (data.superclass_of[labels].diff() >= 0).all()
    assert len(halves) == 2 and sum(len(part) for _, part in halves) == len(labels)
    assert len(capsys.readouterr().out.splitlines()) == 5
    count = len(data.superclass_names)
    for pairs, shown in ((0, 0), (1000, count * (count - 1) // 2)):
        trained.show_superclass_affinity(pairs)
        assert len(capsys.readouterr().out.splitlines()) == shown + 1


def test_a_range_test_before_training_does_not_change_its_weights(trained, tmp_path, capsys):
    pipeline = CIFAR100Pipeline.from_preset("demo", run_name="looked", runs_dir=str(tmp_path), **TINY)
    pipeline.build_trainer()
    pipeline.find_learning_rate(steps=8)
    assert "rule of thumb" in capsys.readouterr().out
    pipeline.train()
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, pipeline.model.state_dict()[name]), name


def test_attention_of_any_picture_and_any_class(trained, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)).save(path)
    name = trained.class_names[2]
    titles = [text.get_text() for text in trained.show_attention([5, path], name).axes[0].texts]
    assert titles[0].startswith("true: ") and name in titles[0]
    assert titles[1].startswith(f"looks for: {name}")
    assert len(trained.show_attention(path).axes[0].images) == 3
    assert len(trained.show_attention(np.array([1, 2])).axes[0].images) == 6
    assert "true: " in trained.show_attention(torch.tensor(1)).axes[0].texts[0].get_text()
    with pytest.raises(ValueError, match="did you mean"):
        trained.show_attention(0, name + "s")
    with pytest.raises(ValueError, match="no picture"):
        trained.show_attention([])


def test_without_superclasses_the_affinity_is_a_sentence(trained, monkeypatch, capsys):
    monkeypatch.setattr(trained, "data", ImageData(*[getattr(trained.data, name) for name in (
        "train_images", "train_labels", "test_images", "test_labels", "class_names")]))
    assert trained.show_superclass_affinity() is None
    assert "No superclasses are known for the" in capsys.readouterr().out


def test_other_classes_than_the_weights_know_are_refused(loaded, monkeypatch):
    monkeypatch.setattr(loaded.network, "class_names", tuple(reversed(loaded.class_names)))
    for look in (loaded.show_superclass_affinity, loaded.show_attention):
        with pytest.raises(DataError, match="other classes"):
            look()


def test_the_true_label_of_a_test_image_has_the_name_of_the_data(loaded, monkeypatch):
    monkeypatch.setattr(loaded.network, "class_names", tuple(reversed(loaded.class_names)))
    label = loaded.prepare_data().test_labels[0]
    title = loaded.show_attention([0]).axes[0].texts[0].get_text()
    assert title.startswith(f"true: {loaded.data.class_names[label]}")


def test_agreement_is_the_correlation_off_the_diagonal():
    random = np.random.default_rng(0)
    one, other = (matrix + matrix.T for matrix in random.normal(size=(2, 5, 5)))
    upper = np.triu_indices(5, 1)
    expected = np.corrcoef(one[upper], other[upper])[0, 1]
    assert explain.agreement(torch.tensor(one), torch.tensor(other)) == pytest.approx(expected)
    one[3] = one[:, 3] = np.nan
    rest = [place for place in zip(*upper) if 3 not in place]
    expected = np.corrcoef([[matrix[place] for place in rest] for matrix in (one, other)])[0, 1]
    assert explain.agreement(torch.tensor(one), torch.tensor(other)) == pytest.approx(expected)
    assert np.isnan(explain.agreement(torch.eye(2), torch.eye(2)))
