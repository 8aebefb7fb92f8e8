"""What a stage's seconds count: its work, and no import of Python modules."""

import subprocess
import sys
from pathlib import Path

SLOW_S = 3.0

# every import of a large package takes SLOW_S longer than it does: far more than this stage's own work
SCRIPT = """
import sys, time
from pathlib import Path
from ddgd_ray.spec.evaluation import SelectSpec
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages.base import Context, Outside, StageCall
from ddgd_ray.stages.publish import publish_call
from ddgd_ray.storage.store import Store

class Slow:
    asked = []
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "sklearn"):
            self.asked.append(name)
            time.sleep(float(sys.argv[2]))

sys.meta_path.insert(0, Slow())
images = ImagesSpec(source="digits", classes=tuple("0123456789"), size=8, channels=1)
store = Store(Path(sys.argv[1]))
store.prepare()
for seed in (0, 1):
    call = StageCall(SelectSpec(images=images, ipc=1, seed=seed), {"images": Outside("0" * 64, "")})
    artifact, _ = publish_call(call, store, Context())
    print(artifact.seconds)
assert sorted(Slow.asked) == ["sklearn", "torch"], Slow.asked
"""


def test_the_first_run_of_a_stage_in_a_process_does_not_count_its_imports(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(SLOW_S)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    first, second = map(float, made.stdout.split())
    assert first < SLOW_S, f"{first} s with the imports of torch and scikit-learn, {second} s without"
