"""Words of the command line that mean nothing are refused, and what may be secret is not repeated."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ddgd_ray import cli

MEMORY = str(Path(__file__).parent.parent / "ablations" / "memory.yaml")
WORD = "-".join(["not", "to", "show"])

Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """refuse(*words): what the command line says before it exits with 2."""

    def of(*words: str) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main([*words])
        assert caught.value.code == 2
        return capsys.readouterr().err

    return of


@pytest.mark.parametrize(
    "words",
    [
        ("plan", MEMORY, "--pasword", WORD),
        ("plan", MEMORY, f"--password={WORD}"),
        ("plan", MEMORY, "--nowhere", f"http://u:{WORD}@host"),
        ("sweep", MEMORY, "--executor", f"http://u:{WORD}@host"),
        ("sweep", MEMORY, "--min-nodes", f"http://{WORD}@host"),
        ("plan", MEMORY, "--set", f"images.root=http://u:{WORD}@host", "--set", f"images.root=http://u:{WORD}@host"),
        ("plan", f"http://u:{WORD}@host"),
    ],
)
def test_a_wrong_word_is_named_without_what_may_be_secret(refuse: Refuse, words: tuple[str, ...]) -> None:
    assert WORD not in refuse(*words)


def test_an_unknown_option_gets_the_nearest_one(refuse: Refuse) -> None:
    assert "unrecognized arguments: --tracking-ury (did you mean --tracking-uri?)" in refuse(
        "sweep", MEMORY, "--tracking-ury", "x"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--cores", "-1"),
        ("--cores", "nan"),
        ("--gpus", "inf"),
        ("--cores", "1e99"),
        ("--set", "finetune.steps=5\nname: other"),
        ("--set", "images.root=/data/a #1"),
        ("--set", "finetune.steps=99999999999999999999"),
        ("--set", "evaluate.ipc=[99999999999999999999]"),
        ("--set", "evaluate.protocol.epochs=" + "9" * 30),
        ("--set", "evaluate.networks=[timm/nope]"),
        ("--set", "evaluate.networks=[timm/../../etc]"),
        ("--set", "evaluate.networks=[timm/]"),
        ("--set", "sample.steps=5", "--set", "sample.steps.size=4"),
        ("--set", "images.classes=[00000, 00001]", "--preset", "imagewoof"),
    ],
)
def test_a_senseless_value_is_refused_with_a_remedy(refuse: Refuse, words: tuple[str, ...]) -> None:
    said = refuse("plan", MEMORY, *words)
    assert "Traceback" not in said
    assert "help: " in said or "expected" in said


def test_names_of_digits_are_to_be_quoted(refuse: Refuse) -> None:
    assert 'in quotes, as "00000"' in refuse("plan", MEMORY, "--preset", "imagewoof", "--set", "images.classes=[00000, 00001]")


@pytest.mark.parametrize("name", ["store", "Store", "mlartifacts", "mlflow.db", "url"])
def test_a_run_cannot_have_the_name_of_what_lies_beside_runs(refuse: Refuse, name: str) -> None:
    said = refuse("plan", MEMORY, "--set", f"name={name}")
    assert "error[reserved-name]" in said
    assert f"e.g. name: {name}-1" in said


def test_a_long_word_is_not_repeated_whole(refuse: Refuse) -> None:
    assert len(refuse("plan", MEMORY, "--set", f"{'x' * 5000}=1")) < 1000


def test_the_networks_of_timm_are_known_with_their_weights(refuse: Refuse, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", MEMORY, "--set", "evaluate.networks=[timm/resnet18, timm/resnet10t.c3_in1k]"]
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 0


def test_every_name_that_timm_makes_is_known() -> None:
    import timm

    from ddgd_ray.spec.networks import timm_networks

    assert set(timm.list_models()) <= timm_networks()


def test_an_internal_error_is_told_without_secrets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> int:
        raise RuntimeError(f"could not reach http://u:{WORD}@host")

    monkeypatch.setattr(cli, "plan_command", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", MEMORY])
    shown = capsys.readouterr().err
    assert caught.value.code == 1
    assert "RuntimeError" in shown
    assert WORD not in shown


def test_a_folder_with_a_dollar_in_its_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddgd_ray.errors import StageError
    from ddgd_ray.inputs.fingerprints import resolve

    monkeypatch.delenv("NOWHERE", raising=False)
    folder = tmp_path / "a$NOWHERE"
    with pytest.raises(StageError, match="variable"):
        resolve(str(folder), "images.root")
    folder.mkdir()
    assert resolve(str(folder), "images.root") == folder
    monkeypatch.setenv("NOWHERE", "b")
    assert resolve(str(tmp_path / "c$NOWHERE"), "images.root") == Path(f"{tmp_path}{os.sep}cb")
