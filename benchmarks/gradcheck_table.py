"""The verdicts of ``check_backward`` beside those of ``torch.autograd.gradcheck``.

``python benchmarks/gradcheck_table.py`` prints the table of ``docs/checking.rst``, with PyTorch.
Each function takes one float64 tensor, if nothing else is said; both checkers have their defaults.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgrad import GradientCheckWarning, check_backward

if TYPE_CHECKING:
    from torch import Tensor

#: Why the two differ, where they do.
REASONS = {
    "exp, 0.1% too large": "gradcheck allows a relative error of 0.1%",
    "x², one small entry 50% too large": "gradcheck allows an absolute error of 1e-5",
    "1e-6 Σx², gradient zero": "gradcheck allows an absolute error of 1e-5",
    "abs at 0": "PyTorch's 0 is the mean of the slopes to both sides, which gradcheck compares it "
    "with; at a kink nothing is judged here",
    "max pooling of ties": "PyTorch takes the first of two equal entries, and not the mean of both "
    "slopes; here the two are counted as kinks, and the others are right",
}


def planted(f: Callable[[Tensor], Tensor], factor: Any) -> Callable[[Tensor], Tensor]:
    """Return f with a wrong backward pass: one that is multiplied by a factor."""
    import torch  # not at the top: asv imports every file here, with or without PyTorch

    factor = torch.as_tensor(factor, dtype=torch.float64)
    return lambda x: f(x.detach() + factor * (x - x.detach()))


def cases() -> dict[str, tuple[Callable[[Tensor], Tensor], np.ndarray]]:
    """Return functions, and where to check each."""
    import torch
    from torch.nn import functional

    rng = np.random.default_rng(0)
    x, positive = rng.normal(size=(3, 4)), rng.uniform(0.5, 2, (3, 4))
    square, image = rng.normal(size=(3, 3)), rng.normal(size=(2, 2, 5, 5))
    w, k = torch.tensor(rng.normal(size=(4, 2))), torch.tensor(rng.normal(size=(3, 2, 3, 3)))
    labels = torch.tensor([0, 3, 1])
    ties = np.array([[1.0, 1.0, 0.0, 2.0]])
    small = np.array([1.0, 1e-6, 2.0])
    return {
        "exp": (torch.exp, x),
        "log": (torch.log, positive),
        "sqrt": (torch.sqrt, positive),
        "tanh": (torch.tanh, x),
        "sigmoid": (torch.sigmoid, x),
        "softplus": (functional.softplus, x),
        "gelu": (functional.gelu, x),
        "relu": (functional.relu, x),
        "abs": (torch.abs, x),
        "softmax": (lambda x: functional.softmax(x, 1), x),
        "logsumexp": (lambda x: torch.logsumexp(x, 1), x),
        "cross entropy": (lambda x: functional.cross_entropy(x, labels), x),
        "matrix product": (lambda x: x @ w, x),
        "inverse": (torch.linalg.inv, square),
        "determinant": (torch.linalg.det, square),
        "cumulative product": (lambda x: torch.cumprod(x, 0), x),
        "standard deviation": (lambda x: x.std(0), x),
        "layer norm": (lambda x: functional.layer_norm(x, (4,)), x),
        "batch norm": (lambda x: functional.batch_norm(x, None, None, training=True), x),
        "convolution": (lambda x: functional.conv2d(x, k), image),
        "mean pooling": (lambda x: functional.avg_pool2d(x, 2), image),
        "max pooling": (lambda x: functional.max_pool2d(x, 2), image),
        "dropout": (lambda x: functional.dropout(x, 0.5), x),
        "exp, wrong sign": (planted(torch.exp, -1.0), x),
        "mean, times N": (planted(torch.mean, 12.0), x),
        "tanh, a detached factor": (lambda x: x * torch.tanh(x).detach(), x),
        "exp, 1% too large": (planted(torch.exp, 1.01), x),
        "exp, 0.1% too large": (planted(torch.exp, 1.001), x),
        "x², one small entry 50% too large": (planted(lambda x: x**2, [1.0, 1.5, 1.0]), small),
        "1e-6 Σx², gradient zero": (planted(lambda x: 1e-6 * (x**2).sum(), 0.0), x),
        "relu at 0": (functional.relu, np.zeros(3)),
        "abs at 0": (torch.abs, np.zeros(3)),
        "max pooling of ties": (lambda x: functional.max_pool1d(x, 2), ties),
        "exp of float32": (torch.exp, x.astype(np.float32)),
    }


def verdicts(f: Callable[[Tensor], Tensor], x: np.ndarray) -> tuple[bool, str]:
    """Return the verdicts of gradcheck and of check_backward."""
    import torch

    torch.manual_seed(0)
    tensor = torch.tensor(x, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (UserWarning, GradientCheckWarning))
        theirs = torch.autograd.gradcheck(f, (tensor,), raise_exception=False)
        ours = check_backward(
            lambda x: f(torch.from_numpy(x)).detach().numpy(),
            lambda dout: torch.autograd.grad(f(tensor), tensor, torch.as_tensor(dout))[0].numpy(),
            x,
            rng=0,
        )  # fmt: skip
    return theirs, ours.arrays["x"].verdict


def main() -> None:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, (f, x) in cases().items():
        theirs, ours = verdicts(f, x)
        reason = REASONS[name] if theirs != (ours == "ok") else ""
        groups.setdefault(("passed" if theirs else "failed", ours, reason), []).append(name)
    print(".. list-table::\n   :header-rows: 1\n   :widths: 40 13 17 30\n")
    header = ("function", "gradcheck", "check_backward", "why they differ")
    for row in [header, *(("; ".join(names), *rest) for rest, names in groups.items())]:
        for i, cell in enumerate(row):
            text = f"   {'  -' if i else '* -'} {cell}".rstrip()
            print(textwrap.fill(text, 100, subsequent_indent=7 * " ", break_on_hyphens=False))


if __name__ == "__main__":
    main()
