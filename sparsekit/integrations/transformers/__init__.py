"""Hugging Face transformers: any layer's prefill attention by a pipeline, without a monkeypatch.

    with sparsify(model, Pipeline([TokenCoverage(), FlexPrefill()])):
        model.generate(...)

An attention function and a mask function are registered under the name "sparsekit". The mask function answers with
what it was asked, not with a mask (masks.py); the attention function makes a Problem of it, so that padded batches,
chunks, static caches, packed sequences and sliding windows run sparse (attention.py). Decode, and what is not
understood, runs dense through the model's own SDPA or eager implementation, under the mask they would have got.
Dense layers do so too on a CPU, to the bit; on a GPU by sparsekit's FlashAttention backend where that can.
Which layer has which pipeline, and the file that says so beside a model: sparsekit/layers.py.
"""

from ...extras import needs

needs("transformers", "hf")

from ...layers import load_pipeline, save_pipeline  # noqa: E402
from .attention import LayerCall, Watch, register  # noqa: E402
from .sparsify import Sparsified, sparsify  # noqa: E402

__all__ = ["LayerCall", "Sparsified", "Watch", "load_pipeline", "register", "save_pipeline", "sparsify"]
