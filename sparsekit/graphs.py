"""Calls of known shapes as CUDA graphs: the host launches all kernels of a call at once.

On a short prompt the host takes longer to launch the kernels of a sparse call than the GPU to run them. A graph holds
them and its own input memory: a call copies its tensors there, replays the graph and copies the answer out.
If the answer is large, the device takes longer to copy it than the host to launch the step that writes it. That step is
then not in the graph, and writes to new memory.
If later calls bring tensors at the same addresses, as the layers of a model do, a graph reads them in place.
Each thread and stream has its own graphs. The first call of a kind is watched: if it waits for the device, it cannot
become a graph, and later calls run without one. A failed attempt would leave the allocator in the middle of a capture.
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

MOST, ROOM = 8, 2**30  # most graphs, and most bytes of their inputs; the one unused for longest is freed
BYTES = 2**29  # most bytes of a graph's inputs: beyond, the GPU takes longer than the host
LARGE = 2**26  # bytes of queries from which on the last step is not in the graph
SEEN = 4096  # most kinds of calls that are remembered
PLACES = 2  # most graphs of one kind of call that read tensors in place
LOG = logging.getLogger("sparsekit")

Call = Callable[..., Tensor]
Run = Callable[..., Tensor | Call]  # it returns the answer, or the last step as a function of the same tensors

_held: "OrderedDict[Hashable, Graph]" = OrderedDict()
_seen: set[Hashable] = set()  # kinds of calls that ran once: their kernels are compiled
_waiting: set[Hashable] = set()  # kinds of calls that cannot become a graph
_places: dict[Hashable, list[tuple[int, ...]]] = {}  # addresses: the last call's, and of graphs that read in place
_pools: dict[Hashable, Any] = {}  # memory pools, by thread and stream
_lock = threading.Lock()


class Graph:
    """A CUDA graph of `run` for tensors of these shapes and strides, on this stream."""

    def __init__(self, run: Run, tensors: tuple[Tensor, ...], pool: Any, in_place: bool) -> None:
        """Record `run` without running it. Raises RuntimeError if it waits for the device.

        `pool` is the memory pool of graphs that never run at the same time, so they share memory for their intermediate
        results. With `in_place` the graph reads the tensors in place, and every call must bring these same addresses.
        """
        with torch.inference_mode(False):  # tensors of inference mode cannot be written to outside it
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
    """A mode that notes whether an operator waits for the device, or copies between devices."""

    def __init__(self, host: str = "cpu") -> None:
        super().__init__()
        self.waits, self.host = False, host  # the device type for which the host need not wait

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func is torch.ops.aten.index.Tensor:  # its tag is about masks, whose entries are counted first
            sized = any(x.dtype in (torch.bool, torch.uint8) for x in given[1:])
        else:
            sized = torch.Tag.dynamic_output_shape in func.tags
        copied = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        tensors = [x for x in (*given, *tree_leaves(out)) if isinstance(x, Tensor)]
        devices = {x.device.type for x in tensors if copied or x.dim()}  # a 0-d tensor needs no copy
        asked = sized or torch.Tag.data_dependent_output in func.tags
        self.waits |= len(devices) > 1 or (asked and any(x.device.type != self.host for x in given))
        return out


def _watched(key: Hashable, run: Run) -> Call:
    """Return a function that does as `run`, and notes a wait for the device in `_waiting`."""

    def watched(*tensors: Tensor) -> Tensor:
        with _Watch() as watch:
            left = run(*tensors)
            o = left if isinstance(left, Tensor) else left(*tensors)
        if watch.waits:
            _waiting.add(key)
        return o

    return watched


def graph_call(what: Hashable, run: Run, *tensors: Tensor) -> Call | None:
    """Return a function to call instead of `run` with tensors like these, or None where there can be no graph.

    `what` distinguishes calls that differ although their shapes are the same.
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
    except Exception as reason:  # after any error the call itself may still run
        LOG.debug("a call cannot be held as a CUDA graph: %s", str(reason).splitlines()[0])
        _waiting.add(key)
        return None
    with _lock:
        _held[mine] = graph
        _fit(_held)
    return graph


def is_held(call: Call) -> bool:
    """Return whether a function came from `graph_call`, and is no kernel."""
    return isinstance(call, Graph) or getattr(call, "__module__", None) == __name__


def _fit(held: "OrderedDict[Hashable, Any]") -> None:
    """Free the graphs that were not used for longest until the others are few and small enough; keep the last one."""
    while len(held) > MOST or (len(held) > 1 and sum(graph.nbytes for graph in held.values()) > ROOM):
        held.popitem(last=False)


def clear() -> None:
    """Free all graphs and their memory."""
    with _lock:
        _held.clear()
        _pools.clear()
        _forget()


def _forget() -> None:
    """Forget all kinds of calls."""
    for memory in (_seen, _waiting, _places):
        memory.clear()
