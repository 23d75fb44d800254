"""What every test starts from: a known environment, deterministic Hypothesis, one thread."""

import pytest
from hypothesis import HealthCheck, settings

from hushtune_common import logs

settings.register_profile(
    "push", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("push")
logs.refuse_uncatalogued(True)  # a line that docs/EVENTS.md does not know is a defect


@pytest.fixture(autouse=True)
def clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GRPC_VERBOSITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", default=False, help="rewrite golden files; the diff is the review")


EXPECTED_SKIPS = (
    "needs a GPU",
    "there is a GPU",
    "the system has no device that is always full",
    "the package ",
    "no Prometheus here",
    "the reference loader needs accelerate",
    "pkg:",
    "only scripts/compose-test gives a container engine",
)
"""What may be missing on a machine; any other skip is a hole in the suite and fails the run."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(EXPECTED_SKIPS):
            terminalreporter.write_line(f"unexpected skip: {report.nodeid}: {reason}", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if isinstance(reporter, pytest.TerminalReporter) else []
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in skipped]
    if exitstatus == pytest.ExitCode.OK and any(not reason.startswith(EXPECTED_SKIPS) for reason in reasons):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
