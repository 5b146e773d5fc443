"""The recipes as text, by name: a spec may use the name for the steps. `recipes.py` says what each is for.

All of them keep every key block that a query block looks for at least `alpha` times as hard as for its best one, the
first 128 tokens and the nearest 1,024, and give the last 1,024 queries everything: a question is among these, and
further text after it. How much that leaves out is up to the model and the text: the longer a prompt, the more.
"""

_BLOCKS = "block_threshold(alpha={}, sinks=128, window=1024, queries='mean') | decompress(dense_last=1024)"

PRESETS = {
    "lossless": _BLOCKS.format(0.003),
    "balanced": _BLOCKS.format(0.01),
    "fast": _BLOCKS.format(0.02),
}
