"""Nodes with addresses of their own: a Linux network namespace for each, on a bridge."""

import ipaddress
import os
import subprocess
from contextlib import contextmanager, suppress

import pytest

SUBNETS = ipaddress.ip_network("10.199.0.0/16").subnets(new_prefix=24)


def _ip(*arguments):
    return subprocess.run(
        ["ip", *arguments], check=True, capture_output=True, text=True, timeout=20
    ).stdout


def _free_subnet():
    """Return a subnet that this machine has no route to."""
    taken = _ip("-4", "addr") + _ip("-4", "route", "show", "table", "all")
    return next(net for net in SUBNETS if str(net.network_address)[:-1] not in taken)


ALONE = ("sh", "-c", 'mount -t tmpfs own "$0" && exec "$@"')
"""Begins a command with a file system of its own in a folder; `ip netns exec` hides it from all."""


@contextmanager
def namespaces(count, private):
    """Make network namespaces that can reach one another and this machine.

    Parameters
    ----------
    count : int
        Their number.
    private : Path
        A folder that is another one for each: the place for temporary files.

    Yields
    ------
    str, list of (str, list of str)
        The address that this machine has among them; of each its address, and what a command line
        that is to run in it begins with.
    """
    name = f"cf{os.getpid() % 100_000}"
    made = []
    try:
        try:
            net = _free_subnet()
            hosts = [str(host) for _, host in zip(range(count + 1), net.hosts(), strict=False)]
            _ip("link", "add", name, "type", "bridge")
            made.append(("link", "delete", name))
            _ip("addr", "add", f"{hosts[0]}/{net.prefixlen}", "dev", name)
            _ip("link", "set", name, "up")
            places = []
            for index, address in enumerate(hosts[1:]):
                space, outer = f"{name}-{index}", f"{name}.{index}"
                _ip("netns", "add", space)
                made.append(("netns", "delete", space))
                _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
                # A namespace whose last process is slow to end would keep the pair, and its name.
                made.append(("link", "delete", outer))
                _ip("link", "set", outer, "master", name, "up")
                inside = ("-n", space)
                _ip(*inside, "addr", "add", f"{address}/{net.prefixlen}", "dev", "eth0")
                for device in ("lo", "eth0"):
                    _ip(*inside, "link", "set", device, "up")
                # By its way out a process finds its own address; nothing is sent there.
                _ip(*inside, "route", "add", "default", "via", hosts[0])
                places.append((address, ["ip", "netns", "exec", space, *ALONE, str(private)]))
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or error
            pytest.skip(f"network namespaces cannot be made here: {said}")
        yield hosts[0], places
    finally:
        for command in reversed(made):
            with suppress(subprocess.SubprocessError, OSError):
                _ip(*command)
