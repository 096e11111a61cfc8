"""Write a picture: the format its name asks for, whole or not at all, never over the input."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from face_restore_worker.errors import ImageError
from face_restore_worker.images import containers, exif
from face_restore_worker.images.formats import FORMATS, WRITABLE, Format, format_of
from face_restore_worker.images.metadata import Metadata
from face_restore_worker.images.names import printable
from face_restore_worker.images.parts import open_part
from face_restore_worker.images.picture import Picture
from face_restore_worker.images.tiff_tags import TagError

DEFAULT_QUALITY = 95
_KEEP_XMP_IPTC_ICC = 2 | 4 | 8  # VipsForeignKeep
_KEEP_EXIF = 1
_MAX_SIDE = {"jpeg": 65500, "webp": 16383, "avif": 16384}


def write_image(
    picture: Picture,
    pixels: np.ndarray,
    path: Path | str,
    *,
    quality: int | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write ``pixels`` with the picture's alpha and metadata; the extension chooses the format.

    Args:
        picture: the picture the pixels come from.
        pixels: as from ``Picture.composite``: the shape and dtype of ``picture.pixels``.
        path: the file; it appears complete or not at all.
        quality: 1 to 100 for JPEG, WebP and AVIF; None: a JPEG input's own, else 95.
        overwrite: replace a file that exists. The input is never replaced.

    Returns:
        Remarks for the user on what the format cannot hold.

    Raises:
        ImageError: codes "bad-extension", "would-overwrite-input", "exists", "no-permission",
            "disk-full", "not-writable", "too-large".
    """
    path = Path(path)
    key = output_format(path)
    fmt = FORMATS[key]
    check_target(path, picture.path, overwrite=overwrite)
    side = _MAX_SIDE.get(key)
    if side is not None and max(picture.width, picture.height) > side:
        raise ImageError(
            f"{fmt.name} holds at most {side} pixels a side; {printable(picture.path)} has "
            f"{picture.width} x {picture.height}.",
            hint="Choose PNG or TIFF for the output.",
            code="too-large",
        )
    pixels, alpha, meta, notes = _fit(picture, pixels, key, fmt)
    parts, more = _encode(pixels, alpha, meta, key, picture, quality)
    write_parts(path, parts, source=picture.path, overwrite=overwrite)
    return notes + more


def output_format(path: Path) -> str:
    """The key in FORMATS that a file name asks for; ImageError when it cannot be written."""
    key = format_of(path)
    if key is None or not FORMATS[key].saver:
        what = f"the extension {path.suffix}" if path.suffix else "no extension"
        raise ImageError(
            f"{printable(path)} has {what}, which names no format that can be written.",
            hint=f"Use one of {', '.join(WRITABLE)}.",
            code="bad-extension",
        )
    return key


def check_target(path: Path, source: Path | None, *, overwrite: bool) -> None:
    """Refuse to write over the input (also through links) or, unless asked, over any file."""
    try:
        if source is not None and source.exists() and path.exists() and path.samefile(source):
            raise ImageError(
                f"{printable(path)} is the input itself, which is never overwritten.",
                hint="Give another name or folder for the output.",
                code="would-overwrite-input",
            )
        if path.is_dir():
            raise ImageError(
                f"{printable(path)} is a folder.", hint="Give a file name.", code="not-writable"
            )
        if path.exists() and not overwrite:
            raise ImageError(
                f"{printable(path)} exists already.",
                hint="Add --overwrite to replace it, or give another name.",
                code="exists",
            )
    except OSError as error:
        raise _write_error(path, error) from error


def write_parts(
    path: Path,
    parts: Iterable[bytes | memoryview],
    *,
    source: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write the parts to a temporary file beside ``path``, flush it to the disk, rename it."""
    try:
        part, handle = open_part(path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in parts:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            check_target(path, source, overwrite=overwrite)
            part.replace(path)
            _sync_folder(path.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()
    except OSError as error:
        raise _write_error(path, error) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems cannot flush a folder; the file itself was flushed.
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _write_error(path: Path, error: OSError) -> ImageError:
    name = printable(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ImageError(
            f"{name} was not written: the disk is full or its quota or size limit is reached.",
            hint="Free some space or choose another folder; nothing was left behind.",
            code="disk-full",
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return ImageError(
            f"{name} was not written: no permission to write in {printable(path.parent)}.",
            hint="Choose a folder that you may write to.",
            code="no-permission",
        )
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) and not path.parent.is_dir():
        return ImageError(
            f"{name} was not written: the folder {printable(path.parent)} does not exist.",
            hint="Make the folder first, or give another one.",
            code="not-writable",
        )
    return ImageError(f"{name} was not written: {error.strerror or error}.", code="not-writable")


def _fit(
    picture: Picture, pixels: np.ndarray, key: str, fmt: Format
) -> tuple[np.ndarray, np.ndarray | None, Metadata, list[str]]:
    """What of the picture the format can hold, and remarks on what it cannot."""
    notes: list[str] = []
    meta = picture.metadata
    alpha = picture.alpha
    if picture.gray and not fmt.gray and meta.profile is not None:
        pixels = picture.srgb(pixels)
        meta = replace(meta, profile=None)
        notes.append(f"{fmt.name} has no gray: written as sRGB without the gray profile")
    depth = "32 bit" if pixels.dtype == np.float32 else "16 bit"
    if pixels.dtype == np.float32 and not fmt.floats:
        pixels, alpha = _quantise(pixels, np.uint16), _quantise(alpha, np.uint16)
        if fmt.max_bits >= 10:
            notes.append(f"{fmt.name} holds {fmt.max_bits} bits a channel: reduced from {depth}")
    elif pixels.dtype == np.uint16 and 8 < fmt.max_bits < picture.bits:
        notes.append(f"{fmt.name} holds {fmt.max_bits} bits a channel: reduced from {depth}")
    if pixels.dtype == np.uint16 and fmt.max_bits == 8:
        pixels, alpha = _quantise(pixels, np.uint8), _quantise(alpha, np.uint8)
        notes.append(f"{fmt.name} holds 8 bits a channel: reduced from {depth}")
    if alpha is not None and not fmt.alpha:
        if (alpha != _full(alpha.dtype)).any():
            pixels = _flatten(pixels, alpha)
            notes.append(f"{fmt.name} has no transparency: put on white")
        alpha = None
    return pixels, alpha, meta, notes


def _full(dtype: np.dtype[Any]) -> float:
    return 1.0 if dtype == np.float32 else float(np.iinfo(dtype).max)


def _quantise(values: Any, dtype: Any) -> Any:
    """Samples rounded to another depth; None stays None."""
    if values is None or values.dtype == dtype:
        return values
    scale = np.iinfo(dtype).max / _full(values.dtype)
    return np.rint(np.clip(values * scale, 0, np.iinfo(dtype).max)).astype(dtype)


def _flatten(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    full = _full(pixels.dtype)
    cover = alpha.astype(np.float64) / full
    cover = cover[..., None] if pixels.ndim == 3 else cover
    return np.rint(pixels * cover + full * (1 - cover)).astype(pixels.dtype)


def _vips_image(pixels: np.ndarray, alpha: np.ndarray | None, meta: Metadata) -> Any:
    import pyvips

    gray = pixels.ndim == 2
    if alpha is not None:
        pixels = np.dstack([pixels, alpha])
    kinds = {
        np.dtype(np.uint8): ("srgb", "b-w"),
        np.dtype(np.uint16): ("rgb16", "grey16"),
        np.dtype(np.float32): ("scrgb", "b-w"),
    }
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    image = image.copy(interpretation=kinds[pixels.dtype][gray])
    if meta.resolution is not None:
        image = image.copy(xres=meta.resolution[0] / 25.4, yres=meta.resolution[1] / 25.4)
    for name, value in (
        ("icc-profile-data", meta.profile),
        ("xmp-data", meta.xmp),
        ("iptc-data", meta.iptc),
    ):
        if value is not None:
            image.set_type(pyvips.GValue.blob_type, name, value)
    return image


def _encode(
    pixels: np.ndarray,
    alpha: np.ndarray | None,
    meta: Metadata,
    key: str,
    picture: Picture,
    quality: int | None,
) -> tuple[containers.Parts, list[str]]:
    import pyvips

    image = _vips_image(pixels, alpha, meta)
    options: dict[str, Any] = {"keep": _KEEP_XMP_IPTC_ICC}
    if key == "avif" and meta.exif is not None:
        image.set_type(pyvips.GValue.blob_type, "exif-data", meta.exif)
        options["keep"] |= _KEEP_EXIF
    options |= _save_options(pixels, meta, key, picture, quality)
    saver = getattr(image, str(FORMATS[key].saver))
    try:
        data: bytes = saver(**options)
    except pyvips.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ImageError(
            f"the {FORMATS[key].name} file could not be made ({lines[-1]}).",
            hint="Choose PNG or TIFF for the output.",
            code="not-writable",
        ) from error
    return _finish(data, meta, key, picture)


def _save_options(
    pixels: np.ndarray, meta: Metadata, key: str, picture: Picture, quality: int | None
) -> dict[str, Any]:
    if key == "png":
        return {"compression": 6}
    if key == "jpeg":
        own = meta.jpeg_quality if quality is None else None
        options: dict[str, Any] = {"Q": quality or own or DEFAULT_QUALITY, "optimize_coding": True}
        if own is not None:
            options["subsample_mode"] = "on" if meta.jpeg_subsampled else "off"
        return options
    if key == "tiff":
        options = {"compression": meta.tiff_compression or "deflate", "resunit": "inch"}
        if options["compression"] in ("lzw", "deflate") and pixels.dtype != np.float32:
            options["predictor"] = "horizontal"
        options["bigtiff"] = pixels.nbytes > 3 << 30
        return options
    if key == "webp":
        if meta.lossless_webp and quality is None:
            return {"lossless": True, "exact": True}
        return {"Q": quality or DEFAULT_QUALITY, "exact": True, "smart_subsample": True}
    bits = 8 if pixels.dtype == np.uint8 else (10 if picture.bits <= 10 else 12)
    return {"Q": quality or 90, "compression": "av1", "bitdepth": bits, "effort": 4}


def _finish(
    data: bytes, meta: Metadata, key: str, picture: Picture
) -> tuple[containers.Parts, list[str]]:
    stated = meta.resolution is not None
    if key == "jpeg":
        parts, fits = containers.finish_jpeg(data, meta.exif, meta.resolution)
        return parts, [] if fits else ["the EXIF data is too large for a JPEG and is left out"]
    if key == "png":
        return containers.finish_png(data, meta.exif, stated), []
    if key == "webp":
        return containers.finish_webp(data, meta.exif, picture.width, picture.height), []
    if key == "tiff":
        tags = None
        notes = []
        if meta.exif is not None:
            try:
                tags = exif.parse(meta.exif)
            except TagError as error:
                notes.append(f"the EXIF data is damaged ({error}) and is left out")
        parts, fits = containers.finish_tiff(data, tags, stated)
        if not fits:
            notes.append("the EXIF data does not fit into a TIFF above 4 GB and is left out")
        return parts, notes
    return [data], []


def write_rgb_png(
    path: Path, rgb: np.ndarray, bits: int, *, source: Path | None = None, overwrite: bool = False
) -> None:
    """Write plain sRGB pixels, (H, W, 3) float in [0, 1], as a PNG of 8 or 16 bits a channel.

    A file that holds these very bytes already stays as it is.
    """
    pixels = _quantise(np.asarray(rgb, dtype=np.float32), np.uint8 if bits == 8 else np.uint16)
    data: bytes = _vips_image(pixels, None, Metadata()).pngsave_buffer(compression=6, keep=0)
    parts = [b"".join(containers.finish_png(data, None, False))]
    if not _holds(path, parts[0]):
        write_parts(path, parts, source=source, overwrite=overwrite)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False
