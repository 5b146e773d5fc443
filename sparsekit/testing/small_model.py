"""Makes a model with random weights and its tokenizer, in a folder as transformers saves them, without a network.

Its answers are noise. It shows that a task, a command or an integration runs, but nothing about the accuracy of a
pipeline.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..extras import needs

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END = 256  # the token of `byte_tokenizer` after the bytes
TOKENS = 2000  # vocabulary of `word_tokenizer`
READ = 200_000  # bytes of text from which it learns its tokens
SPECIAL = ("<s>", "<|end|>", "<|user|>", "<|assistant|>")
TEMPLATE = """{% for message in messages %}<|{{ message['role'] }}|>
{{ message['content'] }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""


def small_model(
    folder: str | Path, *, tokenizer: "PreTrainedTokenizerFast | None" = None, longest: int = 131_072, seed: int = 0
) -> Path:
    """Write a Llama of four layers with random weights and a tokenizer with a chat template; return the folder.

    Commands take the folder like any model of transformers. Its answers are noise: they show that something runs.

    Args:
        folder: the folder to write; created if it does not exist
        tokenizer: a fast tokenizer of transformers; None: parts of words, learned from the text of `sparsekit eval`
        longest: `max_position_embeddings`, in tokens
        seed: the seed of the weights
    """
    needs("transformers", "hf")
    from transformers import LlamaConfig, LlamaForCausalLM

    words = word_tokenizer() if tokenizer is None else tokenizer
    words.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=longest, pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id, bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return Path(folder)


def word_tokenizer(chat: bool = True) -> "PreTrainedTokenizerFast":
    """Return a tokenizer of parts of words, with a chat template or, without `chat`, with a token before each text."""
    from tokenizers import models, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from ..testbed import read_text  # who checks a stage needs none of it

    trained = _of_bytes(models.BPE(), use_regex=True)
    trained.train_from_iterator(
        [read_text()[:READ].decode()],
        trainers.BpeTrainer(
            vocab_size=TOKENS, special_tokens=list(SPECIAL), initial_alphabet=list(_letters()), show_progress=False
        ),
    )
    if not chat:
        trained.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE if chat else None
    return fast


def byte_tokenizer(merges: tuple[tuple[str, str], ...] = (), end: str | None = "<end>") -> "PreTrainedTokenizerFast":
    """Return a tokenizer whose token b is byte b; after the bytes come `end`, unless None, and one token per merge."""
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    vocabulary = _letters() | ({end: END} if end else {})
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    made = _of_bytes(models.BPE(vocabulary, list(merges)), use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, pad_token=end)


def _of_bytes(model: Any, use_regex: bool) -> "Tokenizer":
    """Return a tokenizer that reads and writes bytes as letters; with `use_regex` it splits at words first."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    made.decoder = decoders.ByteLevel()
    return made


def _letters() -> dict[str, int]:
    """Return the table of byte-level tokenizers: the byte of each letter that stands for one."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}
