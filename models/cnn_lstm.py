"""CNN-LSTM: a convolutional feature map read as sequences of patches, or a clip read as a sequence of frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.detector import Detector
from models.registry import create_model, register_model
from utils.errors import UserError

READERS = ("lstm", "mean")


class PatchReader(nn.Module):
    """Read feature maps ``(N, T, C, h, w)`` by rows and by columns with one bidirectional LSTM; returns ``(N, 4 * D)``.

    Each row is averaged over its width and each column over its height. The frames of a clip are concatenated into one
    sequence of T * h rows or T * w columns; an image is a clip of one frame. Unlike pooling, this keeps position: a
    trace may count more at the chin than at the hairline.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(channels, hidden)
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True, bidirectional=True)
        self.attention = nn.Linear(2 * hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        summaries = []
        for axis in (4, 3):  # mean over the width: a sequence of rows; over the height: a sequence of columns
            sequence = features.mean(axis).transpose(2, 3).flatten(1, 2)  # (N, T * steps, C)
            states, _ = self.lstm(self.project(sequence))  # (N, T * steps, 2 * hidden)
            weights = self.attention(states).softmax(dim=1)
            summaries.append((weights * states).sum(dim=1))
        return torch.cat(summaries, dim=1)


class CNNLSTM(Detector):
    """The feature map of a trunk, read as a sequence, pooled by attention, one logit.

    ``reader="mean"`` replaces the LSTM by mean pooling on the same trunk, as a control for the recurrence. In
    results/models (two epochs at 128 px, one seed) the LSTM makes no significant difference: it is lower on one set
    and higher on the other, with overlapping intervals.

    Güera & Delp, "Deepfake Video Detection Using Recurrent Neural Networks", AVSS 2018, read frames this way. Reading
    the rows and columns of a single image is added here, for data without video.
    """

    def __init__(
        self, trunk: nn.Module, channels: int, like: Detector, hidden: int, dropout: float, reader: str
    ) -> None:
        layer = (like.cam_layer or "").removeprefix("trunk").removeprefix(".")
        super().__init__(
            like.input_size,
            mean=like.mean.flatten().tolist(),
            std=like.std.flatten().tolist(),
            cam_layer=f"trunk.{layer}" if layer else "trunk",
        )
        self.trunk = trunk
        self.reader = PatchReader(channels, hidden) if reader == "lstm" else None
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * hidden if reader == "lstm" else channels, 1))
        for parameter in self.fixed_parameters():
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Score images ``(N, 3, H, W)`` or clips ``(N, T, 3, H, W)``, RGB in [0, 1]; returns logits ``(N,)``."""
        clips = images if images.ndim == 5 else images[:, None]
        features = self.trunk(self.normalize(clips.flatten(0, 1))).unflatten(0, clips.shape[:2])
        # The LSTM runs in float32: in bfloat16 it has no fast CPU kernel and loses precision on long sequences.
        with torch.autocast(images.device.type, enabled=False):
            features = features.float()  # (N, T, C, h, w)
            pooled = features.mean((1, 3, 4)) if self.reader is None else self.reader(features)
            return self.head(pooled).squeeze(1)

    def fixed_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of layers after the feature map, such as the norm in ConvNeXt's head."""
        names = self.trunk.unused if isinstance(self.trunk, TimmTrunk) else ()
        return [self.trunk.get_parameter(name) for name in names]


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
    """Return the part of a detector that outputs a feature map ``(N, C, h, w)``, and C.

    Raises:
        UserError: the detector outputs tokens or a vector instead of a map.
    """
    backbone = getattr(detector, "backbone", None)
    if isinstance(backbone, nn.Module) and hasattr(backbone, "forward_features"):
        trunk: nn.Module = TimmTrunk(backbone)
    elif hasattr(detector, "stem") and hasattr(detector, "trunk"):
        trunk = nn.Sequential(detector.get_submodule("stem"), detector.get_submodule("trunk"))
    else:
        raise UserError(f"expected --model-args backbone= cnn or a convolutional timm model, got {name!r}")
    size = detector.choose_size(64)
    with torch.enable_grad():
        features = trunk.eval()(torch.zeros(1, 3, size, size))
        if isinstance(trunk, TimmTrunk):
            named = dict(trunk.named_parameters())
            gradients = torch.autograd.grad(features.sum(), list(named.values()), allow_unused=True)
            trunk.unused = [name for name, gradient in zip(named, gradients, strict=True) if gradient is None]
    trunk.train()
    channels_last = features.ndim == 4 and features.shape[1] == features.shape[2]  # Swin's maps are (N, h, w, C)
    if features.ndim != 4 or channels_last:
        raise UserError(
            f"expected a backbone with a feature map, but {name!r} outputs tokens of shape {tuple(features.shape)}"
        )
    return trunk, features.shape[1]


class TimmTrunk(nn.Module):
    """The convolutional part of a timm model, without pooling and head."""

    backbone: Any  # every timm model has ``forward_features``, but no base class declares it

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.unused: list[str] = []  # parameters that the feature map does not depend on

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.forward_features(images)
