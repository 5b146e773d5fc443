"""Calls of known shapes as CUDA graphs: the host launches all kernels of a call at once.

On a short prompt the host takes longer to launch the kernels of a sparse call than the GPU to run them. A graph holds
them, with memory of its own to read from: a call copies its tensors there, replays the graph and copies the answer.
Where the answer is large, the device would take longer to copy it than the host to launch the step that writes it: that
step is then no part of the graph, and writes into memory of the caller's.
Where calls come with the same tensors' memory again, as those of a model's layers do, a graph reads them where they
lie.
Whoever calls from another thread or on another stream gets a graph of its own. The first call of its kind is watched:
one that waits for the device in between cannot be held, and is called as ever. To try all the same would leave the
allocator in the middle of a capture.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOST, ROOM = 8, 2**30  # graphs that are held, and bytes that go in all of them; the one unused for longest goes first
BYTES = 2**29  # of tensors that go in: with larger ones the GPU takes longer than the host
LARGE = 2**26  # bytes of queries from which on an answer is written where the caller wants it
SEEN = 4096  # calls of which is remembered that they ran
PLACES = 2  # graphs that read the tensors of one kind of call where they lie
LOG = logging.getLogger("sparsekit")

Call = Callable[..., Tensor]
Run = Callable[..., Tensor | Call]  # it gives the answer, or what is left to do: a function of the same tensors

_held: "OrderedDict[Hashable, Graph]" = OrderedDict()
_seen: set[Hashable] = set()  # calls that ran once: their kernels are compiled
_waiting: set[Hashable] = set()  # what cannot be held
_places: dict[Hashable, list[tuple[int, ...]]] = {}  # where a call's tensors lay last, and what graphs read in place
_pools: dict[Hashable, Any] = {}  # of memory, for each thread and stream
_lock = threading.Lock()


class Graph:
    """What `run` does with tensors of these shapes and strides, on this stream."""

    def __init__(self, run: Run, tensors: tuple[Tensor, ...], pool: Any, in_place: bool) -> None:
        """Record it, without running it. Raises RuntimeError for what waits for the device.

        `pool` is of graphs that never run at a time: what one computes on the way lies where another's did. With
        `in_place` the tensors are read where they lie, and every call must bring tensors that lie there.
        """
        with torch.inference_mode(False):  # tensors of that mode could not be written to outside it
            self._copied = [] if in_place else [torch.empty_like(x) for x in tensors]
            self.nbytes = sum(x.nbytes for x in self._copied)
            self._record(run, tensors if in_place else self._copied, pool)

    def _record(self, run: Run, tensors: Sequence[Tensor], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(tensors[0].device), torch.no_grad():
            here, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(here)
            with torch.cuda.stream(side):
                self._graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    left = run(*tensors)
                    done = isinstance(left, Tensor) or tensors[0].nbytes >= LARGE
                    self._left: Tensor | Call = left if done else left(*tensors)  # type: ignore[operator]
                finally:
                    self._graph.capture_end()
            here.wait_stream(side)

    def __call__(self, *tensors: Tensor) -> Tensor:
        for mine, x in zip(self._copied, tensors, strict=False):
            mine.copy_(x)
        self._graph.replay()
        if not isinstance(self._left, Tensor):
            return self._left(*tensors)
        # [B, H, Q, D] with the heads of a token side by side, as kernels write it and models read it
        return self._left.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)


class _Watch(TorchDispatchMode):
    """Notes whether an operator of torch waits for the device, or makes the device wait for the host's memory."""

    def __init__(self, host: str = "cpu") -> None:
        super().__init__()
        self.waits, self.host = False, host  # the device type that the host need not wait for

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func is torch.ops.aten.index.Tensor:  # its tag speaks of masks, which are counted first
            sized = any(x.dtype in (torch.bool, torch.uint8) for x in given[1:])
        else:
            sized = torch.Tag.dynamic_output_shape in func.tags
        copied = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        tensors = [x for x in (*given, *tree_leaves(out)) if isinstance(x, Tensor)]
        devices = {x.device.type for x in tensors if copied or x.dim()}  # beside others a number needs no copy
        asked = sized or torch.Tag.data_dependent_output in func.tags
        self.waits |= len(devices) > 1 or (asked and any(x.device.type != self.host for x in given))
        return out


def _watched(key: Hashable, run: Run) -> Call:
    def watched(*tensors: Tensor) -> Tensor:
        with _Watch() as watch:
            left = run(*tensors)
            o = left if isinstance(left, Tensor) else left(*tensors)
        if watch.waits:
            _waiting.add(key)
        return o

    return watched


def graph_call(what: Hashable, run: Run, *tensors: Tensor) -> Call | None:
    """Return what to call instead of `run` with tensors like these; None where nothing can be held.

    `what` tells calls apart that are not the same for the same shapes.
    """
    if sum(x.nbytes for x in tensors) > BYTES or torch.cuda.is_current_stream_capturing():
        return None
    device = tensors[0].device
    where = threading.get_ident(), device, torch.cuda.current_stream(device).cuda_stream
    key = what, where, *((x.shape, x.stride(), x.dtype, x.device) for x in tensors)
    place = tuple(x.data_ptr() for x in tensors)
    with _lock:
        if key in _waiting:
            return None
        last, *known = _places.get(key, [()])
        again = place == last and (place in known or len(known) < PLACES)
        _places[key] = [place, *known, *([place] if again and place not in known else [])]
        mine = (key, place) if again or place in known else key
        if mine in _held:
            _held.move_to_end(mine)
            return _held[mine]
        if key not in _seen:
            if len(_seen) >= SEEN:
                _forget()
            _seen.add(key)
            return _watched(key, run)
        pool = _pools.setdefault(where, torch.cuda.graph_pool_handle())
    try:
        graph = Graph(run, tensors, pool, in_place=mine != key)
    except Exception as reason:  # whatever it raises, the call itself may still run
        LOG.debug("a call cannot be held as a CUDA graph: %s", str(reason).splitlines()[0])
        _waiting.add(key)
        return None
    with _lock:
        _held[mine] = graph
        _fit(_held)
    return graph


def is_held(call: Call) -> bool:
    """Return whether `held` gave this call, and no kernel is it."""
    return isinstance(call, Graph) or getattr(call, "__module__", None) == __name__


def _fit(held: "OrderedDict[Hashable, Any]") -> None:
    """Let go of those that were not used for longest until the others are few and small enough; the last one stays."""
    while len(held) > MOST or (len(held) > 1 and sum(graph.nbytes for graph in held.values()) > ROOM):
        held.popitem(last=False)


def clear() -> None:
    """Free the graphs, and their memory."""
    with _lock:
        _held.clear()
        _pools.clear()
        _forget()


def _forget() -> None:
    for found in (_seen, _waiting, _places):
        found.clear()
