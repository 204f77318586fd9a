"""Worst-case sharpness: the largest rise of the loss in a ball around the weights."""

from typing import Any, Literal

import torch
from torch import Tensor

from landscape.analyses.sharpness.measure import Measure, NotMeasuredError
from landscape.analyses.sharpness.subject import Subject
from landscape.estimators.blocks import mean_and_error
from landscape.estimators.probes import generator
from landscape.evaluation import Evaluation

Norm = Literal["l2", "linf"]
SIGNS = {"l2": "₂", "linf": "∞"}
NAMES = {"l2": "ℓ₂", "linf": "ℓ∞"}


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
) -> tuple[Tensor, Tensor]:
    """Projected gradient ascent of L(w + c∘u) over ‖u‖ ≤ ρ from a start; the best u and its loss.

    A step goes along the steepest direction of the norm, 2ρ long at first and half as long after every one
    that did not raise the loss, which is undone. The first one from u = 0 is that of SAM.
    """
    best = start
    loss, gradient = subject.loss_and_gradient(run, scaling * best, batches)
    step = torch.full((), 2.0, dtype=start.dtype, device=start.device)
    for _ in range(steps):
        u = project(best + step * steepest(scaling * gradient, norm, radius), norm, radius)
        new_loss, new_gradient = subject.loss_and_gradient(run, scaling * u, batches)
        better = new_loss > loss
        best = torch.where(better, u, best)
        loss = torch.where(better, new_loss, loss)
        gradient = torch.where(better, new_gradient, gradient)
        step = torch.where(better, step, step / 2)
    return best, loss


def random_start(like: Tensor, norm: Norm, radius: float, seed: int) -> Tensor:
    """A random point on the sphere, or in the cube."""
    source = generator(seed)
    if norm == "linf":
        u = 2 * torch.rand(len(like), generator=source, dtype=torch.float64) - 1
        return radius * u.to(like)
    u = torch.randn(len(like), generator=source, dtype=torch.float64)
    return radius * (u / u.norm()).to(like)


def worst(
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
    losses = [float(loss) for _, loss in found]
    u, _ = found[max(range(len(found)), key=losses.__getitem__)]
    return scaling * u, losses


def ball_measures(
    subject: Subject,
    *,
    family: str,
    radii: dict[str, float],
    adaptive: bool,
    scaled: Literal["all", "matrices"],
    steps: int,
    restarts: int,
    seed: int,
    one_step: bool = True,
    prefix: str = "",
    source: str = "",
) -> list[Measure]:
    """Rows of the worst case in the ℓ₂ and the ℓ∞ ball, by one step and by ascent."""
    c, label = subject.scaling(adaptive, scaled), scaling_label(adaptive, scaled)
    kind = "adaptive " if adaptive else ""
    ball = "‖δ/c‖" if adaptive else "‖δ‖"
    paper = "Kwon 2021, arXiv:2102.11600" if adaptive else "Foret 2021, arXiv:2010.01412"
    rows = []
    for norm in ("l2", "linf"):
        radius = radii[norm]
        same: dict[str, Any] = {"rho": radius, "scaling": label, "error_from": "samples"}
        if one_step:
            since = subject.spent()
            value, error = subject.rise(c * steepest(c * subject.gradient, norm, radius))
            length = "‖c∘g‖₂" if adaptive else "‖g‖₂"
            inner = "c²∘g" if adaptive else "g"
            step = f"ρ {inner}/{length}" if norm == "l2" else f"ρ {'c∘' if adaptive else ''}sign(g)"
            rows.append(
                subject.row(
                    since,
                    family,
                    f"{prefix}{kind}one step {NAMES[norm]}",
                    value,
                    error=error,
                    definition=f"L(w + δ) − L(w), δ = {step}",
                    source=source or paper,
                    **same,
                )
            )
        since = subject.spent()
        offset, losses = worst(subject, norm, radius, c, steps=steps, restarts=restarts, seed=seed)
        value, error = subject.rise(offset)
        rows.append(
            subject.row(
                since,
                family,
                f"{prefix}{kind}worst case {NAMES[norm]}",
                value,
                error=error,
                definition=f"max over {ball}{SIGNS[norm]} ≤ ρ of L(w + δ) − L(w)",
                source=source or "Andriushchenko 2023, arXiv:2302.07011",
                note=f"projected ascent, {steps} steps from {restarts} starts, which differ by "
                f"{max(losses) - min(losses):.2g}",
                **same,
            )
        )
    return rows


def m_sharpness(
    subject: Subject,
    dealt: Subject | None,
    *,
    family: str,
    m: int,
    radius: float,
    adaptive: bool,
    scaled: Literal["all", "matrices"],
    steps: int,
) -> Measure:
    """The row of the mean over batches of the worst case of each in the ℓ₂ ball."""
    if dealt is None:
        raise NotMeasuredError(
            "the data cannot be dealt into at least two batches of m samples whose losses stand alone"
        )
    c, label = subject.scaling(adaptive, scaled), scaling_label(adaptive, scaled)
    since, before = subject.spent(), dealt.gradients
    rises = []
    with dealt.problem.evaluation() as run:
        try:
            for batch in run.batches():
                start = torch.zeros_like(c)
                at_center, _ = dealt.loss_and_gradient(run, start, [batch])
                _, loss = ascend(
                    dealt,
                    run,
                    start,
                    norm="l2",
                    radius=radius,
                    scaling=c,
                    steps=steps,
                    batches=[batch],
                )
                rises.append(loss - at_center)
        finally:
            run.place(run.values)
    subject.gradients += (dealt.gradients - before) * dealt.problem.terms / subject.problem.terms
    value, error = mean_and_error(torch.stack(rises).cpu().numpy())
    ball = "‖δ/c‖" if adaptive else "‖δ‖"
    return subject.row(
        since,
        family,
        f"{'adaptive ' if adaptive else ''}m-sharpness ℓ₂",
        value,
        error=error,
        error_from="batches",
        definition=f"E over batches B of m of max over {ball}₂ ≤ ρ of L_B(w + δ) − L_B(w)",
        source="Foret 2021, arXiv:2010.01412; Andriushchenko 2022, arXiv:2206.06232",
        rho=radius,
        m=m,
        scaling=label,
        note=f"{len(rises)} batches at random, projected ascent of {steps} steps from δ = 0",
    )


def scaling_label(adaptive: bool, scaled: Literal["all", "matrices"]) -> str:
    """c in a word."""
    if not adaptive:
        return "1"
    return "|w|" if scaled == "all" else "|w| of matrices"
