"""Names to detectors: the value of ``--model`` is the name of a registered function or of a timm backbone."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.detector import Detector
from utils.errors import UserError
from utils.model_names import check_model_name

Factory = Callable[..., Detector]
_FACTORIES: dict[str, Factory] = {}


def register_model(factory: Factory) -> Factory:
    """Register a function that builds a detector; the function's name is the model's name.

    Raises:
        ValueError: two functions share a name.
    """
    name = factory.__name__
    if name in _FACTORIES:
        raise ValueError(f"model {name!r} is registered twice: {_FACTORIES[name].__module__} and {factory.__module__}")
    _FACTORIES[name] = factory
    return factory


@functools.cache
def _register_all() -> None:
    """Import every file of this folder once: its decorators register the models."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"models.{module.name}")


def list_models() -> list[str]:
    """Names of all detectors that this project defines, sorted; timm's backbones come on top of them."""
    _register_all()
    return sorted(_FACTORIES)


def model_arguments(name: str) -> dict[str, object]:
    """Return the optional arguments of a model with their defaults. Raises UserError if there is no such model."""
    _register_all()
    parameters = inspect.signature(_FACTORIES.get(name) or _timm_factory(name)).parameters
    return {key: value.default for key, value in parameters.items() if value.default is not inspect.Parameter.empty}


def create_model(name: str, **model_args: Any) -> Detector:
    """Build a detector by its registered name, or around the timm backbone of that name.

    The detector keeps ``name`` and ``model_args``. Among the arguments, ``channels`` holds the layer widths of a pruned
    detector (see ``models.pruning``).

    Raises:
        UserError: the name is unknown (close matches are listed), or an argument does not exist or does not fit.
    """
    _register_all()
    arguments = {key: value for key, value in model_args.items() if key != "channels"}
    if name in _FACTORIES:
        factory = _FACTORIES[name]
        accepted = inspect.signature(factory).parameters
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
        unknown = sorted(set(arguments) - set(accepted))
        if unknown and not takes_any:
            raise UserError(f"expected --model-args of {name} among {', '.join(accepted)}, got {', '.join(unknown)}")
    else:
        factory = functools.partial(_timm_factory(name), name)
    try:
        detector = factory(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:  # raised by its layers
        if not arguments:
            raise
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise UserError(f"expected --model-args that {name} can be built with, got {given}: {error}") from error
    if channels := model_args.get("channels"):
        from models.pruning import narrow_layers

        narrow_layers(detector, channels)
    detector.name, detector.model_args = name, model_args
    return detector


def _timm_factory(name: str) -> Factory:
    """Return the function that builds a detector around a timm backbone. Raises UserError if timm lacks the name."""
    check_model_name(name)
    from models.timm_backbone import timm_backbone

    return timm_backbone
