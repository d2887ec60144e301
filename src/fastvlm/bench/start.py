"""A whole process from its start to its answer, as a user meets it: `start_process` runs it, `main` is what runs.

Times are on the system's monotonic clock, which all processes of a machine share.
"""

import sys
import time

_FIRST_LINE = time.monotonic()

import json  # noqa: E402  - the clock above is read before anything else is imported
import os  # noqa: E402
import subprocess  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from fastvlm.bench.work import Work


def start_process(work: "Work", environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Start Python, load the model, answer, and say how long each part took, in seconds; `total_s` is until the first token."""
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "fastvlm.bench.start", str(work.folder), repr(started)],
        capture_output=True,
        env={**os.environ, **(environment or {})},
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"a new process failed: {(result.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(result.stdout.splitlines()[-1])


def start_predict(work: "Work", environment: dict[str, str] | None = None) -> float:
    """Seconds from starting `fastvlm predict` until it prints the first byte."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in work.load_options.items() if value is not None]
    command = ["predict", "--model", work.model, "--image", work.picture, "--prompt", work.prompt, "--max-new-tokens", "1", *options]
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "fastvlm", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    seconds = time.monotonic() - start
    _, errors = process.communicate()
    if process.returncode or not first:
        raise RuntimeError(f"fastvlm predict failed: {(errors.decode(errors='replace').strip().splitlines() or ['no message'])[-1]}")
    return seconds


def main(folder: str, started: float) -> int:
    from fastvlm.vlm import load

    imported = time.monotonic()
    # work.py, without importing it: numpy is imported when the model needs it.
    values = json.loads((Path(folder) / "work.json").read_text())
    vlm = load(values["model"], **values["load_options"])
    loaded = time.monotonic()
    content = [{"type": "image", "image": values["picture"]}, {"type": "text", "text": values["prompt"]}]
    result = vlm.generate([{"role": "user", "content": content}], max_new_tokens=values["max_new_tokens"])
    answered = time.monotonic()
    timings = result.timings
    from fastvlm.bench.ours import describe_runtime
    from fastvlm.checkpoint.memory import peak_memory_bytes

    imports_torch = "torch" in sys.modules
    print(
        json.dumps(
            {
                "process_s": _FIRST_LINE - started,
                "import_s": imported - _FIRST_LINE,
                "load_s": loaded - imported,
                "preprocess_s": timings.preprocess_s,
                "encode_s": timings.encode_s,
                "prefill_s": timings.prefill_s,
                "total_s": answered - started - timings.decode_s,
                "per_token_s": timings.per_token_s or None,
                "peak_memory_bytes": peak_memory_bytes(),
                **describe_runtime(vlm.runtime),
                "imports_torch": imports_torch,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
