"""Put trained weights into the package together with their figures and model card.

    python worker/training/restorer/publish.py --weights FILE --figures FILE --out DIR

``--figures`` is what ``evaluate.py --json`` wrote for these weights (checked by SHA-256). Writes
``builtin-restorer.safetensors``, ``.json`` and ``.md``; the figures in the card come from the file.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

NAME = "builtin-restorer"
SIZE = 512

_CARD = """# builtin-restorer

A compact local restorer for aligned face crops: it reduces blur, noise and JPEG artefacts using
only what the pixels around a place tell. It has no generative prior: it invents no features and
cannot bring back what is gone. It is what runs when no GPEN model is installed and is always
named "built-in, not GPEN".

| | |
|---|---|
| file | `{file}`, {bytes} bytes, float16 |
| SHA-256 | `{sha256}` |
| network | residual U-Net, {parameters} parameters, {gflop} GFLOP at 512x512 (multiply-add = 2) |
| input, output | (N, 3, H, W) RGB in [-1, 1], any size; working size 512; output not clamped |
| licence | MIT, like the project |

## Training data
* 639 of 700 face crops (320 pixels, aligned to the FFHQ template at 256 pixels) cut from portraits
  of members of the U.S. Congress, 1789-2025, of the public collection voteview/member_photos
  (gathered from the Biographical Directory of the U.S. Congress and Wikimedia; by its account
  largely public-domain and government sources). Photographs, engravings and paintings. The other
  61, chosen by a hash of the file name, were kept for judging.
* Pictures the training code draws: dead leaves, gradients, textures.

Degraded blindly: isotropic, anisotropic and motion blur, down-scaling by 1 to 8, Gaussian and
photon noise (gray or coloured), JPEG, once or twice. Every sixth sample is clean or nearly so.
{training}

## Figures
Measured {date} on the {crops} held-out crops with {repeats} random degradation(s) each
(`evaluate.py --data DIR --weights {file}`, seed {seed}).
Gains are means over the degraded input. The classical filters' parameters were tuned on central
windows of every second of the pictures they are judged on.

{table}

Settings: `512` is the 256-pixel face enlarged to 512 and degraded there; `small` is degraded at
its own scale and then enlarged; `native` is the whole crop at its own scale.

## Limits
* Mostly men, mostly old and monochrome photographs of one country's politicians; many engravings.
  Skin and hair of people the collection lacks are restored from what was learned on these.
* Strong down-scaling (beyond 4) comes out soft: the network does not guess eyes or teeth.
* Halftone dots, engraving lines and film grain look like noise and are smoothed where the picture
  gives no hint that they are wanted.
* The crops for training and judging come from one collection; other sources will differ.
"""


def publish(weights: Path, figures_file: Path, out: Path, training: str) -> None:
    """Write the three files.

    Raises:
        ValueError: the figures were measured on another file.
    """
    data = weights.read_bytes()
    figures = json.loads(figures_file.read_text())
    digest = hashlib.sha256(data).hexdigest()
    if figures.pop("sha256") != digest:
        raise ValueError(
            f"{figures_file} was measured on other weights than {weights}; "
            "run evaluate.py on these weights first"
        )
    file = f"{NAME}.safetensors"
    entry: dict[str, Any] = {
        "name": NAME,
        "file": file,
        "sha256": digest,
        "bytes": len(data),
        "size": SIZE,
        "gflop": figures["gflop"],
        "figures": figures,
    }
    values = {**entry, **figures, "training": training, "table": _table(figures)}
    values["date"] = datetime.date.today().isoformat()
    out.mkdir(parents=True, exist_ok=True)
    (out / file).write_bytes(data)
    (out / f"{NAME}.json").write_text(json.dumps(entry, indent=1) + "\n")
    (out / f"{NAME}.md").write_text(_CARD.format(**values))


def _table(figures: dict[str, Any]) -> str:
    settings = ("512", "small", "native")
    rows = ["| | " + " | ".join(settings) + " |", "|---|" + "---|" * len(settings)]

    def row(title: str, cells: list[str]) -> None:
        rows.append(f"| {title} | " + " | ".join(cells) + " |")

    def change(value: dict[str, float]) -> str:
        return f"{value['psnr']:+.2f} dB, {value['ssim']:+.3f} SSIM"

    entries = [figures[setting] for setting in settings]
    row(
        "degraded input",
        [f"{e['input']['psnr']:.2f} dB, {e['input']['ssim']:.3f}" for e in entries],
    )
    row("**network**", [change(e["gain"]) for e in entries])
    for name in entries[0].get("filters", {}):
        row(name, [change(e["filters"][name]) for e in entries])
    row("clean crops kept at", [f"{e['clean_psnr']['mean']:.2f} dB" for e in entries])
    row("gray input: channels apart by", [
        f"{e['gray_spread']['mean']:.2f} levels ({e['gray_spread']['max']:.1f} at most)"
        for e in entries
    ])  # fmt: skip
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Put trained weights into the package.")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--figures", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--training", default="", help="a sentence on how it was trained")
    options = parser.parse_args(argv)
    publish(options.weights, options.figures, options.out, options.training)


if __name__ == "__main__":
    main()
