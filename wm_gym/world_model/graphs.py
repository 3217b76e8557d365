"""CUDA graphs: what is many small kernels is launched at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3  # calls before one is recorded, as torch asks for


def recorded(call: Callable[..., Tensor], *inputs: Tensor) -> Callable[..., Tensor]:
    """Record what `call` does on a GPU, for inputs of the shapes of these; elsewhere return it.

    What comes back takes such inputs and returns what `call` would, in memory that the next call
    overwrites. It may leave gradients too, if it begins by setting them to None. Small networks
    spend most of a GPU's time waiting for launches otherwise.
    """
    if not inputs[0].is_cuda:
        return call
    kept = [x.clone() for x in inputs]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            call(*kept)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(*kept)

    def replay(*inputs: Tensor) -> Tensor:
        for old, new in zip(kept, inputs, strict=True):
            old.copy_(new)
        graph.replay()
        return result

    return replay
