"""CNN-LSTM: a convolutional feature map read as sequences of patches, or a clip read as a sequence of frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.detector import Detector
from models.registry import create_model, register_model
from utils.errors import UserError

READERS = ("lstm", "mean")


class PatchReader(nn.Module):
    """Read a feature map ``(N, C, h, w)`` by rows and by columns with one bidirectional LSTM; returns ``(N, 2, D)``.

    Each row is averaged over its width and each column over its height, so the two sequences have h and w steps.
    What it buys over pooling is position: the same trace weighs differently at the chin and at the hairline.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(channels, hidden)
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True, bidirectional=True)
        self.attention = nn.Linear(2 * hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        summaries = []
        for axis in (3, 2):  # over the width: a sequence of rows; over the height: a sequence of columns
            sequence = self.project(features.mean(axis).transpose(1, 2))  # (N, steps, hidden)
            states, _ = self.lstm(sequence)  # (N, steps, 2 * hidden)
            weights = self.attention(states).softmax(dim=1)
            summaries.append((weights * states).sum(dim=1))
        return torch.stack(summaries, dim=1)


class CNNLSTM(Detector):
    """A trunk's feature map, read in sequence, pooled by attention, one logit.

    ``forward`` takes ``(N, 3, H, W)`` images or ``(N, T, 3, H, W)`` clips. A clip's frames are encoded one by one,
    and a second LSTM reads the T encodings; a single image is a clip of one frame without that second reading.
    ``reader="mean"`` replaces the LSTM by mean pooling on the same trunk: the control that shows what recurrence
    is worth, measured in results/models.

    Güera & Delp, "Deepfake Video Detection Using Recurrent Neural Networks", AVSS 2018, read frames this way;
    reading the rows and columns of one image is ours, for a set that has no video.
    """

    def __init__(
        self, trunk: nn.Module, channels: int, like: Detector, hidden: int, dropout: float, reader: str
    ) -> None:
        layer = like.cam_layer.removeprefix("backbone.").removeprefix("trunk.") if like.cam_layer else ""
        super().__init__(
            like.input_size,
            mean=like.mean.flatten().tolist(),
            std=like.std.flatten().tolist(),
            cam_layer="trunk" if layer in ("", "trunk") else f"trunk.{layer}",
        )
        self.trunk = trunk
        self.reader = PatchReader(channels, hidden) if reader == "lstm" else None
        width = 4 * hidden if reader == "lstm" else channels
        self.frames = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, 1))

    def encode(self, images: Tensor) -> Tensor:
        """Turn ``(N, 3, H, W)`` images in [0, 1] into encodings ``(N, D)``."""
        features = self.trunk(self.normalize(images))
        # The recurrence runs in float32: a bfloat16 LSTM has no fast kernel on CPUs and loses digits on long rows.
        with torch.autocast(images.device.type, enabled=False):
            features = features.float()
            return features.mean((2, 3)) if self.reader is None else self.reader(features).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Score images ``(N, 3, H, W)`` or clips ``(N, T, 3, H, W)``, RGB in [0, 1]; returns logits ``(N,)``."""
        if images.ndim == 4:
            return self.head(self.encode(images)).squeeze(1)
        encodings = self.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])  # (N, T, D)
        with torch.autocast(images.device.type, enabled=False):
            states, _ = self.frames(encodings.float())
        return self.head(states.mean(1)).squeeze(1)


@register_model
def cnn_lstm(
    backbone: str = "cnn", hidden: int = 128, dropout: float = 0.3, reader: str = "lstm", **backbone_args
) -> CNNLSTM:
    """Build a CNN-LSTM on ``backbone``: ``cnn`` or any convolutional timm model."""
    if reader not in READERS:
        raise UserError(f"expected --model-args reader={' or reader='.join(READERS)}, got {reader!r}")
    like = create_model(backbone, **backbone_args)
    trunk, channels = feature_trunk(like, backbone)
    return CNNLSTM(trunk, channels, like, hidden, dropout, reader)


def feature_trunk(detector: Detector, name: str) -> tuple[nn.Module, int]:
    """Take the part of a detector that makes a map ``(N, C, h, w)``, and its C.

    Raises:
        UserError: the detector makes tokens or features instead of a map.
    """
    if hasattr(detector, "backbone") and hasattr(detector.backbone, "forward_features"):
        trunk: nn.Module = TimmTrunk(detector.backbone)
    elif hasattr(detector, "stem") and hasattr(detector, "trunk"):
        trunk = nn.Sequential(detector.stem, detector.trunk)
    else:
        raise UserError(f"expected --model-args backbone= cnn or a convolutional timm model, got {name!r}")
    with torch.no_grad():
        features = trunk.eval()(torch.zeros(1, 3, 64, 64) if not _fixed_size(detector) else _blank(detector))
    trunk.train()
    if features.ndim != 4:
        raise UserError(
            f"expected a backbone with a feature map, but {name!r} gives tokens of shape {tuple(features.shape)}"
        )
    return trunk, features.shape[1]


class TimmTrunk(nn.Module):
    """The convolutional part of a timm model, without its pooling and its head."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.forward_features(images)


def _fixed_size(detector: Detector) -> bool:
    return hasattr(getattr(detector, "backbone", None), "patch_embed")


def _blank(detector: Detector) -> Tensor:
    return torch.zeros(1, 3, detector.input_size, detector.input_size)
