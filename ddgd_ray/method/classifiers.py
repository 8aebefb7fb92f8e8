"""Networks trained from scratch on a distilled set. Inputs (B, C, S, S) float; outputs (B, num_classes) logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ConvNet(nn.Sequential):
    """`depth` x [conv 3x3, norm, ReLU, halve], then linear: the ConvNet of the distillation literature."""

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
    """Basic residual block; strides are average pooling, also in the shortcut (ResNetAP)."""

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
    """Residual network with one block a stage and average pooling for strides, after a given stem."""

    def __init__(self, num_classes: int, stem: nn.Module, *, widths: tuple[int, ...], norm: Callable[[int], nn.Module]) -> None:
        blocks = [
            _PooledBlock(before, after, 1 if index == 0 else 2, norm)
            for index, (before, after) in enumerate(zip((widths[0], *widths), widths, strict=False))
        ]
        super().__init__(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))


def _instance_norm(width: int) -> nn.Module:
    return nn.GroupNorm(width, width)


def _resnet_ap10(num_classes: int, channels: int, size: int) -> nn.Module:
    """method.md section 5: 7x7 stem of stride 1, average pool 4, blocks [1, 1, 1, 1] of 64 to 512, instance norm."""
    stem = nn.Sequential(
        nn.Conv2d(channels, 64, 7, padding=3, bias=False), _instance_norm(64), nn.ReLU(inplace=True), nn.AvgPool2d(4)
    )
    return ResNetAP(num_classes, stem, widths=(64, 128, 256, 512), norm=_instance_norm)


def _resnet_slim(num_classes: int, channels: int, size: int) -> nn.Module:
    """Two residual stages behind a strided stem, batch norm: as dear as SlimConvNet at 32 px."""
    stem = nn.Sequential(nn.Conv2d(channels, 32, 5, stride=4, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
    return ResNetAP(num_classes, stem, widths=(32, 64), norm=nn.BatchNorm2d)


Builder = Callable[[int, int, int], nn.Module]  # (num_classes, channels, size)

NETWORKS: dict[str, Builder] = {
    "convnet3_slim": lambda classes, channels, size: SlimConvNet(classes, channels),
    "resnet_slim": _resnet_slim,
    "convnet3": lambda classes, channels, size: ConvNet(classes, channels, size, depth=3, width=128),
    "convnet6": lambda classes, channels, size: ConvNet(classes, channels, size, depth=6, width=128),
    "resnet_ap10": _resnet_ap10,
}


def build_network(name: str, *, num_classes: int, channels: int, size: int) -> nn.Module:
    """A network by its name here, or any of timm's as `timm/NAME`. Raises KeyError for an unknown name."""
    if name.startswith("timm/"):
        import timm

        try:
            network: nn.Module = timm.create_model(name[5:], num_classes=num_classes, in_chans=channels)
        except RuntimeError as err:
            raise KeyError(str(err)) from err
        return network
    return NETWORKS[name](num_classes, channels, size)
