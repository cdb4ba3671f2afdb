"""An HTTP proxy before a stand-in for S3 that does to requests what a busy store and network do."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ANSWERS = {
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "refused": (
        403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist.",
    ),
}  # fmt: skip
"""Faults that are answers: status, and code and message of S3's XML body."""
RESETS = ("reset", "answer lost", "cut")
"""A connection that ends before the request is passed on, after it has been, and in mid-answer."""
STALL = "stall"
TRANSIENT = ("error", "slow down", *RESETS, STALL)
"""All faults that a client is to ride out."""
HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
"""Headers of an answer that are not passed on as they are."""
TRIES = 2
"""How often the same request meets a fault at random before it is let through."""


class FaultyProxy:
    """Passes requests on, or injects a fault and counts it.

    Parameters
    ----------
    target : str
        URL of the server.
    host : str
        Address to listen on.
    stall : float
        Seconds that a stall takes.
    latency : float
        Seconds by which every request is delayed.

    Attributes
    ----------
    injected, requests : Counter
        Faults by their names, requests by their methods.
    log : list of (str, str, str or None)
        Method, path with query, and range of every request.
    strangers : set of str
        Access keys whose requests are refused.
    """

    def __init__(self, target, host="127.0.0.1", stall=2.0, latency=0.0):
        self.target = urlsplit(target).netloc
        self.stall = stall
        self.latency = latency
        self.log = []
        self.injected = Counter()
        self.requests = Counter()
        self._lock = threading.Lock()
        self.strangers = set()
        self._asked = []
        self._chance = None
        self._seen = Counter()
        self._server = ThreadingHTTPServer((host, 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def inject(self, fault, *, method="GET", path="", times=1):
        """Let the next requests of a method, whose path has these letters in it, meet a fault."""
        self._asked += [(fault, method, path)] * times

    def inject_at_random(self, seed, rate, *, most, faults=TRANSIENT):
        """Let some of all requests meet a fault, ``most`` at the most.

        Which it is depends on the seed, the request and how often it came: not on the order in
        which workers ask.
        """
        self._seen.clear()
        self._chance = (seed, rate, sum(self.injected.values()) + most, faults)

    def pending(self):
        """Return what was asked for and has not happened."""
        return list(self._asked)

    def clear(self):
        """Inject nothing more."""
        self._asked, self._chance = [], None

    def fault_for(self, method, path, span):
        """Return the fault that a request is to meet, or None, and count it."""
        with self._lock:
            self.requests[method] += 1
            self.log.append((method, path, span))
            fault = self._choose(method, path, span)
            if fault is not None:
                self.injected[fault] += 1
            return fault

    def _choose(self, method, path, span):
        for index, (fault, wanted, part) in enumerate(self._asked):
            if wanted == method and part in path:
                del self._asked[index]
                return fault
        if self._chance is None:
            return None
        seed, rate, most, faults = self._chance
        self._seen[method, path, span] += 1
        times = self._seen[method, path, span]
        chance = random.Random(f"{seed} {method} {path} {span} {times}")
        if times > TRIES or sum(self.injected.values()) >= most or chance.random() >= rate:
            return None
        return chance.choice(faults)

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(proxy):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body in one packet: else each small answer waits for the client's delayed ack.
        wbufsize = 1 << 16

        def log_message(self, *_):
            pass

        def _pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            signed = self.headers.get("Authorization", "")
            if any(f"Credential={key}/" in signed for key in proxy.strangers):
                self._answer(*_error(*ANSWERS["refused"]))
                return
            fault = proxy.fault_for(self.command, self.path, self.headers.get("Range"))
            if fault == STALL or proxy.latency:
                time.sleep(proxy.stall if fault == STALL else proxy.latency)
            if fault in ANSWERS:
                self._answer(*_error(*ANSWERS[fault]))
                return
            if fault == "reset":
                self._reset()
                return
            status, headers, content = self._ask(body)
            if fault == "answer lost" or (fault == "cut" and not content):
                self._reset()
                return
            self._answer(status, headers, content, cut=fault == "cut")

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

        def _ask(self, body):
            server = http.client.HTTPConnection(proxy.target, timeout=60)
            try:
                # As it came, the name of the host included: that is part of what is signed.
                server.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in self.headers.items():
                    if name.lower() != "connection":
                        server.putheader(name, value)
                server.endheaders(body or None)
                answer = server.getresponse()
                content = answer.read()
                headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in HOP]
                size = answer.getheader("Content-Length") if self.command == "HEAD" else None
            finally:
                server.close()
            return answer.status, [*headers, ("Content-Length", size or len(content))], content

        def _answer(self, status, headers, content, *, cut=False):
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            self.wfile.flush()
            if cut:
                # What was sent arrives before the connection ends.
                time.sleep(0.05)
                self._reset()

        def _reset(self):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def handle(self):
            try:
                super().handle()
            except OSError:
                # The client went away, or we did.
                self.close_connection = True

        def finish(self):
            try:
                super().finish()
            except (OSError, ValueError):
                self.close_connection = True

    return Handler


def _error(status, code, message):
    content = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>'
        f"<Message>{message}</Message><RequestId>test</RequestId></Error>"
    ).encode()
    return status, [("Content-Type", "application/xml"), ("Content-Length", len(content))], content


@contextmanager
def faulty_proxy(target, **how):
    """Yield a proxy before a server; see :class:`FaultyProxy`."""
    proxy = FaultyProxy(target, **how)
    try:
        yield proxy
    finally:
        proxy.close()
