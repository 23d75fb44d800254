"""Does a signed bundle say one thing in one form, and is every other file refused by the name of what is wrong with it?"""

import json
import stat
import struct
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hushtune_common.errors import ConfigError, DigestMismatch, MalformedUpdate, ProtocolFault, UntrustedSigner
from hushtune_common.messages import Digest, Role, TensorSpec
from hushtune_common.release import inspection
from hushtune_common.release.container import Container, file_pieces, parse_head, payload_of, read_container, write_container
from hushtune_common.release.identity import Endorsement, Signatory
from hushtune_common.release.statement import Lineage, Payload, Statement, canonical, parse_statement, schema_digest
from hushtune_common.release.trust import Anchor, Verified, load_anchor, verify
from tests.bundles import CLOCK, PAYLOAD, Cast, pin, release_by, return_by, stripped, written


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


# What a statement is.


def test_a_statement_comes_back_equal_and_has_one_form(cast: Cast) -> None:
    for statement in (release_by(cast.owner), return_by(cast.client("c1"), client="c1")):
        assert parse_statement(canonical(statement)) == statement
        assert json.loads(canonical(statement))["kind"] in {"release", "return"}
        assert (
            canonical(statement) == json.dumps(json.loads(canonical(statement)), sort_keys=True, separators=(",", ":")).encode()
        )


FORMS: Mapping[str, Callable[[bytes], bytes]] = {
    "trailing space": lambda text: text + b" ",
    "inner space": lambda text: text.replace(b":", b": ", 1),
    "other order": lambda text: json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")).encode(),
    "doubled key": lambda text: text[:-1] + b',"run":"offline-1"}',
    "escaped letter": lambda text: text.replace(b"Apache", b"\\u0041pache"),
}


@pytest.mark.parametrize("form", FORMS)
def test_another_form_of_the_same_words_is_refused(cast: Cast, form: str) -> None:
    with pytest.raises(MalformedUpdate, match=r"^statement: "):
        parse_statement(FORMS[form](canonical(release_by(cast.owner))))


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        (("extra",), 1, "statement"),
        (("format",), "hushtune-statement/2", "format"),
        (("created",), "2026-02-30T00:00:00Z", "statement"),
        (("created",), "yesterday", "created"),
        (("run",), "../up", "run"),
        (("round_id",), 0, "round_id"),
        (("lineage", "plan"), "00", "lineage.plan"),
        (("payload", "size"), 2**60, "payload.size"),
        (("payload", "digest"), "0" * 64, "statement"),
        (("licence",), "free\u202eeerf", "statement"),
        (("licence",), "\x1b[2Jgone", "statement"),
        (("signer", "identity"), "hushtune://emperor/x", "signer"),
        (("signer", "algorithms"), ["ed25519"], "signer"),
        (("signer", "ml_dsa_65"), None, "signer"),
        (("signer", "ed25519"), "AAAA", "signer"),
        (("terms", "recipients"), ["c2", "c1"], "terms"),
        (("terms", "training", "epochs"), 0, "terms.training.epochs"),
        (("terms", "settings", "unheard_of"), 1, "terms.settings"),
        (("terms", "sealing_key"), "AAAA", "terms"),
    ],
)
def test_a_field_that_says_nothing_possible_is_named(cast: Cast, where: tuple[str, ...], value: object, named: str) -> None:
    tree = json.loads(canonical(release_by(cast.owner)))
    inner = tree
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    with pytest.raises(MalformedUpdate) as caught:
        parse_statement(msgspec.json.encode(tree, order="sorted"))
    assert str(caught.value).partition(":")[0] == named


def test_deep_nesting_and_long_statements_are_refused() -> None:
    for text in (b"[" * 60_000, b'{"a":' * 10_000, b" " * 70_000):
        with pytest.raises(MalformedUpdate):
            parse_statement(text)


def test_the_schema_digest_depends_on_everything_that_a_tensor_is() -> None:
    one = TensorSpec(name="model.layers.0.w", shape=(2, 3), dtype="F32", block=0)
    others = [replace(one, name="model.layers.0.v"), replace(one, shape=(3, 2)), replace(one, dtype="F16"), replace(one, block=1)]
    digests = [schema_digest(schema) for schema in ([one], [], [one, others[0]], [others[0], one], *([o] for o in others))]
    assert len(set(digests)) == len(digests)


# What a file is.


def test_a_bundle_is_read_as_it_was_written_and_is_its_users_only(cast: Cast, tmp_path: Path) -> None:
    container = bundle(release_by(cast.owner), by=cast.owner, path=tmp_path / "a.htb")
    assert container.payload() == PAYLOAD
    assert stat.S_IMODE(container.path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["a.htb"]
    assert payload_of(container.path).size == container.path.stat().st_size


def test_a_head_is_kept_without_its_payload(cast: Cast, tmp_path: Path) -> None:
    container = bundle(release_by(cast.owner), by=cast.owner, path=tmp_path / "a.htb")
    assert container.path.read_bytes() == container.head() + PAYLOAD
    assert parse_head(container.head(), path=container.path) == container
    with pytest.raises(MalformedUpdate, match=r"^head: "):
        parse_head(container.head() + b"x", path=container.path)


DAMAGES: Mapping[str, tuple[Callable[[bytes], bytes], type[ProtocolFault], str]] = {
    "empty": (lambda data: b"", MalformedUpdate, "magic"),
    "another format": (lambda data: b"PK" + data[2:], MalformedUpdate, "magic"),
    "another version": (lambda data: data[:4] + b"\x02" + data[5:], MalformedUpdate, "version"),
    "a huge statement": (lambda data: data[:5] + struct.pack("<II", 2**32 - 1, 8) + data[13:], MalformedUpdate, "header"),
    "a huge endorsement": (lambda data: data[:5] + struct.pack("<II", 100, 2**31) + data[13:], MalformedUpdate, "header"),
    "cut in its head": (lambda data: data[:200], MalformedUpdate, "header"),
    "a byte too many": (lambda data: data + b"x", MalformedUpdate, "payload.size"),
    "a byte too few": (lambda data: data[:-1], MalformedUpdate, "payload.size"),
    "another byte": (lambda data: data[:-1] + b"?", DigestMismatch, "payload.digest"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_the_field(cast: Cast, tmp_path: Path, damage: str) -> None:
    path, (spoil, error, named) = tmp_path / "a.htb", DAMAGES[damage]
    written(path, release_by(cast.owner), by=cast.owner)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(error) as caught:
        read_container(path).require_whole()
    assert str(caught.value).partition(":")[0] == named


def test_bits_of_base64_that_mean_nothing_are_refused(cast: Cast, tmp_path: Path) -> None:
    head = written(tmp_path / "a.htb", release_by(cast.owner), by=cast.owner).head()
    at = head.index(b'"ed25519":"', head.index(b'"credential"')) + len(b'"ed25519":"') + 85  # the last of 86: two bits of four
    other = bytes([head[at] + 1]) if head[at] in b"AQgw" else b"?"
    assert other != b"?"
    with pytest.raises(MalformedUpdate, match=r"^endorsement: not in its canonical form"):
        parse_head(head[:at] + other + head[at + 1 :], path=tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_container(tmp_path / "nowhere.htb")


def test_a_payload_that_changed_while_it_was_written_leaves_no_file(cast: Cast, tmp_path: Path) -> None:
    by = cast.owner
    for other in (PAYLOAD + b"x", PAYLOAD[:-1], b""):
        with pytest.raises(DigestMismatch, match=r"^payload\.digest"):
            written(tmp_path / "a.htb", release_by(by), by=by, payload=other)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_large_payload_never_lies_in_memory(cast: Cast, tmp_path: Path) -> None:
    source, size = tmp_path / "emulator", 96 << 20
    with source.open("wb") as file:
        file.truncate(size)
    tracemalloc.start()
    payload = payload_of(source)
    lineage = msgspec.structs.replace(release_by(cast.owner).lineage, emulator=payload.digest)
    statement = release_by(cast.owner, payload=b"x")
    statement = msgspec.structs.replace(statement, payload=payload, lineage=lineage)
    container = written_from(tmp_path / "a.htb", statement, by=cast.owner, pieces=file_pieces(source))
    container.require_whole()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert container.statement.payload.size == size
    assert peak < 8 << 20


def written_from(path: Path, statement: Statement, *, by: Signatory, pieces: Iterator[bytes]) -> Container:
    from hushtune_common.release.container import signed_container

    write_container(signed_container(statement, by=by, path=path), payload=pieces)
    return read_container(path)


# Whatever else a file may be.


def mutated(data: bytes, *, rng: np.random.Generator) -> bytes:
    """Return ``data`` with one thing wrong: a bit, a byte, a piece cut out, doubled, put elsewhere, or the rest gone."""
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 40))
    match int(rng.integers(6)):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
        case 1:
            return data[:at] + bytes([int(rng.integers(256))]) + data[at + 1 :]
        case 2:
            return data[:at] + data[at + size :]
        case 3:
            return data[:at] + data[at : at + size] + data[at:]
        case 4:
            return data[:at] + rng.bytes(size) + data[at:]
        case _:
            return data[:at]


def believed(path: Path, anchor: Anchor) -> None:
    container = read_container(path)
    check(container, anchor)
    container.require_whole()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["release", "return"])
def test_of_hundreds_of_mutated_files_every_one_is_refused_with_a_typed_error(
    cast: Cast, home: Anchor, tmp_path: Path, kind: str
) -> None:
    by = cast.owner if kind == "release" else cast.client("c1")
    path = tmp_path / "a.htb"
    written(path, release_by(by) if kind == "release" else return_by(by, client="c1"), by=by)
    data, rng, errors = path.read_bytes(), np.random.default_rng(7), set[type[Exception]]()
    for wrong in (mutated(data, rng=rng) for _ in range(150)):
        path.write_bytes(wrong)
        if wrong != data:
            with pytest.raises(ProtocolFault) as caught:
                believed(path, home)
            errors.add(caught.type)
    assert errors == {MalformedUpdate, UntrustedSigner, DigestMismatch}


def head_believed(head: bytes, anchor: Anchor) -> None:
    check(parse_head(head, path=Path("a.htb")), anchor)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["release", "return"])
def test_of_thousands_of_mutated_heads_every_one_is_refused_with_a_typed_error(
    cast: Cast, home: Anchor, tmp_path: Path, kind: str
) -> None:
    by = cast.owner if kind == "release" else cast.client("c1")
    statement = release_by(by) if kind == "release" else return_by(by, client="c1")
    data, rng = written(tmp_path / "a.htb", statement, by=by).head(), np.random.default_rng(9)
    for wrong in (mutated(data, rng=rng) for _ in range(3000)):
        if wrong != data:
            with pytest.raises((MalformedUpdate, UntrustedSigner)):
                head_believed(wrong, home)


@pytest.mark.slow
def test_mutated_endorsements_of_valid_form_are_refused(cast: Cast, home: Anchor, tmp_path: Path) -> None:
    container = bundle(release_by(cast.owner), by=cast.owner, path=tmp_path / "a.htb")
    fields, rng = container.endorsement, np.random.default_rng(8)
    assert fields.ml_dsa_65 is not None
    for _ in range(700):
        parts = [fields.ed25519, fields.ml_dsa_65, fields.credential.certificate, fields.credential.binding]
        which = int(rng.integers(4))
        parts[which] = mutated(parts[which], rng=rng)
        credential = msgspec.structs.replace(fields.credential, certificate=parts[2], binding=parts[3])
        wrong = Endorsement(ed25519=parts[0], ml_dsa_65=parts[1], credential=credential)
        if wrong != fields:
            with pytest.raises(UntrustedSigner):
                check(replace(container, endorsement=wrong), home)


# What people are told.


def test_inspect_tells_what_a_bundle_is_and_believes_nobody(cast: Cast, tmp_path: Path) -> None:
    container = bundle(return_by(cast.client("c2"), client="c1"), by=cast.client("c2"), path=tmp_path / "a.htb")
    told = inspection.pairs(container)
    assert told["says it is of"] == "hushtune://client/c2"
    assert told["algorithms"] == "ed25519, ml-dsa-65"
    assert "hold for the keys in the file" in told["signatures"]
    assert "no wiretap code" in told["protection"]
    assert told["privacy"] == "no bound"
    assert inspection.pairs(stripped(container))["signatures"].startswith("DO NOT HOLD")
    facts = json.loads(json.dumps(inspection.facts(container)))
    assert (facts["trusted"], facts["signatures_hold"], facts["statement"]["client"]) == (None, True, "c1")


def test_a_release_says_that_it_is_not_secret(cast: Cast, tmp_path: Path) -> None:
    told = inspection.pairs(bundle(release_by(cast.owner), by=cast.owner, path=tmp_path / "a.htb"))
    assert told["protection"].startswith("none: ")
    assert (told["licence"], told["for"]) == ("Apache-2.0", "c1, c2")


def test_a_check_says_what_the_name_rests_on(cast: Cast, home: Anchor, tmp_path: Path) -> None:
    container = bundle(release_by(cast.owner), by=cast.owner, path=tmp_path / "a.htb")
    by_name = inspection.believed(check(container, home))
    assert "P-256" in by_name["known by"]
    assert (by_name["post-quantum"], inspection.established(check(container, home))["post_quantum"]) == ("no", False)
    by_key = inspection.believed(check(container, pin(cast.owner.signer, tmp_path)))
    assert (by_key["known by"], by_key["post-quantum"]) == ("pinned keys", "yes")


def test_a_return_binds_the_release_by_the_bytes_that_were_signed(cast: Cast, tmp_path: Path) -> None:
    container = bundle(release_by(cast.owner), by=cast.owner, path=tmp_path / "a.htb")
    assert container.digest == Digest.of(canonical(container.statement))
    assert isinstance(container.statement.lineage, Lineage)
    assert isinstance(container.statement.payload, Payload)
