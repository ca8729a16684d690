"""The flags of training that say how, by subject; train.py declares what and where. Needs no torch."""

from __future__ import annotations

import argparse

from utils.args import add_seed, float_in, int_in


def add_shape_group(parser: argparse.ArgumentParser) -> None:
    """Add what becomes of an image: geometry, augmentation, forgeries, balance."""
    shape = parser.add_argument_group("geometry and augmentation")
    shape.add_argument("--geometry", choices=("crop", "resize"), default="crop", help="see datasets/transforms.py")
    shape.add_argument("--image-size", type=int_in(16, 4096), help="side of the input in px (default: the model's)")
    shape.add_argument("--resize-to", type=int_in(16, 8192), help="scale the shorter side to this first, px (crop)")
    shape.add_argument("--train-size", type=int_in(16, 4096), help="side of training crops, px (default: --image-size)")
    shape.add_argument("--augmentation", choices=("none", "light", "forensic", "delivery", "wild"), default="light")
    shape.add_argument(
        "--forgeries", metavar="A,B", help="make fakes of real images: blend, splice, upsample, smooth, decoder"
    )
    shape.add_argument("--forgery-decoder", metavar="FILE", help="the decoder.pt of another run (default: train one)")
    shape.add_argument("--forgery-share", type=float_in(0, 1), default=0.5, help="of the real images (default: 0.5)")
    shape.add_argument("--balance", action="store_true", help="equally many real and fake images of each data set")


def add_optimisation_group(parser: argparse.ArgumentParser) -> None:
    """Add the optimiser's settings, the stopping rule, the calibration and the seed."""
    fit = parser.add_argument_group("optimisation")
    fit.add_argument("--epochs", type=int_in(1), default=12)
    fit.add_argument("--batch-size", type=int_in(1), default=32)
    fit.add_argument("--accumulate", type=int_in(1), default=1, help="batches per optimiser step (default: 1)")
    fit.add_argument("--lr", type=float_in(0, 10), default=1e-3, help="peak learning rate (default: 0.001)")
    fit.add_argument("--weight-decay", type=float_in(0, 10), default=0.05, help="default: 0.05")
    fit.add_argument(
        "--warmup", type=float_in(0, 1), default=0.1, help="share of steps with rising rate (default: 0.1)"
    )
    fit.add_argument("--label-smoothing", type=float_in(0, 0.5), default=0.05, help="default: 0.05")
    fit.add_argument("--clip-grad", type=float_in(0, 1e6), default=1.0, help="gradient norm; 0 is off (default: 1)")
    fit.add_argument(
        "--ema-decay", type=float_in(0, 1), default=0.998, help="weight averaging; 0 is off (default: 0.998)"
    )
    fit.add_argument("--patience", type=int_in(0), default=0, help="stop after N epochs without a better AUC; 0 is off")
    fit.add_argument("--calibration", choices=("temperature", "isotonic", "none"), default="temperature")
    add_seed(fit)


def add_transfer_group(parser: argparse.ArgumentParser) -> None:
    """Add what is frozen, at which rates the rest learns, and the mixing of images."""
    tune = parser.add_argument_group("transfer learning")
    tune.add_argument("--freeze", default="none", metavar="N", help="none, backbone, or the first N stages")
    tune.add_argument("--unfreeze-every", type=int_in(0), default=0, help="thaw one more stage each N epochs; 0 is off")
    tune.add_argument("--layer-decay", type=float_in(0.01, 1), default=1.0, help="rate factor per stage below the head")
    tune.add_argument("--head-lr", type=float_in(0, 1000), default=1.0, help="rate factor of the head (default: 1)")
    tune.add_argument("--mixup", type=float_in(0, 10), default=0.0, help="alpha; blurs traces, so 0 by default")
    tune.add_argument("--cutmix", type=float_in(0, 10), default=0.0, help="alpha; cuts traces, so 0 by default")


def add_compression_group(parser: argparse.ArgumentParser) -> None:
    """Add pruning and distillation."""
    small = parser.add_argument_group("compression")
    small.add_argument(
        "--prune",
        type=float_in(0, 0.95),
        default=0.0,
        metavar="SHARE",
        help="remove this share of the channels first, best from trained --weights",
    )
    small.add_argument("--teacher", metavar="PT", help="a checkpoint whose answers this detector learns as well")
