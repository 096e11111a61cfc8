"""3x3 convolution in fp32 by Winograd's minimal filtering F(4x4, 3x3) (arXiv 1509.09308).

Each 4x4 tile of the result takes 36 products for every pair of channels instead of 144. The
transforms are sums of whole channels_last lines; the products are 36 matrix products. With many
channels it takes about half the time of oneDNN's direct fp32 convolution.

The points of interpolation are 0, +-2/3, +-3/2 and infinity instead of the usual 0, +-1, +-2:
the error is half as large (9e-7 instead of 2e-6, a direct convolution's is 7e-7).
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 4  # of the result; the tile of the input has two more rows and columns
_A, _B = 2 / 3, 3 / 2
_A2, _B2 = _A * _A, _B * _B  # _A2 * _B2 == 1

# Bytes of the transformed input that is worked on at a time: it is to stay in the cache, but
# each matrix product is to have enough rows.
TILE_BYTES = 4 * 1024 * 1024
LEAST_ROWS = 128


def filter_transform() -> Tensor:
    """G, fp64 (6, 3): row p is (1, p, p^2) / product of (p - q) over the other finite points q."""
    rows = [[1.0, 0.0, 0.0]]
    for point, other in ((_A, _B2), (_B, _A2)):
        norm = 2 * point**2 * (point**2 - other)
        rows += [[1 / norm, sign * point / norm, point**2 / norm] for sign in (1, -1)]
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


class Winograd:
    """A 3x3 convolution; weight (O, I, 3, 3), transformed in fp64 and kept as fp32 (36, I, O)."""

    def __init__(self, weight: Tensor) -> None:
        outputs, inputs = weight.shape[:2]
        g = filter_transform()
        # G w^T G^T as a product with the Kronecker square (columns come first in `tiles`), for
        # some outputs at a time: in fp64 all at once would take eight times the weights.
        both = torch.kron(g, g).t().contiguous()
        self.weight = torch.empty(36, inputs, outputs)
        for first in range(0, outputs, 32):
            filters = weight[first : first + 32].mT.reshape(-1, 9).double()
            some = (filters @ both).view(-1, inputs, 36)
            self.weight[:, :, first : first + 32] = some.permute(2, 1, 0)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """Convolve without padding: fp32 (h + 2, w + 2, I) to out, (h, w, O).

        h and w are multiples of TILE; out is contiguous.
        """
        inputs = self.weight.shape[1]
        tile_row = 36 * (out.shape[1] // TILE) * inputs * x.element_size()
        least = -(-LEAST_ROWS * TILE // out.shape[1])
        step = TILE * max(1, least, TILE_BYTES // tile_row)
        for first in range(0, out.shape[0], step):
            last = min(first + step, out.shape[0])
            self._rows(x[first : last + 2], out[first:last])

    def _rows(self, x: Tensor, out: Tensor) -> None:
        rows, columns = out.shape[0] // TILE, out.shape[1] // TILE
        _, inputs, outputs = self.weight.shape
        lines = torch.empty(6, rows, x.shape[1], inputs)
        _input([x[k::TILE][:rows] for k in range(6)], lines)
        tiles = torch.empty(6, 6, rows, columns, inputs)  # column, row of the transform
        _input([lines[:, :, k::TILE][:, :, :columns] for k in range(6)], tiles)
        products = torch.bmm(tiles.view(36, rows * columns, inputs), self.weight)
        products = products.view(6, 6, rows, columns, outputs)
        lines = torch.empty(6, rows, TILE, columns, outputs)
        _output([products[:, k] for k in range(6)], [lines[:, :, k] for k in range(TILE)])
        out = out.view(rows, TILE, columns, TILE, outputs)
        _output([lines[k] for k in range(6)], [out[:, :, :, k] for k in range(TILE)])


def _input(d: list[Tensor], out: Tensor) -> None:
    """Write B^T d, six tensors, of the six in d.

    Point p takes the coefficients of x (x + p) (x^2 - q^2), q the other pair's point.
    """
    even = torch.sub(d[4], d[2], alpha=_B2)
    odd = torch.sub(d[3], d[1], alpha=_B2)
    torch.add(even, odd, alpha=_A, out=out[1])
    torch.sub(even, odd, alpha=_A, out=out[2])
    torch.sub(d[4], d[2], alpha=_A2, out=even)
    torch.sub(d[3], d[1], alpha=_A2, out=odd)
    torch.add(even, odd, alpha=_B, out=out[3])
    torch.sub(even, odd, alpha=_B, out=out[4])
    torch.add(torch.sub(d[4], d[2], alpha=_A2 + _B2, out=even), d[0], out=out[0])
    torch.add(torch.sub(d[5], d[3], alpha=_A2 + _B2, out=odd), d[1], out=out[5])


def _output(m: list[Tensor], out: list[Tensor]) -> None:
    """Write A^T m, four tensors, of the six in m: out[k] is the sum of p^k m[p]."""
    inner, outer = m[1] + m[2], m[3] + m[4]
    torch.add(m[0] + inner, outer, out=out[0])
    torch.add(inner.mul_(_A2), outer, alpha=_B2, out=out[2])
    torch.sub(m[1], m[2], out=inner).mul_(_A)
    torch.sub(m[3], m[4], out=outer).mul_(_B)
    torch.add(inner, outer, out=out[1])
    torch.add(torch.add(m[5], inner, alpha=_A2, out=inner), outer, alpha=_B2, out=out[3])
