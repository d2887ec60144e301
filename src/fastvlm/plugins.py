"""Plugins found by file name: a runtime, an export target, an evaluation task is one file in its folder.

    load_plugin("fastvlm.runtimes", "openvino")   # the module fastvlm.runtimes.openvino
    list_plugins("fastvlm.runtimes")              # ["onnxruntime", "openvino", "torch"]

Listing reads the folder and imports nothing but the package itself. Names that start with an underscore are private.
"""

import importlib
import pkgutil
from types import ModuleType


def list_plugins(package: str) -> list[str]:
    """Sorted names of the plugins in `package` (a dotted name)."""
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))


def load_plugin(package: str, name: str) -> ModuleType:
    """Import plugin `name` of `package`; a `ValueError` lists the valid names."""
    names = list_plugins(package)
    if name not in names:
        kind = package.rsplit(".", 1)[-1].removesuffix("s")
        raise ValueError(f"unknown {kind} {name!r}; available: {', '.join(names)}")
    return importlib.import_module(f"{package}.{name}")
