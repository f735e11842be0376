"""The filter, run by an interpreter of its instructions written after seccomp(2) and the BPF manual."""

import errno
import struct

import pytest

from egspo.sandbox import seccomp
from egspo.sandbox.processes import ContainmentError

X86, ARM = 0xC000003E, 0xC00000B7
ALLOW, KILL = 0x7FFF0000, 0x80000000


def decide(program: bytes, number: int, *args: int, architecture: int = X86) -> int:
    """What the kernel would return for a system call."""
    padded = [*args, *[0] * (6 - len(args))]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *[x & (2**64 - 1) for x in padded])
    code = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x06:
            return value
        else:
            tests = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value}
            at += yes if tests[operation] else no


# Numbers of x86-64: read, write, futex, mmap, clock_gettime, exit_group.
@pytest.mark.parametrize("number", [0, 1, 202, 9, 228, 231])
def test_what_python_lives_on_is_allowed(number):
    assert decide(seccomp.assemble("x86_64"), number, 5) == ALLOW


# fork, vfork, ptrace, mount, unshare, socket, memfd_create, bpf, io_uring_setup, pidfd_open.
@pytest.mark.parametrize("number", [57, 58, 101, 165, 272, 41, 319, 321, 425, 434])
def test_what_escapes_is_refused(number):
    assert decide(seccomp.assemble("x86_64"), number) == 0x00050000 | errno.EPERM


def test_calls_are_ruled_by_their_arguments():
    program, refused = seccomp.assemble("x86_64"), 0x00050000 | errno.EPERM
    threads, processes = 0x00010000 | 0x100, 17
    assert decide(program, 56, threads) == ALLOW and decide(program, 56, processes) == refused
    assert decide(program, 435) == 0x00050000 | errno.ENOSYS
    assert decide(program, 62, seccomp.SELF) == ALLOW and decide(program, 62, -1 & (2**32 - 1)) == refused
    assert decide(program, 302, 0) == ALLOW and decide(program, 302, 77) == refused
    # fcntl: F_SETFL, F_SETOWN, F_SETOWN_EX; ioctl: TCGETS, TIOCSTI.
    assert [decide(program, 72, 3, x) for x in (4, 8, 15)] == [ALLOW, refused, refused]
    assert [decide(program, 16, 3, x) for x in (0x5401, 0x5412)] == [ALLOW, refused]


def test_other_instruction_sets_are_no_way_round():
    program = seccomp.assemble("x86_64")
    # The 32-bit interface (write there is 4) and x32 (bit 30 set).
    assert decide(program, 4, architecture=0x40000003) == KILL
    assert decide(program, 0x40000000 | 57) == 0x00050000 | errno.EPERM


def test_arm_has_its_own_numbers():
    program = seccomp.assemble("aarch64")
    # write 64, ptrace 117, clone 220.
    assert decide(program, 64, architecture=ARM) == ALLOW
    assert decide(program, 117, architecture=ARM) == 0x00050000 | errno.EPERM
    assert decide(program, 220, 17, architecture=ARM) == 0x00050000 | errno.EPERM
    with pytest.raises(ContainmentError, match="riscv64"):
        seccomp.assemble("riscv64")
