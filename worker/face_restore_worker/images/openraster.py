"""Write OpenRaster (.ora): the original below, the restored faces as a layer of their own above.

File layout from the OpenRaster specification 0.0.6 (freedesktop.org): a ZIP archive whose first
entry, stored and not compressed, is the type; ``stack.xml`` lists the layers, uppermost first.
Its pictures are sRGB PNGs of 8 or 16 bits a channel. The strength is the upper layer's opacity,
so that it can still be moved in GIMP or Krita.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from face_restore_worker.images.names import printable
from face_restore_worker.images.picture import Picture, unit
from face_restore_worker.images.write import check_target, write_parts

if TYPE_CHECKING:
    from face_restore_worker.pipeline.types import Patch

_MIMETYPE = b"image/openraster"
_THUMBNAIL_SIDE = 256
FACES_LAYER = "Restored faces"
ORIGINAL_LAYER = "Original"


def write_openraster(
    picture: Picture,
    patches: Sequence[Patch],
    path: Path | str,
    *,
    opacity: float = 1.0,
    overwrite: bool = False,
) -> list[str]:
    """Write the picture and its restored faces as two layers.

    Args:
        picture: the original.
        patches: restored faces; their own ``strength`` goes into the layer's transparency. Without
            any, the file holds the original only.
        path: the .ora file; it appears complete or not at all.
        opacity: of the faces' layer, 0 to 1: the strength given for the whole picture.
        overwrite: replace a file that exists. The input is never replaced.

    Returns:
        Remarks for the user.

    Raises:
        ImageError: as write_image.
    """
    path = Path(path)
    check_target(path, picture.path, overwrite=overwrite)
    notes = []
    if picture.managed:
        notes.append("OpenRaster is sRGB: the colours were converted from the picture's profile")
    if picture.pixels.dtype == np.float32:
        notes.append("OpenRaster holds 16 bits a channel: reduced from 32 bit")
    base = picture.srgb(picture.pixels)
    if base.dtype == np.float32:
        base = np.rint(np.clip(base, 0, 1) * 65535.0).astype(np.uint16)
    layer = faces_layer(picture.working(), patches)
    buffer = io.BytesIO()
    _write_archive(buffer, picture, base, layer, opacity)
    write_parts(path, [buffer.getbuffer()], source=picture.path, overwrite=overwrite)
    return notes


def faces_layer(
    working: np.ndarray, patches: Sequence[Patch]
) -> tuple[int, int, np.ndarray] | None:
    """The restored faces as one layer: x, y, and (h, w, 4) float32 RGBA in [0, 1], plain alpha.

    Put over the photograph it gives what ``composite`` gives, also where faces overlap.

    Args:
        working: (H, W, 3) sRGB pixels that the patches belong to.
        patches: restored faces. None visible: the result is None.
    """
    from face_restore_worker.pipeline.composite import composite

    if not patches:
        return None
    left = min(p.x for p in patches)
    top = min(p.y for p in patches)
    right = max(p.x + p.mask.shape[1] for p in patches)
    bottom = max(p.y + p.mask.shape[0] for p in patches)
    below = unit(np.ascontiguousarray(working[top:bottom, left:right]))
    moved = [replace(patch, x=patch.x - left, y=patch.y - top) for patch in patches]
    # White faces on black show how much of the photograph each pixel gives up.
    white = [replace(patch, rgb=np.ones_like(patch.rgb)) for patch in moved]
    alpha = np.clip(composite(np.zeros(below.shape[:2], np.float32), white), 0, 1)[..., None]
    if not alpha.any():
        return None
    difference = composite(below, moved) - below
    where = np.broadcast_to(alpha > 0, below.shape)
    colour = below + np.divide(difference, alpha, out=np.zeros_like(below), where=where)
    return left, top, np.dstack([np.clip(colour, 0, 1), alpha]).astype(np.float32)


def _png(pixels: np.ndarray, resolution: tuple[float, float] | None = None) -> bytes:
    import pyvips

    kind = "srgb" if pixels.dtype == np.uint8 else "rgb16"
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).copy(interpretation=kind)
    if resolution is not None:
        image = image.copy(xres=resolution[0] / 25.4, yres=resolution[1] / 25.4)
    data: bytes = image.pngsave_buffer(compression=6, keep=0)
    return data


def _with_alpha(pixels: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    return pixels if alpha is None else np.dstack([pixels, alpha])


def _levels(values: np.ndarray, dtype: Any) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.rint(np.clip(values, 0, 1) * top).astype(dtype)


def _write_archive(
    target: io.BytesIO,
    picture: Picture,
    base: np.ndarray,
    layer: tuple[int, int, np.ndarray] | None,
    opacity: float,
) -> None:
    alpha = picture.alpha
    if alpha is not None and alpha.dtype != base.dtype:
        alpha = _levels(unit(alpha), base.dtype)
    merged = base
    if layer is not None:
        merged = base.copy()
        x, y, rgba = layer
        window = merged[y : y + rgba.shape[0], x : x + rgba.shape[1]]
        cover = rgba[..., 3:] * np.float32(opacity)
        window[...] = _levels(unit(window) * (1 - cover) + rgba[..., :3] * cover, base.dtype)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "mimetype", _MIMETYPE)
        _add(archive, "stack.xml", _stack(picture, layer, opacity))
        if layer is not None:
            _add(archive, "data/faces.png", _png(_levels(layer[2], base.dtype)))
        _add(archive, "data/original.png", _png(_with_alpha(base, alpha)))
        _add(archive, "mergedimage.png", _png(_with_alpha(merged, alpha)))
        _add(archive, "Thumbnails/thumbnail.png", _thumbnail(_with_alpha(merged, alpha)))


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    # A fixed date: the same picture gives the same file.
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_STORED
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)


def _stack(picture: Picture, layer: tuple[int, int, np.ndarray] | None, opacity: float) -> bytes:
    attributes = {"version": "0.0.3", "w": str(picture.width), "h": str(picture.height)}
    if picture.metadata.resolution is not None:
        attributes["xres"] = str(max(1, round(picture.metadata.resolution[0])))
        attributes["yres"] = str(max(1, round(picture.metadata.resolution[1])))
    image = ET.Element("image", attributes)
    stack = ET.SubElement(image, "stack")
    common = {"visibility": "visible", "composite-op": "svg:src-over"}
    if layer is not None:
        ET.SubElement(
            stack,
            "layer",
            {
                "name": FACES_LAYER,
                "src": "data/faces.png",
                "x": str(layer[0]),
                "y": str(layer[1]),
                "opacity": f"{opacity:.4f}",
                **common,
            },
        )
    ET.SubElement(
        stack,
        "layer",
        {
            "name": f"{ORIGINAL_LAYER}: {printable(picture.path.name)}",
            "src": "data/original.png",
            "x": "0",
            "y": "0",
            "opacity": "1.0",
            **common,
        },
    )
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(image, encoding="utf-8")


def _thumbnail(pixels: np.ndarray) -> bytes:
    import pyvips

    kind = "srgb" if pixels.dtype == np.uint8 else "rgb16"
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).copy(interpretation=kind)
    small = image.thumbnail_image(_THUMBNAIL_SIDE, height=_THUMBNAIL_SIDE, size="down")
    data: bytes = small.colourspace("srgb").cast("uchar").pngsave_buffer(keep=0)
    return data
