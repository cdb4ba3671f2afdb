"""A stand-in for S3 on this machine, where there is one: moto of whichever Python has it."""

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest


@contextmanager
def s3_bucket(name):
    """Serve an empty bucket; the environment says where to all processes that are started."""
    python = shutil.which("python3", path=os.environ["PATH"].split(":", 1)[-1]) or "python3"
    found = subprocess.run([python, "-c", "import moto.server"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("moto is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }  # fmt: skip
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(
                    urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=5
                )
                break
            except OSError:
                time.sleep(0.1)
        yield f"s3://{name}"
    finally:
        server.terminate()
        server.wait(10)
        os.environ.clear()
        os.environ.update(before)
