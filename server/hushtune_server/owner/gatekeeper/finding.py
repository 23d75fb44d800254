"""Why is an update refused? One screen, the number that it found, and the limit that this number broke."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One reason to refuse an update.

    ``setting`` is the limit's name in the scenario, ``value`` the number that was found, in the limit's unit; ``problem`` says
    both for people, without the limit.
    """

    setting: str
    value: float
    limit: float
    problem: str

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.setting}: {self.problem}, limit {self.limit:.4g}"


def told(findings: Iterable[Finding]) -> str:
    """Return all reasons in one line."""
    return "; ".join(finding.text for finding in findings)
