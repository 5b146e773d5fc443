"""The network that is trained: Llama as transformers computes it, with the layers' weights stacked.

Stacked weights let Muon work on all layers at once. Everything but attention sees one flat row of tokens, whose
number is the same at every length, so that it is compiled once.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

HEAD_DIM = 64
NAMES = {
    "input_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "post_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}


@dataclass(frozen=True)
class Shape:
    layers: int = 8
    width: int = 256
    heads: int = 8
    kv_heads: int = 2
    ffn: int = 768
    positions: int = 131072
    # Larger than usual: about a third of the rotary pairs then turn by less than a radian over all positions,
    # so that matching by content does not depend on distance, also at lengths that training hardly sees.
    rope_theta: float = 1e8

    def config(self) -> dict[str, Any]:
        """Return config.json of the same model in transformers."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 256,
            "hidden_size": self.width,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-6,
            # transformers reads the second from version 5 on, other readers the first
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": True,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "use_cache": True,
            "dtype": "bfloat16",
        }


class Network:
    def __init__(self, shape: Shape, device: str, seed: int, compiled: bool, attention: str):
        self.shape, self.device, self.attention = shape, device, attention
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        n, w, d = shape.layers, shape.width, HEAD_DIM
        q, kv, f = shape.heads * d, shape.kv_heads * d, shape.ffn
        generator = torch.Generator().manual_seed(seed)

        def matrix(*size: int, std: float = 0.02) -> Tensor:
            return (torch.randn(*size, generator=generator) * std).to(device).requires_grad_()

        def ones(*size: int) -> Tensor:
            return torch.ones(*size, device=device, requires_grad=True)

        last = 0.02 / math.sqrt(2 * n)  # weights that write to the residual start small
        self.weights: dict[str, Tensor] = {
            "embed": matrix(256, w),
            "norm": ones(w),
            "input_norm": ones(n, w),
            "post_norm": ones(n, w),
            "q": matrix(n, q, w),
            "k": matrix(n, kv, w),
            "v": matrix(n, kv, w),
            "o": matrix(n, w, q, std=last),
            "gate": matrix(n, f, w),
            "up": matrix(n, f, w),
            "down": matrix(n, w, f, std=last),
        }
        self.rope: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.before, self.after, self.loss_of = before_attention, after_attention, losses
        if compiled:
            self.before = torch.compile(before_attention, dynamic=False)
            self.after = torch.compile(after_attention, dynamic=False)
            self.loss_of = torch.compile(losses, dynamic=False)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Compute the last hidden states, before the last norm, of tokens [B, L] as one row [B * L, width]."""
        batch, length = tokens.shape
        cast = {name: weight.to(self.dtype) for name, weight in self.weights.items()}
        layers = {name: cast[name].unbind(0) for name in NAMES}
        cos, sin = self._rope(batch, length)
        # Compiled code is worth its compilation for training only.
        grad = torch.is_grad_enabled()
        before, after = (self.before, self.after) if grad else (before_attention, after_attention)
        x = F.embedding(tokens.reshape(-1), cast["embed"])
        for i in range(self.shape.layers):
            w = {name: layers[name][i] for name in NAMES}
            q, k, v = before(x, w["input_norm"], w["q"], w["k"], w["v"], cos, sin)
            o = self._attend(q, k, v, batch, length)
            x = after(x, o, w["o"], w["post_norm"], w["gate"], w["up"], w["down"])
        return x

    def losses(self, tokens: Tensor) -> Tensor:
        """Compute the cross-entropy in nats of every byte but the first of each row, [B, L - 1]."""
        batch, length = tokens.shape
        targets = F.pad(tokens[:, 1:], (0, 1)).reshape(-1)
        x = self.hidden(tokens)
        loss = self.loss_of(x, self.weights["norm"].to(self.dtype), self.weights["embed"].to(self.dtype), targets)
        return loss.view(batch, length)[:, :-1]

    def predictions(self, tokens: Tensor) -> Tensor:
        """Return the most likely next byte after every byte, [B, L]."""
        with torch.no_grad():
            x = rms_norm(self.hidden(tokens), self.weights["norm"].to(self.dtype))
            return (x @ self.weights["embed"].to(self.dtype).T).argmax(-1).view(tokens.shape)

    def _rope(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        if (batch, length) not in self.rope:
            steps = torch.arange(0, HEAD_DIM, 2, device=self.device).float() / HEAD_DIM
            angles = torch.arange(length, device=self.device).float()[:, None] / self.shape.rope_theta**steps
            angles = torch.cat([angles, angles], -1).repeat(batch, 1)[:, None]  # [B * L, 1, D]
            self.rope[batch, length] = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        return self.rope[batch, length]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, batch: int, length: int) -> Tensor:
        groups = self.shape.heads // self.shape.kv_heads
        q = q.view(batch, length, self.shape.heads, HEAD_DIM).transpose(1, 2)
        k, v = (
            x.view(batch, length, self.shape.kv_heads, HEAD_DIM).repeat_interleave(groups, 2).transpose(1, 2)
            for x in (k, v)
        )
        with sdpa_kernel(BACKENDS[self.attention]):
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return o.transpose(1, 2).reshape(batch * length, -1)

    def state(self) -> dict[str, Tensor]:
        """Return the weights under transformers' names, float32, on the CPU."""
        out = {"model.embed_tokens.weight": self.weights["embed"], "model.norm.weight": self.weights["norm"]}
        for name, theirs in NAMES.items():
            for i, weight in enumerate(self.weights[name].unbind(0)):
                out[f"model.layers.{i}.{theirs}"] = weight
        return {name: weight.detach().float().cpu().contiguous() for name, weight in out.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            self.weights["embed"].copy_(state["model.embed_tokens.weight"])
            self.weights["norm"].copy_(state["model.norm.weight"])
            for name, theirs in NAMES.items():
                rows = [state[f"model.layers.{i}.{theirs}"] for i in range(self.shape.layers)]
                self.weights[name].copy_(torch.stack(rows))


BACKENDS = {
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "any": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
}


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    y = x.float()
    return weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def before_attention(
    x: Tensor, norm: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x = rms_norm(x, norm)
    q, k, v = (F.linear(x, w).view(x.shape[0], -1, HEAD_DIM) for w in (wq, wk, wv))
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def after_attention(x: Tensor, o: Tensor, wo: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    x = x + F.linear(o, wo)
    y = rms_norm(x, norm)
    return x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)


def losses(x: Tensor, norm: Tensor, embed: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(rms_norm(x, norm), embed).float(), targets, reduction="none")
