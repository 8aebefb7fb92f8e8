"""What a run's store holds."""

from pathlib import Path

from ddgd_ray.run.folder import open_store


def published(run_dir: Path) -> dict[str, int]:
    """{stage/key: when its manifest was written, ns} of its writable layer; without what is still in the making."""
    store = open_store(run_dir)
    paths = [path for stage in store.stages() for path in (store.root / stage).glob("*/manifest.json")]
    return {f"{path.parent.parent.name}/{path.parent.name}": path.stat().st_mtime_ns for path in paths}
