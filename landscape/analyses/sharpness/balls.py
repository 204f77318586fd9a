"""Worst-case sharpness: the largest rise of the loss in a ball around the weights."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from landscape.analyses.sharpness.measure import Measure, Part
from landscape.analyses.sharpness.options import Options
from landscape.analyses.sharpness.subject import Subject
from landscape.estimators.probes import generator
from landscape.evaluation import Evaluation

Norm = Literal["l2", "linf"]
NORMS: tuple[Norm, ...] = ("l2", "linf")
SIGNS = {"l2": "ℓ₂", "linf": "ℓ∞"}


def steepest(gradient: Tensor, norm: Norm, radius: float) -> Tensor:
    """The u of norm `radius` that maximises gᵀu; zero where the gradient is."""
    if norm == "linf":
        return radius * gradient.sign()
    length = gradient.double().norm().to(gradient)
    return radius * torch.where(length > 0, gradient / length, torch.zeros_like(gradient))


def project(u: Tensor, norm: Norm, radius: float) -> Tensor:
    """The point of the ball that is nearest to u."""
    if norm == "linf":
        return u.clamp(-radius, radius)
    return u * (radius / u.double().norm().to(u)).clamp(max=1)


def ascend(
    subject: Subject,
    run: Evaluation,
    start: Tensor,
    *,
    norm: Norm,
    radius: float,
    scaling: Tensor,
    steps: int,
    batches: list[Any] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Projected gradient ascent of L(w + c∘u) over ‖u‖ ≤ ρ from a start: the best u, its loss, the first loss.

    A step goes along the steepest direction of the norm, 2ρ long at first and half as long after every one
    that did not raise the loss, which is undone. The first one from u = 0 is that of SAM.
    """
    best = start
    loss, gradient = subject.loss_and_gradient(run, scaling * best, batches)
    first = loss
    step = torch.full((), 2.0, dtype=start.dtype, device=start.device)
    for _ in range(steps):
        u = project(best + step * steepest(scaling * gradient, norm, radius), norm, radius)
        new_loss, new_gradient = subject.loss_and_gradient(run, scaling * u, batches)
        better = new_loss > loss
        best = torch.where(better, u, best)
        loss = torch.where(better, new_loss, loss)
        gradient = torch.where(better, new_gradient, gradient)
        step = torch.where(better, step, step / 2)
    return best, loss, first


def random_start(like: Tensor, norm: Norm, radius: float, seed: int) -> Tensor:
    """A random point on the sphere, or in the cube."""
    source = generator(seed)
    if norm == "linf":
        u = 2 * torch.rand(len(like), generator=source, dtype=torch.float64) - 1
        return radius * u.to(like)
    u = torch.randn(len(like), generator=source, dtype=torch.float64)
    return radius * (u / u.norm()).to(like)


def find_worst(
    subject: Subject,
    norm: Norm,
    radius: float,
    scaling: Tensor,
    *,
    steps: int,
    restarts: int,
    seed: int,
) -> tuple[Tensor, list[float]]:
    """The δ of the largest rise that was found over all the data, and the loss from every start."""
    with subject.problem.evaluation() as run:
        try:
            found = []
            for i in range(restarts):
                start = torch.zeros_like(scaling)
                if i:
                    start = random_start(scaling, norm, radius, seed + i)
                options: dict[str, Any] = {"norm": norm, "radius": radius, "scaling": scaling}
                found.append(ascend(subject, run, start, steps=steps, **options))
        finally:
            run.place(run.values)
    losses = [float(loss) for _, loss, _ in found]
    return scaling * found[losses.index(max(losses))][0], losses


def worst(subject: Subject, options: Options) -> Part:
    """Rows of the worst case in the ℓ₂ and the ℓ∞ ball, by one step and by ascent, plain and adaptive."""
    rows = []
    for adaptive in (False, True):
        for norm in NORMS:
            rows.append(one_step_row(subject, options, norm, adaptive))
            rows.append(worst_row(subject, options, "worst", norm, adaptive))
    return Part(rows)


def one_step_row(subject: Subject, options: Options, norm: Norm, adaptive: bool) -> Measure:
    """The row of the rise at the perturbation of SAM, or of ASAM."""
    since = subject.spent()
    c, label = subject.scaling(adaptive, options.scaled)
    radius = radius_of(subject, options, norm, adaptive)
    value, error = subject.rise(c * steepest(c * subject.gradient, norm, radius))
    if norm == "l2":
        step = "ρ c²∘g/‖c∘g‖₂" if adaptive else "ρ g/‖g‖₂"
    else:
        step = "ρ c∘sign(g)" if adaptive else "ρ sign(g)"
    return subject.row(
        since,
        "worst",
        f"{'adaptive ' if adaptive else ''}one step {SIGNS[norm]}",
        value,
        error=error,
        error_from="samples",
        definition=f"L(w + δ) − L(w), δ = {step}",
        source="Kwon 2021, arXiv:2102.11600" if adaptive else "Foret 2021, arXiv:2010.01412",
        rho=radius,
        scaling=label,
    )


def worst_row(
    subject: Subject,
    options: Options,
    family: str,
    norm: Norm,
    adaptive: bool,
    *,
    prefix: str = "",
) -> Measure:
    """The row of the largest rise in the ball that ascent finds."""
    since = subject.spent()
    c, label = subject.scaling(adaptive, options.scaled)
    radius = radius_of(subject, options, norm, adaptive)
    offset, losses = find_worst(
        subject,
        norm,
        radius,
        c,
        steps=options.steps,
        restarts=options.restarts,
        seed=options.seed,
    )
    value, error = subject.rise(offset)
    starts = "δ = 0"
    if options.restarts > 1:
        starts = f"{options.restarts} starts, which differ by {max(losses) - min(losses):.2g}"
    return subject.row(
        since,
        family,
        f"{prefix}{'adaptive ' if adaptive else ''}worst case {SIGNS[norm]}",
        value,
        error=error,
        error_from="samples",
        definition=f"max over {ball(norm, adaptive)} ≤ ρ of L(w + δ) − L(w)",
        source="Andriushchenko 2023, arXiv:2302.07011",
        rho=radius,
        scaling=label,
        note=f"projected ascent, {options.steps} steps from {starts}",
    )


def radius_of(subject: Subject, options: Options, norm: Norm, adaptive: bool) -> float:
    """ρ of a ball: the corners of that of ℓ∞ lie on the sphere of ℓ₂."""
    radius = options.radius(adaptive)
    return radius if norm == "l2" else radius / math.sqrt(subject.problem.size)


def ball(norm: Norm, adaptive: bool) -> str:
    """The norm of δ that is bounded."""
    return f"‖{'δ/c' if adaptive else 'δ'}‖{SIGNS[norm][1]}"
