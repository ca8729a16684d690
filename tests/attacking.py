"""Fixtures that the tests of attack.py share."""

import pytest

import attack
from utils.attacks.threat_model import SETTINGS

SMALL = ["--threads", "1", "--batch-size", "4"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Weak attacks, and few queries in the check against Square; test_checks.py tests the checks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.attacks.checks.SQUARE_QUERIES", 5)
        patch.setitem(SETTINGS, "steps", 3)
        patch.setitem(SETTINGS, "queries", 5)
        yield


@pytest.fixture
def run(image_folder, tiny_checkpoint, tmp_path):
    """Run attack.py on the tiny checkpoint and the test split of the face folder (4 real, 4 fake)."""

    def call(*flags: str, checkpoint=tiny_checkpoint, data=image_folder) -> dict:
        argv = [*SMALL, "--output-dir", tmp_path / "out", *flags]
        argv += ["--checkpoint", checkpoint] if checkpoint else []
        argv += ["--data", data] if checkpoint and data else []
        return attack.main([str(word) for word in argv])

    return call
