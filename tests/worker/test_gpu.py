"""Children with a GPU: what bounds their memory, what they may open, which GPU they see. CUDA itself is tried where there is one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from devices import DEVICES

from worker import gpu, gpu_probe
from worker.zygote import Limits

ROOT = Path(__file__).parents[2]


def test_memory_that_is_taken_is_bounded_though_addresses_are_not(follow):
    limits = Limits(400 << 20, 1 << 20, 1, gpu=True)
    assert follow("mapped_memory", bytes=8 << 30, limits=limits, seconds=120)[0].how == "done"
    assert follow("touched_memory", bytes=1 << 20, stay=False, limits=limits, seconds=120)[0].how == "done"
    ended, _ = follow("touched_memory", bytes=600 << 20, stay=True, limits=limits, seconds=120)
    assert ended.how == "failed" and ended.problem["type"] == "out-of-memory"


def test_the_jail_lets_a_device_be_spoken_to_and_no_other(tmp_path):
    """/dev/null stands for a GPU: ENOTTY is its own answer, EACCES would be the jail's."""
    code = """
        import errno, fcntl, os, sys
        from pathlib import Path
        from worker import jail
        got = jail.apply([Path("/usr/lib")], [Path(sys.argv[1])], None, 1 << 20, [Path("/dev/null")])
        assert got.holds
        fd = os.open("/dev/null", os.O_RDWR)
        try:
            fcntl.ioctl(fd, 0x5401)
        except OSError as e:
            assert e.errno == errno.ENOTTY, e
        try:
            os.open("/dev/zero", os.O_RDWR)
        except PermissionError:
            print("refused")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n", done.stderr


def test_a_jail_with_a_device_lets_threads_be_named_as_cuda_names_them(tmp_path):
    """By task/*/comm of its own; that of another process stays closed."""
    code = """
        import os, sys, threading
        from pathlib import Path
        from worker import gpu, jail
        got = jail.apply([Path("/usr/lib"), *gpu.readable()], [Path(sys.argv[1])], None, 1 << 20, gpu.spoken_to())
        assert got.holds
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        for task in os.listdir("/proc/self/task"):
            os.write(os.open(f"/proc/self/task/{task}/comm", os.O_RDWR), b"cuda")
            assert Path(f"/proc/self/task/{task}/comm").read_text() == "cuda\\n"
        os.eventfd(0)
        try:
            os.open(f"/proc/{os.getppid()}/comm", os.O_RDWR)
        except PermissionError:
            print("refused")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n", done.stderr


@pytest.mark.parametrize("chosen", [None, "", "3", "GPU-0af"])
def test_a_zygote_is_told_which_gpu_its_worker_has(monkeypatch, chosen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    told = gpu.environment()
    assert told.pop("CUDA_VISIBLE_DEVICES", None) == chosen and told == {"CUDA_CACHE_DISABLE": "1"}


def test_a_worker_whose_kernels_cannot_be_compiled_goes_on_without_them(monkeypatch, caplog):
    """There is no GPU, or no Triton: the log says why, and no zygote is told of a folder."""
    monkeypatch.delenv(gpu.KERNELS, raising=False)
    gpu.compile_kernels()
    if len(DEVICES) > 1:
        assert Path(gpu.readable()[-1], "kernels.json").exists()
    else:
        assert gpu.KERNELS not in gpu.environment() and "torch works in their place" in caplog.text


def test_the_probe_computes_in_the_jail_or_says_why_not():
    device, why = gpu_probe.probe()
    if len(DEVICES) > 1:
        assert device.startswith("cuda ") and not why
    else:
        assert device == "cpu" and "70" in why
