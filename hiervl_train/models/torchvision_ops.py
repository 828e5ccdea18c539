"""Makes `import torchvision` (so also timm and transformers) work with a torch that its operators were not built for.

The torchvision wheels on PyPI are CUDA builds. With a CPU-only torch their compiled operators do not load, and
`import torchvision` fails where it registers the shape rule of an undeclared operator. Declaring the two operators is
enough: this project never calls them.
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# Declarations live as long as this object.
_declared: torch.library.Library | None = None


def declare_missing() -> bool:
    """Declare `torchvision::nms` and `::qnms` if the compiled operators cannot be loaded; return whether it did."""
    global _declared
    if _declared is not None or _compiled_operators_load():
        return False
    _declared = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _declared.define(name + _SIGNATURE)
    return True


def _compiled_operators_load() -> bool:
    """Load torchvision's shared library, as it does itself at import; return whether that registered the operators."""
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return True  # torchvision is not installed
    for library in sorted(Path(package.origin).parent.glob("_C*.so")):
        with suppress(OSError):  # built for another torch: symbols or CUDA libraries are missing
            torch.ops.load_library(str(library))
    return hasattr(torch.ops.torchvision, "nms")


declare_missing()
