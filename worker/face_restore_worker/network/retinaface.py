"""RetinaFace (arXiv 1905.00641) as facexlib publishes its weights, in torch alone.

A backbone, a feature pyramid at strides 8, 16 and 32, a context module (SSH, arXiv 1708.03979) for
each, and 1x1 heads with two anchors a place. Module names give the published tensors' names.
facexlib's own module computes the same, but importing it imports torchvision, and that
torch's compiler: well over a second at every start of the worker.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ANCHORS = 2
_SLOPE = 0.1


def _activation(slope: float) -> nn.Module:
    """Leaky ReLU, plain ReLU at slope 0; in place."""
    return nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)


def _conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution that keeps the size (or halves it), without bias: a norm follows."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def _conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1,
               slope: float | None = None) -> nn.Sequential:  # fmt: skip
    """Convolution and norm, then leaky ReLU unless slope is None."""
    parts = [_conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*parts, *([] if slope is None else [_activation(slope)]))


class MobileNet(nn.Module):
    """MobileNetV1 (arXiv 1704.04861) of a quarter of the width, without its classifier."""

    widths = (64, 128, 256)

    def __init__(self) -> None:
        super().__init__()
        first = _conv_norm(3, 8, stride=2, slope=_SLOPE)
        self.stage1 = self._stage(8, (16, 32, 32, 64, 64), (1, 2, 1, 2, 1), first)
        self.stage2 = self._stage(64, (128,) * 6, (2, 1, 1, 1, 1, 1))
        self.stage3 = self._stage(128, (256, 256), (2, 1))

    @staticmethod
    def _stage(
        inputs: int, widths: Sequence[int], strides: Sequence[int], *before: nn.Module
    ) -> nn.Sequential:
        blocks = list(before)
        for outputs, stride in zip(widths, strides, strict=True):
            depthwise = [_conv(inputs, inputs, 3, stride, inputs), nn.BatchNorm2d(inputs)]
            pointwise = [_conv(inputs, outputs, 1), nn.BatchNorm2d(outputs)]
            leaky = [_activation(_SLOPE), _activation(_SLOPE)]
            blocks.append(nn.Sequential(*depthwise, leaky[0], *pointwise, leaky[1]))
            inputs = outputs
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features at strides 8, 16 and 32."""
        first = self.stage1(x)
        second = self.stage2(first)
        return [first, second, self.stage3(second)]


class Bottleneck(nn.Module):
    """A residual block of ResNet-50 (arXiv 1512.03385), its stride in the 3x3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        if inputs != outputs:
            self.downsample = _conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = F.relu_(self.bn1(self.conv1(x)))
        y = F.relu_(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.downsample(x) if hasattr(self, "downsample") else x
        return F.relu_(y)


class ResNet50(nn.Module):
    """ResNet-50 without its classifier."""

    widths = (512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for index, (width, blocks) in enumerate(
            zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)
        ):
            layer = nn.Sequential()
            for number in range(blocks):
                stride = 2 if index and not number else 1
                layer.append(Bottleneck(inputs, width, stride))
                inputs = 4 * width
            self.add_module(f"layer{index + 1}", layer)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features at strides 8, 16 and 32."""
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
            features.append(x)
        return features[1:]


class Pyramid(nn.Module):
    """Feature pyramid (arXiv 1612.03144): coarser features added to finer ones, smoothed."""

    def __init__(self, widths: Sequence[int], outputs: int, slope: float) -> None:
        super().__init__()
        for index, width in enumerate(widths, 1):
            self.add_module(f"output{index}", _conv_norm(width, outputs, 1, slope=slope))
        self.merge1 = _conv_norm(outputs, outputs, slope=slope)
        self.merge2 = _conv_norm(outputs, outputs, slope=slope)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Three features of any widths to three of one width, same sizes."""
        fine, middle, coarse = (
            self.get_submodule(f"output{index}")(x) for index, x in enumerate(features, 1)
        )
        middle = self.merge2(middle + F.interpolate(coarse, size=middle.shape[-2:]))
        fine = self.merge1(fine + F.interpolate(middle, size=fine.shape[-2:]))
        return [fine, middle, coarse]


class Context(nn.Module):
    """SSH: views of 3x3, 5x5 and 7x7 places beside each other."""

    def __init__(self, width: int, slope: float) -> None:
        super().__init__()
        quarter = width // 4
        self.conv3X3 = _conv_norm(width, 2 * quarter)
        self.conv5X5_1 = _conv_norm(width, quarter, slope=slope)
        self.conv5X5_2 = _conv_norm(quarter, quarter)
        self.conv7X7_2 = _conv_norm(quarter, quarter, slope=slope)
        self.conv7x7_3 = _conv_norm(quarter, quarter)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, H, W) to the same shape."""
        shared = self.conv5X5_1(x)
        views = [self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))]
        return F.relu_(torch.cat(views, dim=1))


class Head(nn.Module):
    """`values` numbers for each anchor."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(width, ANCHORS * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, H, W) to (N, H * W * ANCHORS, values)."""
        return self.conv1x1(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self.values))


class RetinaFace(nn.Module):
    """The whole detector, without anchors and suppression.

    variant: "resnet50" or "mobile0.25".
    """

    def __init__(self, variant: str) -> None:
        super().__init__()
        backbone: MobileNet | ResNet50
        if variant == "mobile0.25":
            backbone, width, slope = MobileNet(), 64, _SLOPE
        elif variant == "resnet50":
            backbone, width, slope = ResNet50(), 256, 0.0
        else:
            raise ValueError(f"RetinaFace is resnet50 or mobile0.25, not {variant!r}")
        self.body = backbone
        self.fpn = Pyramid(backbone.widths, width, slope)
        for level in range(1, 4):
            self.add_module(f"ssh{level}", Context(width, slope))
        self.ClassHead = nn.ModuleList(Head(width, 2) for _ in range(3))
        self.BboxHead = nn.ModuleList(Head(width, 4) for _ in range(3))
        self.LandmarkHead = nn.ModuleList(Head(width, 10) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (N, 3, H, W) BGR, 0 to 255 less (104, 117, 123), to what the A anchors say.

        Returns offsets (N, A, 4), probabilities of background and face (N, A, 2) and landmark
        offsets (N, A, 10); anchors run over strides 8, 16, 32, then rows, columns, sizes.
        """
        features = [
            self.get_submodule(f"ssh{level}")(feature)
            for level, feature in enumerate(self.fpn(self.body(x)), 1)
        ]
        heads = (self.BboxHead, self.ClassHead, self.LandmarkHead)
        boxes, scores, points = (
            torch.cat([head(x) for head, x in zip(kind, features, strict=True)], dim=1)
            for kind in heads
        )
        return boxes, scores.softmax(dim=-1), points
