"""Relative flatness of layers, which rescaling the neurons of a ReLU network does not change."""

import torch
from torch import Tensor, nn

from landscape.analyses.sharpness.measure import LayerFlatness, NotMeasuredError, Part
from landscape.analyses.sharpness.options import Options
from landscape.analyses.sharpness.subject import Subject
from landscape.estimators.blocks import block_spectra, block_traces
from landscape.operators.matrix import FunctionOperator
from landscape.problem import Problem

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def relative_flatness(subject: Subject, options: Options) -> Part:
    """The row of the sum over layers, and every layer.

    With G = W Wᵀ the sum over pairs of rows is tr((G ⊗ I) H) = tr(S H S), S = G^½ ⊗ I: the trace of a block
    of S H S, whose products take one of H each.
    """
    since = subject.spent()
    problem = subject.problem
    layers = weight_matrices(problem)
    if not layers:
        raise NotMeasuredError("no weight of a linear layer or a convolution is selected")
    parts = problem.layout.split(subject.weights)
    roots = {i: square_root(parts[i].flatten(1)) for i in layers}

    def scaled(block: Tensor) -> Tensor:
        columns = block.shape[1]
        pieces = list(block.split(problem.layout.sizes))
        for i, piece in enumerate(pieces):
            if i in roots:
                rows = len(roots[i])
                pieces[i] = (roots[i] @ piece.reshape(rows, -1)).reshape(-1, columns)
            else:
                pieces[i] = torch.zeros_like(piece)
        return torch.cat(pieces)

    A = FunctionOperator(
        lambda block: scaled(subject.hessian.product(scaled(block))),
        problem.size,
        problem.dtype,
        problem.device,
    )
    subject.hessian.expect(options.probes + len(layers))
    places = torch.arange(problem.size).split(problem.layout.sizes)
    blocks = [places[i] for i in layers]
    rest = [place for i, place in enumerate(places) if i not in layers]
    if rest:
        blocks.append(torch.cat(rest))
    traces = block_traces(
        block_spectra(
            A,
            blocks,
            probes=1,
            steps=1,
            shared_probes=options.probes,
            zero=[len(layers)] if rest else [],
            seed=options.seed,
        )
    )
    found = [
        LayerFlatness(problem.names[i], float(value), float(error))
        for i, value, error in zip(layers, traces.values, traces.standard_errors, strict=False)
    ]
    row = subject.row(
        since,
        "relative-flatness",
        "relative flatness",
        traces.total,
        error=traces.total_error,
        error_from="probes",
        definition="Σ over layers of Σₛₛ′ ⟨wₛ, wₛ′⟩ tr Hₛₛ′, wₛ the rows of the layer's weight",
        source="Petzka 2021, arXiv:2001.00939",
        scaling="W Wᵀ",
        note=f"{len(layers)} layers, {options.probes} probes; filters are the rows of a convolution; biases left out",
    )
    return Part([row], found)


def weight_matrices(problem: Problem) -> list[int]:
    """Places, among the selected parameters, of the weights of linear layers and plain convolutions."""
    modules = dict(problem.model.named_modules())
    found = []
    for i, name in enumerate(problem.names):
        owner, _, own = name.rpartition(".")
        module = modules.get(owner)
        plain = getattr(module, "groups", 1) == 1  # else rows do not share their inputs
        real = not problem.selected()[i].is_complex()
        if own == "weight" and isinstance(module, KINDS) and plain and real:
            found.append(i)
    return found


def square_root(weight: Tensor) -> Tensor:
    """The symmetric square root of W Wᵀ, of the order of the rows."""
    wide = weight.double()
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    return ((vectors * values.clamp_min(0).sqrt()) @ vectors.T).to(weight)
