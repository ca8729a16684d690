"""Exports that the tests of engines make, and how far their logits may differ."""

import benchmark

FLOAT_BOUND, INT8_BOUND = 1e-4, 0.25  # of a logit


def export(checkpoint, output, *flags):
    return benchmark.main(["--checkpoint", str(checkpoint), "--output", str(output), *map(str, flags)])
