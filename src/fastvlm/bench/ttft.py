"""Time to the first token: ours in all its parts, beside peers, beside what the hardware can do.

result = measure(Options(model="nano", threads=2), say=print)
print(render(result))
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastvlm.bench import hardware
from fastvlm.bench.contestant import Contestant, ContestantError
from fastvlm.bench.environment import others_running, spread, versions
from fastvlm.bench.operations import count_operations
from fastvlm.bench.start import start_predict, start_process
from fastvlm.bench.work import Work, make_work
from fastvlm.plugins import load_plugin

PEERS = "fastvlm.bench.peers"
OURS = "fastvlm.bench.ours"
PHASES = ("first", "cold", "warm")
REFERENCE_LOGITS = "logits-float32-eager"  # of transformers as it comes
_PARTS = ("ttft_s", "encode_s", "prefill_s", "first_token_s", "per_token_s", "measured_ttft_s")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        model: what `fastvlm.load` takes; `random` names the shape when it was made by `random_checkpoint`.
        phases: of `PHASES`. `first` converts into an empty cache folder, which is then used for the rest and removed.
        runs: of each program, and of new processes.
        peers: names in `fastvlm.bench.peers`.
    """

    model: str
    threads: int
    random: str | None = None
    load_options: dict[str, Any] = field(default_factory=dict)
    image: str | None = None
    resolution: int | None = None
    text_tokens: int = 40
    max_new_tokens: int = 32
    runs: int = 5
    phases: tuple[str, ...] = PHASES
    peers: tuple[str, ...] = ()
    hardware: bool = True


def measure(options: Options, say: Say) -> dict[str, Any]:
    """Everything that `options` asks for. What cannot be measured is in the result with the reason."""
    folder = Path(tempfile.mkdtemp(prefix="fastvlm-bench-"))
    try:
        return _measure(options, folder, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(options: Options, folder: Path, say: Say) -> dict[str, Any]:
    result: dict[str, Any] = {
        "benchmark": "ttft",
        "model": options.random or options.model,
        "random_weights": options.random is not None,
        "machine": hardware.describe_machine(options.threads),
        "versions": versions(),
        "warning": others_running(),
    }
    work = make_work(
        folder,
        model=options.model,
        threads=options.threads,
        load_options=options.load_options,
        image=options.image,
        text_tokens=options.text_tokens,
        max_new_tokens=options.max_new_tokens,
        resolution=options.resolution,
    )
    pixels = work.pixel_values()
    result["work"] = {
        "image_size": list(pixels.shape[:1] + pixels.shape[2:]),
        "image_tokens": work.image_tokens,
        "text_tokens": work.prompt_tokens - work.image_tokens,
        "max_new_tokens": work.max_new_tokens,
    }
    environment = {"OMP_NUM_THREADS": str(options.threads)}
    if "first" in options.phases:
        environment["FASTVLM_CACHE"] = str(folder / "cache")
        say("first run after installation: empty caches")
        empty = {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        result["first"] = start_process(work, {**environment, **empty})
    if "cold" in options.phases:
        result["cold"] = _cold(work, environment, options.runs, say)
    if "warm" in options.phases:
        result.update(_warm(work, environment, options, say))
    if options.hardware:
        result["hardware"] = hardware.measure(options.threads, on_step=say)
        result["shares"] = shares(result, work, pixels.shape)
    return result


def _cold(work: Work, environment: dict[str, str], runs: int, say: Say) -> dict[str, Any]:
    """New processes with filled caches."""
    processes, commands = [], []
    for number in range(runs):
        say(f"cold start {number + 1} of {runs}")
        processes.append(start_process(work, environment))
        commands.append(start_predict(work, environment))
    names = [name for name, value in processes[0].items() if name.endswith(("_s", "_bytes")) and value is not None]
    parts = {name: spread([process[name] for process in processes]) for name in names}
    return {**parts, "imports_torch": processes[-1]["imports_torch"], "predict_first_byte_s": spread(commands)}


def _warm(work: Work, environment: dict[str, str], options: Options, say: Say) -> dict[str, Any]:
    """Ours in one process, alone and then in turns with each peer."""
    say("warm: loading fastvlm")
    with Contestant(OURS, "default", work, environment) as ours:
        ours.run()  # the first answer makes what later ones reuse
        runs = [_said(say, f"warm run {number + 1} of {options.runs}", ours.run) for number in range(options.runs)]
        second = [ours.run("second_question") for _ in range(options.runs)]
        warm = {
            **ours.facts,
            **_summary(runs),
            "completion_tokens": runs[-1]["completion_tokens"],
            "preprocess": _summary([ours.run("preprocess") for _ in range(options.runs)], ("decode_picture_s", "resize_s", "tokenize_s")),
            "second_question": {
                "first_ttft_s": spread([run["first_ttft_s"] for run in second]),
                "second_ttft_s": spread([run["second_ttft_s"] for run in second]),
                "cached_tokens": second[-1]["cached_tokens"],
            },
            "batch": ours.run("batch"),
            "peak_memory_bytes": ours.run()["peak_memory_bytes"],
        }
        peers = [result for name in options.peers for result in _peer(name, work, ours, options.runs, say)]
    _add_agreement(work, warm, peers)
    return {"warm": warm, "peers": peers}


def _peer(name: str, work: Work, ours: Contestant, runs: int, say: Say) -> list[dict[str, Any]]:
    """One peer's variants, each in turns with ours."""
    peer = load_plugin(PEERS, name)
    common = {"peer": name, "title": peer.TITLE, "part": peer.PART}
    reason = peer.unavailable_reason()
    if reason is not None:
        say(f"{peer.TITLE}: {reason}")
        return [{**common, "unavailable": reason, "install": peer.INSTALL}]
    results = []
    for variant in peer.variants(work):
        say(f"{peer.TITLE}, {variant}")
        measured = {**common, "variant": variant}
        count = runs if peer.RUNS is None else min(runs, peer.RUNS)
        try:
            with Contestant(f"{PEERS}.{name}", variant, work) as contestant:
                if count > 1:
                    contestant.run()  # what is done once, such as compiling, is not part of an answer
                at = getattr(peer, "RESOLUTION", None)
                own_run = ours.run if at is None else lambda at=at: ours.run(f"at {at}")
                if at is not None:
                    own_run()
                theirs, own = take_turns(contestant.run, own_run, count)
                if at is not None and own[0]["image_tokens"] != contestant.facts["image_tokens"]:
                    raise ContestantError(f"it saw {contestant.facts['image_tokens']} image tokens and ours {own[0]['image_tokens']}")
                measured |= {"facts": contestant.facts, "load_s": contestant.load_s}
        except ContestantError as error:
            say(f"{peer.TITLE}, {variant} failed: {error}")
            results.append({**measured, "failed": str(error)})
            continue
        memory = max(run["peak_memory_bytes"] or 0 for run in theirs)
        measured |= {**_summary(theirs), "peak_memory_bytes": memory, "ours": _summary(own)}
        results.append({**measured, "ratios": ratios(measured)})
    return results


def take_turns(theirs: Callable[[], dict[str, Any]], ours: Callable[[], dict[str, Any]], count: int) -> tuple[list[Any], list[Any]]:
    """`count` runs of both; who goes first changes every time, so a machine that becomes slower or faster favours nobody."""
    results: tuple[list[Any], list[Any]] = ([], [])
    for number in range(count):
        for side in (0, 1) if number % 2 else (1, 0):
            results[side].append((theirs, ours)[side]())
    return results


def ratios(peer: dict[str, Any]) -> dict[str, float]:
    """Our time over the peer's, of medians from the same turns; for a decoder alone, our prefill over its first token."""
    ours = peer["ours"]
    pairs = {"ttft": ("ttft_s", "ttft_s"), "encode": ("encode_s", "encode_s"), "prefill": ("prefill_s", "prefill_s")}
    if peer["part"] == "decoder":
        pairs = {"prefill": ("prefill_s", "prefill_s")}
    pairs["per_token"] = ("per_token_s", "per_token_s")
    return {
        name: ours[own]["median"] / peer[other]["median"]
        for name, (own, other) in pairs.items()
        if own in ours and other in peer and peer[other]["median"] > 0
    }


def shares(result: dict[str, Any], work: Work, pixels_shape: tuple[int, ...]) -> dict[str, Any]:
    """What the model needs, and the share of the machine's peaks that ours reached in it."""
    from fastvlm.checkpoint import open_checkpoint
    from fastvlm.runtimes import is_installed

    if not is_installed("torch"):
        return {"unavailable": "counting operations needs PyTorch", "install": 'pip install "fastvlm[bench]"'}
    config = open_checkpoint(work.model).config
    needs = count_operations(config, image_side=pixels_shape[-1], prompt_tokens=work.prompt_tokens, num_tiles=pixels_shape[0])
    found: dict[str, Any] = {"needs": needs}
    if "warm" not in result:
        return found
    warm, machine = result["warm"], result["hardware"]
    for part in ("encode", "prefill"):
        speed = needs[part] / warm[f"{part}_s"]["median"]
        found[part] = {"operations_per_s": speed, **{precision: speed / best for precision, best in machine["best"].items()}}
    if "per_token_s" in warm:
        speed = needs["decode_bytes"] / warm["per_token_s"]["median"]
        found["decode"] = {"bytes_per_s": speed, "memory": speed / machine["best_read"]}
    return found


def _said(say: Say, text: str, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    say(text)
    return function()


def _summary(runs: list[dict[str, Any]], names: tuple[str, ...] = _PARTS) -> dict[str, Any]:
    return {name: spread([run[name] for run in runs]) for name in names if runs[0].get(name) is not None}


def _add_agreement(work: Work, warm: dict[str, Any], peers: list[dict[str, Any]]) -> None:
    """How alike the first token's logits are, between programs that computed the same: cosine to transformers in float32."""
    reference = work.left(REFERENCE_LOGITS)
    if reference is None:
        return
    for found, name in [(warm, "logits-ours"), *((peer, peer.get("facts", {}).get("logits", "")) for peer in peers)]:
        logits = work.left(name) if name else None
        if logits is not None:
            size = min(len(logits), len(reference))
            a, b = logits[:size].astype(np.float64), reference[:size].astype(np.float64)
            found["logits_cosine"] = float(a @ b / np.sqrt((a @ a) * (b @ b)))


# What people read


def render(result: dict[str, Any]) -> str:
    """The tables."""
    parts = [_head(result)]
    if result.get("peers"):
        parts.append(_peer_table(result["peers"], result["warm"]))
    if "warm" in result:
        parts.append(_warm_table(result["warm"]))
    if "first" in result or "cold" in result:
        parts.append(_start_table(result))
    if "hardware" in result:
        parts.append(hardware_table(result["hardware"]))
        parts.append(_share_table(result))
    return "\n\n".join(part for part in parts if part)


def machine_lines(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['system']}",
        f"instruction sets: {' '.join(machine['instruction_sets']) or 'not known'}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    ]
    return lines + ([f"warning: {result['warning']}"] if result.get("warning") else [])


def _head(result: dict[str, Any]) -> str:
    work = result["work"]
    tiles, height, width = work["image_size"]
    picture = f"{width} x {height}" + (f" x {tiles} tiles" if tiles > 1 else "")
    weights = ", random weights" if result["random_weights"] else ""
    lines = [
        f"fastvlm bench ttft: {result['model']}{weights}",
        *machine_lines(result),
        f"work: picture {picture}, {work['image_tokens']} image tokens, {work['text_tokens']} text tokens, "
        f"up to {work['max_new_tokens']} tokens of answer",
    ]
    return "\n".join(lines)


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """Columns as wide as what stands in them; the first is text, the others are numbers."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = []
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        text.append("  ".join(cells).rstrip())
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _peer_table(peers: list[dict[str, Any]], warm: dict[str, Any]) -> str:
    rows = []
    notes = []
    for peer in peers:
        name = f"{peer['title']}: {peer['variant']}" if "variant" in peer else peer["title"]
        if "unavailable" in peer:
            notes.append(f"not measured: {name}: {peer['unavailable']}; {peer['install']}")
            continue
        if "failed" in peer:
            notes.append(f"not measured: {name}: {peer['failed']}")
            continue
        ratio, facts = peer["ratios"], peer["facts"]
        first = ratio.get("ttft", ratio.get("prefill", 0.0))
        rows.append(
            (
                name,
                f"{first:.3f}",
                f"{1 / first:.1f}x",
                *(f"{ratio[part]:.2f}" if part in ratio else "-" for part in ("encode", "prefill", "per_token")),
                f"{peer['ttft_s']['median']:.3f}",
                f"{peer['ours']['prefill_s' if peer['part'] == 'decoder' else 'ttft_s']['median']:.3f}",
                str(facts["prompt_tokens"]),
                str(peer["ttft_s"]["runs"]),
                _gib(peer["peak_memory_bytes"]),
                f"{peer['logits_cosine']:.4f}" if "logits_cosine" in peer else "-",
            )
        )
        if "note" in facts:
            notes.append(f"{name}: {facts['note']}")
    head = ("ours / theirs", "first token", "sooner", "encode", "prefill", "token", "theirs s", "ours s", "tokens", "runs", "GiB", "cosine")
    best = best_tuned(peers)
    if best is not None:
        notes.insert(0, f"best of the tuned variants: {best['variant']}, ours / theirs {best['ratios']['ttft']:.3f}")
    if "logits_cosine" in warm:
        notes.append(f"cosine: of the first token's logits with those of transformers in float32; ours {warm['logits_cosine']:.4f}")
    return "\n".join([table(rows, head), *notes] if rows else notes)


def best_tuned(peers: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The fastest variant of the peer that somebody has tuned."""
    measured = [peer for peer in peers if peer["peer"] == "transformers_tuned" and "ratios" in peer]
    return min(measured, key=lambda peer: peer["ttft_s"]["median"], default=None)


def _warm_table(warm: dict[str, Any]) -> str:
    preprocess, second, batch = warm["preprocess"], warm["second_question"], warm["batch"]
    rows = [
        _times("picture decoded from its file", preprocess["decode_picture_s"]),
        _times("picture resized, text tokenised", _sum(preprocess["resize_s"], preprocess["tokenize_s"])),
        _times("encode", warm["encode_s"]),
        _times("prefill", warm["prefill_s"]),
        _times("first token picked", warm["first_token_s"]),
        _times("first token, from pixels in memory", warm["ttft_s"]),
        _times("second question about the picture", second["second_ttft_s"]),
    ]
    if "per_token_s" in warm:
        rows.append(_times("each token after it", warm["per_token_s"]))
    lines = [
        f"warm: {warm['runtime']} runtime, {warm['precision'] or 'its own'} precision, one process, peak memory "
        f"{_gib(warm['peak_memory_bytes'])} GiB",
        table(rows, ("milliseconds", "median", "least", "most")),
        f"second question over first: {second['second_ttft_s']['median'] / second['first_ttft_s']['median']:.3f}",
    ]
    if "per_token_s" in warm:
        together = batch["batch_decode_s"] / batch["one_decode_s"] if batch["one_decode_s"] else float("nan")
        lines.append(
            f"{1 / warm['per_token_s']['median']:.1f} tokens/s; {batch['batch_size']} at once: {batch['tokens_per_s']:.1f} tokens/s, "
            f"{together:.2f} times the time of one"
        )
    return "\n".join(lines)


def _start_table(result: dict[str, Any]) -> str:
    names = {
        "process_s": "Python started",
        "import_s": "fastvlm imported",
        "load_s": "model loaded (and converted, the first time)",
        "preprocess_s": "picture decoded and resized, text tokenised",
        "encode_s": "encode",
        "prefill_s": "prefill",
        "total_s": "process start to first token",
    }
    first, cold = result.get("first"), result.get("cold")
    rows = []
    for name, shown in names.items():
        cells = [f"{first[name]:.3f}"] if first else []
        if cold:
            cells += [f"{cold[name][which]:.3f}" for which in ("median", "min", "max")]
        rows.append((shown, *cells))
    if cold:
        command = [f"{cold['predict_first_byte_s'][which]:.3f}" for which in ("median", "min", "max")]
        rows.append(("`fastvlm predict` to its first byte", *(["-"] if first else []), *command))
    cells = [_gib(first["peak_memory_bytes"])] if first else []
    if cold:
        cells += [_gib(cold["peak_memory_bytes"][which]) for which in ("median", "min", "max")]
    rows.append(("peak memory, GiB", *cells))
    head = ("seconds", *(["first run"] if first else []), *(["cold", "least", "most"] if cold else []))
    last = cold or first
    assert last is not None
    return "\n".join([table(rows, head), f"torch imported: {'yes' if last['imports_torch'] else 'no'}"])


def hardware_table(measured: dict[str, Any]) -> str:
    """The machine's peaks by library, beside what its clock promises."""
    libraries = sorted({library for found in measured["peaks"].values() for library in found})
    rows = []
    for precision, found in measured["peaks"].items():
        promised = measured["promised"]
        cells = [f"{found[library] / 1e9:.0f}" if library in found else "-" for library in libraries]
        rows.append((precision, *cells, f"{promised[precision] / 1e9:.0f}" if promised else "-"))
    clock = f"{measured['clock_hz'] / 1e9:.2f} GHz measured" if measured["clock_hz"] else "clock not measured"
    reads = ", ".join(f"{name} {speed / 1e9:.1f}" for name, speed in measured["reads"].items())
    return "\n".join(
        [
            table(rows, (f"matrix products of {measured['size']}, Gop/s", *libraries, "cores x ops/cycle x clock")),
            f"{clock}; memory reads, GB/s: {reads}",
        ]
    )


def _share_table(result: dict[str, Any]) -> str:
    found = result.get("shares", {})
    if "unavailable" in found:
        return f"shares of the peak: {found['unavailable']}; {found['install']}"
    if "encode" not in found:
        return ""
    needs = found["needs"]
    best = result["hardware"]["best"]
    rows = []
    for part in ("encode", "prefill"):
        share = found[part]
        cells = [f"{100 * share[precision]:.0f} %" if precision in share else "-" for precision in hardware.PRECISIONS]
        rows.append((part, f"{needs[part] / 1e9:.1f} Gop", f"{share['operations_per_s'] / 1e9:.0f} Gop/s", *cells, "-"))
    if "decode" in found:
        share = found["decode"]
        cells = ["-"] * len(hardware.PRECISIONS)
        rows.append(
            (
                "decode",
                f"{needs['decode_bytes'] / 1e9:.2f} GB",
                f"{share['bytes_per_s'] / 1e9:.1f} GB/s",
                *cells,
                f"{100 * share['memory']:.0f} %",
            )
        )
    head = ("share of the measured peak", "needs", "reached", *(f"of {precision}" for precision in hardware.PRECISIONS), "of memory")
    shown = ", ".join(f"{precision} {speed / 1e9:.0f} Gop/s" for precision, speed in best.items())
    return "\n".join([table(rows, head), f"best of the libraries: {shown}; decode counts what weights of 8 bits must read"])


def _times(name: str, values: dict[str, Any]) -> tuple[str, str, str, str]:
    return (name, *(f"{1000 * values[which]:.1f}" for which in ("median", "min", "max")))  # type: ignore[return-value]


def _sum(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {which: a[which] + b[which] for which in ("median", "min", "max")}


def _gib(count: int | float | None) -> str:
    return "-" if not count else f"{count / 2**30:.2f}"
