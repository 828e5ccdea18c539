"""Makes `import torchvision`, so also timm and transformers, work beside a torch that its operators do not fit.

The torchvision wheels on PyPI are CUDA builds. Beside a CPU-only torch their compiled operators do not load, and
`import torchvision` stops where it registers the shape rule of an operator that nobody declared. Declaring the two
operators that it asks for is enough: nothing in this project calls them, and they fail by name if somebody does.
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# A library's declarations live as long as the object does.
_declared: torch.library.Library | None = None


def declare_missing() -> bool:
    """Declare `torchvision::nms` and `::qnms` where the compiled operators cannot be loaded; say whether it did."""
    global _declared
    if _declared is not None or _compiled_operators_load():
        return False
    _declared = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _declared.define(name + _SIGNATURE)
    return True


def _compiled_operators_load() -> bool:
    """Try what torchvision itself does at import: load its shared library, which registers the operators."""
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return True  # without torchvision there is nothing to mend
    for library in sorted(Path(package.origin).parent.glob("_C*.so")):
        with suppress(OSError):  # a build for another torch: its symbols or its CUDA libraries are not here
            torch.ops.load_library(str(library))
    return hasattr(torch.ops.torchvision, "nms")


declare_missing()
