"""Cameras that FFmpeg reads: how they are opened, and their pictures with their times."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import IO, Any, Literal, Protocol

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from convnextpose.errors import SourceError
from pipeline.sources.clocks import of_monotonic, of_sender
from pipeline.sources.decoding import ANY_METADATA, Decode, accelerator, decoding_notes
from pipeline.sources.failures import CameraLocation, why_broken, why_not_opened
from pipeline.sources.limits import DECODER_OPTIONS, check_size, decoder_options
from pipeline.sources.live import ConnectionLost, LiveSource, Picture, StreamEnded
from pipeline.sources.orientation import UPRIGHT, Orientation
from pipeline.sources.source import OpenOptions
from pipeline.sources.timeouts import Timeouts

_WITHOUT_STAMPS = frozenset({"mpjpeg", "mjpeg", "jpeg_pipe", "image2pipe", "h264", "hevc"})
"""Formats without time stamps of their own: for them FFmpeg invents 25 frames a second."""

_KEPT_STAMPS = 64
"""Number of senders' time stamps that are kept until their pictures are decoded."""

_DAMAGED = "its data is damaged"

DAMAGE_LASTS_S = 5.0
"""After damage, pictures are skipped until one arrives that depends on no other, but no longer than this, s."""


class Feed(Protocol):
    """A stream that FFmpeg reads instead of an address.

    Attributes:
        file: the file that FFmpeg reads.
    """

    file: IO[bytes]

    def end(self) -> None:
        """End the writer, so that a read in progress ends; calling it again does nothing."""
        ...

    def why(self) -> str | None:
        """Why it has ended, in one sentence, or None if unknown."""
        ...


@dataclass(frozen=True)
class Input:
    """How FFmpeg opens a camera.

    Attributes:
        address: the address with its password; or a function that starts a `Feed` instead.
        location: the address without its password, for messages.
        format: FFmpeg's name of the format, or None to detect it.
        options: FFmpeg's options.
        kernel_clock: whether time stamps are of the kernel's CLOCK_MONOTONIC.
        flip: how its pictures are rotated or mirrored.
        ends: whether a source of known length ends for good, instead of reconnecting.
    """

    address: str | Callable[[], Feed]
    location: CameraLocation
    format: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    kernel_clock: bool = False
    flip: Orientation = UPRIGHT
    ends: bool = False

    def source(self, open_options: OpenOptions) -> LiveSource:
        """The live source that reads this camera."""
        connect = partial(FfmpegConnection, self, decode=open_options.decode)
        return LiveSource(
            self.location.name, connect, timeouts=open_options.timeouts, notes=decoding_notes(open_options.decode)
        )

    def connect(self, timeouts: Timeouts) -> FfmpegConnection:
        """Open the camera; the CPU decodes.

        Raises:
            ConnectionLost: it cannot be opened.
        """
        return FfmpegConnection(self, timeouts)


class FfmpegConnection:
    """An open camera; see `pipeline.sources.live.Connection`."""

    def __init__(self, camera: Input, timeouts: Timeouts, decode: Decode = Decode.CPU) -> None:
        """Open it.

        Raises:
            ConnectionLost: it cannot be opened.
        """
        self._camera = camera
        self._read_s = timeouts.read_s
        self._feed: Feed | None = None
        self._hwaccel = accelerator(decode)
        begin = time.monotonic()
        try:
            self._container = self._open(timeouts)
        except av.FFmpegError as error:
            took_s = time.monotonic() - begin
            cause = self._why_of_feed() or why_not_opened(error, camera.location, took_s, timeouts.open_s)
            self._end_feed()
            raise ConnectionLost(cause) from None  # the library's error contains the address, with its password
        try:
            self._stream = self._choose()
        except BaseException:
            self.close()
            raise
        name = self._container.format.name
        # FFmpeg delivers HLS in whole segments, and a file from a server as fast as it can.
        length = self._container.duration
        self._ends = camera.ends and length is not None and length > 0
        self.paced = "hls" in name or self._ends
        self._stamped = not set(name.split(",")) & _WITHOUT_STAMPS
        rate = self._stream.average_rate or self._stream.guessed_rate if self._stamped else None
        self.frame_rate = float(rate) if rate and 1 <= rate <= 1000 else None
        decoder = self._stream.codec_context
        self.description = f"{decoder.width}x{decoder.height}, {decoder.name}" if decoder.width else decoder.name

    def _open(self, timeouts: Timeouts) -> InputContainer:
        camera = self._camera
        options = {**DECODER_OPTIONS, **camera.options}
        # Opening has two parts, each with a timeout. A server that does not answer fails in the first. Without a server, both
        # parts wait for the same data, so each gets half the time.
        open_s = timeouts.open_s if camera.location.host is not None else timeouts.open_s / 2
        settings: dict[str, Any] = {
            "format": camera.format,
            "options": options,
            "timeout": (open_s, timeouts.read_s),
            "hwaccel": self._hwaccel,
            **ANY_METADATA,
        }
        if isinstance(camera.address, str):
            return av.open(camera.address, "r", **settings)
        self._feed = camera.address()
        return av.open(self._feed.file, "r", **settings)

    def _choose(self) -> VideoStream:
        decodable = [
            stream for stream in self._container.streams.video if isinstance(stream.codec_context, av.VideoCodecContext)
        ]
        if not decodable:
            unknown = "this build of FFmpeg cannot read what it sends"
            what = unknown if self._container.streams.video else "it sends no video"
            raise ConnectionLost(f"codec: {what}: set the camera to H.264 or MJPEG")
        stream = max(decodable, key=lambda each: each.codec_context.width * each.codec_context.height)
        decoder = stream.codec_context
        try:
            check_size(decoder.width, decoder.height, self._camera.location.name)
        except SourceError as error:
            raise ConnectionLost(f"size: {error}") from None
        decoder.thread_type = "NONE"  # threads would delay pictures
        decoder.thread_count = 1
        decoder.options = decoder_options(decoder.name)
        return stream

    def __iter__(self) -> Iterator[Picture | str]:
        """The pictures.

        Raises:
            ConnectionLost: the connection broke.
            StreamEnded: it was a file, and it has ended.
        """
        senders: dict[int, int] = {}
        damaged_since: float | None = None
        begun = False
        orientation: Orientation | None = None
        for packet in self._packets():
            arrived_ns = time.time_ns()
            sent_us = _sent_us(packet)
            if sent_us is not None and packet.pts is not None:
                senders[packet.pts] = sent_us
                if len(senders) > _KEPT_STAMPS:
                    del senders[next(iter(senders))]
            begin_ns = time.perf_counter_ns()
            try:
                pictures = packet.decode()
            except av.FFmpegError:
                if begun:  # a stream joined in the middle cannot be decoded before its first complete picture
                    damaged_since = damaged_since or time.monotonic()
                    yield _DAMAGED
                continue
            for picture in pictures:
                if picture.is_corrupt:  # decoders conceal damage by guessing pixels
                    damaged_since = damaged_since or time.monotonic()
                elif picture.key_frame or (damaged_since and time.monotonic() - damaged_since > DAMAGE_LASTS_S):
                    damaged_since = None
                if damaged_since is not None:
                    if begun:
                        yield _DAMAGED
                    continue
                begun = True
                if orientation is None:
                    orientation = Orientation.of_picture(picture)
                try:
                    image = self._image(picture, orientation)
                except SourceError as error:
                    yield str(error)
                    continue
                decode_ns = time.perf_counter_ns() - begin_ns
                yield replace(self._timed(picture, image, arrived_ns, senders), decode_ns=decode_ns)
                begin_ns = time.perf_counter_ns()

    def abort(self) -> None:
        """End its feed, if any; a read by FFmpeg itself ends at its timeout."""
        if self._feed is not None:
            self._feed.end()

    def close(self) -> None:
        """Release its resources."""
        self.abort()
        with suppress(av.FFmpegError):
            self._container.close()
        self._end_feed()

    def _end_feed(self) -> None:
        if self._feed is not None:
            self._feed.end()
            self._feed.file.close()

    def _why_of_feed(self) -> str | None:
        return None if self._feed is None else self._feed.why()

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        packets = self._container.demux(self._stream)
        while True:
            begin = time.monotonic()
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                raise self._broken(error, time.monotonic() - begin) from None
            if packet is None or not packet.size:
                if self._ends:
                    raise StreamEnded
                raise self._broken(None, time.monotonic() - begin)
            yield packet

    def _broken(self, error: av.FFmpegError | None, silent_s: float) -> ConnectionLost:
        return ConnectionLost(self._why_of_feed() or why_broken(error, self._camera.location, silent_s, self._read_s))

    def _timed(self, picture: VideoFrame, image: NDArray[np.uint8], arrived_ns: int, senders: dict[int, int]) -> Picture:
        clock: Literal["kernel", "sender", "arrival"] = "arrival"
        base = picture.time_base or self._stream.time_base or Fraction(1, 90_000)
        stream_s = None if picture.pts is None or not self._stamped else float(picture.pts * base)
        taken_ns = None
        if picture.pts is not None:
            if self._camera.kernel_clock:
                taken_ns, clock = of_monotonic(float(picture.pts * base)), "kernel"
            elif picture.pts in senders:
                taken_ns, clock = of_sender(senders[picture.pts]), "sender"
        if taken_ns is None:
            taken_ns, clock = arrived_ns, "arrival"
        return Picture(image, stream_s, taken_ns, clock)

    def _image(self, picture: VideoFrame, orientation: Orientation) -> NDArray[np.uint8]:
        check_size(picture.width, picture.height, self._camera.location.name)
        try:
            image = np.ascontiguousarray(picture.to_ndarray(format="bgr24", threads=1), np.uint8)
        except av.FFmpegError:
            raise SourceError(_DAMAGED) from None
        return self._camera.flip.apply(orientation.apply(image))


def _sent_us(packet: Packet[Any]) -> int | None:
    """When the sender captured a packet's picture, us since 1970: FFmpeg's AVProducerReferenceTime, from RTCP's reports."""
    if not packet.has_sidedata("prft"):
        return None
    data = bytes(packet.get_sidedata("prft"))
    return int(struct.unpack_from("=q", data)[0])
