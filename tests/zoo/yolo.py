"""Detectors built as ultralytics builds YOLOv8n and YOLO11n: the same blocks, sizes and places of modules.

The code is of our own, with no more than these two networks need.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Conv(nn.Module):
    """Convolution, norm and SiLU, which is one module for all of them."""

    default_act = nn.SiLU()

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act = self.default_act if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two convolutions, with a shortcut where that fits."""

    def __init__(self, inputs: int, outputs: int, shortcut: bool = True, ratio: float = 1.0) -> None:
        super().__init__()
        hidden = int(outputs * ratio)
        self.cv1 = Conv(inputs, hidden, 3)
        self.cv2 = Conv(hidden, outputs, 3)
        self.add = shortcut and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Half of the channels pass through a chain of blocks; all that was made is concatenated."""

    def __init__(self, inputs: int, outputs: int, n: int = 1, shortcut: bool = False, ratio: float = 0.5) -> None:
        super().__init__()
        self.c = int(outputs * ratio)
        self.cv1 = Conv(inputs, 2 * self.c)
        self.cv2 = Conv((2 + n) * self.c, outputs)
        self.m = nn.ModuleList(Bottleneck(self.c, self.c, shortcut) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3k(nn.Module):
    """Two branches, one of them through bottlenecks."""

    def __init__(self, inputs: int, outputs: int, n: int = 2) -> None:
        super().__init__()
        hidden = outputs // 2
        self.cv1 = Conv(inputs, hidden)
        self.cv2 = Conv(inputs, hidden)
        self.cv3 = Conv(2 * hidden, outputs)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C3k2(C2f):
    """C2f whose blocks are bottlenecks of half the width, or C3k."""

    def __init__(self, inputs: int, outputs: int, n: int = 1, c3k: bool = False, ratio: float = 0.5) -> None:
        super().__init__(inputs, outputs, n, True, ratio)
        self.m = nn.ModuleList(C3k(self.c, self.c) if c3k else Bottleneck(self.c, self.c, True, 0.5) for _ in range(n))


class SPPF(nn.Module):
    """The results of one pool, applied again and again, are concatenated."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 5, act: bool = True) -> None:
        super().__init__()
        self.cv1 = Conv(inputs, inputs // 2, act=act)
        self.cv2 = Conv(inputs // 2 * 4, outputs)
        self.m = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Attention(nn.Module):
    """Self-attention over pixels, with a depthwise convolution for their places."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head = heads, channels // heads
        self.key = self.head // 2
        self.scale = self.key**-0.5
        self.qkv = Conv(channels, channels + self.key * heads * 2, act=False)
        self.proj = Conv(channels, channels, act=False)
        self.pe = Conv(channels, channels, 3, groups=channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.heads, self.key * 2 + self.head, h * w)
        q, k, v = qkv.split([self.key, self.key, self.head], dim=2)
        scores = ((q * self.scale).transpose(-2, -1) @ k).softmax(dim=-1)
        x = (v @ scores.transpose(-2, -1)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w))
        return self.proj(x)


class PSABlock(nn.Module):
    """Attention, then two pointwise convolutions, each with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = Attention(channels, max(channels // 64, 1))
        self.ffn = nn.Sequential(Conv(channels, channels * 2), Conv(channels * 2, channels, act=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.ffn(x)


class C2PSA(nn.Module):
    """Half of the channels pass through attention."""

    def __init__(self, channels: int, n: int = 1) -> None:
        super().__init__()
        self.c = channels // 2
        self.cv1 = Conv(channels, 2 * self.c)
        self.cv2 = Conv(2 * self.c, channels)
        self.m = nn.Sequential(*(PSABlock(self.c) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        return self.cv2(torch.cat((a, self.m(b)), 1))


class Concat(nn.Module):
    """Tensors in one, channel after channel."""

    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, 1)


class DFL(nn.Module):
    """The mean of a distribution over distances."""

    def __init__(self, bins: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.bins, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    """Boxes and classes at every pixel of some maps: in training a tensor [N, 4 x bins + classes, H, W] for each map,
    in eval mode also [N, 4 + classes, pixels] of all of them."""

    bins = 16

    def __init__(self, classes: int, channels: Sequence[int], depthwise: bool) -> None:
        super().__init__()
        self.classes, self.maps = classes, len(channels)
        self.stride = torch.zeros(self.maps)
        self.shape: torch.Size | None = None
        self.anchors = self.strides = torch.empty(0)
        box, score = max(16, channels[0] // 4, self.bins * 4), max(channels[0], min(classes, 100))
        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(x, box, 3), Conv(box, box, 3), nn.Conv2d(box, 4 * self.bins, 1)) for x in channels
        )
        self.cv3 = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(Conv(x, x, 3, groups=x), Conv(x, score)),
                nn.Sequential(Conv(score, score, 3, groups=score), Conv(score, score)),
                nn.Conv2d(score, classes, 1),
            )
            if depthwise
            else nn.Sequential(Conv(x, score, 3), Conv(score, score, 3), nn.Conv2d(score, classes, 1))
            for x in channels
        )
        self.dfl = DFL(self.bins)

    def forward(self, x: list[Tensor]) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        for i in range(self.maps):
            x[i] = torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1)
        if self.training:
            return x
        shape = x[0].shape
        if self.shape != shape:  # the places of the pixels stay on the module
            self.anchors, self.strides = self.places(x)
            self.shape = shape
        both = torch.cat([each.view(shape[0], 4 * self.bins + self.classes, -1) for each in x], 2)
        distances, scores = both.split((4 * self.bins, self.classes), 1)
        near, far = self.dfl(distances).chunk(2, 1)
        first, last = self.anchors - near, self.anchors + far
        boxes = torch.cat(((first + last) / 2, last - first), 1) * self.strides
        return torch.cat((boxes, scores.sigmoid()), 1), x

    def places(self, x: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Middles of all pixels, [2, pixels], and the pixels' sizes, [1, pixels]."""
        points, strides = [], []
        for each, stride in zip(x, self.stride, strict=True):
            h, w = each.shape[2:]
            y, across = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
            points.append(torch.stack((across, y), 0).view(2, -1))
            strides.append(torch.full((1, h * w), float(stride)))
        return torch.cat(points, 1), torch.cat(strides, 1)


class Detector(nn.Module):
    """Layers in a row; some read earlier ones, by number."""

    def __init__(self, layers: Sequence[tuple[int | list[int], nn.Module]]) -> None:
        super().__init__()
        self.model = nn.Sequential(*(layer for _, layer in layers))
        self.sources = [source for source, _ in layers]
        self.save = {number for source in self.sources if isinstance(source, list) for number in source} - {-1}
        detect = self.model[-1]
        assert isinstance(detect, Detect)
        side = 256
        with torch.no_grad():  # a dry run says how many pixels of the image one of each map is
            detect.stride = torch.tensor([side / x.shape[-2] for x in self(torch.zeros(1, 3, side, side))])
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_running_stats()

    def forward(self, x: Tensor) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        y: list[Tensor | None] = []
        out = x
        for number, (source, layer) in enumerate(zip(self.sources, self.model, strict=True)):
            out = layer(out if source == -1 else [out if j == -1 else y[j] for j in source])
            y.append(out if number in self.save else None)
        return out


def yolov8n(classes: int = 80) -> Detector:
    """3,157,200 parameters with 80 classes."""
    return Detector([
        (-1, Conv(3, 16, 3, 2)),
        (-1, Conv(16, 32, 3, 2)),
        (-1, C2f(32, 32, 1, True)),
        (-1, Conv(32, 64, 3, 2)),
        (-1, C2f(64, 64, 2, True)),
        (-1, Conv(64, 128, 3, 2)),
        (-1, C2f(128, 128, 2, True)),
        (-1, Conv(128, 256, 3, 2)),
        (-1, C2f(256, 256, 1, True)),
        (-1, SPPF(256, 256)),
        (-1, nn.Upsample(None, 2, "nearest")),
        ([-1, 6], Concat()),
        (-1, C2f(384, 128)),
        (-1, nn.Upsample(None, 2, "nearest")),
        ([-1, 4], Concat()),
        (-1, C2f(192, 64)),
        (-1, Conv(64, 64, 3, 2)),
        ([-1, 12], Concat()),
        (-1, C2f(192, 128)),
        (-1, Conv(128, 128, 3, 2)),
        ([-1, 9], Concat()),
        (-1, C2f(384, 256)),
        ([15, 18, 21], Detect(classes, (64, 128, 256), depthwise=False)),
    ])  # fmt: skip


def yolo11n(classes: int = 80) -> Detector:
    """2,624,080 parameters with 80 classes."""
    return Detector([
        (-1, Conv(3, 16, 3, 2)),
        (-1, Conv(16, 32, 3, 2)),
        (-1, C3k2(32, 64, 1, False, 0.25)),
        (-1, Conv(64, 64, 3, 2)),
        (-1, C3k2(64, 128, 1, False, 0.25)),
        (-1, Conv(128, 128, 3, 2)),
        (-1, C3k2(128, 128, 1, True)),
        (-1, Conv(128, 256, 3, 2)),
        (-1, C3k2(256, 256, 1, True)),
        (-1, SPPF(256, 256)),
        (-1, C2PSA(256)),
        (-1, nn.Upsample(None, 2, "nearest")),
        ([-1, 6], Concat()),
        (-1, C3k2(384, 128)),
        (-1, nn.Upsample(None, 2, "nearest")),
        ([-1, 4], Concat()),
        (-1, C3k2(256, 64)),
        (-1, Conv(64, 64, 3, 2)),
        ([-1, 13], Concat()),
        (-1, C3k2(192, 128)),
        (-1, Conv(128, 128, 3, 2)),
        ([-1, 10], Concat()),
        (-1, C3k2(384, 256, 1, True)),
        ([16, 19, 22], Detect(classes, (64, 128, 256), depthwise=True)),
    ])  # fmt: skip
