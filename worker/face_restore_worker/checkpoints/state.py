"""From whatever a file holds to plain {name: tensor}: nesting, prefixes, dtypes, sanity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from face_restore_worker.checkpoints.sniff import fail

#: Where training programs keep the weights to use, best first.
NESTS = ("g_ema", "params_ema", "params", "state_dict")
_PREFIX = "module."
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_DEPTH = 3


def flat_state(content: Any, name: str) -> dict[str, Tensor]:
    """Return the state dict inside ``content``: unnested, ``module.`` prefixes taken off.

    Args:
        content: what the file held, or a state dict given by a caller.
        name: the file, for messages.

    Raises:
        CheckpointError: no table of tensors is found, or two entries get the same name.
    """
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping):
            break
        nested = next((n for n in NESTS if isinstance(content.get(n), Mapping)), None)
        if nested is None:
            break
        content = content[nested]
    if not isinstance(content, Mapping) or not content:
        kind = "an empty table" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        what = f"holds {kind} instead of named tensors"
        raise fail(name, what, "Check that it is the right file.", "not-gpen")
    out: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            listed = ", ".join(map(str, list(content)[:4]))[:200]
            what = f"is no state dict: its entry {str(key)[:80]!r} is a {kind} (entries: {listed})"
            raise fail(
                name, what, f"The weights are looked for under {', '.join(NESTS)}.", "not-gpen"
            )
        bare = key
        while bare.startswith(_PREFIX):
            bare = bare[len(_PREFIX) :]
        if bare in out:
            what = f"holds the tensor {bare} twice, with and without the prefix {_PREFIX}"
            raise fail(name, what, "Check how it was made.", "tensors")
        out[bare] = value
    return out


def require_plain(state: Mapping[str, Tensor], name: str, file_bytes: int | None) -> None:
    """Check that every tensor is an ordinary one of floating numbers on the CPU or a GPU.

    ``file_bytes``: size of the file they come from. Strides of 0 let a small file declare huge
    tensors; together they may not be larger than the file.

    Raises:
        CheckpointError: naming the tensor.
    """
    total = 0
    for key, value in state.items():
        plain = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        if not plain or value.dtype not in _FLOATS:
            kind = f"{value.dtype}" if plain else "sparse, quantised or without data"
            what = f"has a tensor {key} that cannot be used: {kind}"
            raise fail(name, what, "Weights are fp32, fp16 or bf16.", "tensors")
        total += value.numel() * value.element_size()
    if file_bytes is not None and total > file_bytes:
        what = f"declares {total} bytes of tensors, more than its {file_bytes} bytes"
        raise fail(name, what, "Download it again.", "truncated")


def require_finite(state: Mapping[str, Tensor], name: str) -> None:
    """Refuse NaN and infinity, by tensor name.

    Raises:
        CheckpointError: code ``checkpoint-not-finite``.
    """
    bad = [key for key, value in state.items() if not _finite(value)]
    if bad:
        what = f"has values that are NaN or infinite in {listing(bad)}"
        raise fail(name, what, "The file is damaged or training diverged.", "not-finite")


def to_fp32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as contiguous fp32, without a copy where they are already."""
    return {key: value.detach().to(torch.float32).contiguous() for key, value in state.items()}


def listing(items: Iterable[str], shown: int = 4) -> str:
    """Return the first few items and how many more there are."""
    names = list(items)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def looks_like(names: Iterable[str]) -> str | None:
    """Name the network that tensors of these names belong to, when it is a known other one."""
    known = set(names)
    for label, needed in _OTHERS:
        if all(any(name.startswith(start) for name in known) for start in needed):
            return label
    return None


#: Network, and beginnings of tensor names that it has (all of them) and those before it have not.
_OTHERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("GFPGAN", ("stylegan_decoder.", "conv_body_first.")),
    ("GFPGAN (original)", ("stylegan_decoderdotto_rgbsdot",)),
    ("CodeFormer", ("position_emb", "ft_layers.", "quantize.")),
    ("RestoreFormer", ("vqvae.", "vqvae.quantize.")),
    ("VQGAN or RestoreFormer", ("encoder.conv_in.", "quantize.")),
    ("RetinaFace (a face detector)", ("BboxHead.", "ClassHead.", "LandmarkHead.")),
    ("BiSeNet (a face parser)", ("cp.resnet.", "ffm.")),
    ("ParseNet (a face parser)", ("out_mask_conv.", "out_img_conv.")),
    ("Real-ESRGAN", ("conv_first.", "body.0.rdb1.")),
    ("a Stable Diffusion model", ("model.diffusion_model.",)),
    ("a StyleGAN2 generator", ("input.input", "style.", "to_rgb1.")),
    ("a StyleGAN2 discriminator", ("final_conv.", "final_linear.0", "convs.0.")),
    ("ArcFace or another IResNet", ("layer1.0.bn1.", "fc.", "features.")),
)


def _finite(value: Tensor) -> bool:
    if value.numel() == 0:
        return True
    low, high = torch.aminmax(value)  # both are NaN when any value is
    return bool(torch.isfinite(low) & torch.isfinite(high))
