"""Tests of `sparsify`: setting pipelines, restoring the model, and messages."""

import json
import warnings

import pytest
import torch
from closeness import error, no_worse
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

import sparsekit as sk
from bench.transformers_matrix import (
    STACKED,
    build,
    chunks,
    ids,
    left_padded,
    packed,
    reference,
    static_cache,
    whole,
)
from sparsekit import Pipeline, Plan, Problem
from sparsekit.dispatch import no_gpu_kernel
from sparsekit.integrations.transformers import attention, load_pipeline, register, save_pipeline, sparsify
from sparsekit.integrations.transformers.masks import Carrier, Question, mask
from sparsekit.problem import PAD

LOCAL = "streaming(sinks=1, window=8, block_size=8)"


@pytest.fixture
def llama():
    return build("Llama")


@pytest.fixture
def qwen3():
    """Return a model whose layer 0 has a sliding window of 24 tokens; layers 1 and 2 have none."""
    return build("Qwen3")


def sparse_layers(calls):
    return [call.layer for call in calls if call.plan.blocks is not None]


@torch.no_grad()
def test_a_mapping_chooses_by_layer(llama):
    seen = []
    with sparsify(llama, {0: "dense", "1-2": LOCAL}, watch=seen.append):
        whole(llama)
    assert [call.layer for call in seen] == [0, 1, 2] and sparse_layers(seen) == [1, 2]
    seen.clear()
    with sparsify(llama, {"2": "dense", "default": LOCAL}, watch=seen.append):
        whole(llama)
    assert sparse_layers(seen) == [0, 1]


@pytest.mark.parametrize("layers,sparse", [("1-2", [1, 2]), (0, [0]), ([0, "2"], [0, 2]), ([], [])])
@torch.no_grad()
def test_layers_restrict_one_pipeline(llama, layers, sparse):
    seen = []
    with sparsify(llama, LOCAL, layers=layers, watch=seen.append):
        whole(llama)
    assert sparse_layers(seen) == sparse


@torch.no_grad()
def test_restore_leaves_the_model_as_it_was(qwen3):
    qwen3.set_attn_implementation("eager")
    expected = whole(qwen3)
    handle = sparsify(qwen3, STACKED)
    with sparsify(qwen3, "dense"):
        assert error(whole(qwen3), expected) < 1e-5
    sparse = whole(qwen3)
    assert qwen3.config._attn_implementation == "sparsekit"
    handle.restore()
    handle.restore()
    assert qwen3.config._attn_implementation == "eager"
    assert torch.equal(whole(qwen3), expected) and not torch.equal(sparse, expected)
    register()
    qwen3.set_attn_implementation("sparsekit")
    assert error(whole(qwen3), expected) < 1e-5, "the name alone is dense"


@torch.no_grad()
def test_a_pipeline_saved_beside_the_model_is_found(tmp_path, llama):
    llama.save_pretrained(tmp_path)
    expected = whole(llama)
    with pytest.raises(ValueError, match="there is no sparsekit.json"):
        sparsify(AutoModelForCausalLM.from_pretrained(tmp_path))
    save_pipeline(tmp_path, {"1-2": LOCAL, "default": Pipeline([])})
    assert load_pipeline(tmp_path) == {"1-2": LOCAL, "default": "dense"}
    with sparsify(llama, load_pipeline(tmp_path)):
        sparse = whole(llama)
    loaded, seen = AutoModelForCausalLM.from_pretrained(tmp_path), []
    with sparsify(loaded, watch=seen.append):
        assert torch.equal(whole(loaded), sparse) and sparse_layers(seen) == [1, 2]
    assert error(whole(loaded), expected) < 1e-5
    loaded.set_attn_implementation("sparsekit")
    assert torch.equal(whole(loaded), sparse), "the name alone finds the file"
    with sparsify(loaded, "dense"):
        assert error(whole(loaded), expected) < 1e-5, "what is said outweighs the file"


def test_a_saved_pipeline_is_checked_on_both_ways(tmp_path, llama):
    with pytest.raises(ValueError, match="folder: got"):
        save_pipeline(tmp_path / "none", LOCAL)
    with pytest.raises(ValueError, match="allowed are a number, a range"):
        save_pipeline(tmp_path, {"some": LOCAL})
    with pytest.raises(ValueError, match="position"):
        save_pipeline(tmp_path, "flex_prefil")
    assert not list(tmp_path.iterdir()), "nothing half written"
    (tmp_path / "sparsekit.json").write_text(json.dumps({"pipelines": LOCAL}))
    llama.config.name_or_path = llama.name_or_path = str(tmp_path)
    with pytest.raises(ValueError, match="sparsekit.json: not such a file"):
        sparsify(llama)


@pytest.mark.parametrize(
    "pipeline,message",
    [
        (3, "pipeline: got 3; allowed are a Pipeline, a spec"),
        ("flex_prefil", "position"),
        ({7: "dense"}, "layer 7, but the model has 0 to 2"),
        ({"1-2": "dense", 2: "dense"}, "layer 2 is named twice"),
        ({"2-1": "dense"}, "allowed are a number, a range"),
        ({"some": "dense"}, "allowed are a number, a range"),
    ],
)
def test_bad_pipelines_are_named(llama, pipeline, message):
    with pytest.raises(ValueError, match=message):
        sparsify(llama, pipeline)
    assert llama.config._attn_implementation == "sdpa", "nothing was half done"


def test_bad_layers_are_named(llama):
    with pytest.raises(ValueError, match="layer 3, but the model has 0 to 2"):
        sparsify(llama, LOCAL, layers=[1, 3])
    with pytest.raises(ValueError, match="layers: got 1 beside a mapping"):
        sparsify(llama, {1: LOCAL}, layers=1)


def test_a_backward_pass_through_a_sparse_layer_is_refused_and_training_mode_too(llama):
    """Evaluation without torch.no_grad() runs, but its backward pass raises instead of giving wrong gradients."""
    with sparsify(llama, LOCAL):
        with torch.no_grad():
            expected = whole(llama)
        logits = whole(llama)
        assert torch.equal(logits, expected) and logits.requires_grad
        with pytest.raises(ValueError, match=r"a backward pass .*torch.no_grad\(\)"):
            logits.sum().backward()
        with torch.no_grad(), pytest.raises(ValueError, match="training mode"):
            whole(llama.train())
    llama.eval()
    with sparsify(llama, Pipeline([STACKED], break_even=1000)):  # short prompts run dense, by one prepared kernel
        with pytest.raises(ValueError, match="a backward pass"):
            whole(llama).sum().backward()
    llama.zero_grad()
    with sparsify(llama, "dense"):
        whole(llama).sum().backward()
    assert llama.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_what_runs_dense_is_said_once_with_layer_and_reason():
    model = Gemma2ForCausalLM(Gemma2Config(**build("Llama").config.to_diff_dict() | {"head_dim": 16})).eval()
    with sparsify(model, LOCAL) as handle:
        with pytest.warns(UserWarning, match=r"layer 0 \(Gemma2Attention\) runs dense: its scores have a softcap"):
            whole(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            whole(model)
    assert set(handle.dense) == {0, 1, 2}


@torch.no_grad()
def test_a_named_backend_that_cannot_runs_dense_with_its_reason(llama):
    expected = whole(llama)
    with (
        sparsify(llama, f"{LOCAL} | attend(backend='flash')") as handle,
        pytest.warns(match="flash: it needs an NVIDIA GPU"),
    ):
        assert error(whole(llama), expected) < 1e-5
    assert "flash: it needs an NVIDIA GPU" in handle.dense[2]


def test_what_no_gpu_kernel_attends_is_refused_with_all_reasons():
    small, wide = (torch.randn(1, 1, 16, D) for D in (16, 512))
    assert no_gpu_kernel(Problem.of(small, small, small), Plan()) is None
    reason = no_gpu_kernel(Problem.of(wide, wide, wide), Plan())
    assert "triton: head dim 512 is larger than 256; " in reason
    assert all(f"; {name}: " in reason for name in ("hopper", "flash"))


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_plain_torch_is_not_taken_unasked():
    config = LlamaConfig(**build("Llama").config.to_diff_dict() | {"head_dim": 512})
    model = LlamaForCausalLM(config).eval().cuda()
    with sparsify(model, LOCAL) as handle, pytest.warns(match="head dim 512"):
        model(ids(1, 90).cuda())
    assert set(handle.dense) == {0, 1, 2}


@pytest.mark.parametrize("first", [0, 3])
def test_a_call_is_no_known_one_where_the_cache_has_dropped_keys(first, monkeypatch):
    """A prepared call takes the first key in the cache for the first token of the sequence, a sink."""
    asked = []
    monkeypatch.setattr(Pipeline, "known_call", lambda *args, **how: asked.append("known"))
    monkeypatch.setattr(Pipeline, "dense_kernel", lambda *args, **how: asked.append("dense"))
    x = torch.randn(1, 2, 8, 4)
    call = attention._Call(None, x, x, x, None, 0.0, None, None, {})
    assert attention._at_once(call, Question(8, first, None, None), Pipeline(), attention.Layer()) is None
    assert asked == ["dense" if first else "known"]


@torch.no_grad()
def test_a_mask_of_the_callers_own_runs_dense_under_it(llama):
    ones = torch.ones(1, 1, 90, 90, dtype=torch.bool)
    own = ones.tril() & (torch.arange(90) % 3 != 1)
    own |= torch.eye(90, dtype=torch.bool)
    expected = llama(ids(1, 90), attention_mask=own).logits
    with sparsify(llama, LOCAL) as handle, pytest.warns(match="a mask of the caller's"):
        assert error(llama(ids(1, 90), attention_mask=own).logits, expected) < 1e-5
    assert len(handle.dense) == 3


@torch.no_grad()
def test_problems_say_what_is_padding_and_where_a_chunk_stands(llama):
    seen = []
    with sparsify(llama, {0: LOCAL}, watch=seen.append):
        left_padded(llama)
        chunks(llama)
        packed(llama)
    padded, first, second, *sequences = [call.problem for call in seen if call.layer == 0]
    assert padded.k.shape[2] == 90 and not padded.full and padded.queries_last
    assert padded.q_pos[0, 0, :53].tolist() == list(range(53)) and (padded.q_pos[0, 0, 53:] == PAD).all()
    assert first.q.shape[2] == first.k.shape[2] == 40
    assert second.q.shape[2:3] + second.k.shape[2:3] == (50, 90)
    assert second.q_pos[1, 0].tolist() == list(range(40, 90)) and (second.k_pos[0, 0, 85:] == PAD).all()
    assert [p.k.shape[2] for p in sequences] == [50, 40] and all(p.full and p.queries_last for p in sequences)


@torch.no_grad()
def test_a_row_that_is_padding_alone_harms_no_other(llama):
    mask_ = torch.ones(2, 60, dtype=torch.long)
    mask_[0] = 0
    with sparsify(llama, STACKED):
        alone = llama(ids(2, 60)[1:]).logits
        both = llama(ids(2, 60), attention_mask=mask_).logits
    assert error(both[1:], alone) < 1e-5 and both.isfinite().all()


@torch.no_grad()
def test_sliding_layers_are_windowed_problems(qwen3):
    seen = []
    with sparsify(qwen3, LOCAL, watch=seen.append):
        whole(qwen3)
        qwen3(ids(1, 20))
        first = qwen3(ids(1, 90)[:, :50], use_cache=True)
        qwen3(ids(1, 90)[:, 50:], past_key_values=first.past_key_values)
    windows = [call.problem.sliding_window for call in seen]
    assert windows == [24, None, None, None, None, None, 24, None, None, 24, None, None], "one over 20 keys is none"
    last = seen[-3].problem
    assert last.k.shape[2] == 23 + 40 and last.k_pos[0, 0, 0] == 27, "the cache keeps what windows reach"


@torch.no_grad()
def test_a_token_stage_leaves_sliding_layers_whole_and_the_stages_after_it_choose_there(qwen3):
    """A layer with a sliding window computes no pair outside of it, and gives no warning."""
    tokens, seen = "token_coverage(tau=0.3, voters=8, pool=3, min_tokens=8, sinks=2)", []
    with sparsify(qwen3, tokens, watch=seen.append) as handle, warnings.catch_warnings():
        warnings.simplefilter("error")
        whole(qwen3)
    assert [call.plan == Plan() for call in seen] == [True, False, False] and not handle.dense
    assert seen[0].problem.sliding_window == 24 and error(seen[0].output.o, sk.oracle(seen[0].problem).o) < 1e-5
    seen.clear()
    with sparsify(qwen3, STACKED, watch=seen.append):
        whole(qwen3)
    sliding = seen[0]
    assert sliding.plan.queries is None and sliding.plan.density(sliding.problem) < 1
    assert error(sliding.output.o, sk.oracle(sliding.problem, sliding.plan).o) < 1e-5


@torch.no_grad()
def test_on_a_cpu_a_dense_layer_is_the_models_own_attention_to_the_bit(llama):
    expected, seen = whole(llama), []
    with sparsify(llama, "dense", watch=seen.append):
        assert torch.equal(whole(llama), expected)
    assert all(call.output is None for call in seen) and len(seen) == 3


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "GPT-OSS", "Gemma 3", "DeepSeek-V3"])
@pytest.mark.parametrize("mode", [whole, left_padded, chunks, packed, static_cache])
@torch.no_grad()
def test_below_break_even_nothing_differs_from_dense(family, mode):
    """Cases include sliding windows, sinks and padding. The second call of a shape runs the kernel alone."""
    model = build(family)
    model.set_attn_implementation(reference(model))
    expected = mode(model)
    with sparsify(model, Pipeline([STACKED], break_even=1000)) as handle:
        for _ in range(2):
            assert error(mode(model), expected) < 1e-5
    assert not handle.dense


@torch.no_grad()
def test_below_break_even_a_layer_calls_the_kernel_alone(llama, monkeypatch):
    with sparsify(llama, Pipeline([STACKED], break_even=1000)):
        expected = whole(llama)
        monkeypatch.setattr(Pipeline, "run", None)
        assert torch.equal(whole(llama), expected)


@pytest.mark.gpu
def test_on_a_gpu_a_dense_layer_attends_by_flash_attention(llama):
    with torch.no_grad():
        truth, model = whole(llama), llama.cuda().bfloat16()
        expected = model(ids(2, 90).cuda()).logits
        calls = []
        with sparsify(model, {0: LOCAL, "default": "dense"}, watch=calls.append) as handle:
            model(ids(2, 90).cuda())
        assert all(call.output is not None for call in calls) and not handle.dense
        with sparsify(model, "dense"):
            found = model(ids(2, 90).cuda()).logits
    no_worse(found.cpu(), expected.cpu(), truth, torch.bfloat16)
    with sparsify(model, "dense"):
        model(ids(2, 90).cuda()).logits.sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_packed_bounds_that_are_not_those_of_the_call_are_named(llama):
    bounds = torch.tensor([0, 50, 120], dtype=torch.int32)
    with sparsify(llama, LOCAL), pytest.raises(ValueError, match="cu_seq_lens_q: got"):
        llama(ids(1, 90), cu_seq_lens_q=bounds)


@torch.no_grad()
def test_packed_numbers_mean_what_bounds_mean(llama):
    said = torch.cat([torch.zeros(50), torch.ones(40)])[None].int()
    positions = torch.cat([torch.arange(50), torch.arange(40)])[None]
    for pipeline in (STACKED, Pipeline()):
        with sparsify(llama, pipeline):
            apart = torch.cat([llama(x).logits for x in ids(1, 90).split([50, 40], 1)], 1)
            assert error(llama(ids(1, 90), position_ids=positions, seq_idx=said).logits, apart) < 1e-5


def test_whatever_a_model_does_with_the_carrier_is_done_with_the_mask():
    asked = dict(batch_size=2, q_length=5, kv_length=5, attention_mask=torch.ones(2, 5).bool(), device="cpu")
    asked["attention_mask"][0, :2] = False
    carrier = mask(**asked)
    whole_ = torch.ones(5, 5).tril().bool() & asked["attention_mask"][:, None, None]
    assert isinstance(carrier, Carrier) and carrier.shape == (2, 1, 5, 5) and carrier.contiguous() is carrier
    assert torch.equal(carrier[..., :3], whole_[..., :3]) and torch.equal(~carrier, ~whole_)
    assert torch.equal(torch.cat([carrier, carrier], 1), torch.cat([whole_, whole_], 1))
    q = torch.randn(2, 3, 5, 4)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    assert torch.equal(sdpa(q, q, q, attn_mask=carrier), sdpa(q, q, q, attn_mask=whole_))


@given(queries=st.integers(2, 8), before=st.integers(0, 4), last=st.integers(1, 8), padding=st.integers(0, 9))
def test_the_last_rows_of_a_carrier_are_those_of_the_mask(queries, before, last, padding):
    keys = before + queries
    real = (torch.arange(keys) >= min(padding, keys - 1)).expand(2, -1)
    carrier = mask(batch_size=2, q_length=queries, kv_length=keys, q_offset=before, attention_mask=real, device="cpu")
    rows = carrier[:, :, -last:]
    expected = torch.ones(keys, keys).tril().bool()[None, None, before:] & real[:, None, None]
    assert isinstance(rows, Carrier) and torch.equal(rows.whole(), expected[:, :, -last:])
    assert rows.question.keys == keys


def test_a_carrier_moves_with_its_question():
    real = torch.ones(2, 5).bool()
    real[0, 0] = False
    carrier = mask(batch_size=2, q_length=5, kv_length=5, attention_mask=real, device="cpu")
    assert carrier.to("cpu") is carrier and carrier.to(torch.bool) is carrier
    moved = carrier.to("meta")
    assert isinstance(moved, Carrier) and moved.device.type == moved.whole().device.type == "meta"
    assert moved.arguments["attention_mask"].device.type == "meta" and moved.whole().shape == (2, 1, 5, 5)
    assert torch.equal(carrier.to(torch.float32), carrier.whole().float()) and not isinstance(carrier.float(), Carrier)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@torch.no_grad()
def test_full_grouped_and_multi_query_heads(key_heads):
    config = LlamaConfig(**build("Llama").config.to_diff_dict() | {"num_key_value_heads": key_heads})
    model, seen = LlamaForCausalLM(config).eval(), []
    expected = whole(model)
    with sparsify(model, "token_coverage(tau=0.0) | block_topk(keep=1.0, block_size=8)"):
        assert error(whole(model), expected) < 1e-5
    with sparsify(model, STACKED, watch=seen.append):
        whole(model)
    assert all(call.problem.k.shape[1] == key_heads for call in seen)
    assert all(error(call.output.o, sk.oracle(call.problem, call.plan).o) < 1e-5 for call in seen)


@torch.no_grad()
def test_a_compiled_decode_is_one_graph(llama):
    from transformers import StaticCache

    def decoded(run):
        cache = StaticCache(config=llama.config, max_cache_len=64)
        llama(ids(1, 40), past_key_values=cache)
        return run(ids(1, 1), past_key_values=cache).logits

    expected = decoded(llama)
    with sparsify(llama, "dense"):
        torch._dynamo.reset()
        assert error(decoded(torch.compile(llama, backend="eager", fullgraph=True)), expected) < 1e-5


@torch.no_grad()
def test_a_prefill_in_one_graph_is_refused_with_what_to_do(llama):
    with sparsify(llama, LOCAL):
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="sparsekit: .* compile without fullgraph=True"):
            torch.compile(llama, backend="eager", fullgraph=True)(ids(1, 40))
