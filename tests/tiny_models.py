"""Small model files and a catalogue of them, for the tests of store, download and import."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from face_restore_worker.models.catalogue import Catalogue, parse_catalogue
from face_restore_worker.models.structure import load_structure
from face_restore_worker.network.architecture import GpenArchitecture
from gpen_factory import random_state, with_kernels

TINY = GpenArchitecture(16, (8, 8, 8), style_dim=16, mapping_depth=2)
OTHER = GpenArchitecture(32, (8, 8, 8, 8), style_dim=16, mapping_depth=2)
MOBILE = "retinaface-mobile0.25"
LICENCES = {"test": {"name": "Test licence", "text": "For tests only.", "url": None}}


def gpen_state(architecture: GpenArchitecture = TINY, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of a GPEN, with the FIR buffers a checkpoint carries."""
    return with_kernels(random_state(architecture, seed), architecture)


def detector_state(seed: int = 0, prefix: str = "module.") -> dict[str, torch.Tensor]:
    """Random weights of facexlib's RetinaFace mobile0.25, as its release has them."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in load_structure(MOBILE).items():
        state[prefix + name] = torch.randn(shape, generator=generator)
        if name.endswith("running_mean"):
            counter = name.removesuffix("running_mean") + "num_batches_tracked"
            state[prefix + counter] = torch.tensor(7)
    return state


def pack(content: Any, **options: Any) -> bytes:
    """What ``torch.save`` writes."""
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_entry(*urls: str, sha256: str | None = None, size: int | None = None) -> dict[str, Any]:
    return {"urls": list(urls), "sha256": sha256, "bytes": size, "exact": size is not None}


def entry(name: str, kind: str, architecture: str, files: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "name": name.upper(),
        "kind": kind,
        "architecture": architecture,
        "purpose": "tests",
        "licence": "test",
        "format": "torch",
        "files": files or [file_entry("https://models.invalid/unused")],
        "aliases": [f"{name}.pth"],
    } | more


def catalogue_data(
    gpen: list[Any] | None = None, detector: list[Any] | None = None
) -> dict[str, Any]:
    """A catalogue's JSON: the product's ids on tiny networks, served from the files given."""
    return {
        "format": 1,
        "licences": LICENCES,
        "models": [
            entry(
                "gpen-bfr-2048",
                "restorer",
                "gpen",
                gpen or [],
                size=16,
                channels=list(TINY.channels),
            ),
            entry(
                "gpen-bfr-2048-onnx",
                "restorer",
                "gpen",
                [],
                size=16,
                channels=list(TINY.channels),
                format="onnx",
                same_as="gpen-bfr-2048",
                aliases=["gpen-bfr-2048.onnx"],
            ),
            entry("gpen-bfr-512", "restorer", "gpen", [], size=512),
            entry("retinaface-resnet50", "detector", "retinaface-resnet50", []),
            entry(MOBILE, "detector", MOBILE, detector or []),
            entry("parsenet", "parser", "parsenet", []),
            entry("builtin-restorer", "restorer", "local-restorer", [], format="builtin")
            | {"files": [], "name": "built-in, not GPEN"},
            entry("builtin-detector", "detector", MOBILE, [], format="builtin") | {"files": []},
        ],
    }


def make_catalogue(gpen: list[Any] | None = None, detector: list[Any] | None = None) -> Catalogue:
    return parse_catalogue(catalogue_data(gpen, detector))


def write_catalogue(path: Path, data: dict[str, Any]) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def make_builtin(folder: Path) -> Path:
    """A folder with two built-in models and their cards."""
    from safetensors.torch import save_file

    folder.mkdir()
    for name in ("builtin-restorer", "builtin-detector"):
        file = folder / f"{name}.safetensors"
        save_file({"stem.weight": torch.zeros(2, 2), "tail.weight": torch.zeros(2)}, file)
        card = {"sha256": digest(file.read_bytes())}
        file.with_suffix(".json").write_text(json.dumps(card))
    return folder
