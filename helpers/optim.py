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
    to the norm √out, which makes the rate relative to the weights. Filters of one shape are orthogonalised together,
    and the rest is done for all tensors of a group at once, so that the step is few operations. A rate may be a tensor
    on the device, for a step that is replayed.

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
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            grads = [parameter.grad for parameter in parameters]
            grads = grads if grad_scale is None else torch._foreach_div(grads, grad_scale)
            update = self._muon_step if group["orthogonalize"] else self._sgd_step
            for targets, values in zip((parameters, buffers), update(parameters, grads, buffers, group)):
                if found_inf is not None:       # then skip the step
                    values = [torch.where(found_inf.bool(), *pair) for pair in zip(targets, values)]
                torch._foreach_copy_(targets, values)

    def _muon_step(self, parameters, grads, buffers, group: dict) -> tuple[list[Tensor], list[Tensor]]:
        buffers, updates = _nesterov(grads, buffers, group["momentum"])
        factors = torch._foreach_reciprocal(torch._foreach_norm(parameters))
        torch._foreach_mul_(factors, [len(parameter) ** 0.5 for parameter in parameters])
        parameters = torch._foreach_mul(parameters, factors)
        return _descended(parameters, self._orthogonalized(updates), group["lr"]), buffers

    def _sgd_step(self, parameters, grads, buffers, group: dict) -> tuple[list[Tensor], list[Tensor]]:
        grads = torch._foreach_add(grads, parameters, alpha=group["weight_decay"])
        buffers, updates = _nesterov(grads, buffers, group["momentum"])
        return _descended(parameters, updates, group["lr"]), buffers

    def _orthogonalized(self, updates: list[Tensor]) -> list[Tensor]:
        """The nearest semi-orthogonal filters, those of one shape together. Small ones stay alone: to oneDNN a stack of
        products is one, and below 16³ multiplications it rounds otherwise than above."""
        places = {}
        for place, update in enumerate(updates):
            is_small = min(len(update), update[0].numel()) <= 16
            places.setdefault((update.shape, place if is_small else None), []).append(place)
        found = dict.fromkeys(range(len(updates)))
        for (shape, _), of_shape in places.items():
            matrices = torch.stack([updates[place] for place in of_shape]).flatten(2)
            filters = orthogonalize(matrices, dtype=self.newton_schulz_dtype).to(updates[0].dtype)
            found |= zip(of_shape, filters.reshape(-1, *shape).unbind())
        return list(found.values())


def _nesterov(grads: list[Tensor], buffers: list[Tensor], momentum: float) -> tuple[list[Tensor], list[Tensor]]:
    """The new momentum buffers, and the updates with Nesterov momentum."""
    buffers = torch._foreach_mul(buffers, momentum)
    torch._foreach_add_(buffers, grads)
    return buffers, torch._foreach_add(grads, buffers, alpha=momentum)


def _descended(parameters: list[Tensor], updates: list[Tensor], rate: float | Tensor) -> list[Tensor]:
    if isinstance(rate, Tensor):
        return torch._foreach_sub(parameters, torch._foreach_mul(updates, rate))
    return torch._foreach_add(parameters, updates, alpha=-rate)


def orthogonalize(matrices: Tensor, steps: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Roughly the nearest semi-orthogonal matrices to `matrices` [N, m, n], as `dtype` (Jordan et al. 2024).

    A quintic Newton-Schulz iteration on matrices scaled to Frobenius norm 1, which also keeps fp16 in range. Three
    steps bring singular values above 1/50 to about 0.7 … 1.2, as good for Muon as 1; smaller ones grow up to 41 times.

    A step multiplies a matrix X from the left by a polynomial P of X Xᵀ. Iterating only the small square matrices,
    X Xᵀ → P X Xᵀ P, and multiplying X once by the product of all P halves the arithmetic for wide matrices.
    """
    norms = torch.stack(torch._foreach_norm(list(matrices.unbind()))).view(-1, 1, 1)
    wide = (matrices / (norms + 1e-7)).to(dtype)
    wide = wide.mT if matrices.shape[1] > matrices.shape[2] else wide
    gram, product = wide @ wide.mT, None
    for step in range(steps):
        polynomial = -4.7750 * gram + 2.0315 * gram @ gram
        polynomial.diagonal(dim1=1, dim2=2).add_(3.4445)
        product = polynomial if product is None else polynomial @ product
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    wide = product @ wide
    return wide.mT if matrices.shape[1] > matrices.shape[2] else wide


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each parameter group to `factor` times its peak rate; where the rate is a tensor, in place."""
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
