"""Write what a restored picture gives: the picture, or its layers, and the faces by themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from face_restore_worker.cli.jobs import ORA
from face_restore_worker.errors import ImageError
from face_restore_worker.images.formats import format_of
from face_restore_worker.images.names import printable
from face_restore_worker.images.openraster import write_openraster
from face_restore_worker.images.picture import Picture
from face_restore_worker.images.read import read_image
from face_restore_worker.images.write import (
    check_target,
    output_format,
    write_image,
    write_parts,
    write_rgb_png,
)

if TYPE_CHECKING:
    from face_restore_worker.pipeline.types import Patch


def check_output(target: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot be written, before any work is done for it."""
    if target.suffix.lower() != ORA:
        output_format(target)
    check_target(target, source, overwrite=overwrite)
    if not target.parent.is_dir():
        raise ImageError(
            f"{printable(target)} cannot be written: the folder {printable(target.parent)} does "
            "not exist.",
            hint="Make the folder first, or give another one.",
            code="not-writable",
        )
    if not os.access(target.parent, os.W_OK):
        raise ImageError(
            f"{printable(target)} cannot be written: no permission to write in "
            f"{printable(target.parent)}.",
            hint="Choose a folder that you may write to.",
            code="no-permission",
        )


def check_faces(folder: Path, stem: str, *, overwrite: bool) -> None:
    """As ``check_output`` for the faces that ``write_faces`` will write."""
    make_folder(folder)
    before = folder / f"{stem}-face1-before.png"
    if before.exists() and not overwrite:
        raise ImageError(
            f"{printable(folder)} holds faces of {printable(stem)} already.",
            hint="Add --overwrite to replace them, or give another folder.",
            code="exists",
        )


def make_folder(folder: Path) -> None:
    """Make a folder for outputs; ImageError when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(
            f"The folder {printable(folder)} cannot be made: {error.strerror or error}.",
            hint="Choose another folder for the output.",
            code="not-writable",
        ) from error


def write_result(
    picture: Picture,
    patches: Sequence[Patch],
    target: Path,
    *,
    strength: float,
    quality: int | None,
    overwrite: bool,
) -> list[str]:
    """Write the picture with its patches; returns remarks.

    Without patches, a file of the same format is copied byte for byte. In an .ora file the
    strength is the opacity of the faces' layer; the patches must then come with strength 1.
    """
    if target.suffix.lower() == ORA:
        return write_openraster(picture, patches, target, opacity=strength, overwrite=overwrite)
    if not patches and format_of(target) == picture.format:
        write_parts(target, [picture.path.read_bytes()], source=picture.path, overwrite=overwrite)
        return []
    pixels = picture.composite(patches) if patches else picture.pixels
    return write_image(picture, pixels, target, quality=quality, overwrite=overwrite)


def write_faces(
    picture: Picture, patches: Sequence[Patch], folder: Path, stem: str, *, overwrite: bool
) -> list[str]:
    """Write the aligned faces before and after as PNGs; returns the files' names.

    They are numbered from left to right among the faces restored. A file that holds the very same
    already stays: a run that was killed wrote it.
    """
    make_folder(folder)
    bits = 8 if picture.pixels.dtype == np.uint8 else 16
    written = []
    for number, patch in enumerate(sorted(patches, key=lambda p: p.face.centre), 1):
        for word, pixels in (("before", patch.aligned_input), ("after", patch.aligned_output)):
            if pixels is None:
                continue
            path = folder / f"{stem}-face{number}-{word}.png"
            write_rgb_png(path, pixels, bits, source=picture.path, overwrite=overwrite)
            written.append(str(path))
    return written


def read_selection(path: Path, width: int, height: int, max_pixels: int) -> np.ndarray:
    """A selection as (H, W) uint8, 255 where selected.

    A transparent picture counts as not selected where it is transparent.

    Raises:
        ImageError: it cannot be read or has another size than the picture.
    """
    mask = read_image(path, max_pixels=max_pixels)
    if (mask.width, mask.height) != (width, height):
        raise ImageError(
            f"The selection {printable(path)} has {mask.width} x {mask.height} pixels, the "
            f"picture {width} x {height}.",
            hint="Save the selection at the size of the upright picture.",
            code="selection-size",
        )
    values = mask.working().astype(np.float64).mean(axis=2)
    full = 1.0 if mask.pixels.dtype == np.float32 else float(np.iinfo(mask.working().dtype).max)
    values /= full
    if mask.alpha is not None:
        top = 1.0 if mask.alpha.dtype == np.float32 else float(np.iinfo(mask.alpha.dtype).max)
        values *= mask.alpha / top
    return np.rint(values * 255).astype(np.uint8)
