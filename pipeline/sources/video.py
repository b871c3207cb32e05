"""Video files: the choice of stream, the pictures, their time stamps, and the behaviour at damaged data.

By default damage ends a video: every frame before it is given, then a SourceError says at which frame it broke. If damage is
skipped, the video continues at the next picture that depends on no other, and each frame lost before is an UnreadableFrame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from convnextpose.errors import SourceError
from pipeline.sources.decoding import ANY_METADATA, Decode, accelerator, decoding_notes
from pipeline.sources.gaps import CUT_SHORT, Gap, Loss
from pipeline.sources.limits import DECODER_OPTIONS, check_size, decoder_options
from pipeline.sources.orientation import Orientation
from pipeline.sources.source import FileSource, OnDamage
from pipeline.sources.stamps import PresentationClock
from pipeline.sources.truncation import FilePart, is_cut_short, whole_length
from pipeline.types import Frame, SourceInfo, UnreadableFrame

_TEXT_CODECS = frozenset({"ansi", "bintext", "idf", "xbin"})
"""FFmpeg reads text files as videos of a terminal: such files are refused."""

_BEGIN_ANYWHERE = frozenset({"mpegts", "mpeg", "h264", "hevc"})
"""Formats of recordings that may begin between key frames: data before their first complete picture is not damage."""

_WITHOUT_CLOCK = frozenset({"h264", "hevc"})
"""Formats without time stamps: FFmpeg assumes 25 frames a second, although the stream itself may declare a rate."""

_PACKETS_VANISH = frozenset({"mpegts", "mpeg"})
"""Formats in which damage removes complete packets; in others every packet exists, damaged or not."""

_INVALID_DATA = av.error.tag_to_code(b"INDA")
_DAMAGED = "its data is damaged"

_ASSUMED_FRAME_RATE = 25
"""Spacing of frames without time stamps in a stream that doesn't state its frame rate."""

_PACKETS_AHEAD, _BYTES_AHEAD = 32, 1 << 23
"""How far packets are read ahead of the pictures, so that their time stamps are known: whichever limit is reached first."""

_AVI_CHUNK_HEAD = 8
"""Size of a chunk's header, bytes: the index has the chunk's position, packets that of its data."""


@dataclass(frozen=True)
class _Picture:
    """A decoded picture and its time in ticks of the stream."""

    picture: VideoFrame
    time: Fraction


class VideoSource(FileSource):
    """One stream of moving pictures of a file.

    time_s is the stream's own time since its first frame, so variable frame rates are kept (see PresentationClock).
    """

    def __init__(
        self,
        path: Path,
        stream: int | None = None,
        on_damage: OnDamage = OnDamage.STOP,
        decode: Decode = Decode.CPU,
    ) -> None:
        """Open the file and decode its first frame.

        Raises:
            SourceError: it is not a video, it is too large, it has no such stream, or no frame of it can be decoded.
        """
        self._path = path
        self._skips = on_damage is OnDamage.SKIP
        self._decode_by = decode
        self._container = _open_container(path, accelerator(decode))
        try:
            self._stream, notes = _choose_stream(self._container, path, stream)
            self._begin(notes)
        except BaseException:
            self._container.close()
            raise

    def _begin(self, notes: tuple[str, ...]) -> None:
        rate = self._stream.average_rate or self._stream.guessed_rate
        if self._container.format.name in _WITHOUT_CLOCK:
            rate = self._stream.codec_context.framerate or rate
        self._time_base = self._stream.time_base or Fraction(1, 90_000)
        self._step = 1 / ((rate or _ASSUMED_FRAME_RATE) * self._time_base)
        self._clock = PresentationClock(self._step, 1 / self._time_base)
        self._seen = 0  # packets of an AVI, including missing ones
        self._shift = 0  # the amount by which their numbers are too low
        self._numbers: dict[int, int] | None = None  # numbers of an AVI's packets by their positions in the file
        self._gap = Gap(self._step, packets_count=self._container.format.name not in _PACKETS_VANISH)
        super().__init__()
        self._decoded = self._decode()
        self._before: list[Loss] = []
        for item in self._decoded:
            if isinstance(item, _Picture):
                break
            self._before.append(item)
        else:
            raise SourceError(f"expected a video, but no frame of {self._path} can be decoded")
        self._first = item
        self._orientation = Orientation.of_picture(item.picture)
        try:
            image = self._image(item.picture)
        except SourceError as error:
            raise self._broken(0, str(error)) from error
        self.info = SourceInfo(
            id=self._path.name,
            live=False,
            width=image.shape[1],
            height=image.shape[0],
            frame_rate=float(rate) if rate else None,
            frame_count=self._stream.frames or None,
            notes=(*notes, *decoding_notes(self._decode_by, self._stream.codec_context)),
        )

    def close(self) -> None:
        """End the frames and close the file."""
        super().close()
        with self._lock:
            self._container.close()

    def _read(self) -> Generator[Frame | UnreadableFrame, None, None]:
        name, index = self.info.id, 0
        for item in chain(self._before, [self._first], self._decoded):
            if isinstance(item, _Picture):
                try:
                    image = self._image(item.picture)
                except SourceError as error:
                    if not self._skips:
                        raise self._broken(index, str(error)) from error
                    item = Loss(str(error), 1)
                else:
                    time_s = float((item.time - self._first.time) * self._time_base)
                    yield Frame(image, name, index, time_s)
                    index += 1
                    continue
            for reason in item.reasons():
                yield UnreadableFrame(name, index, reason)
                index += 1

    def _decode(self) -> Generator[_Picture | Loss, None, None]:
        """The pictures in display order; SourceError or a Loss where the stream breaks."""
        gap, decoder = self._gap, self._stream.codec_context
        count = lost = 0
        for packet in self._packets():
            if self._closing.is_set():
                return
            error: av.FFmpegError | None = None
            try:
                if isinstance(packet, av.FFmpegError):
                    raise packet
                if gap.awaits_key_packet and packet.size and not packet.is_keyframe:
                    gap.packets += 1
                    continue
                gap.awaits_key_packet = False
                pictures = packet.decode()
            except av.FFmpegError as failure:
                if count == 0 and self._container.format.name in _BEGIN_ANYWHERE and isinstance(failure, av.InvalidDataError):
                    continue
                error = failure
                pictures = self._held_back()
                gap.open(_reason(error))
            for picture in pictures:
                if picture.is_corrupt:  # decoders conceal damage by guessing pixels
                    if not self._skips:
                        raise self._broken(count, _DAMAGED)
                    gap.open(_DAMAGED)
                    gap.awaits_key_picture = True
                if gap.awaits_key_picture and (picture.is_corrupt or not picture.key_frame):
                    gap.packets += 1
                    continue
                item = self._timed(picture)
                if error is None and not picture.key_frame and gap.misses(item.time):  # it may depend on missing pictures
                    gap.open(_DAMAGED)
                    gap.awaits_key_picture = True
                    gap.packets += 1
                    continue
                loss = gap.before(item.time, held_back=error is not None)
                if loss is not None and self._skips:
                    lost += loss.count or 0
                    yield loss
                yield item
                count += 1
            if error is not None:
                if not self._skips:
                    raise self._broken(count, _reason(error)) from error
                decoder.flush_buffers()
                gap.packets += 1
                gap.awaits_key_packet = True
        missing = self._stream.frames - count - lost if self._stream.frames else None
        if is_cut_short(self._path) and (missing is None or missing > 0):
            gap.reason = CUT_SHORT
        elif self._container.format.name == "avi" and (self._seen < self._stream.frames or (self._shift and not self._skips)):
            gap.open(_DAMAGED)
        if gap.reason is None:
            return
        if not self._skips:
            raise self._broken(count, gap.reason)
        yield gap.at_end(gap.reason) if missing is None else Loss(gap.reason, missing)

    def _packets(self) -> Generator[Packet[VideoStream] | av.FFmpegError, None, None]:
        """The stream's packets, the last one empty; an FFmpegError in place of one that is incomplete or cannot be read.

        In transport streams the previous packet may be marked as corrupt instead. If a key frame follows, this is the seam
        between joined streams, not damage. MPEG program streams also mark complete pictures next to a damaged one, so there
        the decoder decides.
        """
        trusted = self._container.format.name != "mpeg"
        demuxed = self._container.demux(self._stream)
        ahead: deque[Packet[VideoStream] | av.FFmpegError] = deque()
        size = 0
        failed = ended = False
        while ahead or not ended:
            while not ended and (len(ahead) < 3 or (len(ahead) < _PACKETS_AHEAD and size < _BYTES_AHEAD)):
                try:
                    packet = next(demuxed, None)
                except av.FFmpegError as error:
                    ahead.append(error)
                    ended = failed or not self._skips  # twice in a row: there are no more packets
                    failed = True
                    demuxed = self._container.demux(self._stream)
                    continue
                failed = False
                if packet is None:
                    ended = True
                    continue
                if self._container.format.name == "avi" and self._misses(packet) and (self._skips or not packet.is_keyframe):
                    ahead.append(av.InvalidDataError(_INVALID_DATA, _DAMAGED))
                ahead.append(packet)
                size += packet.size
                if packet.size and packet.pts is not None:
                    self._clock.announce(packet.pts)
            if not ahead:
                return
            first = ahead.popleft()
            if isinstance(first, av.FFmpegError):
                yield first
                continue
            size -= first.size
            if trusted and first.is_corrupt and not self._is_seam(first, islice(ahead, 2)):
                yield av.InvalidDataError(_INVALID_DATA, _DAMAGED)
            else:
                yield first

    def _is_seam(self, first: Packet[VideoStream], following: Iterable[Packet[VideoStream] | av.FFmpegError]) -> bool:
        """Whether a key frame follows, and no time is missing before it."""
        for distance, packet in enumerate(following, 1):
            if not isinstance(packet, av.FFmpegError) and packet.is_keyframe:
                if first.dts is None or packet.dts is None or not self._gap.regular:
                    return True
                return bool(packet.dts - first.dts < (distance + 0.5) * self._step)
        return False

    def _misses(self, packet: Packet[VideoStream]) -> bool:
        """Whether pictures are missing before a packet of an AVI; corrects the packet's number, which is its stamp.

        After damage FFmpeg searches an AVI for the next complete picture, so pictures are lost without a sign. The stamps
        number the chunks that exist, including empty ones that repeat the previous picture. The index has the true numbers.
        """
        if packet.dts is None:
            return False
        entries = self._stream.index_entries
        if self._numbers is None:
            near = entries.search_timestamp(packet.dts, any_frame=True)
            if near < 0 or entries[near].pos + _AVI_CHUNK_HEAD != packet.pos:
                self._numbers = {entry.pos + _AVI_CHUNK_HEAD: entry.timestamp for entry in entries}
        shift = self._shift
        if self._numbers is not None and packet.pos in self._numbers:
            shift = max(shift, self._numbers[packet.pos] - packet.dts)
        misses, self._shift = shift > self._shift, shift
        packet.dts += shift
        if packet.pts is not None:
            packet.pts += shift
        self._seen = packet.dts + 1
        return misses

    def _timed(self, picture: VideoFrame) -> _Picture:
        key, bidirectional = bool(picture.key_frame), picture.pict_type == PictureType.B
        return _Picture(picture, self._clock.show(picture.pts, key=key, bidirectional=bidirectional))

    def _held_back(self) -> list[VideoFrame]:
        """The pictures before a break that the decoder still holds for reordering."""
        try:
            return self._stream.codec_context.decode(None)
        except av.FFmpegError:
            return []

    def _broken(self, count: int, reason: str) -> SourceError:
        if is_cut_short(self._path):
            reason = CUT_SHORT
        promised = f" of {self._stream.frames}" if self._stream.frames > count else ""
        return SourceError(f"{self._path.name} broke at frame {count}{promised}: {reason}")

    def _image(self, picture: VideoFrame) -> NDArray[np.uint8]:
        check_size(picture.width, picture.height, self._path)
        try:
            # One thread: starting more costs more than it saves. Rows of an odd width are padded.
            image = np.ascontiguousarray(picture.to_ndarray(format="bgr24", threads=1), np.uint8)
        except av.FFmpegError as error:
            raise SourceError(_reason(error)) from error
        return self._orientation.apply(image)


def _open_container(path: Path, hwaccel: HWAccel | None) -> InputContainer:
    address = f"file:{path}"  # with its protocol, because text before a colon in a name would be taken for one
    try:
        return av.open(address, "r", options=DECODER_OPTIONS, hwaccel=hwaccel, **ANY_METADATA)
    except av.FFmpegError as error:
        # A fragmented MP4 that ends inside a fragment's index is refused, although the fragments before it are complete.
        if length := whole_length(path):
            whole = FilePart(path, length)
            try:
                return av.open(whole, "r", format="mp4", options=DECODER_OPTIONS, hwaccel=hwaccel)
            except av.FFmpegError:
                whole.close()
        reason = CUT_SHORT if is_cut_short(path) else _reason(error)
        raise SourceError(f"expected a video or a picture, but {path} cannot be read as one: {reason}") from error


def _choose_stream(container: InputContainer, path: Path, number: int | None) -> tuple[VideoStream, tuple[str, ...]]:
    """The stream of moving pictures to read, set to decode in the calling thread, and a note if there was a choice.

    As in players: the one marked as default, then the largest, then the first; a song's cover picture does not count.
    """
    no_video = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & no_video]
    if not streams:
        if container.streams.audio:
            raise SourceError(f"expected a video, but {path} holds only sound")
        raise SourceError(f"expected a video, but {path} holds none" + (f": {CUT_SHORT}" if is_cut_short(path) else ""))
    if number is not None and not 0 <= number < len(streams):
        there = "only stream 0" if len(streams) == 1 else f"streams 0 to {len(streams) - 1}"
        raise SourceError(f"expected a video stream that {path} has, received {number}: it has {there}")

    def preference(stream: VideoStream) -> tuple[bool, bool, int, int]:
        decodable = isinstance(stream.codec_context, av.VideoCodecContext)
        default = bool(stream.disposition & Disposition.default)
        return decodable, default, _pixels(stream), stream.frames

    stream = max(streams, key=preference) if number is None else streams[number]
    decoder = stream.codec_context
    if not isinstance(decoder, av.VideoCodecContext):
        raise SourceError(f"expected a video, but the codec of {path} is unknown: convert it, for example to H.264 in MP4")
    if decoder.name in _TEXT_CODECS:
        raise SourceError(f"expected a video or a picture, but {path} holds text")
    check_size(decoder.width, decoder.height, path)
    # More threads cost more processor time for the same frames, and the other stages have work for every core.
    decoder.thread_type = "NONE"
    decoder.thread_count = 1
    decoder.options = decoder_options(decoder.name)
    if number is not None or len(streams) == 1 or stream.frames > 1 == max(s.frames for s in streams if s is not stream):
        return stream, ()
    others = ", ".join(f"{n} ({_size(other)})" for n, other in enumerate(streams) if other is not stream)
    return stream, (f"video stream {streams.index(stream)} ({_size(stream)}) is read; choose another with --stream: {others}",)


def _pixels(stream: VideoStream) -> int:
    decoder = stream.codec_context
    return decoder.width * decoder.height if isinstance(decoder, av.VideoCodecContext) else 0


def _size(stream: VideoStream) -> str:
    decoder = stream.codec_context
    size = f"{decoder.width}x{decoder.height}" if isinstance(decoder, av.VideoCodecContext) else "unknown codec"
    return f"{size}, default" if stream.disposition & Disposition.default else size


def _reason(error: av.FFmpegError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
