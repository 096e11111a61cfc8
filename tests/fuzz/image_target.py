"""Picture files: what is read stays within the limits, what is not is refused by an ImageError."""

from __future__ import annotations

import io
import os
import random
import struct
import sys
import zlib
from pathlib import Path

os.environ.setdefault("VIPS_CONCURRENCY", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tifffile
from face_restore_worker.errors import ImageError
from face_restore_worker.images.read import read_image
from face_restore_worker.images.write import write_image
from fuzz_common import MB, Finding, Target, in_file, no_side_effects
from picture_files import XMP, exif_block, gray_profile, photo, srgb_profile
from PIL import Image

MAX_PIXELS = 250_000


def check_image(data: bytes) -> None:
    """Read it as a picture; what can be read is written again with all its metadata."""
    path = in_file(data, ".bin")
    with no_side_effects():
        try:
            picture = read_image(path, max_pixels=MAX_PIXELS)
        except ImageError as error:
            if not error.code:
                raise Finding(f"a refusal without a code: {error!r}") from error
            return
    pixels = picture.pixels
    if picture.width * picture.height > MAX_PIXELS or pixels.ndim not in (2, 3):
        raise Finding(f"read beyond the limit: {pixels.shape}")
    if pixels.dtype not in (np.uint8, np.uint16, np.float32) or min(pixels.shape[:2]) < 16:
        raise Finding(f"read as {pixels.shape} {pixels.dtype}")
    if pixels.size > 20_000:
        return
    suffix = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}.get(picture.format, ".tif")
    out = path.with_name(f"output{suffix}")
    picture.working()
    try:
        write_image(picture, pixels, out, overwrite=True)
        read_image(out, max_pixels=MAX_PIXELS)
    except ImageError as error:
        raise Finding(f"what was read cannot be written and read again: {error!r}") from error


def image_seeds() -> list[bytes]:
    small = photo(20, 24)
    gray = small[..., 0]
    seeds = []
    exif = exif_block(6)
    for kind, options in [
        ("PNG", {"exif": exif, "icc_profile": srgb_profile()}),
        ("JPEG", {"quality": 80, "exif": exif, "icc_profile": srgb_profile(), "dpi": (300, 300)}),
        ("WEBP", {"exif": exif, "xmp": XMP}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ]:
        buffer = io.BytesIO()
        Image.fromarray(small).save(buffer, kind, **options)
        seeds.append(buffer.getvalue())
    for kind, mode in [("PNG", "P"), ("PNG", "LA"), ("PNG", "1"), ("JPEG", "CMYK")]:
        buffer = io.BytesIO()
        Image.fromarray(small).convert(mode).save(buffer, kind)
        seeds.append(buffer.getvalue())
    for pixels in (gray, small.astype(np.uint16) * 257, small.astype(np.float32) / 255):
        buffer = io.BytesIO()
        tags = [(34675, "B", len(gray_profile()), gray_profile(), False)]
        photometric = "rgb" if pixels.ndim == 3 else "minisblack"
        tifffile.imwrite(buffer, pixels, photometric=photometric, extratags=tags, metadata=None)
        seeds.append(buffer.getvalue())
    return [*seeds, bomb(100_000, 100_000), bomb(2**31 - 1, 2**31 - 1), bomb(400, 400)]


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares this many pixels."""
    text = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    for kind, body in [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]:
        text += struct.pack(">I", len(body)) + kind + body
        text += struct.pack(">I", zlib.crc32(kind + body))
    return text


def mutate_image(data: bytes, rng: random.Random) -> bytes:
    """Put an odd number where a length, an offset or a size may stand; mend a PNG's checksums."""
    if len(data) < 40:
        return data
    out = bytearray(data)
    order = rng.choice("<>")
    for _ in range(rng.randint(1, 3)):
        form = order + rng.choice("HI")
        top = 0xFFFF if form[1] == "H" else 0xFFFFFFFF
        value = rng.choice([0, 1, 2, 8, 16, 17, 255, 500, 501, 65_535, 10**6, 2**31 - 1, top])
        place = rng.randrange(min(len(out), rng.choice([60, 400, 4000])) - 4)
        struct.pack_into(form, out, place, min(value, top))
    return mend_png(bytes(out))


def mend_png(data: bytes) -> bytes:
    """The file with right checksums, so that what lies behind them is reached."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, position = bytearray(data), 8
    while position + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, position)
        end = position + 8 + length
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[position + 4 : end]))
        position = end + 4
    return bytes(out)


TARGETS = [Target("images", image_seeds, check_image, 48 * MB, mutate_image)]
