"""Is a signed bundle believed of the right signer only, whoever else signs, strips, borrows or pretends?"""

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hushtune_common.crypto.signing import SigningKey
from hushtune_common.errors import ConfigError, UntrustedSigner
from hushtune_common.messages import Role
from hushtune_common.release.container import Container, read_container
from hushtune_common.release.identity import Signatory
from hushtune_common.release.statement import Signer, Statement, canonical
from hushtune_common.release.trust import Anchor, Authority, Verified, load_anchor, verify
from hushtune_server import pki
from tests.bundles import CLOCK, Cast, pin, release_by, return_by, stripped, written
from tests.fakes import FakeClock

DAY = 86_400.0


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return Cast(tmp_path_factory.mktemp("kits"))


@pytest.fixture(scope="module")
def home(cast: Cast) -> Anchor:
    return load_anchor(cast.kit(Role.CLIENT, "c1"))


def check(container: Container, anchor: Anchor, **kind: Any) -> Verified:
    return verify(container, anchor=anchor, clock=CLOCK, **kind)


def bundle(statement: Statement, *, by: Signatory, path: Path) -> Container:
    """Write a statement and read it again."""
    written(path, statement, by=by)
    return read_container(path)


# Who may say it.


def test_an_owners_release_and_a_clients_return_are_believed_by_everybody_of_the_authority(
    cast: Cast, home: Anchor, tmp_path: Path
) -> None:
    released = bundle(release_by(cast.owner), by=cast.owner, path=tmp_path / "a.htb")
    client = cast.client("c1")
    returned = bundle(return_by(client, client="c1"), by=client, path=tmp_path / "b.htb")
    for container, signer in ((released, "hushtune://owner/owner"), (returned, "hushtune://client/c1")):
        found = check(container, home)
        assert (found.signer.uri, found.by, found.post_quantum) == (signer, "authority", False)
        assert found.algorithms == ("ed25519", "ml-dsa-65")


@pytest.mark.parametrize(
    ("role", "name", "client", "named"),
    [
        (Role.CLIENT, "c1", None, "hushtune://client/c1 may not sign a release"),
        (Role.COORDINATOR, "coordinator", None, "coordinator may not sign a release"),
        (Role.CLIENT, "c2", "c1", "hushtune://client/c2 may not sign a return of client c1"),
        (Role.OWNER, "c1", "c1", "hushtune://owner/c1 may not sign a return of client c1"),
    ],
)
def test_nobody_signs_in_anothers_place(
    cast: Cast, home: Anchor, tmp_path: Path, role: Role, name: str, client: str | None, named: str
) -> None:
    by = cast.signatory(role, name)
    statement = release_by(by) if client is None else return_by(by, client=client)
    with pytest.raises(UntrustedSigner, match=rf"^signer\.identity: .*{named}"):
        check(bundle(statement, by=by, path=tmp_path / "a.htb"), home)


def test_a_foreign_authority_is_refused(cast: Cast, home: Anchor, tmp_path: Path) -> None:
    stranger = cast.signatory(Role.OWNER, "owner", authority="abroad")
    container = bundle(release_by(stranger), by=stranger, path=tmp_path / "a.htb")
    with pytest.raises(UntrustedSigner, match=r"^signer\.certificate: not issued by the trusted authority"):
        check(container, home)
    assert check(container, load_anchor(cast.folder / "abroad" / "ca.crt")).signer.name == "owner"


def test_an_expired_or_early_certificate_is_refused(cast: Cast, home: Anchor, tmp_path: Path) -> None:
    by = cast.signatory(Role.OWNER, "owner", days=5)
    container = bundle(release_by(by), by=by, path=tmp_path / "a.htb")
    verify(container, anchor=home, clock=FakeClock(start=4 * DAY))
    with pytest.raises(UntrustedSigner, match=r"^signer\.certificate: valid from .* to 2026-01-05"):
        verify(container, anchor=home, clock=FakeClock(start=6 * DAY))
    assert isinstance(home, Authority)


def test_a_date_outside_the_certificates_time_is_refused(cast: Cast, home: Anchor, tmp_path: Path) -> None:
    statement = release_by(cast.owner, created="2025-06-01T00:00:00Z")
    with pytest.raises(UntrustedSigner, match=r"^created: 2025-06-01"):
        check(bundle(statement, by=cast.owner, path=tmp_path / "a.htb"), home)


def test_a_kit_that_expired_cannot_sign(cast: Cast) -> None:
    cast.kit(Role.OWNER, "late", days=5)
    with pytest.raises(ConfigError, match=r"tls\.crt: valid from"):
        replace(cast, clock=FakeClock(start=10 * DAY)).signatory(Role.OWNER, "late", days=5)


def test_somebody_elses_keys_cannot_be_claimed_with_an_own_certificate(cast: Cast, home: Anchor, tmp_path: Path) -> None:
    container = bundle(return_by(cast.client("c1"), client="c1"), by=cast.client("c1"), path=tmp_path / "a.htb")
    thief = cast.client("c2")
    claimed = msgspec.structs.replace(container.endorsement, credential=thief.credential)
    with pytest.raises(UntrustedSigner, match=r"^signer\.identity: says hushtune://client/c1, the certificate is of"):
        check(replace(container, endorsement=claimed), home)
    borrowed = msgspec.structs.replace(cast.client("c1").credential, binding=thief.credential.binding)
    with pytest.raises(UntrustedSigner, match=r"^signer\.binding"):
        check(replace(container, endorsement=msgspec.structs.replace(container.endorsement, credential=borrowed)), home)


def test_own_keys_under_anothers_name_are_not_bound(cast: Cast, home: Anchor, tmp_path: Path) -> None:
    victim, thief = cast.client("c1"), cast.client("c2")
    signer = msgspec.structs.replace(thief.signer, identity=victim.signer.identity)
    forger = replace(thief, signer=signer, credential=msgspec.structs.replace(victim.credential))
    with pytest.raises(UntrustedSigner, match=r"^signer\.binding"):
        check(bundle(return_by(forger, client="c1"), by=forger, path=tmp_path / "a.htb"), home)


def test_a_return_cannot_pass_for_a_release_by_its_signature(cast: Cast, tmp_path: Path) -> None:
    by = cast.owner
    container = bundle(release_by(by), by=by, path=tmp_path / "a.htb")
    other = by.key.sign(container.signed, purpose="hushtune-statement/1/return")
    forged = msgspec.structs.replace(container.endorsement, ed25519=other.ed25519, ml_dsa_65=other.ml_dsa_65)
    with pytest.raises(UntrustedSigner, match=r"^signatures\.ed25519"):
        check(replace(container, endorsement=forged), load_anchor(cast.kit(Role.CLIENT, "c1")))


# Downgrades, pins, and the quantum computer.


def test_taking_the_second_signature_away_is_refused(cast: Cast, home: Anchor, tmp_path: Path) -> None:
    container = stripped(bundle(release_by(cast.owner), by=cast.owner, path=tmp_path / "a.htb"))
    with pytest.raises(UntrustedSigner, match=r"^signatures\.ml-dsa-65: missing"):
        check(container, home)


def test_taking_the_second_key_out_of_the_statement_as_well_is_refused(cast: Cast, home: Anchor, tmp_path: Path) -> None:
    container = stripped(bundle(release_by(cast.owner), by=cast.owner, path=tmp_path / "a.htb"))
    signer = msgspec.structs.replace(container.statement.signer, algorithms=("ed25519",), ml_dsa_65=None)
    statement = msgspec.structs.replace(container.statement, signer=signer)
    forged = replace(container, statement=statement, signed=canonical(statement))
    with pytest.raises(UntrustedSigner, match=r"^signer\.binding"):
        check(forged, home)
    with pytest.raises(UntrustedSigner, match=r"^signer\.keys: .*\(ed25519\), pinned is .*\(ed25519, ml-dsa-65\)"):
        check(forged, pin(cast.owner.signer, tmp_path))


def test_pinned_keys_are_trusted_without_an_authority_and_are_post_quantum(cast: Cast, tmp_path: Path) -> None:
    container = bundle(release_by(cast.owner), by=cast.owner, path=tmp_path / "a.htb")
    found = verify(
        container, anchor=pin(cast.owner.signer, tmp_path), clock=FakeClock(start=900 * DAY), require_post_quantum=True
    )
    assert (found.by, found.post_quantum) == ("pinned keys", True)


def test_other_keys_or_another_name_than_the_pinned_ones_are_refused(cast: Cast, tmp_path: Path) -> None:
    container = bundle(release_by(cast.owner), by=cast.owner, path=tmp_path / "a.htb")
    other = Signer.of(cast.owner.caller, SigningKey.generate().public)
    with pytest.raises(UntrustedSigner, match=r"^signer\.keys: "):
        check(container, pin(other, tmp_path))
    with pytest.raises(UntrustedSigner, match=r"^signer\.identity: .* pinned is hushtune://client/c1"):
        check(container, pin(cast.client("c1").signer, tmp_path))


def test_a_pinned_client_may_still_not_sign_a_release(cast: Cast, tmp_path: Path) -> None:
    by = cast.client("c1")
    with pytest.raises(UntrustedSigner, match=r"may not sign a release"):
        check(bundle(release_by(by), by=by, path=tmp_path / "a.htb"), pin(by.signer, tmp_path))


def test_who_asks_for_post_quantum_gets_it_or_is_told_why_not(cast: Cast, home: Anchor, tmp_path: Path) -> None:
    kit = cast.kit(Role.OWNER, "classical")
    SigningKey.generate(post_quantum=False).save(kit / "signing.key")
    by = cast.signatory(Role.OWNER, "classical")
    container = bundle(release_by(by), by=by, path=tmp_path / "a.htb")
    assert not check(container, pin(by.signer, tmp_path)).post_quantum
    with pytest.raises(UntrustedSigner, match=r"^signer\.algorithms: ml-dsa-65 is required, signed with ed25519"):
        check(container, pin(by.signer, tmp_path), require_post_quantum=True)
    hybrid = bundle(release_by(cast.owner), by=cast.owner, path=tmp_path / "b.htb")
    with pytest.raises(ConfigError, match=r"P-256 only.*hushtune bundle key"):
        check(hybrid, home, require_post_quantum=True)


def test_signing_keys_outlive_the_renewal_of_a_kit(cast: Cast, home: Anchor, tmp_path: Path) -> None:
    kit = cast.kit(Role.OWNER, "renewed")
    before = cast.signatory(Role.OWNER, "renewed")
    pki.issue(cast.folder / "home", role=Role.OWNER, name="renewed", out=kit, clock=CLOCK)
    after = cast.signatory(Role.OWNER, "renewed")
    assert (after.signer, after.credential != before.credential) == (before.signer, True)
    check(bundle(release_by(after), by=after, path=tmp_path / "a.htb"), home)


def test_signing_keys_are_made_once_and_private(cast: Cast) -> None:
    kit = cast.kit(Role.CLIENT, "c9")
    assert not (kit / "signing.key").exists()
    assert cast.client("c9").signer == cast.client("c9").signer
    assert stat.S_IMODE((kit / "signing.key").stat().st_mode) == 0o600
    assert "masked" not in repr(cast.client("c9"))
    assert "SigningKey" not in repr(cast.client("c9"))


def test_what_is_no_anchor_is_named(cast: Cast, tmp_path: Path) -> None:
    (tmp_path / "noise").write_text("hello")
    for path, word in ((tmp_path / "noise", "neither a certificate nor pinned keys"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(ConfigError, match=word):
            load_anchor(path)
    with pytest.raises(ConfigError, match=r"ca\.crt"):
        load_anchor(tmp_path)


def test_a_name_that_no_statement_can_carry_is_refused_before_it_is_signed(cast: Cast, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^run: "):
        written(tmp_path / "a.htb", release_by(cast.owner, run="Not A Name"), by=cast.owner)
    with pytest.raises(ValueError, match=r"the statement is of hushtune://owner/owner, not of"):
        written(tmp_path / "a.htb", release_by(cast.owner), by=cast.client("c1"))
