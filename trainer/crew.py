"""Several workers at one run, started by torchrun: who does what, and how it comes together.

All workers hold the whole state and go through the same generation. Agents play, learn and breed in
groups, and each group is one worker's work; what comes of it is given to all, byte by byte, in the
order of the groups. So the result does not depend on how many workers there are. Only the first
worker writes checkpoints and logs. A worker that is lost ends the others, whose next exchange
fails, and torchrun starts them again from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trainer.errors import UsageFault
from trainer.signals import STOP, Interrupted

Tensors = dict[str, torch.Tensor]
Result = TypeVar("Result")
PATIENCE = datetime.timedelta(minutes=30)
CONNECTING, TRIES = datetime.timedelta(seconds=5), 40


class Crew:
    """The workers of a run as one of them sees them; by itself, a crew of one."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the worker that writes and speaks."""
        return self.rank == 0

    def owns(self, index: int) -> bool:
        """Whether a piece of work is this worker's."""
        return index % self.size == self.rank

    def gather(self, count: int, work: Callable[[int], Tensors]) -> list[Tensors]:
        """`work` of each number below `count`, done by one worker and known to all."""
        done = {index: work(index) for index in range(count) if self.owns(index)}
        return [self.spread(index % self.size, done.get(index)) for index in range(count)]

    def spread(self, owner: int, tensors: Tensors | None) -> Tensors:
        """One worker's tensors, for all."""
        if self.size == 1:
            return tensors or {}
        shapes = None
        if tensors is not None:
            shapes = [(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
        result = {}
        for name, dtype, shape in self._object(owner, shapes):
            if tensors is None:
                tensor = torch.empty(shape, dtype=dtype, device=self.device)
            else:
                tensor = tensors[name].contiguous()
            if tensor.numel():
                dist.broadcast(tensor.reshape(-1).view(torch.uint8), owner)
            result[name] = tensor
        return result

    def same(self, find: Callable[[], Result]) -> Result:
        """What the first worker finds, for all; its UsageFault is everybody's."""
        if self.size == 1:
            return find()
        answer: tuple[Any, tuple[str, ...] | None] = (None, None)
        if self.first:
            try:
                answer = (find(), None)
            except UsageFault as fault:
                answer = (None, fault.faults)
        value, faults = self._object(0, answer)
        if faults is not None:
            raise UsageFault(*faults)
        result: Result = value
        return result

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """The first worker of each machine, then the others: what it caches serves them."""
        if self.size == 1:
            return work()
        if self.local_rank:
            dist.barrier()
            return work()
        try:
            return work()
        finally:
            dist.barrier()

    @contextlib.contextmanager
    def generation(self) -> Iterator[None]:
        """A generation is everybody's or nobody's: a signal to one stops all, between two."""
        if self.size == 1:
            yield
            return
        asked = torch.tensor([STOP.signal_number], device=self.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if int(asked):
            STOP.signal_number = STOP.signal_number or int(asked)
            raise Interrupted
        with STOP.put_off():
            yield

    def leave(self) -> None:
        """The run is over."""
        if self.size > 1:
            dist.destroy_process_group()

    def _object(self, owner: int, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, owner, device=torch.device("cpu"))
        return box[0]


ALONE = Crew()


def join() -> Crew:
    """The crew that torchrun has started, or a crew of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Crew()
    crew = Crew(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))  # type: ignore[attr-defined]
    if size == local_size():
        # the store has outlived the workers, and where they listened stands in it: half a minute
        # (several machines do not agree on how often they began)
        life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"life-{life}", store)  # type: ignore[attr-defined]
    for attempt in range(TRIES):
        _meet(store, f"try-{attempt}", size, PATIENCE)
        try:
            _connect(dist.PrefixStore(f"try-{attempt}", store), crew)  # type: ignore[attr-defined]
            return crew
        except RuntimeError:
            with contextlib.suppress(Exception):
                dist.destroy_process_group()
            if attempt == TRIES - 1:
                raise
    raise AssertionError


def _connect(store: Any, crew: Crew) -> None:
    """Make the process group, and see that it works; RuntimeError where it does not.

    Connections of gloo between two processes that start at once are now and then never made; then
    it is tried again after seconds, where its own patience would be half an hour.
    """
    # nccl wants a GPU for each worker; gloo also carries what lies on a shared one
    own = torch.cuda.is_available() and torch.cuda.device_count() >= local_size()
    backend = "cpu:gloo,cuda:nccl" if own else "gloo"
    dist.init_process_group(
        backend, store=store, rank=crew.rank, world_size=crew.size, timeout=CONNECTING
    )
    dist.all_reduce(torch.zeros(1))
    _meet(store, "connected", crew.size, CONNECTING)
    dist.distributed_c10d._set_pg_timeout(PATIENCE)


def _meet(store: Any, name: str, size: int, patience: datetime.timedelta) -> None:
    """Wait until all have come here."""
    if store.add(f"{name}-count", 1) == size:
        store.set(f"{name}-all", "1")
    store.wait([f"{name}-all"], patience)


def restarted() -> bool:
    """Whether torchrun has started this worker again after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def local_size() -> int:
    """Workers on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def name() -> str | None:
    """A name for the run that survives a restart: torchrun's id, its process and its start."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    with contextlib.suppress(OSError, IndexError):
        parent = os.getppid()
        with open(f"/proc/{parent}/stat", encoding="utf-8") as handle:  # noqa: PTH123
            started = handle.read().rsplit(")", 1)[1].split()[19]
        wished = os.environ["TORCHELASTIC_RUN_ID"]
        plain = "".join(c if c.isalnum() else "-" for c in wished)[:12].strip("-")
        return f"crew-{plain}-{parent}-{started}"
    return None
