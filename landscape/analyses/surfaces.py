"""How do the landscapes of several models compare?  Surfaces with the same axes by name, over the same range."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from landscape.analyses.extent import Extent, suggested_extents
from landscape.analyses.surface import Kind, Surface, axes_of, surface
from landscape.errors import InputError
from landscape.estimators.loss_at import LossAt, NormStats
from landscape.operators.hessian import Hessian
from landscape.operators.products.plan import Execution
from landscape.problem import Problem


def surfaces(
    problems: Sequence[Problem],
    axes: Kind = "hessian",
    *,
    ranks: Sequence[int] = (1, 2),
    extent: float | Sequence[float | Extent] | Literal["auto"] = "auto",
    norm_stats: NormStats | None = None,
    seed: int = 0,
    progress: Callable[[int, str, int, int], None] | None = None,
    **options: Any,
) -> list[Surface]:
    """The surface of each of several models, all over one range, so that they can be compared.

    Every model has its own eigenvectors or gradient; random directions are drawn from the same seed, and
    scaled by each model's own filters.

    Args:
        problems: two or more, usually of models trained in different ways on the same data.
        axes: "hessian", "random" or "gradient".
        extent: "auto" is the widest of the ranges suggested for the models, see `surface`.
        progress: called with (model, phase, done, expected), models counted from 0.
        ranks, norm_stats, seed, options: see `surface`.

    Raises:
        InputError: fewer than two problems, or arguments that do not go together.

    Example:
        >>> import torch, landscape as ls
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> models = [torch.nn.Linear(2, 1, bias=False) for _ in range(2)]
        >>> problems = [ls.Problem(model, "mse", (x, torch.ones(2, 1))) for model in models]
        >>> first, second = ls.surfaces(problems, points=3)
        >>> bool((first.grid[0] == second.grid[0]).all())
        True
    """
    if len(problems) < 2:
        raise InputError(f"{len(problems)} model was given: compare two or more")

    def report(model: int) -> Callable[[str, int, int], None] | None:
        return None if progress is None else partial(progress, model)

    execution: Any = {key: options[key] for key in Execution.__annotations__ if key in options}
    found = []
    for i, problem in enumerate(problems):
        tell = None if progress is None else partial(progress, i, "eigenvalues")
        A = Hessian(problem, **execution)
        found.append(axes_of(A, axes, ranks, seed=seed, progress=tell))
    if isinstance(extent, str) and extent == "auto":
        ranges = [
            suggested_extents(LossAt(problem, made.directions, norm_stats=norm_stats), made)[0]
            for problem, made in zip(problems, found, strict=True)
        ]
        extent = [
            (min(low for low, _ in ends), max(high for _, high in ends))
            for ends in zip(*ranges, strict=True)
        ]
    return [
        surface(
            problem,
            made,
            extent=extent,
            norm_stats=norm_stats,
            seed=seed,
            progress=report(i),
            **options,
        )
        for i, (problem, made) in enumerate(zip(problems, found, strict=True))
    ]
