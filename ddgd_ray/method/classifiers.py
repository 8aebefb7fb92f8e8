"""Networks trained from scratch on a distilled set. Inputs (B, C, S, S) float; outputs (B, num_classes) logits."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class ConvNet(nn.Sequential):
    """The ConvNet of the distillation literature: `depth` x [conv 3x3, norm, ReLU, halve], then linear."""

    def __init__(self, num_classes: int, channels: int, size: int, *, depth: int, width: int) -> None:
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [
                nn.Conv2d(channels if index == 0 else width, width, 3, padding=1),
                nn.GroupNorm(width, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
        super().__init__(*layers, nn.Flatten(), nn.Linear(width * (size >> depth) ** 2, num_classes))


class SlimConvNet(nn.Sequential):
    """Three strided convolutions with batch norm: a third of the cost of ConvNet-3 at 32 px."""

    def __init__(self, num_classes: int, channels: int, *, widths: tuple[int, ...] = (32, 64, 64)) -> None:
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths), widths, strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], num_classes))


class _PooledBlock(nn.Module):
    """Basic residual block; strides are average pooling, also in the shortcut (ResNetAP).

    The literature pools after the shortcut's 1x1 convolution: the same up to rounding, as both are linear, at 4 times the cost.
    """

    def __init__(self, before: int, after: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        pool = [nn.AvgPool2d(stride)] if stride > 1 else []
        self.branch = nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            norm(after),
            nn.ReLU(inplace=True),
            *pool,
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            norm(after),
        )
        changes = stride > 1 or before != after
        self.shortcut = nn.Sequential(*pool, nn.Conv2d(before, after, 1, bias=False), norm(after)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.shortcut(x)
        return torch.relu(self.branch(x) + shortcut)


class ResNetAP(nn.Sequential):
    """Residual network of `depth` blocks a stage, with average pooling for strides, after a given stem."""

    def __init__(
        self, num_classes: int, stem: nn.Module, *, widths: tuple[int, ...], norm: Callable[[int], nn.Module], depth: int = 1
    ) -> None:
        blocks = [
            _PooledBlock(before if nth == 0 else after, after, 2 if stage and nth == 0 else 1, norm)
            for stage, (before, after) in enumerate(zip((widths[0], *widths), widths, strict=False))
            for nth in range(depth)
        ]
        super().__init__(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))


class _StridedBlock(nn.Module):
    """Basic residual block whose first convolution and shortcut carry the stride (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            norm(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            norm(after),
        )
        changes = stride > 1 or before != after
        shortcut = [nn.Conv2d(before, after, 1, stride=stride, bias=False), norm(after)] if changes else []
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.shortcut(x)
        return torch.relu(self.branch(x) + shortcut)


class ResNet18(nn.Sequential):
    """ResNet-18: torchvision's above 128 px; from 65 px with a 3x3 stem of stride 1, below without pooling as well (IDC)."""

    def __init__(self, num_classes: int, channels: int, size: int, *, norm: Callable[[int], nn.Module]) -> None:
        side, stride = (7, 2) if size > 128 else (3, 1)
        pool = [nn.MaxPool2d(3, stride=2, padding=1)] if size > 64 else []
        conv = nn.Conv2d(channels, 64, side, stride=stride, padding=side // 2, bias=False)
        stem = nn.Sequential(conv, norm(64), nn.ReLU(inplace=True), *pool)
        blocks: list[nn.Module] = []
        for before, after in ((64, 64), (64, 128), (128, 256), (256, 512)):
            stride = 1 if before == after else 2
            blocks += [_StridedBlock(before, after, stride, norm), _StridedBlock(after, after, 1, norm)]
        super().__init__(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes))


def _instance_norm(width: int) -> nn.Module:
    return nn.GroupNorm(width, width)


def _he(network: nn.Sequential) -> nn.Sequential:
    """The network, its convolutions drawn from a normal of deviation sqrt(2 / (k * k * out)), as IDC does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _refuse_smaller(name: str, size: int, least: int) -> None:
    if size < least:
        raise ValueError(f"network {name} needs images of at least {least} px, got {size}; take a shallower one")


def _convnet(name: str, depth: int, num_classes: int, channels: int, size: int) -> nn.Module:
    _refuse_smaller(name, size, 2**depth)
    return ConvNet(num_classes, channels, size, depth=depth, width=128)


def _convnet_by_size(num_classes: int, channels: int, size: int) -> nn.Module:
    """A ConvNet of depth 3 up to 32 px, 4 up to 64, 5 up to 128, then 6."""
    depth = next((depth for depth, most in ((3, 32), (4, 64), (5, 128)) if size <= most), 6)
    return _convnet("convnet", depth, num_classes, channels, size)


def _resnet_ap(name: str, depth: int, num_classes: int, channels: int, size: int) -> nn.Module:
    """ResNetAP as in IDC: a stem of stride 1, average pooling, `depth` blocks in each stage of 64 to 512, instance norm."""
    _refuse_smaller(name, size, 16)  # three halvings to 1 x 1, where instance norm returns its bias for any image
    side, pool = (7, [nn.AvgPool2d(4)]) if size > 128 else (3, [nn.AvgPool2d(2)] if size > 64 else [])
    conv = nn.Conv2d(channels, 64, side, padding=side // 2, bias=False)
    stem = nn.Sequential(conv, _instance_norm(64), nn.ReLU(inplace=True), *pool)
    return _he(ResNetAP(num_classes, stem, widths=(64, 128, 256, 512), norm=_instance_norm, depth=depth))


def _resnet18(num_classes: int, channels: int, size: int) -> nn.Module:
    _refuse_smaller("resnet18", size, 9)  # the same; strided convolutions round up
    return _he(ResNet18(num_classes, channels, size, norm=_instance_norm))


def _resnet18_bn(num_classes: int, channels: int, size: int) -> nn.Module:
    return _he(ResNet18(num_classes, channels, size, norm=nn.BatchNorm2d))


def _resnet_slim(num_classes: int, channels: int, size: int) -> nn.Module:
    """A network of two residual stages behind a strided stem, with batch norm: at 32 px it costs what SlimConvNet costs."""
    stem = nn.Sequential(nn.Conv2d(channels, 32, 5, stride=4, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
    return ResNetAP(num_classes, stem, widths=(32, 64), norm=nn.BatchNorm2d)


Builder = Callable[[int, int, int], nn.Module]  # (num_classes, channels, size)

NETWORKS: dict[str, Builder] = {
    "convnet3_slim": lambda classes, channels, size: SlimConvNet(classes, channels),
    "resnet_slim": _resnet_slim,
    "convnet": _convnet_by_size,
    "convnet3": partial(_convnet, "convnet3", 3),
    "convnet6": partial(_convnet, "convnet6", 6),
    "resnet_ap10": partial(_resnet_ap, "resnet_ap10", 1),
    "resnet_ap18": partial(_resnet_ap, "resnet_ap18", 2),
    "resnet18": _resnet18,
    "resnet18_bn": _resnet18_bn,  # teacher and student of RDED
}


def build_network(name: str, *, num_classes: int, channels: int, size: int) -> nn.Module:
    """A network by its name here, or any of timm's as `timm/NAME`.

    Raises KeyError for an unknown name and ValueError for images smaller than the network's halvings allow.
    """
    if name.startswith("timm/"):
        import timm

        try:
            network: nn.Module = timm.create_model(name[5:], num_classes=num_classes, in_chans=channels)
        except RuntimeError as err:
            raise KeyError(str(err)) from err
        return network
    return NETWORKS[name](num_classes, channels, size)


def features(network: nn.Module, images: Tensor) -> Tensor:
    """The features (B, F) that the last linear layer of a network of `build_network` reads."""
    if not isinstance(network, ConvNet | SlimConvNet | ResNetAP | ResNet18):
        return network.forward_head(network.forward_features(images), pre_logits=True)  # type: ignore[operator]  # timm
    for layer in list(network)[:-1]:
        images = layer(images)
    return images
