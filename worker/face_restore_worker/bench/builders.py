"""Making each variant callable: (1, 3, S, S) fp32 RGB in [-1, 1] to the same shape.

Runs in the variant's own process; the heavy packages are imported here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_restore_shared.errors import FaceRestoreError

if TYPE_CHECKING:
    from torch import Tensor, nn

Call = Callable[["Tensor"], "Tensor"]
INPUT, OUTPUT = "face", "restored"
OPSET = 18


def build(key: str, weights: Path, onnx: Path | None, device: str, threads: int) -> Call:
    """A variant by its key.

    weights: a GPEN checkpoint. onnx: the network as `export` wrote it, for those that read it.
    Raises FaceRestoreError where it cannot run.
    """
    if key in ("fp32", "bf16", "fp16"):
        from face_restore_worker.checkpoints.gpen import load_gpen

        return load_gpen(weights, device=device, precision=key)
    if key in ("eager", "reference", "compile"):
        return _plain(key, weights, device)
    assert onnx is not None
    if key.startswith("onnxruntime"):
        return _onnxruntime(onnx, device, threads)
    return _openvino(onnx, threads, exact=key.startswith("openvino-f32"))


def _plain(key: str, weights: Path, device: str) -> Call:
    """The authors' way, the reference network, or that compiled."""
    import torch

    from face_restore_worker.checkpoints.gpen import read_gpen_state
    from face_restore_worker.network.gpen import build_gpen

    state, architecture = read_gpen_state(weights)
    on_gpu = device.partition(":")[0] == "cuda"
    dtype = torch.float16 if on_gpu else torch.float32
    if key == "eager":
        from face_restore_worker.bench.authors_eager import AuthorsGpen

        authors = AuthorsGpen(architecture, {k: v.to(device, dtype) for k, v in state.items()})
        return lambda x: authors(x.to(device)).float()
    network: Any = build_gpen(architecture, state).to(device)
    if key == "compile":
        network = torch.compile(network, mode="max-autotune" if on_gpu else "default")

    def call(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(x.to(device, dtype))

    return call


def _onnxruntime(onnx: Path, device: str, threads: int) -> Call:
    import torch

    onnxruntime: Any = import_module("onnxruntime")

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    provider = "CPUExecutionProvider"
    if device.partition(":")[0] == "cuda":
        provider = "CUDAExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise FaceRestoreError(
                "This onnxruntime cannot use CUDA.", hint="pip install onnxruntime-gpu"
            )
    session = onnxruntime.InferenceSession(str(onnx), options, providers=[provider])
    if provider not in session.get_providers():
        raise FaceRestoreError(f"onnxruntime fell back from {provider} to the processor.")
    return lambda x: torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0])


def _openvino(onnx: Path, threads: int, exact: bool) -> Call:
    import torch

    openvino: Any = import_module("openvino")

    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
    if exact:
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(str(onnx), "CPU", settings)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


def export(weights: Path, onnx: Path, form: str) -> None:
    """Write the network as ONNX with PyTorch's exporter (the older one fails on this network).

    form: "authors", as exports of their code are, or "tidy", this project's readable network,
    whose graph suits other programs better.
    """
    import torch

    from face_restore_worker.bench.authors_eager import AuthorsGpen
    from face_restore_worker.checkpoints.gpen import read_gpen_state
    from face_restore_worker.network.gpen import build_gpen

    class Authors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = AuthorsGpen(architecture, state)

        def forward(self, x: Tensor) -> Tensor:
            return self.network.compute(x)

    state, architecture = read_gpen_state(weights)
    network = Authors() if form == "authors" else build_gpen(architecture, state)
    example = torch.zeros(1, 3, architecture.size, architecture.size)
    write_onnx(network, example, onnx)


def write_onnx(network: nn.Module, example: Tensor, path: Path) -> None:
    """Export a network of one input, such as `example`, by PyTorch's dynamo exporter."""
    import torch

    with torch.no_grad():
        torch.onnx.export(
            network,
            (example,),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            external_data=True,
            verbose=False,
        )


def version(key: str) -> str:
    """The version of what a variant runs on, "" where it is torch itself."""
    package = key.partition("-")[0]
    if package not in ("onnxruntime", "openvino"):
        return ""
    from importlib import metadata

    for name in (package, "onnxruntime-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""
