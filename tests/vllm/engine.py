"""The embedded model as a folder that an engine serves: its weights, its config and a tokenizer of bytes."""

import os
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsekit.testbed import MODEL_PATH

CHOSEN = {  # of the environment, before vLLM is imported: one process, no network, little memory
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
}


def save(folder: Path) -> Path:
    """Write the model and its tokenizer to a new folder; return it."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(MODEL_PATH / name, folder / name)
    # byte-level tokenizers write a byte as a letter: printable ones as they are, the others from 256 on
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    made = Tokenizer(models.BPE(vocab={letters[byte]: byte for byte in range(256)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=131072)
    tokenizer.save_pretrained(folder)
    return folder


def start(folder: Path, pipeline: Any = None, **more: Any) -> Any:
    """Return an engine with a pipeline; None: without settings for sparsekit."""
    os.environ.update(CHOSEN)
    from vllm import LLM

    mine = {"sparsekit": pipeline if isinstance(pipeline, dict) and "pipeline" in pipeline else {"pipeline": pipeline}}
    given = dict(
        model=str(folder), dtype="float32", enforce_eager=True, max_model_len=16384, enable_prefix_caching=False,
        max_num_batched_tokens=16384, disable_log_stats=True, seed=0,
    )  # fmt: skip
    return LLM(**given | more | ({} if pipeline is None else {"additional_config": mine}))


def logprobs(llm: Any, prompts: list[list[int]], tokens: int = 1) -> list[list[float]]:
    """Return the log-probability of every token of the prompts but the first, as the engine computes it."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0.0, max_tokens=tokens, prompt_logprobs=0)
    answers = llm.generate([{"prompt_token_ids": p} for p in prompts], how, use_tqdm=False)
    return [
        [at[token].logprob for at, token in zip(one.prompt_logprobs[1:], one.prompt_token_ids[1:], strict=True)]
        for one in answers
    ]


def answers(llm: Any, prompts: list[list[int]], tokens: int) -> list[str]:
    """Return the text that follows each prompt."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0.0, max_tokens=tokens)
    return [one.outputs[0].text for one in llm.generate([{"prompt_token_ids": p} for p in prompts], how, use_tqdm=False)]
