"""Parameter groups, and SGD and Muon behind one interface."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def build_optimizer(model: nn.Module, name: str = "sgd", learning_rate: float = 0.1, momentum: float = 0.9,
                    weight_decay: float = 5e-4, norm_learning_rate: float = 0.05,
                    head_learning_rate: float = 0.5, head_momentum: float = 0.85,
                    newton_schulz_dtype: torch.dtype = torch.float32) -> torch.optim.Optimizer:
    """The optimiser `name` over the trainable parameters of `model`; each group keeps its peak rate in `initial_lr`.

    Muon leaves the classifier to SGD at `head_learning_rate`, norm parameters and biases to SGD at
    `norm_learning_rate`, both with `head_momentum`.
    """
    filters, matrices, vectors = split_parameters(model)
    if name == "sgd":
        groups = [{"params": filters + matrices, "weight_decay": weight_decay},     # two, as in checkpoints
                  {"params": vectors, "weight_decay": weight_decay}]
        # The fused kernel obeys the loss scaler's "skip this step" without asking the host.
        optimizer = torch.optim.SGD([g for g in groups if g["params"]], lr=learning_rate, momentum=momentum,
                                    nesterov=momentum > 0, fused=next(model.parameters()).is_cuda)
        if momentum:        # the kernel leaves its buffers unset if the scaler skips the first step, as it often does
            for parameter in filters + matrices + vectors:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    elif name == "muon":
        sgd = {"orthogonalize": False, "momentum": head_momentum, "weight_decay": weight_decay}
        groups = [{"params": filters, "lr": learning_rate, "momentum": momentum, "orthogonalize": True},
                  {"params": matrices, "lr": head_learning_rate, **sgd},
                  {"params": vectors, "lr": norm_learning_rate, **sgd}]
        optimizer = Muon([g for g in groups if g["params"]], newton_schulz_dtype=newton_schulz_dtype)
    else:
        raise ValueError(f"optimizer={name!r}: must be sgd or muon")
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def split_parameters(model: nn.Module) -> tuple[list, list, list]:
    """Trainable parameters as (convolution filters, linear weights, norm parameters and biases)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return ([parameter for parameter in trained if parameter.ndim > 2],
            [parameter for parameter in trained if parameter.ndim == 2],
            [parameter for parameter in trained if parameter.ndim < 2])


class Muon(torch.optim.Optimizer):
    """Muon for convolution filters, SGD with Nesterov momentum for the other groups (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon).

    In a group with `orthogonalize=True` a filter [out, in, h, w] counts as a matrix [out, in·h·w]. The nearest
    semi-orthogonal matrix (three Newton-Schulz steps) replaces the Nesterov update. Each step first rescales the filter
    to the norm √out, which makes the rate relative to the weights.

    torch.optim.Muon takes 2-D parameters only and needs a newer torch than Colab may have. Like torch's fused
    optimisers this one obeys GradScaler's `found_inf` on the device, without a sync per step.
    """

    _step_supports_amp_scaling = True

    def __init__(self, groups, newton_schulz_dtype: torch.dtype = torch.float32):
        self.newton_schulz_dtype = newton_schulz_dtype
        super().__init__(groups, {"lr": 0.1, "momentum": 0.6, "weight_decay": 0.0, "orthogonalize": False})

    @torch.no_grad()
    def step(self, closure=None):
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        skip = None if found_inf is None else found_inf.bool()
        for group in self.param_groups:
            update_parameter = self._muon_step if group["orthogonalize"] else self._sgd_step
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                grad = parameter.grad if grad_scale is None else parameter.grad / grad_scale
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                new_parameter, new_buffer = update_parameter(parameter, grad, state["momentum_buffer"], group)
                _assign(parameter, new_parameter, skip)
                _assign(state["momentum_buffer"], new_buffer, skip)

    def _muon_step(self, parameter: Tensor, grad: Tensor, buffer: Tensor, group: dict) -> tuple[Tensor, Tensor]:
        buffer = buffer * group["momentum"] + grad
        update = grad.add(buffer, alpha=group["momentum"]).reshape(len(grad), -1)
        update = orthogonalize(update, dtype=self.newton_schulz_dtype)
        parameter = parameter * (len(parameter) ** 0.5 / parameter.norm())
        return parameter.add(update.view(parameter.shape).to(parameter.dtype), alpha=-group["lr"]), buffer

    def _sgd_step(self, parameter: Tensor, grad: Tensor, buffer: Tensor, group: dict) -> tuple[Tensor, Tensor]:
        grad = grad.add(parameter, alpha=group["weight_decay"])
        buffer = buffer * group["momentum"] + grad
        return parameter.add(grad.add(buffer, alpha=group["momentum"]), alpha=-group["lr"]), buffer


def _assign(target: Tensor, value: Tensor, skip: Tensor | None) -> None:
    target.copy_(value if skip is None else torch.where(skip, target, value))


def orthogonalize(matrix: Tensor, steps: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Roughly the nearest semi-orthogonal matrix to `matrix` [m, n], as `dtype` (Jordan et al. 2024).

    A quintic Newton-Schulz iteration on the matrix scaled to Frobenius norm 1, which also keeps fp16 in range. Three
    steps bring singular values above 1/50 to about 0.7 … 1.2, as good for Muon as 1; smaller ones grow up to 41 times.

    A step multiplies the matrix X from the left by a polynomial P of X Xᵀ. Iterating only the small square matrices,
    X Xᵀ → P X Xᵀ P, and multiplying X once by the product of all P halves the arithmetic for wide matrices.
    """
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = (wide / (wide.norm() + 1e-7)).to(dtype)
    gram, product = wide @ wide.T, None
    for step in range(steps):
        polynomial = -4.7750 * gram + 2.0315 * gram @ gram
        polynomial.diagonal().add_(3.4445)
        product = polynomial if product is None else polynomial @ product
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    wide = product @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each parameter group to `factor` times its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
