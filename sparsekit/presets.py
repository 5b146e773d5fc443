"""The recipes as text, by name: in a spec the name stands for the steps. `recipes.py` says what each is for.

All keep every key block that scores at least `alpha` times as high as the best one of a query block, the first 128
tokens and the nearest 1,024. The last 1,024 queries see everything: a question is among them, with further text after
it. How many pairs are dropped depends on the model and the text: the longer a prompt, the more.
"""

_BLOCKS = "block_threshold(alpha={}, sinks=128, window=1024, queries='mean') | decompress(dense_last=1024)"

PRESETS = {
    "lossless": _BLOCKS.format(0.003),
    "balanced": _BLOCKS.format(0.01),
    "fast": _BLOCKS.format(0.02),
}
