"""Networks of the evaluation: shapes, sizes and that they can learn."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torchvision.models import resnet18

from ddgd_ray.method.classifiers import NETWORKS, build_network, features


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def size_of(name: str) -> int:
    return 64 if name == "convnet6" else 32


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


def resnet(stem: int, num_blocks: int) -> int:
    """Stem with a norm; of each width one block from the width before and num_blocks - 1 of its own; linear for 10 classes."""
    widths = (64, 64, 128, 256, 512)
    blocks = [block(a, b) + (num_blocks - 1) * block(b, b) for a, b in itertools.pairwise(widths)]
    return conv(3, 64, stem, bias=False) + 2 * 64 + sum(blocks) + (512 + 1) * 10


@pytest.mark.parametrize(
    ("name", "channels", "size", "expected"),
    [
        ("convnet3", 3, 32, convnet(3, 3, 2048, 10)),  # the literature's 320,010
        ("convnet6", 3, 224, convnet(3, 6, 1152, 10)),  # method.md section 5: linear on 1152 features
        # 9,408 + 128, then blocks of 73,984, 230,144, 919,040 and 3,673,088, then 513 * 10
        ("resnet_ap10", 3, 224, resnet(7, 1)),
        # blocks of stride 1 beside them: 73,984, 295,424, 1,180,672 and 4,720,640; torchvision's 11,181,642
        ("resnet18", 3, 224, resnet(7, 2)),
        ("resnet18_bn", 3, 224, resnet(7, 2)),
        ("resnet_ap10", 3, 96, resnet(3, 1)),
        ("resnet_ap10", 3, 32, resnet(3, 1)),
        ("resnet18", 3, 128, resnet(3, 2)),
        ("resnet18_bn", 3, 64, resnet(3, 2)),
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


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("convnet3", 32, 320_010),  # Zhao et al.
        ("convnet6", 224, 754_570),  # 3,840 and 5 times 147,840 in the blocks, 11,530 in the linear layer
        ("resnet_ap10", 224, 4_910_922),
        ("resnet_ap18", 224, 11_181_642),
        ("resnet18", 224, 11_181_642),  # He et al. with 10 classes
    ],
)
def test_a_network_has_the_parameters_of_the_literature(name: str, size: int, expected: int) -> None:
    assert num_parameters(build_network(name, num_classes=10, channels=3, size=size)) == expected


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        # the side of the last feature map by the size of the image, on both sides of the bounds of small, mid and large
        ("resnet_ap10", {16: 2, 32: 4, 64: 8, 65: 4, 128: 8, 129: 4, 224: 7}),
        ("resnet18", {9: 2, 32: 4, 64: 8, 65: 5, 128: 8, 129: 5, 224: 7}),
        ("resnet18_bn", {8: 1, 64: 8, 128: 8, 224: 7}),
        ("convnet", {8: 1, 32: 4, 33: 2, 64: 4, 65: 2, 128: 4, 129: 2, 224: 3}),
    ],
)
def test_stems_and_depths_follow_the_size_of_the_image(name: str, sides: dict[int, int]) -> None:
    found = {}
    for size in sides:
        network = build_network(name, num_classes=2, channels=1, size=size).eval()
        layers = list(network)[: -2 if name == "convnet" else -3]  # before flattening, and before the global average
        found[size] = nn.Sequential(*layers)(torch.zeros(1, 1, size, size)).shape[-1]
        assert network(torch.zeros(1, 1, size, size)).shape == (1, 2)
    assert found == sides


@pytest.mark.parametrize(("name", "size", "least"), [("convnet6", 32, 64), ("convnet6", 63, 64), ("convnet3", 7, 8)])
def test_a_convnet_that_halves_an_image_away_is_refused(name: str, size: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"{name} needs images of at least {least} px, got {size}"):
        build_network(name, num_classes=2, channels=1, size=size)
    build_network(name, num_classes=2, channels=1, size=least)


@pytest.mark.parametrize(("name", "least"), [("resnet_ap10", 16), ("resnet18", 9)])
def test_the_smallest_image_of_an_instance_norm_resnet_still_moves_its_logits(name: str, least: int) -> None:
    # instance norm of a 1 x 1 map is its bias whatever the image: the network would be blind
    torch.manual_seed(4)
    network = build_network(name, num_classes=3, channels=1, size=least)
    logits = network(torch.randn(2, 1, least, least, generator=torch.Generator().manual_seed(5)))
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match=f"at least {least} px"):
        build_network(name, num_classes=3, channels=1, size=least - 1)


def test_resnet18_bn_is_torchvisions_above_128_px() -> None:
    ours = build_network("resnet18_bn", num_classes=5, channels=3, size=160)
    twin = resnet18(num_classes=5)
    twin.load_state_dict(dict(zip(twin.state_dict(), ours.state_dict().values(), strict=True)))  # shapes must agree in order
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(ours(images), twin(images), rtol=0, atol=0)


def test_pooling_before_the_shortcuts_convolution_is_pooling_after_it() -> None:
    network = build_network("resnet_ap10", num_classes=2, channels=3, size=32)
    pool, conv1x1, norm = network[2].shortcut
    x = torch.randn(2, 64, 8, 8, generator=torch.Generator().manual_seed(7))
    # norm divides by the deviation, about 1: sums of 64 products in another order
    torch.testing.assert_close(norm(conv1x1(pool(x))), norm(pool(conv1x1(x))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet_ap10", "resnet18", "resnet18_bn"])
@pytest.mark.parametrize("size", [32, 224])
def test_convolutions_start_with_the_deviation_of_he(name: str, size: int) -> None:
    torch.manual_seed(8)
    network = build_network(name, num_classes=10, channels=3, size=size)
    for conv2d in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
        weight, expected = conv2d.weight, math.sqrt(2 / (conv2d.kernel_size[0] ** 2 * conv2d.out_channels))
        # the deviation of n normal numbers scatters by 1 / sqrt(2 n); 5 sigma, over 20 convolutions
        assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * weight.numel()))
        assert abs(weight.mean().item()) < 5 * expected / math.sqrt(weight.numel())


@pytest.mark.parametrize("name", ["convnet3", "convnet6", "resnet_ap10", "resnet18"])
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


@pytest.mark.parametrize(
    ("name", "size", "num_features"),
    [
        ("convnet3_slim", 32, 256),
        ("resnet_slim", 32, 64),
        ("convnet6", 224, 1152),
        ("resnet_ap10", 32, 512),
        ("resnet18", 32, 512),
        ("timm/resnet10t", 32, 512),
        ("timm/mobilenetv3_small_050", 32, 1024),  # its head has a layer of its own between pooling and logits
    ],
)
def test_features_are_what_the_last_linear_layer_reads(name: str, size: int, num_features: int) -> None:
    torch.manual_seed(9)
    network = build_network(name, num_classes=6, channels=3, size=size).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(10))
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    read = features(network, images)
    assert read.shape == (2, num_features)
    torch.testing.assert_close(last(read), network(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["convnet3_slim", "resnet_slim", "convnet3", "resnet_ap10", "resnet18", "resnet18_bn"])
def test_stacked_networks_train_under_vmap_as_each_alone(name: str) -> None:
    # float64: in float32 a batch and a grouped convolution round apart, and instance norms of 2 x 2 maps magnify that to 3 %
    torch.manual_seed(11)
    networks = [build_network(name, num_classes=4, channels=3, size=32).double().train() for _ in range(2)]
    generator = torch.Generator().manual_seed(12)
    images_KB = torch.randn(2, 3, 3, 32, 32, generator=generator, dtype=torch.float64)
    labels_KB = torch.randint(4, (2, 3), generator=generator)
    parameters, buffers = stack_module_state(networks)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(networks[0], (parameters, buffers), (images,)), labels)

    losses_K = vmap(loss)(parameters, buffers, images_KB, labels_KB)
    losses_K.sum().backward()
    for index, network in enumerate(networks):
        alone = F.cross_entropy(network(images_KB[index]), labels_KB[index])
        alone.backward()
        torch.testing.assert_close(losses_K[index], alone, rtol=1e-12, atol=0)
        for key, parameter in network.named_parameters():
            # biases before a norm have no gradient but rounding: hence atol, of gradients between 1e-4 and 1
            torch.testing.assert_close(parameters[key].grad[index], parameter.grad, rtol=1e-9, atol=1e-12)
        for key, buffer in network.named_buffers():
            torch.testing.assert_close(buffers[key][index], buffer, rtol=1e-12, atol=1e-15)
    counts = [buffer.tolist() for key, buffer in buffers.items() if key.endswith("num_batches_tracked")]
    assert counts == len(counts) * [[1, 1]]


@pytest.mark.parametrize("name", ["no_such_network", "timm/no_such_network"])
def test_an_unknown_name_is_a_key_error(name: str) -> None:
    with pytest.raises(KeyError):
        build_network(name, num_classes=2, channels=1, size=32)
