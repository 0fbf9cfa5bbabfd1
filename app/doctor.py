"""What `modelpress doctor` looks at: this machine, and what the settings name. It changes nothing but a file in the store, which it takes away again."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import stat
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import httpx
from sqlalchemy import select

from app import embedded, readiness
from app.config import settings
from app.db import now, reading
from app.findings import FAIL, WARN, Check, Finding, Trouble, Watch
from app.queue import app as celery
from app.storage import Storage

SECONDS = 120.0  # importing torch from a cold disk takes a while
PACKAGES = ("fastapi", "celery", "sqlalchemy", "obstore", "cryptography", "safetensors", "zstandard")
SKEW = 2.0  # seconds between this machine's clock and the database's
_asking = threading.Lock()
_USERS = {"another": "another user for each child", "own": "this user", "root": "as root"}
_LATER = "not there yet; `modelpress up` makes it"


def examine() -> list[Finding]:
    """Every check, in the order of the table."""
    checks: dict[str, Check] = {
        **{"python": python, "packages": packages, "kernel": kernel, "jail": jail, "torch": torch, "kernels": kernels, "gpu": gpu, "home": home, "disk": disk},
        **{"database": database, "clock": clock, "broker": broker, "storage": storage, "port": port},
    }
    return Watch(checks, SECONDS, frank=True).look()


def python() -> str:
    if sys.version_info < (3, 11):
        raise Trouble(f"Python {platform.python_version()}: 3.11 or later is needed")
    return platform.python_version()


def packages() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("modelpress", *PACKAGES))


def kernel() -> str:
    if platform.system() != "Linux":
        raise Trouble(f"{platform.system()}: workers need Linux; the client works anywhere", WARN)
    return f"Linux {platform.release()}, {platform.machine()}"


def _machine() -> dict:
    """Asked once: three checks read it."""
    with _asking:
        return _ask_machine()


@cache
def _ask_machine() -> dict:
    done = subprocess.run([sys.executable, "-m", "worker.machine"], capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise Trouble(f"this machine's worker does not start: {(done.stderr.strip().splitlines() or ['no word'])[-1][:300]}")
    return json.loads(done.stdout)


def jail() -> str:
    found, folder = _machine()["jail"], _machine()["exposed"]
    if folder:
        raise Trouble(f"{settings().home} lies in {folder}, which every child may read: choose another home")
    if not found["holds"]:
        needed = "Landlock (Linux 6.2 or later, not switched off) and seccomp are needed, on x86_64 or aarch64"
        raise Trouble(f"it does not hold: {found}; {needed}", FAIL if settings().jail == "required" else WARN)
    said = f"{settings().jail}: Landlock ABI {found['landlock']}, seccomp, {_USERS[found['user']]}"
    if not found["namespaces"]:
        raise Trouble(f"{said}; no namespaces: it holds without them, a second wall is missing", WARN)
    if found["user"] == "root":
        raise Trouble(f"{said}: it holds, but start the worker as an ordinary user, or with the capabilities of setuid and dac_read_search", WARN)
    return f"{said}, namespaces"


def kernels() -> str:
    if (found := _machine()["torch"]) is None:
        raise Trouble("without torch there are none", WARN)
    if found["kernels"] is None:
        raise Trouble("references run, some ten times as slow: install again where a C++ compiler is (g++ 11 or clang 14 and later)", WARN)
    return f"compiled, {found['kernels']}"


def torch() -> str:
    if (found := _machine()["torch"]) is None:
        raise Trouble("not installed: this machine can serve the API, not compress", WARN)
    return f"{found['version']}, {'CUDA ' + found['cuda'] if found['cuda'] else 'for CPUs'}, {_machine()['cores']} cores"


def gpu() -> str:
    found = _machine()["torch"] or {"gpus": [], "cuda": None}
    device = Path("/dev/nvidiactl").exists()
    if device and not found["gpus"]:
        raise Trouble("there is an NVIDIA device, and torch does not see it: install torch's CUDA build (TORCH=torch make install), or look at the driver", WARN)
    return ", ".join(found["gpus"]) or "none"


def home() -> str:
    folder = settings().home
    if not folder.exists():
        return _LATER
    if (mode := stat.S_IMODE(folder.stat().st_mode)) & 0o077:
        raise Trouble(f"{folder} has mode {mode:04o}: others must not read it; chmod 700 {folder}")
    for secret in (folder / "api-key", settings().keys / "signing.pem"):
        if secret.exists() and (mode := stat.S_IMODE(secret.stat().st_mode)) & 0o077:
            raise Trouble(f"{secret} has mode {mode:04o}: others must not read it; chmod 600 {secret}, and replace it if they may have")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Trouble(f"{folder} cannot be written to by this user")
    return f"{folder}, read by nobody else"


def disk() -> str:
    folder = settings().home
    while not folder.exists():
        folder = folder.parent
    return readiness.disk(folder)


def _no_database_yet() -> bool:
    return settings().database_url is None and not (settings().home / "modelpress.db").exists()


def database() -> str:
    return _LATER if _no_database_yet() else readiness.database()


def clock() -> str:
    if _no_database_yet():
        return _LATER
    before = time.time()
    with reading() as s:
        there = s.scalar(select(now()))
    skew = there - (before + time.time()) / 2
    if abs(skew) > SKEW:
        raise Trouble(f"the database's clock is {skew:+.1f} s off this machine's: set both by NTP; times that users see are the database's", WARN)
    return f"{skew:+.3f} s between the database and this machine"


def broker() -> str:
    if settings().broker_url is None:
        program = embedded.redis_server()
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout
        return f"{program}, {told.strip()[:60]}"
    readiness.broker()
    with celery.connection_for_write() as connection:
        info = connection.default_channel.client.info("server")
    version = info["redis_version"]
    if int(version.split(".")[0]) < 6:
        raise Trouble(f"Redis {version}: 6 or later is what this was tested with", WARN)
    return f"Redis {version}"


def storage() -> str:
    if settings().storage_url is None and not (settings().home / "store").exists():
        return _LATER
    Storage().check()
    return "it can be written to and read from"


def port() -> str:
    host, number = settings().host, settings().port
    url = f"http://{host}:{number}"
    try:
        told = httpx.get(f"{url}/readyz", timeout=10).json()
    except (httpx.HTTPError, ValueError):
        try:
            embedded.free(host, number)
        except SystemExit as e:
            raise Trouble(str(e)) from None
        return f"{url} is free"
    missing = {**told["checks"], **told.get("degraded", {})}
    if bad := [f"{name}: {said}" for name, said in missing.items() if said != "ok"]:
        raise Trouble(f"a service answers at {url}, {told['status']}: {'; '.join(bad)}", WARN if told["status"] == "ready" else FAIL)
    return f"a service answers at {url} and is ready"
