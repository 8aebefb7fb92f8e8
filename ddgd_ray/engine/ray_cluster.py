"""The door to a Ray cluster: reach it or say within seconds why not, know its nodes, see that they share our storage."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddgd_ray import __version__
from ddgd_ray.engine.rooms import Node
from ddgd_ray.errors import EngineError, SpecError
from ddgd_ray.spec.load import read

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the first Ctrl-C drains; ours is installed by the cli
    "TUNE_MAX_PENDING_TRIALS_PG": "8",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read: each start is a new experiment
    "OMP_WAIT_POLICY": "PASSIVE",  # two busy-waiting threads on a loaded core: 5.7 s a step in place of 0.24
}

ANSWER_S = 4.5  # the user hears within 5 s
ASK_S = 20.0  # a process that imports ray and asks the head for its versions: 1-2 s, more on busy cores
NODES_S = 120.0  # a node may have to install the runtime environment first
SEEN_S = 10.0  # network file systems show new files after up to some seconds
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
HTTP2_SETTINGS = 4

ASK_HEAD = """
import json, sys
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._raylet import GcsClient
maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
try:
    answer = GcsClient(address=sys.argv[1]).internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=4)
    print(json.dumps({"versions": json.loads(answer)}))
except BaseException as err:
    print(json.dumps({"error": type(err).__name__}))
"""

log = logging.getLogger(__name__)


def start_ray(address: str | None, runtime_env: Mapping[str, Any] | None = None) -> None:
    """Join the cluster at `address` or RAY_ADDRESS, or start one on this machine.

    Raises EngineError within 5 s when nobody answers, and before any work when versions or the token do not match.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # workers import torch and diffusers: 2-3 x dearer without bytecode
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    hush()
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    quiet["runtime_env"] = dict(runtime_env) if runtime_env else None
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        ray.init(address="local", include_dashboard=False, **quiet)
        token = Path("~/.ray/auth_token").expanduser()
        if token.is_file():
            token.chmod(0o600)  # ray writes it readable for everybody
        return
    found = resolve(address)
    knock(found, address)
    ask_versions(found, address)
    ray.init(address=found, **quiet)


def hush() -> None:
    """ray puts a handler for stderr on its logger, at import and at init; what it says goes to the run's log file instead."""
    for name in ("_private.authentication.authentication_token_setup", "tune.analysis.experiment_analysis"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)  # advice for who calls ray himself; metrics are in our store
    logger = logging.getLogger("ray")
    for handler in list(logger.handlers):
        if type(handler) is not logging.FileHandler:
            logger.removeHandler(handler)


def resolve(address: str) -> str:
    """HOST:PORT of the head. Raises EngineError for what is no address, and when `auto` finds no cluster."""
    if address.startswith("ray://"):
        raise _cluster_error(
            "the driver must run on a node of the cluster, not through Ray Client",
            address,
            "start this command on a node and give HOST:PORT of the head, usually port 6379, or --address auto",
        )
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise _cluster_error("expected HOST:PORT, auto", address, "e.g. --address 10.0.0.1:6379")
        return address
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address("auto")
    except ConnectionError:
        found = None
    if not found:
        raise _cluster_error(
            "no Ray cluster runs on this machine", address, "start one with `ray start --head`, or give HOST:PORT of its head"
        )
    return found


def knock(found: str, address: str) -> None:
    """Raises EngineError when nobody is there, or somebody who does not speak gRPC. ray.init would hang for minutes."""
    host, _, port = found.rpartition(":")
    fix = "expected HOST:PORT of a Ray head, usually port 6379"
    deadline = time.monotonic() + ANSWER_S
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_S) as line:
            line.settimeout(max(0.1, deadline - time.monotonic()))
            line.sendall(HTTP2_HELLO)
            answer = line.recv(9)
    except TimeoutError as err:
        raise _cluster_error(f"no answer from {found} within 5 s", address, fix) from err
    except (OSError, OverflowError) as err:
        raise _cluster_error(f"no answer from {found}: {err}", address, fix) from err
    if len(answer) < 4 or answer[3] != HTTP2_SETTINGS:
        raise _cluster_error(f"what listens on {found} is no Ray head: it does not speak gRPC", address, fix)


def ask_versions(found: str, address: str) -> None:
    """Raises EngineError when the head has another Ray or Python, or refuses our token.

    A process of its own asks: Ray's client ends the process it is in when it finds no token, and tries on for ever elsewhere.
    """
    token = token_source()
    try:
        command = [sys.executable, "-c", ASK_HEAD, found]
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=False)
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired as err:
        raise _cluster_error(f"{found} does not answer as a Ray head does", address, "is it the head's port?") from err
    except (ValueError, IndexError):
        answer = {"error": "AuthenticationError" if "oken" in done.stderr else "no answer"}
    if answer.get("error") == "AuthenticationError":
        used = f"the token in {token} is not that of the cluster" if token else "the cluster asks for a token, none was found"
        raise EngineError(
            used,
            code="token",
            where=f"--address {address}",
            fix="set RAY_AUTH_TOKEN_PATH to a file with the cluster's token, or RAY_AUTH_TOKEN; every node needs the same one",
        )
    if "error" in answer:
        raise _cluster_error(f"{found} does not answer as a Ray head does", address, "is it the head's port, usually 6379?")
    refuse_other_versions(answer["versions"], address)


def refuse_other_versions(head: Mapping[str, str], address: str) -> None:
    """head: ray_version and python_version of the cluster. Raises EngineError unless both are ours."""
    import platform

    import ray

    here = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    if any(head.get(name) != version for name, version in here.items()):
        raise EngineError(
            f"the head has Ray {head.get('ray_version')} on Python {head.get('python_version')}, "
            f"here is Ray {here['ray_version']} on Python {here['python_version']}",
            code="version",
            where=f"--address {address}",
            fix="install the head's versions here, or ours on every node of the cluster",
        )


def token_source() -> str:
    """Where Ray takes its token from, "" for nowhere. Raises EngineError when it cannot be read. Never its value."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return ""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path("~/.ray/auth_token").expanduser()
    try:
        has_token = bool(path.read_text().strip())
    except (OSError, UnicodeDecodeError) as err:
        if given:
            fix = "give the path of a file that you can read, with the cluster's token in it"
            raise EngineError(
                f"the token cannot be read: {getattr(err, 'strerror', None) or 'no text'}",
                code="token",
                where=f"RAY_AUTH_TOKEN_PATH {path}",
                fix=fix,
            ) from err
        has_token = False
    if not has_token and os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        raise EngineError(
            "RAY_AUTH_MODE is token, but there is no token",
            code="token",
            where=f"RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, {path}",
            fix="copy the file of the cluster's head, chmod 600",
        )
    return str(path) if has_token else ""


def _cluster_error(what: str, address: str, fix: str) -> EngineError:
    return EngineError(what, code="cluster", where=f"--address {address}", fix=fix)


def read_runtime_env(path: Path) -> dict[str, Any]:
    """The runtime environment of the workers, as Ray takes it. Raises SpecError; values of env_vars are never shown."""
    from ray.runtime_env import RuntimeEnv

    data = _plain(read(path).data)
    variables = data.get("env_vars")
    if isinstance(variables, dict):
        data["env_vars"] = {name: value if isinstance(value, str) else json.dumps(value) for name, value in variables.items()}
    try:
        known = RuntimeEnv(**data)
    except (TypeError, ValueError) as err:
        # ray's text may quote what it was given
        raise SpecError(
            f"Ray refuses this runtime environment ({type(err).__name__})",
            code="runtime-env",
            where=str(path),
            fix="env_vars: {NAME: value}, working_dir: FOLDER, pip: [packages], py_modules: [FOLDERS], as in Ray's handbook",
        ) from err
    return dict(known)


def _plain(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: _plain(value) for name, value in data.items()}
    return [_plain(value) for value in data] if isinstance(data, list | tuple) else data


def cluster_nodes() -> list[Node]:
    """Those that are alive, with all they offer."""
    import ray

    return [Node(one["NodeID"], one["Resources"], one["NodeManagerHostname"]) for one in ray.nodes() if one["Alive"]]


def check_nodes(root: Path, nodes: list[Node]) -> None:
    """Every node must have this package and see the same storage. Raises EngineError that names those that do not.

    root: a folder on the storage that should be shared. One node is this machine and is not asked.
    """
    if len(nodes) > 1:
        check_shared(root, nodes, _ask_nodes)


Ask = Callable[[Path, str, list[Node]], Mapping[str, str]]


def check_shared(root: Path, nodes: list[Node], ask: Ask) -> None:
    """ask(marker, text, nodes): {node id: "" or what went wrong there}; each node reads the marker and leaves one beside it."""
    text = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}"
    folder = root / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f"shared-{time.time_ns()}"
    marker.write_text(text)
    try:
        found = ask(marker, text, nodes)
        problems = {node.id: found.get(node.id, "no answer") for node in nodes}
        deadline = time.monotonic() + SEEN_S
        for node in nodes:
            answer = answer_of(marker, node.id)
            while not problems[node.id] and not answer.is_file() and time.monotonic() < deadline:
                time.sleep(0.1)
                list(folder.iterdir())  # makes a network file system look again
            if not problems[node.id] and not answer.is_file():
                problems[node.id] = "what it writes cannot be seen here"
            answer.unlink(missing_ok=True)
    finally:
        marker.unlink(missing_ok=True)
    bad = {node: problems[node.id] for node in nodes if problems[node.id]}
    if bad:
        lines = "\n".join(f"    {node.name or 'node'} ({node.id[:8]}): {problem}" for node, problem in bad.items())
        raise NotShared(
            f"{len(bad)} of {len(nodes)} nodes cannot work on this run:\n{lines}",
            code="not-shared",
            where=str(root),
            fix="choose a --run-dir on storage that all nodes mount at the same path, or an s3:// address",
        )


class NotShared(EngineError):
    """Found before any work: storage, or a node that cannot run our code."""

    exit_code = 5


def answer_of(marker: Path, node_id: str) -> Path:
    return marker.with_name(f"{marker.name}.{node_id[:16]}")


def look(marker: Path, text: str, node_id: str, version: str) -> str:
    """On a node: "" when all is well, or what is wrong."""
    if version != __version__:
        return f"it has ddgd-ray {__version__}, the driver {version}"
    deadline = time.monotonic() + SEEN_S
    while not marker.is_file():
        if time.monotonic() > deadline:
            return f"{marker.parent} is not the same folder there"
        time.sleep(0.1)
    if marker.read_text() != text:
        return f"{marker} has another content there"
    try:
        answer_of(marker, node_id).write_text(text)
    except OSError as err:
        return f"it cannot write there: {err.strerror}"
    return ""


def _ask_nodes(marker: Path, text: str, nodes: list[Node]) -> Mapping[str, str]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(look)
    asked = {}
    for node in nodes:
        pinned = task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        )
        asked[node.id] = pinned.remote(marker, text, node.id, __version__)
    deadline = time.monotonic() + NODES_S
    found = {}
    for node_id, answer in asked.items():
        try:
            found[node_id] = ray.get(answer, timeout=max(1.0, deadline - time.monotonic()))
        except Exception as err:
            log.exception("node %s", node_id[:8])
            found[node_id] = f"{type(err).__name__}: ddgd-ray cannot be run there ({str(err).strip().splitlines()[-1][:200]})"
    return found
