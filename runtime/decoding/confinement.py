"""Confine a decoding process with seccomp: only memory, the time, and the files handed to it.

A crafted picture that takes over a C decoder can do everything that its process can. So each worker
permanently gives up every system call that it does not need: it opens no file, starts no process,
reaches no network, signals no other process and makes no memory executable. Linux on x86-64 only;
elsewhere there are only the memory and time limits.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence

__all__ = ["confine"]

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ARCHITECTURE = 0xC000003E  # AUDIT_ARCH_X86_64
_OTHER_CALLS = 0x40000000  # system calls of the x32 ABI

# Filter instructions (linux/filter.h) and return values (linux/seccomp.h).
_LOAD, _IS, _AT_LEAST, _HAS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
# Offsets of the number, the architecture and each argument's low half in the filter's input.
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16

# Numbers of system calls on x86-64.
_ALLOWED = {
    **{"read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "munmap": 11, "brk": 12},
    **{"rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "readv": 19, "writev": 20},
    **{"select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35},
    **{"getpid": 39, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "getsockname": 51, "getsockopt": 55},
    **{"exit": 60, "uname": 63, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100},
    **{
        "getuid": 102,
        "getgid": 104,
        "geteuid": 107,
        "getegid": 108,
        "getppid": 110,
        "sigaltstack": 131,
        "setrlimit": 160,
    },
    **{"gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204, "restart_syscall": 219, "fadvise64": 221},
    **{"clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "pselect6": 270},
    **{"ppoll": 271, "set_robust_list": 273, "dup3": 292, "getcpu": 309, "getrandom": 318, "membarrier": 324},
    **{"rseq": 334, "close_range": 436},
}
_MMAP, _MPROTECT, _CLONE, _FCNTL, _TGKILL, _NEWFSTATAT, _PRLIMIT, _CLONE3 = 9, 10, 56, 72, 234, 262, 302, 435
_EXECUTABLE = 4  # PROT_EXEC
_THREAD = 0x00010000  # CLONE_THREAD
_EMPTY_PATH = 0x1000  # AT_EMPTY_PATH: stat a descriptor, like fstat
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC. F_SETOWN is left out: it would send signals
# to other processes.
_OF_DESCRIPTORS = (0, 1, 2, 3, 1030)

_Instruction = tuple[int, int, int, int]


def confine() -> bool:
    """Give up all unneeded system calls, permanently; this process must have one thread.

    A forbidden call fails with EPERM.

    Returns:
        whether the system supports it.

    """
    if sys.platform != "linux" or platform.machine() != "x86_64" or struct.calcsize("P") != 8:
        return False
    code = b"".join(struct.pack("=HBBI", *each) for each in _filter(os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions, and their address.
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return False
    zero = ctypes.c_ulong(0)
    if prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0:
        return False
    return bool(prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), program, zero, zero) == 0)


def _filter(pid: int) -> list[_Instruction]:
    """Return the program: architecture and number, calls judged by arguments, then plain calls."""
    refuse = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    program = [
        *((_LOAD, 0, 0, _ARCH), (_IS, 1, 0, _ARCHITECTURE), (_RETURN, 0, 0, _KILL)),
        *((_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _OTHER_CALLS), refuse),
        # The C library then falls back to clone, whose flags the filter can see.
        *((_IS, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)),
    ]
    for number, argument, test, values, allowed in (
        (_MMAP, 2, _HAS, (_EXECUTABLE,), False),
        (_MPROTECT, 2, _HAS, (_EXECUTABLE,), False),
        (_CLONE, 0, _HAS, (_THREAD,), True),
        (_NEWFSTATAT, 3, _HAS, (_EMPTY_PATH,), True),
        (_FCNTL, 1, _IS, _OF_DESCRIPTORS, True),
        (_TGKILL, 0, _IS, (pid,), True),
        (_PRLIMIT, 0, _IS, (0, pid), True),
    ):
        program += _by_argument(number, argument, test, values, allowed)
    for number in _ALLOWED.values():
        program += [(_IS, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    return [*program, refuse]


def _by_argument(number: int, argument: int, test: int, values: Sequence[int], allowed: bool) -> list[_Instruction]:
    """Return instructions for one call: test an argument for certain values, or for a bit."""
    then, otherwise = (_ALLOW, _ERROR | errno.EPERM) if allowed else (_ERROR | errno.EPERM, _ALLOW)
    decide = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
    for value in values:
        decide += [(test, 0, 1, value), (_RETURN, 0, 0, then)]
    decide.append((_RETURN, 0, 0, otherwise))
    return [(_IS, 0, len(decide), number), *decide]
