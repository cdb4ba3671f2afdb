"""A stand-in for S3 on this machine: moto's server."""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

START_SECONDS = 240.0


@contextmanager
def s3_server(host="127.0.0.1"):
    """Serve S3 without a bucket, to be had under the URL that this yields."""
    pytest.importorskip("moto.server", reason="moto is not installed")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as written:
            # A port of its own choice: one that we choose may be taken when it comes to it.
            server = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", host, "-p", "0"],
                stdout=written, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            yield _url_of(server, log)
        finally:
            server.terminate()
            server.wait(120)


def _url_of(server, log):
    deadline = time.monotonic() + START_SECONDS
    while not (said := [w for w in log.read_text().split() if w.startswith("http://")]):
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return said[0].rstrip("/")


def make_bucket(endpoint, name):
    """Make an empty bucket."""
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    with urllib.request.urlopen(request, timeout=30):
        pass


def restricted_user(endpoint):
    """Let a server check signatures from now on; return key and secret of its one user."""
    import boto3

    iam = boto3.client(
        "iam", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test",
        aws_secret_access_key="test",
    )  # fmt: skip
    iam.create_user(UserName="user")
    key = iam.create_access_key(UserName="user")["AccessKey"]
    allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName="user", PolicyName="s3", PolicyDocument=policy)
    plain = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", data=b"0", headers=plain)
    with urllib.request.urlopen(request, timeout=30):
        pass
    return key["AccessKeyId"], key["SecretAccessKey"]


def settings_of(endpoint, key="test", secret="test"):
    """Return the environment variables by which a process finds a server."""
    return {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false", "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
    }  # fmt: skip


@contextmanager
def using(settings):
    """Have environment variables for a while, here and in all processes that are started."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class MemoryObjects:
    """Objects in the memory of this process, with what `storage.objects.Objects` can do.

    Attributes
    ----------
    contents : dict of str to bytes
        What is stored.
    changed : dict of str to datetime
        When, by a clock that a test moves on.
    """

    def __init__(self):
        self.contents, self.changed = {}, {}
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def pass_time(self, seconds):
        self.now += timedelta(seconds=seconds)

    def put(self, name, content):
        self.contents[name], self.changed[name] = b"".join(content()), self.now

    def read(self, name, start, stop):
        return self._find(name)[start:stop]

    def read_end(self, name, size):
        found = self._find(name)
        return found[-size:], len(found)

    def _find(self, name):
        if name not in self.contents:
            raise FileNotFoundError(name)
        return self.contents[name]

    def list(self, prefix=""):
        inside = f"{prefix}/" if prefix else ""
        return iter([item for item in self.changed.items() if item[0].startswith(inside)])

    def delete(self, names):
        for name in names:
            self.contents.pop(name, None)
            self.changed.pop(name, None)


@contextmanager
def s3_bucket(name):
    """Serve an empty bucket; the environment says where to all processes that are started."""
    with s3_server() as endpoint, using(settings_of(endpoint)):
        make_bucket(endpoint, name)
        yield f"s3://{name}"
