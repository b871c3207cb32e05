"""The largest picture that is read: checked before anything is decoded, because a few kilobytes can declare gigabytes."""

from __future__ import annotations

from convnextpose.errors import SourceError

PIXEL_LIMIT = 8192 * 8192
"""Limit of the pixels of a picture: twice an 8K video's, as many as a 64-megapixel camera's; 200 MB as BGR."""

FILE_LIMIT = 16 * PIXEL_LIMIT
"""Limit of the size of a picture file, bytes: the largest picture, uncompressed, in four channels of four bytes."""

DECODER_OPTIONS = {"max_pixels": str(PIXEL_LIMIT - 1)}
"""FFmpeg refuses larger pictures before it allocates memory, even if the size changes within a stream."""


def decoder_options(codec: str) -> dict[str, str]:
    """Options of a decoder: the limit of the size; and a JPEG that ends too early is an error.

    Otherwise FFmpeg would fill the rest of such a picture from the previous one, without a mark. For other codecs it marks
    concealed errors.
    """
    return DECODER_OPTIONS | ({"err_detect": "explode"} if codec == "mjpeg" else {})


def check_size(width: int, height: int, name: object) -> None:
    """Refuse a picture or a video that is too large.

    Args:
        width, height: its declared size, px.
        name: its file's name, for the message.

    Raises:
        SourceError: it has PIXEL_LIMIT pixels or more.
    """
    if width * height >= PIXEL_LIMIT:
        raise SourceError(
            f"expected a picture of fewer than {PIXEL_LIMIT / 1e6:.0f} million pixels, but {name} says that it has "
            f"{width} x {height}: make it smaller"
        )
