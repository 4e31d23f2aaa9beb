"""A network of your own in half its latency: `python examples/own_model.py [FOLDER]`, five to six minutes on two cores.

The network, its training and its data are plain PyTorch; one call does the rest.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import htas


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class Net(nn.Module):
    """Three stages of two blocks."""

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.stages = nn.Sequential(
            nn.Sequential(Block(32, 32), Block(32, 32)),
            nn.Sequential(Block(32, 64, 2), Block(64, 64)),
            nn.Sequential(Block(64, 128, 2), Block(128, 128)),
        )
        self.head = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)).mean((2, 3)))


def coloured(classes: int) -> Net:
    """For the command line, whose data set of digits has three channels."""
    return Net(classes, 3)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and validation images, 1x16x16, of scikit-learn's handwritten digits."""
    content = load_digits()
    images = torch.from_numpy(content.images).float().unsqueeze(1) / 16 - 0.3
    images = F.interpolate(images, (16, 16), mode="bilinear")
    labels = torch.from_numpy(content.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    validation, training = order[:359], order[359:]
    return TensorDataset(images[training], labels[training]), TensorDataset(images[validation], labels[validation])


def train(model: nn.Module, data: TensorDataset, epochs: int) -> None:
    """A plain training loop."""
    loader = DataLoader(data, 64, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs * len(loader))
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main(folder: Path, epochs: int = 8, seed: int = 0, **more: Any) -> htas.OptimizationResult:
    """Train the network, then find one of half its latency; `more` goes to htas.optimize."""
    torch.manual_seed(seed)
    training, validation = digits()
    model = Net()
    train(model, training, epochs)

    result = htas.optimize(
        model,
        example_inputs=torch.zeros(1, 1, 16, 16),
        data=(training, validation),
        target=htas.Target(runtime="onnxruntime", batch=1),
        constraints={"latency": "50%"},
        seed=seed,
        out=folder / "run",
        **more,
    )
    for row in result.results:
        assert row.accuracy is not None and row.measured is not None  # as in every finished run
        print(f"{row.name}: {100 * row.accuracy:.1f} %, {1e3 * row.measured.estimate:.3f} ms")
    result.save(folder / "fast")
    result.export(folder / "fast.onnx")
    print(result.report(folder / "report.html"))
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own"))
