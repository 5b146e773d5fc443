"""The embedded model: a byte-level Llama, read from the package's own folder."""

from pathlib import Path
from typing import Any

import torch

MODEL_PATH = Path(__file__).parent / "model"


def load_model(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", attn_implementation: str = "sdpa"
) -> Any:
    """A `LlamaForCausalLM` in evaluation mode. Token ids are bytes, 0 to 255."""
    try:
        from transformers import AutoModelForCausalLM  # an optional extra: only this function needs it
    except ImportError as error:
        raise ImportError("load_model needs transformers: pip install sparsekit[hf]") from error
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=dtype, attn_implementation=attn_implementation)
    return model.to(device).eval()
