"""Hat functions against numpy's linear interpolation, and the bounds of actions that never change."""

from __future__ import annotations

import numpy as np
import torch

from trajectory.networks import ActionBounds, hat_functions


def test_they_interpolate_any_values_at_the_knots() -> None:
    rng = np.random.default_rng(0)
    low, high = np.array([-1.0, 3.0]), np.array([2.0, 4.0])
    x = rng.uniform(low - 1, high + 1, (50, 2))
    found = hat_functions(*[torch.from_numpy(part) for part in (x, low, high)], knots=7).view(50, 2, 7)
    for dimension in range(2):
        at_knots = rng.normal(size=7)
        expected = np.interp(x[:, dimension], np.linspace(low[dimension], high[dimension], 7), at_knots)
        np.testing.assert_allclose(found[:, dimension].numpy() @ at_knots, expected, atol=1e-12)


def test_a_dimension_that_never_changes_is_at_its_first_knot() -> None:
    constant = torch.full((3, 1), 1_000.0)
    found = hat_functions(constant, constant[0], constant[0], knots=4)
    assert torch.equal(found, torch.eye(4)[[0, 0, 0]])


def test_an_action_that_never_changes_scales_to_a_finite_number() -> None:
    constant = torch.full((3, 1), 1_000.0)
    bounds = ActionBounds.from_data(None, constant)
    scaled = bounds.scale(constant)
    assert scaled.isfinite().all()
    torch.testing.assert_close(bounds(scaled), constant)
