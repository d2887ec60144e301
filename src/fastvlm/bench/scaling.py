"""Time to the first token over resolutions and model sizes, against LLaVA-OneVision: the paper's Figure 1 and Table 10, on this machine.

result = measure({"0.5b": folder}, resolutions=[512, 1024], onevision=[1152], threads=2, say=print)
print(render(result))
plot(result, "scaling.png")
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvlm.bench import hardware
from fastvlm.bench.contestant import Contestant, ContestantError
from fastvlm.bench.environment import spread, versions
from fastvlm.bench.peers import llava_onevision
from fastvlm.bench.ttft import OURS, PEERS, Save, Say, continued, machine_lines, table
from fastvlm.bench.work import make_work

# The paper's Table 10: milliseconds on an M1 Max, encoder on the Neural Engine, language model on the GPU.
PAPER = (
    ("LLaVA-OneVision", "Qwen2-0.5B", 1152, 7290, 2721.4, 11402.4),
    ("FastVLM", "Qwen2-0.5B", 1024, 256, 116.3, 50.5),
    ("FastVLM AnyRes", "Qwen2-0.5B", 2048, 1280, 581.5, 336.4),
    ("FastVLM", "Qwen2-1.5B", 768, 144, 54.8, 97.1),
    ("FastVLM", "Qwen2-1.5B", 1024, 256, 116.3, 116.1),
    ("FastVLM AnyRes", "Qwen2-1.5B", 2048, 1280, 581.5, 681.7),
    ("FastVLM", "Qwen2-7B", 768, 144, 54.8, 391.2),
    ("FastVLM", "Qwen2-7B", 1024, 256, 116.3, 524.5),
    ("FastVLM AnyRes", "Qwen2-7B", 2048, 1280, 581.5, 3139.5),
)


def measure(
    models: Mapping[str, str],
    *,
    resolutions: Sequence[int],
    onevision: Sequence[int],
    threads: int,
    runs: int = 5,
    text_tokens: int = 40,
    load_options: dict[str, Any] | None = None,
    say: Say,
    result: dict[str, Any] | None = None,
    save: Save = lambda result: None,
) -> dict[str, Any]:
    """Warm runs from pixels in memory.

    Args:
        models: size's name -> what `fastvlm.load` takes.
        resolutions: sides in pixels, multiples of 64.
        onevision: sides at which LLaVA-OneVision-0.5B is run once each; none leaves it out.
        result, save: as for `fastvlm.bench.ttft.measure`.
    """
    new: dict[str, Any] = {
        "benchmark": "scaling",
        "machine": hardware.describe_machine(threads),
        "versions": versions(),
        "text_tokens": text_tokens,
        "paper": [list(row) for row in PAPER],
    }
    result = {"ours": [], "onevision": [], **continued(new, result), "not_measured": []}
    folder = Path(tempfile.mkdtemp(prefix="fastvlm-bench-"))
    try:
        for size, model in models.items():
            known = {row["side"] for row in result["ours"] if row["size"] == size}
            missing = [side for side in resolutions if side not in known]
            if not missing:
                continue
            say(f"{size}: loading")
            work = make_work(
                folder / size, model=model, threads=threads, load_options=load_options, text_tokens=text_tokens, max_new_tokens=2
            )
            try:
                with Contestant(OURS, "default", work, {"OMP_NUM_THREADS": str(threads)}) as ours:
                    for side in missing:
                        say(f"{size} at {side} x {side}")
                        ours.run(f"at {side}")
                        found = [ours.run(f"at {side}") for _ in range(runs)]
                        what = {name: ours.facts[name] for name in ("runtime", "precision")}
                        result["ours"].append(_row(found, size=size, side=side, **what))
                        save(result)
            except ContestantError as error:
                say(f"{size} failed: {error}")
                result["not_measured"].append(f"fastvlm {size}: {error}")
        _measure_onevision(result, onevision, folder, models, threads, text_tokens, say, save)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    save(result)
    return result


def _measure_onevision(
    result: dict[str, Any],
    sides: Sequence[int],
    folder: Path,
    models: Mapping[str, str],
    threads: int,
    text_tokens: int,
    say: Say,
    save: Save,
) -> None:
    known = {row["side"] for row in result["onevision"]}
    missing = [side for side in sides if side not in known]
    if not missing:
        return
    if (reason := llava_onevision.unavailable_reason()) is not None:
        result["not_measured"].append(f"LLaVA-OneVision: {reason}; {llava_onevision.INSTALL}")
        return
    work = make_work(folder / "onevision", model=next(iter(models.values())), threads=threads, text_tokens=text_tokens, max_new_tokens=2)
    for side in missing:
        say(f"LLaVA-OneVision-0.5B at {side} x {side}")
        try:
            with Contestant(f"{PEERS}.llava_onevision", f"bfloat16 sdpa {side}", work) as peer:
                row = _row([{**peer.run(), **peer.facts}], size="0.5b", side=side, precision="bfloat16")
            result["onevision"].append(row)
            save(result)
        except ContestantError as error:
            say(f"LLaVA-OneVision failed: {error}")
            result["not_measured"].append(f"LLaVA-OneVision at {side}: {error}")


def _row(runs: list[dict[str, Any]], **what: Any) -> dict[str, Any]:
    times = {name: spread([run[name] for run in runs]) for name in ("ttft_s", "encode_s", "prefill_s")}
    return {**what, "image_tokens": runs[-1]["image_tokens"], **times}


# What people read


def render(result: dict[str, Any]) -> str:
    """Our table, LLaVA-OneVision's and the paper's."""
    lines = [
        f"fastvlm bench scaling: time to the first token, about {result['text_tokens']} text tokens, random weights",
        *machine_lines(result),
    ]
    by_size = sorted(result["ours"], key=lambda row: (float(row["size"].replace("nano", "0").rstrip("b")), row["side"]))
    named = [(f"FastVLM {row['size']}, {row['runtime']} {row['precision'] or ''}".rstrip(), row) for row in by_size]
    named += [(f"LLaVA-OneVision-0.5B, transformers {row['precision']}", row) for row in result["onevision"]]
    rows = [
        (
            name,
            str(row["side"]),
            str(row["image_tokens"]),
            *(f"{1000 * row[part]['median']:.0f}" for part in ("encode_s", "prefill_s", "ttft_s")),
            f"{1000 * row['ttft_s']['min']:.0f} - {1000 * row['ttft_s']['max']:.0f}",
            str(row["ttft_s"]["runs"]),
        )
        for name, row in named
    ]
    head = ("milliseconds, medians", "side", "image tokens", "encode", "prefill", "first token", "least - most", "runs")
    paper = [
        (f"{model}, {decoder}", str(side), str(tokens), f"{vision:.0f}", f"{prefill:.0f}", f"{vision + prefill:.0f}")
        for model, decoder, side, tokens, vision, prefill in result["paper"]
    ]
    parts = ["\n".join(lines), "Measured here:\n" + table(rows, head)]
    parts += [f"not measured: {reason}" for reason in result["not_measured"]]
    if speedup := sooner(result):
        parts.append(speedup)
    parts.append(
        "The paper's (Table 10), not measured here: M1 Max, encoder on its Neural Engine, language model on its GPU, image tokens only:\n"
        + table(paper, head[:6])
    )
    return "\n\n".join(parts)


def sooner(result: dict[str, Any]) -> str | None:
    """The paper's claim in our numbers: 0.5B at 1024 pixels against LLaVA-OneVision-0.5B at 1152."""
    ours = next((row for row in result["ours"] if (row["size"], row["side"]) == ("0.5b", 1024)), None)
    theirs = next((row for row in result["onevision"] if row["side"] == 1152), None)
    if ours is None or theirs is None:
        return None
    factor = theirs["ttft_s"]["median"] / ours["ttft_s"]["median"]
    return f"FastVLM 0.5b at 1024 is {factor:.1f}x sooner than LLaVA-OneVision-0.5B at 1152; the paper's 85x is 14124 ms over 166 ms"


def plot(result: dict[str, Any], path: str | Path) -> None:
    """First token over resolution, and what it is made of, as a PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), gridspec_kw={"width_ratios": [3, 2]})
    series: dict[str, list[dict[str, Any]]] = {}
    for row in result["ours"]:
        series.setdefault(f"FastVLM {row['size'].upper()}", []).append(row)
    if result["onevision"]:
        series["LLaVA-OneVision 0.5B"] = result["onevision"]
    for name, rows in series.items():
        style = {"linestyle": "--", "marker": "s", "color": "black"} if name.startswith("LLaVA") else {"marker": "o"}
        rows = sorted(rows, key=lambda row: row["side"])
        left.plot([row["side"] for row in rows], [row["ttft_s"]["median"] for row in rows], label=name, **style)
    left.set(xlabel="side of the picture, pixels", ylabel="time to the first token, s", yscale="log")
    left.grid(True, which="both", alpha=0.3)
    left.legend()
    # One bar a model: at the resolution of the paper's table, else at the largest that was measured.
    chosen = [(name, max(rows, key=lambda row: (row["side"] in (1024, 1152), row["side"]))) for name, rows in series.items()]
    labels = [f"{name}\n{row['side']} px, {row['image_tokens']} tokens" for name, row in chosen]
    encode = [row["encode_s"]["median"] for _, row in chosen]
    total = [row["ttft_s"]["median"] for _, row in chosen]
    right.barh(labels, encode, height=0.5, label="encode")
    bars = right.barh(labels, [t - e for t, e in zip(total, encode, strict=True)], left=encode, height=0.5, label="prefill")
    right.bar_label(bars, [f" {seconds:.2f} s" for seconds in total])
    right.set(xlabel="time to the first token, s", xlim=(0, 1.25 * max(total)), ylim=(len(chosen) - 0.5, -0.9))
    right.legend(loc="upper right", ncols=2)
    machine = result["machine"]
    figure.suptitle(f"Time to the first token, {machine['cpu']}, {machine['threads']} threads, medians", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
