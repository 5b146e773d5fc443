"""Record what the authors' own code does on the inputs of tests/stages/vectors.py, without a GPU.

    TRITON_INTERPRET=1 python -O bench/speed/peers/record_vectors.py TOKEN_SPARSE_ATTENTION FLEXPREFILL

The arguments are folders with a checkout of each repository, at the commits below. Nothing of theirs is changed or
kept here: their Triton kernels run in Triton's interpreter (-O: they assert a GPU), each autotuned one with its first
configuration; dense attention between their compress and decompress is torch's. Needs triton and einops.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "stages"))

from vectors import DATA, FLEX_PREFILL, TOKEN_COVERAGE, Case, inputs, rows  # noqa: E402

COMMITS = {
    "token_coverage": ("dongwonjo/Token-Sparse-Attention", "17b64cbb573fb7c82bd1836d32fade8d17ae1e54"),
    "flex_prefill": ("ByteDance-Seed/FlexPrefill", "a24b27bf117fd6ad4ba34b0db82c598e7786fd59"),
}


def token_coverage(checkout: Path, case: Case) -> dict[str, torch.Tensor]:
    """Return kept [H, S] (empty: dense), scores [H, L - voters], o [H, rows, D]."""
    sys.path.insert(0, str(checkout))
    kernel = importlib.import_module("sparse_attn.token_sparse.kernel")
    for tuned in (kernel._stats_m_l_kernel, kernel._prefix_meanprob_kernel):
        tuned.configs = tuned.configs[:1]
    theirs = importlib.import_module("sparse_attn.token_sparse.sparse_cluster")
    q, k, v = inputs(case)
    k, v = (theirs.repeat_kv(x, q.shape[1] // k.shape[1]) for x in (k, v))
    cluster = theirs.SparseCluster()
    p = case.parameters
    cluster.coverage, cluster.window_size, cluster.kernel_size = p["tau"], p["voters"], p["pool"]
    cluster.min_tokens = p["min_tokens"]
    scores = kernel.triton_get_attn_cache(q, k, p["voters"], q.dtype)
    kept = cluster.get_index(q, k)
    short = cluster.compress_qkv(q, k, v, kept)
    o = scaled_dot_product_attention(short[0], short[1], short[2], is_causal=True).transpose(1, 2)
    o = cluster.decompress_output(o, kept).view(1, case.L, *q.shape[1::2]).transpose(1, 2)
    return {
        "kept": torch.empty(0, dtype=torch.int32) if kept is None else kept[0].int(),
        "scores": scores[0],
        "o": o[0, :, rows(case)],
    }


def flex_prefill(checkout: Path, case: Case) -> dict[str, torch.Tensor]:
    """Return blocks [H, I, I] bool as bytes (all ones: dense), o [H, rows, D]."""
    path = checkout / "flex_prefill" / "ops" / "flex_prefill_attention.py"
    spec = importlib.util.spec_from_file_location("their_flex_prefill", path)  # anew: it caches a mask forever
    assert spec and spec.loader
    theirs: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    theirs.GPU_NAME = "a100"  # only to look up a number of warps
    p = dict(case.parameters)
    m = p["block_size"]
    q, k, v = (x.transpose(1, 2).contiguous() for x in inputs(case))
    I, H = -(-case.L // m), q.shape[2]
    found: list[Any] = []
    search = theirs.get_active_blocks

    def watched(*given: Any) -> Any:
        found.append(search(*given))
        return found[-1]

    def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)

    theirs.get_active_blocks, theirs.flash_attn_func = watched, dense
    o = theirs.flex_prefill_attention(q, k, v, **p)
    blocks = torch.zeros(H, I * I, dtype=torch.uint8)
    for h in range(H):
        blocks[h, found[0][0][h] if found else slice(None)] = 1
    return {"blocks": blocks.view(H, I, I), "o": o[0].transpose(0, 1)[:, rows(case)].contiguous()}


def main() -> None:
    checkouts = [Path(word) for word in sys.argv[1:]]
    for checkout, (method, cases, record) in zip(
        checkouts,
        [("token_coverage", TOKEN_COVERAGE, token_coverage), ("flex_prefill", FLEX_PREFILL, flex_prefill)],
        strict=True,
    ):
        found: dict[str, torch.Tensor] = {}
        for name, case in cases.items():
            answer = record(checkout, case)
            print(method, name, {key: tuple(x.shape) for key, x in answer.items()}, flush=True)
            found |= {f"{name}/{key}": x.contiguous() for key, x in answer.items()}
        path = DATA / f"{method}.safetensors"
        repository, commit = COMMITS[method]
        save_file(found, path.with_suffix(".new"), {"repository": repository, "commit": commit})
        path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    main()
