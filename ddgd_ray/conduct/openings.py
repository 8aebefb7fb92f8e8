"""Which trials still wait for something, and for what. Every step costs the same however many there are."""

from collections.abc import Iterable

from ddgd_ray.storage.manifest import Ref


class Openings:
    """Trials by their place: `open` them with what they lack, tell what was `decided`, and take those that are `over`."""

    def __init__(self) -> None:
        self._lacks: dict[int, set[Ref]] = {}
        self._waiting_for: dict[Ref, list[int]] = {}
        self.over: list[int] = []
        """Places of the trials that lack nothing any more and were not looked at yet."""

    def __bool__(self) -> bool:
        """Whether any trial lacks something."""
        return bool(self._lacks)

    def open(self, place: int, lacks: Iterable[Ref]) -> None:
        """lacks: what is neither published nor failed."""
        missing = set(lacks)
        if not missing:
            self.over.append(place)
            return
        self._lacks[place] = missing
        for ref in missing:
            self._waiting_for.setdefault(ref, []).append(place)

    def decided(self, ref: Ref) -> None:
        """Published or failed: nobody waits for it any longer."""
        for place in self._waiting_for.pop(ref, ()):
            lacks = self._lacks[place]
            lacks.discard(ref)
            if not lacks:
                del self._lacks[place]
                self.over.append(place)

    def take_over(self) -> list[int]:
        taken, self.over = self.over, []
        return taken
