"""The book's packages as they are published, each imported from a folder of its own: both are called `d2l`."""

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

from rnnlm_core.errors import ResourceError

CLASSIC = "0.17.6"
NEWEST = "1.0.3"
VERSIONS = (CLASSIC, NEWEST)
# What `d2l/torch.py` imports at its head for chapters on images, notebooks and downloads: nothing that is measured here
# touches it, so where it is not installed an empty module stands for it; whoever did touch it would fail at once.
_UNUSED = {
    "torchvision": ("transforms",),
    "PIL": ("Image",),
    "IPython": ("display",),
    "matplotlib_inline": ("backend_inline",),
    "scipy": ("spatial",),
    "requests": (),
}


def folder(version: str) -> Path:
    """Return where a version of the package lies: under `RNNLM_PEERS`, or where `make bench` puts it.

    Raises `ResourceError` when it is not there.
    """
    root = Path(os.environ.get("RNNLM_PEERS") or Path(__file__).resolve().parent.parent / ".venv" / "peers")
    place = root / f"d2l-{version}"
    if not (place / "d2l" / "torch.py").is_file():
        remedy = "run `make bench`, or set RNNLM_PEERS to the folder that holds it"
        raise ResourceError(f"the book's package d2l {version} is not here", place, remedy)
    return place


def load(version: str) -> Any:
    """Import the PyTorch module of one version; a process can have one of them."""
    if "d2l" not in sys.modules:
        _prepare(version)
    package = importlib.import_module("d2l")
    assert package.__version__ == version, package
    return importlib.import_module("d2l.torch")


def _prepare(version: str) -> None:
    for name, parts in _UNUSED.items():
        if importlib.util.find_spec(name) is None:
            _stand_in(name, parts)
    sys.path.insert(0, str(folder(version)))


def _stand_in(name: str, parts: tuple[str, ...]) -> None:
    module = sys.modules[name] = types.ModuleType(name)
    for part in parts:
        inner = sys.modules[f"{name}.{part}"] = types.ModuleType(f"{name}.{part}")
        setattr(module, part, inner)
    if name == "scipy":  # imported from there by name
        vars(sys.modules["scipy.spatial"])["distance_matrix"] = None
