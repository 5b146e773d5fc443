"""The cut of a step's batch into requests that a pipeline attends to, and runs of others between them.

vLLM packs the new tokens of all requests of a step, one request after another. What the host knows of a request decides
here, so nothing waits for a device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.logger import init_logger
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.worker.ubatch_utils import UBatchSlice, split_attn_metadata

from .settings import Settings

LOG = init_logger("vllm.sparsekit")


@dataclass(frozen=True)
class Part:
    """Neighbouring tokens of a batch, and who attends to them.

    Args:
        first: number of the first token within the batch
        end: number after the last
        dense: the engine's metadata of these requests alone; None: a pipeline attends to one request
        keys: number of keys of that request, its new tokens among them
        pages: its row of the engine's block table
    """

    first: int
    end: int
    dense: Any = None
    keys: int = 0
    pages: Tensor | None = None


def parts(how: Settings, common: CommonAttentionMetadata, build: Callable[[Any], Any]) -> tuple[Part, ...]:
    """Return the parts of a batch in order, or none if the engine attends to all of it.

    `build` makes the engine's metadata of some requests.
    """
    if common.max_query_len < how.min_tokens:
        return ()
    if common.causal is not True or common.mm_req_doc_ranges:
        LOG.warning_once("sparsekit: a step ran dense, because some of its tokens see later ones")
        return ()
    if common.is_prefilling is None or common.seq_lens_cpu_upper_bound is None:  # a call of the model that drafts
        return ()
    starts, prefills = common.query_start_loc_cpu.tolist(), common.is_prefilling.tolist()
    keys = common.seq_lens_cpu_upper_bound.tolist()  # exact for requests that prefill
    sparse = [
        row
        for row in range(common.num_reqs)
        if prefills[row]
        and (new := starts[row + 1] - starts[row]) >= how.min_tokens
        and (how.chunks or new == keys[row])
    ]
    found, row = [], 0
    for end in [*sparse, common.num_reqs] if sparse else ():
        if starts[end] > starts[row]:
            some = UBatchSlice(slice(row, end), slice(starts[row], starts[end]))
            found.append(Part(starts[row], starts[end], build(split_attn_metadata([some], common)[0])))
        if end < common.num_reqs:
            found.append(Part(starts[end], starts[end + 1], None, keys[end], common.block_table_tensor[end]))
        row = end + 1
    return tuple(found)
