"""The detectors by name: the value of ``--model`` is the name of a registered function or of a timm backbone."""

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
    """Import every module of this package once, so that their decorators register the models."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"models.{module.name}")


def list_models() -> list[str]:
    """Return the sorted names of this project's detectors; timm's backbones are also available."""
    _register_all()
    return sorted(_FACTORIES)


def model_arguments(name: str) -> dict[str, object]:
    """Return the optional arguments of a model with their defaults. Raises UserError if there is no such model."""
    parameters = inspect.signature(_factory(name)).parameters
    return {key: value.default for key, value in parameters.items() if value.default is not inspect.Parameter.empty}


def create_model(name: str, /, **model_args: Any) -> Detector:
    """Build a detector by its registered name, or around the timm backbone of that name.

    The detector keeps ``name`` and ``model_args``. Among the arguments, ``channels`` holds the layer widths of a pruned
    detector (see ``models.pruning``).

    Raises:
        UserError: the name is unknown (close matches are listed), or an argument does not exist or does not fit.
    """
    factory = _factory(name)
    arguments = {key: value for key, value in model_args.items() if key != "channels"}
    accepted = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = sorted(set(arguments) - set(accepted))
    if unknown and not takes_any:
        raise UserError(f"expected --model-args of {name} among {', '.join(accepted)}, got {', '.join(unknown)}")
    try:
        detector = factory(**arguments)
        if channels := model_args.get("channels"):
            from models.pruning import narrow_layers

            narrow_layers(detector, channels)
    except UserError:
        raise
    except Exception as error:  # its layers refuse an argument in many ways
        if not model_args:
            raise
        given = ", ".join(f"{key}={value}" for key, value in model_args.items())
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"expected --model-args that {name} can be built with, got {given[:200]}: {reason}") from error
    detector.name, detector.model_args = name, model_args
    return detector


def _factory(name: str) -> Factory:
    """Return the registered function of that name, or the one for the timm backbone. Raises UserError."""
    if name.isidentifier() and Path(__file__).with_name(f"{name}.py").is_file():
        importlib.import_module(f"models.{name}")  # alone: to import timm for the other models takes seconds
    if name not in _FACTORIES:
        _register_all()
    if name in _FACTORIES:
        return _FACTORIES[name]
    import timm

    if not timm.is_model(name):
        check_model_name(name)  # knows the close matches
    from models.timm_backbone import timm_backbone

    return functools.partial(timm_backbone, name)
