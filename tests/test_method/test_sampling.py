"""Reverse diffusion with denoisers that work number by number, so that equality can be exact."""

import hashlib
import math

import pytest
import torch
from torch import Tensor

from ddgd_ray.method.guidance import Step, Window, toward_modes
from ddgd_ray.method.noise import linear_schedule
from ddgd_ray.method.sampling import Ancestral, Ddim, guided, noise_stream, sample

NULL = 9
SAMPLERS = {"ddpm": Ancestral, "ddim": Ddim}
WANTED = [(label, index) for label in range(3) for index in range(4)]


def toy(z_t: Tensor, t_B: Tensor, labels_B: Tensor) -> Tensor:
    """Noise and variance that depend on latent, timestep and label."""
    level = (t_B[:, None, None, None] / 1000).float()
    label = labels_B[:, None, None, None].float()
    return torch.cat([0.7 * z_t * level + 0.05 * label, (z_t + label).clamp(-1, 1)], dim=1)


def draw(wanted: list[tuple[int, int]], *, sampler: str = "ddpm", guidance: float = 4.0, seed: int = 0) -> Tensor:
    return sample(
        toy,
        SAMPLERS[sampler](linear_schedule(), 6),
        torch.tensor([label for label, _ in wanted]),
        [noise_stream(seed, f"n{label:08d}", index) for label, index in wanted],
        latent_shape=(4, 3, 3),
        guidance=guidance,
        cfg_channels=3,
        null_label=NULL,
    )


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_an_image_does_not_depend_on_batch_size_or_order(sampler: str, guidance: float) -> None:
    whole = draw(WANTED, sampler=sampler, guidance=guidance)
    assert torch.equal(draw(WANTED[::-1], sampler=sampler, guidance=guidance).flip(0), whole)
    for size in (1, 5):
        parts = [draw(WANTED[start : start + size], sampler=sampler, guidance=guidance) for start in range(0, 12, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_a_small_set_is_a_prefix_of_a_larger_one_in_each_class() -> None:
    large = dict(zip(WANTED, draw(WANTED), strict=True))
    small_wanted = [wanted for wanted in WANTED if wanted[1] < 2]
    for wanted, latent in zip(small_wanted, draw(small_wanted), strict=True):
        assert torch.equal(latent, large[wanted])


def test_seed_class_and_index_each_change_the_noise() -> None:
    names = [(0, "n01440764", 0), (1, "n01440764", 0), (0, "n02102040", 0), (0, "n01440764", 1), (0, "n01440764", 10)]
    starts = {tuple(torch.randn(4, generator=noise_stream(*name)).tolist()) for name in names}
    assert len(starts) == len(names)


def test_noise_streams_do_not_confuse_fields_that_read_the_same_when_joined() -> None:
    assert noise_stream(1, "1", 1).initial_seed() != noise_stream(11, "", 1).initial_seed()
    assert noise_stream(0, "n1", 11).initial_seed() != noise_stream(0, "n11", 1).initial_seed()


def test_noise_streams_are_the_same_on_every_machine() -> None:
    # a sample is named by (seed, class, index) in the artifact: a stream that moves makes old sets irreproducible
    digest = hashlib.sha256(b"3\x00n01440764\x007").digest()
    assert noise_stream(3, "n01440764", 7).initial_seed() == int.from_bytes(digest[:8], "big") // 2


def random_batch(num: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(31)
    return torch.randn(num, 4, 2, 2, generator=generator), torch.full((num,), 500), torch.arange(num)


@pytest.mark.parametrize("cfg_channels", [1, 3, 4])
def test_guidance_touches_the_first_cfg_channels_alone(cfg_channels: int) -> None:
    z_t, t_B, labels_B = random_batch()
    conditional, unconditional = toy(z_t, t_B, labels_B), toy(z_t, t_B, torch.full_like(labels_B, NULL))
    eps, v = guided(toy, z_t, t_B, labels_B, NULL, 4.0, cfg_channels)
    for channel in range(4):
        plain, null = conditional[:, channel], unconditional[:, channel]
        expected = null + 4.0 * (plain - null) if channel < cfg_channels else plain
        torch.testing.assert_close(eps[:, channel], expected, msg=f"channel {channel}")
    assert v is not None
    assert torch.equal(v, conditional[:, 4:])


def test_guidance_of_one_asks_for_no_unconditional_pass() -> None:
    labels_seen = []

    def listening(z_t: Tensor, t_B: Tensor, labels_B: Tensor) -> Tensor:
        labels_seen.extend(labels_B.tolist())
        return toy(z_t, t_B, labels_B)

    z_t, t_B, labels_B = random_batch()
    eps, _ = guided(listening, z_t, t_B, labels_B, NULL, 1.0, 3)
    assert labels_seen == labels_B.tolist()
    torch.testing.assert_close(eps, guided(toy, z_t, t_B, labels_B, NULL, 1.0 + 1e-6, 3)[0], atol=1e-4, rtol=0)


def test_a_model_without_variance_output_yields_none_for_it() -> None:
    z_t, t_B, labels_B = random_batch()
    for scale in (1.0, 4.0):
        eps, v = guided(lambda z, t, c: toy(z, t, c)[:, :4], z_t, t_B, labels_B, NULL, scale, 3)
        assert v is None
        assert eps.shape == z_t.shape


@pytest.mark.parametrize("num_steps", [2, 50])
def test_ddim_with_a_perfect_denoiser_recovers_x0_along_one_straight_noise(num_steps: int) -> None:
    abar_T = linear_schedule().abar_T
    x0 = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(32))
    timesteps, noises = [], []

    def perfect(z_t: Tensor, t_B: Tensor, labels_B: Tensor) -> Tensor:
        abar = abar_T[t_B][:, None, None, None]
        noises.append((z_t - abar.sqrt() * x0[labels_B]) / (1 - abar).sqrt())
        timesteps.append(t_B[0].item())
        return noises[-1]

    latents = sample(
        perfect,
        Ddim(linear_schedule(), num_steps),
        torch.arange(3),
        [noise_stream(0, "c", index) for index in range(3)],
        latent_shape=(2, 4, 4),
        guidance=1.0,
        cfg_channels=2,
        null_label=3,
    )
    torch.testing.assert_close(latents, x0, atol=1e-5, rtol=0)  # z starts as float32, the denoiser answers in float64
    assert timesteps == sorted(timesteps, reverse=True)
    assert (timesteps[0], timesteps[-1], len(timesteps)) == (999, 0, num_steps)
    # every step back lands on the same line from x0: the noise seen is the first one. The factors of the first step are
    # float32, so x0 is off by 157 x 6e-8 there; at t = 0 noise is 1 % of z and dividing by it makes that 1e-3, times a few
    for noise in noises:
        torch.testing.assert_close(noise, noises[0], atol=1e-2, rtol=0)


def slow_ddpm(label: int, stream: torch.Generator, num_steps: int, guidance: float, *, learned: bool) -> list[float]:
    """One latent of two numbers (one guided), with every quantity written out from the 1,000 betas."""

    def abar(t: int) -> float:
        return math.prod(1 - (1e-4 + (0.02 - 1e-4) * s / 999) for s in range(t + 1))

    def model(z: float, t: int, c: int) -> tuple[float, float]:
        return 0.7 * z * t / 1000 + 0.05 * c, max(-1.0, min(1.0, z + c))

    kept = [round(step * 999 / (num_steps - 1)) for step in range(num_steps)]
    z = torch.randn((2, 1, 1), generator=stream).flatten().tolist()
    for step in reversed(range(num_steps)):
        noise = torch.randn((2, 1, 1), generator=stream).flatten().tolist() if step > 0 else [0.0, 0.0]
        now, before = abar(kept[step]), abar(kept[step - 1]) if step > 0 else 1.0
        beta = 1 - now / before
        for channel in range(2):
            eps, v = model(z[channel], kept[step], label)
            if channel == 0:
                null, _ = model(z[channel], kept[step], NULL)
                eps = null + guidance * (eps - null)
            x0 = (z[channel] - math.sqrt(1 - now) * eps) / math.sqrt(now)
            mean = (math.sqrt(before) * beta * x0 + math.sqrt(1 - beta) * (1 - before) * z[channel]) / (1 - now)
            low = math.log(beta * (1 - before) / (1 - now)) if step > 0 else 0.0
            log_var = low + (v + 1) / 2 * (math.log(beta) - low) if learned else low
            z[channel] = mean + math.exp(0.5 * log_var) * noise[channel]
    return z


@pytest.mark.parametrize("learned", [True, False])
def test_ddpm_equals_a_slow_twin(learned: bool) -> None:
    wanted = [(0, 0), (1, 0), (4, 2)]
    latents = sample(
        toy if learned else lambda z, t, c: toy(z, t, c)[:, :2],
        Ancestral(linear_schedule(), 5),
        torch.tensor([label for label, _ in wanted]),
        [noise_stream(5, f"c{label}", index) for label, index in wanted],
        latent_shape=(2, 1, 1),
        guidance=4.0,
        cfg_channels=1,
        null_label=NULL,
    )
    for latent, (label, index) in zip(latents, wanted, strict=True):
        expected = slow_ddpm(label, noise_stream(5, f"c{label}", index), 5, 4.0, learned=learned)
        # float32 against float64; the first step multiplies rounding by 157
        assert latent.flatten().tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samplers_reproduce_the_spread_of_gaussian_data(sampler: str) -> None:
    abar_T, spread = linear_schedule().abar_T.float(), 0.5

    def optimal(z_t: Tensor, t_B: Tensor, labels_B: Tensor) -> Tensor:
        abar = abar_T[t_B][:, None, None, None]
        return (1 - abar).sqrt() * z_t / (abar * spread**2 + 1 - abar)  # E[eps | z_t] for N(0, spread^2) data

    latents = sample(
        optimal,
        SAMPLERS[sampler](linear_schedule(), 250),
        torch.zeros(1, dtype=torch.int64),
        [noise_stream(0, "gauss", 0)],
        latent_shape=(1, 64, 64),
        guidance=1.0,
        cfg_channels=1,
        null_label=1,
    )
    # 4,096 numbers: the spread is known to 1.1 %, 250 steps leave about 1 %, and we allow 5 %
    assert latents.std().item() == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_guide_is_told_of_its_step_and_moves_the_mean_before_the_noise(sampler: str) -> None:
    """Against a loop over the same steps that adds the guide's shift by hand."""
    seen: list[Step] = []

    def guide(step: Step) -> Tensor:
        seen.append(step)
        return step.mean + 0.1 * step.sigma_t

    schedule, labels = linear_schedule(), torch.tensor([0, 1])
    options = {"latent_shape": (4, 3, 3), "guidance": 1.0, "cfg_channels": 4, "null_label": NULL}
    streams = [noise_stream(0, "a", index) for index in range(2)]
    guided_z = sample(toy, SAMPLERS[sampler](schedule, 6), labels, streams, **options, guide=guide)  # type: ignore[arg-type]

    way, streams = SAMPLERS[sampler](schedule, 6), [noise_stream(0, "a", index) for index in range(2)]
    z = torch.stack([torch.randn(4, 3, 3, generator=stream) for stream in streams])
    for place, t in enumerate(way.timesteps):
        noise = None
        if place < way.num_noises:
            noise = torch.stack([torch.randn(4, 3, 3, generator=stream) for stream in streams])
        eps, v = toy(z, torch.full((2,), t), labels).chunk(2, dim=1)
        abar = float(schedule.abar_T[t])
        assert [seen[place].index, seen[place].abar] == [5 - place, pytest.approx(abar)]
        torch.testing.assert_close(seen[place].x0, (z - math.sqrt(1 - abar) * eps) / math.sqrt(abar))
        torch.testing.assert_close(seen[place].z_t, z)
        z = way.step(place, z, eps, v, noise) + 0.1 * seen[place].sigma_t
    torch.testing.assert_close(guided_z, z)


def test_the_sigma_of_a_guided_step_is_that_of_its_noise() -> None:
    way, sigmas = Ancestral(linear_schedule(), 6), []

    def keep(mean: Tensor, x0: Tensor, sigma_t: Tensor, index: int, abar: float) -> Tensor:
        sigmas.append(sigma_t)
        return mean

    z, t_B, labels = random_batch()
    eps, v = toy(z, t_B, labels).chunk(2, dim=1)
    with_noise = way.step(2, z, eps, v, torch.ones_like(z), keep)
    torch.testing.assert_close(with_noise - way.step(2, z, eps, v, None, keep), sigmas[0])


def test_a_late_start_leaves_out_the_steps_before_it() -> None:
    schedule, labels = linear_schedule(), torch.tensor([1])
    times: list[int] = []

    def watched(z_t: Tensor, t_B: Tensor, labels_B: Tensor) -> Tensor:
        times.append(int(t_B[0]))
        return toy(z_t, t_B, labels_B)

    options = {"latent_shape": (4, 3, 3), "guidance": 1.0, "cfg_channels": 4, "null_label": NULL}
    way = Ddim(schedule, 6)
    sample(watched, way, labels, [noise_stream(0, "a", 0)], **options, begin=lambda eps: 2 * eps, first=4)  # type: ignore[arg-type]
    assert times == way.timesteps[4:]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_stronger_mode_guidance_is_the_nearer_a_gaussian_ends_to_the_mode(sampler: str) -> None:
    """With the exact denoiser of N(0, 1) data. A strength of 0.4 over all fifty steps already overshoots: it adds up."""
    schedule, labels = linear_schedule(), torch.zeros(64, dtype=torch.int64)

    def exact(z_t: Tensor, t_B: Tensor, labels_B: Tensor) -> Tensor:
        return (1 - schedule.abar_T[t_B]).sqrt().float().view(-1, 1, 1, 1) * z_t

    mode, far = torch.full((64, 4, 3, 3), 2.0), []
    for strength in (0.0, 0.03, 0.1):

        def guide(step: Step, strength: float = strength) -> Tensor:
            return toward_modes(step.mean, step.x0, step.sigma_t, step.index, Window(50, 0), modes=mode, strength=strength)

        streams = [noise_stream(0, "a", index) for index in range(64)]
        options = {"latent_shape": (4, 3, 3), "guidance": 1.0, "cfg_channels": 4, "null_label": NULL, "guide": guide}
        z = sample(exact, SAMPLERS[sampler](schedule, 50), labels, streams, **options)  # type: ignore[arg-type]
        far.append(float((z - mode).flatten(1).norm(dim=1).mean()))
    assert far[0] > far[1] > far[2]
    assert far[2] < 0.7 * far[0]
