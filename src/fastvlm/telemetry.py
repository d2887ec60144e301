"""Switch off what dependencies report to their makers, before they are imported. Nothing here writes to the user's home.

telemetry.disable()
import openvino
"""

import os
import sys

# A value that the user has set stays: it is their word against a default.
_OPT_OUTS = {
    "DO_NOT_TRACK": "1",
    "DISABLE_TELEMETRY": "1",  # the older name that huggingface_hub and transformers read
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "ORT_DISABLE_TELEMETRY": "1",
}


def disable() -> None:
    """Call before importing openvino, nncf, huggingface_hub, transformers or ray; calling it again costs nothing."""
    for name, value in _OPT_OUTS.items():
        os.environ.setdefault(name, value)
    # `import openvino` (and nncf) report the import, the model conversion and its arguments through this package, and the only
    # documented refusal is a file in the home folder. Both fall back to a stub of their own when the package cannot be imported.
    telemetry = sys.modules.get("openvino_telemetry")
    if telemetry is None:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # the import system's way to say "not installed"
    elif hasattr(telemetry, "Telemetry"):  # somebody imported it first: let it send nothing more
        for method in ("send_event", "send_error", "send_stack_trace", "start_session", "end_session"):
            setattr(telemetry.Telemetry, method, _send_nothing)
    hub_constants = sys.modules.get("huggingface_hub.constants")
    if hub_constants is not None and os.environ["HF_HUB_DISABLE_TELEMETRY"].upper() in ("1", "ON", "YES", "TRUE"):
        setattr(hub_constants, "HF_HUB_DISABLE_TELEMETRY", True)  # noqa: B010 - read from the environment at its import, which has been


def _send_nothing(*args: object, **kwargs: object) -> None:
    return None
