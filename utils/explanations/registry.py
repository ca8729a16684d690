"""Registry of explanation methods: a method is one registered function in a file of ``methods/``.

Names are read from the source text, so usage errors do not wait for torch.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, closest

if TYPE_CHECKING:
    from models.detector import Detector

FILES = sorted(Path(__file__).with_name("methods").glob("[!_]*.py"))
TARGETS = ("predicted", "fake", "real")
CONTROLS = {"random": "Random map", "centre": "Centre prior", "edges": "Edge map"}

_REGISTERED = re.compile(r"^@register_explanation\(\s*[\"']([^\"']+)", re.MULTILINE)
_METHODS: dict[str, Method] = {}

# What a method may need of a detector: a check (detector, layer), and what to say when it fails.
NEEDS: dict[str, tuple[Callable[[Any, str | None], bool], str]] = {
    "gradient": (lambda detector, _: detector.has_input_gradient, "it has no gradient"),
    "layer": (
        lambda detector, layer: bool(layer or detector.cam_layer),
        "it has no feature map; name one with --layer",
    ),
    "attention": (lambda detector, _: bool(attention_layers(detector)), "it has no attention between patches"),
    "sequence": (lambda detector, _: getattr(detector, "reader", None) is not None, "it reads no sequence"),
    "features": (lambda detector, _: detector.is_classical, "it reads no named features"),
}


@dataclass(frozen=True)
class Method:
    """An explanation method.

    Attributes:
        name: the value of ``--methods``.
        title: the name in tables and figures.
        function: ``function(question, **options)`` returns maps ``(N, h, w)``, not below 0; with ``makes_maps`` False
            it is ``function(detector, paths, stems)``, which writes figures and returns a row for each path.
        needs: keys of ``NEEDS``.
        table_options: options that make the method cheap enough for ``--faithfulness``.
    """

    name: str
    title: str
    function: Callable[..., Any]
    needs: tuple[str, ...] = ()
    makes_maps: bool = True
    table_options: Mapping[str, Any] = field(default_factory=dict)

    def obstacle(self, detector: Detector, layer: str | None = None) -> str | None:
        """Return why the method does not work for a detector, None if it does."""
        unmet = (reason for check, reason in (NEEDS[need] for need in self.needs) if not check(detector, layer))
        return next(unmet, None)


def attention_layers(detector: Any) -> list[Any]:
    """Return the attention of each block of a plain transformer, which weighs patches; none for another detector."""
    blocks = getattr(getattr(detector, "backbone", None), "blocks", None)
    if not blocks or not hasattr(detector.cam_reshape, "prefix_tokens"):
        return []
    layers = [getattr(block, "attn", None) for block in blocks]
    # Those of XCiT, which weigh channels, have no scale.
    wanted = ("fused_attn", "attn_drop", "scale")
    return layers if all(hasattr(layer, name) for layer in layers for name in wanted) else []


def register_explanation(
    name: str,
    title: str,
    needs: Sequence[str] = (),
    *,
    makes_maps: bool = True,
    table_options: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as an explanation method; see :class:`Method`.

    Raises:
        ValueError: the name is taken.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in _METHODS:
            first = _METHODS[name].function.__module__
            raise ValueError(f"explanation {name!r} is registered twice: {first} and {function.__module__}")
        _METHODS[name] = Method(name, title, function, tuple(needs), makes_maps, table_options or {})
        return function

    return register


def all_methods() -> dict[str, Method]:
    """Every registered method by name, in the order of the files."""
    for file in FILES:
        importlib.import_module(f"utils.explanations.methods.{file.stem}")
    return dict(sorted(_METHODS.items(), key=lambda item: item[1].function.__module__))


def table_options(names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Options of methods for ``--faithfulness``."""
    return {name: all_methods()[name].table_options for name in names}


def method_names() -> list[str]:
    """Names of all methods, without importing them."""
    return [name for file in FILES for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))]


def title_of(method: str) -> str:
    """The name of a method or a control in tables and figures."""
    return CONTROLS[method] if method in CONTROLS else all_methods()[method].title


def check_methods(names: Sequence[str]) -> list[str]:
    """Return the names without repetitions, in the given order.

    Raises:
        UserError: a name is unknown; the message names the closest one.
    """
    known = method_names()
    for name in names:
        if name not in known:
            raise UserError(f"expected --methods {', '.join(known)}, got {name!r}{closest(name, known)}")
    return list(dict.fromkeys(names))


def usable_methods(detector: Detector, layer: str | None = None) -> list[str]:
    """Names of the methods that can explain this detector."""
    return [name for name, method in all_methods().items() if method.obstacle(detector, layer) is None]


def check_usable(detector: Detector, names: Sequence[str], layer: str | None = None) -> None:
    """Refuse methods that cannot explain this detector.

    Raises:
        UserError: the message names the methods that can.
    """
    methods = all_methods()
    refused = {name: reason for name in names if (reason := methods[name].obstacle(detector, layer))}
    if refused:
        raise UserError(
            f"expected methods that work for {type(detector).__name__}, got {', '.join(refused)}: "
            f"{next(iter(refused.values()))}; use --methods {' '.join(usable_methods(detector, layer))}"
        )
