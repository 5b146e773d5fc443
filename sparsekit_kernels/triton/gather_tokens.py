"""Compress: copy the kept rows of q, k and v, and their positions, in one launch; grouped heads are not expanded.

Each kept row is read and written once, and its index is read for each of q, k, v. If heads have room for all of their
tokens, most rows are padding: in a `loose` problem only the padding rows near a kept row are written, as zeros.
"""

from dataclasses import replace

import triton
import triton.language as tl
from torch import Tensor

from sparsekit.plan import Plan, Tokens
from sparsekit.problem import PAD, Problem

from . import tile, why_not_here

ROWS, WARPS = 64, 4  # rows and warps of a program
NEAR = 512  # padding rows after the last kept row that a kernel may read: no tile of queries or keys reaches further
NOWHERE = tl.constexpr(PAD)


def why_not(problem: Problem, plan: Plan) -> str | None:
    return why_not_here(problem.q)


def gather_tokens(problem: Problem, plan: Plan) -> Problem:
    p = problem
    if plan.queries is None and plan.keys is None:
        return p
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (p.q, p.k, p.v))
    q_side, k_side = _Side(plan.queries, q, p.q_pos), _Side(plan.keys, k, p.k_pos)
    if plan.pairs_slots(p):  # both write the same rows there
        k_side.pos = q_side.pos
    new_q, new_k, new_v = q_side.room(q), k_side.room(k), k_side.room(v)
    first, end = (0 if plan.queries else 1), (3 if plan.keys else 1)
    most = max(side.kept for side in (q_side, k_side))
    heads = max(new_q.shape[1], new_k.shape[1])
    _gather[(triton.cdiv(most, ROWS), q.shape[0] * heads, end - first)](
        q, k, v, q_side.idx, k_side.idx, p.q_pos, p.k_pos, new_q, new_k, new_v, q_side.pos, k_side.pos,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *p.q_pos.stride(), *p.k_pos.stride(),
        heads, *q_side.sizes(), *k_side.sizes(), first,
        D=q.shape[3], DV=v.shape[3], D_TILE=tile(q.shape[3], 1024), DV_TILE=tile(v.shape[3], 1024), ROWS=ROWS,
        NEAR=NEAR if p.loose else 0, num_warps=WARPS,
    )  # fmt: skip
    if plan.queries:
        p = replace(p, q=new_q, q_pos=q_side.pos)
    if plan.keys:
        p = replace(p, k=new_k, v=new_v, k_pos=k_side.pos)
    return replace(p, **plan.hints(problem))


class _Side:
    """The tokens of one side and the sizes that a launch needs; without tokens, sizes that keep its programs idle."""

    def __init__(self, tokens: Tokens | None, x: Tensor, pos: Tensor) -> None:
        self.n, self.own = x.shape[2], x.shape[1]
        self.idx = tokens.idx.contiguous() if tokens else pos
        self.h, self.kept = self.idx.shape[1:] if tokens else (1, 0)
        self.heads = max(self.own, self.h) if tokens else 0
        self.pos_own, pos_heads = pos.shape[1], max(pos.shape[1], self.h)
        self.pos = pos.new_empty(pos.shape[0], pos_heads, self.kept)

    def room(self, x: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], self.heads, self.kept, x.shape[3])

    def sizes(self) -> tuple[int, ...]:
        return self.heads, self.own, self.h, self.pos.shape[1], self.pos_own, self.n, self.kept


@triton.jit
def _gather(
    q, k, v, q_idx, k_idx, q_pos, k_pos, new_q, new_k, new_v, new_q_pos, new_k_pos,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, qp_b, qp_h, qp_l, kp_b, kp_h, kp_l,
    heads, q_heads, q_own, q_choices, q_pos_heads, q_pos_own, n_q, S_q,
    k_heads, k_own, k_choices, k_pos_heads, k_pos_own, n_k, S_k, first,
    D: tl.constexpr, DV: tl.constexpr, D_TILE: tl.constexpr, DV_TILE: tl.constexpr, ROWS: tl.constexpr,
    NEAR: tl.constexpr,
):  # fmt: skip
    b, h = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    which = tl.program_id(2) + first
    if which == 0:
        if h < q_heads:
            idx = q_idx + (b * q_choices + h * q_choices // q_heads) * S_q
            place = _places(idx, row, n_q, S_q)
            rows = q + b * q_b + (h * q_own // q_heads).to(tl.int64) * q_h
            _copy_rows(rows, q_l, new_q, b * q_heads + h, idx, place, row, n_q, S_q, D, D_TILE, ROWS, NEAR)
            _copy_positions(q_pos + b * qp_b, qp_h, qp_l, new_q_pos, b, h, place, row, q_heads, q_pos_heads, q_pos_own,
                            n_q, S_q)  # fmt: skip
    elif h < k_heads:
        idx = k_idx + (b * k_choices + h * k_choices // k_heads) * S_k
        place = _places(idx, row, n_k, S_k)
        group = (h * k_own // k_heads).to(tl.int64)
        if which == 1:
            rows = k + b * k_b + group * k_h
            _copy_rows(rows, k_l, new_k, b * k_heads + h, idx, place, row, n_k, S_k, D, D_TILE, ROWS, NEAR)
            _copy_positions(k_pos + b * kp_b, kp_h, kp_l, new_k_pos, b, h, place, row, k_heads, k_pos_heads, k_pos_own,
                            n_k, S_k)  # fmt: skip
        else:
            rows = v + b * v_b + group * v_h
            _copy_rows(rows, v_l, new_v, b * k_heads + h, idx, place, row, n_k, S_k, DV, DV_TILE, ROWS, NEAR)


@triton.jit
def _places(idx, row, n, S):
    """Return the indices of the kept rows in the original: [ROWS], n for padding."""
    return tl.load(idx + row, mask=row < S, other=n).to(tl.int64)


@triton.jit
def _copy_rows(
    x, x_l, out, line, idx, place, row, n, S, D: tl.constexpr, D_TILE: tl.constexpr, ROWS: tl.constexpr,
    NEAR: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, D_TILE)
    wide, some = (d < D)[None, :], True
    if NEAR:
        before = tl.program_id(0) * ROWS - NEAR
        some = tl.load(idx + tl.maximum(before, 0), mask=before >= 0, other=0) < n  # whether a kept row is that near
    if some:
        values = tl.load(x + place[:, None] * x_l + d, mask=(place < n)[:, None] & wide, other=0.0)
        tl.store(out + (line * S + row)[:, None] * D + d, values, mask=(row < S)[:, None] & wide)


@triton.jit
def _copy_positions(pos, pos_h, pos_l, out, b, h, place, row, heads, pos_heads, pos_own, n, S):
    """Copy the positions, in the program of the first head that shares them."""
    share = heads // pos_heads
    if h % share == 0:
        own = h // share
        at = tl.load(pos + (own * pos_own // pos_heads) * pos_h + place * pos_l, mask=place < n, other=NOWHERE)
        tl.store(out + (b * pos_heads + own) * S + row, at, mask=row < S)
