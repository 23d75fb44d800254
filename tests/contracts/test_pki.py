"""Does a kit prove who a process is, to an independent verifier, and nothing else?"""

import ipaddress
import ssl
import stat
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from hushtune_common.clock import SystemClock
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Role
from hushtune_server import pki
from hushtune_server.cli import main
from tests.fakes import FakeClock

NOW = datetime(2026, 1, 1, tzinfo=UTC)  # where a FakeClock starts


def kit_of(folder: Path, role: Role, name: str, *, days: int = 90, not_before: datetime | None = None) -> Path:
    """Return a kit under the authority ``folder/ca``, which is made when missing; times are real."""
    if not (folder / "ca").exists():
        pki.init(folder / "ca", clock=SystemClock())
    out = folder / f"{role}-{name}"
    pki.issue(folder / "ca", role=role, name=name, out=out, clock=SystemClock(), days=days, not_before=not_before)
    return out


def shake_hands(server: Path, client: Path, *, expect: str) -> str:
    """Return the identity that the server sees, after mutual TLS in memory; the client expects the DNS name ``expect``."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, kit in ((ours, server), (theirs, client)):
        context.load_verify_locations(kit / "ca.crt")
        context.load_cert_chain(kit / "tls.crt", kit / "tls.key")
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    ours.verify_mode = ssl.CERT_REQUIRED
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [theirs.wrap_bio(down, up, server_hostname=expect), ours.wrap_bio(up, down, server_side=True)]
    for _ in range(6):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    names = dict(ends[1].getpeercert() or {})["subjectAltName"]
    assert isinstance(names, tuple)
    return next(str(value) for kind, value in names if kind == "URI")


def test_a_folder_that_is_named_and_does_not_get_the_list_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority, kit = tmp_path / "ca", tmp_path / "owner"
    pki.init(authority, clock=SystemClock())
    pki.issue(authority, role=Role.OWNER, name="owner", out=kit, clock=SystemClock())
    before = (kit / "ca.crl").read_bytes()
    assert main(["pki", "publish", str(authority), "--into", str(tmp_path / "onwer")]) == ConfigError.exit_code
    assert f"--into: {tmp_path / 'onwer'} is no kit folder of this authority" in capsys.readouterr().err
    assert (kit / "ca.crl").read_bytes() != before
    assert main(["pki", "publish", str(authority), "--into", str(kit)]) == 0


def test_a_client_and_a_server_of_one_authority_meet(tmp_path: Path):
    owner, client = kit_of(tmp_path, Role.OWNER, "owner"), kit_of(tmp_path, Role.CLIENT, "c1")
    assert shake_hands(owner, client, expect="owner.hushtune.internal") == "hushtune://client/c1"
    assert shake_hands(owner, client, expect="localhost") == "hushtune://client/c1"


def test_a_server_of_another_role_is_not_taken_for_the_owner(tmp_path: Path):
    client = kit_of(tmp_path, Role.CLIENT, "c1")
    for imposter in (kit_of(tmp_path, Role.AIR, "owner"), kit_of(tmp_path, Role.CLIENT, "owner")):
        with pytest.raises(ssl.SSLCertVerificationError, match=r"owner\.hushtune\.internal"):
            shake_hands(imposter, client, expect="owner.hushtune.internal")


def test_a_foreign_authority_is_refused_by_both_sides(tmp_path: Path):
    owner, stranger = kit_of(tmp_path / "a", Role.OWNER, "owner"), kit_of(tmp_path / "b", Role.CLIENT, "c1")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(owner, stranger, expect="owner.hushtune.internal")
    (stranger / "ca.crt").write_bytes((owner / "ca.crt").read_bytes())  # now it trusts the owner, but not the other way round
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(owner, stranger, expect="owner.hushtune.internal")


@pytest.mark.parametrize("start_days", [-10, +10])
def test_a_certificate_outside_its_time_is_refused(tmp_path: Path, start_days: int):
    start = SystemClock().wall() + timedelta(days=start_days)
    owner, client = kit_of(tmp_path, Role.OWNER, "owner"), kit_of(tmp_path, Role.CLIENT, "c1", not_before=start, days=5)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(owner, client, expect="owner.hushtune.internal")


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    pki.init(tmp_path / "ca", clock=FakeClock())
    return tmp_path / "ca"


@pytest.mark.parametrize("role", list(Role))
def test_every_role_gets_a_complete_kit(authority: Path, tmp_path: Path, role: Role):
    out = tmp_path / "kits" / role
    pki.issue(authority, role=role, name="n1", out=out, clock=FakeClock(), hosts=["node.example", "10.0.0.7", "::1"])
    assert sorted(p.name for p in out.iterdir()) == ["ca.crl", "ca.crt", "kit.toml", "tls.crt", "tls.key"]
    assert (out / "ca.crt").read_bytes() == (authority / "ca.crt").read_bytes()
    leaf = x509.load_pem_x509_certificate((out / "tls.crt").read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"hushtune://{role}/n1"]
    internal = [] if role in {Role.CLIENT, Role.OPERATOR} else [f"{role}.hushtune.internal"]
    assert names.get_values_for_type(x509.DNSName) == [*internal, "node.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.0.0.7"), ipaddress.ip_address("::1")]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_only_the_authority_may_sign_certificates(authority: Path, tmp_path: Path):
    pki.issue(authority, role=Role.CLIENT, name="c1", out=tmp_path / "c1", clock=FakeClock())
    for path, is_authority in ((authority / "ca.crt", True), (tmp_path / "c1" / "tls.crt", False)):
        extensions = x509.load_pem_x509_certificate(path.read_bytes()).extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value.ca == is_authority
        assert extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign == is_authority


def test_keys_are_on_p256_and_readable_by_their_user_only(authority: Path, tmp_path: Path):
    pki.issue(authority, role=Role.AIR, name="air", out=tmp_path / "air", clock=FakeClock())
    for path in (authority / "ca.key", tmp_path / "air" / "tls.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        key = load_pem_private_key(path.read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.name == "secp256r1"


def test_a_kit_lives_ninety_days_from_ten_minutes_ago(authority: Path, tmp_path: Path):
    pki.issue(authority, role=Role.CLIENT, name="c1", out=tmp_path / "c1", clock=FakeClock())
    kit = tomllib.loads((tmp_path / "c1" / "kit.toml").read_text())
    start = NOW - timedelta(minutes=10)
    assert kit["identity"] == "hushtune://client/c1"
    assert datetime.fromisoformat(kit["not_before"]) == start
    assert datetime.fromisoformat(kit["not_after"]) == start + timedelta(days=90)
    leaf = x509.load_pem_x509_certificate((tmp_path / "c1" / "tls.crt").read_bytes())
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (start, start + timedelta(days=90))


def test_no_kit_outlives_its_authority(authority: Path, tmp_path: Path):
    late = FakeClock(start=86_400.0 * (pki.AUTHORITY_DAYS - 5))
    pki.issue(authority, role=Role.CLIENT, name="c1", out=tmp_path / "c1", clock=late)
    end = x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes()).not_valid_after_utc
    assert pki.show(tmp_path / "c1")["valid_until"] == end.isoformat()
    late.advance(86_400.0 * 10)
    with pytest.raises(ConfigError, match="nothing would be valid"):
        pki.issue(authority, role=Role.CLIENT, name="c2", out=tmp_path / "c2", clock=late)


def test_an_authority_is_never_overwritten(authority: Path):
    before = (authority / "ca.key").read_bytes()
    with pytest.raises(ConfigError, match="holds an authority already"):
        pki.init(authority, clock=FakeClock())
    assert (authority / "ca.key").read_bytes() == before


def test_issuing_again_renews_the_kit(authority: Path, tmp_path: Path):
    shown: list[dict[str, str]] = []
    for _ in range(2):
        pki.issue(authority, role=Role.CLIENT, name="c1", out=tmp_path / "c1", clock=FakeClock())
        shown.append(pki.show(tmp_path / "c1"))
    assert shown[0]["fingerprint_sha256"] != shown[1]["fingerprint_sha256"]


def test_show_says_who_and_until_when(authority: Path, tmp_path: Path):
    pki.issue(authority, role=Role.OWNER, name="lab", out=tmp_path / "lab", clock=FakeClock())
    shown = pki.show(tmp_path / "lab")
    assert shown["identity"] == "hushtune://owner/lab"
    assert shown["names"] == "owner.hushtune.internal, localhost, 127.0.0.1"
    assert shown["valid_until"].startswith("2026-03-31T23:50")


@pytest.mark.parametrize("name", ["", "C1", "a/b", "a b", "x" * 64])
def test_a_name_that_no_identity_can_carry_is_refused(authority: Path, tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match=r"^name: "):
        pki.issue(authority, role=Role.CLIENT, name=name, out=tmp_path / "kit", clock=FakeClock())
    assert not (tmp_path / "kit").exists()


@pytest.mark.parametrize("host", ["", "a b", "*.example", "-a", "owner.hushtune.internal", "x" * 254])
def test_a_host_that_no_process_may_have_is_refused(authority: Path, tmp_path: Path, host: str):
    with pytest.raises(ConfigError, match=r"^hosts: "):
        pki.issue(authority, role=Role.CLIENT, name="c1", out=tmp_path / "kit", clock=FakeClock(), hosts=[host])


def test_a_long_name_still_fits_a_certificate(authority: Path, tmp_path: Path):
    pki.issue(authority, role=Role.EAVESDROPPER, name="n" * 63, out=tmp_path / "kit", clock=FakeClock())
    assert pki.show(tmp_path / "kit")["identity"] == "hushtune://eavesdropper/" + "n" * 63


def test_without_an_authority_the_way_to_one_is_named(authority: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="hushtune pki init"):
        pki.issue(tmp_path / "none", role=Role.CLIENT, name="c1", out=tmp_path / "kit", clock=FakeClock())
    pki.init(tmp_path / "other", clock=FakeClock())
    (authority / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="does not belong"):
        pki.issue(authority, role=Role.CLIENT, name="c1", out=tmp_path / "kit", clock=FakeClock())


def test_show_refuses_what_is_no_kit(authority: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="hushtune pki issue"):
        pki.show(tmp_path)
    pki.issue(authority, role=Role.CLIENT, name="c1", out=tmp_path / "c1", clock=FakeClock())
    (tmp_path / "c1" / "kit.toml").write_text('identity = "hushtune://owner/owner"\n')
    with pytest.raises(ConfigError, match="does not name"):
        pki.show(tmp_path / "c1")
