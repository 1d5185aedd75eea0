"""Asks the fork server to run a command, with no library but Python's own: it starts in 30 ms.

As a program, ``fork_client.py SOCKET WORD…`` stands for ``python -m llmctl WORD…``.
"""

import json
import os
import signal
import socket
import sys


def ask(address, request, streams):
    """Run a command on these streams to its end; its exit code, negative where a signal ended it.
    Raises RuntimeError if the server ended."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(address)
        socket.send_fds(server, [json.dumps(request).encode()], streams)
        pid = server.recv(64)
        if pid and __name__ == "__main__":  # what stops this program is meant for that process
            signal.signal(signal.SIGTERM, lambda number, frame: os.kill(int(pid), number))
        answer = server.recv(64)
    if not answer:
        raise RuntimeError("the fork server ended")
    return int(answer)


if __name__ == "__main__":
    request = {
        "words": sys.argv[2:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "largest_file": None,
    }
    code = ask(sys.argv[1], request, [0, 1, 2])
    sys.exit(code if code >= 0 else 128 - code)
