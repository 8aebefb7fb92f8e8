"""The walls of the house: who may import whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ddgd_ray"
MODULES = sorted(ROOT.rglob("*.py"))

# room -> rooms of ours that it may import; a room is the first part of a module's path below ddgd_ray
ALLOWED = {
    "errors": set(),
    "spec": {"errors"},
    "commit": {"errors"},
    "leases": {"errors", "commit"},
    "manifest": {"errors", "spec", "commit"},
    "store": {"errors", "spec", "commit", "leases", "manifest"},
    "remote": {"errors", "commit"},
    "mirror": {"errors", "remote"},
    "remote_store": {"errors", "spec", "store", "manifest", "commit", "leases", "remote", "mirror"},
    "hashes": {"errors"},
    "redact": set(),
    "imagefolder": {"errors", "spec"},
    "setfolder": {"errors", "imagefolder"},
    "sources": {"errors", "spec", "hashes", "imagefolder", "setfolder"},
    "weights": {"errors", "spec", "sources"},
    "method": {"method"},
    "stages": {"errors", "spec", "store", "commit", "imagefolder", "setfolder", "sources", "method"},
    "report": {"errors", "spec", "store", "setfolder"},
    "exporting": {"errors", "spec", "store", "setfolder", "sources", "report"},
    "upkeep": {"errors", "store", "manifest", "remote_store"},
    "engine": {
        "errors",
        "spec",
        "store",
        "remote",
        "mirror",
        "remote_store",
        "leases",
        "sources",
        "weights",
        "redact",
        "report",
        "stages",
    },
    "data": {"sources", "spec", "stages"},
    "view": {"engine", "stages"},
    "submitting": {"errors", "spec"},
    "ui": {"errors", "engine"},
    "doctor": {"errors", "spec", "imagefolder", "redact", "sources", "weights", "stages"},
    "commands": {
        "errors",
        "spec",
        "store",
        "remote",
        "setfolder",
        "engine",
        "report",
        "exporting",
        "view",
        "stages",
        "submitting",
        "doctor",
        "ui",
        "redact",
        "upkeep",
    },
    "api": {"errors", "spec", "store", "report", "exporting", "engine"},
    "cli": {"commands", "errors"},
}
# framework -> the files that may import it
DOORS = {
    "ray": {f"engine/ray_{name}.py" for name in ("cluster", "driver", "nodes", "notes", "tune", "train", "encode")},
    "optuna": {"engine/optuna_search.py", "engine/optuna_samplers.py"},
    "mlflow": {"engine/mlflow_runs.py"},
}


def imports(path: Path) -> Iterator[str]:
    """Every imported module of a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_rooms_below_it(path: Path) -> None:
    room = name_of(path).partition("/")[0].removesuffix(".py")
    if room == "__init__":
        return
    for module in imports(path):
        if module.startswith("ddgd_ray."):
            other = module.split(".")[1]
            assert other == room or other in ALLOWED[room], f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_frameworks_come_in_by_their_doors(path: Path) -> None:
    for module in imports(path):
        door = DOORS.get(module.partition(".")[0])
        assert door is None or name_of(path) in door, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path).startswith("engine")], ids=name_of)
def test_the_engine_sees_the_stages_through_their_interface(path: Path) -> None:
    assert not {module for module in imports(path) if module.startswith(("ddgd_ray.stages", "torch"))} - {
        "ddgd_ray.stages.base"
    }


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path).startswith("method")], ids=name_of)
def test_the_method_knows_torch_alone(path: Path) -> None:
    import sys

    outside = {module.partition(".")[0] for module in imports(path)} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "ddgd_ray", "timm"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_commands_print(path: Path) -> None:
    calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    prints = any(isinstance(call, ast.Name) and call.id == "print" for call in calls)
    assert not prints or name_of(path).startswith(("cli.py", "commands/"))


def test_no_file_is_named_for_what_did_not_fit_elsewhere() -> None:
    assert not {path.stem for path in MODULES} & {"utils", "common", "helpers", "misc"}
