"""Run vLLM once, in a process of its own: python engine.py TASK.json ANSWER.json

The task has `settings` for sparsekit (null: none), arguments of the engine, `prompts` by task, length and seed, and the
number of `tokens` to decode. The answer has the log-probability of every token of each prompt, the text that follows,
and sparsekit's counters.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

CHOSEN = {  # of the environment, before vLLM is imported: one process, no network, little memory
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}


def prompt(task: str, length: int, seed: int) -> tuple[list[int], str]:
    """Return the tokens of a prompt for the embedded model, and the answer."""
    from sparsekit.testbed import TASKS, read_text

    sample = TASKS[task](read_text(None), length, seed)
    return list(sample.prompt), sample.answer.decode()


def save(folder: Path) -> Path:
    """Write the embedded model to a new folder, with a tokenizer of bytes; return the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from sparsekit.testbed import MODEL_PATH

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
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=131072).save_pretrained(folder)
    return folder


def main(task: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    given = dict(dtype="float32", enforce_eager=True, max_model_len=8192, enable_prefix_caching=False, seed=0)
    given |= dict(max_num_batched_tokens=16384, model=task["model"]) | task["engine"]
    if task["settings"] is not None:
        given["additional_config"] = {"sparsekit": task["settings"]}
    llm = LLM(**given)
    prompts = [prompt(*one)[0] for one in task["prompts"]]
    found: dict[str, Any] = {}
    for name, how in {
        "logprobs": dict(max_tokens=1, prompt_logprobs=0),
        "text": dict(max_tokens=task["tokens"]),
    }.items():
        if not task[name]:
            continue
        outputs = llm.generate(
            [{"prompt_token_ids": one} for one in prompts], SamplingParams(temperature=0.0, **how), use_tqdm=False
        )
        found[name] = [
            one.outputs[0].text
            if name == "text"
            else [at[i].logprob for at, i in zip(one.prompt_logprobs[1:], one.prompt_token_ids[1:], strict=True)]
            for one in outputs
        ]
    from prometheus_client import generate_latest

    lines = [line for line in generate_latest().decode().splitlines() if line.startswith("sparsekit")]
    found["counters"] = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
    return found


if __name__ == "__main__":
    os.environ.update({name: value for name, value in CHOSEN.items() if name not in os.environ})
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
