"""A run in a notebook: `open_run("runs/memory")` gives pandas frames, figures, images and exports. No torch, ray or mlflow."""

from ddgd_ray.api.run import Run as Run
from ddgd_ray.api.run import open_run as open_run
