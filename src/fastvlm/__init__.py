"""High-resolution vision-language inference with FastVLM (CVPR 2025, arXiv 2412.13303).

    import fastvlm

    vlm = fastvlm.load("nano")
    messages = [{"role": "user", "content": [{"type": "image", "image": "scan.png"}, {"type": "text", "text": "What is the total?"}]}]
    print(vlm.generate(messages).text)

Importing this package loads nothing else: what a name needs is imported when the name is used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["FastVLM", "__version__", "load"]

if TYPE_CHECKING:
    from fastvlm.vlm import FastVLM, load


def __getattr__(name: str) -> Any:
    if name in ("FastVLM", "load"):
        from fastvlm import vlm

        return getattr(vlm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
