"""Time to the first token: ours in all its parts, beside peers, beside what the hardware can do.

result = measure(Options(model="nano", threads=2), say=print)
print(render(result))
"""

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fastvlm.bench import hardware, operators
from fastvlm.bench.contestant import Contestant, ContestantError
from fastvlm.bench.environment import others_running, spread, versions
from fastvlm.bench.operations import count_operations
from fastvlm.bench.start import start_predict, start_process
from fastvlm.bench.work import Work, make_work
from fastvlm.plugins import load_plugin

PEERS = "fastvlm.bench.peers"
OURS = "fastvlm.bench.ours"
PHASES = ("first", "cold", "warm")
_PARTS = ("ttft_s", "encode_s", "prefill_s", "first_token_s", "per_token_s", "measured_ttft_s")

Say = Callable[[str], None]
Save = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        model: what `fastvlm.load` takes; `random` names the shape when it was made by `random_checkpoint`.
        phases: of `PHASES`. `first` converts into an empty cache folder, which is then used for the rest and removed.
        runs: of each program, and of new processes.
        peers: names in `fastvlm.bench.peers`.
        operators: also say how long each kind of operator takes; the openvino runtime can.
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
    operators: bool = False


def measure(options: Options, say: Say, result: dict[str, Any] | None = None, save: Save = lambda result: None) -> dict[str, Any]:
    """Everything that `options` asks for. What cannot be measured is in the result with the reason.

    Args:
        result: of an earlier call that was broken off: what it holds is not measured again.
        save: called with the result so far whenever a part of it is there.

    Raises:
        ValueError: `result` is of another model, other work or another machine.
    """
    folder = Path(tempfile.mkdtemp(prefix="fastvlm-bench-"))
    try:
        return _measure(options, folder, say, result, save)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(options: Options, folder: Path, say: Say, earlier: dict[str, Any] | None, save: Save) -> dict[str, Any]:
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
    result: dict[str, Any] = {
        "benchmark": "ttft",
        "model": options.random or options.model,
        "random_weights": options.random is not None,
        "machine": hardware.describe_machine(options.threads),
        "versions": versions(),
        "work": {
            "image_size": list(pixels.shape[:1] + pixels.shape[2:]),
            "image_tokens": work.image_tokens,
            "text_tokens": work.prompt_tokens - work.image_tokens,
            "max_new_tokens": work.max_new_tokens,
        },
    }
    result = continued(result, earlier)
    environment = {"OMP_NUM_THREADS": str(options.threads)}
    if "first" in options.phases and "first" not in result:
        # What the first run converts is used for the rest, and goes when this ends.
        environment["FASTVLM_CACHE"] = str(folder / "cache")
        say("first run after installation: empty caches")
        empty = {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        result["first"] = start_process(work, {**environment, **empty})
        save(result)
    if "cold" in options.phases and "cold" not in result:
        result["cold"] = _cold(work, environment, options.runs, say)
        save(result)
    with contextlib.ExitStack() as stack:

        @functools.cache
        def ours() -> Contestant:
            """Loaded when it is first needed, and kept while peers come and go."""
            say("loading fastvlm")
            contestant = stack.enter_context(Contestant(OURS, "default", work, environment))
            contestant.run()  # the first answer makes what later ones reuse
            return contestant

        if "warm" in options.phases and "warm" not in result:
            result["warm"] = _warm(ours(), options.runs, say)
            save(result)
        for name in options.peers:
            for measured in _peer(name, work, ours, options.runs, result.setdefault("peers", []), say):
                result["peers"].append(measured)
                save(result)
    if options.operators and "operators" not in result:
        say("operators")
        result["operators"] = operators.measure(work, environment)
        save(result)
    if options.hardware:
        if "hardware" not in result:
            result["hardware"] = hardware.measure(options.threads, on_step=say)
        result["shares"] = shares(result, work, pixels.shape)
    save(result)
    return result


def continued(new: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """`earlier` where it is of the same benchmark on the same work and machine as `new`; `new` where there is none."""
    if earlier is None:
        return {**new, "warning": others_running()}
    for name, value in new.items():
        if earlier.get(name) != value:
            raise ValueError(
                f"the earlier result is of other {name} ({str(earlier.get(name))[:200]}); name another file, or remove that one"
            )
    return earlier


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


def _warm(ours: Contestant, runs: int, say: Say) -> dict[str, Any]:
    """Ours in one process, alone."""
    answers = []
    for number in range(runs):
        say(f"warm run {number + 1} of {runs}")
        answers.append(ours.run())
    second = [ours.run("second_question") for _ in range(runs)]
    return {
        **ours.facts,
        **_summary(answers),
        "completion_tokens": answers[-1]["completion_tokens"],
        "preprocess": _summary([ours.run("preprocess") for _ in range(runs)], ("decode_picture_s", "resize_s", "tokenize_s")),
        "second_question": {
            **_summary(second, ("first_ttft_s", "second_ttft_s")),
            "cached_tokens": second[-1]["cached_tokens"],
        },
        "streaming": _summary([ours.run("streaming") for _ in range(runs)], ("stream_s", "steps_s")),
        "batch": ours.run("batch"),
        "peak_memory_bytes": answers[-1]["peak_memory_bytes"],
    }


def _peer(
    name: str, work: Work, ours: Callable[[], Contestant], runs: int, known: list[dict[str, Any]], say: Say
) -> Iterator[dict[str, Any]]:
    """One peer's variants, each in turns with ours; those that are `known` are left out."""
    peer = load_plugin(PEERS, name)
    common = {"peer": name, "title": peer.TITLE, "part": peer.PART}
    known[:] = [result for result in known if result["peer"] != name or "ratios" in result]  # what did not work is tried again
    reason = peer.unavailable_reason()
    if reason is not None:
        say(f"{peer.TITLE}: {reason}")
        yield {**common, "unavailable": reason, "install": peer.INSTALL}
        return
    done = {result["variant"] for result in known if result["peer"] == name}
    for variant in peer.variants(work):
        if variant in done:
            continue
        say(f"{peer.TITLE}, {variant}")
        own = ours()
        try:
            with Contestant(f"{PEERS}.{name}", variant, work) as contestant:
                yield {**common, "variant": variant, **_beside(contestant, own, work, peer, runs)}
        except ContestantError as error:
            say(f"{peer.TITLE}, {variant} failed: {error}")
            yield {**common, "variant": variant, "failed": str(error)}


def _beside(contestant: Contestant, ours: Contestant, work: Work, peer: ModuleType, runs: int) -> dict[str, Any]:
    count = runs if peer.RUNS is None else min(runs, peer.RUNS)
    side = getattr(peer, "RESOLUTION", None)
    method = "run" if side is None else f"at {side}"
    if count > 1:
        contestant.run()  # what is done once, such as compiling, is not part of an answer
    if side is not None:
        seen, own = contestant.facts["image_tokens"], ours.run(method)["image_tokens"]
        if seen != own:
            raise ContestantError(f"it saw {seen} image tokens and ours {own}")
    theirs, own_runs = take_turns(contestant.run, lambda: ours.run(method), count)
    measured = {
        "part": peer.PART,
        "facts": contestant.facts,
        "load_s": contestant.load_s,
        **_summary(theirs),
        "peak_memory_bytes": max(run["peak_memory_bytes"] or 0 for run in theirs),
        "ours": _summary(own_runs),
    }
    logits, own_logits = work.left(contestant.facts.get("logits", "")), work.left("logits-ours")
    if logits is not None and own_logits is not None:
        measured["logits_cosine"] = cosine(logits, own_logits)
    return {**measured, "ratios": ratios(measured)}


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
    from fastvlm.runtimes import is_installed

    if not is_installed("torch"):
        return {"unavailable": "counting operations needs PyTorch", "install": 'pip install "fastvlm[bench]"'}
    config = work.source().config
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


def _summary(runs: list[dict[str, Any]], names: tuple[str, ...] = _PARTS) -> dict[str, Any]:
    return {name: spread([run[name] for run in runs]) for name in names if runs[0].get(name) is not None}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """How alike two vectors of logits are; heads may have rows for ids that nobody knows, of which one program shows more."""
    size = min(len(a), len(b))
    a, b = a[:size].astype(np.float64), b[:size].astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


# What people read


def render(result: dict[str, Any]) -> str:
    """The tables."""
    parts = [_head(result)]
    if result.get("peers"):
        parts.append(_peer_table(result["peers"]))
    if "warm" in result:
        parts.append(_warm_table(result["warm"]))
    if "first" in result or "cold" in result:
        parts.append(_start_table(result))
    if "hardware" in result:
        parts.append(hardware_table(result["hardware"]))
        parts.append(_share_table(result))
    if "operators" in result:
        parts.append(table(operators.rows(result["operators"]), ("operators of the openvino runtime", "count", "ms", "of the part")))
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


def table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """Columns as wide as what stands in them; the first is text, the others are numbers."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = []
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        text.append("  ".join(cells).rstrip())
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _peer_table(peers: list[dict[str, Any]]) -> str:
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
    if any("logits_cosine" in peer for peer in peers):
        notes.append("cosine: of the logits that the first token is picked from, with ours, between programs with the same weights")
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
    if "stream_s" in warm.get("streaming", {}):
        stream, steps = (warm["streaming"][name]["median"] for name in ("stream_s", "steps_s"))
        lines.append(f"picking tokens and streaming their text: {stream / steps - 1:.2%} on top of the model's steps")
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
