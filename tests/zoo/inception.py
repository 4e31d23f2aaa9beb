"""Inception-v3: factorised kernels in branches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = int | tuple[int, int]


class BasicConv2d(nn.Module):
    """A convolution, its normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel_size: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def tall(inputs: int, outputs: int, length: int) -> BasicConv2d:
    """A kernel of one column."""
    return BasicConv2d(inputs, outputs, (length, 1), padding=(length // 2, 0))


def flat(inputs: int, outputs: int, length: int) -> BasicConv2d:
    """A kernel of one row."""
    return BasicConv2d(inputs, outputs, (1, length), padding=(0, length // 2))


class InceptionA(nn.Module):
    """5x5, two 3x3, and pooling."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 64, 1)
        self.branch5x5_1 = BasicConv2d(inputs, 48, 1)
        self.branch5x5_2 = BasicConv2d(48, 64, 5, padding=2)
        self.branch3x3_1 = BasicConv2d(inputs, 64, 1)
        self.branch3x3_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3_3 = BasicConv2d(96, 96, 3, padding=1)
        self.branch_pool = BasicConv2d(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch1x1 = self.branch1x1(x)
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3 = self.branch3x3_3(self.branch3x3_2(self.branch3x3_1(x)))
        branch_pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([branch1x1, branch5x5, branch3x3, branch_pool], 1)


class ReductionB(nn.Module):
    """From 35 to 17 pixels."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(inputs, 384, 3, stride=2)
        self.branch_double = nn.Sequential(
            BasicConv2d(inputs, 64, 1), BasicConv2d(64, 96, 3, padding=1), BasicConv2d(96, 96, 3, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch3x3(x), self.branch_double(x), F.max_pool2d(x, kernel_size=3, stride=2)], 1)


class InceptionC(nn.Module):
    """7x7 as rows and columns, once and twice."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 192, 1)
        self.branch7x7 = nn.Sequential(BasicConv2d(inputs, width, 1), flat(width, width, 7), tall(width, 192, 7))
        self.branch_double = nn.Sequential(
            BasicConv2d(inputs, width, 1),
            tall(width, width, 7),
            flat(width, width, 7),
            tall(width, width, 7),
            flat(width, 192, 7),
        )
        self.branch_pool = BasicConv2d(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.branch_pool(F.avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.branch1x1(x), self.branch7x7(x), self.branch_double(x), pooled], 1)


class ReductionD(nn.Module):
    """From 17 to 8 pixels."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = nn.Sequential(BasicConv2d(inputs, 192, 1), BasicConv2d(192, 320, 3, stride=2))
        self.branch7x7x3 = nn.Sequential(
            BasicConv2d(inputs, 192, 1), flat(192, 192, 7), tall(192, 192, 7), BasicConv2d(192, 192, 3, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch3x3(x), self.branch7x7x3(x), F.max_pool2d(x, 3, 2)], 1)


class InceptionE(nn.Module):
    """Branches that fork again: a row and a column side by side."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 320, 1)
        self.branch3x3 = BasicConv2d(inputs, 384, 1)
        self.branch3x3_row = flat(384, 384, 3)
        self.branch3x3_column = tall(384, 384, 3)
        self.branch_double = nn.Sequential(BasicConv2d(inputs, 448, 1), BasicConv2d(448, 384, 3, padding=1))
        self.branch_double_row = flat(384, 384, 3)
        self.branch_double_column = tall(384, 384, 3)
        self.branch_pool = BasicConv2d(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch3x3 = self.branch3x3(x)
        branch3x3 = torch.cat([self.branch3x3_row(branch3x3), self.branch3x3_column(branch3x3)], 1)
        double = self.branch_double(x)
        double = torch.cat([self.branch_double_row(double), self.branch_double_column(double)], 1)
        pooled = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([self.branch1x1(x), branch3x3, double, pooled], 1)


class Inception3(nn.Module):
    """Inception-v3 (Szegedy et al., 2016) without the auxiliary classifier, which is for training."""

    def __init__(self, classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            BasicConv2d(3, 32, 3, stride=2),
            BasicConv2d(32, 32, 3),
            BasicConv2d(32, 64, 3, padding=1),
            nn.MaxPool2d(kernel_size=3, stride=2),
            BasicConv2d(64, 80, 1),
            BasicConv2d(80, 192, 3),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.mixed5 = nn.Sequential(InceptionA(192, 32), InceptionA(256, 64), InceptionA(288, 64))
        self.reduce6 = ReductionB(288)
        self.mixed6 = nn.Sequential(*[InceptionC(768, width) for width in (128, 160, 160, 192)])
        self.reduce7 = ReductionD(768)
        self.mixed7 = nn.Sequential(InceptionE(1280), InceptionE(2048))
        self.fc = nn.Linear(2048, classes)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.mixed6(self.reduce6(self.mixed5(x)))
        x = self.mixed7(self.reduce7(x))
        x = F.adaptive_avg_pool2d(x, 1)
        x = F.dropout(x, self.dropout, training=self.training)
        return self.fc(x.squeeze(-1).squeeze(-1))


def inception_v3() -> Inception3:
    """Inception-v3 (Szegedy et al., 2016)."""
    return Inception3()
