"""The tests of the page use the fixtures of the other tests; they are run by `make test-web`, not by `make test`."""

from tests.conftest import _tiny_checkpoint_file, tiny_checkpoint

__all__ = ["_tiny_checkpoint_file", "tiny_checkpoint"]
