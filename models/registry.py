"""Names to detectors: the value of ``--model`` is the name of a registered function or of a timm backbone."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path

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
    """Names and defaults of the arguments that the model of this name has by name. Raises UserError."""
    _register_all()
    if name not in _FACTORIES:
        check_model_name(name)
        from models.timm_backbone import timm_backbone

        parameters = inspect.signature(timm_backbone).parameters
    else:
        parameters = inspect.signature(_FACTORIES[name]).parameters
    return {key: value.default for key, value in parameters.items() if value.default is not inspect.Parameter.empty}


def create_model(name: str, **model_args) -> Detector:
    """Build a detector by its registered name, or around the timm backbone of that name.

    ``channels`` among the arguments has the widths of the layers of a pruned detector (see ``models.pruning``).

    Raises:
        UserError: the name is unknown (close matches are listed), or an argument does not exist or does not fit.
    """
    _register_all()
    if channels := model_args.pop("channels", None):
        from models.pruning import narrow_layers

        detector = create_model(name, **model_args)
        narrow_layers(detector, channels)
        return detector
    if name not in _FACTORIES:
        check_model_name(name)
        from models.timm_backbone import timm_backbone

        return _build(name, functools.partial(timm_backbone, name), model_args)
    factory = _FACTORIES[name]
    accepted = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = sorted(set(model_args) - set(accepted))
    if unknown and not takes_any:
        raise UserError(f"expected --model-args of {name} among {', '.join(accepted)}, got {', '.join(unknown)}")
    return _build(name, factory, model_args)


def _build(name: str, factory: Factory, model_args: dict) -> Detector:
    """Call a factory; with arguments from the command line, what its layers refuse is the user's mistake."""
    try:
        return factory(**model_args)
    except (TypeError, ValueError, RuntimeError) as error:
        if not model_args:
            raise
        given = ", ".join(f"{key}={value}" for key, value in model_args.items())
        raise UserError(f"expected --model-args that {name} can be built with, got {given}: {error}") from error
