"""The region that a front leaves open, as disjoint boxes (Lacour, Klamroth, Fonseca 2017)."""

import numpy as np

from evomerge.datatypes import FloatArray


def open_boxes(front: FloatArray, reference: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Cut what no point dominates, below the reference, into boxes.

    Args:
        front: `(n_points, n_objectives)` losses.
        reference: `(n_objectives,)`.

    Returns:
        Lower and upper corners, each `(n_boxes, n_objectives)`; the first lower coordinate, and
        others where nothing bounds them, are -inf.
    """
    m = len(reference)
    bounds = reference[None, :].copy()  # local upper bounds
    defining = np.full((1, m, m), -np.inf)  # [bound, which point, its losses]
    defining[0, np.arange(m), np.arange(m)] = reference
    for z in front:
        hit = (z < bounds).all(axis=1)
        if not hit.any():
            continue
        new_bounds, new_defining = [bounds[~hit]], [defining[~hit]]
        for j in range(m):
            others = np.delete(defining[hit][:, :, j], j, axis=1)
            kept = (z[j] >= others).all(axis=1)
            moved, points = bounds[hit][kept], defining[hit][kept]
            moved[:, j], points[:, j, :] = z[j], z
            new_bounds.append(moved)
            new_defining.append(points)
        bounds, defining = np.concatenate(new_bounds), np.concatenate(new_defining)
    lower = np.full_like(bounds, -np.inf)
    for j in range(1, m):
        lower[:, j] = defining[:, :j, j].max(axis=1)
    open_ = (lower < bounds).all(axis=1)
    return lower[open_], bounds[open_]
