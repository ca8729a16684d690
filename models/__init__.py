"""Detectors. A new architecture is one new file in this folder; `models.registry` finds it by itself."""
