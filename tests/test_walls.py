"""The walls of the house: who may import whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ddgd_ray"
MODULES = sorted(ROOT.rglob("*.py"))

# floor -> its rooms; a room is the first part of a module's path below ddgd_ray. A module imports from its own room and from
# rooms on lower floors, never from a room beside or above it.
FLOORS = [
    {"errors", "redact", "plain_files"},
    {"spec", "method"},
    {"storage", "submitting"},
    {"inputs"},
    {"stages"},
    {"plan", "doctor", "data"},
    {"run"},
    {"report"},
    {"search", "tracking", "exporting"},
    {"conduct", "api"},
    {"watch"},
    {"cluster"},
    {"commands"},
    {"cli"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
METHOD_IS_SEEN_BY = {"stages", "method"}
# modules of the stages that rooms above them import: the types, the curves on disk, the way to execute a stage
INTERFACE = ("base", "curves", "publish")
# files above the stages -> what they use of the stages' parts: to look at inputs as a stage does, to write a model for others
PARTS_SEEN_BY = {
    "doctor/inputs.py": {f"ddgd_ray.stages.parts.{part}" for part in ("pictures", "readers", "tensor_files")},
    "data/make_fashion.py": {"ddgd_ray.stages.parts.images"},
    "commands/exports.py": {"ddgd_ray.stages.parts.pipeline"},
}
# framework -> the files that may import it
DOORS = {
    "ray": {
        f"cluster/{name}.py"
        for name in ("connect", "driver", "deaths", "nodes", "key_values", "tune", "train", "encode", "watchdog")
    },
    "optuna": {"search/optuna.py", "search/samplers.py"},
    "mlflow": {"tracking/mlflow.py"},
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


def room_of(path: Path) -> str:
    return name_of(path).partition("/")[0].removesuffix(".py")


def test_every_room_has_its_floor() -> None:
    assert {room_of(path) for path in MODULES} - {"__init__"} == set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_rooms_below_it(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for module in imports(path):
        if module.startswith("ddgd_ray."):
            other = module.split(".")[1]
            assert other == room or FLOOR_OF[other] < FLOOR_OF[room], f"{name_of(path)} imports {module}"
            assert other != "method" or room in METHOD_IS_SEEN_BY, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_frameworks_come_in_by_their_doors(path: Path) -> None:
    for module in imports(path):
        door = DOORS.get(module.partition(".")[0])
        assert door is None or name_of(path) in door, f"{name_of(path)} imports {module}"


ABOVE_THE_STAGES = [path for path in MODULES if FLOOR_OF.get(room_of(path), 0) > FLOOR_OF["stages"]]


@pytest.mark.parametrize("path", ABOVE_THE_STAGES, ids=name_of)
def test_rooms_above_the_stages_see_their_interface_alone(path: Path) -> None:
    seen = {module for module in imports(path) if module.startswith(("ddgd_ray.stages", "torch"))}
    assert seen <= {f"ddgd_ray.stages.{name}" for name in INTERFACE} | PARTS_SEEN_BY.get(name_of(path), set())


@pytest.mark.parametrize("name", INTERFACE)
def test_the_interface_of_the_stages_is_free_of_torch(name: str) -> None:
    allowed = {f"ddgd_ray.stages.{other}" for other in INTERFACE}
    seen = {module for module in imports(ROOT / "stages" / f"{name}.py") if module.startswith(("ddgd_ray.stages", "torch"))}
    assert seen <= allowed


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
