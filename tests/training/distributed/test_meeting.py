"""What processes of one machine tell each other goes to nobody else."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from llmctl.errors import LostProcess
from llmctl.training.distributed.meeting import meeting_at, private_folder, refuse_strangers

NOBODY = 65534
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks /proc")


def test_the_folder_is_this_users_alone_whatever_the_umask():
    before = os.umask(0)
    try:
        with private_folder() as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert folder.stat().st_uid == os.getuid()
    finally:
        os.umask(before)
    assert not folder.exists()


def test_gloo_and_nccl_keep_to_the_loopback_interface(tmp_path: Path):
    told = meeting_at(tmp_path / "store")
    name = told["GLOO_SOCKET_IFNAME"]
    assert name == told["NCCL_SOCKET_IFNAME"]
    assert name in [name for _, name in socket.if_nameindex()]
    if sys.platform.startswith("linux"):
        flags = int(Path(f"/sys/class/net/{name}/flags").read_text(), 16)
        assert flags & 0x8  # IFF_LOOPBACK


@NEEDS_PROC
@pytest.mark.parametrize("user", [os.getuid(), NOBODY])
def test_a_connection_of_another_user_is_refused(user: int):
    if user != os.getuid() and os.getuid() != 0:
        pytest.skip("only root can be another user")
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.seteuid(user)  # whose a socket is the system notes when it is made
        try:
            caller = socket.create_connection(server.getsockname())
        finally:
            os.seteuid(os.getuid())
        connection, _ = server.accept()
        with caller, connection:
            if user == os.getuid():
                refuse_strangers()
            else:
                with pytest.raises(LostProcess, match=f"user {NOBODY} of this machine"):
                    refuse_strangers()
