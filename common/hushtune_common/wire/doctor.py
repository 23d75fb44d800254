"""Can this process take part, and if not, what has to be done? Everything that can be known before a run, in words."""

import asyncio
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from grpc_health.v1 import health_pb2, health_pb2_grpc

from hushtune_common.clock import Clock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import ConfigError, HushtuneError
from hushtune_common.messages import Digest, Role
from hushtune_common.units import Second
from hushtune_common.wire import der, faults, probe, revocation
from hushtune_common.wire.about import About, read_about
from hushtune_common.wire.convert import PROTOCOL_MAJOR, PROTOCOL_MINOR_MIN
from hushtune_common.wire.endpoint import connect, ready
from hushtune_common.wire.kit import Kit, require_valid

__all__ = ["Finding", "Verdict", "as_json", "examine", "is_well", "render"]

_SOON: Final = timedelta(days=14)
_SKEW_WARN_S: Final = 60.0
_PAYLOAD_BYTES: Final = 1 << 20
_SLOW_BYTES_PER_S: Final = 125_000.0
_DISK_FAIL_BYTES: Final = 256 << 20
_DISK_WARN_BYTES: Final = 4 << 30


class Verdict(StrEnum):
    """How a check went; only ``FAIL`` keeps a process from taking part."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found: ``check`` names it, ``remedy`` says what to do unless all is well."""

    check: str
    verdict: Verdict
    text: str
    remedy: str = ""


def is_well(findings: Sequence[Finding]) -> bool:
    """Return whether nothing failed."""
    return all(finding.verdict is not Verdict.FAIL for finding in findings)


def render(findings: Sequence[Finding]) -> str:
    """Return the findings for a person: a line each, and the remedy below it."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.verdict:<4}  {finding.check:<{width}}  {finding.text}")
        if finding.remedy and finding.verdict is not Verdict.OK:
            lines.append(f"{'':<6}{'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return the findings for a program."""
    return [
        {"check": finding.check, "verdict": finding.verdict.value, "text": finding.text, "remedy": finding.remedy}
        for finding in findings
    ]


async def examine(
    folder: Path,
    *,
    addresses: Mapping[Role, str],
    scenario: Digest | None,
    timing: TimingConfig,
    state: Path,
    clock: Clock,
) -> list[Finding]:
    """Check the kit in ``folder``, the disk below ``state``, and every server of ``addresses``, all of them at the same time.

    ``scenario`` is what the servers should run, if it is known. Takes at most about ``connect_s`` and a transfer's time.
    """
    try:
        kit = Kit.load(folder)
    except ConfigError as error:
        return [_failed("kit", str(error))]
    findings = [*_kit(kit, clock=clock), _disk(state)]
    if not is_well(findings):
        return [*findings, *(_skipped(role, address) for role, address in addresses.items())]
    visits = (_visit(role, address, kit, scenario, timing=timing, clock=clock) for role, address in addresses.items())
    return [*findings, *(finding for found in await asyncio.gather(*visits) for finding in found)]


# --- here -------------------------------------------------------------------------------------------------------------


def _kit(kit: Kit, *, clock: Clock) -> list[Finding]:
    checks = (_validity, _names, _list, _privacy)
    return [Finding(check="kit", verdict=Verdict.OK, text=kit.caller.uri), *(check(kit, clock) for check in checks)]


def _validity(kit: Kit, clock: Clock) -> Finding:
    try:
        require_valid(kit, clock=clock)
    except ConfigError as error:
        problem, _, remedy = str(error).partition("; ")
        return _failed("certificate", problem, remedy)
    left = kit.not_after - clock.wall()
    text = f"good until {kit.not_after:%Y-%m-%d %H:%M} UTC, {left.days} days"
    soon = "renew it in time: `hushtune pki renew`, or ask for a new kit"
    return _found("certificate", Verdict.WARN if left < _SOON else Verdict.OK, text, soon)


def _names(kit: Kit, clock: Clock) -> Finding:
    try:
        leaf = der.read_certificate(der.unwrap(kit.certificate, label="CERTIFICATE"))
    except ValueError as error:
        return _failed("names", f"tls.crt cannot be read ({error})", "get the kit again")
    if leaf.uris != (kit.caller.uri,):
        return _failed(
            "names",
            f"the certificate is of {', '.join(leaf.uris) or 'nobody'}, kit.toml says {kit.caller.uri}",
            "get the kit again",
        )
    if (leaf.not_before, leaf.not_after) != (kit.not_before, kit.not_after):
        return _failed("names", "the dates in kit.toml are not the certificate's", "get the kit again")
    return _found("names", Verdict.OK, f"serial {leaf.serial:x}" + (f", for {', '.join(leaf.hosts)}" if leaf.hosts else ""))


def _list(kit: Kit, clock: Clock) -> Finding:
    try:
        found = revocation.require_not_revoked(kit, clock=clock, needed=kit.caller.role is not Role.CLIENT)
    except HushtuneError as error:
        problem, _, remedy = str(error).partition("; ")
        return _failed("revocation list", problem, remedy)
    if found is None:
        return _found("revocation list", Verdict.WARN, "the kit has none", "ask for a kit of a newer `hushtune pki`")
    return _found("revocation list", Verdict.OK, f"number {found.body.number}, {len(found.body.revoked)} revoked, not this one")


def _privacy(kit: Kit, clock: Clock) -> Finding:
    path = kit.directory / "tls.key"
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return _found("private key", Verdict.WARN, f"others on this machine may read it (mode {mode:o})", f"chmod 600 {path}")
    return _found("private key", Verdict.OK, "readable by its user only")


def _disk(state: Path) -> Finding:
    there = next(folder for folder in (state.absolute(), *state.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:.1f} GB free for {state}"
    remedy = "an emulator takes 2 to 4 bytes per weight that it keeps, an update less; make room, or choose another folder"
    if free < _DISK_FAIL_BYTES:
        return _failed("disk", text, remedy)
    return _found("disk", Verdict.WARN if free < _DISK_WARN_BYTES else Verdict.OK, text, remedy)


# --- there ------------------------------------------------------------------------------------------------------------


async def _visit(
    role: Role, address: str, kit: Kit, scenario: Digest | None, *, timing: TimingConfig, clock: Clock
) -> list[Finding]:
    looked = await asyncio.to_thread(probe.look, address, role=role, kit=kit, within_s=Second(timing.connect_s))
    if looked.stage != "done":
        return [_failed(f"{role}", looked.problem, looked.remedy)]
    try:
        withdrawn = _withdrawn(kit, looked.leaf, clock=clock)
        if withdrawn:
            return [_failed(f"{role}", f"the server's certificate: {withdrawn}", "trust nothing there; ask its operator")]
        return await _talk(role, address, kit, scenario, looked.leaf, timing=timing, clock=clock)
    except HushtuneError as error:
        problem, _, remedy = str(error).partition("; ")
        return [_failed(f"{role}", problem, remedy)]


def _withdrawn(kit: Kit, leaf: der.Leaf | None, *, clock: Clock) -> str | None:
    if leaf is None or not (kit.directory / revocation.LIST).exists():
        return None
    return revocation.load(kit, clock=clock).problem_of(leaf.serial)


async def _talk(
    role: Role,
    address: str,
    kit: Kit,
    scenario: Digest | None,
    leaf: der.Leaf | None,
    *,
    timing: TimingConfig,
    clock: Clock,
) -> list[Finding]:
    channel = connect(address, role=role, kit=kit, timing=timing, clock=clock)
    try:
        await ready(channel, address=address, role=role, timing=timing, kit=kit)
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with faults.translated():
            call: Any = stub.Check(health_pb2.HealthCheckRequest(), timeout=timing.connect_s)
            asked, before = clock.wall(), clock.monotonic()
            answer = await call
            about, round_trip_s = read_about(await call.trailing_metadata()), clock.monotonic() - before
        serving = answer.status == health_pb2.HealthCheckResponse.ServingStatus.SERVING
        return [
            _serving(role, address, serving=serving, round_trip_s=round_trip_s, leaf=leaf, clock=clock),
            _protocol(role, about),
            *([] if scenario is None else [_scenario(role, about, scenario)]),
            _clock(role, about, asked=asked, round_trip_s=round_trip_s),
            await _throughput(role, stub, timing=timing, clock=clock),
        ]
    finally:
        await channel.close()


def _serving(role: Role, address: str, *, serving: bool, round_trip_s: float, leaf: der.Leaf | None, clock: Clock) -> Finding:
    text = f"{address}, {round_trip_s * 1000:.0f} ms there and back"
    if not serving:
        return _found(f"{role}", Verdict.WARN, f"{text}; it is about to stop", "wait until it was started again")
    if leaf is not None and leaf.not_after - clock.wall() < _SOON:
        text += f"; its certificate ends on {leaf.not_after:%Y-%m-%d %H:%M} UTC"
        return _found(f"{role}", Verdict.WARN, text, "its operator runs `hushtune pki renew`, no restart is needed")
    return _found(f"{role}", Verdict.OK, text)


def _protocol(role: Role, about: About) -> Finding:
    check, ours = f"{role}: protocol", f"this program speaks {PROTOCOL_MAJOR}.{PROTOCOL_MINOR_MIN} or later"
    major, _, minor = (about.protocol or "").partition(".")
    if not (major.isdigit() and minor.isdigit()):
        return _found(check, Verdict.WARN, "the server does not say which it speaks", "it is older than this program; update it")
    if int(major) != PROTOCOL_MAJOR or int(minor) < PROTOCOL_MINOR_MIN:
        return _failed(check, f"the server speaks {about.protocol}, {ours}", "install the same version on both machines")
    return _found(check, Verdict.OK, str(about.protocol))


def _scenario(role: Role, about: About, scenario: Digest) -> Finding:
    check = f"{role}: scenario"
    if about.scenario is None:
        return _found(check, Verdict.WARN, "the server does not say which it runs", "it is older than this program; update it")
    if about.scenario != scenario:
        text = f"the server runs {about.scenario.short}, this side has {scenario.short}"
        return _failed(check, text, "take the same scenario file and --set on both sides, or ask for a kit of this run")
    return _found(check, Verdict.OK, scenario.short)


def _clock(role: Role, about: About, *, asked: datetime, round_trip_s: float) -> Finding:
    """Compare the dates, give or take the way there: a hint for a person, since only certificates depend on it."""
    check = f"{role}: clock"
    if about.date is None:
        return _found(check, Verdict.WARN, "the server does not say what time it is", "it is older than this program; update it")
    off_s = (about.date - asked).total_seconds() - round_trip_s / 2
    text = f"{abs(off_s):.1f} s {'ahead of' if off_s > 0 else 'behind'} this machine's, give or take {round_trip_s / 2:.1f} s"
    remedy = "set both by NTP; a run does not mind, but certificates begin and end by each machine's own clock"
    return _found(check, Verdict.WARN if abs(off_s) > _SKEW_WARN_S else Verdict.OK, text, remedy)


async def _throughput(role: Role, stub: Any, *, timing: TimingConfig, clock: Clock) -> Finding:
    """Send a megabyte as the name of a service that nobody has; the answer, "no such service", comes when all has arrived."""
    check, request = f"{role}: upload", health_pb2.HealthCheckRequest(service="?" * _PAYLOAD_BYTES)
    begun = clock.monotonic()
    try:
        with faults.translated():
            await stub.Check(request, timeout=timing.idle_s)
    except HushtuneError as error:
        if "NOT_FOUND" not in str(error):
            return _found(check, Verdict.WARN, f"1 MiB did not get through in {timing.idle_s:g} s ({error})", "use a faster line")
    speed = _PAYLOAD_BYTES / max(clock.monotonic() - begun, 1e-6)
    text = f"about {speed / 1e6:.1f} MB/s; 100 MB take {100e6 / speed:.0f} s"
    return _found(
        check, Verdict.WARN if speed < _SLOW_BYTES_PER_S else Verdict.OK, text, "transfers resume, but plan long rounds"
    )


def _found(check: str, verdict: Verdict, text: str, remedy: str = "") -> Finding:
    return Finding(check=check, verdict=verdict, text=text, remedy="" if verdict is Verdict.OK else remedy)


def _failed(check: str, text: str, remedy: str = "") -> Finding:
    return Finding(check=check, verdict=Verdict.FAIL, text=text, remedy=remedy)


def _skipped(role: Role, address: str) -> Finding:
    return _found(f"{role}", Verdict.WARN, f"{address} was not asked", "first mend what failed above")
