"""Let pipelines compute the prefill attention of Hugging Face transformers models, without a monkeypatch.

    with sparsify(model, Pipeline([TokenCoverage(), FlexPrefill()])):
        model.generate(...)

An attention function and a mask function are registered under the name "sparsekit". The mask function returns the
arguments of its call instead of a mask (masks.py). The attention function makes a Problem of them, so padded batches,
chunks, static caches, packed sequences and sliding windows run sparse (attention.py). Decode runs dense, through the
model's own SDPA or eager implementation and with the same mask as without sparsekit; so does a call that sparsekit does
not understand. Dense layers run like this on a CPU, with the same bits; on a GPU they run through sparsekit's
FlashAttention backend if it supports them. sparsekit/layers.py maps layers to pipelines and reads sparsekit.json.
"""

from ...extras import needs

needs("transformers", "hf")

from ...layers import load_pipeline, save_pipeline  # noqa: E402
from .attention import LayerCall, Watch, register  # noqa: E402
from .sparsify import Sparsified, sparsify  # noqa: E402

__all__ = ["LayerCall", "Sparsified", "Watch", "load_pipeline", "register", "save_pipeline", "sparsify"]
