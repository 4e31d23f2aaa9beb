"""Published convolutional networks as users write them, at their published sizes, to trace and to resize."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .alexnet import alexnet
from .convnext import convnext_tiny
from .dense_prediction import fpn, unet
from .densenet import densenet121
from .efficientnet import efficientnet_b0
from .generator import dcgan_generator
from .googlenet import googlenet
from .inception import inception_v3
from .mnasnet import mnasnet1_0
from .mobilenet_v2 import mobilenet_v2
from .mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from .multiple_inputs import siamese, two_input
from .regnet import regnet_x_400mf, regnet_y_400mf
from .resnet import resnet18, resnet34, resnet50, resnext50_32x4d, se_resnet50, wide_resnet50_2
from .shufflenet import shufflenet_v2_x1_0
from .squeezenet import squeezenet1_1
from .vgg import vgg11_bn, vgg16_bn
from .xception import xception


@dataclass(frozen=True)
class Entry:
    """One network."""

    name: str
    build: Callable[[], nn.Module]
    """Makes it with new weights, in training mode."""
    shapes: tuple[tuple[int, ...], ...]
    """The shape of each input, the batch first."""
    params: int | None
    """How many trainable parameters were published; None where the network is a reduced one."""
    kind: str
    """The file that defines it."""


IMAGE = ((1, 3, 224, 224),)
LARGE_IMAGE = ((1, 3, 299, 299),)

ZOO: tuple[Entry, ...] = (
    # The counts of ImageNet classifiers are as in torchvision where it has the network.
    Entry("alexnet", alexnet, IMAGE, 61_100_840, "alexnet"),
    Entry("vgg11_bn", vgg11_bn, IMAGE, 132_868_840, "vgg"),
    Entry("vgg16_bn", vgg16_bn, IMAGE, 138_365_992, "vgg"),
    Entry("resnet18", resnet18, IMAGE, 11_689_512, "resnet"),
    Entry("resnet34", resnet34, IMAGE, 21_797_672, "resnet"),
    Entry("resnet50", resnet50, IMAGE, 25_557_032, "resnet"),
    Entry("wide_resnet50_2", wide_resnet50_2, IMAGE, 68_883_240, "resnet"),
    Entry("resnext50_32x4d", resnext50_32x4d, IMAGE, 25_028_904, "resnet"),
    Entry("se_resnet50", se_resnet50, IMAGE, 28_088_024, "resnet"),
    Entry("densenet121", densenet121, IMAGE, 7_978_856, "densenet"),
    Entry("mobilenet_v2", mobilenet_v2, IMAGE, 3_504_872, "mobilenet_v2"),
    Entry("mobilenet_v3_small", mobilenet_v3_small, IMAGE, 2_542_856, "mobilenet_v3"),
    Entry("mobilenet_v3_large", mobilenet_v3_large, IMAGE, 5_483_032, "mobilenet_v3"),
    Entry("regnet_x_400mf", regnet_x_400mf, IMAGE, 5_495_976, "regnet"),
    Entry("regnet_y_400mf", regnet_y_400mf, IMAGE, 4_344_144, "regnet"),
    Entry("convnext_tiny", convnext_tiny, IMAGE, 28_589_128, "convnext"),
    Entry("squeezenet1_1", squeezenet1_1, IMAGE, 1_235_496, "squeezenet"),
    Entry("shufflenet_v2_x1_0", shufflenet_v2_x1_0, IMAGE, 2_278_604, "shufflenet"),
    Entry("mnasnet1_0", mnasnet1_0, IMAGE, 4_383_312, "mnasnet"),
    Entry("efficientnet_b0", efficientnet_b0, IMAGE, 5_288_548, "efficientnet"),
    Entry("googlenet", googlenet, IMAGE, 6_624_904, "googlenet"),
    Entry("inception_v3", inception_v3, LARGE_IMAGE, 23_834_568, "inception"),
    Entry("xception", xception, LARGE_IMAGE, 22_855_952, "xception"),
    Entry("dcgan_generator", dcgan_generator, ((1, 100, 1, 1),), 3_576_704, "generator"),
    Entry("unet", unet, ((1, 3, 64, 64),), None, "dense_prediction"),
    Entry("fpn", fpn, ((1, 3, 128, 128),), None, "dense_prediction"),
    Entry("siamese", siamese, ((1, 1, 32, 32), (1, 1, 32, 32)), None, "multiple_inputs"),
    Entry("two_input", two_input, ((1, 3, 64, 64), (1, 8)), None, "multiple_inputs"),
)
