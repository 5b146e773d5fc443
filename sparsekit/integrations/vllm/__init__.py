"""Sparse prefill inside vLLM, as a plugin: `pip install ".[vllm]"`, then one flag.

    vllm serve MODEL --additional-config '{"sparsekit": {"pipeline": "balanced"}}'

On CUDA also `--attention-backend CUSTOM`. The engine keeps everything else: its scheduler, its paged cache, chunked
prefill, prefix caching. Of the requests in a step, a pipeline attends to those that bring many new tokens; the engine's
own kernel attends to all others, and to every decoded token.
Settings are those of settings.py. Without them the engine's own attention runs.
"""

VERSIONS = {"cpu": ("0.32",), "cuda": ()}  # of vLLM, by platform, that the tests ran


def register() -> None:
    """Put our attention backend in the place of the engine's; vLLM calls it once in each of its processes.

    Imports wait until here: vLLM only logs a plugin that cannot be imported, and runs on without it, but it stops at an
    error of this call.
    """
    from importlib import import_module

    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if current_platform.is_cpu():  # its selector takes no other backend than its own, so that one is replaced
        place, module = AttentionBackendEnum.CPU_ATTN, f"{__name__}.cpu"
    elif current_platform.is_cuda():
        place, module = AttentionBackendEnum.CUSTOM, f"{__name__}.cuda"
    else:
        return
    import_module(module)
    register_backend(place, f"{module}.Backend")
