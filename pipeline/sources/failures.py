"""Why a camera cannot be opened or is lost, in one sentence with what to do.

The type of a library's error says little: a mute server raises `invalid data`, `exit` or `timeout`, and an unknown host name is
an `input/output error`. So the elapsed time and the current step are used first. If these are not enough, a test connection
decides. No message repeats a library's message, which may contain the address with its password.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from dataclasses import dataclass

import av

_PROBE_S = 1.5
"""Timeout of the test connection that finds out why a server does not answer, s."""


@dataclass(frozen=True)
class CameraLocation:
    """Where a camera is.

    Attributes:
        name: its name in messages.
        host, port: those of its server, or None without one.
        tls: whether it uses TLS.
        ca: file of certificates that are trusted in addition to the system's, or None.
        device: path of its device, or None.
    """

    name: str
    host: str | None = None
    port: int | None = None
    tls: bool = False
    ca: str | None = None
    device: str | None = None


def why_not_opened(error: av.FFmpegError, location: CameraLocation, took_s: float, open_s: float) -> str:
    """Why opening failed with an error after `took_s` seconds, where `open_s` were allowed."""
    if location.device is not None:
        return _of_device(error, location.device)
    said = _of_answer(error)
    if said is not None:
        return said
    late = took_s >= 0.9 * open_s
    if location.host is not None and location.port is not None:
        found = _of_network(location.host, location.port)
        if found is not None:
            return found
        if location.tls and (found := _of_tls(location.host, location.port, location.ca)):
            return found
        if late:
            return f"mute: it accepts connections and sends nothing for {open_s:g} s: start the camera again"
    elif late:
        return f"mute: nothing has come for {open_s:g} s: check that the sender runs, and its address and port"
    return "it sends no video that can be read here: check its path, and that it sends H.264, H.265 or MJPEG"


def why_broken(error: av.FFmpegError | None, location: CameraLocation, silent_s: float, read_s: float) -> str:
    """Why reading ended, with or without an error, after `silent_s` seconds without data."""
    if location.device is not None and error is not None and error.errno in (errno.ENODEV, errno.EIO, errno.ENXIO):
        return "unplugged: the device has gone: plug it in again"
    if silent_s >= 0.9 * read_s:
        return f"frozen: nothing has come for {read_s:g} s: look at the camera and its network"
    if error is not None and (said := _of_answer(error)) is not None:
        return said
    return "the connection was closed by the other side, or by the network between"


def _of_answer(error: av.FFmpegError) -> str | None:
    """The reason given by a server or the library, if it is clear."""
    if isinstance(error, (av.HTTPUnauthorizedError, av.HTTPForbiddenError)):
        return "wrong password: the server refuses this user and password: check both, and the camera's list of users"
    if isinstance(error, av.HTTPNotFoundError):
        return "not found (404): the server does not know this path: look it up in the camera's manual"
    if isinstance(error, av.HTTPServerError):
        return "the server reports a fault of its own (5xx): start the camera again"
    if isinstance(error, av.error.HTTPClientError):
        return "the server refuses this request (4xx): check the address"
    if isinstance(error, (av.DecoderNotFoundError, av.ProtocolNotFoundError, av.DemuxerNotFoundError)):
        return "codec: this build of FFmpeg cannot read what it sends: set the camera to H.264 or MJPEG"
    return None


def _of_device(error: av.FFmpegError, device: str) -> str:
    code = error.errno
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"unplugged: there is no {device}: plug the camera in; `convnextpose cameras` lists those that are there"
    if code == errno.EBUSY:
        return f"busy: another program has {device} open: close it (`fuser {device}` names it)"
    if code in (errno.EACCES, errno.EPERM):
        return f"not allowed to open {device}: add the user to the group video, and log in again"
    if code == errno.EINVAL:
        return f"{device} has no such size, rate or format, or is no camera: `convnextpose cameras` lists what it has"
    reason = os.strerror(code) if code and code > 0 else "its driver reports a fault"
    return f"{device} cannot be opened ({reason}): plug it in again"


def _of_network(host: str, port: int) -> str | None:
    """Why a server cannot be reached, or None if it accepts a connection."""
    try:
        socket.create_connection((host, port), timeout=_PROBE_S).close()
    except socket.gaierror:
        return f"its name is unknown: no host {host} was found: check the spelling, or give the camera's IP address"
    except ConnectionRefusedError:
        return f"refused: nothing listens at port {port} of {host}: check the port, and that the camera is on"
    except TimeoutError:
        return f"not reached: {host} does not answer at port {port}: check that it is on, and in the same network"
    except OSError as error:
        return f"not reached: {host} cannot be reached ({error.strerror or 'no reason given'}): check the network"
    return None


def _of_tls(host: str, port: int, ca: str | None) -> str | None:
    """Why TLS fails, or None if it works."""
    try:
        context = ssl.create_default_context()
        if ca is not None:
            context.load_verify_locations(ca)
        with (
            socket.create_connection((host, port), timeout=_PROBE_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        return (
            f"TLS: its certificate is not trusted ({error.verify_message}): give the certificate of its authority with "
            "#ca=FILE, or #verify=no in a network that you trust"
        )
    except TimeoutError:
        return None  # no answer
    except OSError:
        return "TLS: no encrypted connection can be made: check that this port uses TLS"
