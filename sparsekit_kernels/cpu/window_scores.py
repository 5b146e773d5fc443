"""The scores of the last queries, one head at a time, by matrix products: memory is read less often than by reference.

The scores of a head lie in one buffer. They are computed and turned into exponentials a few keys at a time, so that
these stay in the cache. The sum of each query's row is then known, so the sums over queries are products with one row
of weights. The sums by distance are such products too: each row of the buffer is read one place further on.
"""

from itertools import product

import torch
from torch import Tensor

from sparsekit.ops import window_scores as definition
from sparsekit.ops.window_scores import Scores
from sparsekit.problem import Problem

STEP, ROWS = 1024, 128  # keys and queries at a time: their scores take half a MiB in float32


def why_not(problem: Problem, voters: int, diagonals: bool = False) -> str | None:
    p = problem
    if not p.q.is_cpu:
        return f"it needs a CPU, and the tensors are on {p.q.device.type}"
    if not (p.causal and p.full and p.queries_last and p.sliding_window is None):
        return "it needs a causal problem without padding and without a sliding window: take reference"
    return None


def window_scores(problem: Problem, voters: int, diagonals: bool = False) -> Scores:
    p, (B, H, Q), (G, K) = problem, problem.q.shape[:3], problem.k.shape[1:3]
    W, wide = min(voters, Q), torch.promote_types(p.q.dtype, torch.float32)
    out = torch.zeros(2 if diagonals else 1, B, H, K, dtype=wide, device=p.q.device)
    before = min(W, ROWS) - 1 if diagonals else 0  # zeros around the keys, for distances beyond the ends
    room = torch.zeros(min(W, ROWS), before + K + before, dtype=wide, device=p.q.device)
    for b, h in product(range(B), range(H)):
        q, k = p.q[b, h, Q - W :].to(wide) * p.scale, p.k[b, h * G // H]
        for first in range(0, W, ROWS):
            some = q[first : first + ROWS]
            rows, own = len(some), K - W + first  # the last key that the first of these rows sees
            scores = room[:rows, before : before + K]
            weights = _exponentials(some, k, scores, own) / W
            out[0, b, h] += scores.t() @ weights
            if diagonals:  # entry (r, e) is key e + r - (rows - 1): the last visible keys are in one column
                last = own + rows - 1
                places = room.as_strided((rows, last + 1), (room.stride(0) + 1, 1), before - (rows - 1))
                out[1, b, h, : last + 1] += (places.t() @ weights).flip(0)
    if not out.isfinite().all():  # NaN in the input, or scores beyond the largest number
        return definition.window_scores(problem, voters, diagonals)
    return out


def _exponentials(q: Tensor, k: Tensor, scores: Tensor, own: int) -> Tensor:
    """Write exp(q k^T - largest of the row), 0 for hidden keys, into `scores` [R, K]; return 1 / sum of each row [R].

    `own` is the last key that the first row sees; each further row sees one more.
    """
    R, K = scores.shape
    for first in range(0, K, STEP):
        torch.mm(q, k[first : first + STEP].to(q.dtype).t(), out=scores[:, first : first + STEP])
    hidden = torch.ones(R, K - own, dtype=torch.bool, device=scores.device).triu(1)
    scores[:, own:].masked_fill_(hidden, float("-inf"))
    most, total = scores.amax(1, keepdim=True), scores.new_zeros(R)
    for first in range(0, K, STEP):
        total += scores[:, first : first + STEP].sub_(most).exp_().sum(1)
    return 1 / total
