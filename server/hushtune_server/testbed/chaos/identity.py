"""Faults 7 and 10: clocks that are off, and certificates that are expired, foreign or missing."""

import asyncio
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from hushtune_common.errors import ConfigError, NotYours, PeerLost
from hushtune_common.messages import Role
from hushtune_common.units import Second
from hushtune_common.wire import probe
from hushtune_common.wire.endpoint import Kit
from hushtune_server import pki
from hushtune_server.testbed.chaos.case import Case, Finding, over, require_codes, require_counted_once
from hushtune_server.testbed.chaos.stage import SERVERS, Shifted, Stage
from hushtune_server.testbed.chaos.strangers import Knock, knock, overstep

AHEAD_S = 600.0
"""By how much clocks are off."""
_DAY_S = 86_400.0
_START_S = 30.0
"""What a process may take to start before its ``connect_s`` begins."""
_REFUSED: Mapping[str, tuple[str, str]] = {
    "an expired certificate": ("expired-unnoticed", "its certificate has expired"),
    "a foreign certificate": ("foreign", "its certificate is of another authority"),
    "no certificate": ("", "it shows no certificate"),
}
"""What a server must not take: the kit that it is shown, and what its log has to say."""


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
        "called each server with an expired, a foreign, a wrong role's and no certificate; clients with an expired, a foreign "
        "and an incomplete kit; an air that is expired"
    )
    kits = _bad_kits(stage)
    name = stage.clients[0]
    began_s = stage.clock.monotonic()
    for server in SERVERS:
        await _knock(stage, finding, server, kits)
        await _overstep(stage, finding, server)
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
    finding.happened = "each server refused each within connect_s, and logged why; each process ended with its code and one line"


async def _knock(stage: Stage, finding: Finding, server: str, kits: Mapping[str, Path]) -> None:
    """Show a server what it must not take: it hangs up, its log says why, and our programs can tell what the matter is."""
    connect_s, address = stage.scenario.timing.connect_s, stage.way(stage.clients[0], server)
    ours = stage.run.kit(stage.clients[0])

    async def shown(kit: Path | None) -> Knock:
        trusted = ours / "ca.crt"
        return await knock(address, role=Role(server), authority=trusted, showing=kit, within_s=connect_s, clock=stage.clock)

    finding.check(f"{server} lets in who belongs to the run", (await shown(ours)).let_in)
    for what, (called, why) in _REFUSED.items():
        found = await shown(kits[called] if called else None)
        refused = found.hung_up and found.seconds < connect_s
        finding.check(f"{server}, shown {what}: hung up within connect_s", refused, f"{found.seconds:.1f} s")
        problem = f"a connection was refused: {why}"
        told = await stage.heard(server, "handshake_refused", problem=problem, within_s=connect_s)
        finding.check(f"{server}, shown {what}: logged, with the remedy", told["remedy"], told["problem"])
        if called:
            kit = replace(Kit.load(kits[called]), ca=Kit.load(ours).ca)  # who is foreign knows us, and we do not know it
            looked = await asyncio.to_thread(probe.look, address, role=Role(server), kit=kit, within_s=Second(connect_s))
            said = f"{looked.problem}; {looked.remedy}"
            finding.check(
                f"{server}, shown {what}: the caller can say so", looked.stage == "ours" and "certificate" in said, said
            )


async def _overstep(stage: Stage, finding: Finding, server: str) -> None:
    """Call a server as a role that may not: it answers whose call that is, and logs who made it."""
    kit = Kit.load(stage.run.kit(Role.EAVESDROPPER))
    said = await overstep(stage.way(stage.clients[0], server), role=Role(server), kit=kit, timing=stage.scenario.timing)
    finding.check(f"{server} refuses the eavesdropper's certificate, and says so to the caller", kit.caller.uri in said, said)
    refused = await stage.heard(server, "call_refused", reason=NotYours.reason, caller=kit.caller.uri)
    finding.check(f"{server} logs whom it refused", kit.caller.uri in refused["problem"], refused["problem"])


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


CASES = (
    Case(
        number=7,
        title="clocks off by 10 minutes",
        rule="nothing changes; the doctor warns",
        rows=("a clock that is off",),
        clients=2,
        play=_shift_clocks,
    ),
    Case(
        number=10,
        title="expired, foreign or missing certificate",
        rule="refused within connect_s with a clear message on both sides",
        rows=(
            "a client's certificate has expired",
            "a server's certificate has expired",
            "a certificate of another authority",
            "a kit of the wrong role or name",
            "a caller without a certificate",
        ),
        clients=0,
        play=_show_bad_certificates,
    ),
)
