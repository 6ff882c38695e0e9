"""Disks that can be filled: a small tmpfs for each party where the machine lets us mount one, else a limit on the size
of files that its running process may write."""

import contextlib
import ctypes
import os
import resource
import shutil
import subprocess
from pathlib import Path

SIZE_MIB = 192
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000


def own_mounts() -> bool:
    """Give this process, before it has threads, a mount namespace of its own; whether it may mount in it. What is
    mounted there is gone with its last process."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    flags = _CLONE_NEWNS if user == 0 else _CLONE_NEWNS | _CLONE_NEWUSER
    if not hasattr(libc, "unshare") or libc.unshare(flags) != 0:
        return False
    if user != 0:
        with contextlib.suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    private = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=False)
    return private.returncode == 0


class Disk:
    """The folder in which one party keeps its state."""

    def __init__(self, folder: Path, *, mounted: bool) -> None:
        """mounted: a file system of its own, SIZE_MIB large, if the machine allows it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.mounted = False
        if mounted:
            options = f"size={SIZE_MIB}m,mode=0755"
            command = ["mount", "-t", "tmpfs", "-o", options, "talaria-chaos", str(folder)]
            self.mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        self.full = False

    @property
    def how(self) -> str:
        return f"tmpfs of {SIZE_MIB} MiB, filled" if self.mounted else "RLIMIT_FSIZE of a few KiB"

    def fill(self, pid: int | None) -> None:
        """No byte more fits (ENOSPC); without a mount, the running process can write no large file (EFBIG)."""
        self.full = True
        if self.mounted:
            with contextlib.suppress(OSError), (self.folder / "ballast").open("wb", buffering=0) as file:
                while file.write(bytes(1 << 20)):
                    pass
        else:
            self.limit(pid)

    def limit(self, pid: int | None) -> None:
        """Of a process that was started while the disk is full."""
        if pid is not None and not self.mounted and self.full:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    def empty(self, pid: int | None) -> None:
        """There is room again."""
        self.full = False
        (self.folder / "ballast").unlink(missing_ok=True)
        if pid is not None and not self.mounted:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def rescue(self, place: Path) -> None:
        """A copy that outlives us."""
        if self.mounted:
            shutil.copytree(self.folder, place, symlinks=True, dirs_exist_ok=True)
