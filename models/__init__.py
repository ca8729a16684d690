"""Detectors. A new architecture is one new file in this folder, which `models.registry` finds."""
