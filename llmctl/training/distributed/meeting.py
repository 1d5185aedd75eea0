"""How the processes of one machine find each other so that nobody else can: in a file of a folder
that only this user can enter, and over the loopback interface.

No store listens on a port: PyTorch's own (TCPStore, which torchrun uses) does so on all interfaces
and asks nobody who they are. Gloo's and NCCL's data goes through sockets, which on the loopback
interface only the machine's users reach. Gloo takes whoever calls first for the process that it
waits for; so once all are connected, ``refuse_strangers`` asks the system whose the other ends are.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmctl.errors import LostProcess

STORE = "LLMCTL_STORE"
"""In the environment of what ``--nproc`` started: the file in which they find each other."""

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"

ESTABLISHED = "01"
"""The state of a connection, as /proc/net/tcp writes it."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder that only this user can enter, gone after the block."""
    with tempfile.TemporaryDirectory(prefix="llmctl-") as folder:
        os.chmod(folder, 0o700)
        yield Path(folder)


def meeting_at(store: Path) -> dict[str, str]:
    """What the environment of processes is to say, for them to meet at ``store`` and listen on
    nothing but the loopback interface."""
    return {STORE: str(store), "GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}


def refuse_strangers() -> None:
    """Raises LostProcess if a connection of this process leads to another user of the machine.

    Only Linux can tell; elsewhere this does nothing.
    """
    own = _own_sockets()
    if not own:
        return
    connections = list(_connections())
    owner = {(local, remote): uid for local, remote, uid, _ in connections}
    for local, remote, _, inode in connections:
        uid = owner.get((remote, local)) if inode in own else None
        if uid is not None and uid != os.getuid():
            raise LostProcess(
                f"user {uid} of this machine has connected in the place of a process of this "
                "training, which was stopped before anything was sent; run the command again"
            )


def _own_sockets() -> set[str]:
    """The numbers of this process's sockets."""
    inodes = set()
    try:
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{descriptor}")
            except OSError:  # that of the listing itself
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    except OSError:
        return set()
    return inodes


def _connections() -> Iterator[tuple[str, str, int, str]]:
    """The machine's connections: both addresses, the user of the first, and its socket."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, remote, state, _, _, _, uid, _, inode, *_ = line.split()
            if state == ESTABLISHED:
                yield local, remote, int(uid), inode
