"""Work of many small kernels: recorded once on a GPU, then launched as one.

A generation is tens of thousands of kernels that run for microseconds, and Python takes longer to
launch one than a GPU takes to run it. A CUDA graph launches all that was recorded by one call: the
same kernels on the same addresses in the same order, so the same bits each time. On a CPU, and
where recording fails, the work simply runs.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from trainer.signals import STOP

Tensors = dict[str, torch.Tensor]
Work = Callable[[Tensors], Tensors]


def under(prefix: str, tensors: Tensors) -> Tensors:
    """Those named `prefix/...`, without the prefix."""
    start = len(prefix) + 1
    return {name[start:]: t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def named(prefix: str, tensors: Tensors) -> Tensors:
    """The same tensors as `prefix/...`."""
    return {f"{prefix}/{name}": t for name, t in tensors.items()}


class Recorder:
    """The recordings of one exchange's work, kept for as long as it is."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Recording | None] = {}
        self._pool: Any = None  # torch has no name for its type before 2.9

    def run(self, key: Hashable, work: Work, given: Tensors, *, keep: bool = True) -> Tensors:
        """What `work` makes of `given`: tensors on one device, as are its results.

        `work` must have no other effect, wait for nothing, and launch the same kernels with the
        same numbers whenever key and shapes are the same: what is not among `given` stays what it
        was in the first run. What comes of `keep=False` holds until the next run of this key.
        """
        if not all(t.is_cuda for t in given.values()):
            return work(given)
        kind = (key, *((name, t.shape, t.dtype) for name, t in given.items()))
        if kind not in self._known:
            self._known[kind] = self._recorded(key, work, given)
        recording = self._known[kind]
        return work(given) if recording is None else recording.replay(given, keep=keep)

    def _recorded(self, key: Hashable, work: Work, given: Tensors) -> _Recording | None:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            return _Recording.of(work, given, self._pool)
        except RuntimeError as error:
            warnings.warn(f"{key} cannot be recorded on this GPU and goes on launch by launch, "
                          f"slower: {str(error).splitlines()[0]}", stacklevel=2)  # fmt: skip
            return None


@dataclass
class _Recording:
    """A graph, and the places it reads from and writes to."""

    graph: torch.cuda.CUDAGraph
    places: Tensors
    results: Tensors
    before: dict[str, tuple[weakref.ref[torch.Tensor], int]]
    """What was copied into the places last, and its version: it need not be copied again."""

    @staticmethod
    def of(work: Work, given: Tensors, pool: Any) -> _Recording:
        places = {name: t.detach().clone(memory_format=torch.contiguous_format)
                  for name, t in given.items()}  # fmt: skip
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work(places)  # libraries make their workspaces and load their kernels now
        torch.cuda.current_stream().wait_stream(stream)
        # a thread that copies a checkpoint meanwhile is no part of it
        with STOP.put_off(), torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
            results = work(places)
        return _Recording(graph, places, results, {})

    def replay(self, given: Tensors, *, keep: bool) -> Tensors:
        with torch.no_grad():
            for name, place in self.places.items():
                source = given[name]
                last, version = self.before.get(name, (lambda: None, -1))
                if last() is not source or version != source._version:
                    place.copy_(source)
                    self.before[name] = weakref.ref(source), source._version
            self.graph.replay()
            return {n: t.clone() for n, t in self.results.items()} if keep else self.results
