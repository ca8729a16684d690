"""Write the release of a trained detector: a small, verified file without local paths.

  python -m studies.release --checkpoint checkpoints/tf_efficientnet_b0-all --output checkpoints/deepfake-v2.pt

The output is an ordinary checkpoint; predict.py, explain.py and serve.py use the first of RELEASES
(utils/checkpoint_files.py) by default. It keeps the weights (large kernels and matrices in half precision or int8,
converted to float32 when loaded), the geometry, the thresholds, the calibration, the metrics, the settings and the
fingerprints of the training data; paths outside the project are shortened to their last part. It is refused above 10
MB, or if its logits on twelve generated images differ from those of the source by more than 0.05. A JSON file of the
same name records sha256, size, this difference, and the logits of three of the images, which the tests compare. Prints

  checkpoint checkpoints/deepfake-v2.pt
  description checkpoints/deepfake-v2.json
  sha256 60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752
  bytes 8404079
  max_logit_difference 0.0042
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.args import EXIT_DONE, add_base_weights, command_line, make_parser, run_script
from utils.checkpoint_files import check_checkpoint_file
from utils.checkpoints.slimming import description_file
from utils.errors import UserError


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of release.py."""
    parser = make_parser(__doc__, "python -m studies.release")
    parser.add_argument("--checkpoint", required=True, metavar="PT", help="the trained run, or its best.pt")
    parser.add_argument("--output", required=True, metavar="FILE.pt", help="the file to write or replace")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp16",
        help="type of large kernels and matrices; int8 has one scale per channel (default: fp16)",
    )
    add_base_weights(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Write the release; returns the content of the JSON file, with ``exit_code``."""
    args = get_args_parser().parse_args(argv)
    source = check_checkpoint_file(args.checkpoint, needs_weights=True)
    output = check_output(args.output, source)
    command = command_line("-m studies.release", argv)

    from utils.checkpoints.slimming import write_release

    description = write_release(source, output, args.precision, command)
    print(f"checkpoint {output}")
    print(f"description {description_file(output)}")
    print(f"sha256 {description['sha256']}")
    print(f"bytes {description['bytes']}")
    print(f"max_logit_difference {description['parity']['max_logit_difference']:.4f}")
    return {**description, "exit_code": EXIT_DONE}


def check_output(text: str, source: Path) -> Path:
    """Return the path to write. Raises UserError for anything but a new or another .pt file."""
    output = Path(text)
    if output.suffix != ".pt" or output.is_dir():
        raise UserError(f"expected --output to be a file FILE.pt, got {text!r}")
    if output.exists() and output.samefile(source):
        raise UserError(f"expected --output to be another file than the source, got {text!r}; choose another name")
    return output


if __name__ == "__main__":
    run_script(main)
