"""What is a share of the adapter worth, and what is to be optimised: utilities of the share and the objectives built on them.

Notation: ``share`` (phi) is the part of the adapter that a client trains and uploads, ``u`` a client's utility of it.
"""

from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
UtilityKind = Literal["log", "exponential", "power", "scaling", "log_share", "linear", "table"]
ObjectiveKind = Literal["ratio", "difference", "cost", "max_min"]

UTILITY_KINDS: Final[tuple[UtilityKind, ...]] = get_args(UtilityKind)
OBJECTIVE_KINDS: Final[tuple[ObjectiveKind, ...]] = get_args(ObjectiveKind)
RISK_AVERSION_MIN: Final = 0.5
"""From this relative curvature on, ``u(v**2)`` is concave in v and the whole problem convex (derived, not peer reviewed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is maximised, with U the sum of utilities and S the cost (weighted time and energy).

    ``ratio``: U / S. ``difference``: U - ``price`` S. ``cost``: -S under U >= ``utility_min``. ``max_min``: min_n u_n / S.
    """

    kind: ObjectiveKind = "ratio"
    price: float | None = None
    """Utility per unit of cost; with ``difference`` only."""
    utility_min: float | None = None
    """Floor of the sum of utilities; with ``cost`` only."""

    def __post_init__(self) -> None:
        """The kind is known and has exactly its own parameter."""
        if self.kind not in OBJECTIVE_KINDS:
            raise ValueError(f"objective.kind is one of {', '.join(OBJECTIVE_KINDS)}, got {self.kind!r}")
        if (self.price is not None) != (self.kind == "difference"):
            raise ValueError("objective.price belongs to the kind difference, and to no other")
        if (self.utility_min is not None) != (self.kind == "cost"):
            raise ValueError("objective.utility_min belongs to the kind cost, and to no other")
        if self.price is not None and not (np.isfinite(self.price) and self.price > 0.0):
            raise ValueError(f"objective.price is positive and finite, got {self.price}")
        if self.utility_min is not None and not np.isfinite(self.utility_min):
            raise ValueError(f"objective.utility_min is finite, got {self.utility_min}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Utility:
    """Utilities of N clients: ``offset`` + ``weight`` times a function of the share with one ``shape`` each.

    ``log``: ln(1 + shape share). ``exponential``: 1 - exp(-shape share). ``power``: share ** shape.
    ``scaling``: -(share ** -shape), which needs an offset to be positive. ``log_share``: ln(share / shape).
    ``linear``: share. ``table``: ``values`` (N, K) at the K increasing ``levels``, linear in between; ``shape`` is not used.
    Laws: increasing in the share, except a table, which may do what it wants.
    """

    kind: UtilityKind
    weight: Floats
    """(N,), positive."""
    shape: Floats
    """(N,), positive."""
    offset: Floats | None = None
    """(N,), or None for zero."""
    levels: tuple[float, ...] = ()
    values: Floats | None = None

    def __post_init__(self) -> None:
        """Sizes agree, numbers are finite and signs right."""
        if self.kind not in UTILITY_KINDS:
            raise ValueError(f"utility.kind is one of {', '.join(UTILITY_KINDS)}, got {self.kind!r}")
        n = self.weight.size
        for name, numbers in (("weight", self.weight), ("shape", self.shape), ("offset", self.offset)):
            if numbers is None:
                continue
            if numbers.shape != (n,):
                raise ValueError(f"utility.{name} has shape {numbers.shape}, expected ({n},)")
            bad = ~np.isfinite(numbers) if name == "offset" else ~(np.isfinite(numbers) & (numbers > 0.0))
            if bad.any():
                raise ValueError(f"utility.{name} of client {int(bad.argmax())} is {numbers[bad][0]}, expected a positive number")
        if (self.kind == "table") != (self.values is not None):
            raise ValueError("utility.values belong to the kind table, and to no other")
        if self.values is not None:
            self._check_table(self.values)

    def _check_table(self, values: Floats) -> None:
        if values.shape != (self.weight.size, len(self.levels)) or not self.levels:
            raise ValueError(f"utility.values has shape {values.shape}, expected ({self.weight.size}, {len(self.levels)})")
        if not np.isfinite(values).all() or np.any(np.diff(self.levels) <= 0.0):
            raise ValueError("utility.values are finite and utility.levels increase")

    @property
    def clients(self) -> int:
        """N."""
        return self.weight.size

    def select(self, index: NDArray[np.intp]) -> "Utility":
        """Return the utilities of the clients at these positions, in this order."""
        return Utility(
            kind=self.kind,
            weight=self.weight[index],
            shape=self.shape[index],
            offset=None if self.offset is None else self.offset[index],
            levels=self.levels,
            values=None if self.values is None else self.values[index],
        )

    def value(self, share: Floats) -> Floats:
        """Return u; ``share`` is (N,) or (N, K), and so is the result."""
        q, s, o = self._columns(share)
        match self.kind:
            case "log":
                u = np.log1p(s * share)
            case "exponential":
                u = -np.expm1(-s * share)
            case "power":
                u = share**s
            case "scaling":
                u = -(share**-s)
            case "log_share":
                u = np.log(share / s)
            case "linear":
                u = share
            case "table":
                u = self._interpolate(share)
        return o + q * u

    def slope(self, share: Floats) -> Floats:
        """Return u', in the shape of ``share``; of a table the slope of the segment to the right."""
        q, s, _ = self._columns(share)
        match self.kind:
            case "log":
                return q * s / (1.0 + s * share)
            case "exponential":
                return q * s * np.exp(-s * share)
            case "power":
                return q * s * share ** (s - 1.0)
            case "scaling":
                return q * s * share ** (-s - 1.0)
            case "log_share":
                return q / share
            case "linear":
                return q * np.ones_like(share)
            case "table":
                return q * self._segment(share)

    def curvature(self, share: Floats) -> Floats:
        """Return u'', in the shape of ``share``; zero inside the segments of a table."""
        q, s, _ = self._columns(share)
        match self.kind:
            case "log":
                return -q * (s / (1.0 + s * share)) ** 2
            case "exponential":
                return -q * s * s * np.exp(-s * share)
            case "power":
                return q * s * (s - 1.0) * share ** (s - 2.0)
            case "scaling":
                return -q * s * (s + 1.0) * share ** (-s - 2.0)
            case "log_share":
                return -q / share**2
            case "linear" | "table":
                return np.zeros_like(share)

    def share_of(self, value: Floats) -> Floats:
        """Return the share at which each utility has this value, (N,); infinity or NaN where none has, and not for a table."""
        q, s, o = self._columns(value)
        u = (value - o) / q
        with np.errstate(all="ignore"):
            match self.kind:
                case "log":
                    return np.expm1(u) / s
                case "exponential":
                    return -np.log1p(-u) / s
                case "power":
                    return np.maximum(u, 0.0) ** (1.0 / s)
                case "scaling":
                    return (-u) ** (-1.0 / s)
                case "log_share":
                    return s * np.exp(u)
                case "linear":
                    return u
                case "table":
                    raise ValueError("a table has no inverse")

    def relative_risk_aversion_min(self, share_min: Floats, share_max: Floats) -> Floats:
        """Return the least of ``-share u'' / u'`` on each client's range, (N,); minus infinity for a table.

        It grows with the share for ``log`` and ``exponential`` and is constant for the others.
        """
        if self.kind == "table":
            return np.full(self.clients, -np.inf)
        del share_max  # no kind has its least value there
        return -share_min * self.curvature(share_min) / self.slope(share_min)

    def in_theorem(self, share_min: Floats, share_max: Floats) -> bool:
        """Whether the problem is convex after ``v = sqrt(share)``: every relative risk aversion is at least one half."""
        least = self.relative_risk_aversion_min(share_min, share_max)
        return bool((least >= RISK_AVERSION_MIN * (1.0 - 1e-12)).all())

    def _columns(self, share: Floats) -> tuple[Floats, Floats, Floats]:
        offset = np.zeros(self.clients) if self.offset is None else self.offset
        if share.ndim == 1:
            return self.weight, self.shape, offset
        return self.weight[:, None], self.shape[:, None], offset[:, None]

    def _interpolate(self, share: Floats) -> Floats:
        rows = [np.interp(x, self.levels, v) for x, v in zip(share, cast(Floats, self.values), strict=True)]
        return np.asarray(rows, dtype=np.float64)

    def _segment(self, share: Floats) -> Floats:
        if len(self.levels) == 1:
            return np.zeros_like(share)
        slopes = np.diff(cast(Floats, self.values), axis=1) / np.diff(self.levels)  # (N, K - 1)
        at = np.clip(np.searchsorted(self.levels, share, side="right") - 1, 0, slopes.shape[1] - 1)
        return np.asarray(np.take_along_axis(slopes, at.reshape(self.clients, -1), axis=1).reshape(share.shape), dtype=np.float64)
