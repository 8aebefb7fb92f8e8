"""The door to Ray Data: a latent cache of millions of images, its shards made all over the cluster."""

import logging
import uuid
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from ddgd_ray.cluster import key_values
from ddgd_ray.cluster.stop_order import stop_file_here
from ddgd_ray.cluster.train import WorkerGroup
from ddgd_ray.cluster.verdicts import leave_verdict, verdict_of
from ddgd_ray.errors import DdgdError, Stopped
from ddgd_ray.stages.base import Context, StageCall
from ddgd_ray.stages.publish import publish_call, shares_of
from ddgd_ray.storage.store import Artifact, Store

log = logging.getLogger(__name__)


def encode_over_cluster(call: StageCall, store: Store, ctx: Context, group: WorkerGroup) -> tuple[Artifact, bool]:
    """The same as of stages.publish.publish_call, byte for byte; the workers of `group` make the shards.

    Shards are kept in the store's storage, a folder or a URL; an encode that was interrupted makes those that are missing.
    """
    found = store.get(*call.ref)
    if found is not None:
        return found, True
    with store.lease(call.key):
        if not store.has(*call.ref):
            _make_shares(call, store, ctx, group)
    return publish_call(call, store, ctx)


def _make_shares(call: StageCall, store: Store, ctx: Context, group: WorkerGroup) -> None:
    import ray.data

    name = f"{call.key[:16]}-{uuid.uuid4().hex[:6]}"
    num = len(shares_of(call, store, replace(ctx, device="cpu")))
    num_makers = min(group.num_workers, num)
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    settings.max_errored_blocks = 0
    rest = {name: amount for name, amount in group.each.items() if name not in ("CPU", "GPU", "memory")}
    places = ray.data.from_items([{"place": place} for place in range(num)], override_num_blocks=num)
    maker: Any = _Maker
    made = places.map(
        maker,
        fn_constructor_args=(call, store, ctx, name),
        concurrency=num_makers,
        num_cpus=group.each.get("CPU", 0),
        num_gpus=group.each.get("GPU", 0) or None,
        memory=group.each.get("memory") or None,
        resources=rest,
    )
    log.info("%s encode: %d shards by %d processes", call.key[:8], num, num_makers)
    try:
        made.materialize()
    except Exception as err:
        verdict = verdict_of(name)
        if verdict is not None:
            raise verdict from err
        raise
    finally:
        _end_makers(name)
        key_values.remove_all(f"{name}/")


def _end_makers(name: str) -> None:
    """End the processes that Ray Data started: after an error they live, and hold GPUs, while its traceback is remembered."""
    import ray

    for key in key_values.keys(f"{name}/maker/"):
        with suppress(Exception):
            ray.kill(key_values.unpacked(key_values.get(key)))


class _Maker:
    """A process that makes shards; it lists the images and loads the autoencoder once."""

    def __init__(self, call: StageCall, store: Store, ctx: Context, name: str) -> None:
        from ray import get_runtime_context

        self.where, self.name = f"encode {call.key[:8]}", name
        maker = get_runtime_context().current_actor
        key_values.put(f"{name}/maker/{uuid.uuid4().hex}", key_values.packed(maker))
        self._until_the_end = ExitStack()
        self.stop_file = self._until_the_end.enter_context(stop_file_here(store, ctx.stop_file))
        self.store, self.key, self.shares = store, call.key, shares_of(call, store, ctx)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        place = int(row["place"])
        try:
            if self.stop_file is not None and self.stop_file.exists():
                raise Stopped("told to stop; finished shards are kept", where=self.where)
            self.shares.make([place])
            self.store.push_kept(self.key, self.shares.shards[place].name)
        except DdgdError as err:
            leave_verdict(self.name, place, err)
            raise
        return row
