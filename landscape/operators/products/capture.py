"""Work on a GPU launched as one graph, without the host in between."""

from collections.abc import Callable

import torch
from torch import Tensor


class Captured:
    """A function of one CUDA tensor as a CUDA graph; every call gives a tensor of its own.

    The function must find everything else it reads at the same addresses every time, and ask the host
    for nothing. What it returns is compared with the function's own result when the graph is made.

    Raises:
        RuntimeError: the function cannot be captured, or the graph computes something else.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], example: Tensor) -> None:
        self._input = example.clone()
        stream = torch.cuda.Stream(example.device)
        stream.wait_stream(torch.cuda.current_stream(example.device))
        with torch.cuda.stream(stream):  # libraries set themselves up outside the graph
            expected = function(self._input)
        torch.cuda.current_stream(example.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = function(self._input)
        difference = float((self(example) - expected).norm())
        if not difference <= 1e-5 * float(expected.norm()):
            raise RuntimeError("the graph gives another product")

    def __call__(self, argument: Tensor) -> Tensor:
        self._input.copy_(argument)
        self._graph.replay()
        return self._output.clone()
