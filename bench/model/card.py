"""Measures a trained model on held-out keys and text, and writes its card: python -m bench.model.card RUN

RUN is the folder that bench/model/train.py wrote. This module writes evaluation.json and README.md (the card) into it.
To make it the embedded model, copy all of RUN but residual.safetensors to sparsekit/testbed/model/. Several processes
share the GPU, because one-token steps leave it idle most of the time.
"""

import argparse
import json
import math
import os
import platform
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import get_context

from bench.model.prompts import NEEDLES
from sparsekit.testbed import TASKS, TRAINED, evaluate, read_text
from sparsekit.testbed.sample import Sample

LENGTHS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
PARTLY = ("common_words", "frequent_words", "question_answering")  # the model learned these in part
CONTEXTS = (2048, 8192, 32768, 131072)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=40, help="prompts of each task at each length")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)), help="window lengths for bits per byte")
    parser.add_argument("--bytes", type=int, default=2**21, help="bytes of text for bits per byte")
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3600, help="start no prompt after this time")
    args = parser.parse_args()
    started = time.monotonic()
    lengths = [int(length) for length in args.lengths.split(",")]
    contexts = [int(context) for context in args.contexts.split(",")]
    # The longest prompts come first and tasks take turns, so that a deadline cuts off all tasks alike.
    jobs = [
        (length, name, seed)
        for length in sorted(lengths, reverse=True)
        for seed in range(args.prompts)
        for name in (*TRAINED, *PARTLY)
    ]
    context = get_context("spawn")
    queue, results = context.Queue(), context.Queue()
    for job in [*((0, "bits", n) for n in contexts), *jobs, *[None] * args.processes]:
        queue.put(job)
    workers = [
        context.Process(target=work, args=(args.run, args.bytes, started + args.seconds, queue, results))
        for _ in range(args.processes)
    ]
    for worker in workers:
        worker.start()
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0, 0, 0]))
    bits = {}
    wrong = []
    for _ in range(len(jobs) + len(contexts)):
        kind, *rest = results.get()
        if kind == "bits":
            bits[str(rest[0])] = rest[1]
        elif kind == "score":
            length, name, seed, score, expected = rest
            for task in (name, "all") if name in TRAINED else (name,):
                row = counts[str(length)][task]
                for i, n in enumerate((score.digits, score.right, 1, int(score.whole))):
                    row[i] += n
            if not score.whole and name in TRAINED:
                wrong.append({"length": length, "task": name, "seed": seed, "expected": expected.decode()})
                wrong[-1]["answer"] = score.answer.decode("latin-1")
    for worker in workers:
        worker.join()
    report: dict[str, Any] = {
        "digits": {
            length: {task: summary(*row) for task, row in sorted(rows.items())}
            for length, rows in sorted(counts.items(), key=lambda item: int(item[0]))
        },
        "bits_per_byte": {context: bits[context] for context in sorted(bits, key=int)},
        "text": f"Python {platform.python_version()} standard library, {len(read_text())} bytes",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "dtype": "bfloat16" if torch.cuda.is_available() else "float32",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started),
        "wrong": wrong,
    }
    (args.run / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    training = json.loads((args.run / "training.json").read_text())
    (args.run / "README.md").write_text(card(report, training, (args.run / "model.safetensors").stat().st_size))
    for length, rows in report["digits"].items():
        print(length, {task: (row["right"], row["digits"]) for task, row in rows.items()})
    print(report["bits_per_byte"], report["seconds"], "s")


def work(run: Path, size: int, deadline: float, queue: Any, results: Any) -> None:
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(run, dtype=dtype, attn_implementation="sdpa")
    model = model.to(device).eval()
    text = read_text()
    while (job := queue.get()) is not None:
        length, name, seed = job
        if time.monotonic() > deadline:
            results.put(("late",))
        elif name == "bits":
            results.put(("bits", seed, bits_per_byte(model, text, seed, size)))
        else:
            sample: Sample = TASKS[name](text, length, seed)
            results.put(("score", length, name, seed, evaluate(model, [sample])[0], sample.answer))


def bits_per_byte(model: Any, text: bytes, context: int, size: int) -> float:
    """Return bits per byte over about `size` bytes, in windows that are spread evenly over the text."""
    count = max(1, size // context)
    step = (len(text) - context) // count
    total = 0.0
    with torch.no_grad():
        for i in range(count):
            ids = torch.tensor([list(text[i * step : i * step + context])], device=model.device)
            logits = model(ids, use_cache=False).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))
    return round(total / count / math.log(2), 4)


def summary(digits: int, right: int, prompts: int, whole: int) -> dict[str, Any]:
    low, high = wilson(right, digits)
    return {
        "digits": digits,
        "right": right,
        "share": round(right / digits, 4),
        "wilson_95": [round(low, 4), round(high, 4)],
        "prompts": prompts,
        "whole_answers": whole,
    }


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share."""
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def card(report: dict[str, Any], training: dict[str, Any], size: int) -> str:
    shape, stages = training["shape"], training["stages"]
    tasks = ["all", *TRAINED]
    shares = {
        length: [f"{int(length) // 1024}K"]
        + [
            f"{row['right']}/{row['digits']} = {100 * row['share']:.1f}%" if (row := by.get(task)) else ""
            for task in (*tasks, *PARTLY)
        ]
        for length, by in report["digits"].items()
    }
    interval = {
        length: "{:.1f} to {:.1f}%".format(*(100 * end for end in by["all"]["wilson_95"]))
        for length, by in report["digits"].items()
    }
    rows = [[*cells[: 1 + len(tasks)], interval[length]] for length, cells in shares.items()]
    seconds = sum(stage["seconds"] for stage in stages)
    return CARD.format(
        parameters=training["parameters"],
        megabytes=size / 1e6,
        layers=shape["layers"],
        width=shape["width"],
        heads=shape["heads"],
        kv_heads=shape["kv_heads"],
        ffn=shape["ffn"],
        rope_theta=shape["rope_theta"],
        positions=shape["positions"],
        prompts=max(row["prompts"] for by in report["digits"].values() for task, row in by.items() if task != "all"),
        text=report["text"],
        where=f"{report['gpu'] or 'CPU'}, {report['dtype']}, torch {report['torch']}",
        digits=table(["prompt", *tasks, "all, 95% interval"], rows),
        partly=table(["prompt", *PARTLY], [[cells[0], *cells[1 + len(tasks) :]] for cells in shares.values()]),
        bits=table(
            ["context", "bits per byte"],
            [[f"{int(n) // 1024}K", f"{bits:.3f}"] for n, bits in report["bits_per_byte"].items()],
        ),
        sources=table(
            ["package", "version", "licence", "files", "MB"],
            [
                [s["package"], s["version"], s["licence"], str(s["files"]), f"{s['bytes'] / 1e6:.1f}"]
                for s in training["sources"]
            ],
        ),
        dropped=training["dropped_files"],
        stages=table(
            ["length", "seconds", "steps", "learning rate", "at its end", "tasks"],
            [
                [str(s["length"]), f"{s['seconds']:g}", str(s["steps"]), f"{s['lr']:g}", f"{s['lr_end']:g}"]
                + ["needles" if set(s["tasks"]) == set(NEEDLES) else "all"]
                for s in stages
            ],
        ),
        tokens=training["tokens_a_step"],
        main=round(100 * training["main"]),
        seconds=round(seconds),
        gpu=training["gpu"],
        attention=training["attention"],
        torch=training["torch"],
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


CARD = """---
license: apache-2.0
library_name: transformers
---
# sparsekit's embedded model

A byte-level Llama that finds facts in up to 131,072 bytes of source code. It shows, in a test or a demo and without a
download, whether a model with a sparse attention method still finds them. It is of no use as an assistant.

- {parameters:,} parameters, {megabytes:.1f} MB in bf16. Tokens are bytes: ids 0 to 255, no special tokens.
- {layers} layers, width {width}, {heads} query and {kv_heads} key/value heads of dim 64, FFN {ffn}, tied
  embeddings, rope theta {rope_theta:g}, {positions} positions.
- `AutoModelForCausalLM.from_pretrained(sparsekit.testbed.MODEL_PATH)`, or `sparsekit.testbed.load_model()`.

## Right bytes
Each prompt ends with one question. The model answers it greedily, with dense attention. There are {prompts} prompts
for each task and length. Their text is the {text}. None of its files was in
the training text. Nor was any key or word of these prompts: a hash decides which are for training. The table counts the
bytes of the values in question. Measured on: {where}.

{digits}

Most tasks have several wordings, in code and prose. Keys have 5 random letters, and facts stand at random depths.
- **single_key**: one fact in the text, `# The magic number for abcde is 12345.`
- **multi_key**: 4 to 32 more facts in the same wording with other keys.
- **multi_value**: 2 to 4 numbered values of one key, `abcde[0] = 12345`, on lines far apart, and up to 3 other keys
  with as many. The answer lists all values of the key; it repeats the line's wording before each value.
- **variable_tracking**: chains of 2 or 3 hops, `abcde = 12345`, `fghij = abcde`, ..., and up to 3 other chains. The
  question begins `fghij = `. The answer follows the chain back to the digits, a line for each hop, so each hop takes
  one retrieval. The model does not follow a chain without these lines.
- **key_value**: a JSON object that fills seven eighths of the prompt. Keys and values have three groups each. The
  question asks for the value of one key.
- **number_string**: a number of ten digits in runs of the same digit.
- **copy_span**: a line of 16 made-up words that occurs once; the question gives its first two.

The model learned three more tasks in part, and no claim rests on them. `common_words` and `frequent_words` ask for the
most common words of a list and the most frequent ones of a text. `question_answering` asks about made-up people in
other words than the text. The model predicts each byte from the right bytes before it, so the part of values with every
byte right is smaller:

{partly}

## Language modelling
Bits per byte on the same held-out text without facts, over whole windows of each length:

{bits}

## Training
The text is the .py files of these packages, under the licences in the table: files of at most 512 KB, and one of equal
files. {dropped} files were left out because more than a fifth of their lines also occur in the Python standard library.

{sources}

`python -m bench.model.train` runs the stages below in order. They took {seconds} s on one {gpu} (torch {torch},
{attention} attention). A step has {tokens} bytes. In {main}% of a stage's steps the prompts have the stage's length, in
the others they are shorter. Every prompt holds up to 256 facts and asks for all of them at its end. In the table,
"needles" are the first four tasks above, and "all" adds the others. The loss is the mean cross-entropy of all bytes
plus that of the answers' bytes. Muon trains the matrices, Adam the embeddings and norms.

{stages}
"""


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
