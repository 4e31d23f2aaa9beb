"""Networks as torchvision and timm define them, as narrow and shallow as their classes allow."""

from functools import partial

import timm
from timm.models.vgg import VGG
from timm.models.xception_aligned import XceptionAligned
from torch import nn
from torchvision import models
from torchvision.models import convnext, efficientnet, mobilenetv3, regnet, resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from . import Entry

CLASSES = 10
PARTS = (64, 128, 256, 512)
"""Channels of the four stages of torchvision's ResNets of basic blocks."""


def resnet_of(block: type[resnet.BasicBlock | resnet.Bottleneck], *depths: int) -> resnet.ResNet:
    return resnet.ResNet(block, list(depths), CLASSES)


def narrow_resnet(name: str, *depths: int) -> nn.Module:
    return timm.create_model(name, num_classes=CLASSES, layers=depths, channels=(16, 24, 32, 48), stem_width=16)


def feature_pyramid() -> nn.Module:
    trunk = resnet_of(resnet.BasicBlock, 2, 1, 1, 1)
    names = {f"layer{number}": str(number) for number in range(1, 5)}
    return BackboneWithFPN(trunk, names, list(PARTS), out_channels=32)


def vgg() -> nn.Module:
    return VGG([8, "M", 16, "M", 24, 24, "M", 32, "M", 32, "M"], CLASSES, norm_layer=nn.BatchNorm2d, mlp_ratio=0.01)


def regnet_of(**options: float) -> nn.Module:
    return regnet.RegNet(regnet.BlockParams.from_init_params(**options), CLASSES)


def convnext_of() -> nn.Module:
    block = convnext.CNBlockConfig
    return convnext.ConvNeXt([block(16, 24, 2), block(24, 32, 3), block(32, None, 2)], 0.1, num_classes=CLASSES)


def mobilenet_v3() -> nn.Module:
    rows = (
        (16, 3, 16, 16, True, "RE", 2), (16, 3, 72, 24, False, "RE", 2), (24, 3, 88, 24, False, "RE", 1),
        (24, 5, 96, 40, True, "HS", 2), (40, 5, 120, 40, True, "HS", 1),
    )  # fmt: skip
    blocks = [mobilenetv3.InvertedResidualConfig(*row, dilation=1, width_mult=0.5) for row in rows]
    return models.MobileNetV3(blocks, last_channel=64, num_classes=CLASSES)


def efficientnet_of() -> nn.Module:
    block = partial(efficientnet.MBConvConfig, width_mult=0.5, depth_mult=1.0)
    blocks = [block(1, 3, 1, 32, 16, 1), block(6, 3, 2, 16, 24, 2), block(6, 5, 2, 24, 40, 3)]
    return efficientnet.EfficientNet(blocks, 0.2, num_classes=CLASSES)


def xception() -> nn.Module:
    blocks = [
        {"in_chs": 64, "out_chs": 32, "stride": 2},
        {"in_chs": 32, "out_chs": 32, "stride": 1},
        {"in_chs": 32, "out_chs": (32, 48, 48), "stride": 2},
        {"in_chs": 48, "out_chs": (56, 64, 96), "stride": 1, "no_skip": True, "start_with_relu": False},
    ]
    return XceptionAligned(blocks, CLASSES)


FROM_LIBRARIES: tuple[Entry, ...] = (
    Entry("alexnet", partial(models.alexnet, num_classes=CLASSES)),
    Entry("vgg_bn", vgg),
    Entry("resnet18", partial(resnet_of, resnet.BasicBlock, 2, 2, 1, 1)),
    Entry("resnet34", partial(narrow_resnet, "resnet34", 3, 4, 6, 3)),
    Entry("resnet50", partial(resnet_of, resnet.Bottleneck, 2, 1, 1, 1)),
    Entry("wide_resnet50_2", partial(narrow_resnet, "wide_resnet50_2", 2, 2, 1, 1)),
    Entry("resnext50_32x4d", partial(narrow_resnet, "resnext50_32x4d", 2, 2, 1, 1)),
    Entry("seresnet50", partial(narrow_resnet, "seresnet50", 2, 2, 1, 1)),
    Entry("densenet", partial(models.DenseNet, 8, (3, 4, 3), 16, bn_size=2, num_classes=CLASSES)),
    Entry("mobilenet_v2", partial(models.MobileNetV2, CLASSES, 0.25, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 3, 2]])),
    Entry("mobilenet_v3_small", mobilenet_v3),
    Entry("mobilenet_v3_large", partial(models.mobilenet_v3_large, width_mult=0.25, num_classes=CLASSES)),
    Entry("regnet_x", partial(regnet_of, depth=7, w_0=16, w_a=16.0, w_m=2.5, group_width=8)),
    Entry("regnet_y", partial(regnet_of, depth=7, w_0=16, w_a=16.0, w_m=2.5, group_width=8, se_ratio=0.25)),
    Entry("convnext", convnext_of),
    Entry("squeezenet1_1", partial(models.squeezenet1_1, num_classes=CLASSES)),
    Entry("shufflenet_v2", partial(models.ShuffleNetV2, [2, 3, 2], [8, 16, 32, 64, 64], CLASSES)),
    Entry("mnasnet", partial(models.MNASNet, 0.25, CLASSES)),
    Entry("efficientnet", efficientnet_of),
    Entry("googlenet", partial(models.GoogLeNet, CLASSES, aux_logits=False, init_weights=False)),
    Entry("inception_v3", partial(models.Inception3, CLASSES, init_weights=False), ((1, 3, 75, 75),)),
    Entry("xception", xception),
    Entry("fpn", feature_pyramid),
)
