"""Things that wait for artifacts. Every step costs the same however many there are."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from ddgd_ray.storage.manifest import Ref

Item = TypeVar("Item", bound=Hashable)


class Waiting(Generic[Item]):
    """Items that wait, each for one or more artifacts: jobs for their inputs, trials for all that they are made of."""

    def __init__(self) -> None:
        self._missing: dict[Item, set[Ref]] = {}
        self._waiting_for: dict[Ref, dict[Item, None]] = {}  # a dict in place of a set: it keeps the order

    def __bool__(self) -> bool:
        return bool(self._missing)

    def add(self, item: Item, missing: Iterable[Ref]) -> bool:
        """True when the item waits from now on; False when it misses nothing."""
        refs = set(missing)
        if not refs:
            return False
        self._missing[item] = refs
        for ref in refs:
            self._waiting_for.setdefault(ref, {})[item] = None
        return True

    def resolve(self, ref: Ref) -> list[Item]:
        """The items that missed `ref` alone; they do not wait any more, and the others wait for less."""
        ready = []
        for item in self._waiting_for.pop(ref, ()):
            missing = self._missing[item]
            missing.discard(ref)
            if not missing:
                del self._missing[item]
                ready.append(item)
        return ready

    def waiting_for(self, ref: Ref) -> list[Item]:
        """The items that wait for this artifact, the oldest first."""
        return list(self._waiting_for.get(ref, ()))

    def remove(self, item: Item) -> None:
        """Let an item wait no more; nothing happens when it does not wait."""
        for ref in self._missing.pop(item, ()):
            self._waiting_for[ref].pop(item)
            if not self._waiting_for[ref]:
                del self._waiting_for[ref]
