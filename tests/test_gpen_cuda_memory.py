"""What a face takes on a GPU, calculated: enough for small cards, and counted correctly."""

from __future__ import annotations

import pytest
import torch
from face_restore_worker.network.architecture import GpenArchitecture
from face_restore_worker.network.cuda.memory import META, Meter, calculated, work_of

BFR_2048 = GpenArchitecture.from_parameters(2048)


def test_a_2048_face_fits_cards_of_four_gigabytes() -> None:
    """With room for the context and cuDNN's workspaces; the issue's bound is 2.5 GB in 16 bits."""
    half, full = calculated(BFR_2048, torch.float16), calculated(BFR_2048, torch.float32)
    assert half.total < 0.8e9
    assert full.total < 1.5e9
    assert half.weights > 2 * sum(  # every convolution's weights, in two bytes
        512 * 1024 * 9 for _ in range(4)
    )
    assert calculated(BFR_2048, torch.bfloat16) == half


def test_the_largest_level_decides() -> None:
    """At 2048 the convolution's input and result, the picture, and the picture so far."""
    half = calculated(BFR_2048, torch.float16).activations
    side = 2048 * 2048
    least = side * (32 * 2 + 16 * 2 + 3 * 2) + side // 4 * 3 * 4
    assert least <= half < 1.05 * least


def test_the_meter_counts_what_is_alive_at_once() -> None:
    outside = torch.zeros(1000)
    with Meter() as meter:
        a = torch.zeros(100)
        b = outside[:500].view(5, 100) + a  # 2000 bytes more; views and what was there are free
        del a
        torch.zeros(10)  # gone at once
        del b
        torch.zeros(300)
    assert meter.peak == 400 + 2000


def test_work_is_what_operations_read_and_write() -> None:
    picture = torch.zeros(1, 8, 10, 10, device=META)
    weight = torch.zeros(4, 8, 3, 3, device=META)

    def run() -> torch.Tensor:
        y = torch.nn.functional.conv2d(picture, weight, padding=1)
        return y.permute(0, 2, 3, 1).relu_()  # a view costs nothing; in place: read and written

    work = work_of(run)
    assert work.flop == 2 * 4 * 8 * 9 * 100
    assert work.moved == 4 * (800 + 4 * 8 * 9 + 400) + 4 * (400 + 400)
    assert work.peak == 1600


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_smaller_models_take_less(size: int) -> None:
    architecture = GpenArchitecture.from_parameters(size, *((1, 0.5) if size == 256 else (2, 1)))
    assert calculated(architecture, torch.float32).total < 1.1e9
