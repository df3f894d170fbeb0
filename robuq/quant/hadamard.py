"""Hadamard matrices, a fast transform, and the rotation of a layer's input.

Orders: n = b 2^k with b = 1, p + 1 (Paley I, prime p = 3 mod 4) or 2 (p + 1) (Paley II, prime p = 1 mod 4), so
b in 1, 12, 20, 28, 36, 44, 60, ...; b times a power of two is the Kronecker product with Sylvester's matrix.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robuq.config.quant import Transform
from robuq.quant import kernels
from robuq.quant.butterflies import has_butterflies

FAST_FROM = 128  # below, or with a factor under 8, one dense product is as fast as two small ones
CHUNK = 1 << 20  # values transformed at a time on a CPU, which bounds what lies between the factors
SYLVESTER_2 = np.array([[1, 1], [1, -1]], dtype=np.int8)


@lru_cache(maxsize=64)
def _hadamard(n: int) -> NDArray[np.int8]:
    base = base_order(n)
    matrix = paley(base) if base > 1 else np.ones((1, 1), dtype=np.int8)
    while len(matrix) < n:
        matrix = np.kron(matrix, SYLVESTER_2)
    matrix.setflags(write=False)
    return matrix


def hadamard_matrix(n: int) -> Tensor:
    """H (n, n) float64 with entries +-1 and H H^T = n I; for powers of two Sylvester's, which is symmetric.

    Raises:
        ValueError: no construction for this order.
    """
    return torch.tensor(_hadamard(n), dtype=torch.float64)


def base_order(n: int) -> int:
    """The smallest b of n = b 2^k that has a Paley construction, or 1 for powers of two.

    Raises:
        ValueError: there is none.
    """
    odd = n // (n & -n) if n > 0 else 0
    if odd == 1:
        return 1
    candidates = (odd << k for k in range(2, n.bit_length()))
    base = next((b for b in candidates if odd and n % b == 0 and _paley_prime(b)), None)
    if base is None:
        raise ValueError(
            f"no Hadamard matrix of order {n}: need n = b * 2**k with b in (1, 12, 20, 28, 36, 44, 60, ...),"
            " i.e. 1, p + 1 for a prime p = 3 mod 4, or 2 (p + 1) for a prime p = 1 mod 4"
        )
    return base


def _paley_prime(order: int) -> int | None:
    """The p of order = p + 1 (p = 3 mod 4) or 2 (p + 1) (p = 1 mod 4), or None."""
    if order % 4 == 0 and _is_prime(order - 1):
        return order - 1
    return order // 2 - 1 if order % 8 == 4 and _is_prime(order // 2 - 1) else None


def _is_prime(p: int) -> bool:
    return p > 1 and all(p % d for d in range(2, int(p**0.5) + 1))


def paley(order: int) -> NDArray[np.int8]:
    """Paley's matrix of `order` over GF(p), p prime.

    With the Jacobsthal matrix Q_ij = chi(i - j) and S = [[0, 1], [+-1, Q]] (+ if p = 1 mod 4):
    I: H = I + S, order p + 1;   II: H = S x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]], order 2 (p + 1).
    """
    p = _paley_prime(order)
    assert p is not None, order
    chi = np.full(p, -1, dtype=np.int8)
    chi[[i * i % p for i in range(p)]] = 1
    chi[0] = 0
    index = np.arange(p)
    s = np.ones((p + 1, p + 1), dtype=np.int8)
    s[0, 0] = 0
    s[1:, 0] = 1 if p % 4 == 1 else -1
    s[1:, 1:] = chi[(index[:, None] - index[None, :]) % p]
    identity = np.eye(p + 1, dtype=np.int8)
    if p % 4 == 3:
        return identity + s
    return np.kron(s, SYLVESTER_2) + np.kron(identity, np.array([[1, -1], [-1, -1]], dtype=np.int8))


@lru_cache(maxsize=64)
def factors(n: int) -> tuple[int, int]:
    """(a, b) with a b = n, H_n = H_a x H_b, and the least a + b, which is the cost per value."""
    base = base_order(n)
    options = [base << k for k in range((n // base).bit_length())]
    a = min(options, key=lambda a: a + n // a)
    return a, n // a


def has_two_factors(n: int) -> bool:
    """Whether the transform of this order runs as two small products."""
    return n >= FAST_FROM and min(factors(n)) >= 8


@lru_cache(maxsize=64)
def _factor(n: int, norm: int, transpose: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """H_n / sqrt(norm), made once per type and device."""
    matrix = hadamard_matrix(n) / math.sqrt(norm)
    return (matrix.t() if transpose else matrix).contiguous().to(device, dtype)


def hadamard_transform(x: Tensor, transpose: bool = False) -> Tensor:
    """x (..., n) -> (..., n), equal to x @ H / sqrt(n) (x @ H^T / sqrt(n)); norms and inner products are kept.

    Powers of two go by butterflies on a CPU. Most other widths from 128 on (on other devices: all) go by two
    factors, H = A x B: each row of x as a matrix X (a, b) becomes A^T X B.

    Raises:
        ValueError: no Hadamard matrix of order n.
    """
    return _signed_transform(x, None, transpose)


def _signed_transform(x: Tensor, signs: Tensor | None, transpose: bool = False) -> Tensor:
    if not torch.is_grad_enabled():
        return _transform(x, transpose, signs)
    transformed: Tensor = _HadamardTransform.apply(x, signs, transpose)  # type: ignore[no-untyped-call]
    return transformed


class _HadamardTransform(torch.autograd.Function):
    """(x * signs) H / sqrt(n). Keeps no tokens for backward, which is the transform with the transposed matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, signs: Tensor | None, transpose: bool) -> Tensor:
        ctx.signs, ctx.transpose = signs, transpose
        return _transform(x, transpose, signs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        back = hadamard_transform(grad, not ctx.transpose)
        return back if ctx.signs is None else back * ctx.signs, None, None


def is_plain(x: Tensor) -> bool:
    """Whether the compiled loops take x."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _has_loop(x: Tensor) -> bool:
    """Whether the transform of x's rows is a compiled loop."""
    return is_plain(x) and has_butterflies(x.shape[-1])


def _transform(x: Tensor, transpose: bool, signs: Tensor | None = None) -> Tensor:
    """(x * signs) H / sqrt(n), or with H^T; by butterflies or, chunk by chunk, by products on a CPU."""
    n = x.shape[-1]
    if _has_loop(x):
        scaled = x.new_full((n,), 1 / math.sqrt(n)) if signs is None else signs / math.sqrt(n)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        kernels.rotate(x.contiguous().view(-1, n).numpy(), scaled.numpy(), out.view(-1, n).numpy())
        return out
    if not has_two_factors(n):
        return (x if signs is None else x * signs) @ _factor(n, n, transpose, x.dtype, x.device)
    a, b = factors(n)
    left = _factor(a, a, not transpose, x.dtype, x.device)
    right = _factor(b, b, transpose, x.dtype, x.device)
    rows = x.reshape(-1, n)
    chunk = max(1, CHUNK // n)
    if len(rows) <= chunk or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return _two_factors(rows if signs is None else rows * signs, left, right).view(x.shape)
    transformed = torch.empty_like(rows)
    for first in range(0, len(rows), chunk):
        some = rows[first : first + chunk]
        some = some if signs is None else some * signs
        _two_factors(some, left, right, out=transformed[first : first + chunk].view(-1, b))
    return transformed.view(x.shape)


def _two_factors(rows: Tensor, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """rows (M, a b) -> left X right (M a, b) for each row X (a, b)."""
    a, b = len(left), len(right)
    return torch.mm((left @ rows.view(-1, a, b)).view(-1, b), right, out=out)


class Rotation(nn.Module):
    """The orthogonal change of basis of a layer's input: x (..., D) -> x R, R orthogonal.

    identity R = I; hadamard R = H / sqrt(D); random_hadamard R = diag(signs) H / sqrt(D), the signs fixed by
    (transform.seed, seed); block_hadamard R = diag(H_b, ..., H_b) / sqrt(b).

    Raises:
        ValueError: no Hadamard matrix of that order, or the block does not divide the width.
    """

    signs: Tensor | None

    def __init__(self, transform: Transform, width: int, seed: int) -> None:
        super().__init__()
        self.transform, self.width = transform, width
        self.block = transform.block or width
        if transform.kind != "identity":
            base_order(self.block)
        if transform.block is not None and width % transform.block:
            raise ValueError(f"block={transform.block} does not divide the width {width}: use one of its divisors")
        random = transform.kind == "random_hadamard"
        self.register_buffer("signs", random_signs(width, transform.seed, seed) if random else None)
        self._is_dense = transform.kind != "identity" and self.block == width and not has_two_factors(width)
        self._scaled_signs: tuple[Tensor | None, int, torch.dtype, NDArray[Any]] | None = None
        self._matrices: dict[tuple[torch.dtype, torch.device, int], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> x R."""
        if self.transform.kind == "identity":
            return x
        if self._is_dense and not _has_loop(x):
            return x @ self.matrix(x)
        if self.signs is None:
            return self._blockwise(x, transpose=False)
        return _signed_transform(x, self.signs.to(x.dtype))

    def inverse(self, y: Tensor) -> Tensor:
        """y (..., D) -> y R^T, so that inverse(forward(x)) = x."""
        if self.transform.kind == "identity":
            return y
        if self._is_dense and not _has_loop(y):
            return y @ self.matrix(y).t()
        x = self._blockwise(y, transpose=True)
        return x if self.signs is None else x * self.signs.to(x.dtype)

    def weight(self, w: Tensor) -> Tensor:
        """w (O, D) -> w R, so that forward(x) @ weight(w).T = x @ w.T."""
        return self.forward(w)

    def scaled_signs(self, x: Tensor) -> NDArray[Any] | None:
        """(D,): s of x R = (x s) H, where the compiled loops take whole rows of x; else None."""
        if self.transform.kind == "identity" or self.block != self.width or not _has_loop(x):
            return None
        version = 0 if self.signs is None else self.signs._version  # signs change when a state is loaded
        made = self._scaled_signs
        if made is None or made[0] is not self.signs or made[1:3] != (version, x.dtype):
            signs = np.ones(self.width) if self.signs is None else self.signs.double().numpy()
            real = np.float64 if x.dtype == torch.float64 else np.float32
            made = (self.signs, version, x.dtype, (signs / math.sqrt(self.width)).astype(real))
            self._scaled_signs = made
        return made[3]

    def matrix(self, like: Tensor) -> Tensor:
        """R (D, D) of a small width in the type and on the device of `like`, made once: signs are free so."""
        version = 0 if self.signs is None else self.signs._version  # signs change when a state is loaded
        place = (like.dtype, like.device, version)
        if place not in self._matrices:
            with torch.inference_mode(False), torch.no_grad():
                matrix = _factor(self.width, self.width, False, like.dtype, like.device)
                signs = None if self.signs is None else self.signs.to(like.device, like.dtype)
                self._matrices = {place: matrix if signs is None else matrix * signs.unsqueeze(-1)}
        return self._matrices[place]

    def _blockwise(self, x: Tensor, transpose: bool) -> Tensor:
        if self.block == self.width:
            return hadamard_transform(x, transpose)
        blocks = x.reshape(*x.shape[:-1], self.width // self.block, self.block)
        return hadamard_transform(blocks, transpose).reshape(x.shape)

    def extra_repr(self) -> str:
        return f"{self.width}, {self.transform.kind}, block={self.block}"


def random_signs(width: int, *seeds: int) -> Tensor:
    """+-1 (width,) float32, a function of the seeds alone."""
    state = int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(state)
    return torch.randint(0, 2, (width,), generator=generator).mul_(2).sub_(1).float()
