"""Tests that compare drift and calibration with other computations of the same figures, and of schedules."""

import json

import matplotlib.image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from sparsekit import FlexPrefill, Pipeline, Streaming, TokenCoverage, oracle
from sparsekit.calibrate import calibrate, choose, profile_layers
from sparsekit.integrations.transformers import sparsify
from sparsekit.layers import Measured, Schedule, by_layer, by_range, read_pipeline, without_break_even
from sparsekit.plots import draw_profile, draw_schedule

SMALL = dict(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512, pad_token_id=0, eos_token_id=None,
)  # fmt: skip
FAMILIES = {
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=64, n_layer=4, n_head=4, n_positions=512)),
    "Qwen3-MoE": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    ),
}
CANDIDATES = [
    "token_coverage(tau=0.3, voters=8, pool=3, min_tokens=8, sinks=2) | decompress(fill=sliding_window(4, sinks=2))",
    "flex_prefill(gamma=0.7, block_size=8)",
    "streaming(sinks=1, window=8, block_size=8)",
]


def made(family="Llama"):
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


def ids(n, seed=1):
    return torch.randint(1, 64, (n,), generator=torch.Generator().manual_seed(seed))


PROMPTS = [ids(150), ids(50, seed=2)]  # more rows than are sampled, and fewer


@pytest.fixture(scope="module")
def model():
    return made()


@pytest.fixture(scope="module")
def found(model):
    return calibrate(model, PROMPTS, CANDIDATES, target=0.9)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_drift_is_that_of_the_models_own_hidden_states(family):
    model, prompts = made(family), [ids(40), ids(7, seed=2)]
    found = profile_layers(model, prompts)
    assert list(found.drift) == [0, 1, 2, 3]
    changes = {layer: [] for layer in range(3)}  # the model normalizes the output of its last layer
    for prompt in prompts:
        hidden = model(prompt[None], output_hidden_states=True).hidden_states
        for layer in changes:
            before, after = hidden[layer][0].double(), hidden[layer + 1][0].double()
            changes[layer] += ((after - before).norm(dim=-1) / before.norm(dim=-1)).tolist()
    for layer, each in changes.items():
        assert found.drift[layer] == pytest.approx(sum(each) / len(each), rel=1e-4), "every token counts the same"


def test_a_layer_that_changes_nothing_has_no_drift():
    model = made()
    last = model.model.layers[3]
    for linear in (last.self_attn.o_proj, last.mlp.down_proj):
        torch.nn.init.zeros_(linear.weight)
    found = profile_layers(model, [ids(40)], quantile=0.25)
    assert found.drift[3] == 0 and min(found.drift[layer] for layer in (0, 1, 2)) > 0
    assert found.layers == (3,)
    assert found.schedule(CANDIDATES[1]).pipeline == {"0-2": "dense", "3": CANDIDATES[1]}


@pytest.mark.parametrize("quantile,expected", [(0, 0), (0.24, 0), (0.25, 1), (0.5, 2), (0.99, 3), (1, 4)])
def test_the_quantile_is_the_part_of_the_layers(model, quantile, expected):
    found = profile_layers(model, [ids(40)], quantile=quantile)
    assert len(found.layers) == expected
    others = [found.drift[layer] for layer in found.drift if layer not in found.layers]
    assert all(found.drift[layer] < other for layer in found.layers for other in others), "the lowest ones"


def test_the_model_is_as_it_was(model):
    hooks = lambda: sum(len(m._forward_hooks) for m in model.modules())  # noqa: E731
    before = model.config._attn_implementation, hooks()
    profile_layers(model, [ids(16)])
    calibrate(model, [ids(16)], CANDIDATES)
    with pytest.raises(IndexError):  # the model has no such token
        profile_layers(model, [torch.tensor([64])])
    assert (model.config._attn_implementation, hooks()) == before


def test_steps_are_counted(model):
    for work, total in (
        (lambda on_step: profile_layers(model, [ids(16)] * 2, on_step=on_step), 8),
        (lambda on_step: calibrate(model, [ids(16)] * 2, CANDIDATES, on_step=on_step), 24),
    ):
        steps = []
        work(lambda done, of, name: steps.append((done, of)))  # noqa: B023
        assert steps == [(i, total) for i in range(1, total + 1)]


@torch.no_grad()
def test_figures_are_those_of_the_layer_alone_in_a_dense_model(model, found):
    """Check the figures against another computation: one layer sparse, all others dense, by the oracle."""
    figures = {(one.layer, one.pipeline): one for one in found.measured}
    assert len(figures) == len(found.measured) == 4 * 4
    for layer in range(4):
        for spec in CANDIDATES:
            masses, errors, densities = [], [], []
            for prompt in PROMPTS:
                calls = []
                with sparsify(model, {layer: spec}, watch=calls.append):
                    model(prompt[None])
                problem, plan = calls[layer].problem, calls[layer].plan
                dense, sparse = oracle(problem), oracle(problem, plan)
                scores = problem.q.double() @ problem.k.double().repeat_interleave(2, 1).mT * problem.scale
                kept = torch.where(plan.pairs(problem), (scores - dense.lse[..., None]).exp(), 0.0).sum(-1)
                n = len(prompt)
                for rows in (torch.linspace(0, n - 1, min(n, 64)).round().long(), torch.arange(max(n - 64, 0), n)):
                    change = sparse.o[:, :, rows] - dense.o[:, :, rows]
                    masses.append(kept[..., rows].mean().item())
                    errors.append((change.norm() / dense.o[:, :, rows].norm()).item())
                densities.append(plan.density(problem))
            one = figures[layer, Pipeline.from_spec(spec).to_spec()]
            assert one.mass == pytest.approx(min(masses), rel=1e-4), "of the worst prompt and rows"
            assert one.error == pytest.approx(max(errors), rel=1e-4), "of the worst prompt and rows"
            assert one.density == pytest.approx(sum(densities) / 2, rel=1e-6) and one.density < 1 and one.ms > 0


def test_a_candidate_that_changes_nothing_loses_nothing(model):
    same = [Pipeline([TokenCoverage(tau=0.0)]), Pipeline([FlexPrefill(gamma=1.0, tau=0.0)])]
    found = calibrate(model, [ids(64)], [*same, "dense"], target=1.0)
    assert len(found.measured) == 4 * 3, "dense is measured once"
    for one in found.measured:
        assert one.mass == pytest.approx(1.0, abs=1e-12) and one.error < 1e-12 and one.density == 1


def test_short_prompts_are_measured_and_the_specs_stay_as_given(model):
    """Stages run in the measurement even below break-even: dense attention there would seem to have no error."""
    blind = "streaming(sinks=1, window=1, block_size=1) | attend(break_even=100000)"
    found = calibrate(model, [ids(64)], [blind])
    assert {one.pipeline for one in found.measured} == {"dense", blind}
    assert all(one.density < 0.2 for one in found.measured if one.pipeline == blind)
    assert found.pipeline == {"0-3": "dense"}


rows = st.builds(
    Measured,
    layer=st.integers(0, 3),
    pipeline=st.sampled_from(CANDIDATES),
    ms=st.floats(0.1, 10),
    kept=st.just(1.0),
    density=st.just(1.0),
    mass=st.floats(0, 1),
    error=st.floats(0, 1),
)


@given(st.lists(rows, unique_by=lambda one: (one.layer, one.pipeline)), st.floats(0.01, 1))
def test_every_layer_gets_the_fastest_allowed(candidates, target):
    dense = [Measured(layer, "dense", 5.0, 1.0, 1.0, 1.0, 0.0) for layer in range(4)]
    found = choose([*candidates, *dense], range(4), target)
    got = by_layer(found.pipeline, list(range(4)))
    for layer in range(4):
        allowed = [one for one in [*candidates, *dense] if one.layer == layer and one.score >= target]
        fastest = min(one.ms for one in allowed)
        assert found.chosen[layer].ms == fastest and found.chosen[layer].score >= target
        spec = found.chosen[layer].pipeline
        assert got[layer] == (None if spec == "dense" else Pipeline.from_spec(spec)), "the mapping says the same"
    assert found.speed_up >= 1


@given(st.dictionaries(st.integers(0, 12), st.sampled_from(["dense", *CANDIDATES]), min_size=1))
def test_ranges_name_the_same_layers(specs):
    named = by_range(specs)
    read = by_layer(named, list(range(13)))
    for layer in range(13):
        spec = specs.get(layer, "dense")
        assert read[layer] == (None if spec == "dense" else Pipeline.from_spec(spec))
    if set(specs) == set(range(13)):
        assert len(named) == 1 + sum(specs[i] != specs[i + 1] for i in range(12)), "as few names as can be"


def test_a_schedule_is_saved_whole_and_comes_back(tmp_path, model, found):
    path = found.save(tmp_path)
    assert path == tmp_path / "sparsekit.json" and [x.name for x in tmp_path.iterdir()] == ["sparsekit.json"]
    assert Schedule.load(tmp_path) == Schedule.load(path) == found
    written = json.loads(path.read_text())
    assert written["pipeline"] == found.pipeline and len(written["measured"]["layers"]) == 16
    for text in (str(path), str(tmp_path)):
        assert read_pipeline(text) == found.pipeline
    with sparsify(model, read_pipeline(str(path))), torch.no_grad():
        model(ids(64)[None])
    assert read_pipeline("streaming") == Pipeline([Streaming()])


def test_a_schedule_written_by_hand_is_read(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"pipeline": {"0-1": "dense", "default": "streaming"}}')
    assert Schedule.load(path).pipeline == {"0-1": "dense", "default": "streaming"}
    assert Schedule.load(path).speed_up == 1.0
    path.write_text('{"pipeline": "streaming"}')
    assert Schedule.load(path).pipeline == {"default": "streaming"}


@pytest.mark.parametrize(
    "content,message",
    [
        (None, "cannot be read"),
        ("", "is no schedule"),
        ("[]", "is no schedule"),
        ('{"pipelines": {}}', "is no schedule"),
        ('{"pipeline": {"0": "flex_prefil"}}', "there is no 'flex_prefil'"),
        ('{"pipeline": {"0": 3}}', "is no schedule"),
        ('{"pipeline": {}, "measured": {"layers": [{"layer": 1}]}}', "is no schedule"),
    ],
)
def test_a_file_that_is_no_schedule_is_named(tmp_path, content, message):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=f"path: '.*mine.json' .*{message}|path: .*{message}"):
        Schedule.load(path)


def test_always_takes_the_break_even_away():
    short = "streaming | attend(break_even=4096)"
    assert without_break_even(read_pipeline(short)).attend.break_even == 0
    assert [one.attend.break_even for one in without_break_even({"0-1": "dense", "2": short}).values()] == [0, 0]


@pytest.mark.parametrize("prompts", [[], ["text"], [b"bytes"], [[]], [torch.rand(4)], [torch.ones(2, 3).long()]])
def test_prompts_that_are_no_tokens_are_refused(model, prompts):
    for work in (lambda: profile_layers(model, prompts), lambda: calibrate(model, prompts, CANDIDATES)):
        with pytest.raises(ValueError, match="^prompts: got "):
            work()


@pytest.mark.parametrize(
    "work,message",
    [
        (lambda m: profile_layers(m, [ids(4)], quantile=1.1), "quantile: got 1.1"),
        (lambda m: calibrate(m, [ids(4)], [], target=0), "target: got 0"),
        (lambda m: calibrate(m, [ids(4)], ["flex_prefil"]), "there is no 'flex_prefil'"),
        (lambda m: calibrate(m, [ids(4)], [Pipeline([lambda problem: None])]), "has no name in a spec"),
        (lambda m: profile_layers(made().train(), [ids(4)]), "model: got one in training mode"),
    ],
)
def test_bad_settings_are_named(model, work, message):
    with pytest.raises(ValueError, match=message):
        work(model)


def test_pictures_show_the_layers(tmp_path, model, found):
    profile = profile_layers(model, [ids(40)])
    for draw, what in ((draw_profile, profile), (draw_schedule, found)):
        picture = matplotlib.image.imread(draw(what, tmp_path / "x.png"))
        assert picture.shape[0] > 300 and picture.std() > 0.05, "not an empty picture"
        assert [x.name for x in tmp_path.iterdir()] == ["x.png"]
    none = profile_layers(model, [ids(40)], quantile=0)
    blue = lambda p: (matplotlib.image.imread(p)[..., 2] > matplotlib.image.imread(p)[..., 0] + 0.3).mean()  # noqa: E731
    assert blue(draw_profile(profile, tmp_path / "x.png")) > 2 * blue(draw_profile(none, tmp_path / "y.png"))
