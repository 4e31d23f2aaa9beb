"""ThiNet's criterion (Luo, Wu, Lin, "ThiNet: a filter level pruning method for deep neural network compression", ICCV
2017) as an importance of Torch-Pruning."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from htas.data.split import Batch
from htas.errors import UserError

IMAGES = 512
"""Number of training images that channels are judged on; the paper takes ten of every class."""
PLACES = 10
"""Outputs of a layer that are looked at for each image, as in the paper: a pixel and a channel, drawn at random."""


class ThiNet:
    """The place of each channel in the order in which they are removed: always the one without which the outputs of the
    layers that read it change least, together with those removed before it (the paper's Algorithm 1 and eq. 6). A layer
    that reads a channel is then scaled by least squares, channel by channel (eq. 7).

    Unlike the paper, which prunes one layer after another with an epoch of training in between and keeps the ends of
    residual blocks, all layers are judged in the trained base network; a channel that several layers read, as at a
    shortcut, changes the outputs of all of them, each as a fraction of its outputs' squares.
    """

    def __init__(self, images: Iterable[Batch]) -> None:
        self.images = images
        self.samples: dict[str, Tensor] = {}
        """By name of a layer, what each input channel adds to some of its outputs, [outputs, channels]."""
        self.grams: dict[str, dict[str, Tensor]] = {}
        """By name of the layer that a group begins with, and of each layer that reads it: `gram` of its channels."""
        self.names: dict[nn.Module, str] = {}
        self.model: nn.Module

    def judge(self, model: nn.Module) -> None:
        """Judge the channels of this network, which is in eval mode, or of a copy of it that was judged before."""
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        """The place of each channel of a group of all channels, [channels], the first to remove being 0; None where no
        layer reads them."""
        grams = self.grams.setdefault(self._name(group), {})
        if not grams:
            for layer, columns, channels in readers(group):
                samples = self._samples()[self.names[layer]]
                name = self.names[layer]
                grams[name] = grams.get(name, 0) + gram(samples, columns, channels, len(group[0].idxs))
        return order(sum(grams.values())).argsort().float() if grams else None  # type: ignore[arg-type]

    @torch.no_grad()
    def rescale(self, whole: Any, removed: Iterable[int]) -> None:
        """Scale what the layers that read a group make of each channel that stays, before the others are removed."""
        keep = sorted({*range(len(whole[0].idxs))} - {*removed})
        for layer, columns, channels in readers(whole):
            if getattr(layer, "groups", 1) == 1:
                factors = torch.ones(len(whole[0].idxs), dtype=torch.float64)
                factors[keep] = scales(self.grams[self._name(whole)][self.names[layer]], keep)
                shape = (1, -1) + (1,) * (layer.weight.dim() - 2)
                layer.weight[:, columns] *= factors[channels].to(layer.weight.dtype).view(shape)

    def _name(self, group: Any) -> str:
        return self.names[group[0].dep.target.module]

    def _samples(self) -> dict[str, Tensor]:
        """Samples of all layers, by one pass over the images."""
        if not self.samples:
            generator, rows = torch.Generator().manual_seed(0), dict[str, list[Tensor]]()

            def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                rows.setdefault(self.names[layer], []).append(contributions(layer, inputs[0], generator))

            layers = [each for each in self.names if isinstance(each, nn.modules.conv._ConvNd | nn.Linear)]
            hooks = [layer.register_forward_pre_hook(look) for layer in layers]
            try:
                for images, _ in self.images:
                    self.model(*(each.cpu() for each in ([images] if isinstance(images, Tensor) else images)))
            finally:
                for hook in hooks:
                    hook.remove()
            assert rows, "thinet needs images"
            self.samples = {name: torch.cat(parts) for name, parts in rows.items()}
        return self.samples


def readers(group: Any) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """The layers that read a group: each with its input channels, and the group's channels that these are."""
    from torch_pruning import function  # type: ignore[import-untyped]

    for item in group:
        if item.dep.pruning_fn in (function.prune_conv_in_channels, function.prune_linear_in_channels):
            yield item.dep.target.module, torch.as_tensor(item.idxs), torch.as_tensor(item.root_idxs)


def contributions(layer: nn.Module, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """What each input channel adds to PLACES random outputs for each image, [images x PLACES, channels].

    Raises UserError where the layer is neither linear nor a convolution of images.
    """
    if isinstance(layer, nn.Linear):
        inputs = inputs.flatten(0, -2)
        picks = torch.arange(len(inputs)).repeat_interleave(PLACES)
        outputs = torch.randint(layer.out_features, (len(picks),), generator=generator)
        return inputs[picks] * layer.weight[outputs]
    if not isinstance(layer, nn.Conv2d):
        raise UserError(f"prune = 'thinet' needs linear layers and convolutions of images, and got a {layer}")
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode)
    picks = torch.arange(len(inputs)).repeat_interleave(PLACES)
    windows = []
    for size, kernel, stride, dilation in zip(
        padded.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True
    ):
        places = (size - dilation * (kernel - 1) - 1) // stride + 1
        first = stride * torch.randint(places, (len(picks), 1), generator=generator)
        windows.append(first + dilation * torch.arange(kernel))
    rows, columns = windows
    patches = padded[picks[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    outputs = torch.randint(layer.out_channels, (len(picks),), generator=generator)
    wide = layer.in_channels // layer.groups
    first = outputs // (layer.out_channels // layer.groups) * wide  # of the channels that an output reads
    channels = first[:, None] + torch.arange(wide)
    read = patches[torch.arange(len(picks))[:, None], channels]
    result = torch.zeros(len(picks), layer.in_channels)
    return result.scatter_(1, channels, (read * layer.weight[outputs]).sum((2, 3)))


def gram(samples: Tensor, columns: Tensor, channels: Tensor, count: int) -> Tensor:
    """Inner products of what each of a group's channels adds to a layer's outputs, over the sum of these outputs'
    squares, [count, count]; a channel may stand in several columns, as after a flattening."""
    total = samples.double().sum(1).square().sum().clamp_min(1e-30)
    parts = torch.zeros(len(samples), count, dtype=torch.float64)
    parts.index_add_(1, channels, samples[:, columns].double())
    return parts.mT @ parts / total


def order(products: Tensor) -> Tensor:
    """The channels in the order in which they are removed, by their inner products, [channels, channels]: always the
    one that makes the sum of all that are removed shortest."""
    lengths, removed = products.diagonal().clone(), []  # squared, without what those removed have in common
    for _ in range(len(products)):
        channel = int(lengths.argmin())
        removed.append(channel)
        lengths = lengths + 2 * products[channel]
        lengths[removed] = torch.inf
    return torch.tensor(removed)


def scales(products: Tensor, keep: list[int]) -> Tensor:
    """The factors of the channels that stay with which their sum is nearest to that of all channels, [keep]; 1 for a
    channel that adds nothing."""
    removed = products[keep].sum(1, keepdim=True) - products[keep][:, keep].sum(1, keepdim=True)
    more: Tensor = torch.linalg.lstsq(products[keep][:, keep], removed, driver="gelsd").solution
    return 1 + more.squeeze(1)
