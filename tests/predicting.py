"""Calls of predict.py that its tests share."""

import csv
import io

import pytest

import predict
from utils.errors import UserError


def run(checkpoint, *arguments):
    """Predict on the CPU; returns the result of main."""
    return predict.main([*arguments, "--checkpoint", checkpoint, "--device", "cpu"])


def csv_rows(text):
    """Return the rows of a predictions file as dicts."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def refused(checkpoint, *arguments):
    """Return the one-line message with which a call is refused."""
    with pytest.raises(UserError) as error:
        run(checkpoint, *arguments)
    assert "\n" not in str(error.value)
    return str(error.value)
