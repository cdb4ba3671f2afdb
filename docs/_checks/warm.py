"""A `cosmoflow` that starts at once: forks of a process that has imported the libraries.

Each command of the documentation would import torch, numba and zarr for seconds. `serve` imports
them once and forks for every call; the script `cosmoflow` that :func:`install` writes hands its
arguments, environment, folder and streams to it, and exits with the command's code.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({place!r})
call = [sys.argv[1:], os.getcwd(), dict(os.environ)]
socket.send_fds(server, [json.dumps(call).encode()], [0, 1, 2])
process = int(server.recv(16))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(process, number))
sys.exit(int(server.recv(16) or 1))
"""
PRELOAD = ("simulate", "convert", "imports", "paint", "derive", "train", "infer", "evaluate",
           "spectra", "planning", "inspect", "view", "models")  # fmt: skip


def install(folder):
    """Write the script `cosmoflow` into a folder and start what it calls; return the process."""
    folder = Path(folder)
    place = str(folder / "warm.socket")
    script = folder / "cosmoflow"
    script.write_text(CLIENT.format(python=sys.executable, place=place))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for program in (script, python):
        program.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "docs._checks.warm", place], stdout=subprocess.PIPE
    )
    if server.stdout.readline() != b"ready\n":
        raise RuntimeError(f"the warm process ended with {server.wait()}")
    return server


def serve(place):
    """Fork for every call, until the process is ended or the one that started it is gone."""
    parent = os.getppid()
    # All but Ray, whose threads do not survive a fork.
    for stage in PRELOAD:
        __import__(f"cosmoflow.stages.{stage}")
    from cosmoflow.cli.app import main

    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(place)
    server.listen()
    server.settimeout(5.0)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while os.getppid() == parent:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            server.close()
            _answer(connection, main)
        connection.close()


def _answer(connection, main):
    content, streams, _, _ = socket.recv_fds(connection, 1 << 18, 3)
    connection.send(str(os.getpid()).encode())
    arguments, folder, environment = json.loads(content)
    code = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        # Streams remember whether a file or a pipe is behind them.
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        for number, name in ((1, "stdout"), (2, "stderr")):
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        sys.argv = ["cosmoflow", *arguments]
        # Usage lines name the program by this.
        sys.modules["__main__"].__package__ = None
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # Whoever called may have been ended.
    with contextlib.suppress(OSError):
        connection.send(str(code).encode())
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
