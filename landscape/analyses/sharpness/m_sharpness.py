"""m-sharpness: the mean over batches of m samples of the worst case of each."""

import torch

from landscape.analyses.sample_groups import random_batches
from landscape.analyses.sharpness.balls import ascend, ball
from landscape.analyses.sharpness.measure import Measure, NotMeasuredError, Part
from landscape.analyses.sharpness.options import Options
from landscape.analyses.sharpness.subject import Subject
from landscape.estimators.blocks import mean_and_error

BATCHES = 8  # at most


def m_sharpness(subject: Subject, options: Options) -> Part:
    """Rows of m-sharpness in the ℓ₂ ball, plain and adaptive."""
    samples = subject.problem.samples
    if samples < 2 * options.m:
        raise NotMeasuredError(
            f"{samples:,} samples are less than two batches of {options.m:,}: choose m of at most "
            f"{samples // 2:,} (--m)"
            if samples > 1
            else "there is only one sample"
        )
    problem = random_batches(subject.problem, options.m, BATCHES, seed=options.seed)
    if problem is None:
        raise NotMeasuredError("the loss is no mean over samples that can be dealt into batches")
    dealt = subject.on(problem)
    return Part([m_row(subject, dealt, options, adaptive) for adaptive in (False, True)])


def m_row(subject: Subject, dealt: Subject, options: Options, adaptive: bool) -> Measure:
    """The row of the mean over batches of the worst case of each."""
    c, label = subject.scaling(adaptive, options.scaled)
    radius = options.radius(adaptive)
    since, before = subject.spent(), dealt.gradients
    rises = []
    with dealt.problem.evaluation() as run:
        try:
            for batch in run.batches():
                _, loss, first = ascend(
                    dealt,
                    run,
                    torch.zeros_like(c),
                    norm="l2",
                    radius=radius,
                    scaling=c,
                    steps=options.steps,
                    batches=[batch],
                )
                rises.append(loss - first)
        finally:
            run.place(run.values)
    subject.gradients += (dealt.gradients - before) * dealt.problem.terms / subject.problem.terms
    value, error = mean_and_error(torch.stack(rises).cpu().numpy())
    return subject.row(
        since,
        "m",
        f"{'adaptive ' if adaptive else ''}m-sharpness ℓ₂",
        value,
        error=error,
        error_from="batches",
        definition=f"E over batches B of m of max over {ball('l2', adaptive)} ≤ ρ of L_B(w + δ) − L_B(w)",
        source="Foret 2021, arXiv:2010.01412; Andriushchenko 2022, arXiv:2206.06232",
        rho=radius,
        m=options.m,
        scaling=label,
        note=f"{len(rises)} batches at random, projected ascent of {options.steps} steps from δ = 0",
    )
