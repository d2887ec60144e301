"""The command line with a model that only repeats what it is asked, and what starting the program costs."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from fastvlm import cli
from fastvlm.generate import ContextLengthError, GenerationOptions, GenerationResult, Timings
from fastvlm.plugins import list_plugins, load_plugin

COMMANDS = list_plugins("fastvlm.cli")


class EchoStream:
    def __init__(self, text: str):
        self.pieces = iter(text.split(" "))
        self.shown: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = next(self.pieces) + " "
        self.shown.append(piece)
        return piece

    def close(self) -> None:
        self.pieces = iter(())

    @property
    def result(self) -> GenerationResult:
        text = "".join(self.shown)
        return GenerationResult(text, [1, 2], "stop", Timings(prompt_tokens=len(text), per_token_s=0.01, completion_tokens=2))


class EchoVLM:
    """Answers with what it was asked: 'words [number of pictures]', in the order of the messages."""

    runtime = SimpleNamespace(name="echo")

    def __init__(self, *args: object, **options: object):
        self.loaded_with = (args, options)
        self.asked: list[tuple[list[dict], dict]] = []

    def stream(self, messages: list[dict], **options: object) -> EchoStream:
        GenerationOptions(**options)  # type: ignore[arg-type]
        self.asked.append((messages, options))
        last = messages[-1]["content"]
        text = "".join(part.get("text", "") for part in last)
        if text == "too long":
            raise ContextLengthError("the prompt has 9 tokens and the model's context holds 8")
        return EchoStream(f"{text} [{sum(part['type'] == 'image' for part in last)}]")


@pytest.fixture
def vlm(monkeypatch: pytest.MonkeyPatch) -> EchoVLM:
    model = EchoVLM()

    def load(*args: object, **options: object) -> EchoVLM:
        model.loaded_with = (args, options)
        return model

    monkeypatch.setattr("fastvlm.vlm.load", load)
    return model


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return str(path)


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_one_line_of_help(name: str, capsys: pytest.CaptureFixture) -> None:
    help_line = load_plugin("fastvlm.cli", name).HELP
    assert help_line
    assert "\n" not in help_line
    assert cli.main(["--help"]) == 0
    listing = " ".join(capsys.readouterr().out.split())
    assert f"{name.replace('_', '-')} {help_line}" in listing
    assert cli.main([name.replace("_", "-"), "--help"]) == 0
    assert "--debug" in capsys.readouterr().out


def run_python(code: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]


HEAVY = "{'torch', 'transformers', 'openvino', 'nncf', 'onnxruntime', 'tokenizers', 'huggingface_hub', 'PIL', 'numpy'}"


@pytest.mark.parametrize("code", ["import fastvlm; fastvlm.__version__", "from fastvlm.cli import main; main(['--help'])"])
def test_starting_loads_nothing_heavy(code: str) -> None:
    result = run_python(f"import sys; {code}; print('LOADED', sorted(set(sys.modules) & {HEAVY}))")
    assert result.stdout.strip().endswith("LOADED []"), result.stdout + result.stderr


@pytest.mark.parametrize("command", ["predict", "chat", "info"])
def test_help_of_a_command_loads_no_engine(command: str) -> None:
    result = run_python(
        f"import sys; from fastvlm.cli import main; main(['{command}', '-h']); print('LOADED', sorted(set(sys.modules) & {HEAVY}))"
    )
    assert result.stdout.strip().splitlines()[-1] in ("LOADED []", "LOADED ['numpy']"), result.stdout + result.stderr


def test_nothing_reports_home(tmp_path: Path) -> None:
    """`import openvino` sends an event and leaves files in the home folder unless it is stopped; the second run shows that it would."""
    code = "import sys, os, openvino; print('openvino_telemetry.main' in sys.modules, os.environ.get('HF_HUB_DISABLE_TELEMETRY'))"
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_DISABLE_TELEMETRY", "CI")}
    home = tmp_path / "home"
    home.mkdir()
    environment.update(HOME=str(home), USERPROFILE=str(home), HTTPS_PROXY="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
    silent = run_python(f"from fastvlm import telemetry; telemetry.disable(); telemetry.disable(); {code}", env=environment)
    assert silent.stdout.split() == ["False", "1"], silent.stderr
    assert list(home.iterdir()) == []
    assert run_python(code, env=environment).stdout.split() == ["True", "None"]


def test_telemetry_that_is_already_imported_falls_silent() -> None:
    code = """
import openvino_telemetry, sys
openvino_telemetry.Telemetry.send_event = lambda *a, **k: print("SENT")
from fastvlm import telemetry
telemetry.disable()
import openvino
openvino_telemetry.Telemetry.send_event(None, "a", "b", "c")
"""
    result = run_python(code, env={**os.environ, "CI": "1"})
    assert result.returncode == 0, result.stderr
    assert "SENT" not in result.stdout


def test_predict_streams_the_answer(vlm: EchoVLM, picture: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["predict", "--image", picture, "--image", picture, "--prompt", "what is it", "--system", "Be kind."]) == 0
    assert capsys.readouterr() == ("what is it [2] \n", "")
    messages, options = vlm.asked[0]
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"] == [{"type": "text", "text": "Be kind."}]
    assert [part["type"] for part in messages[1]["content"]] == ["image", "image", "text"]
    assert options["temperature"] == 0
    assert vlm.loaded_with[0] == ("nano",)


def test_apples_spellings_are_understood(vlm: EchoVLM, picture: str) -> None:
    flags = "--model-path M --image-file F --prompt P --temperature 0.2 --top_p 0.9 --num_beams 1 --max_new_tokens 7 --conv-mode qwen_2"
    assert cli.main([picture if word == "F" else word for word in ["predict", *flags.split()]]) == 0
    assert vlm.loaded_with[0] == ("M",)
    options = vlm.asked[0][1]
    assert (options["temperature"], options["top_p"], options["num_beams"], options["max_new_tokens"]) == (0.2, 0.9, 1, 7)
    assert cli.main(["predict", "--prompt", "P", "--conv-mode", "vicuna_v1"]) == 2


def test_options_reach_the_model_and_the_answer(vlm: EchoVLM) -> None:
    flags = "--model M --runtime torch --device cpu --dtype float32 --threads 2 --resolution 512"
    flags += " --image-mode crop --draft --adapter A --revision R"
    flags += " --seed 4 --stop x --stop y --top-k 3 --repetition-penalty 1.2 --no-repeat-ngram-size 9 --num-beams 1 --length-penalty 0.5"
    assert cli.main(["predict", "--prompt", "P", *flags.split()]) == 0
    assert vlm.loaded_with[1] == {
        "runtime": "torch",
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "resolution": 512,
        "image_mode": "crop",
        "draft": True,
        "adapter": "A",
        "revision": "R",
    }
    expected = {"seed": 4, "stop": ("x", "y"), "top_k": 3, "repetition_penalty": 1.2, "no_repeat_ngram_size": 9, "length_penalty": 0.5}
    assert {name: vlm.asked[0][1][name] for name in expected} == expected


def test_predict_reads_standard_input(vlm: EchoVLM, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    give_stdin(monkeypatch, "was ist größer?\n".encode())
    assert cli.main(["predict", "--image", picture, "--prompt", "-"]) == 0
    assert capsys.readouterr().out == "was ist größer? [1] \n"
    give_stdin(monkeypatch, Path(picture).read_bytes())
    assert cli.main(["predict", "--image", "-", "--prompt", "P"]) == 0
    assert vlm.asked[1][0][0]["content"][0]["image"] == Path(picture).read_bytes()
    give_stdin(monkeypatch, b"")
    assert cli.main(["predict", "--image", "-", "--prompt", "P"]) == 1
    assert "standard input is empty" in capsys.readouterr().err


def test_a_picture_that_is_not_there_costs_no_loading(vlm: EchoVLM, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["predict", "--image", str(tmp_path / "no.png"), "--prompt", "P"]) == 1
    assert "no such picture" in capsys.readouterr().err
    assert vlm.loaded_with == ((), {})


WRONG_USE = [
    "--image - --prompt -",
    "--image - --image - --prompt P",
    "--image F",
    "--prompt P --threads 0",
    "--prompt P --resolution 100",
    "--prompt P --temperature -1",
    "--prompt P --top-p 0",
    "--prompt P --num-beams 2 --temperature 1",
    "--prompt P --num-beams 100000",
    "--prompt P --length-penalty nan",
]


@pytest.mark.parametrize("flags", WRONG_USE)
def test_wrong_use_exits_2(vlm: EchoVLM, flags: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["predict", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: fastvlm predict")
    assert error.splitlines()[-1].startswith("fastvlm predict: error: ")
    assert vlm.asked == []


def test_unknown_commands_and_flags_exit_2(capsys: pytest.CaptureFixture) -> None:
    assert cli.main([]) == 2
    assert cli.main(["predcit"]) == 2
    assert "predict" in capsys.readouterr().err  # the valid ones are listed
    assert cli.main(["predict", "--prompt", "P", "--tempature", "1"]) == 2
    assert cli.main(["predict", "--prompt", "P", "--runtime", "abacus"]) == 2


def test_evaluate_takes_a_name_and_keeps_models_apart(
    vlm: EchoVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from checkpoint_files import apple_tensors, random_model, tiny_config, write_apple

    monkeypatch.chdir(tmp_path)
    vlm.generate_batch = lambda conversations, **options: [SimpleNamespace(text="yes") for _ in conversations]
    task = "--task documents --split val --option documents=1 --option kinds=sign --limit 3".split()
    assert cli.main(["evaluate", "nano", *task]) == 0
    assert vlm.loaded_with[0] == ("nano",)
    said = capsys.readouterr()
    assert said.out.startswith("3 questions, split val") and "out/nano-documents-val/worst.html" in said.err
    write_apple(tmp_path / "runs/mine/model", apple_tensors(random_model(tiny_config())))
    trained = ["evaluate", "--model", "runs/mine/model", *task]
    assert cli.main(trained) == 0 and cli.main(trained) == 0
    assert (tmp_path / "out/mine-model-documents-val/summary.json").exists()
    write_apple(tmp_path / "runs/mine/model", apple_tensors(random_model(tiny_config(), seed=1)))  # trained on since
    assert cli.main(trained) == 1
    assert "results of another evaluation" in capsys.readouterr().err
    assert cli.main(["evaluate", "nano", "--model", "runs/mine/model", *task]) == 2


def test_json_is_one_document(vlm: EchoVLM, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["predict", "--prompt", "größe", "--json", "--stats"]) == 0
    output = capsys.readouterr()
    document = json.loads(output.out)
    assert document["text"] == "größe [0] "
    assert document["finish_reason"] == "stop"
    assert document["token_ids"] == [1, 2]
    assert set(document["timings"]) >= {"load_s", "preprocess_s", "encode_s", "prefill_s", "decode_s", "per_token_s", "ttft_s"}
    assert "first token" in output.err
    assert "100.0 tokens/s" in output.err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("two\nlines"), "two lines"),
        (FileNotFoundError(2, "No such file or directory", "given.png"), "No such file or directory: given.png"),
        (FileNotFoundError(2, "No such file or directory", "/usr/lib/secret/place"), "No such file or directory"),
        (MemoryError(), "not enough memory"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "the package 'torch' is needed for this and not installed"),
        (RuntimeError("odd"), "unexpected RuntimeError: odd (--debug shows the traceback)"),
        (KeyError("name"), "unexpected KeyError: 'name' (--debug shows the traceback)"),
    ],
)
def test_errors_are_one_line(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("given.png").touch()  # it is there; what fails is what comes after

    def load(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("fastvlm.vlm.load", load)
    assert cli.main(["predict", "--image", "given.png", "--prompt", "P"]) == 1
    assert capsys.readouterr().err == f"fastvlm: error: {message}\n"
    assert cli.main(["predict", "--image", "given.png", "--prompt", "P", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def load(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastvlm.vlm.load", load)
    assert cli.main(["predict", "--prompt", "P"]) == 130
    assert capsys.readouterr().err == ""


def test_warnings_show_no_paths(vlm: EchoVLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def load(*args: object, **options: object) -> EchoVLM:
        import warnings

        warnings.warn("take\ncare", UserWarning, stacklevel=1)
        return vlm

    monkeypatch.setattr("fastvlm.vlm.load", load)
    assert cli.main(["predict", "--prompt", "P"]) == 0
    assert capsys.readouterr().err == "fastvlm: warning: take care\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
def test_a_reader_that_leaves_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # argparse hides what it writes at once
    command = [sys.executable, "-m", "fastvlm", "--help"]
    process = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, env=environment, timeout=60)
    os.close(write_end)
    assert process.returncode == 141
    assert process.stderr == b""


def chat(monkeypatch: pytest.MonkeyPatch, text: str, *flags: str) -> int:
    give_stdin(monkeypatch, text.encode())
    return cli.main(["chat", *flags])


def roles(messages: list[dict]) -> list[str]:
    return [message["role"] for message in messages]


def test_chat_remembers_turns_and_pictures(
    vlm: EchoVLM, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert chat(monkeypatch, f"/image {picture}\nwhat is it\n\nand then\n/exit\nnot read\n", "--system", "S") == 0
    output = capsys.readouterr()
    assert output.out == "what is it [1] \nand then [0] \n"
    assert "40 x 30 pixels" in output.err
    messages = vlm.asked[1][0]
    assert roles(messages) == ["system", "user", "assistant", "user"]
    assert messages[2]["content"][0]["text"] == "what is it [1] "
    assert messages[1]["content"][0]["type"] == "image"


def test_chat_commands(vlm: EchoVLM, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    script = "one\n/reset\ntwo\n/system Be brief.\nthree\n/system\nfour\n/help\n/image\n/image nowhere.png\n/fly\nfive"
    assert chat(monkeypatch, script, "--image", picture) == 0
    assert [roles(messages) for messages, _ in vlm.asked] == [
        ["user"],
        ["user"],
        ["system", "user"],
        ["user"],
        ["user", "assistant", "user"],
    ]
    assert len(vlm.asked[0][0][0]["content"]) == 2  # the picture of the command line
    output = capsys.readouterr()
    assert "/reset" in output.out
    assert output.out.endswith("five [0] \n")
    assert "/image needs a path" in output.err
    assert "nowhere.png" in output.err
    assert "/fly is no command" in output.err


def test_chat_goes_on_after_an_error(vlm: EchoVLM, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert chat(monkeypatch, f"/image {picture}\ntoo long\nshort\n") == 0
    output = capsys.readouterr()
    assert output.out == "short [1] \n"  # the picture waits for a question that can be answered
    assert "context holds 8" in output.err
    assert "/reset" in output.err


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(vlm: EchoVLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    class Interrupting(EchoStream):
        def __next__(self) -> str:
            if len(self.shown) == 1:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            return super().__next__()

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with Ctrl-C ignored
    real = vlm.stream
    monkeypatch.setattr(
        vlm, "stream", lambda messages, **options: Interrupting("a b c d") if len(messages) == 1 else real(messages, **options)
    )
    assert chat(monkeypatch, "count\ngo on\n") == 0
    assert capsys.readouterr().out == "a b \ngo on [0] \n"
    assert vlm.asked[0][0][1]["content"][0]["text"] == "a b "
    assert signal.signal(signal.SIGINT, handler) is signal.default_int_handler
