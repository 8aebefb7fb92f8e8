"""Networks of the evaluation: shapes, sizes and that they can learn."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ddgd_ray.method.classifiers import NETWORKS, build_network


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def size_of(name: str) -> int:
    return 64 if name in ("convnet6", "resnet_ap10") else 32


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("num_classes", "channels"), [(10, 3), (7, 1)])
def test_a_network_maps_images_to_one_logit_per_class(name: str, num_classes: int, channels: int) -> None:
    network = build_network(name, num_classes=num_classes, channels=channels, size=size_of(name)).eval()
    logits = network(torch.zeros(2, channels, size_of(name), size_of(name)))
    assert logits.shape == (2, num_classes)


def conv(before: int, after: int, side: int, *, bias: bool) -> int:
    return before * after * side**2 + (after if bias else 0)


def block(before: int, after: int) -> int:
    """Two 3x3 convolutions without bias, each with a norm; a 1x1 shortcut with a norm where the width changes."""
    norms = 2 * after
    branch = conv(before, after, 3, bias=False) + norms + conv(after, after, 3, bias=False) + norms
    return branch + (conv(before, after, 1, bias=False) + norms if before != after else 0)


def convnet(channels: int, depth: int, num_features: int, num_classes: int) -> int:
    layers = conv(channels, 128, 3, bias=True) + 2 * 128 + (depth - 1) * (conv(128, 128, 3, bias=True) + 2 * 128)
    return layers + (num_features + 1) * num_classes


@pytest.mark.parametrize(
    ("name", "channels", "size", "expected"),
    [
        ("convnet3", 3, 32, convnet(3, 3, 2048, 10)),  # the literature's 320,010
        ("convnet6", 3, 224, convnet(3, 6, 1152, 10)),  # method.md section 5: linear on 1152 features
        (
            "resnet_ap10",
            3,
            224,
            conv(3, 64, 7, bias=False) + 128 + block(64, 64) + block(64, 128) + block(128, 256) + block(256, 512) + 5130,
        ),
        (
            "convnet3_slim",
            3,
            32,
            sum(conv(a, b, 3, bias=False) + 2 * b for a, b in ((3, 32), (32, 64), (64, 64))) + (256 + 1) * 10,
        ),
        ("resnet_slim", 3, 32, conv(3, 32, 5, bias=False) + 64 + block(32, 32) + block(32, 64) + 65 * 10),
    ],
)
def test_a_network_has_the_parameters_of_its_description(name: str, channels: int, size: int, expected: int) -> None:
    assert num_parameters(build_network(name, num_classes=10, channels=channels, size=size)) == expected


def test_convnet3_has_the_320010_parameters_of_the_literature() -> None:
    assert num_parameters(build_network("convnet3", num_classes=10, channels=3, size=32)) == 320_010


@pytest.mark.parametrize("name", ["convnet3", "convnet6", "resnet_ap10"])
def test_instance_norm_networks_judge_an_image_alone(name: str) -> None:
    # in training mode too: with batch norm the other image would change the first one's logits
    torch.manual_seed(0)
    network = build_network(name, num_classes=10, channels=3, size=size_of(name)).train()
    images = torch.randn(2, 3, size_of(name), size_of(name), generator=torch.Generator().manual_seed(1))
    together, alone = network(images)[0], network(images[:1])[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)  # convolutions may sum in another order


def test_resnet_ap10_has_no_strided_convolution() -> None:
    network = build_network("resnet_ap10", num_classes=10, channels=3, size=224)
    strides = {module.stride for module in network.modules() if isinstance(module, nn.Conv2d)}
    assert strides == {(1, 1)}
    # a block's branch and shortcut share one pooling module: it must be listed twice
    modules = [module for _, module in network.named_modules(remove_duplicate=False)]
    assert [module.kernel_size for module in modules if isinstance(module, nn.AvgPool2d)] == [4] + 2 * 3 * [2]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_of_a_network_receives_gradient(name: str) -> None:
    torch.manual_seed(2)
    network = build_network(name, num_classes=4, channels=1, size=size_of(name))
    images = torch.randn(4, 1, size_of(name), size_of(name), generator=torch.Generator().manual_seed(3))
    F.cross_entropy(network(images), torch.arange(4)).backward()
    idle = [key for key, tensor in network.named_parameters() if tensor.grad is None or not tensor.grad.abs().sum() > 0]
    assert idle == []


def test_a_timm_network_is_built_by_name_with_our_channels_and_classes() -> None:
    network = build_network("timm/resnet10t", num_classes=6, channels=1, size=32).eval()
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 6)


@pytest.mark.parametrize("name", ["no_such_network", "timm/no_such_network"])
def test_an_unknown_name_is_a_key_error(name: str) -> None:
    with pytest.raises(KeyError):
        build_network(name, num_classes=2, channels=1, size=32)
