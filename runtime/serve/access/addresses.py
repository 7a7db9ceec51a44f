"""Addresses of this machine: those that other machines can use, and that of a connection."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Iterator

__all__ = ["LOCAL_NAMES", "address_of", "is_local", "reachable_addresses", "url_of"]

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
# Addresses for documentation (RFC 5737, RFC 3849): they tell the way out, and nothing is sent there.
_OUTSIDE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
_DISCARD = 9
# Of Linux: netdevice(7).
_FLAGS, _ADDRESS, _RUNNING, _REQUEST_BYTES = 0x8913, 0x8915, 0x40, 40
# The addresses of a machine that are shown.
_MOST = 4


def address_of(text: str) -> str | None:
    """Return an IP address as browsers write it, without brackets; None for another text.

    IPv4 in IPv6, as a socket for both has it, becomes IPv4.
    """
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def is_local(host: str) -> bool:
    """Tell whether only this machine itself can reach a host."""
    address = address_of(host)
    return host in LOCAL_NAMES or (address is not None and ipaddress.ip_address(address).is_loopback)


def url_of(host: str, port: int) -> str:
    """Return the address of a page."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def reachable_addresses(listening: socket.socket) -> tuple[str, ...]:
    """Return the addresses by which other machines reach a socket, the likeliest first."""
    bound = address_of(listening.getsockname()[0])
    if bound is None or ipaddress.ip_address(bound).is_loopback:
        return ()
    if not ipaddress.ip_address(bound).is_unspecified:
        return (bound,)
    found = dict.fromkeys(address for address in _of_machine(_families(listening)) if _is_reachable(address))
    return tuple(found)[:_MOST]


def _families(listening: socket.socket) -> tuple[socket.AddressFamily, ...]:
    if listening.family == socket.AF_INET:
        return (socket.AF_INET,)
    alone = listening.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    return (socket.AF_INET6,) if alone else (socket.AF_INET, socket.AF_INET6)


def _of_machine(families: tuple[socket.AddressFamily, ...]) -> Iterator[str]:
    """Yield the address of the way out, then those of the interfaces."""
    for family in families:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_OUTSIDE[family], _DISCARD))  # of a datagram: it only chooses the interface
            yield str(probe.getsockname()[0])
    if socket.AF_INET in families:
        yield from _of_interfaces()


def _of_interfaces() -> Iterator[str]:
    """Yield the IPv4 address of each interface in use, where the system is Linux."""
    if sys.platform != "linux":
        return
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = name.encode().ljust(_REQUEST_BYTES, b"\0")
            with contextlib.suppress(OSError):  # an interface without an address
                flags = fcntl.ioctl(probe, _FLAGS, request)
                address = fcntl.ioctl(probe, _ADDRESS, request)
                if int.from_bytes(flags[16:18], sys.byteorder) & _RUNNING:
                    yield socket.inet_ntoa(address[20:24])


def _is_reachable(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    return not (address.is_loopback or address.is_unspecified or address.is_link_local)
