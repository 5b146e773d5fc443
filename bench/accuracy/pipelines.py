"""The pipelines to measure, by name: the papers' methods with many parameters, and the recipes."""

from collections.abc import Sequence

from sparsekit import Pipeline, recipes
from sparsekit.layers import Layers

LOW = "1-2", "4-5"  # the half of the embedded model's layers with least inter-layer drift, as profile_layers says
HALF = "0-3"  # the first half of the embedded model's layers
PUBLISHED = {  # the papers' settings
    "tokens .005, zeros, low": "Token Sparse Attention as published",
    "FlexPrefill .95": "FlexPrefill as published, gamma .95",
    "tokens .005 | FlexPrefill .95, zeros, low": "both stacked as published",
}
PAPERS = PUBLISHED | {  # and other settings of the same methods
    "tokens .005, zeros": "Token Sparse Attention in all layers",
    "FlexPrefill .9": "FlexPrefill, gamma .9",
    "FlexPrefill .99": "FlexPrefill, gamma .99",
    "FlexPrefill .995": "FlexPrefill, gamma .995",
}
TAUS = (0.005, 0.02, 0.1, 0.2, 0.5)
GAMMAS = (0.8, 0.9, 0.95, 0.99, 0.995)
WINDOW = "decompress(fill=sliding_window(128, sinks=0))"


def tokens(tau: float, *rest: str, **how: int) -> str:
    given = "".join(f", {name}={value}" for name, value in how.items())
    return " | ".join((f"token_coverage(tau={tau}{given})", *rest))


def blocks(gamma: float) -> str:
    return f"flex_prefill(gamma={gamma})"


def papers(layers: Sequence[str]) -> dict[str, str | Layers]:
    """Return Token Sparse Attention and FlexPrefill, alone and stacked, at many strengths, with either fill, no sinks.

    Without `layers`, those of least drift, the pipelines that need them are left out.
    """
    found: dict[str, str | Layers] = {}

    def low(name: str, spec: str, others: str = "dense") -> None:
        if layers:
            found[f"{name}, low"] = {**dict.fromkeys(layers, spec), "default": others}

    for tau in TAUS:
        for fill, rest in (("zeros", ()), ("window", (WINDOW,))):
            low(f"tokens {_short(tau)}, {fill}", tokens(tau, *rest, sinks=0))
            found[f"tokens {_short(tau)}, {fill}"] = tokens(tau, *rest, sinks=0)
    found |= {f"FlexPrefill {_short(gamma)}": blocks(gamma) for gamma in GAMMAS}
    for tau in (0.005, 0.02):
        both = tokens(tau, blocks(0.95), sinks=0)
        low(f"tokens {_short(tau)} | FlexPrefill .95, zeros", both, blocks(0.95))
    for tau, gamma in ((0.02, 0.95), (0.2, 0.95), (0.2, 0.9), (0.5, 0.9)):
        both = tokens(tau, blocks(gamma), WINDOW, sinks=0)
        found[f"tokens {_short(tau)} | FlexPrefill {_short(gamma)}, window"] = both
    return found


def smooth() -> dict[str, str | Layers]:
    """Return pipelines with votes smoothed over 31 neighbours, to keep whole lines: recipes before they had sinks."""
    found: dict[str, str | Layers] = {}
    for tau, votes, window in ((0.2, 128, 128), (0.05, 512, 512), (0.1, 512, 512), (0.2, 512, 512), (0.2, 512, 8192)):
        name = f"smooth {_short(tau)}, {votes} vote, window {window}, no sinks"
        fill = f"decompress(fill=sliding_window({window}, sinks=0))"
        found[name] = tokens(tau, fill, pool=31, voters=votes, sinks=0)
    return found


def leads(half: str) -> dict[str, str | Layers]:
    """Return candidates for recipes. `half` is the first half of the layers: in the second most queries need little."""
    last = "decompress(dense_last=1024)"
    flex = blocks(0.99)

    def smoothed(tau: float, votes: int, window: int, *stages: str, last: int = 1024) -> str:
        fill = f"decompress(fill=sliding_window({window}), dense_last={last})"
        return tokens(tau, *stages, fill, pool=31, voters=votes)

    found: dict[str, str | Layers] = {
        f"threshold {_short(alpha)}, last 1024": f"{threshold(alpha)} | {last}"
        for alpha in (0.001, 0.015, 0.02, 0.03, 0.1)
    }
    found["threshold .003 of each query, last 1024"] = f"block_threshold(alpha=0.003, window=1024) | {last}"
    found["FlexPrefill .99, last 1024"] = f"{flex} | {last}"
    found["threshold .03 and FlexPrefill .95, last 1024"] = f"union([{threshold(0.03)}, {blocks(0.95)}]) | {last}"
    for tau, votes, window in ((0.2, 512, 512), (0.2, 128, 128)):
        found[f"smooth {_short(tau)}, {votes} vote, window {window}"] = smoothed(tau, votes, window, last=0)
    for tau, votes, window in ((0.2, 512, 1024), (0.05, 128, 2048), (0.02, 128, 2048)):
        found[f"smooth {_short(tau)}, {votes} vote, window {window}, last 1024"] = smoothed(tau, votes, window)
    found["smooth .02, 128 vote | FlexPrefill .99, window 2048, last 1024"] = smoothed(0.02, 128, 2048, flex)
    for votes, alpha in ((128, 0.03), (512, 0.01)):
        name = f"smooth .02, {votes} vote | threshold {_short(alpha)}, window 1024, last 1024"
        found[name] = smoothed(0.02, votes, 1024, threshold(alpha))
    if half:
        streaming = "streaming(sinks=128, window=1024) | decompress(dense_last=128)"
        found["dense, then streaming, last 128"] = {half: "dense", "default": streaming}
        found["dense, then smooth .1, window 2048, last 1024"] = {half: "dense", "default": smoothed(0.1, 512, 2048)}
        for name, spec in {"threshold .01": f"{threshold(0.01)} | {last}", "FlexPrefill .99": flex}.items():
            found[f"{name}, then smooth .1, window 1024, last 1024"] = {half: spec, "default": smoothed(0.1, 512, 1024)}
    return found


def threshold(alpha: float) -> str:
    return f'block_threshold(alpha={alpha}, sinks=128, window=1024, queries="mean")'


def _short(x: float) -> str:
    return f"{x:g}".removeprefix("0")


def pipelines(layers: Sequence[str] = LOW, half: str = HALF) -> dict[str, str | Layers]:
    """Return all pipelines, recipes among them, by name; `layers` are those of least drift, `half` the first half."""
    named: dict[str, str | Layers] = {name: recipe().to_spec() for name, recipe in recipes.PIPELINES.items()}
    specs = set(named.values())
    tried = papers(layers) | smooth() | leads(half)
    same = {
        name for name, spec in tried.items() if isinstance(spec, str) and Pipeline.from_spec(spec).to_spec() in specs
    }
    return {name: spec for name, spec in tried.items() if name not in same} | named
