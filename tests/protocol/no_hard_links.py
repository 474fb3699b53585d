"""Runs a command without hard links: the kernel refuses them as it does on FAT (EPERM) or SMB (EOPNOTSUPP).

    python no_hard_links.py ERRNO COMMAND [ARGUMENT ...]

A filter of system calls (seccomp(2)) answers link() and linkat(). It needs no rights, and a command inherits it.
"""

import ctypes
import os
import platform
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS; BPF_JMP | BPF_JEQ | BPF_K; BPF_RET | BPF_K
NO_HARD_LINKS = __file__
LINKS = {"x86_64": (86, 265), "aarch64": (37,)}  # link, linkat


class Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse_links(error: int) -> None:
    """Let every hard link of this process fail with an error number."""
    numbers = LINKS[platform.machine()]
    instructions = [(LOAD, 0, 0, 0)]  # the system call's number
    for left, number in reversed([*enumerate(reversed(numbers), start=1)]):
        instructions.append((JUMP_IF_EQUAL, left, 0, number))
    instructions += [(RETURN, 0, 0, SECCOMP_RET_ALLOW), (RETURN, 0, 0, SECCOMP_RET_ERRNO | error)]
    program = Program(len(instructions), b"".join(struct.pack("=HBBI", *one) for one in instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    refuse_links(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
