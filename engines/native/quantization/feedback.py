"""Choosing codes one column after another, each making up for the errors of those before it: GPTQ (arXiv 2210.17323).

A layer's output errs by E X^T, E [N, K] being the weights' errors and X [num_tokens, K] the inputs, so that the sum of
squares is tr(E H E^T), H = X^T X. Rounding each weight to its nearest code minimizes only H's diagonal part. Where
columns of X go along with each other, the error of one column is in part undone by moving those that are not rounded
yet: with U upper triangular, H^-1 = U^T U, column j moves by -(w_k - q_k) U[k, j] / U[k, k] once k is rounded, and the
sum becomes that of (w_k - q_k)^2 / U[k, k]^2 (the paper's section 3.3), which is what a group's scale is fitted to.

H comes from few tokens, and what they have in common by chance must not be learnt: every column's own part is raised by
a share of itself, which leaves costly and cheap columns as far apart as they are. GPTQ adds the same number to all; a
few columns that are hundreds of times the others then set it, and too much or too little is added to each.

H is held in pieces of consecutive columns, and errors stay within a piece: see `piece_of`. Knows no format.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_DAMPING = 0.3  # of a column's own mean square; 0.1 to 0.5 differ little
_MOST_RANKS = 8  # that choose the same codes
_WIDEST = 2048  # piece

_LOADING = threading.Lock()

Fitted = tuple[Tensor, ...]  # what a format keeps for a group (scale, offset), each [N, groups, 1]
TakeGroup = Callable[[Tensor, Tensor], tuple[Fitted, Tensor]]
"""Takes the columns of one group in each piece: (group [pieces, columns, N] float32, which becomes what each column was
when its turn came; the factor's block [pieces, columns, columns]) to (what was fitted to the groups, each [N, pieces,
1]; errors [pieces, columns, N], which columns of later groups move by)."""


def piece_of(columns: int, num_ranks: Sequence[int], group_size: int) -> int:
    """The widest piece of a matrix's columns that is cut by none of these numbers of ranks, nor cuts a group.

    Numbers that would cut a group are left out: such a model is refused. Pieces go side by side and columns one by one,
    so that wide pieces take long, and are halved.
    """
    unit = max(group_size, 1)
    piece = math.gcd(*(columns // ranks for ranks in num_ranks if columns % (ranks * unit) == 0))
    while piece > _WIDEST and piece % (2 * unit) == 0:
        piece //= 2
    return piece


def numbers_of_ranks(own: int, *units: int) -> list[int]:
    """Those up to eight, and this one, that divide all `units`."""
    return [ranks for ranks in {*range(1, _MOST_RANKS + 1), own} if all(unit % ranks == 0 for unit in units)]


def second_moments(x: Tensor, piece: int) -> Tensor:
    """H / num_tokens of x [num_tokens, K], by pieces: [K / piece, piece, piece] float32.

    What overflowed tells nothing (random weights do that): every column then counts the same, and none with another.
    """
    columns = x.float().view(x.shape[0], -1, piece).permute(1, 2, 0)
    moments = columns @ columns.mT / x.shape[0]
    return torch.where(moments.isfinite().all(), moments, torch.eye(piece, device=x.device))


def inverse_factor(moments: Tensor) -> Tensor:
    """U [pieces, piece, piece] of damped moments of that shape. Scaled to correlations first, so that float32 does."""
    scale = moments.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    correlations = moments / scale.unsqueeze(2) / scale.unsqueeze(1)
    correlations.diagonal(dim1=1, dim2=2).fill_(1 + _DAMPING)
    with _LOADING:
        _load_linalg(moments.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(correlations))
    return torch.linalg.cholesky(inverse, upper=True) / scale.unsqueeze(1)


@functools.cache
def _load_linalg(device: torch.device) -> None:
    """torch loads a GPU's linear algebra when it is first used, and fails where two threads do that at once."""
    torch.linalg.cholesky(torch.eye(1, device=device))


def costs_of(own: Tensor) -> Tensor:
    """What a column's squared error costs once later columns have made up for it, [pieces, columns]; own as TakeGroup
    has it."""
    return own.diagonal(dim1=1, dim2=2).square().reciprocal()


def column_by_column(fit: Callable[[Tensor, Tensor], Fitted], near: Callable[[Tensor, Fitted], Tensor]) -> TakeGroup:
    """In plain PyTorch: `fit(groups [N, pieces, columns], costs [1, pieces, columns])` makes the groups' scales,
    `near(columns, fitted)` is what codes would stand for, by elements."""

    def take(group: Tensor, own: Tensor) -> tuple[Fitted, Tensor]:
        made = fit(group.permute(2, 0, 1).contiguous(), costs_of(own).unsqueeze(0))
        pivots = own.diagonal(dim1=1, dim2=2)
        errors = torch.empty_like(group)
        at_once = tuple(tensor.squeeze(2).T.contiguous() for tensor in made)  # [pieces, N]
        for k in range(group.shape[1]):
            column = group[:, k].contiguous()
            errors[:, k] = (column - near(column, at_once)) / pivots[:, k : k + 1]
            group[:, k + 1 :] -= own[:, k, k + 1 :, None] * errors[:, k, None]
        return made, errors

    return take


def spread_errors(weight: Tensor, moments: Tensor, step: int, take: TakeGroup) -> tuple[Tensor, list[Fitted]]:
    """(weight [N, K] float32 as each column was when its turn came, what was fitted for each of K / step groups).

    Groups of `step` columns are taken in order, in all pieces at once. Rounding the result to what was fitted gives the
    codes.
    """
    factor = inverse_factor(moments)
    pieces, piece, _ = factor.shape
    columns = weight.float().T.reshape(pieces, piece, -1).clone(memory_format=torch.contiguous_format)
    fitted: list[list[Fitted]] = [[] for _ in range(pieces)]
    for start in range(0, piece, step):
        stop = min(start + step, piece)
        made, errors = take(columns[:, start:stop], factor[:, start:stop, start:stop])
        columns[:, stop:].baddbmm_(factor[:, start:stop, stop:].mT, errors, alpha=-1)
        for index in range(pieces):
            fitted[index].append(tuple(tensor[:, index : index + 1] for tensor in made))
    return columns.flatten(0, 1).T.contiguous(), [made for of_piece in fitted for made in of_piece]
