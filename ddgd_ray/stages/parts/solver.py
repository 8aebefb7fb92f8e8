"""A sampler of method.sampling's kind by diffusers' scheduler: DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095)."""

from typing import Any

from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from ddgd_ray.method.noise import linear_schedule
from ddgd_ray.method.sampling import Ancestral, Ddim, Sampler, Steer


class DpmSolver:
    """DPM-Solver++ of second order in its ODE form: multistep, nothing clipped, the learned variance ignored.

    Timesteps are spaced evenly from T - 1 (`linspace`), as those of ddpm and ddim, but stop one step short of 0: the last
    step goes from t = (T - 1) / steps to noise 0 at first order.
    """

    num_noises = 0

    def __init__(self, num_steps: int) -> None:
        """num_steps: at most 999, since 1,000 would visit a timestep twice."""
        self._scheduler: Any = DPMSolverMultistepScheduler(
            num_train_timesteps=1000,
            beta_start=1e-4,
            beta_end=0.02,
            beta_schedule="linear",
            prediction_type="epsilon",
            algorithm_type="dpmsolver++",
            solver_order=2,
            solver_type="midpoint",
            thresholding=False,
            timestep_spacing="linspace",
            final_sigmas_type="zero",
        )
        self._scheduler.set_timesteps(num_steps)  # on the host: a step asks the device for nothing
        self.timesteps: list[int] = self._scheduler.timesteps.tolist()

    def step(
        self, place: int, z: Tensor, eps: Tensor, v: Tensor | None, noise: Tensor | None, steer: Steer | None = None
    ) -> Tensor:
        """The latents after the step, float32 whatever z is."""
        assert steer is None, "the spec refuses guides with this sampler"
        stepped: Tensor = self._scheduler.step(eps, self.timesteps[place], z, return_dict=False)[0]
        return stepped


def sampler_of(name: str, num_steps: int) -> Sampler:
    """A fresh sampler for one batch. name: a value of SampleSpec.sampler."""
    if name == "dpmpp":
        return DpmSolver(num_steps)
    return (Ddim if name == "ddim" else Ancestral)(linear_schedule(), num_steps)
