"""The pipelines that are asked, by name: the papers' methods over their parameters, and what was found to be better."""

from sparsekit.schedules import Layers

LOW = "1-2", "4-5"  # the half of the embedded model's layers with least inter-layer drift, as profile_layers says
PAPERS = {  # their settings
    "tokens .005, zeros, low": "Token Sparse Attention as published",
    "FlexPrefill .95": "FlexPrefill as published",
    "tokens .005 | FlexPrefill .95, zeros, low": "both stacked as published",
}
TAUS = (0.005, 0.02, 0.1, 0.2, 0.5)
GAMMAS = (0.8, 0.9, 0.95, 0.99, 0.995)
WINDOW = "decompress(fill=sliding_window(128))"


def tokens(tau: float, *rest: str, **how: int) -> str:
    given = "".join(f", {name}={value}" for name, value in how.items())
    return " | ".join((f"token_coverage(tau={tau}{given})", *rest))


def blocks(gamma: float) -> str:
    return f"flex_prefill(gamma={gamma})"


def low(spec: str, others: str = "dense") -> Layers:
    """A schedule: `spec` in the layers of least drift."""
    return {**dict.fromkeys(LOW, spec), "default": others}


def papers() -> dict[str, str | Layers]:
    """Token Sparse Attention and FlexPrefill, each alone and stacked, at many strengths, with either fill."""
    found: dict[str, str | Layers] = {}
    for tau in TAUS:
        for fill, rest in (("zeros", ()), ("window", (WINDOW,))):
            found[f"tokens {_short(tau)}, {fill}, low"] = low(tokens(tau, *rest))
            found[f"tokens {_short(tau)}, {fill}"] = tokens(tau, *rest)
    for window, sinks in ((64, 0), (512, 0), (128, 16)):
        name = f"tokens .2, window {window}" + (f" and {sinks} sinks" if sinks else "")
        found[name] = tokens(0.2, f"decompress(fill=sliding_window({window}, sinks={sinks}))")
    found |= {f"FlexPrefill {_short(gamma)}": blocks(gamma) for gamma in GAMMAS}
    for tau in (0.005, 0.02):
        both = tokens(tau, blocks(0.95))
        found[f"tokens {_short(tau)} | FlexPrefill .95, zeros, low"] = low(both, blocks(0.95))
    for tau, gamma in ((0.02, 0.95), (0.2, 0.95), (0.2, 0.9), (0.5, 0.9)):
        both = tokens(tau, blocks(gamma), WINDOW)
        found[f"tokens {_short(tau)} | FlexPrefill {_short(gamma)}, window"] = both
    return found


def smooth() -> dict[str, str | Layers]:
    """Votes smoothed over more neighbours, so that whole lines are kept, and cast by more queries."""
    found: dict[str, str | Layers] = {}
    for tau in (0.05, 0.1, 0.2, 0.4):
        found[f"smooth {_short(tau)}"] = tokens(tau, WINDOW, pool=31)
        found[f"smooth {_short(tau)}, 512 vote"] = tokens(tau, WINDOW, pool=31, window=512)
    for tau in (0.1, 0.4):
        found[f"smooth {_short(tau)} by 63, 512 vote"] = tokens(tau, WINDOW, pool=63, window=512)
        found[f"smooth {_short(tau)}, 2048 vote"] = tokens(tau, WINDOW, pool=31, window=2048)
    return found


def wide() -> dict[str, str | Layers]:
    """Dropped queries see more of what is before them: what the text that follows a prompt was found to gain by."""
    asked = [(0.02, 512, w) for w in (2048, 8192)] + [(0.05, 512, w) for w in (512, 2048)]
    asked += [(0.1, 512, w) for w in (512, 2048, 8192)] + [(0.2, 512, w) for w in (512, 2048, 4096, 8192)]
    asked += [(0.4, 512, 2048)] + [(0.05, 2048, w) for w in (512, 2048)] + [(0.2, 128, w) for w in (512, 2048)]
    found: dict[str, str | Layers] = {}
    for tau, votes, w in asked:
        how = {} if votes == 128 else {"window": votes}
        name = f"smooth {_short(tau)}, " + "".join(f"{n} vote, " for n in how.values()) + f"window {w}"
        found[name] = tokens(tau, f"decompress(fill=sliding_window({w}))", pool=31, **how)
    return found


def dense_last() -> dict[str, str | Layers]:
    """The last queries attend to everything: of little help to the text that follows a prompt, but beside windows."""
    found: dict[str, str | Layers] = {}
    for last in (2048, 4096):
        for tau in (0.05, 0.2):
            found[f"smooth {_short(tau)}, 512 vote, last {last}"] = tokens(tau, _last(last), pool=31, window=512)
        found[f"smooth .2, last {last}"] = tokens(0.2, _last(last), pool=31)
    wide = [(tau, 8192, 2048) for tau in (0.05, 0.1, 0.2)] + [(0.2, w, 4096) for w in (4096, 8192)]
    for tau, w, last in (*wide, (0.05, 2048, 4096)):
        found[f"smooth {_short(tau)}, 512 vote, window {w}, last {last}"] = tokens(
            tau, _last(last, w), pool=31, window=512
        )
    return found


def for_all() -> dict[str, str | Layers]:
    """Kept queries see their window too: they were left with keys that stand far apart."""
    asked = [(0.2, w, 0) for w in (512, 8192)] + [(0.2, w, 2048) for w in (4096, 8192, 16384)]
    found: dict[str, str | Layers] = {}
    for tau, w, last in (*asked, (0.2, 8192, 4096), (0.05, 8192, 2048), (0.05, 16384, 2048)):
        name = f"smooth {_short(tau)}, 512 vote, window {w} for all" + (f", last {last}" if last else "")
        fill = f'sliding_window({w}, queries="all")'
        rest = f", dense_last={last}" if last else ""
        found[name] = tokens(tau, f"decompress(fill={fill}{rest})", pool=31, window=512)
    return found


def _last(n: int, window: int = 128) -> str:
    return f"decompress(fill=sliding_window({window}), dense_last={n})"


def _short(x: float) -> str:
    return f"{x:g}".removeprefix("0")


PIPELINES = papers() | smooth() | wide() | dense_last() | for_all()
