"""The door to a Ray cluster: reach it, or say within seconds why not."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ddgd_ray.doctor.local_ray import check_local_ray, local_misfits, temporary_folder
from ddgd_ray.doctor.services import said
from ddgd_ray.errors import ClusterError, SpecError
from ddgd_ray.plain_files import read_text
from ddgd_ray.spec.load import read
from ddgd_ray.spec.sweep_spec import ResourcesSpec

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the first Ctrl-C drains; ours is installed by the cli
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # our admission is the limit; at Tune's, trials that never start end the sweep
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read: each start is a new experiment
    "OMP_WAIT_POLICY": "PASSIVE",  # two busy-waiting threads on a loaded core: 5.7 s a step in place of 0.24
}

MAX_TOKEN_BYTES = 65536
ANSWER_S = 4.5  # the user hears within 5 s
ASK_S = 20.0  # a process that imports ray and asks the head for its versions: 1-2 s, more on busy cores
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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

    Raises ClusterError within 5 s when nobody answers, and before any work when versions or the token do not match.
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
    address = address_of(address)
    if address is None:
        _start_local(quiet)
        token = Path("~/.ray/auth_token").expanduser()
        if token.is_file():
            token.chmod(0o600)  # ray writes it readable for everybody
        return
    found = resolve(address)
    knock(found, address)
    ask_versions(found, address)
    with kept_signals():
        try:
            ray.init(address=found, **quiet)
        except ConnectionError as err:  # the head answered a moment ago: what it refuses is us
            raise _refused(address) from err


def address_of(given: str | None) -> str | None:
    """The address of a cluster, as given or in RAY_ADDRESS; None for a Ray of this machine alone, which `local` asks for."""
    address = given or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def look_ahead(given: str | None, resources: ResourcesSpec) -> None:
    """Raises ClusterError for what is wrong before anything is written: nobody answers, or Ray cannot start or serve here."""
    address = address_of(given)
    if address is not None:
        knock(resolve(address), address)
        return
    for finding in (*check_local_ray(), *local_misfits(resources)):
        if finding.level == "FAIL":
            raise ClusterError(finding.what, code="infeasible" if finding.check != "ray" else "ray-start", fix=finding.fix)


def _start_local(quiet: Mapping[str, Any]) -> None:
    """Start a Ray of this machine alone; once more where the machine was too busy. Raises ClusterError."""
    import ray

    for finding in check_local_ray():
        if finding.level == "FAIL":  # some of these Ray would wait for without an end
            raise ClusterError(finding.what, code="ray-start", fix=finding.fix)
    for is_last in (False, True):
        try:
            with kept_signals():
                ray.init(address="local", include_dashboard=False, **quiet)
            return
        except Exception as err:
            reason = (str(err).strip().splitlines() or [type(err).__name__])[0][:300]
            with suppress(Exception):
                ray.shutdown()
            is_busy = isinstance(err, TimeoutError) or "timed out" in reason
            if is_busy and not is_last:
                log.warning("ray did not start: %s; once more", reason)
                continue
            logs = f"{temporary_folder()[1]}/ray/session_latest/logs"
            fix = f"a busy machine: try again later; otherwise its logs say more: {logs}"
            raise ClusterError(f"Ray does not start on this machine: {reason}", code="ray-start", fix=fix) from err


@contextmanager
def kept_signals() -> Iterator[None]:
    """A block after which our handlers of SIGINT, SIGTERM and SIGHUP are back.

    ray.init makes SIGTERM end the process at once, with exit code 1 or 15; our handlers let a sweep drain. Processes that it
    starts ignore SIGHUP: a terminal that is closed tells all of them, and they are needed until the sweep has drained.
    """
    if threading.current_thread() is not threading.main_thread():  # Python sets no handlers elsewhere, so ray sets none
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def hush() -> None:
    """Keep ray off the console, and let the run's log file have what it says.

    Ray gives its logger a handler at import and at init, and keeps its records from the root logger, in whose place Python then
    writes them to stderr. A thread of its own prints what the raylet says of a worker's death.
    """
    from ray._private import worker

    for name in ("_private.authentication.authentication_token_setup", "tune.analysis.experiment_analysis"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)  # advice for who calls ray himself; metrics are in our store
    logger = logging.getLogger("ray")
    for handler in list(logger.handlers):
        if type(handler) is not logging.FileHandler:
            logger.removeHandler(handler)
    logger.propagate = True
    worker.print_to_stdstream = _log_lines


def _log_lines(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    """Log what Ray would print. data: `lines`, and who says them as `pid`."""
    for line in data["lines"]:
        log.warning("%s: %s", data["pid"], line)


def resolve(address: str) -> str:
    """HOST:PORT of the head. Raises ClusterError for what is no address, and when `auto` finds no cluster."""
    if address.startswith("ray://"):
        raise _cluster_error(
            "the driver must run on a node of the cluster, not through Ray Client",
            address,
            "start this command on a node and give HOST:PORT of the head, usually port 6379, or --address auto",
        )
    if address.startswith(("http://", "https://")):
        host = urlsplit(address).hostname or "HOST"
        what = "this is the address of Ray's dashboard, for `ray job submit`; a sweep joins the head itself"
        raise _cluster_error(what, address, f"--address {host}:6379, or --address local for a Ray of this machine alone")
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise _cluster_error("expected HOST:PORT, auto or local", address, "e.g. --address 10.0.0.1:6379")
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
    """Raises ClusterError when nobody answers, or what answers does not speak gRPC. ray.init would hang for minutes."""
    host, _, port = found.rpartition(":")
    fix = "expected HOST:PORT of a Ray head, usually port 6379"
    deadline = time.monotonic() + ANSWER_S
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_S) as line:
            if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
                return  # ray itself finds out who is there
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
    """Raises ClusterError when the head has another Ray or Python, or refuses our token.

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
        raise ClusterError(
            used,
            code="token",
            where=said(address),
            fix=TOKEN_FIX,
        )
    if "error" in answer:
        raise _cluster_error(f"{found} does not answer as a Ray head does", address, "is it the head's port, usually 6379?")
    refuse_other_versions(answer["versions"], address)


def refuse_other_versions(head: Mapping[str, str], address: str) -> None:
    """head: ray_version and python_version of the cluster. Raises ClusterError unless both are ours."""
    import platform

    import ray

    here = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    if any(head.get(name) != version for name, version in here.items()):
        raise ClusterError(
            f"the head has Ray {head.get('ray_version')} on Python {head.get('python_version')}, "
            f"here is Ray {here['ray_version']} on Python {here['python_version']}",
            code="version",
            where=said(address),
            fix="install the head's versions here, or ours on every node of the cluster",
        )


def token_source() -> str:
    """The variable or file that Ray takes its token from, "" without one; never its value.

    Raises ClusterError when the token cannot be read, or is asked for and missing.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return ""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path("~/.ray/auth_token").expanduser()
    try:
        has_token = bool(read_text(path, MAX_TOKEN_BYTES).strip())
    except (OSError, UnicodeDecodeError) as err:
        if given:
            fix = "give the path of a file that you can read, with the cluster's token in it"
            raise ClusterError(
                f"the token cannot be read: {getattr(err, 'strerror', None) or 'no text'}",
                code="token",
                where=f"RAY_AUTH_TOKEN_PATH {path}",
                fix=fix,
            ) from err
        has_token = False
    if not has_token and os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        raise ClusterError(
            "RAY_AUTH_MODE is token, but there is no token",
            code="token",
            where=f"RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, {path}",
            fix="copy the file of the cluster's head, chmod 600",
        )
    return str(path) if has_token else ""


TOKEN_FIX = (
    "export RAY_AUTH_MODE=token before the command, with the head's token in ~/.ray/auth_token, a file named by "
    "RAY_AUTH_TOKEN_PATH, or RAY_AUTH_TOKEN; every node needs the same one"
)


def _refused(address: str) -> ClusterError:
    """The error of a head that answers and lets nobody in without its token, which is how `ray start --head` starts one."""
    mode = os.environ.get("RAY_AUTH_MODE")
    here = f"RAY_AUTH_MODE is {mode} here" if mode else "RAY_AUTH_MODE is not set here, so that none is presented"
    what = "the head answers and does not let us in: it asks for a token unless it was started with RAY_AUTH_MODE=disabled"
    return ClusterError(f"{what}; {here}", code="token", where=said(address), fix=TOKEN_FIX)


def _cluster_error(what: str, address: str, fix: str) -> ClusterError:
    return ClusterError(what, where=said(address), fix=fix)


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
