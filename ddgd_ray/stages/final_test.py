"""The stage `test`: test images, looked at once by a classifier that was trained and chosen without them."""

import json
from pathlib import Path

from ddgd_ray.method.packing import Pack
from ddgd_ray.spec.evaluation import TestSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.decode import read_decoded
from ddgd_ray.stages.parts.classifier import Judge, load_network, spec_of, top1


def run(spec: TestSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """top1_last and top1_selected. Writes result.json: per-class accuracy and confusion matrix of the last weights."""
    trained = spec_of(inputs["classifier"])
    judge = Judge(read_decoded(inputs["real"], "test"), trained, ctx)
    counts = judge(Pack([load_network(inputs["classifier"], "last", ctx.device)]))
    selected = judge(Pack([load_network(inputs["classifier"], "selected", ctx.device)]))
    per_class = (counts[0].diagonal() / counts[0].sum(dim=1)).tolist()
    result = {
        "protocol": trained.protocol.label,
        "measured_on": "test",
        "per_class_top1": dict(zip(trained.images.classes, per_class, strict=True)),
        "confusion": counts[0].tolist(),
    }
    (out / "result.json").write_text(json.dumps(result))
    return {"top1_last": top1(counts)[0], "top1_selected": top1(selected)[0], "num_test_looks": 2.0}
