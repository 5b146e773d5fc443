"""Checks that tests catch faults. It breaks one line at a time in a copy: python tests/faults.py [WORDS]

It prints a line for each fault, and exits with 1 if the tests missed one. WORDS choose the faults whose name contains them.
JOBS (2) in the environment says how many run at once.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

# (the fault, file, text of the line, text with the fault, tests that must catch it if not those of JUDGES)
# fmt: off
FAULTS = [
 ("pad sentinel -1: positions leak", "sparsekit/plan.py", "else t.gather(p.k_pos, PAD)", "else t.gather(p.k_pos, -1)"),
 ("decompress forgets the lse of dropped rows", "sparsekit/plan.py", 't.scatter(out.lse, float("-inf"))', "t.scatter(out.lse, 0.0)"),
 ("decompress fills with 1", "sparsekit/plan.py", "t.scatter(out.o, 0.0)", "t.scatter(out.o, 1.0)"),
 ("then in the wrong order", "sparsekit/plan.py", "both(self.keys, inner.keys, Tokens.then)", "both(inner.keys, self.keys, Tokens.then)"),
 ("block rank off by one", "sparsekit/plan.py", "to_heads(tokens.kept(), H).cumsum(-1) - 1", "to_heads(tokens.kept(), H).cumsum(-1)"),
 ("blocks or instead of and", "sparsekit/plan.py", "both(self.blocks, inner.blocks, Blocks.__and__)", "both(self.blocks, inner.blocks, Blocks.__or__)"),
 ("tokens of tokens pad with 0", "sparsekit/plan.py", "(0, 1), value=self.n)", "(0, 1), value=0)"),
 ("gather reads another group's rows", "sparsekit/plan.py", "row // (heads // groups) * self.n", "row % groups * self.n"),
 ("scatter lets padding hit the last row", "sparsekit/plan.py", "torch.where(idx < self.n, base + idx, B * H * self.n)", "base + idx.clamp(max=self.n - 1)"),
 ("work counts partly visible blocks whole", "sparsekit/plan.py", "[:, None]).clamp(0, n).sum(-1)", "[:, None]).clamp(0, 1).mul(n).sum(-1)"),
 ("work forgets the fill", "sparsekit/plan.py", "        if self.local:", "        if False:"),
 ("pairs forget the fill", "sparsekit/plan.py", "_heads(self.queries.kept(), H)[..., rows, None], pairs, filled)", "_heads(self.queries.kept(), H)[..., rows, None], pairs, False)"),
 ("the first fill wins", "sparsekit/plan.py", "inner.fill or self.fill", "self.fill or inner.fill"),
 ("lists keep repeats", "sparsekit/plan.py", "merged.masked_fill(repeat, self.n)", "merged"),
 ("heads repeat instead of interleave", "sparsekit/problem.py", "x.repeat_interleave(heads // x.shape[1], dim=1)", "x.repeat(1, heads // x.shape[1], *[1] * (x.ndim - 2))"),
 ("causal off by one", "sparsekit/problem.py", "seen & (k <= q)", "seen & (k < q)"),
 ("positions at the top left", "sparsekit/problem.py", "torch.arange(K - Q, K, device=q.device", "torch.arange(0, Q, device=q.device"),
 ("reach off by one", "sparsekit/problem.py", "q_pos.contiguous(), right=True)", "q_pos.contiguous(), right=False)"),
 ("padding queries reach keys", "sparsekit/problem.py", "seen.masked_fill(q_pos == PAD, 0)", "seen"),
 ("merge weighs with the wrong side", "sparsekit/problem.py", "self.o.to(lse.dtype) * mine", "self.o.to(lse.dtype) * theirs"),
 ("oracle forgets the scale", "sparsekit/oracle.py", " * problem.scale", ""),
 ("reference forgets the scale", "sparsekit/ops/attend.py", ".mul(p.scale)", ""),
 ("reference attends the whole tile", "sparsekit/ops/attend.py", "seen = seen & tiles[", "seen = tiles["),
 ("window one too wide", "sparsekit/fills.py", "near = (q - k).abs() < self.window", "near = (q - k).abs() <= self.window"),
 ("window counts forget the sinks", "sparsekit/fills.py", "return (near + sinks - both)", "return near"),
 ("fill overwrites kept queries", "sparsekit/plan.py", "torch.where(dropped[..., None], rows.o, out.o)", "rows.o"),
 ("stages see the whole problem", "sparsekit/pipeline.py", "inner = stage(short[0])", "inner = stage(problem)"),
 ("named backend falls through to auto", "sparsekit/dispatch.py", 'if backend == "auto" else (backend,)', "if True else (backend,)"),
 ("what tensors are is said before what the machine lacks", "sparsekit/dispatch.py", "if reason := missing(_device(args[0])):", "if (reason := missing(_device(args[0]))) and not _module(f\"{BACKENDS[backend]}.{op}\").why_not(*args):", "tests/test_grid.py"),
 ("stage changes k", "sparsekit/stages/token_coverage.py", "        scores = dispatch.run(", "        p.k.mul_(2)\n        scores = dispatch.run("),
 ("window not kept", "sparsekit/ops/token_votes.py", "torch.where(slot < real, torch.inf, -torch.inf)", "torch.where(slot < real, 0.0, -torch.inf)"),
 ("one budget for the whole batch", "sparsekit/stages/token_coverage.py", "self.tau, most)[:, None, None]", "self.tau, most).max().expand(len(mean))[:, None, None]"),
 ("chunk's part and earlier part swapped", "sparsekit/stages/token_coverage.py", "queries = _best(votes.masked_fill(early, -torch.inf), n_q - late)", "late = drop - late; queries = _best(votes.masked_fill(early, -torch.inf), n_q - late)"),
 ("coverage drops the sinks", "sparsekit/ops/token_votes.py", "    among = among & (slot >= sinks)\n", "", "tests/stages/test_patterns.py"),
 ("a chunk's earlier keys lose the sinks", "sparsekit/stages/token_coverage.py", "-mean.masked_fill(slot < self.sinks, torch.inf)", "-mean", "tests/stages/test_patterns.py"),
 ("sinks have no room beside the window", "sparsekit/stages/token_coverage.py", "least = max(self.min_tokens, self.sinks)", "least = self.min_tokens", "tests/stages/test_patterns.py"),
 ("the question does not vote", "sparsekit/pipeline.py", "        plan, short = Plan(), [problem]\n", "        n = self.decompress.dense_last\n        short = [replace(problem, q_pos=problem.q_pos.masked_fill(Plan(dense_last=n).last(problem), 2**31 - 1), queries_last=False, full=False)]\n        plan = Plan()\n", "tests/test_laws.py"),
 ("triton: votes drop the sinks", "sparsekit_kernels/triton/token_votes.py", "ranked = (slot >= sinks) & (slot < end[:, None])", "ranked = slot < end[:, None]", "tests/ops/test_triton_scores.py"),
 ("triton: sinks inside the window count twice", "sparsekit_kernels/triton/scatter_tokens.py", "& (key[None, :] <= last[:, None]) & beyond", "& beyond", "tests/ops/test_triton.py"),
 ("triton: keys after the sinks are sinks", "sparsekit_kernels/triton/scatter_tokens.py", "visible = (key < sinks)[None, :] & (key", "visible = (key >= 0)[None, :] & (key", "tests/ops/test_triton.py"),
 ("triton: sinks are not in the log-sum-exp", "sparsekit_kernels/triton/scatter_tokens.py", "tl.store(ends, logs, mask=beyond)", "tl.store(ends, near_lse, mask=beyond)", "tests/ops/test_triton.py"),
 ("threshold: the mean of the group's best", "sparsekit/stages/block_threshold.py", "scores - top).exp().sum((2, 4))", "scores - top).exp().sum(4).amax(2)", "tests/stages/test_patterns.py"),
 ("threshold: half of alpha", "sparsekit/stages/block_threshold.py", "scores >= self.alpha *", "scores >= 0.5 * self.alpha *", "tests/stages/test_patterns.py"),
 ("threshold: the future scores", "sparsekit/stages/block_threshold.py", ".masked_fill(~seen, -math.inf)", "", "tests/stages/test_patterns.py"),
 ("threshold: the best of all heads", "sparsekit/ops/threshold_blocks.py", "scores.amax(-1, keepdim=True) + math.log", "scores.amax((2, 4), keepdim=True) + math.log", "tests/stages/test_patterns.py"),
 ("triton: lists of means lose the sinks", "sparsekit_kernels/triton/threshold_blocks.py", "(keys[None, :] < sinks) | (keys[None, :] >= own[:, None])", "keys[None, :] >= own[:, None]", "tests/ops/test_triton_scores.py"),
 ("triton: lists of means see the future", "sparsekit_kernels/triton/threshold_blocks.py", "return begin, (most + m - 1) // m,", "return begin, (most + m - 1) // m + 1,", "tests/ops/test_triton_scores.py"),
 ("triton: means of the first head of a group decide", "sparsekit_kernels/triton/threshold_blocks.py", "for head in range(line * per_key, (line + 1) * per_key):", "for head in range(line * per_key, line * per_key + 1):", "tests/ops/test_triton_scores.py"),
 ("triton: lists of means forget the window's start", "sparsekit_kernels/triton/threshold_blocks.py", "        begin = tl.load(start", "        begin = 0 * tl.load(start", "tests/ops/test_triton_scores.py"),
 ("triton: lists of means have room for rubbish", "sparsekit_kernels/triton/threshold_blocks.py", "        for first in range(0, width, N):\n            at", "        for first in range(0, 0, N):\n            at", "tests/ops/test_triton_scores.py"),
 ("triton: a row of padding is the nearest", "sparsekit_kernels/triton/threshold_blocks.py", "least = tl.minimum(least, tl.min(tl.where(seen > 0, seen, NOBODY), 1))", "least = tl.minimum(least, tl.min(seen, 1))", "tests/ops/test_triton_scores.py"),
 ("cpu: a query sees the key after its own", "sparsekit_kernels/cpu/window_scores.py", "device=scores.device).triu(1)", "device=scores.device).triu(2)", "tests/ops/test_cpu.py"),
 ("cpu: a distance is a key further", "sparsekit_kernels/cpu/window_scores.py", "before - (rows - 1))", "before - rows)", "tests/ops/test_cpu.py"),
 ("cpu: a later tile of queries starts at the first one's keys", "sparsekit_kernels/cpu/window_scores.py", "len(some), K - W + first", "len(some), K - W", "tests/ops/test_cpu.py"),
 ("cpu: the last block is left out", "sparsekit_kernels/cpu/block_means.py", "x[:, :, whole * size :].mean(2", "x[:, :, whole * size - 1 :].mean(2", "tests/test_grid.py"),
 ("cpu: the smallest within a mass", "sparsekit_kernels/cpu/coverage_count.py", "values.flip(-1) if largest else values", "values", "tests/test_grid.py"),
 ("triton: what is no number scores best", "sparsekit_kernels/triton/threshold_blocks.py", "tl.where(tl.abs(scores) < float(\"inf\"), scores, 0.0)", "scores", "tests/ops/test_triton_scores.py"),
 ("threshold: every head must look for it", "sparsekit/ops/threshold_blocks.py", "math.log(alpha)).any(2)", "math.log(alpha)).all(2)", "tests/stages/test_patterns.py"),
 ("threshold: one head's sinks", "sparsekit/stages/block_threshold.py", "Blocks.of(forced | (open_ & best)", "Blocks.of(open_ & best", "tests/stages/test_patterns.py"),
 ("votes mixed into the padding", "sparsekit/ops/token_votes.py", "avg_pool1d(torch.where(among, scores, 0.0)", "avg_pool1d(scores"),
 ("a token more than the mass allows", "sparsekit/ops/token_budget.py", "under + 1, 0", "under + 2, 0"),
 ("triton: a window begins a key late", "sparsekit_kernels/triton/attend.py", "(slot[None, :] >= start_at[:, None])", "(slot[None, :] > start_at[:, None])"),
 ("triton: the first tile of a window skipped", "sparsekit_kernels/triton/attend.py", "free = lowest // N * N if WINDOW", "free = tl.cdiv(lowest, N) * N if WINDOW"),
 ("triton: lists of a window cropped a tile too far", "sparsekit_kernels/triton/attend.py", "+ N > lowest)", "> lowest)"),
 ("triton: votes of the neighbours to the right", "sparsekit_kernels/triton/token_votes.py", "slot + o - POOL // 2", "slot + o"),
 ("triton: the window counts as votes", "sparsekit_kernels/triton/token_budget.py", "target = (tl.sum(tl.where(x == float(\"inf\"), 0.0, x)", "target = (tl.sum(tl.where(x == float(\"inf\"), 1.0, x)"),
 ("triton: heads take turns with the block means", "sparsekit_kernels/triton/query_aware.py", "head // per * k_h", "head % (H // per) * k_h"),
 ("triton: blocks beyond the end are estimated", "sparsekit_kernels/triton/query_aware.py", "(j < J) & (j < end)", "j < J"),
 ("padding is counted as keys", "sparsekit/problem.py", "keepdim=True), (self.k_pos != PAD).sum(", "keepdim=True), (self.k_pos == self.k_pos).sum("),
 ("votes forget causality", "sparsekit/ops/window_scores.py", "seen = p.reach() if p.causal else", "seen = p.reach() if False else"),
 ("votes of the first queries", "sparsekit/ops/window_scores.py", "row = real - min(voters, Q) +", "row = 0 * real +"),
 ("selected tokens unsorted", "sparsekit/ops/select_tokens.py", "idx.masked_fill(spare, n).sort(-1).values.int()", "idx.masked_fill(spare, n).int()"),
 ("diagonal not forced in top-k", "sparsekit/stages/block_topk.py", "open_ & (best | forced)", "open_ & best"),
 ("means count padding", "sparsekit/ops/block_means.py", "real = (to_heads(pos, heads) != PAD)[..., None]", "real = (to_heads(pos, heads) >= 0)[..., None]"),
 ("streaming forgets the keys after a query", "sparsekit/band.py", "(start < last + window - 1))", "(start < last))", "tests/test_laws.py"),
 ("streaming window one block late", "sparsekit/band.py", "near = (start + m > first)", "near = (start > first)"),
 ("budget forgets the crossing entry", "sparsekit/stages/flex_prefill.py", "return (within + (1 + self.block_size))", "return (within - 1 + self.block_size)"),
 ("main diagonal not forced", "sparsekit/stages/flex_prefill.py", "    forced[..., 0] = math.inf", "    forced[..., 0] += 0"),
 ("the unlike heads are query-aware", "sparsekit/ops/query_aware.py", ".sqrt() < tau", ".sqrt() >= tau"),
 ("block map of the whole grid", "sparsekit/ops/block_map.py", "> last[..., None]", "> last[..., None] + means.shape[2]"),
 ("chunks counted from the start", "sparsekit/stages/flex_prefill.py", "first = (start + (n_k - n_q)).div", "first = (start + (0 * n_k)).div"),
 ("cpu: keys before the square forgotten", "sparsekit_kernels/cpu/attend.py", "            if m:\n", "            if False:\n"),
 ("cpu: square one key late", "sparsekit_kernels/cpu/attend.py", "m = n - 1  #", "m = max(n - 2, 0)  #"),
 ("cpu: any rows are stairs", "sparsekit_kernels/cpu/attend.py", "steps = ((reach == start + row - first[..., None]) | ~inside).all(-1)", "steps = (reach == reach).all(-1)"),
 ("cpu: one call though heads differ", "sparsekit_kernels/cpu/attend.py", "and (shape == shape[:1, :1]).all()", ""),
 ("partly seen blocks taken whole", "sparsekit/plan.py", "whole = (lists < least.div(n", "whole = (lists < most.div(n"),
 ("last partly seen block lost", "sparsekit/plan.py", "(most + n - 1).div(n", "most.div(n"),
 ("cpu: hidden blocks of short lists", "sparsekit_kernels/cpu/attend.py", " & listed.repeat_interleave(n, 1)[:, None]", ""),
 ("cpu: padding rows keep their junk", "sparsekit_kernels/cpu/attend.py", "if (blind := rows[b, x] == 0).any():", "if (blind := rows[b, x] == 0).all():"),
 ("cpu: any single part block is a diagonal", "sparsekit_kernels/cpu/attend.py", "diagonal = m == n and width == 1 and listed.all() and", "diagonal = m == n and width == 1 and listed.all() or"),
 ("cpu: ragged last block not written back", "sparsekit_kernels/cpu/attend.py", "if Q % m:  #", "if False:  #"),
 ("cpu: blocks of another group", "sparsekit_kernels/cpu/attend.py", "return x.unflatten(0, (g, -1)).transpose(1, 2).flatten(0, 1)", "return x.unflatten(0, (-1, g)).transpose(0, 1).transpose(1, 2).flatten(0, 1)"),
 ("cpu: window fill sees the future", "sparsekit_kernels/cpu/sliding_window.py", " & (slot < highs)", ""),
 ("cpu: window fill counts sinks twice", "sparsekit_kernels/cpu/sliding_window.py", " & ((slot < low) | (slot >= high))", ""),
 ("cpu: a wide window forgets its sinks", "sparsekit_kernels/cpu/sliding_window.py", "if far := int(sinks.max()):", "if far := 0:"),
 ("cpu: a run's first keys forgotten", "sparsekit_kernels/cpu/attend.py", "edges = [(int(first), int(inner)), (int(outer), int(end))]", "edges = [(int(outer), int(end))]"),
 ("cpu: a run's last keys one late", "sparsekit_kernels/cpu/attend.py", "(int(outer), int(end))]", "(int(outer) + 1, int(end))]"),
 ("cpu: rows that see nothing see a run's rectangle", "sparsekit_kernels/cpu/attend.py", 'done.o.masked_fill(~sees[:, None], 0.0), done.lse.masked_fill(~sees, float("-inf"))', "done.o, done.lse"),
 ("cpu: any two runs see alike", "sparsekit_kernels/cpu/sliding_window.py", "if (view == view[:1]).all():", "if True:"),
 ("cpu: later runs see as the first ones", "sparsekit_kernels/cpu/sliding_window.py", "if not torch.equal(view, last):", "if not len(last):"),
 ("cpu: padding is a kept query", "sparsekit_kernels/cpu/scatter_tokens.py", "(idx < plan.queries.n)", "(idx <= plan.queries.n)"),
 ("cpu: kept queries get the rows of others", "sparsekit_kernels/cpu/scatter_tokens.py", "rows = (*kept[:2], idx[kept])", "rows = kept"),
 ("cpu: window fill answers kept queries", "sparsekit_kernels/cpu/sliding_window.py", "out.lse.masked_fill_(~asked", "out.lse.masked_fill_(asked"),
 ("cpu: blind rows average what they may not see", "sparsekit_kernels/cpu/__init__.py", "blind = fused(q, k, v, scale, mask=mask), ~visible.any(-1)", "blind = fused(q, k, v, scale, mask=mask), ~visible.any(-1).any(-1, keepdim=True).expand(visible.shape[:-1])"),
 ("triton: ragged block read past the end", "sparsekit_kernels/triton/attend.py", "tl.minimum(start + block_k, K)", "start + block_k"),
 ("triton: a row sees one key too many", "sparsekit_kernels/triton/attend.py", "slot[None, :] < seen[:, None]", "slot[None, :] <= seen[:, None]"),
 ("triton: heads read the wrong group", "sparsekit_kernels/triton/attend.py", "keys = k + b * k_b + (h // R).to(tl.int64)", "keys = k + b * k_b + (h % R).to(tl.int64)"),
 ("triton: lse in base 2", "sparsekit_kernels/triton/attend.py", "tl.where(empty, 1.0, total))) * LN2", "tl.where(empty, 1.0, total)))"),
 ("triton: tiles of small blocks overlap", "sparsekit_kernels/triton/attend.py", "    inside = slot < end\n", "    inside = slot < end + N\n"),
 ("ragged rows are called full", "sparsekit/plan.py", "max(most, 1), 0 < least == most", "max(most, 1), True"),
 ("other keys are called the queries' own", "sparsekit/plan.py", "queries_last=problem.queries_last and alike,", "queries_last=problem.queries_last,"),
 ("a chain shares its queries with other keys", "sparsekit/plan.py", "queries if alike else both(self.keys", "queries if self.queries is self.keys else both(self.keys"),
 ("spans: sinks in the future", "sparsekit/fills.py", "reach.minimum((k < self.sinks)", "reach.maximum((k < self.sinks)"),
 ("triton: gather reads another group", "sparsekit_kernels/triton/gather_tokens.py", "(h * k_own // k_heads).to(tl.int64)", "(h % k_own).to(tl.int64)"),
 ("triton: padding has a position", "sparsekit_kernels/triton/gather_tokens.py", "other=NOWHERE", "other=0"),
 ("triton: the fill answers kept queries", "sparsekit_kernels/triton/scatter_tokens.py", "asked = real & ~kept", "asked = real"),
 ("triton: window one key short", "sparsekit_kernels/triton/scatter_tokens.py", "slot[None, :] >= low[:, None]", "slot[None, :] > low[:, None]"),
 ("triton: sinks before the window forgotten", "sparsekit_kernels/triton/scatter_tokens.py", "range(0, tl.minimum(tl.max(first, 0), start), N)", "range(0, 0, N)"),
 ("triton: indexed rows in a row", "sparsekit_kernels/triton/attend.py", "line = (b * H + h) * n_q + place", "line = (b * H + h) * n_q + row"),
 ("triton: every head reads the keys of the first", "sparsekit_kernels/triton/attend.py", "k_idx += (b * k_heads + h * k_heads // H) * K", "k_idx += b * k_heads * K"),
 ("triton: a descriptor of another group", "sparsekit_kernels/triton/attend.py", "at_b, at_g = b.to(tl.int32), h // R", "at_b, at_g = b.to(tl.int32), h % R"),
 ("a negative scale loses its sign", "sparsekit/problem.py", "(-self.q, -self.scale) if", "(self.q, -self.scale) if", "tests/test_numbers.py"),
 ("a scale of zero is one", "sparsekit/problem.py", "(self.q * 0, 1.0)", "(self.q, 1.0)", "tests/test_numbers.py"),
 ("the shorter road forgets the sign of the scale", "sparsekit/pipeline.py", "if scale is not None and not scale > 0:", "if False:", "tests/test_numbers.py"),
 ("counts beyond int32 wrap", "sparsekit/checks.py", "object.__setattr__(step, name, ALL)", "pass", "tests/test_numbers.py"),
 ("blocks of any size", "sparsekit/checks.py", "if value > LARGEST_SIZE:", "if False:", "tests/test_numbers.py"),
 ("scores of the search overflow in float16", "sparsekit/ops/window_scores.py", "(q.reshape(B, G, -1, D).to(wide) @ p.k.mT.to(wide))", "(q.reshape(B, G, -1, D) @ p.k.mT).to(wide)", "tests/test_numbers.py"),
 ("reference rounds its scores", "sparsekit/ops/attend.py", "(q @ k.mT).mul(p.scale)", "(q @ k.mT).to(p.q.dtype).to(wide).mul(p.scale)", "tests/test_numbers.py"),
 ("cpu: NaN of a hidden key stays", "sparsekit_kernels/cpu/__init__.py", "if done.lse.isnan().any():", "if False:", "tests/test_numbers.py"),
 ("streaming's band ends where the buffer does", "sparsekit/band.py", "+ 1 + (n_k - n_q)", "+ 1 + (problem.k.shape[2] - problem.q.shape[2])", "tests/test_padding.py", "tests/test_numbers.py"),
 ("break-even forgets the fill's own price", "sparsekit/break_even.py", "    return filled + dense * min(", "    return dense * min(", "tests/test_break_even.py"),
 ("break-even forgets that lists are slower", "sparsekit/break_even.py", "pairs *= listed * known.slow", "pairs *= listed", "tests/test_break_even.py"),
 ("break-even forgets to gather and scatter", "sparsekit/break_even.py", "        steps += known.tokens.ms(problem)\n", "        pass\n", "tests/test_break_even.py"),
 ("break-even guesses what streaming says", "sparsekit/break_even.py", 'if type(stage).__name__ == "Streaming":', "if False:", "tests/test_break_even.py"),
 ("a plan that does not pay runs", "sparsekit/pipeline.py", "if saved is None or saved > 0:", "if True:", "tests/test_break_even.py"),
 ("explain does not know of a plan that did not pay", "sparsekit/pipeline.py", "self._lost[problem.q.shape, problem.k.shape] = times", "pass", "tests/test_break_even.py"),
 ("explain blames what is kept for the fill", "sparsekit/break_even.py", "elif self.sparse - self.fixed < self.dense or self.fixed > self.attend:", "elif False:", "tests/test_break_even.py"),
 ("searches in vain are not made up for", "sparsekit/pipeline.py", "        if credit < 0:", "        if False:", "tests/test_break_even.py"),
 ("gains do not pay for searches", "sparsekit/pipeline.py", "credit + (gain(plan, problem) or 0.0) - times", "credit - times", "tests/test_break_even.py"),
 ("a stage of one's own is measured for", "sparsekit/prices.py", "all(type(stage) in built_in for stage in stages)", "True", "tests/test_prices.py"),
 ("ranks measure apart", "sparsekit/prices.py", ' or problem.heads_group is not None', "", "tests/test_prices.py"),
 ("the switch does nothing", "sparsekit/prices.py", 'os.environ.get(SWITCH) == "0"', "False", "tests/test_prices.py"),
 ("two threads measure", "sparsekit/prices.py", "if here in _known or here in _failed or _kept(here):", "if False:", "tests/test_prices.py"),
 ("measuring inherits the caller's modes", "sparsekit/prices.py", "        thread.start()\n        thread.join()", "        thread.run()", "tests/test_prices.py"),
 ("break-even counts padding", "sparsekit/break_even.py", "problem.k.shape[2] if problem.full else", "problem.k.shape[2] if True else", "tests/test_padding.py"),
 ("outputs are constants to a backward pass", "sparsekit/inference.py", "torch.is_grad_enabled() and any(x.requires_grad for x in inputs)", "False", "tests/test_inference.py"),
 ("the inside records a graph", "sparsekit/pipeline.py", "            with torch.no_grad():\n                return self.decide(problem, clock)", "            pass", "tests/test_inference.py"),
 ("a compiled backward pass is computed in the forward pass", "sparsekit/operators.py", "(no_gradients(x, some) for x in ctx.saved_tensors)", "(no_gradients(x, []) for x in ctx.saved_tensors)", "tests/test_inference.py"),
 ("tensors without data are attended to", "sparsekit/execute.py", "    if is_abstract(problem.q):\n        plan.check(problem)", "    if False:\n        plan.check(problem)", "tests/test_inference.py"),
 ("fake tensors have data", "sparsekit/problem.py", "(x.is_meta or isinstance(x, FakeTensor))", "x.is_meta", "tests/test_inference.py"),
 ("mass of sinks counts queries that see nothing else", "sparsekit/sinks.py", "counts = (visible & (one.k_pos[:, 0, None] >= SINKS)).any(-1)", "counts = visible.any(-1)", "tests/test_sinks.py"),
 ("mass of sinks one key too many", "sparsekit/sinks.py", ".softmax(-1)[..., :SINKS].masked_fill(~sink, 0.0)", ".softmax(-1)[..., : SINKS + 1].masked_fill(torch.nn.functional.pad(~sink, (0, 1)), 0.0)[..., 1:]", "tests/test_sinks.py"),
 ("sinks are looked for in another head's plan", "sparsekit/sinks.py", "part = plan.head(h, H)", "part = plan.head(0, H)", "tests/test_sinks.py"),
 ("a plan without sinks is not warned of", "sparsekit/sinks.py", "~part.pairs(one, rows)[", "~one.visible(rows)[", "tests/test_sinks.py"),
 ("one head that rests on sinks does not matter", "sparsekit/sinks.py", " or self.largest >= HEAD_RESTS", "", "tests/test_sinks.py"),
 ("lengths are on the default device", "sparsekit/problem.py", 'torch.tensor(self.k.shape[2], device="cpu")', "torch.tensor(self.k.shape[2])", "tests/test_inference.py"),
 ("equal by shape", "sparsekit/by_value.py", "_key(a) == _key(b) and torch.equal(a, b)", "_key(a) == _key(b)", "tests/test_equality.py"),
 ("a comparison waits where kinds decide", "sparsekit/by_value.py", "if any(type(a) is not type(b) and (_waits(a) or _waits(b)) for a, b in pairs):", "if False:", "tests/test_equality.py"),
 ("triton: unseen keys count in the first pass", "sparsekit_kernels/triton/window_scores.py", "        if end > sure:", "        if end > sure + N:"),
 ("triton: a window row sees one key too many", "sparsekit_kernels/triton/window_scores.py", "(key[:, None] < tl.load(last + at + m))", "(key[:, None] <= tl.load(last + at + m))"),
 ("triton: diagonals folded the wrong way", "sparsekit_kernels/triton/window_scores.py", "key = slot - (R - 1) + r", "key = slot - r"),
 ("triton: parts of a long window lost", "sparsekit_kernels/triton/window_scores.py", "for x in range(per_head * R):", "for x in range(R):"),
 ("triton: NaN rows give NaN to their keys", "sparsekit_kernels/triton/window_scores.py", "p = tl.where(p >= 0.0, tl.minimum(p, 1.0), 0.0)", "p = p + 0.0"),
 ("triton: NaN is no largest entry", "sparsekit_kernels/triton/topk_mask.py", "return tl.where(x != x, float(\"inf\"), x)", "return x"),
 ("triton: -0 below 0", "sparsekit_kernels/triton/topk_mask.py", "bits = tl.where(x == 0.0, 0, bits)  # -0 is 0", "bits = tl.where(x == 0.0, bits, bits)"),
 ("triton: the last of equal entries win", "sparsekit_kernels/triton/topk_mask.py", "(inside & (rank <= spare))", "(inside & (rank > within - spare))"),
 ("triton: ties forgotten at a step", "sparsekit_kernels/triton/topk_mask.py", "rank = tied + tl.cumsum", "rank = tl.cumsum"),
 ("triton: the search ends at two entries", "sparsekit_kernels/triton/topk_mask.py", "(upward - above > 1)", "(upward - above > 2)"),
 ("triton: selected tokens overwrite at a step", "sparsekit_kernels/triton/select_tokens.py", "at = filled + tl.cumsum", "at = tl.cumsum"),
 ("triton: short rows of a choice not padded", "sparsekit_kernels/triton/select_tokens.py", "tl.store(idx + at, n, mask=at < width)", "tl.store(idx + at, n, mask=at < filled)"),
 ("triton: equal entries fit once too often", "sparsekit_kernels/triton/coverage_mask.py", "tl.ceil(fit) - 1 if SMALLEST", "tl.ceil(fit) if SMALLEST"),
 ("triton: equal entries never fit", "sparsekit_kernels/triton/coverage_mask.py", "if low == high:", "if low > high:"),
 ("triton: block means run into the next block", "sparsekit_kernels/triton/block_means.py", "inside = (slot < n) & (slot < first + size)", "inside = slot < n"),
 ("triton: block means count padding", "sparsekit_kernels/triton/block_means.py", "count += tl.sum(real.to", "count += tl.sum(inside.to"),
 ("triton: slashes of the chunk's last block lost", "sparsekit_kernels/triton/vertical_slash_blocks.py", "slashes + head + last - j", "slashes + head + first - j"),
 ("triton: block lists see the future", "sparsekit_kernels/triton/vertical_slash_blocks.py", "open_ = j <= last", "open_ = j < J"),
 ("triton: rows that see nothing hide whole blocks", "sparsekit_kernels/triton/seen_blocks.py", "tl.where(seen > 0, seen, NOBODY)", "seen"),
 ("triton: equal entries are not counted", "sparsekit_kernels/triton/coverage_count.py", "above + tl.minimum(spare, within)", "above"),
 ("triton: equal entries of shares are not counted", "sparsekit_kernels/triton/coverage_count.py", "above + tl.minimum(spare, equal)", "above"),
 ("triton: a share overwrites equal entries of those before", "sparsekit_kernels/triton/select_tokens.py", "filled += tl.minimum(tied, spare)", "filled += 0"),
 ("triton: shares that nothing fills are not padded", "sparsekit_kernels/triton/select_tokens.py", "range(target + part * N, width", "range(target + (part + 1) * N, width"),
 ("triton: shares forget the mass above", "sparsekit_kernels/triton/coverage_mask.py", "total = mass + tl.sum(tl.where(bins[None, :] >= bins", "total = tl.sum(tl.where(bins[None, :] >= bins"),
 ("own: a compiled call keeps the class of before", "sparsekit/registry.py", "    return len(_replaced)", "    return 0", "tests/test_own.py::test_a_compiled_call_runs_the_newest_class"),
 ("own: a stage with a name counts as built in", "sparsekit/pipeline.py", "self._spec is not None and is_built_in(self.stages)", "self._spec is not None", "tests/test_own.py::test_a_stage_of_ones_own_with_a_name_is_not_built_in"),
 ("own: of two packages with a name the first wins", "sparsekit/registry.py", "    if others:\n", "    if False:\n", "tests/test_own.py::test_a_name_that_an_installed_package_has_is_taken"),
 ("own: another class takes a name", "sparsekit/registry.py", "return None if same else", "return None if True else", "tests/test_own.py::test_a_name_is_taken_by_another_class_and_not_by_the_same_one_again"),
 ("own: the law of padding asks nothing", "sparsekit/testing/laws.py", "torch.equal(long.pairs(padded)[:, :, :n, :n], plan.pairs(p))", "True", "tests/test_own.py::test_a_stage_that_breaks_a_law_is_told_which"),
 ("own: the law of the future asks nothing", "sparsekit/testing/laws.py", "(listed & ~seen)", "(listed & ~listed)", "tests/test_own.py::test_a_stage_that_breaks_a_law_is_told_which"),
 ("own: the law of sinks asks nothing", "sparsekit/testing/laws.py", "p.k_pos < sinks", "p.k_pos < 0", "tests/test_own.py::test_a_stage_that_breaks_a_law_is_told_which"),
 ("rows that are read are taken for unread", "sparsekit/execute.py", "loose = plan.queries is not None and problem.full", "loose = True", "tests/test_padding.py"),
 ("padding that plain torch reads is not written", "sparsekit/execute.py", "loose and plan.blocks is None and _by_tiles(problem, backend)", "loose", "tests/test_padding.py"),
 ("triton: padding near kept rows is not written", "sparsekit_kernels/triton/gather_tokens.py", "tl.program_id(0) * ROWS - NEAR", "tl.program_id(0) * ROWS - 1"),
 ("triton: a share forgets equal entries before it", "sparsekit_kernels/triton/select_tokens.py", "    tied = tl.sum(inside, 0)\n", "    tied = 0 * tl.sum(inside, 0)\n"),
 ("triton: a share forgets larger entries before it", "sparsekit_kernels/triton/select_tokens.py", "filled = tl.sum(above, 0) +", "filled ="),
 ("triton: rubbish after the last selected", "sparsekit_kernels/triton/select_tokens.py", "mask=(slot >= tl.minimum(kept, n)) & (slot < width)", "mask=slot < 0"),
 ("triton: of equal scores the last win", "sparsekit_kernels/triton/topk_mask.py", "    if upward != target:\n        high, within = low,", "    if upward < 0:\n        high, within = low,"),
 ("triton: votes that equal the bound are forgotten", "sparsekit_kernels/triton/token_budget.py", " + tl.minimum(spare, within)\n    return tl.where", "\n    return tl.where"),
 ("flash: empty lists of padding rows answer", "sparsekit_kernels/flash/attend.py", "    if not p.full and not p.loose:\n", "    if False:\n"),
 ("flash: hidden blocks are listed", "sparsekit_kernels/flash/attend.py", "lists = whole + part, blocks", "lists = blocks.counts, blocks"),
 ("flash: other keys than queries are taken", "sparsekit_kernels/flash/attend.py", "if ((reach == expected) | (q_pos == PAD)).all():", "if True:"),
 ("cpu: scale forgotten", "sparsekit_kernels/cpu/__init__.py", "attn_mask=mask, scale=scale)", "attn_mask=mask)"),
 ("window one key too wide", "sparsekit/problem.py", "seen & (k > q - self.sliding_window)", "seen & (k >= q - self.sliding_window)"),
 ("start forgets the window", "sparsekit/problem.py", "if self.sliding_window is None:\n            return torch.zeros_like(reach)", "if True:\n            return torch.zeros_like(reach)"),
 ("work forgets the window", "sparsekit/plan.py", "if short.sliding_window is not None:", "if False:"),
 ("window of the problem forgotten by the fill's counts", "sparsekit/fills.py", "if problem.sliding_window is not None:", "if False:"),
 ("cpu: blocks before the window are whole", "sparsekit_kernels/cpu/attend.py", "(lists * n >= most)", "(lists * n >= least)"),
 ("cpu: blocks at the window's edge cropped", "sparsekit_kernels/cpu/attend.py", "((lists + 1) * n > least)", "(lists * n >= least)"),
 ("cpu: a window's edge is a diagonal", "sparsekit_kernels/cpu/attend.py", "if diagonal and (first[rows] <= key[:, :1]).all():", "if diagonal:"),
 ("cpu: sinks before the window", "sparsekit_kernels/cpu/sliding_window.py", " & (slot >= start)", ""),
 ("window scores of keys before the window", "sparsekit/ops/window_scores.py", "scores.masked_fill_(torch.arange(K, device=p.q.device) < first, float(\"-inf\"))", "pass"),
 ("window scores cut a key too many", "sparsekit/ops/window_scores.py", "min(rows + p.sliding_window - 1, p.k.shape[2])", "min(rows + p.sliding_window - 2, p.k.shape[2])"),
 ("window scores: columns put at the beginning", "sparsekit/ops/window_scores.py", "(0, before) if i else (before, 0)", "(0, before)"),
 ("window scores: ragged rows cut as full ones", "sparsekit/ops/window_scores.py", "if p.sliding_window is None or not (p.full and p.queries_last):", "if p.sliding_window is None:"),
 ("triton: keys before the window count in the first pass", "sparsekit_kernels/triton/window_scores.py", "scores = tl.where(slot >= tl.load(first + at + x + m)[:, None], scores, -float(\"inf\"))", "pass"),
 ("triton: keys before the window have a probability", "sparsekit_kernels/triton/window_scores.py", "p = tl.where(key[:, None] >= tl.load(first + at + m), p, 0.0)", "pass"),
 ("triton: a tile before the window holds zeros", "sparsekit_kernels/triton/window_scores.py", "top.fill_(-math.inf)", "pass"),
 ("triton: a tile at the window's edge is left out", "sparsekit_kernels/triton/window_scores.py", "tl.where(end > tl.load(lowest + tl.program_id(1)), lanes, 0)", "tl.where(end > tl.load(lowest + tl.program_id(1)) + N, lanes, 0)"),
 ("token coverage drops what its probe has not seen", "sparsekit/stages/token_coverage.py", "self.tau == 0 or p.sliding_window is not None or", "self.tau == 0 or"),
 ("block ranges begin before the window", "sparsekit/problem.py", "return (start // size).minimum(end), end, edge", "return torch.zeros_like(end), end, edge", "tests/test_problem.py"),
 ("block top-k spends its budget before the window", "sparsekit/stages/block_topk.py", "open_ = (block >= first) & (block < end)", "open_ = block < end"),
 ("the diagonal begins a block late", "sparsekit/problem.py", "edge = ((least - 1) // size).minimum(end)", "edge = (least // size).minimum(end)", "tests/test_problem.py"),
 ("block top-k lists too short under a window", "sparsekit/stages/block_topk.py", "(p.sliding_window + m - 2) // m + 2)", "(p.sliding_window + m - 2) // m // 2)"),
 ("streaming lists blocks before the window", "sparsekit/band.py", "mask = mask & (start + m > problem", "_ = mask & (start + m > problem"),
 ("streaming gives up under a wider window", "sparsekit/stages/streaming.py", "problem.sliding_window <= self.window", "problem.sliding_window <= self.window + 2"),
 ("flex: the first block costs a vertical the probe sees", "sparsekit/stages/flex_prefill.py", "take = take + torch.stack([before > 0, torch.zeros_like(before > 0)])", "pass"),
 ("flex: the map holds blocks before the window", "sparsekit/ops/block_map.py", "        hidden = hidden | (j < to_heads(first, H)[..., None])", "        pass"),
 ("triton: a map holds blocks before the window", "sparsekit_kernels/triton/block_map.py", "                seen = (keys[None, :] >= begin[:, None]) & (", "                seen = ("),
 ("triton: a map's total forgets an earlier maximum", "sparsekit_kernels/triton/block_map.py", "total = total * tl.exp(top - safe) +", "total = total +"),
 ("triton: rows of padding count in a map", "sparsekit_kernels/triton/block_map.py", "mask=row < I, other=-1) >= 0).to", "mask=row < I, other=-1) >= -1).to"),
 ("triton: a map in the other heads", "sparsekit_kernels/triton/block_map.py", "wanted = tl.load(heads + line) != 0", "wanted = tl.load(heads + line) == 0"),
 ("flex: the estimate looks before the window", "sparsekit/stages/flex_prefill.py", "vertical, blocks = vertical.gather(2, at), blocks - before", "vertical = vertical.gather(2, at)"),
 ("transformers: a static cache's offset is read late", "sparsekit/integrations/transformers/masks.py", 'arguments["q_offset"] = offset.clone()', 'arguments["q_offset"] = offset'),
 ("transformers: a static cache's empty slots are keys", "sparsekit/integrations/transformers/attention.py", "self.key[:, :, : question.keys], self.value[:, :, : question.keys]", "self.key, self.value"),
 ("transformers: padding of the first queries", "sparsekit/integrations/transformers/masks.py", "held[:, None, -queries:]", "held[:, None, :queries]"),
 ("transformers: padding of dropped keys", "sparsekit/integrations/transformers/masks.py", "held = real[:, self.first :]", "held = real[:, : self.keys]"),
 ("transformers: padding rows stay out", "sparsekit/integrations/transformers/attention.py", "padding.decompress(output)", "output"),
 ("transformers: the window is forgotten", "sparsekit/integrations/transformers/masks.py", "(window,) = values", "window = None"),
 ("transformers: the scale is forgotten", "sparsekit/integrations/transformers/attention.py", "p = Problem.of(q, k, v, scale=scale, sliding_window=rows.window)", "p = Problem.of(q, k, v, sliding_window=rows.window)"),
 ("transformers: sinks push the wrong way", "sparsekit/integrations/transformers/attention.py", "torch.sigmoid(out.lse - sinks", "torch.sigmoid(out.lse + sinks"),
 ("transformers: bounds of packed sequences unread", "sparsekit/integrations/transformers/attention.py", "    sequences = call.packed() or question.sequences\n    if sequences is not None:\n        yield", "    sequences = question.sequences\n    if sequences is not None:\n        yield"),
 ("transformers: positions of the buffer", "sparsekit/integrations/transformers/masks.py", "place = real.cumsum(-1) - 1 if window is None else slot - begin[:, None]", "place = slot"),
 ("transformers: a short row keeps the window of a long one", "sparsekit/integrations/transformers/masks.py", "covered = self.window is not None and stop - max(start, self.first) <= self.window", "covered = False", "tests/integrations/test_alone.py"),
 ("transformers: a short row runs the stages of a long one", "sparsekit/integrations/transformers/masks.py", "kinds.setdefault((covered, n >= least), [])", "kinds.setdefault((covered, True), [])", "tests/integrations/test_alone.py"),
 ("transformers: groups of rows come back in their own order", "sparsekit/integrations/transformers/attention.py", "place = torch.cat(named).argsort()", "place = torch.cat(named)", "tests/integrations/test_alone.py"),
 ("transformers: a draft is a prefill", "sparsekit/integrations/transformers/attention.py", "question.keys > new and new <= DECODE", "False", "tests/integrations/test_traced.py::test_the_verification_of_a_draft_is_decode", "tests/integrations/test_traced.py::test_one_number_tells_decode_from_a_prefill"),
 ("transformers: a short prompt is decode", "sparsekit/integrations/transformers/attention.py", "question.keys > new and new <= DECODE", "new <= DECODE", "tests/integrations/test_traced.py::test_one_number_tells_decode_from_a_prefill", "tests/integrations/test_transformers.py"),
 ('transformers: a model without additive masks gets true and false', 'sparsekit/integrations/transformers/masks.py', 'torch.bool if _form(arguments) == "sdpa" else arguments["dtype"]', 'torch.bool', "tests/integrations/test_odd_models.py"),
 ('transformers: a mask has no shape', 'sparsekit/integrations/transformers/masks.py', '1, arguments["q_length"], arguments["kv_length"]', '1, 1, 1'),
 ('transformers: a cut mask is of the first queries', 'sparsekit/integrations/transformers/masks.py', 'carrier.arguments["q_offset"] + before', 'carrier.arguments["q_offset"]'),
 ("transformers: a layer that goes by the name is taken", "sparsekit/integrations/transformers/sparsify.py", "            if decides_by_name(module)\n", "            if False\n"),
 ("transformers: what asks no interface is taken", "sparsekit/integrations/transformers/interface.py", "isinstance(f.__globals__.get(name), AttentionInterface)", "True"),
 ("transformers: a tower is changed with the decoder", "sparsekit/integrations/transformers/sparsify.py", "outer = {part for name in names for part in _outer(name)}", "outer = set(modules)"),
 ("transformers: a flag beside a mask means both ways", "sparsekit/integrations/transformers/attention.py", "    return flag or _is_eager(call) or", "    return call.is_causal is not False or", "tests/integrations/test_odd_models.py"),
 ("transformers: a decoder with an encoder's flag is always causal", "sparsekit/integrations/transformers/attention.py", "    return flag or _is_eager(call) or", "    return True or", "tests/integrations/test_odd_models.py"),
 ('transformers: a look serves another pipeline', 'sparsekit/integrations/transformers/attention.py', 'id(pipeline), id(heads_group), id', 'id(heads_group), id', 'tests/integrations/test_looks.py'),
 ('transformers: a look serves another config', 'sparsekit/integrations/transformers/attention.py', 'id(config), type(module)', 'type(module)', 'tests/integrations/test_looks.py'),
 ('transformers: a look serves another class', 'sparsekit/integrations/transformers/attention.py', 'type(module), getattr(module, "is_causal"', 'getattr(module, "is_causal"', 'tests/integrations/test_looks.py'),
 ('transformers: a look serves the other direction', 'sparsekit/integrations/transformers/attention.py', 'getattr(module, "is_causal", True), call.is_causal,', 'call.is_causal,', 'tests/integrations/test_looks.py'),
 ('transformers: a look serves other queries', 'sparsekit/integrations/transformers/attention.py', 'call.query.shape, call.key.shape, *kwargs', 'call.key.shape, *kwargs', 'tests/integrations/test_looks.py'),
 ('transformers: a look serves other keys', 'sparsekit/integrations/transformers/attention.py', 'call.query.shape, call.key.shape, *kwargs', 'call.query.shape, *kwargs', 'tests/integrations/test_looks.py'),
 ('transformers: a look serves other arguments', 'sparsekit/integrations/transformers/attention.py', '*kwargs, *map(id, kwargs.values()),', '*kwargs,', 'tests/integrations/test_looks.py'),
 ('transformers: what a look knows by identity may go', 'sparsekit/integrations/transformers/attention.py', '= _judge(call, pipeline, heads_group), pipeline, heads_group, config, kwargs', '= (_judge(call, pipeline, heads_group),)', 'tests/integrations/test_looks.py'),
 ('transformers: one packed row is every packed row', 'sparsekit/integrations/transformers/attention.py', '("packed", *map(id, said))', '"packed"', 'tests/integrations/test_looks.py'),
 ("transformers: what stood below is not handed on", "sparsekit/integrations/transformers/sparsify.py", "if (heir := self._heir(slot)) is None:", "if True:"),
 ("transformers: a dropped handle stays", "sparsekit/integrations/transformers/sparsify.py", "for change in reversed(self._below) if abandoned else ():", "for change in ():"),
 ("transformers: left once of twice gives the model back", "sparsekit/integrations/transformers/sparsify.py", "        if self._depth <= 0:\n            self._undo", "        if True:\n            self._undo"),
 ("transformers: a copy is dense", "sparsekit/integrations/transformers/attention.py", "return Layer(self.pipeline, None, self.heads_group,", "return Layer(None, None, self.heads_group,", "tests/integrations/test_given_back.py"),
 ("transformers: a backward pass goes through", "sparsekit/integrations/transformers/attention.py", "        o = attend()\n    return inference_only(o, call.query, call.key, call.value)", "        o = attend()\n    return o"),
 ("an old name is not warned of", "sparsekit/former_names.py", "        _warn(where, old, new)", "        pass", "tests/test_former_names.py"),
 ("an old name is dropped", "sparsekit/former_names.py", "new_names.get(name, name): value for", "name: value for", "tests/test_former_names.py"),
 ("an old pickle has the default", "sparsekit/former_names.py", "_by_new_names(cls.__name__, new_names, state)", "state", "tests/test_former_names.py"),
 ("the command line keeps old names to itself", "sparsekit/cli.py", 'warnings.filterwarnings("default", "sparsekit:", DeprecationWarning)', "pass", "tests/test_former_names.py"),
 ("old records keep old names", "sparsekit/evaluation/records.py", "yield with_new_names(record)", "yield record", "tests/test_former_names.py"),
]
# fmt: on
INTEGRATION = "tests/integrations"
JUDGES = {
    "sparsekit/integrations/transformers/sparsify.py": (
        f"{INTEGRATION}/test_given_back.py", f"{INTEGRATION}/test_odd_models.py", f"{INTEGRATION}/test_arguments.py",
    ),
    "sparsekit/integrations/transformers/interface.py": (
        f"{INTEGRATION}/test_arguments.py", f"{INTEGRATION}/test_odd_models.py",
    ),
    "sparsekit/integrations": (
        f"{INTEGRATION}/test_transformers.py", f"{INTEGRATION}/test_alone.py", f"{INTEGRATION}/test_odd_models.py",
    ),
    "sparsekit_kernels/triton/attend.py": ("tests/ops/test_triton.py", "tests/ops/test_triton_scores.py"),
    "sparsekit_kernels/triton/gather_tokens.py": ("tests/ops/test_triton.py", "tests/ops/test_triton_scores.py"),
    "sparsekit_kernels/triton/scatter_tokens.py": ("tests/ops/test_triton.py", "tests/ops/test_triton_scores.py"),
    "sparsekit_kernels/triton": ("tests/ops/test_triton_scores.py", "tests/ops/test_triton.py"),
    "sparsekit_kernels/flash": ("tests/ops/test_flash.py",),
    "": (
        "tests/test_laws.py", "tests/test_window.py", "tests/test_grid.py", "tests/stages", "tests/ops/test_cpu.py",
        "tests/test_numbers.py", "tests/test_padding.py", "tests/test_equality.py", "tests/test_inference.py",
    ),
}  # fmt: skip
ROOT = pathlib.Path(__file__).parent.parent
JOBS = int(os.environ.get("JOBS", "2"))
LIMIT_S = 900  # for one run of pytest


def judges(fault: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tests that must catch a fault: its own, or those of its file."""
    _, file, _, _, *own = fault
    return tuple(own) or next(tests for package, tests in JUDGES.items() if file.startswith(package))


def laws(fault: tuple[str, ...]) -> str:
    """Run the judges on a copy with the fault; return "passed", "failed", or in words how else pytest ended."""
    name, file, right, wrong, *_ = fault
    with tempfile.TemporaryDirectory() as tmp:
        copy = pathlib.Path(tmp, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "model.safetensors"))
        path = copy / file
        text = path.read_text()
        if right and text.count(right) != 1:
            raise SystemExit(f"fault {name!r} no longer fits {file}: its text stands there {text.count(right)} times")
        path.write_text(text.replace(right, wrong) if right else text)
        command = [sys.executable, "-m", "pytest", "-qx", "-Wignore", "-k", "not compiles", *judges(fault)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy)}
        environment["SPARSEKIT_HYPOTHESIS"] = "faults"  # this profile stops at the first failure and does not shrink it
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            code = subprocess.run(command, cwd=copy, env=environment, timeout=LIMIT_S, **quiet).returncode
        except subprocess.TimeoutExpired:
            return f"did not end in {LIMIT_S} s"
        return {0: "passed", 1: "failed"}.get(code, f"pytest ended with {code}")


def main(words: list[str]) -> int:
    chosen = [f for f in FAULTS if all(w in f[0] for w in words)]
    if not chosen:
        raise SystemExit(f"no fault has {' '.join(words)!r} in its name")
    every = dict.fromkeys(test for fault in chosen for test in judges(fault))
    if (end := laws(("none", "README.md", "", "", *every))) != "passed":
        raise SystemExit(f"the tests without any fault: {end}; mend that first")
    missed = 0
    with ThreadPoolExecutor(JOBS) as pool:
        for fault, end in zip(chosen, pool.map(laws, chosen), strict=True):
            # only a failed test catches a fault; any other end is printed as missed
            print("caught" if end == "failed" else f"MISSED ({end})", fault[0], flush=True)
            missed += end != "failed"
    print(f"{len(chosen) - missed} passed, {missed} failed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
