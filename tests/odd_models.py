"""Tiny models of transformers with unusual attention, each with a call.

The configs are as small as the classes allow. A model that itself leaves keys out of attention (by an indexer, a
window or compressed keys) leaves out some of the 48 tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

TOKENS = 48
BASE = dict(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
GROUPED = BASE | dict(num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=None, bos_token_id=None)
EXPERTS = dict(moe_intermediate_size=16, num_experts_per_tok=2, n_routed_experts=4, n_group=1, topk_group=1)
LATENT = BASE | EXPERTS | dict(
    num_key_value_heads=4, n_shared_experts=1, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
    v_head_dim=8, index_topk=4, index_head_dim=16, index_n_heads=2, pad_token_id=0, eos_token_id=None,
    bos_token_id=None,
)  # fmt: skip
GPT = dict(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64)


@dataclass(frozen=True)
class Odd:
    """A model's class, its config, and its arguments besides tokens."""

    model: str
    config: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]] = dict
    tokens: str = "input_ids"
    eager: bool = False  # eager attention gives the right answer: SDPA does not in every version of transformers

    def build(self) -> PreTrainedModel:
        """Return the model with random weights, large enough that attention is far from uniform."""
        torch.manual_seed(0)
        model = getattr(transformers, self.model)(self.config()).eval()
        for weights in model.parameters():
            if weights.dim() > 1 and weights.is_floating_point():
                weights.data.normal_(0, 0.2)
        return model

    def call(self, model: PreTrainedModel, padding: int = 0) -> Tensor:
        """Return the logits of a batch of two; if the first row has padding on the left, those of real tokens only."""
        tokens = torch.randint(12, 90, (2, TOKENS), generator=torch.Generator().manual_seed(1))
        inputs = self.inputs()
        tokens[:, : inputs.pop("sounds", 0)] = SOUND
        real = torch.ones_like(tokens)
        real[0, :padding] = 0
        if padding:
            inputs |= {self.tokens.replace("input_ids", "attention_mask"): real}
        with torch.no_grad():
            return model(**{self.tokens: tokens}, **inputs).logits[real.bool()]

    def right(self, model: PreTrainedModel, padding: int = 0) -> Tensor:
        """Return what `call` must return."""
        if not self.eager:
            return self.call(model, padding)
        own = model.config._attn_implementation
        model.set_attn_implementation("eager")
        answer = self.call(model, padding)
        model.set_attn_implementation(own)
        return answer


SOUND = 7  # the token that stands for audio


def config(name: str, **how: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**how)


def dots() -> Any:
    """Return a config with two kinds of layers, each with its own number of heads; the config itself has none."""
    heads = dict(num_attention_heads=2, num_key_value_heads=2, q_lora_rank=16, kv_lora_rank=16, head_dim=16)
    sizes = dict(qk_nope_head_dim=8, v_head_dim=8, qk_rope_head_dim=8)
    return transformers.Dots3NoteTextConfig(
        **LATENT | dict(num_hidden_layers=3), layer_types=["indexed_attention"] * 2 + ["sliding_attention"],
        sliding_window=16, per_layer_config={2: heads | sizes},
    )  # fmt: skip


def gemma4() -> Any:
    text = transformers.Gemma4TextConfig(
        **GROUPED, vocab_size_per_layer_input=99, hidden_size_per_layer_input=8, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"], num_kv_shared_layers=0,
    )  # fmt: skip
    audio = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, subsampling_conv_channels=[16, 8],
        conv_kernel_size=3, attention_chunk_size=4, attention_context_left=5, attention_context_right=0,
        output_proj_dims=32, use_clipped_linears=False,
    )  # fmt: skip
    return transformers.Gemma4Config(
        text_config=text, vision_config=None, audio_config=audio, audio_token_id=SOUND, image_token_id=4,
        video_token_id=10,
    )  # fmt: skip


def paligemma() -> Any:
    """Return a model with an encoder's flag: without a mask its attention is bidirectional, with a mask causal."""
    tower = dict(
        model_type="siglip_vision_model", hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=4, image_size=8, patch_size=4, projection_dim=32,
    )  # fmt: skip
    text = GROUPED | dict(model_type="gemma")
    return transformers.PaliGemmaConfig(text_config=text, vision_config=tower, image_token_id=4, projection_dim=32)


def sound() -> dict[str, Any]:
    features = torch.randn(2, 96, 16, generator=torch.Generator().manual_seed(2))
    return dict(input_features=features, input_features_mask=torch.ones(2, 96, dtype=torch.bool), sounds=24)


def blt() -> Any:
    part = dict(
        vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=96,
    )  # fmt: skip
    made = transformers.BltConfig(
        vocab_size=99, max_position_embeddings=96, encoder_hash_byte_group_size=[2, 3],
        encoder_hash_byte_group_vocab=64, encoder_hash_byte_group_nb_functions=1, patcher_config=part,
        encoder_config=part, patch_in_forward=False,
        global_config=part | dict(hidden_size=32), decoder_config=part | dict(hidden_size_global=32),
    )  # fmt: skip
    made.num_hidden_layers = 1  # its cache reads it
    return made


def idefics() -> Any:
    return transformers.IdeficsConfig(
        **BASE, vision_config=dict(embed_dim=32, patch_size=2, image_size=8, num_attention_heads=4,
                                   num_hidden_layers=1, intermediate_size=37),
        perceiver_config=dict(resampler_depth=1, resampler_head_dim=8, resampler_n_heads=2, resampler_n_latents=4),
    )  # fmt: skip


def picture() -> dict[str, Any]:
    seen = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return dict(pixel_values=seen, image_attention_mask=torch.ones(2, TOKENS, 1, dtype=torch.long))


def speech(*shape: int, name: str = "input_values") -> dict[str, Any]:
    return {name: torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))}


encoder_tokens = partial(torch.randint, 12, 90, (2, 20))

# a layer writes its own choice of keys into the mask, but only for implementations whose names it knows
INDEXED = {
    "DeepSeek-V3.2": Odd("DeepseekV32ForCausalLM", config("DeepseekV32Config", **LATENT, first_k_dense_replace=1)),
    "GLM-MoE-DSA": Odd("GlmMoeDsaForCausalLM", config("GlmMoeDsaConfig", **LATENT)),
    "A.X-K2": Odd("AXK2ForCausalLM", config("AXK2Config", **LATENT)),
    "HY-V4": Odd("HYV4ForCausalLM", config("HYV4Config", **LATENT, head_dim=16)),
    "Dots3-Note": Odd("Dots3NoteForCausalLM", dots),
    "MiniMax-M3": Odd(
        "MiniMaxM3VLForCausalLM",
        config(
            "MiniMaxM3VLTextConfig", **GROUPED, num_local_experts=4, num_experts_per_tok=2, n_shared_experts=1,
            moe_layer_freq=[0, 1], layer_types=["full_attention", "minimax_m3_sparse"], rotary_dim=4,
            dense_intermediate_size=48, shared_intermediate_size=16, index_n_heads=2, index_head_dim=16,
            index_block_size=4, index_topk_blocks=2, index_local_blocks=1,
        ),
    ),
    "Qwen4-exp": Odd(
        "Qwen4ExpForCausalLM",
        config(
            "Qwen4ExpTextConfig", **GROUPED, layer_types=["linear_attention", "full_attention"], num_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16, linear_key_head_dim=8,
            linear_value_head_dim=8, linear_num_key_heads=4, linear_num_value_heads=4, hc_lowrank=8, indexer_n_heads=2,
            indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=8, indexer_compress_ratio=2,
        ),
    ),
}  # fmt: skip

# a layer reads the mask itself: its values, its shape, or whether there is one
MASKED = {
    "DeepSeek-V4, compressed and heavily compressed": Odd(
        "DeepseekV4ForCausalLM",
        config(
            "DeepseekV4Config", **BASE | EXPERTS, num_key_value_heads=1, head_dim=32, partial_rotary_factor=0.25,
            q_lora_rank=32, o_groups=2, o_lora_rank=16, n_shared_experts=1, mlp_layer_types=["moe", "moe"],
            layer_types=["heavily_compressed_attention", "compressed_sparse_attention"], sliding_window=8, hc_mult=2,
            index_n_heads=2, index_head_dim=16, index_topk=2, num_nextn_predict_layers=0, max_position_embeddings=64,
        ),
    ),
    "DeepSeek-V4, compressed and sliding": Odd(
        "DeepseekV4ForCausalLM",
        config(
            "DeepseekV4Config", **BASE | EXPERTS, num_key_value_heads=1, head_dim=32, partial_rotary_factor=0.25,
            q_lora_rank=32, o_groups=2, o_lora_rank=16, n_shared_experts=1, mlp_layer_types=["moe", "moe"],
            layer_types=["compressed_sparse_attention", "sliding_attention"], sliding_window=64, hc_mult=2,
            index_n_heads=2, index_head_dim=16, index_topk=2, num_nextn_predict_layers=0, max_position_embeddings=64,
        ),
    ),
    "NLLB-MoE": Odd(
        "NllbMoeForConditionalGeneration",
        config(
            "NllbMoeConfig", vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_sparse_step=2,
            decoder_sparse_step=1, num_experts=4, expert_capacity=100, max_position_embeddings=96,
        ),
        lambda: dict(input_ids=encoder_tokens(generator=torch.Generator().manual_seed(3))),
        "decoder_input_ids",
    ),
    "Moonshine": Odd(
        "MoonshineForConditionalGeneration",
        config(
            "MoonshineConfig", vocab_size=99, hidden_size=32, intermediate_size=37, encoder_num_hidden_layers=1,
            decoder_num_hidden_layers=2, encoder_num_attention_heads=2, decoder_num_attention_heads=2,
        ),
        partial(speech, 1000),
        "decoder_input_ids",
    ),
    "PaliGemma": Odd("PaliGemmaForConditionalGeneration", paligemma),
    "Doge": Odd(  # with SDPA it is not causal in transformers 5.17
        "DogeForCausalLM", config("DogeConfig", **BASE, num_key_value_heads=2, keep_window_size=16), eager=True
    ),
    "Gemma 4 with audio": Odd("Gemma4ForConditionalGeneration", gemma4, sound),
}  # fmt: skip

# a part of the config has no implementation
PARTS = {
    "DBRX": Odd(
        "DbrxForCausalLM",
        config(
            "DbrxConfig", d_model=32, n_heads=4, n_layers=2, max_seq_len=64, vocab_size=99,
            attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8.0),
            ffn_config=dict(ffn_hidden_size=32, moe_num_experts=2, moe_top_k=1),
        ),
    ),
    "BLT": Odd("BltForCausalLM", blt),
    "Idefics": Odd("IdeficsForVisionText2Text", idefics, picture),
    "Zamba": Odd(
        "ZambaForCausalLM",
        config(
            "ZambaConfig", **BASE | dict(num_hidden_layers=4), num_key_value_heads=4, attention_head_dim=16,
            layer_types=["linear_attention", "hybrid"] * 2, mamba_d_state=4, mamba_dt_rank=4, n_mamba_heads=2,
            pad_token_id=0,
        ),
    ),
    "Gemma 2": Odd(  # SDPA leaves out its softcap in transformers 5.17
        "Gemma2ForCausalLM", config("Gemma2Config", **GROUPED, sliding_window=16), eager=True
    ),
    "T5": Odd(
        "T5ForConditionalGeneration",
        config("T5Config", vocab_size=99, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4),
        lambda: dict(input_ids=encoder_tokens(generator=torch.Generator().manual_seed(3))),
        "decoder_input_ids",
    ),
}  # fmt: skip

# no layer uses transformers' attention interface
ALONE = {
    "GIT": Odd(
        "GitForCausalLM",
        config("GitConfig", **BASE, vision_config=dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                                                       intermediate_size=32, image_size=8, patch_size=4)),
    ),
    "GPT-J": Odd("GPTJForCausalLM", config("GPTJConfig", **GPT, rotary_dim=4)),
    "CodeGen": Odd("CodeGenForCausalLM", config("CodeGenConfig", **GPT, rotary_dim=4)),
    "Bloom": Odd("BloomForCausalLM", config("BloomConfig", vocab_size=99, hidden_size=32, n_layer=2, n_head=4)),
    "Falcon": Odd("FalconForCausalLM", config("FalconConfig", **BASE)),
    "MPT": Odd("MptForCausalLM", config("MptConfig", vocab_size=99, d_model=32, n_heads=4, n_layers=2, max_seq_len=64)),
    "XGLM": Odd(
        "XGLMForCausalLM",
        config("XGLMConfig", vocab_size=99, d_model=32, ffn_dim=32, num_layers=2, attention_heads=4),
    ),
    "GPT-Neo": Odd(
        "GPTNeoForCausalLM",
        config("GPTNeoConfig", vocab_size=99, hidden_size=32, num_layers=2, num_heads=4,
               attention_types=[[["global", "local"], 1]], max_position_embeddings=64),
    ),
    "Mamba": Odd(
        "MambaForCausalLM",
        config("MambaConfig", vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=8),
    ),
    "RWKV": Odd("RwkvForCausalLM", config("RwkvConfig", vocab_size=99, hidden_size=32, num_hidden_layers=2)),
}  # fmt: skip

ODD = INDEXED | MASKED | PARTS | ALONE
