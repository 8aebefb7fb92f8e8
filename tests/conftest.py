"""A sweep small enough to run in a second, and one shared Ray instance."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddgd_ray.spec.sweep import Sweep, read_sweep

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TINY = """\
name: tiny
preset: digits
set:
  backbone.layers: 1
  backbone.steps: 4
  finetune.steps: 3
  finetune.batch_size: 20
  sample.steps: 2
  evaluate.protocol.steps: 4
  evaluate.protocol.steps_large: 4
  evaluate.protocol.num_tests: 2
vary:
  finetune.memory_real.pop: [max_similarity, fifo]
seeds:
  distill: [0, 1]
  evaluate: [0]
evaluate:
  networks: [convnet3_slim]
  ipc: [2]
controls: [random_real]
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process a file, so that its fixtures are made once, and one for all tests that need Ray."""
    for item in items:
        needs_ray = "ray_cluster" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ray" if needs_ray else str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test writes into the home folder; processes that tests start inherit this."""
    os.environ["DDGD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_file: Path) -> Callable[..., Sweep]:
    """The tiny sweep, with overrides by dotted path."""

    def read(overrides: dict[str, Any] | None = None) -> Sweep:
        return read_sweep(tiny_file, overrides or {})

    return read


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """s3://ddgd on a server of this process; processes that tests start find it too."""
    import secrets

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = secrets.token_hex(8)
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    import s3fs

    s3fs.S3FileSystem(use_listings_cache=False).mkdir("ddgd")
    yield "s3://ddgd"
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray for all tests that need it: starting one costs seconds."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ddgd_ray.cluster.connect import SETTINGS

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run folder with records, keys and manifests as a sweep leaves them, its images and numbers made up: no torch needed.

    made_run(overrides, fill={stage: write(call, folder)}) of a small grid on digits; the second arm is the better one.
    """
    from ddgd_ray.conduct.sweep import planned_trials
    from ddgd_ray.run.folder import RunFolder, TrialProgress, open_store
    from ddgd_ray.spec.load import Document
    from ddgd_ray.spec.sweep import check_sweep

    def make(overrides: dict[str, Any] | None = None, *, fill: dict[str, Any] | None = None, is_done: bool = True) -> Path:
        asked = {
            "name": "made",
            "preset": "digits",
            "vary": {"finetune.lambda_g": (0.0, 0.008)},
            "seeds": {"distill": (0, 1, 2), "evaluate": (0,)},
            "evaluate": {"networks": ("convnet3_slim",), "ipc": (2, 3)},
            "controls": ("random_real",),
            "quality": ("latents",),
        }
        sweep = check_sweep(Document(asked, "made.yaml"), Path(), overrides or {})
        runs = tmp_path_factory.mktemp("made")
        folder, store = RunFolder(runs, sweep.spec.name), open_store(runs)
        store.prepare()
        folder.prepare()
        folder.remember(sweep)
        writers = {"sample": write_noise_set, "select": write_noise_set} | (fill or {})
        for place, trial in enumerate(planned_trials(sweep)):
            for call in trial.calls() if is_done else ():
                if not store.has(*call.ref):
                    with store.scratch(call.key) as out:
                        writers.get(call.stage, write_curve)(call, out)
                        worth = 0.3 + 0.001 * place
                        names = ("val_top1", "top1_last") if call.stage == "evaluate" else ("coverage",)
                        store.publish(out, call.spec, call.input_keys(), dict.fromkeys(names, worth), 2.0)
            folder.write(TrialProgress(trial, "done" if is_done else "planned"))
        return folder.path

    return make


def write_curve(call: Any, out: Path) -> None:
    points = [{"step": step, "time": 1.7e9 + step, "loss": 1.0 / (1 + step)} for step in range(3)]
    (out / "curves.jsonl").write_text("".join(f"{json.dumps(point)}\n" for point in points))


def write_noise_set(call: Any, out: Path) -> None:
    """What sample and select write, of noise."""
    spec = call.spec.images
    lines = []
    for label, name in enumerate(spec.classes):
        (out / "images" / name).mkdir(parents=True)
        for index in range(call.spec.ipc):
            file = f"images/{name}/{index:05d}.png"
            shape = (spec.size, spec.size) if spec.channels == 1 else (spec.size, spec.size, 3)
            noise = np.random.default_rng([call.spec.seed, label, index]).integers(0, 255, shape, dtype=np.uint8)
            Image.fromarray(noise).save(out / file)
            sha256 = hashlib.sha256((out / file).read_bytes()).hexdigest()
            lines.append({"file_name": file, "label": label, "class": name, "origin": f"index {index}", "sha256": sha256})
    (out / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    labels = {name: {"label": label, "generator_label": label, "name": None} for label, name in enumerate(spec.classes)}
    (out / "labels.json").write_text(json.dumps(labels))
