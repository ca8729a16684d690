"""What explanation methods there are and what each needs of a detector; light, so that usage errors answer at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from utils.errors import UserError

TARGETS = ("predicted", "fake", "real")


@dataclass(frozen=True)
class Needs:
    """A method's name for readers, and whether it differentiates the detector, reads a layer, or reads an LSTM."""

    title: str
    gradient: bool = False
    layer: bool = False
    steps: bool = False


METHODS = {
    "gradcam": Needs("Grad-CAM", gradient=True, layer=True),
    "gradcam++": Needs("Grad-CAM++", gradient=True, layer=True),
    "hirescam": Needs("HiResCAM", gradient=True, layer=True),
    "layercam": Needs("LayerCAM", gradient=True, layer=True),
    "eigencam": Needs("Eigen-CAM", layer=True),
    "scorecam": Needs("Score-CAM", layer=True),
    "steps": Needs("LSTM steps", gradient=True, steps=True),
    "integrated_gradients": Needs("Integrated gradients", gradient=True),
    "occlusion": Needs("Occlusion"),
    "superpixels": Needs("LIME superpixels"),
}
FEATURES = "features"  # no map: which handcrafted features spoke for the verdict, and the spectrum
CONTROLS = {"random": "Random map", "centre": "Centre prior", "edges": "Edge map"}


def title_of(method: str) -> str:
    """The name of a method or a control in tables and figures."""
    return CONTROLS[method] if method in CONTROLS else METHODS[method].title


def check_methods(names: Sequence[str]) -> list[str]:
    """Return the names, each once, in the order given.

    Raises:
        UserError: a name is unknown; the message has the closest one.
    """
    known = [*METHODS, FEATURES]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "choose one of these"
            raise UserError(f"expected --methods {', '.join(known)}, got {name!r}; {hint}")
    return list(dict.fromkeys(names))
