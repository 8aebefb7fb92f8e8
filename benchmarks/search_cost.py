"""Proposals a second of the search, and how fast it is taken up again, against Optuna's own storage in SQLite.

    python -m benchmarks.search_cost [--quick] [--json]

Both sides propose by the same TPE (multivariate, grouped) in the same space, after 100, 1,000 and 10,000 finished trials, one
under way at a time. Ours keeps the study in memory and makes it anew from the proposals file and the results when a sweep is
taken up again; the baseline is what a driver gets from Optuna alone when it wants to survive a crash: a study in an SQLite
file, opened again and asked. Headline: seconds from the start of the driver's search to its first new proposal at 1,000
results. In the parts: the same at the other sizes, seconds for a proposal once the search runs, and `asked_again_s`: what a
search without the proposals file would take, proposing everything once more (up to 1,000; it grows with the square).
"""

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from benchmarks import measure
from ddgd_ray.run.objective import Worth
from ddgd_ray.search.ask_tell import Drawn, Proposals
from ddgd_ray.search.optuna import OptunaSearch
from ddgd_ray.search.samplers import distributions, sampler_for
from ddgd_ray.spec.points import Point, draw
from ddgd_ray.spec.sweep import Sweep, read_sweep

SPACE = """\
finetune.memory_real.pop: {type: choice, values: [max_similarity, fifo, reservoir]}
finetune.memory_real.size: {type: int, low: 8, high: 512, log: true}
finetune.memory_gen.size: {type: int, low: 8, high: 512, log: true}
finetune.lambda_r: {type: float, low: 1e-4, high: 1e-1, log: true}
finetune.lambda_g: {type: float, low: 1e-4, high: 1e-1, log: true}
"""
MOST_TO_ASK_AGAIN = 1000


def main() -> None:
    args = measure.parser(__doc__).parse_args()
    sizes, rounds = ((20, 50), 1) if args.quick else ((100, 1_000, 10_000), 3)
    head = sizes[1]
    parts: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sweep = _sweep(Path(folder), max(sizes) + 1_000)
        rng = random.Random(0)
        known = [draw(sweep.space, rng) for _ in range(max(sizes))]
        for size in sizes:
            parts[str(size)] = _costs(sweep, known[:size], Path(folder) / str(size), rounds)
    ours, baseline = parts[str(head)]["ours_resume_s"], parts[str(head)]["sqlite_resume_s"]
    result = measure.Result(baseline / ours, ours, baseline, "s to take up again", measure.device_name("cpu"), parts)
    result.print(args.json)


def _sweep(folder: Path, trials: int) -> Sweep:
    (folder / "space.yaml").write_text(SPACE)
    path = folder / "sweep.yaml"
    path.write_text(f"name: s\npreset: digits\nsearch: {{space: space.yaml, trials: {trials}, parallel: 1}}\n")
    return read_sweep(path, {})


def _costs(sweep: Sweep, known: list[Point], folder: Path, rounds: int) -> dict[str, float]:
    """Seconds of each side with these results."""
    folder.mkdir()
    file = Proposals(folder / "proposals.jsonl")
    file.add([Drawn(number, point, "sampler") for number, point in enumerate(known)])
    original = (folder / "proposals.jsonl").read_bytes()
    url = f"sqlite:///{folder / 'study.db'}"
    _fill_sqlite(sweep, known, url)
    spec = sweep.spec.search
    assert spec is not None
    state: dict[str, Any] = {}

    def resume() -> None:
        (folder / "proposals.jsonl").write_bytes(original)
        state["ours"] = search = OptunaSearch(sweep, file)
        for _ in known:
            proposal = search.ask()
            assert proposal is not None
            search.tell(proposal, Worth((_value(proposal.params),)))
        _propose(search)

    def resume_sqlite() -> None:
        state["sqlite"] = study = optuna.load_study(study_name="s", storage=url)
        _propose_sqlite(sweep, study)

    def several(work: Callable[[], object], times: int = 5) -> float:
        started = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - started) / times

    taken = measure.alternate({"ours": resume, "sqlite": resume_sqlite}, "cpu", rounds=rounds, warmup=0)
    costs = {f"{side}_resume_s": seconds for side, seconds in taken.items()}
    costs["ours_proposal_s"] = several(lambda: _propose(state["ours"]))
    costs["sqlite_proposal_s"] = several(lambda: _propose_sqlite(sweep, state["sqlite"]))
    if len(known) <= MOST_TO_ASK_AGAIN:
        search = OptunaSearch(sweep)
        costs["asked_again_s"] = several(lambda: [_propose(search) for _ in known], times=1)
    return costs


def _value(point: Any) -> float:
    return float(point["finetune.lambda_g"]) - abs(float(point["finetune.memory_real.size"]) - 100) / 1000


def _propose(search: OptunaSearch) -> None:
    proposal = search.ask()
    assert proposal is not None
    search.tell(proposal, Worth((_value(proposal.params),)))


def _propose_sqlite(sweep: Sweep, study: optuna.Study) -> None:
    spec = sweep.spec.search
    assert spec is not None
    study.sampler = sampler_for(spec, 0)
    example = draw(sweep.space, random.Random(0))
    trial = study.ask(distributions(example, sweep.space))
    study.tell(trial, _value(trial.params))


def _fill_sqlite(sweep: Sweep, known: list[Point], url: str) -> None:
    study = optuna.create_study(study_name="s", storage=url, direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(params=point, distributions=distributions(point, sweep.space), value=_value(point))
            for point in known
        ]
    )


if __name__ == "__main__":
    main()
