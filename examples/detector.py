"""A detector with a loss of its own in half its latency: `python examples/detector.py [FOLDER]`.

Images show bright rectangles and discs; the network gives a box and a class at every pixel of two maps. In training it
returns the maps, which the loss reads; in eval mode it returns boxes, too.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import htas

SIDE, CLASSES, OBJECTS = 64, 2, 3


class Conv(nn.Sequential):
    """Convolution, norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.SiLU())


class C2f(nn.Module):
    """Half of the channels pass through a chain of convolutions; all that was made is concatenated."""

    def __init__(self, inputs: int, outputs: int, blocks: int = 1) -> None:
        super().__init__()
        half = outputs // 2
        self.first = Conv(inputs, outputs)
        self.chain = nn.ModuleList(Conv(half, half, 3) for _ in range(blocks))
        self.last = Conv((2 + blocks) * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.chain:
            parts.append(block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """Maps of an eighth and a sixteenth of the image's size, [N, 4 + classes, H, W], with a neck between."""

    strides = (8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), C2f(32, 32))
        self.fine = nn.Sequential(Conv(32, 64, 3, 2), C2f(64, 64))
        self.coarse = nn.Sequential(Conv(64, 96, 3, 2), C2f(96, 96))
        self.up = nn.Upsample(scale_factor=2)
        self.neck = C2f(64 + 96, 64)
        self.heads = nn.ModuleList(
            nn.Sequential(Conv(inputs, 48, 3), nn.Conv2d(48, 4 + CLASSES, 1)) for inputs in (64, 96)
        )
        for head in self.heads:
            nn.init.constant_(head[1].bias[4:], -4.0)  # type: ignore[index]

    def forward(self, images: Tensor) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        fine = self.fine(self.stem(images))
        coarse = self.coarse(fine)
        fine = self.neck(torch.cat([fine, self.up(coarse)], 1))
        maps = [head(x) for head, x in zip(self.heads, (fine, coarse), strict=True)]
        return maps if self.training else (boxes(maps), maps)


def pixels(maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """All pixels of the maps: their outputs [N, pixels, 4 + classes], their middles [pixels, 2] in pixels of the image,
    and their sizes [pixels, 1]."""
    middles, sizes = [], []
    for each, stride in zip(maps, Detector.strides, strict=True):
        y, x = (stride * (torch.arange(n, device=each.device) + 0.5) for n in each.shape[2:])
        middles.append(torch.cartesian_prod(y, x).flip(1))
        sizes.append(torch.full((len(middles[-1]), 1), float(stride), device=each.device))
    return torch.cat([each.flatten(2) for each in maps], 2).transpose(1, 2), torch.cat(middles), torch.cat(sizes)


def boxes(maps: list[Tensor]) -> Tensor:
    """Left, top, right and bottom of a box and the probability of each class, [N, pixels, 4 + classes]."""
    outputs, middles, sizes = pixels(maps)
    near, far = (outputs[..., :4].clamp(max=4).exp() * sizes).chunk(2, -1)
    return torch.cat([middles - near, middles + far, outputs[..., 4:].sigmoid()], -1)


def loss(outputs: Any, targets: Tensor) -> Tensor:
    """Boxes by their overlap, classes by cross-entropy; an object belongs to the pixels near its middle."""
    maps = outputs[1] if isinstance(outputs, tuple) else outputs
    scores, middles, sizes = pixels(maps)
    corners, kinds = targets[:, :, :4], targets[:, :, 4].long()
    middle = (corners[..., :2] + corners[..., 2:]) / 2
    near = (middle[:, :, None] - middles).abs().amax(-1) <= sizes[:, 0]  # [N, objects, pixels]
    image, thing, pixel = near.nonzero(as_tuple=True)
    wanted = torch.zeros_like(scores[..., 4:])
    wanted[image, pixel, kinds[image, thing]] = 1.0
    overlap = iou(boxes(maps)[image, pixel, :4], corners[image, thing])
    chances = F.binary_cross_entropy_with_logits(scores[..., 4:], wanted, reduction="sum")
    return (chances / len(image) + (1 - overlap).mean()).float()


def score(outputs: Any, targets: Tensor) -> Tensor:
    """The share of the objects that one of an image's three surest boxes of their class covers to a half or more."""
    found = outputs[0]
    hits = []
    for each, objects in zip(found, targets, strict=True):
        for thing in objects:
            best = each[each[:, 4 + int(thing[4])].topk(OBJECTS).indices, :4]
            hits.append(iou(best, thing[:4].expand_as(best)).max() >= 0.5)
    return torch.stack(hits).double().mean()


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Overlap of boxes [..., 4] over their union, [...]."""
    size = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp(min=0)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (one, other)]
    return size.prod(-1) / (areas[0] + areas[1] - size.prod(-1)).clamp(min=1e-6)


def generated(count: int, seed: int) -> TensorDataset:
    """Images [count, 3, 64, 64], and for each of their objects left, top, right, bottom and class, [count, 3, 5]."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(12, 28, (count, OBJECTS, 1), generator=generator)
    corner = (torch.rand(count, OBJECTS, 2, generator=generator) * (SIDE - size)).long()
    kinds = torch.randint(CLASSES, (count, OBJECTS, 1), generator=generator)
    targets = torch.cat([corner, corner + size, kinds], 2).float()
    images = 0.3 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    for image, objects in zip(images, targets, strict=True):
        for left, top, right, bottom, kind in objects.tolist():
            far = torch.stack([x - (left + right) / 2, y - (top + bottom) / 2]).abs() / ((right - left) / 2)
            inside = far.amax(0) <= 1 if kind == 0 else far.square().sum(0) <= 1
            image[:, inside] += 1.0
    return TensorDataset(images, targets)


def train(model: nn.Module, data: TensorDataset, epochs: int) -> None:
    """A plain training loop."""
    loader = DataLoader(data, 32, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.003)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, epochs * len(loader))
    model.train()
    for _ in range(epochs):
        for images, targets in loader:
            optimizer.zero_grad()
            loss(model(images), targets).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main(folder: Path, epochs: int = 10, count: int = 800, **options: Any) -> htas.OptimizationResult:
    """Train the detector, then find one of half its latency; `options` are those of a configuration."""
    torch.manual_seed(0)
    training, validation = generated(count, 0), generated(count // 4, 1)
    model = Detector()
    train(model, training, epochs)

    result = htas.optimize(
        model,
        example_inputs=torch.zeros(1, 3, SIDE, SIDE),
        data=(training, validation),
        constraints={"latency": "50%"},
        target=htas.Target(runtime="eager", batch=1),
        loss_fn=loss,
        eval_fn=score,
        out=folder / "run",
        options={"survey.undecided": 1.0, **options},
    )
    result.export(folder / "fast.onnx")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/detector"))
