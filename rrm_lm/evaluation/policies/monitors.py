"""Over-optimization: gold and proxy reward against the distance from the reference, with a fitted curve and its peak.

The distance d is the square root of the KL divergence from the reference. Gold reward rises with it, and falls when the
proxy is optimized too far. Gao et al. 2022 (arXiv 2210.10760, equations 1 and 2) found

    best-of-n:               R(d) = R0 + d (alpha - beta d)
    reinforcement learning:  R(d) = R0 + d (alpha - beta ln d)

Both are linear in their parameters, so least squares has a closed form. R0, the reward at d = 0, is a parameter too,
because it is measured with the same noise as the other points. Intervals come from resampling prompts jointly at all
points, because all points use the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike

from rrm_lm.evaluation.policies.best_of_n import BestOfNCurve
from rrm_lm.evaluation.policies.comparison import mean_over_prompts, prompt_means
from rrm_lm.evaluation.statistics import bootstrap
from rrm_lm.evaluation.statistics.metrics import Estimate, Floats, cluster_index, clustered_se
from rrm_lm.training.over_optimisation import NAMES, Measurement, Reading

Kind = Literal["rl", "best_of_n"]
State = Literal["rising", "past the peak", "unclear", "not enough points"]

LEAST_POINTS = 4  # one more than the curve has parameters


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One policy at several distances from its reference, on the same prompts."""

    kind: Kind  # reinforcement learning or best-of-n
    steps: tuple[int, ...]  # `(points,)` training step, or n
    kl: Floats  # `(prompts, points)` log-probability ratios to the reference in nats, averaged over a prompt's samples
    # proxy, gold: `(prompts, points)` rewards, averaged over a prompt's samples; NaN without a reward
    proxy: Floats
    gold: Floats
    clusters: tuple[str, ...]  # `(prompts,)` prompt labels
    names: tuple[str, str] = NAMES


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a track: its distance and rewards, with 95% intervals over prompts; None if missing."""

    step: int
    distance: float
    kl: Estimate | None
    proxy: Estimate | None
    gold: Estimate | None

    def to_dict(self) -> dict[str, object]:
        found = asdict(self)
        return {"step": found.pop("step"), "sqrt_kl": found.pop("distance"), **found}


@dataclass(frozen=True, slots=True)
class CurveFit:
    """A fitted curve, with bootstrap intervals over prompts."""

    kind: Kind
    # start, alpha, beta: R0, alpha and beta of the curve
    start: Estimate
    alpha: Estimate
    beta: Estimate
    peak: Estimate  # d at the maximum of the curve; infinite if it only rises
    peak_reward: Estimate  # the curve's value there
    slope: Estimate  # slope of the curve at the last point
    r_squared: float  # share of the points' variance that the curve explains; NaN if they do not vary

    def at(self, distance: ArrayLike) -> Floats:
        """The curve's values at distances of any shape."""
        d = np.asarray(distance, dtype=float)
        return _design(self.kind, d) @ np.array([self.start.value, self.alpha.value, self.beta.value])


@dataclass(frozen=True, slots=True)
class Fall:
    """How far the last point is below the best one before it."""

    best_step: int  # where gold reward was highest before the last point
    # Gold reward of the last point minus that of the best, paired by prompt. The interval is corrected for picking the
    # best of `n` points and for all looks at a run, at most 2.5% of which look like a fall by noise alone.
    difference: Estimate
    fallen: bool  # whether the whole interval is below 0


@dataclass(frozen=True, slots=True)
class OverOptimisation:
    """The analysis of a track."""

    kind: Kind
    # whether gold reward still rises at the last point, according to the slope of the fitted curve and its interval
    state: State
    points: tuple[Point, ...]
    fit: CurveFit | None  # the fitted curve; None with fewer than `LEAST_POINTS` points at different distances
    fall: Fall | None  # the drop from the best point; None without a point before the last one
    prompts: int
    names: tuple[str, str] = NAMES

    def to_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "names": list(self.names),
            "state": self.state,
            "n_points": len(self.points),
            "n_prompts": self.prompts,
            "points": [point.to_dict() for point in self.points],
            "fit": self.fit and asdict(self.fit),
            "fall": self.fall and asdict(self.fall),
        }


# ---- tracks ----


def track_of(measurements: Sequence[Measurement]) -> Track:
    """Make the track of a policy in training. Raises ValueError if there is no measurement, or they have different
    prompts.
    """
    if not measurements:
        raise ValueError("there is no measurement")
    labels = {probe.prompt: probe.prompt_id for probe in measurements[0].samples}
    for one in measurements:
        if {probe.prompt: probe.prompt_id for probe in one.samples} != labels:
            raise ValueError(f"steps {measurements[0].step} and {one.step} were measured on different prompts")
    numbers = sorted(labels)
    places = {number: row for row, number in enumerate(numbers)}

    def table(name: str) -> Floats:
        rows: list[list[list[float]]] = [[[] for _ in measurements] for _ in numbers]
        for column, one in enumerate(measurements):
            for probe in one.samples:
                rows[places[probe.prompt]][column].append(getattr(probe, name))
        known = [[np.array([x for x in values if math.isfinite(x)]) for values in row] for row in rows]
        return np.stack([prompt_means(row) for row in known])

    steps = tuple(one.step for one in measurements)
    groups = tuple(labels[number] for number in numbers)
    return Track("rl", steps, table("kl"), table("proxy"), table("gold"), groups, measurements[-1].names)


def best_of_n_track(curve: BestOfNCurve, names: tuple[str, str] = NAMES) -> Track:
    kl = np.broadcast_to(curve.kl, curve.gold_by_prompt.shape)
    labels = tuple(map(str, curve.clusters))
    return Track("best_of_n", tuple(curve.n), kl, curve.proxy_by_prompt, curve.gold_by_prompt, labels, names)


def points_of(track: Track) -> tuple[Point, ...]:
    points = []
    for column, step in enumerate(track.steps):
        kl, proxy, gold = (
            mean_over_prompts([row[column : column + 1] for row in table], track.clusters)
            for table in (track.kl, track.proxy, track.gold)
        )
        points.append(Point(step, math.sqrt(max(kl.value, 0.0)) if kl else math.nan, kl, proxy, gold))
    return tuple(points)


# ---- curves ----


def _design(kind: Kind, distance: Floats) -> Floats:
    """The design matrix `(..., 3)` for R0, alpha and beta."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bend = distance**2 if kind == "best_of_n" else np.where(distance > 0, distance * np.log(distance), 0.0)
    return np.stack([np.ones_like(distance), distance, -bend], axis=-1)


def fit_curve(track: Track, *, draws: int = bootstrap.DRAWS) -> CurveFit | None:
    """Fit gold reward against distance at the points with a gold reward; None with too few different distances."""
    there = np.isfinite(track.gold).any(axis=0) & np.isfinite(track.kl).any(axis=0)
    kl, gold = track.kl[:, there], track.gold[:, there]
    whole = np.ones((1, len(kl)))
    distance, reward = _means(whole, kl, gold)
    if len(np.unique(np.round(distance[0], 6))) < LEAST_POINTS:
        return None
    weights = bootstrap.prompt_weights(track.clusters, draws=draws)
    drawn_distance, drawn_reward = _means(weights, kl, gold)
    known = np.isfinite(drawn_distance).all(axis=1) & np.isfinite(drawn_reward).all(axis=1)
    drawn_distance, drawn_reward = drawn_distance[known], drawn_reward[known]
    values = _parameters(track.kind, distance, reward)
    resampled = _parameters(track.kind, drawn_distance, drawn_reward)
    count = cluster_index(track.clusters)[1]
    start, alpha, beta, peak, top, slope = (
        bootstrap.estimate(float(value[0]), many, n=distance.shape[1], clusters=count)
        for value, many in zip(values, resampled, strict=True)
    )
    left = reward[0] - _design(track.kind, distance[0]) @ np.array([start.value, alpha.value, beta.value])
    spread = float(((reward[0] - reward[0].mean()) ** 2).sum())
    fitted = 1 - float(left @ left) / spread if spread > 0 else math.nan
    return CurveFit(track.kind, start, alpha, beta, peak, top, slope, fitted)


def _means(weights: Floats, kl: Floats, gold: Floats) -> tuple[Floats, Floats]:
    """Distance and gold reward `(draws, points)` of resampled prompts."""
    divergence = bootstrap.weighted_means(weights, kl)
    # The estimate may be negative by chance, but a divergence is never negative.
    return np.sqrt(np.maximum(divergence, 0.0)), bootstrap.weighted_means(weights, gold)


def _parameters(kind: Kind, distance: Floats, reward: Floats) -> tuple[Floats, ...]:
    """R0, alpha, beta, peak, reward at the peak and slope at the last point, each `(draws,)`, by least squares. The
    peak is infinite if the curve only rises, 0 if it only falls.
    """
    parameters = (np.linalg.pinv(_design(kind, distance)) @ reward[..., None])[..., 0]
    start, alpha, beta = np.moveaxis(parameters, -1, 0)
    last = np.maximum(distance[:, -1], np.finfo(float).tiny)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        top = alpha / (2 * beta) if kind == "best_of_n" else np.exp(alpha / beta - 1)
        peak = np.where(beta > 0, np.maximum(top, 0.0), math.inf)
        gain = peak * (alpha - beta * peak) if kind == "best_of_n" else beta * peak
        slope = alpha - beta * (2 * distance[:, -1] if kind == "best_of_n" else np.log(last) + 1)
    return start, alpha, beta, peak, start + np.where(np.isinf(peak), math.inf, gain), slope


# ---- verdicts ----


def fall_of(track: Track) -> Fall | None:
    """How far the last point with gold rewards is below the best one before it; None without two such points."""
    columns = np.flatnonzero(np.isfinite(track.gold).any(axis=0))
    if len(columns) < 2:
        return None
    *earlier, last = columns.tolist()
    means = [float(np.nanmean(track.gold[:, column])) for column in earlier]
    best = earlier[int(np.argmax(means))]
    difference = track.gold[:, last] - track.gold[:, best]
    known = np.isfinite(difference)
    if not known.any():
        return None
    values = difference[known]
    labels = [label for label, there in zip(track.clusters, known, strict=True) if there]
    value = float(values.mean())
    se, count = clustered_se((values - value) / values.size, labels)
    # 2.5% is spent over all looks of a run, the k-th of which compares with k points: 1/(1*2) + 1/(2*3) + ... = 1.
    looks = len(earlier)
    tail = 0.025 / (looks * looks * (looks + 1))
    half = float(scipy.stats.t.ppf(1 - tail, count - 1)) * se if count > 1 else math.inf
    found = Estimate(value, value - half, value + half, len(earlier), count)
    return Fall(track.steps[best], found, fallen=found.high < 0)


def over_optimisation(track: Track) -> OverOptimisation:
    """Fit the curve of a track, and determine whether gold reward still rises at its last point."""
    fit = fit_curve(track)
    state: State = "not enough points"
    if fit is not None:
        state = "rising" if fit.slope.low > 0 else "past the peak" if fit.slope.high < 0 else "unclear"
    count = cluster_index(track.clusters)[1]
    return OverOptimisation(track.kind, state, points_of(track), fit, fall_of(track), count, track.names)


def watch(measurements: Sequence[Measurement]) -> Reading:
    """Interpret the measurements of a policy in training: the `read` of `OverOptimisationCallback`.

    Training should stop when gold reward has fallen significantly below the best so far (see `Fall`).
    """
    found = over_optimisation(track_of(measurements))
    last, fall = found.points[-1], found.fall
    estimates = {"kl": last.kl, "proxy": last.proxy, "gold": last.gold}
    numbers = {name: estimate.value for name, estimate in estimates.items() if estimate is not None}
    parts = [f"{name} {value:.3f}" for name, value in numbers.items()]
    parts.append(f"gold reward {found.state}" if found.fit is not None else found.state)
    if found.fit is not None and math.isfinite(found.fit.peak.value):
        numbers["peak_kl"] = found.fit.peak.value**2
        parts[-1] += f" (peak at KL {numbers['peak_kl']:.2f})"
    stop = ""
    if fall is not None and fall.fallen:
        low, value, high = (-end for end in (fall.difference.high, fall.difference.value, fall.difference.low))
        stop = (
            f"gold reward is {value:.3f} below that of step {fall.best_step} "
            f"(interval {low:.3f} to {high:.3f}, {found.prompts} prompts)"
        )
    golden = [(point.gold.value, -point.step) for point in found.points if point.gold is not None]
    return Reading("; ".join(parts), stop, numbers, -max(golden)[1] if golden else None)
