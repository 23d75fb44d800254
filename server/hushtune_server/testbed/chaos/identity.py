"""Faults 7 and 10: clocks that are off, and certificates that are expired, foreign or missing."""

import asyncio
import json
import shutil
import ssl
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from hushtune_common.errors import ConfigError, PeerLost
from hushtune_common.messages import Role
from hushtune_server import pki
from hushtune_server.testbed.chaos.case import Case, Finding, over, require_codes, require_counted_once
from hushtune_server.testbed.chaos.stage import Shifted, Stage

AHEAD_S = 600.0
"""By how much clocks are off."""
_DAY_S = 86_400.0
_START_S = 30.0
"""What a process may take to start before its ``connect_s`` begins."""


async def _shift_clocks(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    ahead, behind = clients
    finding.done = f"{ahead} is 10 minutes ahead and {behind} behind; whoever vouches for the servers is 10 minutes ahead of all"
    for name, off_s in ((ahead, AHEAD_S), (behind, -AHEAD_S)):
        said = json.loads(await stage.examine(name, ahead_s=off_s))
        warned = [line for line in said if "clock" in line["check"] and line["verdict"] == "warn"]
        finding.check(f"the doctor of {name} warns of each server's clock", len(warned) == 3, warned or said)
    await stage.take_part(ahead, ahead_s=AHEAD_S)
    await stage.take_part(behind, ahead_s=-AHEAD_S)
    await over(stage, ahead, behind)
    require_counted_once(stage, finding, ahead, behind)
    require_codes(stage, finding, 0, ahead, behind)
    first = {name: str(stage.log(name).find("scenario_resolved")[0]["time"]) for name in (*clients, "coordinator")}
    finding.check("their dates were off", first[behind] < first["coordinator"] < first[ahead], first)
    deaths = [e["client"] for e in stage.log("coordinator").find("client_died")]
    finding.check("nobody was taken for dead", not set(deaths) & {*clients}, deaths)
    finding.happened = "both were accepted: only durations on one clock are compared, certificates allow 10 minutes; doctors warn"


async def _show_bad_certificates(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    del clients
    finding.done = (
        "clients with an expired, a foreign and an incomplete kit, a caller without a certificate, an air that is expired"
    )
    kits = _bad_kits(stage)
    name = stage.clients[0]
    began_s = stage.clock.monotonic()
    for called, kit in kits.items():
        await stage.take_part(name, called=called, kit=kit)
    await stage.start_server("air", called="air-expired", kit=kits["expired"])
    code: dict[str, int] = {called: ConfigError.exit_code for called in ("expired", "incomplete", "foreign-unnoticed")}
    await stage.ended(*kits, "air-expired", within_s=_START_S + stage.scenario.timing.connect_s)
    finding.wall_s = stage.clock.monotonic() - began_s
    for called in kits:
        require_codes(stage, finding, code.get(called, PeerLost.exit_code), called)
        _require_word(stage, finding, called)
    require_codes(stage, finding, ConfigError.exit_code, "air-expired")
    await _require_hung_up(stage, finding, showing=None)
    await _require_hung_up(stage, finding, showing=kits["foreign"])
    for reason in ("has expired", "is of another authority", "shows no certificate"):
        told = [e["problem"] for server in ("air", "owner", "coordinator") for e in stage.log(server).find("handshake_refused")]
        finding.check(f"a server said: {reason}", any(reason in problem.lower() for problem in told), told)
    finding.happened = "each ended within connect_s with its code and one line naming the certificate; the servers logged why"


def _bad_kits(stage: Stage) -> dict[str, Path]:
    """Return the folders of kits that must not get anywhere, by how they are wrong."""
    name, ago = stage.clients[0], Shifted(stage.clock, by_s=-3 * _DAY_S)
    foreign = stage.run.path / "pki-foreign"
    pki.init(foreign, clock=stage.clock)
    old = stage.run.path / "pki-old"
    shutil.copytree(stage.run.path / "pki", old)
    kits = {
        "expired": stage.issue(Role.CLIENT, name, clock=ago, authority=old, folder="expired", days=1),
        "expired-unnoticed": stage.issue(Role.CLIENT, name, clock=ago, authority=old, folder="expired-unnoticed", days=1),
        "foreign": stage.issue(Role.CLIENT, name, clock=stage.clock, authority=foreign, folder="foreign"),
        "foreign-unnoticed": stage.issue(Role.CLIENT, name, clock=stage.clock, authority=foreign, folder="foreign-unnoticed"),
        "incomplete": stage.issue(Role.CLIENT, name, clock=stage.clock, folder="incomplete"),
    }
    (kits["incomplete"] / "tls.crt").unlink()
    # Two kits whose own papers say that all is well, so that it is the servers who have to notice.
    paper = kits["expired-unnoticed"] / "kit.toml"
    about = paper.read_text(encoding="utf-8").splitlines()
    later = (stage.clock.wall() + timedelta(days=1)).isoformat(timespec="seconds")
    paper.write_text("\n".join(f'not_after = "{later}"' if line.startswith("not_after") else line for line in about) + "\n")
    for ours in stage.run.kit(name).iterdir():  # everything but what says who it is
        if ours.name not in {"tls.crt", "tls.key", "kit.toml"}:
            shutil.copy(ours, kits["foreign-unnoticed"] / ours.name)
    return kits


def _require_word(stage: Stage, finding: Finding, called: str) -> None:
    lines = [line for line in stage.words(called).splitlines() if line.startswith("hushtune-client:")]
    said = lines[-1] if lines else ""
    finding.check(f"{called} says what is wrong", "certificate" in said or "tls.crt" in said, said)


async def _require_hung_up(stage: Stage, finding: Finding, *, showing: Path | None) -> None:
    """Call the air with no certificate at all, or with a foreign one: it must hang up within ``connect_s``."""
    context = ssl.create_default_context(cafile=str(stage.run.kit("air") / "ca.crt"))
    if showing is not None:
        context.load_cert_chain(showing / "tls.crt", showing / "tls.key")
    context.set_alpn_protocols(["h2"])
    host, _, port = stage.way(stage.clients[0], "air").rpartition(":")
    began_s, answer = stage.clock.monotonic(), b"?"
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(stage.scenario.timing.connect_s):
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="air.hushtune.internal")
            answer = b""
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            answer = await reader.read(1)
            writer.transport.abort()
    seconds = stage.clock.monotonic() - began_s
    what = "without a certificate" if showing is None else "with a foreign certificate"
    finding.check(f"{what}: hung up", answer == b"", f"after {seconds:.1f} s")


CASES = (
    Case(
        number=7,
        title="clocks off by 10 minutes",
        rule="nothing changes; the doctor warns",
        clients=2,
        play=_shift_clocks,
    ),
    Case(
        number=10,
        title="expired, foreign or missing certificate",
        rule="refused within connect_s with a clear message on both sides",
        clients=0,
        play=_show_bad_certificates,
    ),
)
