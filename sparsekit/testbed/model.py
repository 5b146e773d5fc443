"""Loads the embedded model, a byte-level Llama, from the package's own folder."""

from pathlib import Path
from typing import Any

import torch

from ..extras import needs

MODEL_PATH = Path(__file__).parent / "model"


def load_model(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", attn_implementation: str = "sdpa"
) -> Any:
    """Return the embedded model, a `LlamaForCausalLM` in evaluation mode. Token ids are bytes, 0 to 255."""
    needs("transformers", "hf")
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=dtype, attn_implementation=attn_implementation)
    return model.to(device).eval()
