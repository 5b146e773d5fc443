"""What is tried: every variant by name, in the lead it belongs to, and how its pipeline is made for a prompt.

The plain method is TokenCoverage on all layers, with a sliding window of 128 for dropped queries. A lead changes one
thing about it, or about FlexPrefill, at several strengths, so that accuracy can be compared along density.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench.leads.blocks import TokensThenBlocks
from bench.leads.chunks import Chunked
from bench.leads.layers import Passed, Remembered, Reused, least_work, matched, only, traded
from bench.leads.near import Near, Sides
from bench.leads.probes import Both, Chance, LastQueries, Probe, Strided
from bench.leads.tokens import VotedTokens
from sparsekit import (
    BlockTopK,
    Decompress,
    FlexPrefill,
    Pipeline,
    SlidingWindow,
    Streaming,
    TokenCoverage,
    Union,
    Zeros,
)
from sparsekit.schedules import Measured

TAUS = (0.1, 0.4)
CURVE = (0.02, *TAUS, 0.8)  # of the plain method
GAMMAS = (0.6, 0.9)
FLEX_CURVE = (0.3, *GAMMAS, 0.97)
CANDIDATE_TAUS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
CANDIDATE_GAMMAS = (0.2, 0.4, 0.6, 0.75, 0.9, 0.97)
NEAR = SlidingWindow(128)
DELIMITERS = b"\n:=()[]{},"


@dataclass(frozen=True)
class Setting:
    """What a pipeline may be made from, besides its own parameters."""

    prompt: bytes
    device: torch.device
    layers: int
    low: Callable[[], tuple[int, ...]]  # the half of the layers with least drift, measured when first asked for
    measured: Callable[[Sequence[str]], Sequence[Measured]]  # these specs in every layer, at this length
    min_tokens: int  # TokenCoverage's, its default at the lengths that count

    def mask(self, wanted: bytes) -> torch.Tensor:
        """bool [K]: the prompt's bytes that are among those."""
        return torch.isin(*(torch.tensor(list(text), device=self.device) for text in (self.prompt, wanted)))


@dataclass(frozen=True)
class Variant:
    """One way to attend, at one strength."""

    lead: str
    label: str
    strength: str
    make: Callable[[Setting], Any]  # what `sparsify` takes; a new one for each prompt, so that none remembers another
    plain: str = "plain"  # the label it is compared with, at equal strength and at equal density
    timed: bool = False  # made of sparsekit's own stages, so its time says something

    @property
    def name(self) -> str:
        return f"{self.label}, {self.strength}" if self.strength else self.label


def run(*stages: Any, fill: Any = NEAR) -> Pipeline:
    return Pipeline([*stages, Decompress(fill)], break_even=0)


def voted(s: Setting, tau: float = 0.0, **how: Any) -> VotedTokens:
    return VotedTokens(tau=tau, min_tokens=s.min_tokens, **how)


def coverage(s: Setting, tau: float, **how: Any) -> TokenCoverage:
    return TokenCoverage(tau=tau, min_tokens=s.min_tokens, **how)


def of_tau(
    lead: str, label: str, make: Callable[[Setting, float], Any], taus: Sequence[float] = TAUS, **how: Any
) -> list[Variant]:
    return [Variant(lead, label, f"tau {tau:g}", partial(_at, make, tau), **how) for tau in taus]


def of_gamma(
    lead: str, label: str, make: Callable[[Setting, float], Any], gammas: Sequence[float] = GAMMAS, **how: Any
) -> list[Variant]:
    how = {"plain": "FlexPrefill"} | how
    return [Variant(lead, label, f"gamma {gamma:g}", partial(_at, make, gamma), **how) for gamma in gammas]


def _at(make: Callable[[Setting, float], Any], strength: float, s: Setting) -> Any:
    return make(s, strength)


def base() -> list[Variant]:
    of = "0 base"
    flex = lambda s, gamma: run(FlexPrefill(gamma=gamma))  # noqa: E731
    return [
        Variant(of, "dense", "", lambda s: None, timed=True),
        Variant(of, "dense, sparsekit", "", lambda s: run(FlexPrefill(gamma=1.0)), timed=True),
        *of_tau(of, "plain", lambda s, tau: run(coverage(s, tau)), CURVE, timed=True),
        *of_tau(of, "zeros", lambda s, tau: run(coverage(s, tau), fill=Zeros()), (0.02, 0.1), timed=True),
        *of_gamma(of, "FlexPrefill", flex, FLEX_CURVE, timed=True),
        *of_tau(of, "tokens by chance", lambda s, tau: run(voted(s, tau, probe=Chance()))),
        Variant(of, "only neighbours", "128", _neighbours),
        Variant(of, "Streaming", "sinks 128, window 1024", lambda s: run(Streaming()), timed=True),
        *(
            Variant(of, "BlockTopK", f"keep {keep:g}", partial(_top, keep), timed=True, plain="FlexPrefill")
            for keep in (0.05, 0.2)
        ),
    ]


def _top(keep: float, s: Setting) -> Pipeline:
    return run(BlockTopK(keep=keep))


def _neighbours(s: Setting) -> Pipeline:
    return Near(replace(voted(s, keep=1e-9), min_tokens=0), near=128, fill=NEAR)


def near() -> list[Variant]:
    of = "1 kept queries see neighbours"
    with_near = lambda n: lambda s, tau: Near(coverage(s, tau), near=n, fill=SlidingWindow(n))  # noqa: E731
    return [
        *of_tau(of, "near 128", with_near(128)),
        *of_tau(of, "near 512, fill 512", with_near(512)),
    ]


def budgets() -> list[Variant]:
    of = "2 budgets"
    fixed = [
        Variant(of, "one keep for all layers", f"keep {keep:g}", partial(_fixed, keep)) for keep in (0.4, 0.2, 0.1)
    ]
    return [
        *of_tau(of, "per head", lambda s, tau: run(voted(s, tau, budget="head"))),
        *of_tau(of, "pooled over heads", lambda s, tau: run(voted(s, tau, budget="pool"))),
        *fixed,
    ]


def _fixed(keep: float, s: Setting) -> Pipeline:
    return run(voted(s, keep=keep))


def sharing() -> list[Variant]:
    of = "3 selection shared"
    per = lambda what: lambda s, tau: run(coverage(s, tau, per=what))  # noqa: E731
    return [
        *of_tau(of, "per group", per("group"), timed=True),
        *of_tau(of, "per layer", per("layer"), timed=True),
    ]


def probes() -> list[Variant]:
    of = "4 probe"
    by = lambda probe: lambda s, tau: run(voted(s, tau, probe=probe))  # noqa: E731
    last: Probe = LastQueries()
    return [
        *of_tau(of, "voting window 32", lambda s, tau: run(coverage(s, tau, window=32)), timed=True),
        *of_tau(of, "voting window 512", lambda s, tau: run(coverage(s, tau, window=512)), timed=True),
        *of_tau(of, "voting window 2048", lambda s, tau: run(coverage(s, tau, window=2048)), timed=True),
        *of_tau(of, "last 512 choose", by(LastQueries(512))),
        *of_tau(of, "spread", by(Strided(128))),
        *of_tau(of, "spread, far keys", by(Strided(128, 128))),
        *of_tau(of, "last and spread", by(Both(last, Strided(128, 128)))),
        *of_tau(of, "chunks of an eighth", lambda s, tau: _chunked(s, run(coverage(s, tau)))),
        *of_gamma(of, "FlexPrefill, chunks of an eighth", lambda s, gamma: _chunked(s, run(FlexPrefill(gamma=gamma)))),
    ]


def _chunked(s: Setting, pipeline: Pipeline) -> Pipeline:
    return Chunked(pipeline, -(-len(s.prompt) // 8))


def forced() -> list[Variant]:
    of = "5 forced keeps and segments"
    marked = lambda wanted: lambda s, tau: run(voted(s, tau, forced=s.mask(wanted)))  # noqa: E731
    in_runs = lambda m, by: lambda s, tau: run(voted(s, tau, segment=m, by=by))  # noqa: E731
    return [
        *of_tau(of, "newlines", marked(b"\n")),
        *of_tau(of, "delimiters", marked(DELIMITERS)),
        *of_tau(of, "first 64", _first),
        *(v for m in (16, 64, 128) for v in of_tau(of, f"runs of {m}", in_runs(m, "sum"))),
        *of_tau(of, "runs of 64 by max", in_runs(64, "max")),
        *of_tau(of, "pool 1", lambda s, tau: run(coverage(s, tau, pool=1)), timed=True),
        *of_tau(of, "pool 31", lambda s, tau: run(coverage(s, tau, pool=31)), timed=True),
    ]


def _first(s: Setting, tau: float) -> Pipeline:
    return run(voted(s, tau, forced=torch.arange(len(s.prompt), device=s.device) < 64))


def reductions() -> list[Variant]:
    return of_tau("6 max", "max", lambda s, tau: run(voted(s, tau, probe=LastQueries(reduce="max"))))


def reuse() -> list[Variant]:
    of = "7 reuse"
    every = lambda n, allowed: lambda s, tau: _reused(s, tau, n, allowed)  # noqa: E731
    return [
        *of_tau(of, "every second layer decides", every(2, torch.inf)),
        *of_tau(of, "every fourth layer decides", every(4, torch.inf)),
        *of_tau(of, "reused while it covers", every(0, 1.0)),
        *of_tau(of, "reused while it misses at most twice tau", every(0, 2.0)),
        *of_tau(of, "votes summed over layers", lambda s, tau: _remembered(s, tau, 1.0)),
        *of_tau(of, "votes fading over layers", lambda s, tau: _remembered(s, tau, 0.5)),
    ]


def _reused(s: Setting, tau: float, every: int, allowed: float) -> dict[int, Pipeline]:
    passed = Passed()
    anew = lambda layer: layer == 0 or (every > 0 and layer % every == 0)  # noqa: E731
    return {layer: run(Reused(voted(s, tau), passed, allowed, anew(layer))) for layer in range(s.layers)}


def _remembered(s: Setting, tau: float, fade: float) -> dict[int, Pipeline]:
    probe = Remembered(Passed(), fade)
    return {layer: run(voted(s, tau, probe=probe)) for layer in range(s.layers)}


def calibrated() -> list[Variant]:
    tokens, blocks = "8 tau by layer", "9 gamma by layer"
    return [
        *of_tau(tokens, "equal error", partial(_calibrated, least_work, _token_spec, CANDIDATE_TAUS), timed=True),
        *of_tau(tokens, "equal price", partial(_calibrated, traded, _token_spec, CANDIDATE_TAUS), timed=True),
        *of_gamma(blocks, "equal error", partial(_calibrated, least_work, _flex_spec, CANDIDATE_GAMMAS), timed=True),
        *of_gamma(blocks, "equal price", partial(_calibrated, traded, _flex_spec, CANDIDATE_GAMMAS), timed=True),
        *of_tau(blocks, "tokens or blocks, equal price", _either, timed=True, plain="plain"),
    ]


def _token_spec(s: Setting, tau: float) -> str:
    return run(coverage(s, tau)).to_spec()


def _flex_spec(s: Setting, gamma: float) -> str:
    return run(FlexPrefill(gamma=gamma), fill=Zeros()).to_spec()


def _calibrated(
    rule: Callable, spec: Callable[[Setting, float], str], candidates: Sequence[float], s: Setting, strength: float
) -> dict:
    """The layers' own settings, of as much work in all as one setting for all layers."""
    measured = s.measured([spec(s, one) for one in sorted({*candidates, strength})])
    return matched(measured, rule, spec(s, strength))


def _either(s: Setting, tau: float) -> dict:
    specs = [_token_spec(s, one) for one in sorted({*CANDIDATE_TAUS, tau})] + [
        _flex_spec(s, one) for one in CANDIDATE_GAMMAS
    ]
    return matched(s.measured(specs), traded, _token_spec(s, tau))


def joint() -> list[Variant]:
    of = "10 one scoring pass"
    tokens_then = lambda gamma, band: lambda s, tau: run(TokensThenBlocks(voted(s, tau), gamma, band))  # noqa: E731
    stacked = lambda gamma: lambda s, tau: run(coverage(s, tau), FlexPrefill(gamma=gamma))  # noqa: E731
    blocks = lambda band: lambda s, gamma: run(TokensThenBlocks(voted(s), gamma, band))  # noqa: E731
    return [
        *(v for g in (0.7, 0.9) for v in of_tau(of, f"stacked, gamma {g}", stacked(g), timed=True)),
        *(v for g in (0.7, 0.9) for v in of_tau(of, f"votes choose blocks, gamma {g}", tokens_then(g, 1))),
        *of_gamma(of, "blocks by votes, band 1", blocks(1)),
        *of_gamma(of, "blocks by votes, band 4", blocks(4)),
    ]


def fills() -> list[Variant]:
    of = "11 fill"
    window = lambda n, sinks: lambda s, tau: run(coverage(s, tau), fill=SlidingWindow(n, sinks))  # noqa: E731
    far = lambda n, near: lambda s, tau: Near(coverage(s, tau), near=near, fill=NEAR, far=n)  # noqa: E731
    return [
        *(v for n in (8, 32, 512) for v in of_tau(of, f"fill window {n}", window(n, 0), timed=True)),
        *of_tau(of, "fill sinks 16", window(128, 16), timed=True),
        *of_tau(of, "dropped queries see 64 far keys", far(64, 0)),
        *of_tau(of, "dropped queries see 512 far keys", far(512, 0)),
        *of_tau(of, "512 far keys, near 128", far(512, 128)),
    ]


def sides() -> list[Variant]:
    of = "12 queries and keys apart"
    keys = [
        Variant(of, "all queries, keys and near 128", f"keep {keep:g}", partial(_keys_only, keep))
        for keep in (0.1, 0.03, 0.01)
    ]
    fewer_queries = lambda s, tau: Near(  # noqa: E731
        Sides(voted(s, min(1.5 * tau, 0.95)), voted(s, tau / 2)), near=128, fill=NEAR
    )
    fewer_keys = lambda s, tau: Near(  # noqa: E731
        Sides(voted(s, tau / 2), voted(s, min(1.5 * tau, 0.95))), near=128, fill=NEAR
    )
    all_keys = lambda s, tau: Near(Sides(voted(s, tau), None), fill=NEAR)  # noqa: E731
    return [
        *keys,
        *of_tau(of, "fewer queries than keys", fewer_queries),
        *of_tau(of, "fewer keys than queries", fewer_keys),
        *of_tau(of, "kept queries see all keys", all_keys, (0.4, 0.8)),
    ]


def _keys_only(keep: float, s: Setting) -> Pipeline:
    return Near(Sides(None, replace(voted(s, keep=keep), min_tokens=0)), near=128)


def layers() -> list[Variant]:
    of = "13 which layers"
    low = lambda s, tau: only({n: n in s.low() for n in range(s.layers)}, run(coverage(s, tau)))  # noqa: E731
    high = lambda s, tau: only({n: n not in s.low() for n in range(s.layers)}, run(coverage(s, tau)))  # noqa: E731
    one = lambda layer: lambda s, tau: {layer: run(coverage(s, tau)), "default": "dense"}  # noqa: E731
    both = lambda tokens_low: lambda s, tau: _both(s, tau, tokens_low)  # noqa: E731
    return [
        *of_tau(of, "low half", low, timed=True),
        *of_tau(of, "high half", high, timed=True),
        *of_tau(of, "tokens low, FlexPrefill 0.9 high", both(True), timed=True),
        *of_tau(of, "tokens high, FlexPrefill 0.9 low", both(False), timed=True),
        *(v for layer in range(8) for v in of_tau(of, f"layer {layer} alone", one(layer), (0.4,))),
    ]


def _both(s: Setting, tau: float, tokens_low: bool) -> dict[int, Pipeline]:
    return {
        n: run(coverage(s, tau)) if (n in s.low()) == tokens_low else run(FlexPrefill(gamma=0.9))
        for n in range(s.layers)
    }


def tails() -> list[Variant]:
    of = "14 last queries see all keys"
    rest = lambda n, tau: lambda s: Chunked(run(coverage(s, tau)), n, Pipeline([]))  # noqa: E731
    return [
        *(Variant(of, "the others neighbours", f"last {n}", partial(_tail, n)) for n in (128, 512, 2048)),
        *(Variant(of, "the others plain, tau 0.4", f"last {n}", rest(n, 0.4)) for n in (128, 2048)),
        *(Variant(of, "the others FlexPrefill 0.6", f"last {n}", partial(_flex_tail, n)) for n in (128, 2048)),
        Variant(of, "the others neighbours and top blocks", "last 128, keep 0.02", _top_tail),
    ]


def _tail(n: int, s: Setting) -> Pipeline:
    return Chunked(_neighbours(s), n, Pipeline([]))


def _flex_tail(n: int, s: Setting) -> Pipeline:
    return Chunked(run(FlexPrefill(gamma=0.6)), n, Pipeline([]))


def _top_tail(s: Setting) -> Pipeline:
    return Chunked(run(Union([Streaming(sinks=1, window=128), BlockTopK(keep=0.02)])), 128, Pipeline([]))


GROUPS = (
    base, near, budgets, sharing, probes, forced, reductions, reuse, calibrated, joint, fills, sides, layers, tails,
)  # fmt: skip


def variants() -> list[Variant]:
    """All of them; names are unique."""
    return [variant for group in GROUPS for variant in group()]
