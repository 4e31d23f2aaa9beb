"""A network for series in half its latency: `python examples/series.py [FOLDER]`, two and a half minutes on two cores.

Three sensors of a machine, 128 readings each, say which of eight states it is in. The series are generated; the network
is a small one-dimensional CNN. One call does the rest.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import htas


class Block(nn.Module):
    """Two convolutions along time and a shortcut."""

    def __init__(self, channels: int, kernel: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm1 = nn.BatchNorm1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm2 = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + x)


class SeriesNet(nn.Module):
    """Three stages, each with half the steps of time of the one before."""

    def __init__(self, sensors: int = 3, classes: int = 8) -> None:
        super().__init__()
        stages = []
        inputs = sensors
        for channels in (24, 48, 96):
            conv = nn.Conv1d(inputs, channels, 7, stride=2, padding=3, bias=False)
            stages.append(nn.Sequential(conv, nn.BatchNorm1d(channels), nn.ReLU(), Block(channels), Block(channels)))
            inputs = channels
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(inputs, classes)

    def forward(self, series: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.stages(series)), 1))


def generated(count: int, seed: int, steps: int = 128) -> TensorDataset:
    """Series [count, 3, steps] of a state each, 0 to 7: three bits say whether it hums fast, whether it knocks, and
    which way its sensors lag."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randint(8, (count,), generator=generator)
    fast, knocks, lag = ((states >> bit & 1).view(-1, 1, 1).float() for bit in range(3))
    time = torch.arange(steps).view(1, 1, -1) - 8 * (2 * lag - 1) * torch.arange(3).view(1, -1, 1)
    phase = 100 * torch.rand(count, 1, 1, generator=generator)
    frequency = (0.02 + 0.02 * fast) * (1 + 0.3 * torch.rand(count, 1, 1, generator=generator))
    angle = 2 * torch.pi * (frequency * time + phase)
    knock = knocks * (torch.cos(angle) > 0.95)
    noise = torch.randn(count, 3, steps, generator=generator)
    return TensorDataset(torch.sin(angle) + knock + 0.7 * noise, states)


def train(model: nn.Module, data: TensorDataset, epochs: int) -> None:
    """A plain training loop."""
    loader = DataLoader(data, 64, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.003, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, epochs * len(loader))
    model.train()
    for _ in range(epochs):
        for series, states in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(series), states).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main(folder: Path, epochs: int = 4, count: int = 1600, seed: int = 0, **options: Any) -> htas.OptimizationResult:
    """Train the network, then find one of half its latency; `options` are those of a configuration."""
    torch.manual_seed(seed)
    training, validation = generated(count, seed), generated(count // 4, seed + 1)
    model = SeriesNet()
    train(model, training, epochs)

    result = htas.optimize(
        model,
        example_inputs=torch.zeros(1, 3, 128),
        data=(training, validation),
        target=htas.Target(runtime="onnxruntime", batch=1),
        constraints={"latency": "50%"},
        seed=seed,
        out=folder / "run",
        options={
            "design.expand": 1.0,
            "survey.undecided": 1.0,
            **options,
        },  # no layer gets wider; a noisy machine will do
    )
    for row in result.results:
        assert row.accuracy is not None and row.measured is not None  # as in every finished run
        print(f"{row.name}: {100 * row.accuracy:.1f} %, {1e3 * row.measured.estimate:.3f} ms")
    result.save(folder / "fast")
    result.export(folder / "fast.onnx")
    print(result.report(folder / "report.html"))
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/series"))
