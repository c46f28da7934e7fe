"""The host never waits for the GPU within a step."""

import pytest
import torch

from helpers.replay import WARM_UP, ReplayedStep
from training import CUDA_RUN, in_precision, make_trainer


@pytest.mark.parametrize("changes", [
    {}, {"augmentation_strength": "strong", "ema_decay": 0.9, "self_distillation": 0.4, "start_image_size": 24},
    {"gradient_clip": 1.0, "gradient_accumulation_steps": 2, "batch_size": 8},
    {"model": "CIFAR100CNN", "widths": (16, 16, 16, 16), "optimizer": "sgd", "dropout_rate": 0.3,
     "augmentation_strength": "strong", "gradient_clip": 1.0}], ids=["fast", "strong", "accumulation", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("capture", ["auto", None], ids=["replayed", "ordinary"])
def test_no_step_waits_for_the_gpu(tmp_path, changes, precision, capture):
    trainer = make_trainer(tmp_path, CUDA_RUN | changes | in_precision(precision))
    trainer.model.train()
    take, distil = ReplayedStep(trainer.train_step, trainer.loader, capture), trainer.config.self_distillation > 0

    def step(number):
        return take(0, trainer.schedule.batches(number), trainer.schedule.image_size(0),
                    trainer.schedule.learning_rate_factor(number), distil)

    found = [step(number % 4) for number in range(2 * (WARM_UP + 1))]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += [step(number % 4) for number in range(6)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert take.why_eager == "" and (take.warm_up > 1) == (capture == "auto")
    assert torch.stack([loss for loss, _ in found]).isfinite().all()
