"""Is a withdrawn certificate refused, at once, by servers that run, and is nothing else taken for a list?"""

import asyncio
import logging
import shutil
import socket
import ssl
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.clock import SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import CertificateRevoked, ConfigError
from hushtune_common.messages import Caller, Role
from hushtune_common.wire import der, revocation
from hushtune_common.wire.endpoint import Kit, ready
from hushtune_server import pki
from hushtune_server.pki.authority import Authority, entry
from tests.contracts.test_endpoint import SERVICE, call, channel_to, echo, serving
from tests.fakes import FakeClock
from tests.kits import Kits

CLOCK = SystemClock()
QUICK = TimingConfig(connect_s=2.0, idle_s=0.6)
ALICE = Caller(role=Role.CLIENT, name="alice")


@pytest.fixture
def kits(tmp_path: Path) -> Kits:
    return Kits(tmp_path / "kits")


def serial_of(kit: Path) -> int:
    return x509.load_pem_x509_certificate((kit / "tls.crt").read_bytes()).serial_number


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [record.__dict__["hushtune_fields"] for record in caplog.records if record.getMessage() == event]


# --- what is in a list ------------------------------------------------------------------------------------------------


@given(serials=st.sets(st.integers(min_value=1, max_value=2**159 - 1), max_size=20))
def test_a_list_is_read_as_another_library_wrote_it(tmp_path_factory: pytest.TempPathFactory, serials: set[int]):
    folder = tmp_path_factory.mktemp("ca")
    pki.init(folder, clock=FakeClock())
    at = FakeClock().wall()
    Authority.load(folder).sign_list({n: entry(n, reason="key-compromise", at=at) for n in serials}, clock=FakeClock())
    body = der.read_list(der.unwrap((folder / "ca.crl").read_bytes(), label="X509 CRL"))
    assert set(body.revoked) == serials
    assert all((e.at, e.reason) == (at, "key compromise") for e in body.revoked.values())
    assert (body.number, body.next_update) == (2, at + timedelta(days=pki.LIST_DAYS))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A list and a certificate, DER."""
    folder = tmp_path_factory.mktemp("samples")
    pki.init(folder / "ca", clock=CLOCK)
    pki.issue(folder / "ca", role=Role.CLIENT, name="alice", out=folder / "alice", clock=CLOCK)
    pki.revoke(folder / "ca", clock=CLOCK, caller=ALICE)
    found = x509.load_pem_x509_crl((folder / "ca" / "ca.crl").read_bytes())
    leaf = x509.load_pem_x509_certificate((folder / "alice" / "tls.crt").read_bytes())
    return found.public_bytes(Encoding.DER), leaf.public_bytes(Encoding.DER)


def test_a_certificate_is_read_as_another_library_reads_it(samples: tuple[bytes, bytes]):
    leaf, wanted = der.read_certificate(samples[1]), x509.load_der_x509_certificate(samples[1])
    assert leaf.serial == der.serial_of(samples[1]) == wanted.serial_number
    assert (leaf.not_before, leaf.not_after) == (wanted.not_valid_before_utc, wanted.not_valid_after_utc)
    assert (leaf.uris, leaf.hosts) == ((ALICE.uri,), ("localhost",))


@given(at=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255), keep=st.integers(min_value=0))
def test_whatever_is_damaged_is_a_value_error_or_still_a_list(samples: tuple[bytes, bytes], at: int, flip: int, keep: int):
    for content, read in ((samples[0], der.read_list), (samples[1], der.serial_of), (samples[1], der.read_certificate)):
        damaged = bytearray(content)
        damaged[at % len(damaged)] ^= flip
        for bad in (bytes(damaged), content[: keep % len(content)]):
            try:
                read(bad)
            except ValueError:
                continue


# --- which lists are believed -----------------------------------------------------------------------------------------


def spoil(kits: Kits, kit: Path, how: str) -> None:
    path = kit / "ca.crl"
    match how:
        case "missing":
            path.unlink()
        case "junk":
            path.write_bytes(b"no list")
        case "foreign":
            foreign = Kits(kits.directory / "foreign")
            shutil.copy(foreign.directory / "ca" / "ca.crl", path)
        case "forged":
            content = bytearray(x509.load_pem_x509_crl(path.read_bytes()).public_bytes(Encoding.DER))
            content[-4] ^= 1
            pem = ssl.DER_cert_to_PEM_cert(bytes(content)).replace("CERTIFICATE", "X509 CRL")
            path.write_text(pem)
        case "expired":
            Authority.load(kits.directory / "ca").sign_list({}, clock=FakeClock(start=-86_400.0 * 400))
            shutil.copy(kits.directory / "ca" / "ca.crl", path)
        case _:
            raise ValueError(how)


@pytest.mark.parametrize(
    ("how", "advice"),
    [
        ("missing", "is missing"),
        ("junk", "is not a revocation list"),
        ("foreign", "is of another authority"),
        ("forged", "signature that does not hold"),
        ("expired", "expired on"),
    ],
)
def test_a_server_does_not_start_with_a_list_that_cannot_be_believed(kits: Kits, how: str, advice: str):
    kit = kits.kit(Role.OWNER)
    spoil(kits, kit.directory, how)

    async def run() -> None:
        async with serving(kit):
            pytest.fail("it serves")

    with pytest.raises(ConfigError, match=rf"ca\.crl: .*{advice}.*hushtune pki publish"):
        asyncio.run(run())


def test_a_kit_that_was_put_together_from_two_is_told_apart_from_a_bad_list(kits: Kits, tmp_path: Path):
    folder = kits.folder(Role.OWNER)
    shutil.copy(Kits(tmp_path / "foreign").directory / "ca" / "ca.crt", folder)
    with pytest.raises(ConfigError, match=r"tls\.crt in this kit is not of its ca\.crt: get the kit again"):
        revocation.load(Kit.load(folder), clock=CLOCK)


def test_a_process_whose_own_certificate_is_revoked_does_not_start(kits: Kits):
    kit = kits.kit(Role.OWNER)
    pki.revoke(kits.directory / "ca", clock=CLOCK, caller=kit.caller, reason="key-compromise")

    async def run() -> None:
        async with serving(kit):
            pytest.fail("it serves")

    with pytest.raises(CertificateRevoked, match=r"owner/owner was revoked on .*key compromise.*new kit"):
        asyncio.run(run())


def test_a_clients_kit_without_a_list_still_works(kits: Kits):
    kit = kits.kit(Role.CLIENT, "alice")
    (kit.directory / "ca.crl").unlink()
    assert revocation.require_not_revoked(kit, clock=CLOCK, needed=False) is None


# --- what servers do with it ------------------------------------------------------------------------------------------


def test_a_revoked_client_is_refused_without_a_restart_and_both_sides_say_why(kits: Kits, caplog: pytest.LogCaptureFixture):
    alice, bob = kits.kit(Role.CLIENT, "alice"), kits.kit(Role.CLIENT, "bob")
    serial = f"{serial_of(alice.directory):x}"

    async def run() -> None:
        async with serving(kits.kit(Role.OWNER)) as server, channel_to(server.address, alice) as channel:
            assert await call(channel, "One", b"a") == [b"a"]
            pki.revoke(kits.directory / "ca", clock=CLOCK, caller=ALICE)
            with pytest.raises(CertificateRevoked, match=f"client/alice was withdrawn: serial {serial} was revoked on"):
                await call(channel, "One", b"a")
            with pytest.raises(CertificateRevoked, match="new kit"):
                await ready(channel, address=server.address, role=Role.OWNER, timing=QUICK)
            async with channel_to(server.address, bob) as other:
                assert await call(other, "One", b"b") == [b"b"]

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    (told, *_) = logged(caplog, "call_refused")
    assert (told["reason"], told["caller"]) == ("CERTIFICATE_REVOKED", "hushtune://client/alice")
    assert serial in told["problem"]
    assert logged(caplog, "revocation_list_changed")[0]["revoked"] == 1


@asynccontextmanager
async def held(kit: Kit, client: Kit, arity: str) -> AsyncGenerator[Any]:
    """Give a call of that arity that the server is not through with."""

    async def endless() -> Any:
        yield b"a"
        await asyncio.Event().wait()

    async with serving(kit, echo(), timing=QUICK) as server, channel_to(server.address, client) as channel:
        match arity:
            case "Collect":
                yield channel.stream_unary(f"/{SERVICE}/{arity}")(endless(), timeout=10.0)
            case "Answer":
                answers = channel.stream_stream(f"/{SERVICE}/{arity}")(endless(), timeout=10.0)
                assert await answers.read() == b"a"
                yield answers
            case _:
                yield channel.unary_unary(f"/{SERVICE}/Wait")(b"", timeout=10.0)


@pytest.mark.slow
@pytest.mark.parametrize("arity", ["Wait", "Collect", "Answer"])
def test_a_call_that_runs_is_ended_with_the_reason_soon_after(kits: Kits, arity: str):
    alice = kits.kit(Role.CLIENT, "alice")

    async def run() -> None:
        async with held(kits.kit(Role.OWNER), alice, arity) as running:
            await asyncio.wait({asyncio.ensure_future(running.code())}, timeout=0.2)
            pki.revoke(kits.directory / "ca", clock=CLOCK, caller=ALICE)
            started = CLOCK.monotonic()
            await running.code()
            assert CLOCK.monotonic() - started < 2.0
            assert "was withdrawn" in await running.details()

    asyncio.run(run())


def test_a_renewed_certificate_is_not_the_revoked_one(kits: Kits):
    old = kits.folder(Role.CLIENT, "alice")
    lost = shutil.copytree(old, old.with_name("lost"))
    pki.renew(kits.directory / "ca", old, clock=CLOCK)
    pki.revoke(kits.directory / "ca", clock=CLOCK, serial=f"{serial_of(lost):x}", reason="key-compromise")

    async def run() -> None:
        async with serving(kits.kit(Role.OWNER)) as server:
            async with channel_to(server.address, Kit.load(old)) as channel:
                assert await call(channel, "One", b"a") == [b"a"]
            async with channel_to(server.address, Kit.load(lost)) as channel:
                with pytest.raises(CertificateRevoked, match="key compromise"):
                    await call(channel, "One", b"a")

    asyncio.run(run())


@pytest.mark.parametrize("how", ["missing", "junk", "foreign", "older"])
def test_a_bad_list_leaves_the_one_in_force(kits: Kits, how: str, caplog: pytest.LogCaptureFixture):
    alice, owner = kits.kit(Role.CLIENT, "alice"), kits.kit(Role.OWNER)
    before = (owner.directory / "ca.crl").read_bytes()
    pki.revoke(kits.directory / "ca", clock=CLOCK, caller=ALICE)
    found = revocation.Revocations(owner, clock=CLOCK)
    if how == "older":
        (owner.directory / "ca.crl").write_bytes(before)
    else:
        spoil(kits, owner.directory, how)
    with caplog.at_level(logging.INFO), pytest.raises(CertificateRevoked):
        found.require_good(ALICE, serial_of(alice.directory))
    assert len(logged(caplog, "revocation_list_refused")) == 1
    assert not found.refresh(), "what was refused is not looked at again"


def test_a_server_that_is_withdrawn_itself_says_so(kits: Kits, caplog: pytest.LogCaptureFixture):
    owner = kits.kit(Role.OWNER)
    found = revocation.Revocations(owner, clock=CLOCK)
    with caplog.at_level(logging.INFO):
        pki.revoke(kits.directory / "ca", clock=CLOCK, caller=owner.caller, reason="key-compromise")
        assert found.refresh()
    (told,) = logged(caplog, "own_certificate_withdrawn")
    assert (told["problem"], "new kit" in told["remedy"]) == ("key compromise", True)


def shown_by(address: str, kit: Path) -> int:
    """Return the serial that a server shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(kit / "ca.crt")
    context.load_cert_chain(kit / "tls.crt", kit / "tls.key")
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5.0) as raw,
        context.wrap_socket(raw, server_hostname="owner.hushtune.internal") as wrapped,
    ):
        return int(str(dict(wrapped.getpeercert() or {})["serialNumber"]), 16)


@pytest.mark.parametrize("keep_key", [True, False])
def test_a_running_server_shows_its_renewed_certificate_and_no_other_ones(kits: Kits, keep_key: bool):
    owner, client = kits.folder(Role.OWNER), kits.folder(Role.CLIENT, "alice")
    stranger = kits.folder(Role.AIR)

    async def run() -> None:
        async with serving(Kit.load(owner)) as server:
            assert await asyncio.to_thread(shown_by, server.address, client) == serial_of(owner)
            pki.renew(kits.directory / "ca", owner, clock=CLOCK, keep_key=keep_key)
            renewed = serial_of(owner)
            assert await asyncio.to_thread(shown_by, server.address, client) == renewed
            for file in stranger.iterdir():
                shutil.copy(file, owner)
            assert await asyncio.to_thread(shown_by, server.address, client) == renewed

    asyncio.run(run())


# --- the authority's side ---------------------------------------------------------------------------------------------


def test_a_list_reaches_every_kit_of_the_authority_and_no_others(kits: Kits, tmp_path: Path):
    owner, alice = kits.folder(Role.OWNER), kits.folder(Role.CLIENT, "alice")
    foreign = Kits(tmp_path / "foreign").folder(Role.OWNER)
    untouched = (foreign / "ca.crl").read_bytes()
    away = tmp_path / "away"
    shutil.move(alice, away)
    done = pki.revoke(kits.directory / "ca", clock=CLOCK, caller=ALICE, into=[away, foreign])
    assert set(done.placed) == {owner, away}
    assert set(done.missed) == {alice, foreign}
    assert (foreign / "ca.crl").read_bytes() == untouched
    assert (owner / "ca.crl").read_bytes() == (away / "ca.crl").read_bytes()


def test_the_table_says_who_is_good_revoked_and_expired(tmp_path: Path):
    clock = FakeClock()
    pki.init(tmp_path / "ca", clock=clock)
    for name, days in (("alice", 90), ("bob", 5), ("carol", 90)):
        pki.issue(tmp_path / "ca", role=Role.CLIENT, name=name, out=tmp_path / name, clock=clock, days=days)
    clock.advance(86_400.0 * 10)
    pki.revoke(tmp_path / "ca", clock=clock, caller=ALICE)
    rows = {row.identity.rpartition("/")[2]: row for row in pki.table(tmp_path / "ca", clock=clock)}
    assert [rows[name].state for name in ("alice", "bob", "carol")] == ["revoked 2026-01-11", "expired", "good"]
    assert int(rows["carol"].serial, 16) == serial_of(tmp_path / "carol")


def test_what_was_revoked_stays_so_in_every_later_list(tmp_path: Path):
    clock = FakeClock()
    pki.init(tmp_path / "ca", clock=clock)
    pki.issue(tmp_path / "ca", role=Role.CLIENT, name="alice", out=tmp_path / "alice", clock=clock)
    pki.revoke(tmp_path / "ca", clock=clock, caller=ALICE)
    pki.issue(tmp_path / "ca", role=Role.CLIENT, name="bob", out=tmp_path / "bob", clock=clock)
    pki.publish(tmp_path / "ca", clock=clock)
    found = x509.load_pem_x509_crl((tmp_path / "bob" / "ca.crl").read_bytes())
    assert [e.serial_number for e in found] == [serial_of(tmp_path / "alice")]
    assert found.next_update_utc == clock.wall() + timedelta(days=pki.LIST_DAYS)


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        ({}, "not both"),
        ({"caller": ALICE, "serial": "1"}, "not both"),
        ({"caller": Caller(role=Role.CLIENT, name="nobody")}, "no certificate of"),
        ({"serial": "xyz"}, "hexadecimal"),
        ({"caller": ALICE, "reason": "spite"}, "is one of"),
    ],
)
def test_a_revocation_of_nothing_is_a_mistake_with_a_remedy(kits: Kits, asked: dict[str, Any], advice: str):
    kits.folder(Role.CLIENT, "alice")
    with pytest.raises(ConfigError, match=advice):
        pki.revoke(kits.directory / "ca", clock=CLOCK, **asked)


def test_of_commands_at_the_same_time_none_is_forgotten(tmp_path: Path):
    pki.init(tmp_path / "ca", clock=CLOCK)
    names = [f"c{k}" for k in range(8)]

    def issue_and_revoke(name: str) -> None:
        pki.issue(tmp_path / "ca", role=Role.CLIENT, name=name, out=tmp_path / name, clock=CLOCK)
        pki.revoke(tmp_path / "ca", clock=CLOCK, caller=Caller(role=Role.CLIENT, name=name))

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(issue_and_revoke, names))
    rows = pki.table(tmp_path / "ca", clock=CLOCK)
    assert sorted(row.identity.rpartition("/")[2] for row in rows) == names
    assert all(row.state.startswith("revoked") for row in rows)
    assert der.read_list(der.unwrap((tmp_path / "ca" / "ca.crl").read_bytes(), label="X509 CRL")).number == 17


def test_revoking_twice_is_said(kits: Kits):
    kits.folder(Role.CLIENT, "alice")
    pki.revoke(kits.directory / "ca", clock=CLOCK, caller=ALICE)
    with pytest.raises(ConfigError, match="revoked already"):
        pki.revoke(kits.directory / "ca", clock=CLOCK, caller=ALICE)


@pytest.mark.parametrize("keep_key", [True, False])
def test_a_renewal_keeps_identity_and_hosts_and_the_key_only_if_asked(kits: Kits, keep_key: bool):
    kit = kits.folder(Role.OWNER)
    before, key = pki.show(kit), (kit / "tls.key").read_bytes()
    pki.renew(kits.directory / "ca", kit, clock=CLOCK, keep_key=keep_key, hosts=["owner.example"])
    after = pki.show(kit)
    assert after["identity"] == before["identity"]
    assert after["names"] == before["names"].replace("localhost", "localhost, owner.example")
    assert after["serial"] != before["serial"]
    assert ((kit / "tls.key").read_bytes() == key) == keep_key


def test_what_is_revoked_or_foreign_is_not_renewed(kits: Kits, tmp_path: Path):
    kit = kits.folder(Role.CLIENT, "alice")
    with pytest.raises(ConfigError, match="not a kit of the authority"):
        pki.renew(Kits(tmp_path / "foreign").directory / "ca", kit, clock=CLOCK)
    pki.revoke(kits.directory / "ca", clock=CLOCK, caller=ALICE)
    with pytest.raises(ConfigError, match="was revoked, so it is not renewed"):
        pki.renew(kits.directory / "ca", kit, clock=CLOCK)


def test_a_damaged_list_of_the_authority_is_not_signed_over(kits: Kits, tmp_path: Path):
    (kits.directory / "ca" / "ca.crl").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="would be forgotten"):
        kits.folder(Role.CLIENT, "alice")
    shutil.copy(Kits(tmp_path / "foreign").directory / "ca" / "ca.crl", kits.directory / "ca")
    with pytest.raises(ConfigError, match="would be forgotten"):
        kits.folder(Role.CLIENT, "bob")
