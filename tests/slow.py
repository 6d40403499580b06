"""Slow and obvious: what the swap does, one token and one latent pixel at a time."""

from __future__ import annotations

import torch


def slow_restrict(latents, field, a, layout):
    """Every token by the formula; beyond the border the clean part is replicated."""
    (h, w), p, tokens = latents.shape[-2:], layout.patch_px, []
    clean = latents - a * field.eps
    for (row, column), s in zip(
        layout.token_starts.tolist(), layout.token_sides.tolist(), strict=True
    ):
        token = torch.zeros(*latents.shape[:2], p, p, dtype=latents.dtype)
        for i in range(p):
            for j in range(p):
                ys = [row * p + i * s + k for k in range(s)]
                xs = [column * p + j * s + k for k in range(s)]
                inside = [[clean[..., min(y, h - 1), min(x, w - 1)] for x in xs] for y in ys]
                token[..., i, j] = sum(sum(line) for line in inside) / s**2
                if max(ys) < h and max(xs) < w:
                    noise = sum(field.eps[..., y, x] for y in ys for x in xs) / s
                else:
                    noise = field.coarse(s)[..., row // s * p + i, column // s * p + j]
                token[..., i, j] += a * noise
        tokens.append(token)
    return torch.stack(tokens, dim=1)


def slow_prolong(tokens, field, a, layout):
    """Every latent pixel by the formula."""
    p, (h, w) = layout.patch_px, layout.grid_px
    grid = torch.zeros_like(field.eps)
    for y in range(h):
        for x in range(w):
            n = layout.owner[y // p, x // p]
            (row, column), s = layout.token_starts[n].tolist(), int(layout.token_sides[n])
            i, j = (y - row * p) // s, (x - column * p) // s
            noise = field.coarse(s)[..., row // s * p + i, column // s * p + j]
            grid[..., y, x] = tokens[:, n, :, i, j] - a * noise + a * field.eps[..., y, x]
    return grid


def slow_positions(layout, units, side):
    """Row and column of every token, by its cell's fine tokens."""
    positions = []
    for n in range(layout.n_tokens):
        rows, columns = (layout.owner == n).nonzero().unbind(dim=1)
        own, starts = int(layout.token_sides[n]), (int(rows.min()), int(columns.min()))
        centre = [sum(range(start, start + own)) / own for start in starts]
        of = {
            "native": [start // own for start in starts],
            "fine": centre,
            "coarse": [start / side for start in starts],
            "anchor": list(starts),
            "phase": list(starts),
        }
        positions.append(of[units])
    return torch.tensor(positions, dtype=torch.float32)


def slow_interpolate(tokens, field, a, layout):
    """Every fine token: its cell's clean anchor, blurred where cells are coarse, and its noise."""
    rows, columns = layout.sides.shape
    p = layout.patch_px

    def noise(row, column):
        return a * field.eps[..., row * p : (row + 1) * p, column * p : (column + 1) * p]

    anchors = [tokens[:, n] - noise(*start) for n, start in enumerate(layout.token_starts.tolist())]
    deviation = max(0.4 / (layout.n_tokens / (rows * columns)) ** 0.5, 1.0)
    reach = range(-int(3 * deviation), int(3 * deviation) + 1)
    bell = torch.exp(-torch.tensor([k**2 for k in reach], dtype=tokens.dtype) / (2 * deviation**2))
    bell = dict(zip(reach, (bell / bell.sum()).tolist(), strict=True))
    grid = torch.zeros_like(field.eps)
    for row in range(rows):
        for column in range(columns):
            n = layout.owner[row, column]
            value = anchors[n]
            if layout.token_starts[n].tolist() != [row, column]:
                value = 0
                for up, weight in bell.items():
                    for across, other in bell.items():
                        y = min(max(row + up, 0), rows - 1)
                        x = min(max(column + across, 0), columns - 1)
                        value = value + weight * other * anchors[layout.owner[y, x]]
            place = (..., slice(row * p, (row + 1) * p), slice(column * p, (column + 1) * p))
            grid[place] = value + noise(row, column)
    return grid
