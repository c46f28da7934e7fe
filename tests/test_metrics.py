"""metrics: against plain loops, NumPy and numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
import torch

from helpers.metrics import CALIBRATION_BINS, HISTORY_KEYS, Evaluation, History, fit_temperature, topk_accuracy

NAMES = ["ant", "bee", "cat", "cow", "dog", "owl"]
SUPERCLASS_OF = torch.tensor([0, 0, 1, 1, 1, 2])
SUPERCLASSES = ["insects", "mammals", "birds"]


@pytest.fixture
def predictions():
    """Logits of 200 images of six classes, the last of them without images; and the labels."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(0, 5, (200,), generator=generator)
    logits = torch.randn(200, 6, generator=generator)
    logits[torch.arange(200), labels] += 1.5
    return logits, labels


@pytest.fixture
def evaluation(predictions):
    return Evaluation.from_logits(*predictions, NAMES, SUPERCLASS_OF, SUPERCLASSES)


# Top-k -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("k", [1, 2, 5])
def test_topk_accuracy_equals_a_loop_over_sorted_logits(predictions, k):
    logits, labels = predictions
    hits = sum(label in np.argsort(-row)[:k] for row, label in zip(logits.numpy(), labels.tolist()))
    assert topk_accuracy(logits, labels, k) == pytest.approx(100 * hits / 200)


def test_topk_accuracy_with_more_k_than_classes_is_all(predictions):
    assert topk_accuracy(*predictions, 50) == 100


@pytest.mark.parametrize("logits, labels", [(torch.zeros(0, 3), torch.zeros(0)), (torch.zeros(2, 3), torch.zeros(3)),
                                            (torch.zeros(3), torch.zeros(3))])
def test_topk_accuracy_refuses_what_does_not_fit(logits, labels):
    with pytest.raises(ValueError, match="top-1"):
        topk_accuracy(logits, labels.long(), 1)


# History ---------------------------------------------------------------------------------------------------

def test_history_columns_and_best_epoch():
    history = History()
    for epoch, top1 in enumerate([10.0, 30.0, None, 30.0, 20.0], start=1):
        history.append(epoch=epoch, val_top1=top1, learning_rate=0.1)
    assert history["val_top1"] == [10.0, 30.0, None, 30.0, 20.0]
    assert history["val_loss"] == [None] * 5
    assert len(history) == 5
    assert history.best_epoch == 2      # the first of two equal ones
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]


def test_history_without_validation_has_no_best_epoch():
    assert History().best_epoch is None
    assert History([{"epoch": 1, "val_top1": None}, {"epoch": 2}]).best_epoch is None
    assert History([{"val_top1": math.nan}, {"val_top1": 3.0}]).best_epoch == 2


def test_history_survives_json():
    history = History(stopped="early")
    history.append(train_loss=torch.tensor(1.5), val_top1=np.float32(12.5), val_loss=None, image_size=32)
    rows = json.loads(json.dumps(history.to_list()))
    again = History(rows, stopped="early")
    assert rows == [{"epoch": 1, "train_loss": 1.5, "val_top1": 12.5, "val_loss": None, "image_size": 32}]
    assert again.rows == history.rows and again.stopped == "early"


def test_history_hands_out_copies():
    history = History([{"val_top1": 1.0}])
    history.to_list()[0]["val_top1"] = 99.0
    assert history["val_top1"] == [1.0]


def test_history_refuses_misspelt_keys_and_past_epochs():
    history = History([{"epoch": 3}])
    with pytest.raises(ValueError, match="val_top_1.*val_top1"):
        history.append(val_top_1=3.0)
    with pytest.raises(KeyError, match="top1"):
        history["top1"]
    with pytest.raises(ValueError, match="epoch=3 follows epoch 3"):
        history.append(epoch=3)
    with pytest.raises(ValueError, match="epoch=0"):
        History([{"epoch": 0}])
    assert len(history) == 1 and len(set(HISTORY_KEYS)) == 12


# Evaluation: accuracy --------------------------------------------------------------------------------------

def test_loss_and_softmax_equal_their_formulas(predictions, evaluation):
    logits, labels = predictions[0].double().numpy(), predictions[1].numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert evaluation.loss == pytest.approx(-np.log(probabilities[np.arange(200), labels]).mean(), abs=1e-6)
    np.testing.assert_allclose(evaluation.probabilities, probabilities, atol=1e-6)
    np.testing.assert_allclose(evaluation.confidences, probabilities.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(evaluation.predictions, logits.argmax(axis=1))


def test_confusion_equals_a_loop(predictions, evaluation):
    confusion = np.zeros((6, 6), dtype=int)
    for label, prediction in zip(predictions[1].tolist(), predictions[0].argmax(dim=1).tolist()):
        confusion[label, prediction] += 1
    np.testing.assert_array_equal(evaluation.confusion, confusion)
    assert evaluation.confusion.dtype == torch.int64 and len(evaluation) == 200


def test_class_accuracy_equals_a_loop_and_is_nan_without_images(predictions, evaluation):
    labels, guesses = predictions[1].numpy(), predictions[0].numpy().argmax(axis=1)
    expected = [100 * np.mean(guesses[labels == label] == label) for label in range(5)]
    np.testing.assert_allclose(evaluation.class_accuracy[:5], expected)
    assert evaluation.class_accuracy[5].isnan()
    assert evaluation.class_mean == pytest.approx(np.mean(expected))
    assert evaluation.class_std == pytest.approx(np.std(expected))
    assert evaluation.class_min == pytest.approx(min(expected))
    assert evaluation.class_max == pytest.approx(max(expected))
    assert evaluation.worst_class == NAMES[int(np.argmin(expected))]
    assert evaluation.best_class == NAMES[int(np.argmax(expected))]


def test_superclass_accuracy_counts_predictions_in_the_right_superclass(predictions, evaluation):
    coarse = SUPERCLASS_OF.numpy()
    labels, guesses = coarse[predictions[1].numpy()], coarse[predictions[0].numpy().argmax(axis=1)]
    assert evaluation.superclass_top1 == pytest.approx(100 * np.mean(labels == guesses))
    for place in (0, 1):
        assert evaluation.superclass_accuracy[place].item() == pytest.approx(
            100 * np.mean(guesses[labels == place] == place))
    assert evaluation.superclass_accuracy[2].isnan()


def test_without_superclasses_there_is_no_superclass_accuracy(predictions):
    evaluation = Evaluation.from_logits(*predictions, NAMES)
    assert evaluation.superclass_accuracy is None and evaluation.superclass_top1 is None
    assert evaluation.summary()["superclass_accuracy"] is None


# Evaluation: errors ----------------------------------------------------------------------------------------

def from_guesses(labels, guesses, confidences=None, classes=4):
    """An evaluation with these predictions; each has its given confidence, the rest is spread evenly."""
    confidences = [0.9] * len(labels) if confidences is None else confidences
    probabilities = torch.stack([torch.full((classes,), (1 - confidence) / (classes - 1))
                                 for confidence in confidences])
    probabilities[torch.arange(len(labels)), torch.tensor(guesses)] = torch.tensor(confidences)
    return Evaluation.from_logits(probabilities.log(), torch.tensor(labels), NAMES[:classes])


def test_most_confused_by_hand():
    evaluation = from_guesses(labels=[0, 0, 0, 0, 0, 1, 1, 2, 2, 2], guesses=[1, 1, 1, 2, 0, 1, 0, 3, 3, 2])
    assert evaluation.most_confused(2) == [("ant", "bee", 3, pytest.approx(60)),
                                           ("cat", "cow", 2, pytest.approx(200 / 3))]
    assert evaluation.most_confused(99)[2:] == [("ant", "cat", 1, pytest.approx(20)),
                                                ("bee", "ant", 1, pytest.approx(50))]
    assert evaluation.most_confused_classes(1) == [(0, 1, 3, pytest.approx(60))]


def test_most_confident_errors_by_hand():
    evaluation = from_guesses([0, 1, 2, 3], [1, 1, 3, 0], [0.6, 0.99, 0.9, 0.7])
    assert evaluation.most_confident_errors(2).tolist() == [2, 3]
    assert evaluation.most_confident_errors(9).tolist() == [2, 3, 0]


def test_perfect_predictions_have_no_errors():
    evaluation = from_guesses([0, 1, 2], [0, 1, 2])
    assert evaluation.most_confused(5) == [] and evaluation.most_confident_errors(5).tolist() == []
    assert evaluation.top1 == 100


# Evaluation: confidence ------------------------------------------------------------------------------------

def test_calibration_equals_the_sum_over_bins_of_guo_et_al(predictions, evaluation):
    confidences = evaluation.confidences.numpy()
    correct = predictions[0].numpy().argmax(axis=1) == predictions[1].numpy()
    error = 0.0
    for place in range(CALIBRATION_BINS):
        inside = (confidences > place / CALIBRATION_BINS) & (confidences <= (place + 1) / CALIBRATION_BINS)
        assert evaluation.calibration.count[place] == inside.sum()
        if inside.any():
            assert evaluation.calibration.accuracy[place].item() == pytest.approx(correct[inside].mean())
            assert evaluation.calibration.confidence[place].item() == pytest.approx(confidences[inside].mean())
            error += inside.mean() * abs(correct[inside].mean() - confidences[inside].mean())
        else:
            assert evaluation.calibration.accuracy[place].isnan()
    assert evaluation.expected_calibration_error == pytest.approx(error, abs=1e-6)


def test_certain_and_right_is_perfectly_calibrated():
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    assert Evaluation.from_logits(logits, torch.tensor([0, 1]), NAMES[:2]).expected_calibration_error == 0
    assert Evaluation.from_logits(logits, torch.tensor([1, 0]), NAMES[:2]).expected_calibration_error == 1


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_is_that_of_which_the_labels_were_drawn(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 10, generator=generator)
    labels = (logits / temperature).softmax(1).multinomial(1, generator=generator)[:, 0]
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    losses = [torch.nn.functional.cross_entropy(logits.double() / value, labels)
              for value in (found, found * 0.99, found * 1.01)]
    assert losses[0] < min(losses[1:])
    evaluation = Evaluation.from_logits(logits / found, labels, [str(name) for name in range(10)])
    assert evaluation.expected_calibration_error < 0.015


def test_temperature_has_limits_where_no_image_or_every_image_is_right():
    logits = 5 * torch.eye(4)
    assert fit_temperature(logits, torch.arange(4)) == 1        # the lower, the better, for these four
    assert fit_temperature(logits, (torch.arange(4) + 1) % 4) == pytest.approx(20)


def test_reliable_confidence_by_hand():
    # Wrong at 0.6; right, wrong at 0.7 and 0.8, which must not fall and become a half; right at 0.9 and 0.95.
    evaluation = from_guesses([0, 1, 2, 3, 3], [0, 1, 3, 3, 1], [0.95, 0.9, 0.8, 0.7, 0.6])
    assert evaluation.reliable_confidence(0.9, least=2) == pytest.approx(0.9)
    assert evaluation.reliable_confidence(0.9, least=3) is None and evaluation.reliable_confidence(0.9) is None
    assert evaluation.reliable_confidence(0.5, least=1) == pytest.approx(0.7)
    assert evaluation.reliable_confidence(0, least=1) == pytest.approx(0.6)
    assert from_guesses([0, 1], [1, 0]).reliable_confidence(0.9, least=1) is None


def test_reliable_confidence_is_about_its_neighbourhood_not_about_all_that_is_surer():
    generator = torch.Generator().manual_seed(0)
    sure = 0.3 + 0.65 * torch.rand(4000, generator=generator)
    labels = (torch.rand(4000, generator=generator) > sure).long()      # right as often as the confidence says
    evaluation = from_guesses([0] * 4000, labels.tolist(), sure.tolist())
    assert evaluation.reliable_confidence(0.8) == pytest.approx(0.8, abs=0.05)


def test_reliable_confidence_does_not_part_equal_confidences():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    evaluation = Evaluation.from_logits(logits, torch.tensor([0, 1, 1]), NAMES[:2])
    assert evaluation.reliable_confidence(0.9, least=1) is None


# Evaluation: input and output ------------------------------------------------------------------------------

def test_summary_is_plain_json_without_nan(evaluation):
    summary = evaluation.summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["class_accuracy"]["owl"] is None and summary["superclass_accuracy"]["birds"] is None
    assert summary["images"] == 200 and summary["top1"] == evaluation.top1
    assert summary["most_confused"][0]["images"] == evaluation.confusion.clone().fill_diagonal_(0).max()


def test_half_precision_logits_are_taken(predictions):
    logits, labels = predictions
    assert Evaluation.from_logits(logits.bfloat16(), labels, NAMES).probabilities.dtype == torch.float32


@pytest.mark.parametrize("change, message", [
    ({"logits": torch.zeros(3, 6)}, r"same N; found \[3, 6\] and \[2\]"),
    ({"logits": torch.zeros(2)}, r"logits must be \[N, C\]"),
    ({"logits": torch.zeros(0, 6), "labels": torch.zeros(0)}, "empty"),
    ({"class_names": NAMES[:5]}, "5 names, but the logits have 6"),
    ({"labels": torch.tensor([0, 6])}, r"from 0 to 6, but must lie in 0..5"),
    ({"labels": torch.tensor([-1, 2])}, "from -1 to 2"),
    ({"logits": torch.tensor([[math.nan] * 6, [0.0] * 6])}, "1 of 2 images are not finite"),
    ({"superclass_of": torch.zeros(5).long()}, r"must be \[6\]"),
    ({"superclass_of": torch.full((6,), 3)}, "from 3 to 3, but superclass_names holds 3"),
    ({"superclass_of": None}, "give both or neither"),
])
def test_wrong_input_is_named(change, message):
    arguments = {"logits": torch.zeros(2, 6), "labels": torch.tensor([0, 1]), "class_names": NAMES,
                 "superclass_of": SUPERCLASS_OF, "superclass_names": SUPERCLASSES} | change
    with pytest.raises(ValueError, match=message):
        Evaluation.from_logits(**arguments)
