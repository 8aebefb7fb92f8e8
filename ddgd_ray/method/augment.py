"""Augmentation of a whole batch where it lies, each image with parameters of its own.

Drawing and applying are two things. `draw_*` runs on the host from a generator, for as many samples as one likes: each makes
one call to the generator, so n draws and then m are the n + m draws. Applying is a function of tensors on the images' device:
no loop over samples, nothing read back, so seeds packed in one batch (N = K * B) cost what one large batch costs.

Shapes: N samples, K seeds, B batch of a seed, C channels, S side in pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

GRAY = (0.2989, 0.587, 0.114)  # torchvision's; the literature's own code has 0.299 for red
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# principal components of RGB over ImageNet (Krizhevsky et al. 2012): rows of the vectors are R, G, B
RGB_EIGENVALUES = (0.2175, 0.0188, 0.0045)
RGB_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
BRIGHTNESS, CONTRAST, SATURATION = range(3)


def draw_crops(num: int, size: int, *, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Boxes (num, 4) float32 of top, left, height, width in whole pixels, by torchvision's RandomResizedCrop.

    Area share uniform in `scale`, ratio log-uniform in 3/4..4/3, ten tries; a sample that none fits takes the whole image, to
    which torchvision's central crop comes for a square.
    """
    # float64: in float32 an offset drawn just below its bound would round up to it
    uniform = torch.rand(num, 22, generator=generator, dtype=torch.float64)
    area = (scale[0] + (scale[1] - scale[0]) * uniform[:, :10]) * size**2
    ratio = (4 / 3) ** (2 * uniform[:, 10:20] - 1)
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.int().argmax(dim=1, keepdim=True)  # the first of equal ones
    sides = torch.stack([height.gather(1, first), width.gather(1, first)], dim=1)[:, :, 0]
    sides = torch.where(fits.any(dim=1, keepdim=True), sides, size)
    offsets = (uniform[:, 20:] * (size - sides + 1)).floor()
    return torch.cat([offsets, sides], dim=1).float()


def draw_mirrored(num: int, generator: torch.Generator) -> Tensor:
    return torch.rand(num, generator=generator) < 0.5


def draw_shifts(num: int, max_shift: int, *, generator: torch.Generator) -> Tensor:
    """Shifts down and right in pixels, (num, 2) int64 in -max_shift..max_shift."""
    uniform = torch.rand(num, 2, generator=generator, dtype=torch.float64)
    return (uniform * (2 * max_shift + 1)).long() - max_shift


def draw_factors(num: int, strengths: tuple[float, float, float], *, generator: torch.Generator) -> Tensor:
    """Factors of brightness, contrast and saturation (num, 3): uniform in 1 - strength..1 + strength, strengths at most 1."""
    assert all(0 <= strength <= 1 for strength in strengths)
    return 1 + (2 * torch.rand(num, 3, generator=generator) - 1) * torch.tensor(strengths)


def draw_orders(num: int, generator: torch.Generator) -> Tensor:
    """Permutations of 0..2, (num, 3) int64."""
    return torch.rand(num, 3, generator=generator, dtype=torch.float64).argsort(dim=1)


def draw_alphas(num: int, *, generator: torch.Generator, std: float = 0.1) -> Tensor:
    """Normal numbers (num, 3) float32. By the inverse distribution: `randn` would not give n then m as n + m."""
    uniform = torch.rand(num, 3, generator=generator, dtype=torch.float64)
    return (std * torch.special.ndtri(uniform.clamp_min(2.0**-54))).float()


def draw_boxes(num: int, size: int, *, generator: torch.Generator) -> Tensor:
    """CutMix boxes (num, 4) int64 of top, bottom, left, right, ends excluded (Yun et al. 2019, its code's `rand_bbox`)."""
    uniform = torch.rand(num, 3, generator=generator, dtype=torch.float64)
    half = (size * (1 - uniform[:, :1]).sqrt()).long() // 2  # Beta(1, 1) is uniform
    center = (uniform[:, 1:] * size).long()
    ends = torch.stack([center - half, center + half], dim=2)  # (num, [row, column], [low, high])
    return ends.clamp(0, size).flatten(1)


def draw_partners(num: int, batch: int, *, generator: torch.Generator) -> Tensor:
    """Permutations of a batch, (num, batch) int64."""
    return torch.rand(num, batch, generator=generator, dtype=torch.float64).argsort(dim=1)


def resize_crops(images: Tensor, crops: Tensor, *, mirrored: Tensor, size: int) -> Tensor:
    """Each image's box at (size, size), then mirrored where told: (N, C, size, size) float32 in [0, 1].

    images: (N, C, S, S) uint8; crops: (N, 4) of `draw_crops`. Bilinear as torchvision and PIL: coordinates stop at the box, not
    at the image. Antialiasing acts on boxes that shrink, and none does: `size` is S, images being resized on decoding.
    """
    assert size == images.shape[-1] == images.shape[-2], "a box that shrinks would need antialiasing"
    span = torch.arange(size, device=images.device, dtype=torch.float32) + 0.5
    top, left, height, width = crops[:, :, None].unbind(1)
    rows = (span * (height / size) - 0.5).clamp_min(0).minimum(height - 1) + top  # (N, size), in source pixels
    columns = (span * (width / size) - 0.5).clamp_min(0).minimum(width - 1) + left
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=3) * (2 / (size - 1)) - 1
    # 77 ms for 64 images of 224 px on two cores; two matrix products 100 ms, gathers 165 ms
    return F.grid_sample(images.float().div_(255), grid, padding_mode="border", align_corners=True)


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def shift(images: Tensor, offsets: Tensor) -> Tensor:
    """Images moved by their rows of `draw_shifts`; the edge is filled with the image's least value."""
    num, channels, size, _ = images.shape
    source = torch.arange(size, device=images.device) - offsets[:, :, None]  # (N, [row, column], S)
    inside = (source >= 0) & (source < size)
    rows, columns = source.clamp(0, size - 1).unbind(1)
    moved = images.gather(2, rows[:, None, :, None].expand(num, channels, size, size))
    moved = moved.gather(3, columns[:, None, None, :].expand(num, channels, size, size))
    return torch.where(
        (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None], moved, images.amin(dim=(1, 2, 3), keepdim=True)
    )


def color_jitter(images: Tensor, factors: Tensor, order: Tensor, *, clamped: bool = True) -> Tensor:
    """Images after torchvision's ColorJitter without hue, in each sample's own order. images: (N, 1 or 3, S, S) in [0, 1].

    Every step is f * x + (1 - f) * blend: blend is black for brightness, the mean gray for contrast, gray for saturation, which
    leaves a one-channel image as it is. `clamped=False` leaves the steps unclamped, as the code of IDC and Minimax Diffusion.
    """
    num_channels = images.shape[1]
    for step in range(3):
        kind = order[:, step, None, None, None]
        factor = factors.gather(1, order[:, step, None])[:, :, None, None]
        gray = images if num_channels == 1 else _gray(images)
        mean = gray.mean(dim=(1, 2, 3), keepdim=True)
        # weights of the two grays, zero where the sample's step is another one
        blend = torch.addcmul(mean * ((kind == CONTRAST) * (1 - factor)), gray, (kind == SATURATION) * (1 - factor))
        images = torch.addcmul(blend, images, factor)
        images = images.clamp_(0, 1) if clamped else images
    return images


def _gray(images: Tensor) -> Tensor:
    red, green, blue = (images[:, index : index + 1] for index in range(3))
    return (GRAY[0] * red).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def lighting(images: Tensor, alphas: Tensor) -> Tensor:
    """Images plus their alphas along the principal components of RGB (Krizhevsky et al. 2012); one channel has none."""
    if images.shape[1] == 1:
        return images
    scaled = alphas * _on(alphas, RGB_EIGENVALUES)
    offsets = torch.stack([(scaled * _on(alphas, row)).sum(dim=1) for row in RGB_EIGENVECTORS], dim=1)
    return images + offsets[:, :, None, None]


def normalize(images: Tensor) -> Tensor:
    """Images normalised by mean and deviation of ImageNet; one channel goes from [0, 1] to [-1, 1]."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if images.shape[1] == 3 else ((0.5,), (0.5,))
    scale = _on(images, tuple(1 / value for value in std))[:, None, None]
    offset = _on(images, tuple(-m / s for m, s in zip(mean, std, strict=True)))[:, None, None]
    return torch.addcmul(offset, images, scale)


def cutmix_boxes(images: Tensor, partner: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Images whose box shows their partner (CutMix), and the share of itself that an image keeps, (K,) float32; one box a seed.

    images: (K, B, C, S, S); partner: (K, B), a permutation inside each seed's batch; boxes: (K, 4) of `draw_boxes`.
    """
    num_seeds, size = images.shape[0], images.shape[-1]
    span = torch.arange(size, device=images.device)
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    rows, columns = (span >= top) & (span < bottom), (span >= left) & (span < right)
    inside = rows[:, :, None] & columns[:, None, :]
    others = images[torch.arange(num_seeds, device=images.device)[:, None], partner]
    mixed = torch.where(inside[:, None, None], others, images)
    return mixed, 1 - ((bottom - top) * (right - left))[:, 0] / size**2


def _on(images: Tensor, values: tuple[float, ...]) -> Tensor:
    """The values as a tensor, filled on the device: `torch.tensor` would copy from the host and wait."""
    return torch.stack([torch.full((), value, dtype=images.dtype, device=images.device) for value in values])
