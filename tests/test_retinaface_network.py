"""RetinaFace in torch alone is facexlib's RetinaFace: the same tensors, the same answers."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from face_restore_worker.models.structure import COUNTER, load_structure
from face_restore_worker.network.retinaface import RetinaFace
from face_restore_worker.pipeline.facexlib_nets import import_torchvision

VARIANTS = ("mobile0.25", "resnet50")


def random_weights(network: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.dim() > 1:
                scale = (2 / tensor[0].numel()) ** 0.5
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
            elif tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_function_as_facexlibs(variant: str) -> None:
    import_torchvision()
    from facexlib.detection.retinaface import RetinaFace as Theirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        theirs = Theirs(variant, device=torch.device("cpu"))
    random_weights(theirs)
    ours = RetinaFace(variant).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    generator = torch.Generator().manual_seed(1)
    # Odd sides: strides round up, and the pyramid's levels do not divide each other.
    batch = torch.randn((2, 3, 75, 101), generator=generator) * 50
    with torch.inference_mode():
        wanted, found = theirs(batch.clone()), ours(batch.clone())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
    assert float(found[1].std()) > 0.01  # the comparison sees something


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_are_the_published_ones(variant: str) -> None:
    with torch.device("meta"):
        state = RetinaFace(variant).state_dict()
    shapes = {n: tuple(t.shape) for n, t in state.items() if not n.endswith(COUNTER)}
    assert shapes == load_structure(f"retinaface-{variant}")


@pytest.mark.slow
def test_loading_a_detector_imports_neither_torchvision_nor_torchs_compiler() -> None:
    code = (
        "import sys\n"
        "from face_restore_worker.models.store import ModelStore\n"
        "from face_restore_worker.pipeline.detect import load_detector\n"
        "found = ModelStore().resolve_detector('builtin-detector')\n"
        "load_detector(found.path, found.id, device='cpu', name=found.name)\n"
        "heavy = ('torchvision', 'facexlib', 'torch._dynamo')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout == "[]\n", done.stderr
