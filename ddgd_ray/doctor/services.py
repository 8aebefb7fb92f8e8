"""Services that a sweep talks to: a ray cluster, an MLflow server or database. No password is repeated."""

import base64
import json
import os
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ddgd_ray.doctor.finding import Finding, passed
from ddgd_ray.doctor.storage import existing
from ddgd_ray.redact import redact

ANSWER_S = 5.0
HEALTH_S = 20.0  # importing ray takes seconds of it
HEALTH = (sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address")
DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def said(address: str) -> str:
    """How an address was given: RAY_ADDRESS=ADDRESS, or --address ADDRESS."""
    return f"RAY_ADDRESS={address}" if os.environ.get("RAY_ADDRESS") == address else f"--address {address}"


def unfit_uri(uri: str) -> str:
    """What keeps an address from being one of MLflow's servers or databases, or ""."""
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if len(scheme) > 1 and scheme != "file":
        return ""
    return f"a folder of files is no tracking store of this MLflow: {redact(uri)}"


UNFIT_FIX = "give a database, sqlite:////path/to/mlflow.db, or the http:// address of a server"


def check_ray(address: str, *, health: tuple[str, ...] = HEALTH) -> list[Finding]:
    """The finding whether a ray head of this version listens there and lets us in."""
    shown = said(address)
    if address.startswith(("http://", "https://")):
        what = f"{shown} is the address of ray's dashboard, for `ray job submit`; a sweep joins the head itself"
        return [Finding("ray", "FAIL", what, f"--address {urlsplit(address).hostname or 'HOST'}:6379, or unset RAY_ADDRESS")]
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            return [Finding("ray", "FAIL", f"expected HOST:PORT of a ray head, got {shown}", "--address HOST:6379")]
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
        except OSError as err:
            what = f"no answer from {shown} within {ANSWER_S:.0f} s: {err}"
            return [Finding("ray", "FAIL", what, "start it: ray start --head; or correct the address")]
        if address.startswith("ray://"):
            return [passed("ray", f"something listens at {shown} (ray's client; its health is not asked)")]
    try:
        command = health if address != "auto" else health[:-1]
        ran = subprocess.run(
            [*command, *([] if address == "auto" else [address])], capture_output=True, text=True, timeout=HEALTH_S, check=False
        )
    except subprocess.TimeoutExpired:
        what = f"{shown} listens but does not answer as a ray head within {HEALTH_S:.0f} s"
        return [Finding("ray", "FAIL", what, "is it the port of the head (6379), not of the dashboard?")]
    if ran.returncode:
        lines = [line for line in (ran.stderr + ran.stdout).strip().splitlines() if line.strip()]
        if any("AuthenticationError" in line or "authentication token" in line.lower() for line in lines):
            mode = os.environ.get("RAY_AUTH_MODE", "not set")
            what = f"the head at {shown} asks for a token, and RAY_AUTH_MODE is {mode} here"
            fix = (
                "export RAY_AUTH_MODE=token, with the head's token in ~/.ray/auth_token or a file named by RAY_AUTH_TOKEN_PATH"
            )
            return [Finding("ray", "FAIL", what, fix)]
        what = f"{shown} is no healthy ray head for us: {lines[-1].strip()[:300] if lines else f'exit code {ran.returncode}'}"
        return [Finding("ray", "FAIL", what, "same version of ray here and there? is it the head's port, usually 6379?")]
    return [passed("ray", f"the head at {shown} answers")]


def check_tracking(uri: str, environment: Mapping[str, str] = os.environ, *, source: str = "") -> list[Finding]:
    """The finding of MLflow's place. A server that is down is a WARN: what is tracked waits on disk. The rest is a FAIL."""
    shown = f"{source}={redact(uri)}" if source else redact(uri)
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme == "sqlite":
        return [_database(Path(unquote(uri.partition(":///")[2].partition("?")[0])))]
    if scheme in ("http", "https"):
        return [_server(uri, shown, environment)]
    if scheme in DATABASES:
        try:
            socket.create_connection((parts.hostname or "localhost", parts.port or DATABASES[scheme]), timeout=ANSWER_S).close()
        except (OSError, ValueError) as err:
            return [Finding("mlflow", "WARN", f"no answer from {shown} within {ANSWER_S:.0f} s: {err}", "is the database up?")]
        return [passed("mlflow", f"a database listens at {shown} (user and password are not tried)")]
    unfit = unfit_uri(uri)
    if unfit:
        return [Finding("mlflow", "FAIL", f"{source}: {unfit}" if source else unfit, UNFIT_FIX)]
    return [Finding("mlflow", "WARN", f"nothing here can check {scheme}:// addresses", "look at its server yourself")]


def _database(path: Path) -> Finding:
    if not path.exists():
        place = existing(path.absolute().parent)
        if place.is_dir() and os.access(place, os.W_OK):
            return passed("mlflow", f"{path} will be made")
        return Finding("mlflow", "FAIL", f"{path} cannot be made: {place} cannot be written", "choose another --tracking-uri")
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        what = f"{path} cannot be written" if not os.access(path, os.W_OK) else f"{path.parent} cannot be written: no journal"
        return Finding("mlflow", "FAIL", what, f"check the permissions of {path}")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1, isolation_level=None)
        try:
            tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
            connection.execute("begin immediate")
            connection.execute("rollback")
        finally:
            connection.close()
    except sqlite3.OperationalError as err:
        return Finding("mlflow", "WARN", f"{path}: {err}", "another program writes it; look again, or end that program")
    except sqlite3.DatabaseError as err:
        return Finding("mlflow", "FAIL", f"{path}: {err}", "move it away; `ddgd-ray mlflow sync RUN` fills a new one")
    if tables and "experiments" not in tables:
        return Finding("mlflow", "FAIL", f"{path} is a database of something else", "choose another --tracking-uri")
    return passed("mlflow", f"{path} can be written")


def _server(uri: str, shown: str, environment: Mapping[str, str]) -> Finding:
    parts = urlsplit(uri)
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    request = urllib.request.Request(f"{place}/api/2.0/mlflow/experiments/search?max_results=1")
    user = unquote(parts.username or "") or environment.get("MLFLOW_TRACKING_USERNAME", "")
    word = unquote(parts.password or "") or environment.get("MLFLOW_TRACKING_PASSWORD", "")
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{word}".encode()).decode())
    elif environment.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {environment['MLFLOW_TRACKING_TOKEN']}")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            json.loads(answer.read(1_000_000))
    except urllib.error.HTTPError as err:
        text = err.read(500).decode(errors="replace")
        if err.code == 401 or (err.code == 403 and "host header" not in text.lower()):
            given = f"as {user}" if user else "without a name"
            fix = "export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            return Finding("mlflow", "FAIL", f"{shown} does not let us in {given} ({err.code})", fix)
        if err.code == 403:
            fix = f"start the server with --allowed-hosts {parts.hostname}"
            return Finding("mlflow", "FAIL", f"{shown} refuses requests by this host name (403)", fix)
        fix = "is it an MLflow server? what its log says; what is tracked waits on disk"
        return Finding("mlflow", "WARN", f"{shown} answers {err.code}", fix)
    except ValueError:
        return Finding("mlflow", "WARN", f"{shown} answers, not as an MLflow server does", "correct --tracking-uri")
    except OSError as err:
        reason = getattr(err, "reason", err)
        fix = "start it, or correct --tracking-uri; what is tracked waits on disk, `ddgd-ray mlflow sync` sends it later"
        return Finding("mlflow", "WARN", f"no answer from {shown} within {ANSWER_S:.0f} s: {reason}", fix)
    return passed("mlflow", f"the server at {shown} answers")
