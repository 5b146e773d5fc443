r"""Trains the embedded model on one GPU. The released weights were made on an H200 with:

    python -m bench.model.train --out run1 --limit 580 \
        --stages 2048:140:2e-3:2e-3,8192:120:2e-3:1.5e-3,32768:130:1.5e-3:1.2e-3,131072:120:1e-3:1e-3
    python -m bench.model.train --out run2 --resume run1 --limit 580 --stages 131072:235:1e-3:0
    python -m bench.model.train --out run3 --resume run2 --limit 555 --reserve 25 --main 0.7 --tasks all \
        --stages 4096:50:1e-3:1e-3,32768:120:1e-3:1e-3,131072:900:1e-3:0
    python -m bench.model.card run3

The first two runs train the tasks of NEEDLES. The third trains all tasks, from the second's weights in bf16, without
its residual.safetensors.

A stage is `length:seconds:lr:lr at its end`. Every step has the same number of bytes; most steps have prompts of the
stage's length, the others shorter ones. The loss is the mean cross-entropy of all bytes plus that of the answers'
bytes. Muon trains the matrices, Adam the embeddings and norms. After each stage `--out` holds the model as
transformers reads it, residual.safetensors, the part of the weights that bf16 rounds away and a later run needs, and
training.json, a record of the stages so far.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from bench.model.corpus import LICENCES, collect
from bench.model.network import BACKENDS, Network, Shape
from bench.model.prompts import ALL, NEEDLES, Batches
from sparsekit.testbed import TASKS, read_text

STARTED = time.monotonic()
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Stage:
    length: int
    seconds: float
    lr: float
    lr_end: float


class Muon:
    """Momentum made orthogonal by Newton-Schulz steps, for stacks of matrices [layers, rows, columns]."""

    def __init__(self, weights: list[Tensor], decay: float = 0.1):
        self.weights, self.decay = weights, decay
        self.momentum = [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for weight, momentum in zip(self.weights, self.momentum, strict=True):
            assert weight.grad is not None
            momentum.lerp_(weight.grad, 0.05)
            update = orthogonal(weight.grad.lerp(momentum, 0.95)).to(weight.dtype)
            weight.mul_(1 - lr * self.decay)
            weight.add_(update, alpha=-lr * 0.4 * math.sqrt(max(weight.shape[-2:])))


def orthogonal(x: Tensor) -> Tensor:
    x = x.bfloat16()
    wide = x.shape[-1] >= x.shape[-2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    log = Log(args.out / "log.txt")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    corpus = collect(args.packages, args.workers)
    held_out = read_text()
    log(f"corpus: {len(corpus.text)} bytes of {len(corpus.sources)} packages, {corpus.dropped} files dropped")
    attention = "any" if device == "cpu" else fastest_attention(log)
    shape = Shape(layers=args.layers, width=args.width, ffn=3 * args.width)
    net = Network(shape, device, args.seed, compiled=device == "cuda", attention=attention)
    history: dict[str, Any] = {"stages": [], "calls": 0}
    if args.resume:
        high = load_file(args.resume / "model.safetensors")
        rest = args.resume / "residual.safetensors"  # not part of the package
        low = load_file(rest) if rest.exists() else {}
        net.load({name: high[name].float() + low.get(name, torch.zeros(())).float() for name in high})
        history = json.loads((args.resume / "training.json").read_text())
    history["calls"] += 1
    history |= {
        "sources": [asdict(source) for source in corpus.sources],
        "dropped_files": corpus.dropped,
        "tokens_a_step": args.tokens,
        "main": args.main,
        "shape": asdict(shape),
        "parameters": sum(weight.numel() for weight in net.weights.values()),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "attention": attention,
    }
    muon = Muon([net.weights[name] for name in MATRICES])
    others = [weight for name, weight in net.weights.items() if name not in MATRICES]
    adam = torch.optim.Adam(others, betas=(0.9, 0.95), eps=1e-10, fused=device == "cuda")
    taken = 0
    for stage in args.stages:
        end = min(time.monotonic() + stage.seconds, STARTED + args.limit - args.reserve)
        if end - time.monotonic() < 1:
            log(f"no time left for the stage at {stage.length}")
            break
        seed = args.seed + 100 * history["calls"] + len(history["stages"])
        start = time.monotonic()
        steps = train(net, muon, adam, corpus.text, stage, end, args, seed, taken, log)
        taken += steps
        seconds = round(time.monotonic() - start)
        right = check(net, held_out, stage.length, args.tokens, args.tasks)
        log(f"stage {stage.length}: {steps} steps; right {right}")
        history["stages"].append(
            {**asdict(stage), "seconds": seconds, "tasks": args.tasks, "steps": steps, "right": right}
        )
        save(net, history, args.out)
    log("done")


def train(
    net: Network,
    muon: Muon,
    adam: torch.optim.Adam,
    text: bytes,
    stage: Stage,
    end: float,
    args: argparse.Namespace,
    seed: int,
    taken: int,
    log: "Log",
) -> int:
    shorter = [n for n in (2**i for i in range(10, 17)) if n < stage.length]
    batches = Batches(text, args.tokens, stage.length, shorter, args.main, args.tasks, seed)
    loader = DataLoader(batches, batch_size=None, num_workers=args.workers, pin_memory=net.device == "cuda")
    start = last = time.monotonic()
    steps = 0
    for tokens, marks in loader:
        now = time.monotonic()
        if now >= end:
            break
        done = (now - start) / (end - start)
        # A run begins without momentum, so its learning rate rises over the first steps.
        lr = (stage.lr + (stage.lr_end - stage.lr) * done) * min(1.0, (taken + steps + 1) / args.warmup)
        tokens = tokens.to(net.device, non_blocking=True).long()
        marks = marks.to(net.device, non_blocking=True)[:, 1:].float()
        losses = net.losses(tokens)
        whole, answers = losses.mean(), (losses * marks).sum() / marks.sum()
        (whole + answers).backward()
        for group in adam.param_groups:
            group["lr"] = lr
        muon.step(lr)
        torch.nn.utils.clip_grad_norm_([p for g in adam.param_groups for p in g["params"]], 1.0)
        adam.step()
        for weight in net.weights.values():
            weight.grad = None
        steps += 1
        if steps % 4 == 0 and net.device == "cuda":
            torch.cuda.synchronize()  # the clock decides when to stop, so the host must not run far ahead
        if now - last > args.every:
            last = now
            log(
                f"{stage.length} step {steps} at {tokens.shape[1]}: bytes {whole.item():.4f} "
                f"answers {answers.item():.4f} lr {lr:.2e}"
            )
    return steps


def check(net: Network, text: bytes, length: int, tokens: int, tasks: Sequence[str]) -> dict[str, float]:
    """Return a first estimate, by task, of the share of right bytes, each predicted from the right bytes before it."""
    right = {}
    rows = max(1, tokens // length)
    for name in tasks:
        hits = total = 0
        for batch in range(max(1, 4 // rows)):
            samples = [TASKS[name](text, length - 256, 10**6 + batch * rows + row) for row in range(min(rows, 32))]
            whole = [list((s.prompt + s.answer).ljust(length, b"\n")) for s in samples]
            guesses = net.predictions(torch.tensor(whole, device=net.device)).cpu()
            for sample, guess in zip(samples, guesses, strict=False):
                at = len(sample.prompt) - 1
                hits += sum(int(guess[at + i]) == sample.answer[i] for i in sample.scored)
                total += len(sample.scored)
        right[name] = round(hits / total, 4)
    return right


def save(net: Network, history: dict[str, Any], out: Path) -> None:
    state = net.state()
    high = {name: weight.bfloat16() for name, weight in state.items()}
    low = {name: (weight - high[name].float()).bfloat16() for name, weight in state.items()}
    save_file(high, out / "model.safetensors", metadata={"format": "pt"})
    save_file(low, out / "residual.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(net.shape.config(), indent=2) + "\n")
    (out / "training.json").write_text(json.dumps(history, indent=2) + "\n")


def fastest_attention(log: "Log") -> str:
    """Return the backend of SDPA that is fastest on this GPU, forward and backward at 32K."""
    rng = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(4, 32768, 8, 64, device="cuda", dtype=torch.bfloat16, generator=rng)
        .transpose(1, 2)
        .requires_grad_()
        for _ in range(3)
    )
    times: dict[str, float] = {}
    expected: Tensor | None = None
    for name in ("flash", "cudnn"):
        try:
            for _ in range(3):
                torch.cuda.synchronize()
                start = time.monotonic()
                with torch.nn.attention.sdpa_kernel(BACKENDS[name]):
                    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                grads = torch.stack(torch.autograd.grad(out, [q, k, v], out.detach())).float()
                torch.cuda.synchronize()
                seconds = time.monotonic() - start
        except RuntimeError as error:
            log(f"{name} attention does not run here: {error}")
            continue
        expected = grads if expected is None else expected
        if (grads - expected).norm() < 0.02 * expected.norm():
            times[name] = seconds
    log(f"seconds of attention forward and backward, 4 x 32K: {times}")
    return min(times, key=lambda name: times[name])


class Log:
    def __init__(self, path: Path):
        self.path = path

    def __call__(self, line: str) -> None:
        line = f"{time.monotonic() - STARTED:7.1f} {line}"
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the log")
    parser.add_argument("--resume", type=Path, help="folder of an earlier run to go on from")
    parser.add_argument(
        "--stages", required=True, help="length:seconds:lr:lr_end, separated by commas; length 2048 or more"
    )
    parser.add_argument("--limit", type=float, default=3600, help="seconds the whole program may take")
    parser.add_argument("--reserve", type=float, default=20, help="seconds of the limit reserved for check and save")
    parser.add_argument("--packages", default=",".join(LICENCES), help="packages whose source to train on")
    parser.add_argument("--tasks", default=",".join(NEEDLES), help="tasks to train; all: every task with a draw")
    parser.add_argument("--tokens", type=int, default=131072, help="bytes per step")
    parser.add_argument("--main", type=float, default=0.6, help="share of steps at the stage's own length")
    parser.add_argument("--warmup", type=int, default=50, help="steps over which the learning rate rises")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--workers", type=int, default=max(1, min(14, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--every", type=float, default=10, help="seconds between lines of the log")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.packages = args.packages.split(",")
    args.tasks = list(ALL) if args.tasks == "all" else args.tasks.split(",")
    stages = [tuple(float(x) for x in stage.split(":")) for stage in args.stages.split(",")]
    args.stages = [Stage(int(length), *rest) for length, *rest in stages]
    return args


if __name__ == "__main__":
    main()
