"""Read a picture file: header first, content before extension, upright, nothing invented."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np

from face_restore_worker.errors import ImageError
from face_restore_worker.images import profile as icc
from face_restore_worker.images.formats import FORMATS, describe_other, format_of, sniff
from face_restore_worker.images.metadata import collect, orientation
from face_restore_worker.images.names import printable
from face_restore_worker.images.picture import Picture

DEFAULT_MAX_PIXELS = 100_000_000
MIN_SIDE = 16
_MAX_FILE_BYTES = 8 << 30


def read_image(path: Path | str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """Read a picture: PNG, JPEG, TIFF, WebP, AVIF, HEIC (where libvips can) or GIF.

    The EXIF orientation is applied. Palettes become RGB, gray stays gray, CMYK becomes sRGB, and
    of several pages the first is read; ``notes`` says so.

    Raises:
        ImageError: codes "not-found", "no-permission", "not-a-file", "empty-file",
            "not-a-picture", "damaged", "too-large", "too-small", "unsupported".
    """
    path = Path(path)
    data = _read_bytes(path)
    name = printable(path)
    kind = sniff(data[:64])
    if kind is None:
        raise ImageError(
            f"{name} is not a picture this program reads: it looks like "
            f"{describe_other(data[:64])}.",
            hint="It reads PNG, JPEG, TIFF, WebP, AVIF and GIF.",
            code="not-a-picture",
        )
    image = _open(data, kind, name)
    _check_size(image.width, image.height, max_pixels, name)
    pixels = _decode(image, name)
    notes = []
    named = format_of(path)
    if named is not None and named != kind and {named, kind} != {"avif", "heic"}:
        notes.append(f"the file is named {path.suffix} but holds a {FORMATS[kind].name} picture")
    turn = orientation(image)
    if turn != 1:
        pixels = apply_orientation(pixels, turn)
    meta, remarks = collect(image, data, kind, pixels.shape[1], pixels.shape[0])
    notes += remarks
    if image.get_typeof("n-pages") != 0 and image.get("n-pages") > 1:
        notes.append(f"of {image.get('n-pages')} pages or frames only the first is read")
    del data
    picture = Picture(path, pixels, None, _kind(image), _bits(image), kind, meta, notes)
    _check_samples(picture, name)
    _split_bands(picture, image, name)
    return picture


def _read_bytes(path: Path) -> bytes:
    name = printable(path)
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise ImageError(f"{name} is a folder, not a picture.", code="not-a-file")
        if not stat.S_ISREG(info.st_mode):
            raise ImageError(f"{name} is not a regular file.", code="not-a-file")
        if info.st_size > _MAX_FILE_BYTES:
            raise ImageError(
                f"{name} has {info.st_size / 2**30:.1f} GiB, more than a picture of the largest "
                "allowed size can need.",
                code="too-large",
            )
        with path.open("rb") as file:
            head = file.read(64)
            data = head + (file.read() if sniff(head) else b"")
    except FileNotFoundError as error:
        raise ImageError(
            f"{name} does not exist.",
            hint="Check the name; quote it if it holds spaces.",
            code="not-found",
        ) from error
    except PermissionError as error:
        raise ImageError(
            f"{name} cannot be read: no permission.",
            hint="Give yourself permission to read it.",
            code="no-permission",
        ) from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be read: {error}.", code="unreadable") from error
    if not data:
        raise ImageError(
            f"{name} is empty (0 bytes).",
            hint="Copy it again from where it came from.",
            code="empty-file",
        )
    return data


def _open(data: bytes, kind: str, name: str) -> Any:
    import pyvips

    pyvips.cache_set_max(0)  # each file is read once; cached decoders only hold memory
    source = pyvips.Source.new_from_memory(data)
    loader = getattr(pyvips.Image, FORMATS[kind].loader)
    try:
        image = loader(source, fail_on="error")
    except pyvips.Error as error:
        raise _decoding_error(name, kind, error) from error
    return image


def _decoding_error(name: str, kind: str, error: Exception) -> ImageError:
    # libvips repeats a line per band or seek; what it says last is the cause.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "bad seek" not in line and "load error" not in line]
    reason = (told or lines or ["unknown"])[-1]
    label = FORMATS[kind].name
    if kind in ("heic", "avif") and ("nsupported" in reason or "codec" in reason.lower()):
        return ImageError(
            f"{name} is a {label} picture in a coding that the image library cannot decode "
            f"({reason}).",
            hint="Convert it to JPEG, PNG or TIFF first (phones offer this when sharing).",
            code="unsupported",
        )
    if "out of range" in reason or "bad labq" in reason or "not supported" in reason:
        return ImageError(
            f"{name} is a {label} picture of a variety that is not read ({reason}).",
            hint="Save it as 8 or 16 bit RGB or gray.",
            code="unsupported",
        )
    return ImageError(
        f"{name} is damaged or cut short: its {label} data cannot be decoded ({reason}).",
        hint="Copy it again from where it came from.",
        code="damaged",
    )


def _check_size(width: int, height: int, max_pixels: int, name: str) -> None:
    if width * height > max_pixels:
        # Exact: what is just above the limit must not read as equal to it.
        unit, size = ("megapixels", 1e6) if max_pixels >= 1e6 else ("pixels", 1)
        raise ImageError(
            f"{name} has {width} x {height} = {width * height / size:.12g} {unit}; the limit is "
            f"{max_pixels / size:.12g}.",
            hint="Give --max-pixels a larger number if the memory suffices, or scale it down.",
            code="too-large",
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name} has {width} x {height} pixels, too few to hold a face.",
            hint=f"Both sides need at least {MIN_SIDE} pixels.",
            code="too-small",
        )


def _decode(image: Any, name: str) -> np.ndarray:
    import pyvips

    kind = str(image.get("vips-loader")).removesuffix("load_source")
    try:
        pixels: np.ndarray = image.numpy()
    except pyvips.Error as error:
        raise _decoding_error(name, {"heif": "heic"}.get(kind, kind), error) from error
    except MemoryError as error:
        raise ImageError(
            f"{name} does not fit into memory ({image.width} x {image.height} pixels).",
            hint="Close other programs or scale it down.",
            code="too-large",
        ) from error
    return pixels


def apply_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels stored with an EXIF orientation (1 to 8), upright."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _bits(image: Any) -> int:
    if image.get_typeof("bits-per-sample") != 0:
        return int(image.get("bits-per-sample"))
    return {"uchar": 8, "ushort": 16}.get(image.format, 32)


def _kind(image: Any) -> str:
    if image.get_typeof("palette") != 0 and image.get("palette"):
        return "palette"
    if image.interpretation == "cmyk":
        return "cmyk"
    if image.bands <= 2:
        return "bilevel" if _bits(image) == 1 else "gray"
    return "rgb"


def _check_samples(picture: Picture, name: str) -> None:
    """Bring the samples to uint8, uint16 or float32, or refuse them."""
    pixels = picture.pixels
    if pixels.dtype in (np.uint8, np.uint16):
        return
    if pixels.dtype == np.uint32:
        picture.pixels = (pixels >> 16).astype(np.uint16)
        picture.bits = 16
        picture.notes.append("its 32 bit integers are reduced to 16 bit")
        return
    if pixels.dtype not in (np.float32, np.float64):
        raise ImageError(
            f"{name} holds signed or complex numbers ({pixels.dtype}), not a photograph.",
            hint="Save it as 8 or 16 bit RGB or gray.",
            code="unsupported",
        )
    pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    bad = int(pixels.size - np.isfinite(pixels).sum())
    if bad:
        raise ImageError(
            f"{name} holds {bad} samples that are infinite or not a number.",
            hint="Replace them (in the program that made the picture) and try again.",
            code="unsupported",
        )
    if float(np.median(pixels)) > 1.5:
        raise ImageError(
            f"{name} holds floating-point samples up to {pixels.max():g}; 0 to 1 is expected.",
            hint="Divide them by the white level, or save it as 16 bit.",
            code="unsupported",
        )
    if pixels.min() < 0 or pixels.max() > 1:
        picture.notes.append(
            "samples below 0 or above 1 are clipped for the model and kept outside the faces"
        )
    picture.pixels = pixels


def _split_bands(picture: Picture, image: Any, name: str) -> None:
    """Set alpha aside and bring the colour to gray or RGB."""
    pixels = picture.pixels
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    colours = {"cmyk": 4, "gray": 1, "bilevel": 1}.get(picture.kind, 3)
    if bands > colours + 1 or (bands < colours and picture.kind != "palette"):
        raise ImageError(
            f"{name} has {bands} channels; gray, RGB and CMYK with or without alpha are read.",
            hint="Save it as RGB without extra channels.",
            code="unsupported",
        )
    if picture.kind == "palette" and bands < 3:
        colours = 1
    if pixels.ndim == 3:
        if bands == colours + 1:
            picture.alpha = np.ascontiguousarray(pixels[..., colours])
            pixels = pixels[..., :colours]
        pixels = np.ascontiguousarray(pixels[..., 0] if colours == 1 else pixels)
    if picture.kind == "cmyk":
        pixels = _cmyk_to_rgb(picture, pixels, name)
    if picture.kind in ("gray", "bilevel") and picture.bits < 8:
        picture.notes.append(f"its {picture.bits} bit gray is written as 8 bit gray")
    if picture.kind == "palette":
        picture.notes.append("its palette is written as full colour")
    picture.pixels = pixels


def _cmyk_to_rgb(picture: Picture, pixels: np.ndarray, name: str) -> np.ndarray:
    profile = picture.metadata.profile
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"{name} holds floating-point CMYK, which is not read.",
            hint="Save it as RGB.",
            code="unsupported",
        )
    try:
        levels = icc.to_srgb(pixels, profile)
        by = "its own profile" if profile else "a generic press profile"
    except icc.ProfileError:
        levels = icc.to_srgb(pixels, None)
        by = "a generic press profile, because its own one is damaged"
    picture.metadata.profile = None
    picture.notes.append(f"its CMYK colours are converted to sRGB with {by}")
    if pixels.dtype == np.uint8:
        return np.rint(levels / 257.0).astype(np.uint8)
    return levels
