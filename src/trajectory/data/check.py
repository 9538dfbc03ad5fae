"""What looks wrong with a dataset, in a line each. Nothing here changes the data or the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trajectory.data.episodes import Episodes, concatenate
from trajectory.data.jumps import change_scale, is_jump, other_rows

PARTS = 4  # of those that a source is read in
ROWS = 500_000  # of all of these, in whole episodes, that are looked at
SAMPLE = 50_000  # rows that are looked at where not all of them can be
JUMPS = 1e-4  # shares from which on a line is worth reading
REPEATED = 0.01
SATURATED = 0.8
FEW = 10  # distinct values: a choice, not a number that could be saturated
LONG = 20  # transitions from which on two equal episodes are no chance
GAIN = 0.02  # of the variance of the next observation, that shifted actions must explain beyond those of their row


def check_data(parts: Sequence[Episodes], returns: np.ndarray) -> list[str]:
    """Findings, none where nothing looks wrong: ends, repetitions, dimensions, actions and rewards.

    Args:
        parts: of the dataset, of which a few evenly spaced ones are looked at, the first episodes of each.
        returns: (E,) of all episodes.
    """
    chosen = [parts[index] for index in np.linspace(0, len(parts) - 1, min(len(parts), PARTS)).astype(int)]
    begun = concatenate([_first_episodes(part, ROWS // len(chosen)) for part in chosen])
    return [*check_episodes(begun), *([] if returns.any() else ["rewards are all 0"])]


def _first_episodes(part: Episodes, rows: int) -> Episodes:
    """As many as have so many rows, at least one; without a copy."""
    count = max(1, int(np.searchsorted(part.ends, rows, side="right")))
    end = int(part.ends[count - 1])
    columns = (part.observations[:end], part.actions[:end], part.rewards[:end])
    return Episodes(*columns, part.ends[:count], part.terminated[:count], part.choices)


def check_episodes(episodes: Episodes, seed: int = 0) -> list[str]:
    """Findings, but for rewards. Where rows are compared, a seeded sample of them is."""
    rows = other_rows(episodes.ends - 1, len(episodes.rewards), SAMPLE, seed)
    return [
        *_check_ends(episodes, rows),
        *_check_repetitions(episodes, rows),
        *_check_dimensions(episodes),
        *_check_actions(episodes, rows),
        *_check_alignment(episodes, rows),
    ]


def _check_ends(episodes: Episodes, rows: np.ndarray) -> list[str]:
    """Jumps within episodes, episodes of one transition, and terminations that are time limits."""
    found = []
    if len(rows):
        jumps = rows[is_jump(episodes.observations, rows, change_scale(episodes.observations, rows))]
        share = len(jumps) / len(rows)
        if share >= JUMPS:
            line = f"observations jump after {share:.2%} of the rows within episodes"
            late = episodes.ends[np.searchsorted(episodes.ends, jumps, side="right")] - 1 - jumps
            early = jumps - episodes.starts[np.searchsorted(episodes.ends, jumps, side="right")] + 1
            offset = np.where(late <= early, late, -early)
            common = int(np.median(offset))
            if abs(common) <= FEW and np.mean(offset == common) > 0.5:
                side = "after" if common > 0 else "before"
                line += f": most ends are flagged {_plural(abs(common), 'row')} {side} a reset"
            found.append(line)
    short = int((episodes.lengths == 1).sum())
    if short:
        found.append(f"{short} of {_plural(len(episodes), 'episode')} have one transition")
    ended = episodes.lengths[episodes.terminated]
    if len(ended) > 2 and len(np.unique(ended)) == 1 < ended[0] == episodes.lengths.max():
        found.append(f"all {len(ended)} terminations are after {ended[0]} steps, as time limits are")
    return found


def _check_repetitions(episodes: Episodes, rows: np.ndarray) -> list[str]:
    """Rows that are the same as the one before, and episodes that are the same as another."""
    found = []
    observations, actions = episodes.observations, episodes.actions
    if len(rows) and not _is_discrete(observations[rows]):
        same = np.ones(len(rows), bool)
        for column in (observations, actions):
            same &= (column[rows] == column[rows + 1]).all(axis=1)
        if same.mean() >= REPEATED:
            found.append(f"{same.mean():.1%} of the rows repeat the one before")
    long = np.flatnonzero(episodes.lengths > LONG)
    if len(long) > 1:
        first, last = episodes.starts[long], episodes.ends[long] - 1
        parts = [column[at] for at in (first, last) for column in (observations, actions)]
        marks = np.concatenate([*parts, episodes.lengths[long, None].astype(np.float32)], axis=1)
        copies = len(marks) - len(np.unique(marks, axis=0))
        if copies >= REPEATED * len(episodes):
            found.append(f"{copies} of {_plural(len(episodes), 'episode')} are the same as another")
    return found


def _check_dimensions(episodes: Episodes) -> list[str]:
    """Dimensions that are constant, and those that are the same as another."""
    found = []
    for name, column in (("observation", episodes.observations), ("action", episodes.actions)):
        sample = column[:: -(-len(column) // SAMPLE)]
        constant = [i for i in np.flatnonzero(np.ptp(sample, axis=0) == 0) if np.ptp(column[:, i]) == 0]
        if constant:
            found.append(f"constant: {_names(name, constant)}")
        varying = [i for i in range(column.shape[1]) if i not in constant]
        kept: list[int] = []
        copies: list[int] = []
        for i in varying:
            same = [j for j in kept if np.array_equal(sample[:, i], sample[:, j])]
            is_copy = any(np.array_equal(column[:, i], column[:, j]) for j in same)
            (copies if is_copy else kept).append(i)
        if copies:
            found.append(f"the same as an earlier dimension: {_names(name, copies)}")
    return found


def _check_actions(episodes: Episodes, rows: np.ndarray) -> list[str]:
    """Dimensions of the actions that are mostly at their bounds."""
    saturated = []
    for i, column in enumerate(episodes.actions[rows].T):
        if len(column) and len(np.unique(column[:SAMPLE])) > FEW:
            share = float(np.mean((column == column.min()) | (column == column.max())))
            if share >= SATURATED:
                saturated.append(f"{i} ({share:.0%})")
    return [f"saturated in most rows: action {', '.join(saturated)}"] if saturated else []


def _check_alignment(episodes: Episodes, rows: np.ndarray) -> list[str]:
    """Whether actions are recorded one row out of step.

    The action of a row explains some of the change to the next observation; here that of the row before, or of the row
    after, explains more. A policy makes the next action depend on the next observation, in data that are in step, too:
    what the observation of its own row explains of an action is taken out first.
    """
    inner = rows[(rows > 0) & (rows + 2 < len(episodes.rewards))]
    inner = inner[~np.isin(inner, episodes.ends) & ~np.isin(inner - 1, episodes.ends - 1)]
    inner = inner[~np.isin(inner, episodes.ends - 1) & ~np.isin(inner + 1, episodes.ends)]
    dimensions = episodes.layout.observation_dim + episodes.layout.action_dim
    if len(inner) < 20 * dimensions or _is_discrete(episodes.observations[inner]):
        return []
    now, after = (_standard(episodes.observations[inner + shift]) for shift in (0, 1))
    change = _standard(episodes.observations[inner + 1].astype(np.float64) - episodes.observations[inner])
    before, own, next_ = (_standard(episodes.actions[inner + shift]) for shift in (-1, 0, 1))
    gains = {
        "in step": _gain(change, now, own),
        "late": _gain(change, now, next_ - _fit(after, next_)),
        "early": _gain(change, now, before),
    }
    own_beyond_policy = _gain(change, now, own - _fit(after, own))
    if gains["late"] > 2 * gains["in step"] + GAIN:
        return [_out_of_step("after", gains["late"], gains["in step"])]
    if gains["early"] > 2 * max(own_beyond_policy, 0) + GAIN and gains["early"] > gains["in step"]:
        return [_out_of_step("before", gains["early"], gains["in step"])]
    return []


def _out_of_step(where: str, shifted: float, own: float) -> str:
    return (
        f"actions look one row out of step: that of the row {where} explains {shifted:.0%} of the change of the "
        f"observation, the row's own {max(own, 0):.0%}"
    )


def _gain(target: np.ndarray, base: np.ndarray, added: np.ndarray) -> float:
    """How much more of the target's variance the base and the added columns explain than the base alone."""
    with_added = target - _fit(np.concatenate([base, added], axis=1), target)
    return float(np.mean((target - _fit(base, target)) ** 2) - np.mean(with_added**2))


def _fit(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The prediction of the target by ridge regression; columns of both have mean 0."""
    gram = features.T @ features
    gram[np.diag_indices_from(gram)] += 1e-3 * len(features)
    return features @ np.linalg.solve(gram, features.T @ target)


def _standard(column: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1, outliers clipped; constant dimensions 0."""
    values = column.astype(np.float64)
    deviation = values.std(axis=0)
    values = (values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    clipped = np.clip(values, -5, 5)
    return clipped - clipped.mean(axis=0)


def _is_discrete(rows: np.ndarray) -> bool:
    """Whether all numbers are whole, as cells and choices are."""
    return bool(np.all(rows == np.round(rows)))


def _names(kind: str, dimensions: list[int]) -> str:
    shown = ", ".join(map(str, dimensions[:FEW]))
    return f"{kind} {shown}" + (f" and {len(dimensions) - FEW} more" if len(dimensions) > FEW else "")


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
