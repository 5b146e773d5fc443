"""Tests of errors on the command line: one line and exit code 2, never a traceback, and no silent failure."""

import ast
import codecs
import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import END, byte_tokenizer, save_tiny_llama
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from sparsekit import cli
from sparsekit.calibrate import calibrate, profile_layers
from sparsekit.commands import loading, turns
from sparsekit.commands.positions import learned_positions
from sparsekit.testbed import read_text
from sparsekit.testbed.text import MARKS, as_utf8, no_text

LINE = "Shall I compare thee to a summer's day?\n"
EVERY_TOKEN = "streaming(sinks=1, window=1, block_size=1)"
ENDS = dict(pad_token_id=END, eos_token_id=END, bos_token_id=END)


def command(*words, encoding="utf-8", columns=200):
    """Return the exit code, stdout and stderr of a command, on streams of an encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(streams[0]):
        patch.setattr(sys, "argv", ["sparsekit", *map(str, words)])
        patch.setenv("COLUMNS", str(columns))
        with contextlib.redirect_stderr(streams[1]), pytest.raises(SystemExit) as ended:
            cli.main()
    for stream in streams:
        stream.flush()
    return subprocess.CompletedProcess(words, ended.value.code, *(s.buffer.getvalue().decode() for s in streams))


def refused(*words):
    """Return the one line that a refused command prints."""
    ran = command(*words)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and "Traceback" not in ran.stderr + ran.stdout, ran
    assert "did not expect this error" not in ran.stderr, ran.stderr
    return ran.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a folder with one folder per model."""
    path = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    small = dict(vocab_size=257, **ENDS)
    made = {
        "gpt2": GPT2LMHeadModel(GPT2Config(n_positions=256, n_embd=32, n_layer=3, n_head=2, **small)),
        "bloom": BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=2, **small)),
    }
    for name, model in made.items():
        byte_tokenizer().save_pretrained(path / name)
        model.save_pretrained(path / name)
    save_tiny_llama(path / "llama")
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "poem.txt"
    path.write_text(LINE * 12)  # 480 tokens
    return path


# The length of prompts


TINY = dict(vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=19, n_embd=16, n_layer=2, n_head=2)),
        OPTForCausalLM(OPTConfig(ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=21, **TINY)),
        RobertaForCausalLM(RobertaConfig(intermediate_size=16, max_position_embeddings=23, is_decoder=True, **TINY)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_learned_positions_are_as_many_as_the_model_can_read(model):
    found, model = learned_positions(model.eval(), 50), model.eval()
    with torch.no_grad():
        assert model(torch.full((1, found), 50)).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, found + 1), 50))


def test_computed_positions_have_no_end():
    config = LlamaConfig(intermediate_size=16, max_position_embeddings=8, **TINY)
    assert learned_positions(LlamaForCausalLM(config).eval(), 50) is None


def test_a_prompt_beyond_learned_positions_is_refused_and_what_the_error_advises_runs(models, text, tmp_path):
    words = models / "gpt2", "--prompt-file", text
    how = "--pipeline", EVERY_TOKEN, "--tokens", 64
    said = refused("run", *words, *how)
    assert "480 tokens, with 64 to generate 543 positions; allowed are 256" in said and said.endswith("--most 193\n")
    assert "--most 193" in refused("run", *words, *how, "--most", 194)
    assert command("run", *words, *how, "--most", 193).returncode == 0
    assert "--tokens 128 or less" in refused("run", *words, "--pipeline", EVERY_TOKEN, "--tokens", 300)
    for name, more in (("profile", []), ("calibrate", ["--pipeline", EVERY_TOKEN])):
        out = tmp_path / name
        said = refused(name, *words, *more, "--out", out)
        assert "480 tokens; allowed are 256" in said and said.endswith("--most 256\n") and not out.exists()
        assert command(name, *words, *more, "--out", out, "--most", 256).returncode == 0


def test_a_prompt_beyond_what_the_model_was_made_for_is_warned_of_once(models, text, tmp_path):
    path = tmp_path / "llama"
    save_tiny_llama(path)
    config = json.loads((path / "config.json").read_text()) | {"max_position_embeddings": 400}
    (path / "config.json").write_text(json.dumps(config))
    short = tmp_path / "short.txt"
    short.write_text(LINE)
    files = "--prompt-file", text, "--prompt-file", short
    ran = command("run", path, *files, "--pipeline", EVERY_TOKEN, "--tokens", 5)
    assert ran.returncode == 0 and ran.stderr.count("\n") == 1, ran.stderr
    assert "480 tokens, with 5 to generate 484 positions, and the model was made for 400" in ran.stderr
    ran = command("profile", path, *files, "--out", tmp_path / "out")
    assert ran.returncode == 0 and ran.stderr.count("\n") == 1 and "480 tokens, and the model" in ran.stderr


# Terminals that cannot print every letter


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_answer_is_not_lost_where_the_terminal_lacks_its_letters(models, text, encoding):
    words = "run", models / "llama", "--prompt-file", text, "--pipeline", EVERY_TOKEN, "--tokens", 12
    answers = lambda out: [line for line in out.splitlines() if line.startswith(("dense: ", "sparse: "))]  # noqa: E731
    plain = answers(command(*words).stdout)
    assert any(not line.isascii() for line in plain), "or this shows nothing"
    streams = io.TextIOWrapper(io.BytesIO(), encoding=encoding), io.StringIO()
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["sparsekit", *map(str, words)])
            cli.main()
    streams[0].flush()
    assert ended.value.code == 0 and streams[1].getvalue() == ""
    value = lambda line: ast.literal_eval(line.split(": ", 1)[1])  # noqa: E731  # it undoes the backslashes
    assert [value(a) for a in answers(streams[0].buffer.getvalue().decode(encoding))] == [value(a) for a in plain]


def test_tables_need_no_more_than_ascii():
    bare = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", COLUMNS="200")
    asked = [sys.executable, "-m", "sparsekit", "backends"]
    ran = subprocess.run(asked, capture_output=True, env=os.environ | bare)
    assert ran.returncode == 0 and "window_scores, window, padding" in ran.stdout.decode("ascii"), ran.stderr


# Files that are no text


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), st.sampled_from(sorted(MARKS)))
def test_text_with_a_byte_order_mark_is_decoded_and_the_mark_dropped(text, mark):
    assert as_utf8(mark + text.encode(MARKS[mark]), "x") == text.encode()
    if not any(text.encode().startswith(each) for each in MARKS):
        assert as_utf8(text.encode(), "x") == text.encode()


@given(
    st.sampled_from([b"", *MARKS]), st.binary(max_size=40) | st.text(max_size=20).map(lambda t: t.encode("utf-16-be"))
)
def test_the_first_bad_byte_is_named(mark, data):
    data, why = mark + data, no_text(mark + data)
    if why is None:
        assert "\0" not in as_utf8(data, "x").decode()
        return
    with pytest.raises(ValueError, match=f"^it is not text: {re.escape(why)}; .*convert it"):
        as_utf8(data, "it")
    at = int(re.match(r"byte (\d+) is", why)[1])
    assert no_text(data[:at]) is None and (at == len(data) or no_text(data[: at + 4]) is not None)


BROKEN = {
    "latin.txt": ("caf\xe9 ".encode("latin-1") * 300, "byte 3 is not UTF-8"),
    "bare.txt": ((LINE * 40).encode("utf-16-le"), "byte 1 is a NUL"),
    "binary": (b"\x7fELF\x02\x01\x01\0" + bytes(range(256)) * 8, "byte 7 is a NUL"),
    "cut.txt": (codecs.BOM_UTF16_LE + b"a\0b", "byte 4 is not UTF-16-LE, which its first bytes announce"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_text_is_refused_and_a_model_of_bytes_says_so(name, models, tmp_path):
    file, (data, why) = tmp_path / name, BROKEN[name]
    file.write_bytes(data)
    said = refused("run", models / "llama", "--prompt-file", file, "--pipeline", "dense")
    assert name in said and f"is not text: {why}" in said and "convert it" in said
    for words in (["demo", file], ["eval", "embedded", "--file", file, "--pipeline", "streaming", "--length", "1K"]):
        assert f"is not text: {why}" in refused(*words)
    with pytest.raises(ValueError, match=why):
        read_text(file)
    ran = command("run", "embedded", "--prompt-file", file, "--pipeline", "dense", "--tokens", 1, "--most", 20)
    assert ran.returncode == 0 and f"is not text: {why}; its bytes are read as they are\n" in ran.stderr
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("model", ["embedded", "llama"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_prompt_is_the_same_in_every_encoding(model, encoding, models, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("naïve — 日本語 🙂".encode(encoding))
    loaded = loading.load(model if model == "embedded" else str(models / model), "cpu")
    assert loading.read_prompts([file], loaded.tokenizer) == [list("naïve — 日本語 🙂".encode())]


# The report of what ran


def cells(ran, row):
    return [
        cell.strip() for cell in next(x for x in ran.stdout.splitlines() if x.startswith(f"│ {row}")).split("│")[1:-1]
    ]


@pytest.mark.parametrize(
    "pipeline,why",
    [
        ("dense", "its pipeline is dense"),
        ("token_coverage(tau=0.2, min_tokens=1024)", "its pipeline keeps everything at 480 tokens"),
        (f"{EVERY_TOKEN} | attend(break_even=481)", "480 tokens are below the break-even of 481"),
        (f"{EVERY_TOKEN} | attend(backend='flash')", "flash: it needs an NVIDIA GPU"),
    ],
)
def test_run_says_that_nothing_ran_sparse_and_claims_no_speed_up(pipeline, why, models, text):
    ran = command("run", models / "llama", "--prompt-file", text, "--pipeline", pipeline, "--tokens", 2)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    said = [line for line in ran.stdout.splitlines() if "ran sparse" in line or "ran dense" in line]
    assert len(said) == 1 and said[0].startswith(f"nothing ran sparse in {text}: ") and why in said[0]
    assert cells(ran, "sparse")[3] == "-" and cells(ran, "sparse")[-1] == "1.000" and "beyond noise" not in ran.stdout


def test_run_says_which_layers_ran_dense(models, text, tmp_path):
    file = tmp_path / "some.json"
    wide = "streaming(sinks=1, window=480, block_size=1)"
    file.write_text(json.dumps({"pipeline": {"0": wide, "2": EVERY_TOKEN, "default": "dense"}}))
    words = "run", models / "llama", "--prompt-file", text, "--tokens", 1, "--pipeline"
    ran = command(*words, file)
    keeps = "layer 0: its pipeline keeps everything at 480 tokens"
    assert f"3 of 4 layers ran dense in {text}: {keeps}; layers 1, 3: its pipeline is dense" in ran.stdout
    assert cells(ran, "sparse")[3] != "-"
    assert "ran dense" not in command(*words, EVERY_TOKEN).stdout
    alone = command(*words, EVERY_TOKEN, "--most", 1)
    assert "one token alone is decoded" in alone.stdout and cells(alone, "sparse")[3] == "-"


def timed(*ms):
    return turns.Found([turns.Timed(each, 5.0, [1]) for each in ms], {0: turns.Layer(0.5, 0.5)})


def test_noise_is_not_shown_as_a_speed_up(models, text, monkeypatch):
    shown = lambda dense, sparse: list(turns.table(dense, sparse).columns[3].cells)[1]  # noqa: E731
    near, far = (timed(10, 11, 14), timed(9, 10.5, 12)), (timed(10, 11, 14), timed(5, 6, 5.5))
    assert shown(*near) == "~" and "no difference beyond noise" in turns.how_sure(*near)
    assert shown(*far) == "2.00x" and turns.how_sure(*far) is None, "11 and 5.5"
    assert far[0].spread == (10, 14) and far[1].all_ms == 10.5
    words = "run", models / "llama", "--prompt-file", text, "--pipeline", EVERY_TOKEN, "--tokens", 2
    assert "median of 3" in command(*words).stdout
    monkeypatch.setattr(turns, "LONG", 0.0)
    once = command(*words).stdout
    assert "timed once, because the first token took more than 0 s" in once and "median of 1" in once


# Models that cannot be sparse


@pytest.mark.parametrize("name,more", [("profile", []), ("calibrate", ["--pipeline", EVERY_TOKEN])])
def test_a_model_that_cannot_be_sparse_is_refused_before_anything_is_measured(name, more, models, text, tmp_path):
    out = tmp_path / "out"
    said = refused(name, models / "bloom", "--prompt-file", text, *more, "--out", out)
    assert said.startswith("sparsekit: model: got BloomForCausalLM") and not list(out.glob("*"))


def test_a_model_that_cannot_be_sparse_is_refused_from_python_too(models):
    model = BloomForCausalLM.from_pretrained(models / "bloom").eval()
    for call in (lambda: profile_layers(model, [[1, 2, 3]]), lambda: calibrate(model, [[1, 2, 3]], [EVERY_TOKEN])):
        with pytest.raises(ValueError, match="^model: got BloomForCausalLM"):
            call()
    llama = loading.load(str(models / "llama"), "cpu").model
    assert len(profile_layers(llama, [[5]]).drift) == 4
    with pytest.raises(ValueError, match="^prompts: got 1 of at most 1 tokens"):
        calibrate(llama, [[5]], [EVERY_TOKEN])


# Missing packages


LACKING = {
    "transformers": [
        ("main('run', 'embedded', '--prompt-file', 'x', '--pipeline', 'dense')", "hf"),
        ("main('demo')", "hf"),
        ("main('profile', 'embedded', '--prompt-file', 'x')", "hf"),
        ("main('calibrate', 'embedded', '--prompt-file', 'x', '--pipeline', 'dense')", "hf"),
        ("main('eval', 'embedded')", "hf"),
        ("import sparsekit.integrations.transformers", "hf"),
        ("from sparsekit.testbed import load_model; load_model()", "hf"),
        ("from sparsekit.calibrate import calibrate; calibrate(0, [], [])", "hf"),
    ],
    "matplotlib": [
        ("from sparsekit.plots import draw_profile; draw_profile(0, 'x.png')", "plots"),
        ("main('eval', 'embedded', '--page', 'x.md')", "plots"),
    ],
    "accelerate": [("from sparsekit.commands.loading import load; load('x', 'cpu', device_map='auto')", None)],
    "lm_eval": [("import sparsekit.integrations.lm_eval", "lm-eval")],
}
TRYING = """
import contextlib, io, json, sys, traceback
lacking, codes = json.loads(sys.argv[1])
hidden = [lacking, "huggingface_hub"] if lacking == "transformers" else [lacking]  # it brings the hub
sys.modules.update(dict.fromkeys(hidden))
def main(*words):
    from sparsekit.cli import main
    sys.argv[1:] = words
    main()
for code in codes:
    ended = None
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            exec(code)
        except SystemExit as error:
            ended = error.code
        except BaseException:
            traceback.print_exc()
    print(json.dumps([ended, said.getvalue()]))
"""


@pytest.mark.parametrize("lacking", LACKING)
def test_what_a_base_install_lacks_names_the_extra(lacking, tmp_path):
    """One process tests all code that lacks the same package, because a process takes seconds to start."""
    asked = json.dumps([lacking, [code for code, _ in LACKING[lacking]]])
    ran = subprocess.run([sys.executable, "-c", TRYING, asked], capture_output=True, text=True, cwd=tmp_path)
    for (code, extra), line in zip(LACKING[lacking], ran.stdout.splitlines(), strict=True):
        ended, said = json.loads(line)
        what, typed = f'"sparsekit[{extra}]"' if extra else lacking, code.startswith("main")
        assert said.splitlines()[-1].split(": ", 1)[1] == f"this needs {lacking}: pip install {what}", (code, said)
        assert ended == (2 if typed else None) and (said.count("\n") == 1 if typed else True), code


# Other errors


@pytest.mark.parametrize(
    "error,said",
    [
        (OverflowError("int too big to convert"), "a number is too large"),
        (
            TypeError('at pos 2 "Overflow when unpacking long long\nException raised from x.h:79'),
            "a number is too large",
        ),
        (MemoryError(), "there is not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"), "there is not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        (RecursionError("maximum recursion depth"), "nested too deeply"),
        (IndexError("index out of range in self"), "IndexError: index out of range in self: sparsekit did not expect"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "UnicodeDecodeError: 'utf-8' codec"),
        (KeyError("eager"), "KeyError: 'eager'"),
        (AssertionError(), "AssertionError: sparsekit did not expect"),
        (ValueError("a\nline\x1b[31m"), "sparsekit: a line\\x1b[31m\n"),
        (ValueError("x" * 10**6), "... xxx"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_any_error_is_one_line_and_exit_2(error, said, monkeypatch):
    def app():
        raise error

    monkeypatch.setattr(cli, "app", app)
    ran = command()
    assert ran.returncode == 2 and ran.stdout == "" and ran.stderr.startswith("sparsekit: ") and said in ran.stderr
    assert ran.stderr.count("\n") == 1 and len(ran.stderr) < 1200 and "\x1b" not in ran.stderr
    monkeypatch.setenv("SPARSEKIT_TRACEBACK", "1")
    assert "Traceback" in command().stderr


def test_ctrl_c_is_exit_130_without_a_word(models, text, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load", interrupted)
    ran = command("run", models / "llama", "--prompt-file", text, "--pipeline", "dense")
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


NUMBERS = [-1, 0, 2**31, 2**31 - 1, 2**62 + 1, 2**63 - 1, 2**63, 10**20 - 1, 10**400]
PLACES = [
    "streaming(block_size={})", "streaming(window={})", "streaming(sinks={})", "block_topk(block_size={})",
    "block_topk(keep={})", "flex_prefill(block_size={})", "flex_prefill(gamma={})", "token_coverage(voters={})",
    "token_coverage(pool={})", "token_coverage(tau=.2, voters=8, min_tokens={}, sinks=2)", "attend(break_even={})",
    "token_coverage(tau=.2, voters=8, min_tokens=8, sinks=2) | decompress(fill=sliding_window({}))",
    "token_coverage(tau=.2, voters=8, min_tokens=8, sinks=2) | decompress(fill=sliding_window(8, sinks={}))",
    "token_coverage(tau=.2, voters=8, min_tokens=8, sinks=2) | decompress(dense_last={})",
]  # fmt: skip


@pytest.fixture
def little_memory():
    """Limit memory to 2 GiB more than now, so that a larger request fails and the process is not killed."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a limit of memory that is kept")
@pytest.mark.parametrize("place", PLACES)
def test_absurd_numbers_run_or_are_one_line(place, models, text, little_memory):
    for number in [*map(str, NUMBERS), "nan", "1e30", "-1e400", "1e400", "9**9**9", "1j"]:
        spec = place.format(number)
        ran = command("run", models / "llama", "--prompt-file", text, "--pipeline", spec, "--tokens", 1, "--most", 70)
        assert ran.returncode in (0, 2) and "Traceback" not in ran.stderr, (spec, ran)
        assert ran.stderr.count("\n") == (ran.returncode == 2), (spec, ran.stderr)


@pytest.mark.parametrize(
    "words,message",
    [
        (["--pipeline", "(" * 10000 + "streaming" + ")" * 10000], "it does not parse"),
        (["--pipeline", "-" * 10000 + "1"], "nested too deeply"),
        (["--pipeline", "union(" * 150 + "streaming" + ")" * 150], "spec: at position"),
        (["--pipeline", "x" * 100000], "there is no 'xxx"),
        (["--pipeline", "streaming\0"], "null bytes"),
        (["--pipeline", "streaming(sinks=1)" + " | streaming" * 30 + " | x"], "there is no 'x'"),
        (["--pipeline", "folder"], "got the path 'folder', which is no schedule"),
        (["--pipeline", "./folder"], "got the path './folder', which is no schedule"),
        (["--pipeline", "file"], "got the path 'file', which is no schedule"),
        (["--pipeline", "deep.json"], "'deep.json' is no schedule (RecursionError"),
        (["--pipeline", "dense", "--device", "gpu"], "device: got 'gpu', which cannot be used here"),
        (["--pipeline", "dense", "--device", "meta"], "device: got 'meta', which cannot be used here"),
        (["--pipeline", "dense", "--tokens", "-1"], "tokens: got -1"),
        (["--pipeline", "dense", "--most", "-1"], "most: got -1"),
        (["--pipeline", "dense", "--prompt-file", "folder"], "'folder' cannot be read (Is a directory)"),
        (["--pipeline", "dense", "--prompt-file", "x" * 5000], "cannot be read (File name too long)"),
        (["--pipeline", "dense", "--prompt-file", "file/file"], "cannot be read (Not a directory)"),
    ],
)
def test_what_can_be_typed_wrong(words, message, models, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text(LINE)
    (tmp_path / "deep.json").write_text("[" * 100000)
    assert message in refused("run", models / "llama", "--prompt-file", text, *words)


def test_models_and_folders_that_can_be_typed_wrong(models, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text(LINE)
    rest = "--prompt-file", text, "--pipeline", "dense"
    for name in ("x" * 5000, "mo\0del", "a/b/c/d", "file", "."):
        assert refused("run", name, *rest).startswith("sparsekit: MODEL: ")
    assert "File exists: 'file'" in refused("profile", models / "llama", "--prompt-file", text, "--out", "file")
    assert "Not a directory" in refused("profile", models / "llama", "--prompt-file", text, "--out", "file/x")
    assert "spec: at position 0" in refused("profile", models / "llama", "--prompt-file", text, "--pipeline", "")
    page = "eval", "embedded", "--pipeline", "streaming", "--length", "1K", "--page", tmp_path
    assert "which is a folder" in refused(*page)
    for many in (["demo", "--questions", 10**20], [*page[:-2], "--questions", 10**20], [*page[:-2], "--timed", 10**20]):
        ran = command(*many)
        said = re.search(r"(?:less than or equal to |<=)100000\b", ran.stderr)  # the words of typer or click
        assert ran.returncode == 2 and said and "Traceback" not in ran.stderr


def test_a_long_spec_is_a_spec_and_a_schedule_may_begin_with_a_byte_order_mark(models, text, tmp_path):
    long = " | ".join([f"streaming(sinks=1, window={n}, block_size=1)" for n in range(300, 310)])
    words = "run", models / "llama", "--prompt-file", text, "--tokens", 1, "--pipeline"
    assert len(long) > 255, "no file has such a name"
    assert command(*words, long).returncode == 0
    (tmp_path / "sparsekit.json").write_bytes(codecs.BOM_UTF8 + json.dumps({"pipeline": EVERY_TOKEN}).encode())
    assert command(*words, tmp_path).returncode == 0


def test_help_still_works():
    for words in ([], ["run"], ["eval"], ["demo"]):
        ran = command(*words, "--help")
        assert ran.returncode == 0 and "Usage" in ran.stdout and ran.stderr == ""


# Suggestions for typing errors


@pytest.mark.parametrize(
    "words,guess",
    [
        (["eval", "embedded", "--tasks", "single_kye"], "single_key"),
        (["eval", "nowhere", "--tasks", "needle_sinlge"], "needle_single"),
        (["eval", "embedded", "--tasks", "Claimed"], "claimed"),
        (["run", "embedded", "--device", "cdua"], "cuda"),
        (["run", "embedded", "--device", "gpu"], "cuda"),
        (["demo", "--device", "CPU"], "cpu"),
        (["run", "embedded", "--pipeline", "streaming | attend(backend='refrence')"], "reference"),
        (["run", "embedded", "--pipeline", "token_coverage(per='haed')"], "head"),
        (["run", "embedded", "--device", "abacus"], None),
        (["run", "embedded", "--device", "cuda:999"], None),
        (["eval", "embedded", "--tasks", "x"], None),
    ],
)
def test_a_mistyped_choice_is_answered_by_the_one_that_is_like_it(words, guess, text):
    if words[0] == "run":
        words = [*words, "--prompt-file", text, *([] if "--pipeline" in words else ["--pipeline", "dense"])]
    said = refused(*words)
    assert "allowed are " in said and "Expected one of" not in said
    assert (f", did you mean {guess!r}?" in said) if guess else "did you mean" not in said
