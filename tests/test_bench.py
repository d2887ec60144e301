"""`fastvlm bench`: that it measures what it says, on the work it says. No test depends on how fast anything is."""

import json
import os
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastvlm
from fastvlm import cli
from fastvlm.bench import hardware, operators, scaling, ttft
from fastvlm.bench.contestant import Contestant, ContestantError
from fastvlm.bench.environment import spread
from fastvlm.bench.operations import count_operations
from fastvlm.bench.peers import _transformers, llama_cpp, llava_1_5, llava_onevision
from fastvlm.bench.random_checkpoint import _config, _processor, random_checkpoint, random_tensor
from fastvlm.bench.work import Work, WorkError, fit_question, make_work
from fastvlm.checkpoint import open_checkpoint
from fastvlm.checkpoint.memory import peak_memory_bytes
from fastvlm.checkpoint.save import save_generated
from fastvlm.plugins import list_plugins, load_plugin


@pytest.fixture(scope="module")
def nano(tmp_path_factory) -> Path:
    return random_checkpoint("nano", tmp_path_factory.mktemp("random") / "nano")


@pytest.fixture(scope="module")
def work(nano, tmp_path_factory) -> Work:
    return make_work(tmp_path_factory.mktemp("work"), model=str(nano), threads=1, resolution=128, max_new_tokens=3)


# What is measured on


def test_a_random_checkpoint_answers_and_says_that_it_is_random(nano):
    checkpoint = open_checkpoint(nano)
    assert checkpoint.has_random_weights
    vlm = fastvlm.load(nano, runtime="torch", dtype="float32", threads=1)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]
    inputs = vlm.processor([{"role": "user", "content": content}], resolution=128)
    logits = vlm.logits(inputs)
    assert np.isfinite(logits).all()
    assert np.abs(logits[0, -1] - logits[0, 5]).max() > 0.1  # positions differ, as they would in a model that reads


def test_a_random_checkpoint_is_written_once_and_is_always_the_same(nano, tmp_path):
    before = (nano / "model.safetensors").stat().st_mtime_ns
    assert random_checkpoint("nano", nano, on_start=lambda: pytest.fail("written again")) == nano
    assert (nano / "model.safetensors").stat().st_mtime_ns == before
    name = "language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(random_tensor(name, (768, 384)).bfloat16(), {t.name: t for t in open_checkpoint(nano).tensors()}[name].read())
    with pytest.raises(ValueError, match=r"unknown shape '3b'; available: nano, 0\.5b"):
        random_checkpoint("3b", tmp_path / "x")


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    """A checkpoint of 15 GB is written by a machine that has less."""
    alive: list[weakref.ref] = []

    def make(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        assert not [tensor for tensor in alive if tensor() is not None], f"something else is still in memory when {name} is made"
        tensor = random_tensor(name, shape)
        alive.append(weakref.ref(tensor))
        return tensor

    save_generated(_config("nano"), make, _processor("nano"), tmp_path / "out")
    assert len(alive) > 100


@pytest.mark.parametrize(
    ("shape", "decoder"),
    [("0.5b", 494_032_768), ("1.5b", 1_543_714_304), ("7b", 7_070_619_136 + 544_997_376)],
)
def test_shapes_are_the_released_ones(shape, decoder):
    """Parameters of the released checkpoints, from the sizes of their files."""
    needs = count_operations(_config(shape), image_side=64, prompt_tokens=2)
    assert needs["decoder_parameters"] == decoder
    assert needs["encoder_parameters"] == 125_073_504 - 3072 * 768  # without the CLIP head


def test_text_is_cut_to_the_tokens_that_were_asked_for():
    processor = _processor("0.5b")
    assert (processor.tokenizer.vocab_size, processor.image_token_id) == (151_647, 151_646)  # as the released tokenizer
    question = fit_question(processor, 80)
    ids = processor([{"role": "user", "content": question}]).input_ids
    assert 70 <= ids.size <= 80
    assert fit_question(processor, 1) == question.split()[0]  # at least a word


def test_the_work_is_what_the_processor_makes(nano, work):
    inputs = open_checkpoint(nano).processor()(work.messages, resolution=128)
    assert np.array_equal(work.input_ids, inputs.input_ids[0])
    assert np.array_equal(work.pixel_values(), inputs.pixel_values)
    assert (work.image_tokens, work.prompt_tokens) == (4, inputs.input_ids.size)
    assert Work.read(work.folder) == work
    with Image.open(work.picture) as picture:
        assert picture.size == (3000, 4000)
    with pytest.raises(WorkError, match="it worked on 5 image tokens, not on 4"):
        work.check(image_tokens=5)


# What the model needs and the machine can do


@pytest.mark.parametrize(("side", "gmac"), [(256, 14.8), (512, 59.6), (768, 135.2), (1024, 243.4), (2048, 1055.6)])
def test_operations_of_the_encoder(side, gmac):
    """Against multiply-adds counted from the module tree by hand; the projector is not among those."""
    config = _config("0.5b")
    projector = 2 * (side // 64) ** 2 * (3072 * 896 + 896 * 896)
    counted = count_operations(config, image_side=side, prompt_tokens=2)["encode"]
    assert (counted - projector) / 2e9 == pytest.approx(gmac, rel=5e-3)


def test_operations_and_bytes_of_the_decoder():
    needs = count_operations(_config("0.5b"), image_side=64, prompt_tokens=296)
    hidden, intermediate, keys, layers, tokens, vocabulary = 896, 4864, 128, 24, 296, 151_936
    projections, perceptron = 2 * hidden * hidden + 2 * hidden * keys, 3 * hidden * intermediate
    attention = 2 * tokens * tokens * hidden
    every_position = layers * (tokens * projections + attention) + (layers - 1) * tokens * perceptron
    assert needs["prefill"] == 2 * (every_position + perceptron + hidden * vocabulary)  # the last perceptron and the head for one position
    assert needs["decode_bytes"] == needs["decoder_parameters"] + 2 * layers * keys * tokens


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"vendor_id": "AuthenticAMD", "cpu family": "26", "flags": "avx2 avx512f avx512_vnni avx512_bf16"}, (64, 128, 256)),
        ({"vendor_id": "AuthenticAMD", "cpu family": "25", "flags": "avx2 avx512f avx512_vnni avx512_bf16"}, (32, 64, 128)),
        ({"vendor_id": "AuthenticAMD", "cpu family": "23", "flags": "avx2"}, (32, 32, 64)),
        (
            {"vendor_id": "GenuineIntel", "cpu family": "6", "flags": "avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8"},
            (64, 1024, 2048),
        ),
    ],
)
def test_operations_per_cycle(fields, expected):
    assert tuple(hardware.operations_per_cycle(fields).values()) == expected


def test_operations_per_cycle_of_an_unknown_processor():
    assert hardware.operations_per_cycle({"Features": "asimd"}) is None


def test_every_library_multiplies_whole_matrices():
    """Small ones: what is looked at is that a product comes out, in every precision, of at least two libraries."""
    measured = hardware.measure(1, size=128, read_bytes=1 << 22)
    assert len(measured["peaks"]["float32"]) >= 3 and len(measured["peaks"]["int8"]) >= 2
    assert measured["best"].keys() == set(hardware.PRECISIONS)
    assert all(speed > 0 for found in measured["peaks"].values() for speed in found.values())
    for precision, multiply in hardware._torch_products(1, 128):
        assert multiply().shape == (128, 128), precision
    for precision, multiply in hardware._openvino_products(1, 128):
        assert next(iter(multiply().values())).shape == (128, 128), precision
    assert re.search(r"int8 .* \d+", hardware_lines := ttft.hardware_table(measured)), hardware_lines


def test_openvino_quantises_its_product():
    """The int8 figure is of a kernel that computes in int8: its result has the error of 8 bits, not of none."""
    openvino = pytest.importorskip("openvino")
    if "INT8" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no int8 in OpenVINO")
    results = {name: next(iter(multiply().values())) for name, multiply in hardware._openvino_products(1, 128)}
    error = np.abs(results["int8"] - results["float32"]).max() / np.abs(results["float32"]).max()
    assert 1e-4 < error < 0.05


def test_the_clock_is_a_clock():
    clock = hardware.clock_hz()
    assert clock is None or 2e8 < clock < 1e10


# Programs that take turns


def contestant(work: Work, variant: str = "default") -> Contestant:
    tests = str(Path(__file__).parent)
    return Contestant(
        "bench_program", variant, work, {"PYTHONPATH": os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])}
    )


def test_a_contestant_runs_when_told_to(work):
    with contestant(work) as program:
        assert (program.facts["threads"], program.facts["prompt_tokens"]) == ("1", work.prompt_tokens)
        assert [program.run()["count"], program.run()["count"]] == [1, 2]
        assert program.run("at 256")["side"] == 256
        assert program.run()["peak_memory_bytes"] > 1 << 20


def test_a_contestant_that_does_other_work_is_refused(work):
    with (
        contestant(work) as program,
        pytest.raises(ContestantError, match=f"WorkError: it worked on 7 prompt tokens, not on {work.prompt_tokens}"),
    ):
        program.run("wrong")


def test_a_contestant_that_dies_says_how(work):
    with contestant(work) as program, pytest.raises(ContestantError, match="ended with status 3: last words"):
        program.run("die")
    with pytest.raises(ContestantError, match="ValueError: no such variant"):
        contestant(work, "broken")


def test_turns_alternate():
    order: list[str] = []

    def runner(name: str):
        return lambda: order.append(name) or {"name": name}

    theirs, ours = ttft.take_turns(runner("theirs"), runner("ours"), 4)
    assert order == ["ours", "theirs", "theirs", "ours"] * 2
    assert [len(theirs), len(ours)] == [4, 4] and {run["name"] for run in theirs} == {"theirs"}


def test_ratios_and_spread():
    assert spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "min": 1.0, "max": 10.0, "runs": 4}
    whole = {name: spread([value]) for name, value in [("ttft_s", 4.0), ("encode_s", 3.0), ("prefill_s", 1.0), ("per_token_s", 0.1)]}
    ours = {name: spread([value]) for name, value in [("ttft_s", 1.0), ("encode_s", 0.5), ("prefill_s", 0.5), ("per_token_s", 0.05)]}
    assert ttft.ratios({"part": "whole", **whole, "ours": ours}) == {"ttft": 0.25, "encode": 1 / 6, "prefill": 0.5, "per_token": 0.5}
    assert ttft.ratios({"part": "decoder", **whole, "ours": ours}) == {"prefill": 0.5, "per_token": 0.5}


def test_the_last_runs_times_come_from_means_over_all_runs():
    last = operators.LastRun()
    times = np.array([[8.0, 1.0], [2.0, 3.0], [5.0, 0.0]])
    for run in range(3):
        means = times[: run + 1].mean(0)
        assert last([("Conv", "i8", means[0]), ("Add", "f32", means[1])]) == [
            ("Conv", "i8", pytest.approx(times[run, 0])),
            ("Add", "f32", pytest.approx(times[run, 1])),
        ]


def test_operators_of_one_kind_are_summed():
    fast, slow = [("Conv", "i8", 0.2), ("Conv", "i8", 0.3), ("Add", "f32", 0.0)], [("Conv", "i8", 5.0)]
    assert operators.summed([slow, fast, fast]) == [{"operator": "Conv", "computed": "i8", "count": 2, "seconds": 0.5}]
    many = [(f"Op{index}", "f32", float(index)) for index in range(1, 13)]
    lines = operators.rows({"encode": operators.summed([many])})
    assert lines[0] == ("encode: Op12 f32", "1", "12000.00", "15.4 %")
    assert lines[-1] == ("encode: others", "2", "3000.00", "3.8 %")  # of 12 kinds, 10 are shown


def test_an_earlier_result_must_be_of_the_same_work():
    new = {"benchmark": "ttft", "work": {"image_tokens": 256}}
    earlier = {**new, "warm": {"ttft_s": 1}}
    assert ttft.continued(new, earlier) is earlier
    assert ttft.continued(new, None).keys() == {"benchmark", "work", "warning"}
    with pytest.raises(ValueError, match=r"the earlier result is of other work \(\{'image_tokens': 64\}\)"):
        ttft.continued(new, {**earlier, "work": {"image_tokens": 64}})


# Peers


@pytest.mark.parametrize("name", list_plugins(ttft.PEERS))
def test_peers_define_what_is_asked_of_them(name, work):
    peer = load_plugin(ttft.PEERS, name)
    assert peer.PART in ("whole", "decoder") and peer.TITLE and peer.__doc__
    assert peer.INSTALL.startswith("pip install ")
    assert peer.RUNS is None or peer.RUNS >= 1
    assert peer.variants(work) and all(isinstance(variant, str) for variant in peer.variants(work))
    assert peer.unavailable_reason() is None or "not installed" in peer.unavailable_reason()


def test_llava_onevision_sees_the_tokens_of_the_papers_table():
    tiles, tokens = llava_onevision.tokens_at(1152)
    assert (tiles, tiles * 729) == (10, 7290)
    assert tokens == 7290 + 81  # and a line end after each of 3 x 27 rows


def test_missing_layers_are_added_from_the_measured_ones(monkeypatch):
    assert llava_1_5.layers_that_fit(None) == 32
    assert llava_1_5.layers_that_fit(8_000_000_000) == 8  # 405 MB each beside 4 GB
    assert llava_1_5.layers_that_fit(0) == 2

    def run(self):  # what a machine without noise would measure
        layers = len(self.model.model.language_model.layers)
        return {"ttft_s": 1 + 2.0 * layers, "encode_s": 0.5, "prefill_s": 0.5 + 2.0 * layers, "per_token_s": 0.1 * layers}

    monkeypatch.setattr(_transformers.Program, "run", run)
    program = llava_1_5.Program.__new__(llava_1_5.Program)

    class Attributes:
        def __init__(self, **values):
            self.__dict__.update(values)

    decoder = Attributes(layers=[object()] * 8, config=Attributes(num_hidden_layers=8))
    program.model = Attributes(model=Attributes(language_model=decoder))
    result = program.run()
    assert result["ttft_s"] == pytest.approx(1 + 2.0 * 32) and result["per_token_s"] == pytest.approx(3.2)
    assert result["measured_ttft_s"] == 17 and len(decoder.layers) == decoder.config.num_hidden_layers == 8


def test_gguf_holds_the_same_weights(nano, tmp_path):
    gguf = pytest.importorskip("gguf")
    checkpoint = open_checkpoint(nano)
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors()}
    llama_cpp.write_gguf(tmp_path / "x.gguf", checkpoint.config.text_config, tensors, "Q8_0")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert len(stored) == 1 + 1 + 6 * 12  # embedding, last norm; a tied head is not stored again
    for name, ours in [("blk.3.ffn_down.weight", "layers.3.mlp.down_proj.weight"), ("blk.0.attn_q.bias", "layers.0.self_attn.q_proj.bias")]:
        value = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
        expected = tensors[f"language_model.{ours}"].read().float().numpy()
        assert np.abs(value.reshape(expected.shape) - expected).max() <= np.abs(expected).max() / 127


# The commands


def run_bench(capsys, *arguments: object) -> tuple[int, str, dict]:
    status = cli.main(["bench", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert out, err
    return status, out, json.loads(out.splitlines()[-1])


def test_ttft_beside_transformers_on_the_same_work(nano, tmp_path, capsys, monkeypatch):
    """In float32 both compute the same logits of the same prompt, which is what makes their times comparable."""
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    monkeypatch.setattr(llama_cpp, "unavailable_reason", lambda: "llama_cpp not installed")
    status, out, result = run_bench(
        capsys,
        *f"ttft --model {nano} --runtime torch --dtype float32 --threads 1 --resolution 128 --phases warm --no-hardware".split(),
        *f"--runs 1 --max-new-tokens 3 --peers transformers_fast_vlm llama_cpp --out {tmp_path} --name x".split(),
    )
    assert status == 0
    peer, missing = result["peers"]
    assert peer["logits_cosine"] > 0.999999
    assert peer["facts"]["prompt_tokens"] == result["work"]["image_tokens"] + result["work"]["text_tokens"]
    assert peer["ratios"]["ttft"] == peer["ours"]["ttft_s"]["median"] / peer["ttft_s"]["median"]
    assert (
        "variant" not in missing and 'not measured: llama.cpp, decoder alone: llama_cpp not installed; pip install "fastvlm[bench]"' in out
    )
    warm = result["warm"]
    parts = sum(warm[part]["median"] for part in ("encode_s", "prefill_s", "first_token_s"))
    assert warm["ttft_s"]["median"] == pytest.approx(parts)
    assert warm["second_question"]["cached_tokens"] > result["work"]["image_tokens"]
    assert warm["streaming"]["stream_s"]["median"] > warm["streaming"]["steps_s"]["median"] > 0 and "on top of the model's steps" in out
    assert warm["completion_tokens"] == 3 and result["work"]["image_size"] == [1, 128, 128]
    assert (tmp_path / "x.txt").read_text().strip() == out.rsplit("\n", 2)[0].strip()
    assert json.loads((tmp_path / "x.json").read_text()) == result

    # Another call goes on: what is there is kept, and what could not be measured is tried again.
    monkeypatch.setattr(ttft, "Contestant", lambda *arguments: pytest.fail("nothing is left to run"))
    monkeypatch.setattr(llama_cpp, "variants", lambda work: [])
    monkeypatch.setattr(llama_cpp, "unavailable_reason", lambda: None)
    status, _, again = run_bench(
        capsys,
        *f"ttft --model {nano} --runtime torch --dtype float32 --threads 1 --resolution 128 --phases warm --no-hardware --runs 1".split(),
        *f"--max-new-tokens 3 --peers transformers_fast_vlm llama_cpp --out {tmp_path} --name x --continue".split(),
    )
    assert status == 0 and again == {**result, "peers": [peer]}


def test_a_cold_process_is_measured_from_its_start(nano, capsys):
    _, out, result = run_bench(
        capsys, "ttft", "--model", nano, "--runtime", "torch", "--threads", 1, "--resolution", 128, "--phases", "cold", "--runs", 1,
        "--no-hardware", "--max-new-tokens", 2,
    )  # fmt: skip
    cold = {name: value["median"] for name, value in result["cold"].items() if isinstance(value, dict)}
    named = sum(cold[name] for name in ("process_s", "import_s", "load_s", "preprocess_s", "encode_s", "prefill_s"))
    assert all(value > 0 for value in cold.values())
    assert named <= cold["total_s"] + 1e-6
    assert result["cold"]["imports_torch"] is True and "torch imported: yes" in out


def test_scaling_over_resolutions(nano, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli.bench if hasattr(cli, "bench") else load_plugin("fastvlm.cli", "bench"), "_random", lambda size, cache: nano)
    _, out, result = run_bench(
        capsys, "scaling", "--runtime", "torch", "--threads", 1, "--sizes", "nano", "--resolutions", 64, 128, "--onevision", "--runs", 1,
        "--out", tmp_path,
    )  # fmt: skip
    assert [(row["side"], row["image_tokens"]) for row in result["ours"]] == [(64, 1), (128, 4)]
    assert "The paper's (Table 10), not measured here" in out and "LLaVA-OneVision, Qwen2-0.5B" in out
    with Image.open(tmp_path / "scaling.png") as picture:
        assert picture.format == "PNG" and picture.width > 500


def test_scaling_names_the_papers_claim():
    def row(size, side, seconds):
        return {"size": size, "side": side, "ttft_s": spread([seconds])}

    result = {"ours": [row("0.5b", 1024, 2.0), row("0.5b", 512, 0.5)], "onevision": [row("0.5b", 1152, 100.0)]}
    assert "50.0x sooner" in scaling.sooner(result)
    assert scaling.sooner({**result, "onevision": []}) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ttft", "--runs", "0"], "--runs is 0; expected a number above 0"),
        (["ttft", "--max-new-tokens", "1"], "the time of a token needs at least two"),
        (["ttft", "--peers", "llama"], "invalid choice: 'llama'"),
        (["scaling", "--onevision", "1000"], "--onevision has 1000; expected multiples of 384"),
        (["scaling", "--resolutions", "100"], "--resolutions: '100' is no multiple of 64"),
    ],
)
def test_wrong_use(arguments, message, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_peak_memory_is_of_this_process():
    before = peak_memory_bytes()
    if before is None:
        pytest.skip("the system does not say how much memory a process had")
    block = np.ones(before // 4, np.float32)  # as much again
    assert peak_memory_bytes() >= before + block.nbytes // 2
