"""A process with torch imported and nothing else done, which forks a jailed child per job, so that a small job does not pay for the import.

    worker ── SOCK_SEQPACKET ── zygote ── fork ──> child (own session, jailed)
       └────────────── pipe: JSON lines ──────────────┘

The zygote runs no operator and has one OS thread: a fork of a process that has run parallel torch work hangs in the child. It is exec'd with an empty
environment. It dies with the worker, the child with the zygote.

    worker -> zygote   {"entry", "inp", "out", "spec", "limits", "read"} and the pipe's write end
    zygote -> worker   {"pid"} and a pidfd of the child, then {"status", "peak"} as wait4 gives them (peak: KiB that were resident at most)
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from app.parent import die_with_parent, tied
from worker import gpu

MESSAGE = 1 << 16
_TASKS = 512  # threads of a child, beside those of every library's pool for each core
_PATIENCE = 300.0  # seconds; importing torch and transformers from a cold disk of a busy machine takes a while
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_ENVIRONMENT = {"LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"} | _ONE_THREAD
"""One thread while importing; the child then asks torch for as many as it may use."""

_LIBRARIES = ("torch", "transformers", "compressed_tensors", "torch.export.pt2_archive._package", "torch.export._trace", "torch.export._unlift")
_MODELS = (*_LIBRARIES, "worker.calibrating", "worker.searching", "worker.recovering", "worker.reconstructing", "worker.measuring", "worker.proof")
PRELOAD = {
    "worker.__main__:run": ("torch", "worker.__main__"),
    "worker.gpu_probe:tell": ("torch", "worker.gpu_probe"),
    "worker.calibrating:child": _MODELS,
    "worker.searching:child": _MODELS,
    "worker.recovering:child": _MODELS,
    "worker.reconstructing:child": _MODELS,
    "worker.measuring:child": _MODELS,
    "worker.proof:prove": _MODELS,
}
"""What a zygote for this entry imports before the first fork, as far as it is installed. One zygote serves all entries that import the same."""


@dataclass(frozen=True)
class Limits:
    """Of a child: bytes that its memory may grow by, bytes of its largest file, threads, whether it may use the GPU, seconds of CPU, and whether it may
    work only in a jail that holds.

    CUDA maps more addresses than a machine has memory, so a child with a GPU has no bound on those: `worker.child` looks at what it really takes.
    """

    memory: int
    file_bytes: int
    threads: int
    gpu: bool = False
    cpu: int | None = None
    required: bool = True


@dataclass(frozen=True)
class Spawned:
    """A child under way: its process id, a pidfd (which never comes to mean another process), the read end of its pipe."""

    pid: int
    handle: int
    pipe: int

    def kill(self) -> None:
        """It has no processes of its own to take along: its jail lets it make threads only."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)

    def close(self) -> None:
        os.close(self.handle)
        os.close(self.pipe)


class Zygote:
    """The worker's side. `spawn` starts the zygote when there is none, so one that was killed is replaced by the next job."""

    program = ("-m", "worker.zygote")

    def __init__(self, entry: str):
        self.entry = entry
        self.process: subprocess.Popen | None = None
        self.socket: socket.socket | None = None
        self.peak = 0  # bytes that the child which ended last had resident at most, those that it shares with the zygote or a file included

    def start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-I", *self.program, str(theirs.fileno()), str(os.getpid()), *PRELOAD[self.entry]]
            options = {"env": _ENVIRONMENT | gpu.environment(), "cwd": "/", "stdin": subprocess.DEVNULL, "pass_fds": [theirs.fileno()]}
            self.process = subprocess.Popen(command, preexec_fn=tied(), **options)
        self.socket = ours
        self.socket.settimeout(_PATIENCE)

    def spawn(self, inp: Path, out: Path, spec: Path, limits: Limits, read: Iterable[Path] = ()) -> Spawned:
        """Fork a child that runs the entry on `inp` and `out` with the JSON in the file `spec`.

        Args:
            read: what else it may read.

        Raises:
            OSError: the zygote died under the request, or does not answer.
        """
        self.start()
        reading, writing = os.pipe()
        request = {"entry": self.entry, "inp": str(inp), "out": str(out), "spec": str(spec), "limits": asdict(limits), "read": [str(p) for p in read]}
        try:
            socket.send_fds(self.socket, [json.dumps(request).encode()], [writing])
            reply, handles, _, _ = socket.recv_fds(self.socket, MESSAGE, 1)
            if not reply:
                raise ConnectionResetError("the zygote died")
        except OSError:
            os.close(reading)
            self.close()
            raise
        finally:
            os.close(writing)
        return Spawned(json.loads(reply)["pid"], handles[0], reading)

    def wait(self) -> int | None:
        """The child's wait status; None when the zygote died, and the child with it. Called once per spawn, after the child's end."""
        self.peak = 0
        try:
            reply = self.socket.recv(MESSAGE)
        except OSError:
            reply = b""
        if not reply:
            self.close()
            return None
        ended = json.loads(reply)
        self.peak = ended["peak"] << 10
        return ended["status"]

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = self.socket = None


def serving(zygotes: dict[tuple[str, ...], Zygote], entry: str) -> Zygote:
    """The zygote of `zygotes`, by what they import, whose next child runs `entry`; a new one where none has imported that."""
    zygote = zygotes.setdefault(PRELOAD[entry], Zygote(entry))
    zygote.entry = entry
    return zygote


def main(fd: int, parent: int, *modules: str) -> None:
    """The zygote's side: import, then fork a child for every request until the worker is gone."""
    die_with_parent(parent)
    worker = socket.socket(fileno=fd)
    gc.disable()
    for module in modules:
        if importlib.util.find_spec(module):
            importlib.import_module(module)
    gc.freeze()  # what is imported stays: children share it, and look through none of it again
    gc.enable()
    while True:
        message, fds, _, _ = socket.recv_fds(worker, MESSAGE, 1)
        if not message:
            return
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            worker.close()
            _child(zygote, json.loads(message), fds[0])
        os.close(fds[0])
        handle = os.pidfd_open(pid)
        socket.send_fds(worker, [json.dumps({"pid": pid}).encode()], [handle])
        os.close(handle)
        _, status, used = os.wait4(pid, 0)
        worker.send(json.dumps({"status": status, "peak": used.ru_maxrss}).encode())


def _child(zygote: int, request: dict, pipe: int) -> None:
    """Never returns. An error that is not ours is told on the pipe and ends the process with 70."""
    code = 70
    try:
        os.setsid()
        die_with_parent(zygote)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.closerange(3, pipe)
        os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
        Path("/proc/self/oom_score_adj").write_text("1000")  # when memory runs out, the kernel shall take this process and not the database
        with os.fdopen(pipe, "w", buffering=1) as told:
            try:
                _work(request, lambda event: told.write(json.dumps(event) + "\n"))
                code = 0
            except BaseException:
                told.write(json.dumps({"event": "crash", "traceback": traceback.format_exc()[-4000:]}) + "\n")
    finally:
        os._exit(code)


def _work(request: dict, emit) -> None:
    import torch

    from worker import jail

    inp, out, limits = Path(request["inp"]), Path(request["out"]), Limits(**request["limits"])
    spec = json.loads(Path(request["spec"]).read_text())
    module, function = request["entry"].split(":")
    run = getattr(importlib.import_module(module), function)
    read = [*installation(), inp, *map(Path, request["read"])]
    devices = gpu.spoken_to() if limits.gpu else []
    readable = [*read, *gpu.readable()] if limits.gpu else read
    got = jail.apply(readable, [out], None if limits.gpu else limits.memory, limits.file_bytes, devices, cpu=limits.cpu, tasks=_TASKS + 4 * (os.cpu_count() or 1))
    if limits.required and not got.holds:
        raise jail.JailError(f"the jail does not hold: {got}")
    torch.set_num_threads(limits.threads)
    run(inp, out, spec, emit)


def installation() -> list[Path]:
    """What Python needs to read when it imports late: itself, its packages, shared libraries, our code, and how many cores there are."""
    root = Path(__file__).resolve().parents[1]
    prefixes = [Path(sys.prefix), Path(sys.base_prefix), Path(os.__file__).parent]
    libraries = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
    machine = ("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system", "/dev/null")
    return [*prefixes, root / "app", root / "worker", *map(Path, libraries + machine)]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
