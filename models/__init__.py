"""Detectors. A new architecture is one new file in this folder: it is found and registered by itself."""

import importlib
import pkgutil

from models.detector import Detector
from models.registry import create_model, list_models, register_model

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Detector", "create_model", "list_models", "register_model"]
