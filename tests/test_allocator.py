"""The allocator's settings: freed memory stays with the process, counted in page faults."""

import os
import platform
import subprocess
import sys

import pytest

# Of ten rounds that take and free 64 MB, the kernel has to provide the pages once or ten times.
ROUNDS = """
import ctypes, resource, sys
from deeprank.models.allocator import keep_freed_memory
print(keep_freed_memory())
assert "torch" not in sys.modules
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def round():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")


def page_faults(**environment: str) -> tuple[str, int]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", ROUNDS]
    ran = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    taken, faults = ran.stdout.split()
    return taken, int(faults)


def test_pages_are_asked_for_once():
    taken, faults = page_faults()
    assert taken == "True"
    assert faults < 100


@pytest.mark.parametrize(
    "environment", [{"MALLOC_MMAP_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}]
)
def test_what_the_environment_says_wins(environment):
    taken, faults = page_faults(**environment)
    assert taken == "False"
    assert faults > 10 * 30  # 32 pages of 2 MiB a round at least, 16,384 of 4 KiB as a rule
