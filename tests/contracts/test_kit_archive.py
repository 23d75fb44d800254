"""Does a kit that travels as one file arrive whole, and is everything else refused with a word on what to do?"""

import io
import shutil
import stat
import zipfile
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hushtune_common import config
from hushtune_common.clock import SystemClock
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Caller, Role
from hushtune_common.wire import archive
from hushtune_common.wire.archive import Archive, lay_out, parse
from hushtune_common.wire.kit import Kit
from hushtune_server import pki
from hushtune_server.pki import kits as kit_files
from hushtune_server.pki.authority import Authority

ALICE = Caller(role=Role.CLIENT, name="alice")
PLACES = {Role.OWNER: "owner.example:7003", Role.COORDINATOR: "10.0.0.7:7001", Role.AIR: "[::1]:7002"}
SCENARIO = """
name = "travelling"
seed = 77
[model]
source = "random:blocks=6,hidden=32,heads=4,vocab=256,seed=1"
[data]
private = "txt:private.txt"
public = "txt:deep/down/public.txt"
[owner]
emulator = { method = "uniform", drop = 2 }
[[clients]]
id = "alice"
position = { x_m = -60.0, y_m = 40.0 }
"""


def made(folder: Path, caller: Caller = ALICE, *, name: str = "kit.zip", places: Mapping[Role, str] = PLACES) -> Path:
    """Make a kit file below ``folder``, with the authority there, which is made when missing."""
    if not (folder / "ca").exists():
        pki.init(folder / "ca", clock=SystemClock())
        (folder / "s.toml").write_text(SCENARIO, encoding="utf-8")
    out = folder / name
    scenario = config.load(folder / "s.toml")
    kit_files.create(folder / "ca", caller, addresses=places, scenario=scenario, out=out, made_by="0.1.0", clock=SystemClock())
    return out


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tmp_path_factory.mktemp("good")).read_bytes()


def with_members(content: bytes, **changes: bytes | None) -> bytes:
    """Return the archive with members replaced (``kit_toml=…``) or left out (``None``), laid out as ours are."""
    members = dict(parse(content, name="good").members)
    for key, data in changes.items():
        name = key.replace("_", ".")
        members.pop(name, None)
        if data is not None:
            members[name] = data
    return lay_out(members)


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_any_program_for_zip_files_reads_it_and_sees_private_files_without_dates(good: bytes):
    with zipfile.ZipFile(io.BytesIO(good)) as file:
        assert file.testzip() is None
        assert file.namelist() == ["kit.toml", "ca.crt", "ca.crl", "tls.crt", "tls.key", "scenario.toml"]
        assert {(i.external_attr >> 16, i.date_time, i.compress_type) for i in file.infolist()} == {
            (stat.S_IFREG | 0o600, (1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)
        }
        assert {name: file.read(name) for name in file.namelist()} == parse(good, name="good").members


def test_a_kit_file_says_who_where_and_what_run(tmp_path: Path):
    path = made(tmp_path)
    found = archive.read(path)
    assert (found.caller, dict(found.addresses)) == (ALICE, PLACES)
    assert found.scenario == config.load(tmp_path / "s.toml").digest
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"PRIVATE KEY" in found.members["tls.key"]
    assert "PRIVATE" not in repr(found)


def test_folders_of_the_machine_that_made_it_do_not_travel_and_the_seed_not_to_the_eavesdropper(tmp_path: Path):
    tap = Caller(role=Role.EAVESDROPPER, name="tap")
    for caller, seed in ((ALICE, 77), (tap, 0)):
        found = archive.read(made(tmp_path, caller, name=f"{caller.name}.zip"))
        assert str(tmp_path).encode() not in found.members["scenario.toml"]
        assert archive.scenario_of(found.members["scenario.toml"]).seed == seed
        assert found.scenario == config.load(tmp_path / "s.toml").digest


def test_an_unpacked_kit_is_a_kit_for_its_user_only(tmp_path: Path):
    archive.unpack(archive.read(made(tmp_path)), tmp_path / "kit")
    assert Kit.load(tmp_path / "kit").caller == ALICE
    assert pki.show(tmp_path / "kit")["identity"] == ALICE.uri
    assert config.load(tmp_path / "kit" / "scenario.toml").digest == config.load(tmp_path / "s.toml").digest
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "kit").iterdir()} == {0o600}
    assert stat.S_IMODE((tmp_path / "kit").stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="is there already"):
        archive.unpack(archive.read(tmp_path / "kit.zip"), tmp_path / "kit")


def test_a_kit_file_is_not_overwritten_and_nothing_is_issued_for_it(tmp_path: Path):
    before = made(tmp_path).read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        made(tmp_path)
    assert (tmp_path / "kit.zip").read_bytes() == before
    assert len(Authority.load(tmp_path / "ca").register()) == 1


@pytest.mark.parametrize(
    ("caller", "places", "advice"),
    [
        (Caller(role=Role.CLIENT, name="nobody"), PLACES, "no client 'nobody'"),
        (ALICE, {Role.OWNER: "h:1", Role.AIR: "h:2"}, "add coordinator=HOST:PORT"),
        (ALICE, {**PLACES, Role.AIR: "air.example"}, "--addresses air: is HOST:PORT"),
        (ALICE, {**PLACES, Role.AIR: 'x:1"\nseed = 3'}, "--addresses air: is HOST:PORT"),
        (ALICE, {**PLACES, Role.AIR: "h:65536"}, "--addresses air: is HOST:PORT"),
    ],
)
def test_a_kit_that_could_not_work_is_not_made(tmp_path: Path, caller: Caller, places: Mapping[Role, str], advice: str):
    with pytest.raises(ConfigError, match=advice):
        made(tmp_path, caller, places=places)
    assert not (tmp_path / "kit.zip").exists()


# --- what is refused --------------------------------------------------------------------------------------------------


def zipped(write: Callable[[zipfile.ZipFile], None], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        write(file)
    return buffer.getvalue()


def again(good: bytes, **extra: bytes) -> Callable[[zipfile.ZipFile], None]:
    def write(file: zipfile.ZipFile) -> None:
        for name, data in {**parse(good, name="good").members, **extra}.items():
            file.writestr(name, data)

    return write


def test_a_kit_that_was_zipped_again_is_told_as_that(good: bytes):
    again = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as made, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as file:
        for name in made.namelist():
            file.writestr(name, made.read(name))
    with pytest.raises(ConfigError, match="packed by something else than"):
        archive.parse(again.getvalue(), name="kit.zip")


def test_a_bomb_is_refused_before_it_grows(good: bytes):
    bomb = zipped(again(good, **{"ca.crl": bytes(64 << 20)}), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 200_000
    with pytest.raises(ConfigError, match="as it came"):
        parse(bomb, name="bomb.zip")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "sub/tls.key", "signing.key", "TLS.KEY", "tls.key "])
def test_a_member_that_is_no_file_of_a_kit_is_refused(good: bytes, name: str):
    with pytest.raises(ConfigError, match="no file of a kit"):
        parse(zipped(lambda file: file.writestr(name, b"x")) + good, name="kit.zip")


def twice(good: bytes) -> bytes:
    def write(file: zipfile.ZipFile) -> None:
        again(good)(file)
        file.writestr("tls.key", b"again")

    return zipped(write)


def other_layouts(good: bytes) -> dict[str, bytes]:
    return {
        "zipped again": zipped(again(good)),
        "a member twice": twice(good),
        "behind": good + b"\0",
        "before": b"\0" + good,
        "two": good + good,
        "cut": good[:-1],
        "empty": b"",
        "huge": bytes(9 << 20),
    }


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("how", ["zipped again", "a member twice", "behind", "before", "two", "cut", "empty", "huge"])
def test_an_archive_that_is_laid_out_in_any_other_way_is_refused(good: bytes, how: str):
    with pytest.raises(ConfigError, match="ask for the file again"):
        parse(other_layouts(good)[how], name="kit.zip")


@pytest.mark.parametrize(
    ("member", "old", "new", "advice"),
    [
        ("tls.key", b"-", b"_", "tls.key is not what kit.toml says"),
        ("scenario.toml", b"seed = 77", b"seed = 78", "scenario.toml is not what kit.toml says"),
        ("kit.toml", b"hushtune-kit/1", b"hushtune-kit/2", "this program reads 'hushtune-kit/1'"),
        ("kit.toml", b"client/alice", b"owner/alice", "the certificate is another one"),
        ("kit.toml", b"client/alice", b"king/alice", "not a Hushtune identity"),
        ("kit.toml", b"not_after", b"not_later", "kit.toml: Object"),
        ("kit.toml", b"air = ", b"moon = ", "addresses are of roles"),
        ("kit.toml", b'"[::1]:7002"', b'"[::1]"', "is HOST:PORT"),
        ("kit.toml", b"[addresses]", b"[addresses", "kit.toml: "),
    ],
)
def test_what_does_not_agree_is_refused_and_named(good: bytes, member: str, old: bytes, new: bytes, advice: str):
    data = parse(good, name="good").members[member]
    assert old in data
    with pytest.raises(ConfigError, match="ask for the file again") as raised:
        parse(with_members(good, **{member.replace(".", "_"): data.replace(old, new)}), name="kit.zip")
    assert advice in str(raised.value)


@pytest.mark.parametrize("member", ["kit.toml", "ca.crt", "ca.crl", "tls.crt", "tls.key"])
def test_a_missing_member_is_named(good: bytes, member: str):
    with pytest.raises(ConfigError, match=f"lacks {member}"):
        parse(with_members(good, **{member.replace(".", "_"): None}), name="kit.zip")


def test_a_scenario_that_nobody_announced_or_that_is_not_there_is_refused(good: bytes):
    with pytest.raises(ConfigError, match=r"scenario\.toml is not what kit\.toml says"):
        parse(with_members(good, scenario_toml=None), name="kit.zip")


@settings(max_examples=300)
@given(at=st.integers(min_value=0), change=st.binary(min_size=0, max_size=6), cut=st.integers(min_value=0, max_value=6))
@example(at=26, change=b"\xff\xff", cut=2)
def test_bytes_that_were_changed_anywhere_are_refused_by_a_typed_error(good: bytes, at: int, change: bytes, cut: int):
    place = at % len(good)
    changed = good[:place] + change + good[place + cut :]
    if changed != good:
        with pytest.raises(ConfigError):
            parse(changed, name="fuzzed.zip")


_NAMES = ["kit.toml", "ca.crt", "ca.crl", "tls.crt", "tls.key", "scenario.toml"]


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(_NAMES), st.binary(max_size=200)))
@example({name: b"[" * 5_000 for name in _NAMES})
def test_any_members_in_the_right_layout_are_refused_by_a_typed_error(good: bytes, changes: dict[str, bytes]):
    if changes:
        with pytest.raises(ConfigError):
            parse(lay_out({**parse(good, name="good").members, **changes}), name="fuzzed.zip")


@settings(max_examples=200)
@given(st.text(alphabet='[]{}=".,\n\\#abcdis01-:', max_size=80))
@example("[" * 3_000)
@example("a." * 3_000 + "a = 1")
def test_a_scenario_of_any_text_is_refused_by_a_typed_error(text: str):
    with pytest.raises(ConfigError):
        archive.scenario_of(text.encode())


# --- a folder that holds one already ----------------------------------------------------------------------------------


def held(folder: Path, path: Path) -> Archive:
    found = archive.read(path)
    assert archive.settle(found, folder) == "new"
    return found


def test_the_same_kit_again_changes_nothing_not_even_a_newer_list(tmp_path: Path):
    found = held(tmp_path / "kit", made(tmp_path))
    (tmp_path / "kit" / "ca.crl").write_bytes(b"newer")
    assert archive.settle(found, tmp_path / "kit") == "same"
    assert (tmp_path / "kit" / "ca.crl").read_bytes() == b"newer"


def test_a_newer_certificate_of_the_same_process_takes_its_place_and_the_older_one_does_not_come_back(tmp_path: Path):
    old = held(tmp_path / "kit", made(tmp_path))
    (tmp_path / "kit" / "signing.key").write_bytes(b"mine")
    later = tmp_path / "later.zip"
    kit_files.create(
        tmp_path / "ca",
        ALICE,
        addresses=PLACES,
        scenario=config.load(tmp_path / "s.toml"),
        out=later,
        made_by="0.1.0",
        clock=Later(),
    )
    new = archive.read(later)
    assert archive.settle(new, tmp_path / "kit") == "renewed"
    assert (tmp_path / "kit" / "tls.key").read_bytes() == new.members["tls.key"]
    assert (tmp_path / "kit" / "signing.key").read_bytes() == b"mine"
    assert stat.S_IMODE((tmp_path / "kit" / "tls.key").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="holds a newer kit"):
        archive.settle(old, tmp_path / "kit")


class Later(SystemClock):
    """An hour later."""

    def wall(self) -> datetime:
        return super().wall() + timedelta(hours=1)


@pytest.mark.parametrize("what", ["process", "authority", "scenario"])
def test_another_kit_for_a_folder_in_use_is_refused(tmp_path: Path, what: str):
    held(tmp_path / "kit", made(tmp_path))
    before = {path.name: path.read_bytes() for path in (tmp_path / "kit").iterdir()}
    caller, home = ALICE, tmp_path
    match what:
        case "process":
            caller = Caller(role=Role.OPERATOR, name="alice")
        case "authority":
            home = tmp_path / "other"
            home.mkdir()
        case _:
            (tmp_path / "s.toml").write_text(SCENARIO.replace("drop = 2", "drop = 1"), encoding="utf-8")
    other = archive.read(made(home, caller, name="other.zip"))
    with pytest.raises(ConfigError, match=f"holds a kit of another {what}; take another --state folder"):
        archive.settle(other, tmp_path / "kit")
    assert {path.name: path.read_bytes() for path in (tmp_path / "kit").iterdir()} == before


def test_a_folder_of_something_else_is_not_taken_for_a_kit(tmp_path: Path):
    found = archive.read(made(tmp_path))
    shutil.copytree(tmp_path / "ca", tmp_path / "kit")
    with pytest.raises(ConfigError, match="holds no kit"):
        archive.settle(found, tmp_path / "kit")
