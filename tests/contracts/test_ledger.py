"""Does the ledger know what anybody can have seen over all releases, keep it through a kill, and stop what would be too much?"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.config import ExposureConfig
from hushtune_common.errors import ConfigError, ExposureExceeded
from hushtune_common.messages import Digest
from hushtune_common.methods import UniformOptions
from hushtune_common.model.bundle import emulator_tensors, read_bundle
from hushtune_common.model.naming import block_of
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Drop, Keep, Quant, Slot
from hushtune_common.model.sources import ModelSource
from hushtune_common.seeding import SeedTree
from hushtune_server.cli import main
from hushtune_server.owner.emulators.exposure import Coverage, Shown, coverage
from hushtune_server.owner.emulators.method import EmulatorRequest, Profile, both_ends
from hushtune_server.owner.emulators.uniform import Uniform
from hushtune_server.owner.ledger import LEDGER, Release, Standing, admit, read_ledger, release_of, standing, united
from tests.models import ADAPTER, tiny_bundle, tiny_source

FREE = ExposureConfig()


def release(plan: Plan, *recipients: str, source: ModelSource, date: str = "2026-01-01") -> Release:
    shown = coverage(plan, base=source.weights, shipped=emulator_tensors(source, plan=plan))
    names = tuple(sorted(recipients))
    return Release(base=plan.base, plan=plan.digest, refinement=None, recipients=names, date=date, coverage=shown)


def tiny_release(
    *recipients: str, drop: Sequence[int] = (), change: Sequence[Slot] = (), source: ModelSource | None = None
) -> Release:
    source = tiny_source() if source is None else source
    by_index: dict[int, Slot] = {**{b: Drop(b) for b in drop}, **{s.index: s for s in change}}
    slots = tuple(by_index.get(b, Keep(b)) for b in range(source.block_count))
    return release(Plan(base=source.base_digest, adapter=ADAPTER, slots=slots, method="m"), *recipients, source=source)


def together(releases: Sequence[Release], *who: str) -> Standing:
    return standing(releases, who, base=releases[-1].base, model=releases[-1].coverage)


def published_recipes() -> tuple[ModelSource, list[Plan]]:
    """Return a model with as many blocks as OPT-1.3B, and its emulators by the two roundings that were published."""
    source = tiny_source("random:blocks=24,hidden=8,heads=2,kv_heads=2,seed=1")
    adapter = both_ends(24, bottom=2, top=2)
    request = EmulatorRequest(base=source.base_digest, block_count=24, adapter=adapter)
    options = [UniformOptions(drop=12, rounding="half_up"), UniformOptions(drop=12, rounding="floor")]
    return source, [Uniform(o).plan(Profile(), request, seeds=SeedTree(0)) for o in options]


@pytest.mark.slow
def test_two_roundings_of_one_recipe_show_eleven_middle_blocks_instead_of_eight() -> None:
    source, plans = published_recipes()
    releases = [release(plan, "c1", source=source) for plan in plans]
    inside = {b: sum(source.tensor(n).size for n in source.names() if block_of(n) == b) for b in (None, 0)}
    assert [together([r], "c1").shown for r in releases] == [inside[None] + (4 + 8) * inside[0]] * 2
    assert together(releases, "c1").shown == inside[None] + (4 + 11) * inside[0]


@pytest.mark.slow
def test_the_second_rounding_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    source, plans = published_recipes()
    first, second = (release(plan, "c1", source=source) for plan in plans)
    cap = ExposureConfig(share_max=together([first], "c1").share + 0.01)
    admit(tmp_path / LEDGER, first, config=cap)
    before = (tmp_path / LEDGER).read_bytes()
    with pytest.raises(ExposureExceeded, match=r"c1 would have seen .* owner\.exposure\.share_max"):
        admit(tmp_path / LEDGER, second, config=cap)
    assert (tmp_path / LEDGER).read_bytes() == before
    assert admit(tmp_path / LEDGER, replace(second, recipients=("c2",)), config=cap)[0].share < cap.share_max


def test_those_who_may_collude_are_counted_together(tmp_path: Path) -> None:
    first, second = tiny_release("c1", drop=(2,)), tiny_release("c2", drop=(3,))
    cap = together([first], "c1").share
    apart = ExposureConfig(share_max=cap)
    allied = ExposureConfig(share_max=cap, colluding=(("c1", "c2"), ("c8", "c9")))
    admit(tmp_path / "allied", first, config=allied)
    with pytest.raises(ExposureExceeded, match=r"c1 and c2 would have seen 100\.00%"):
        admit(tmp_path / "allied", second, config=allied)
    admit(tmp_path / "apart", first, config=apart)
    assert [s.who for s in admit(tmp_path / "apart", second, config=apart)] == [("c2",)]


def test_a_lowered_cap_stops_what_shows_more_but_not_what_is_known_already(tmp_path: Path) -> None:
    path, low = tmp_path / LEDGER, ExposureConfig(share_max=0.1)
    known = tiny_release("c1", drop=(2, 3))
    admit(path, known, config=FREE)
    admit(path, replace(known, date="2027-01-01"), config=low)
    admit(path, tiny_release("c1", drop=(2, 3, 4)), config=low)
    with pytest.raises(ExposureExceeded):
        admit(path, tiny_release("c1", drop=(2,)), config=low)


def test_a_release_is_written_once_and_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / LEDGER
    parts = (
        Compress(index=2, channels=(0, 5), quant=Quant(bits=4, block=16)),
        Compress(index=3, ranks={"self_attn.q_proj": (1, 3)}),
    )
    ours = tiny_release("c1", "c2", change=parts)
    admit(path, ours, config=FREE)
    admit(path, replace(ours, date="2027-01-01"), config=FREE)
    assert read_ledger(path) == (ours,)
    assert {s.kind for s in ours.coverage.tensors.values()} == {"verbatim", "blurred", "components", "channels"}


def test_a_later_version_of_the_model_remembers_the_tensors_that_it_still_has() -> None:
    first = tiny_release("c1", drop=(2,))
    tensors = {
        n: replace(s, tensor=Digest.of(n.encode())) if block_of(n) in ADAPTER else s for n, s in first.coverage.tensors.items()
    }
    later = replace(first, base=Digest.of(b"later"), coverage=Coverage(tensors=tensors), recipients=("c2",))
    known = standing([first], ["c1"], base=later.base, model=later.coverage)
    adapter = sum(s.numbers for n, s in tensors.items() if block_of(n) in ADAPTER)
    assert known.shown == together([first], "c1").shown - adapter


@pytest.mark.parametrize("cut", [1, 10, 500, -1])
def test_a_torn_last_line_was_never_released_and_is_written_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / LEDGER
    first, second = tiny_release("c1", drop=(2,)), tiny_release("c2", drop=(3,))
    admit(path, first, config=FREE)
    whole = path.stat().st_size
    admit(path, second, config=FREE)
    content = path.read_bytes()
    path.write_bytes(content[: whole + cut] if cut > 0 else content[:cut])
    assert read_ledger(path) == (first,)
    admit(path, second, config=FREE)
    assert path.read_bytes() == content


@pytest.mark.parametrize("line", [0, 1])
def test_a_line_that_was_changed_removed_or_moved_is_found(tmp_path: Path, line: int) -> None:
    path = tmp_path / LEDGER
    for name in ("c1", "c2", "c3"):
        admit(path, tiny_release(name, drop=(2,)), config=FREE)
    lines = path.read_bytes().splitlines(keepends=True)
    changed = lines[line].replace(b'"verbatim"', b'"hidden"', 1)
    for damaged in ([*lines[:line], changed, *lines[line + 1 :]], lines[:line] + lines[line + 1 :], lines[::-1]):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(ConfigError, match="damaged"):
            admit(path, tiny_release("c4"), config=FREE)


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from hushtune_common.config import ExposureConfig
from hushtune_server.owner.ledger import admit, read_ledger
path = Path(sys.argv[1])
release = read_ledger(path)[0]
for k in range(100_000):
    admit(path, replace(release, recipients=(f"r{k}",)), config=ExposureConfig())
    print(k, flush=True)
"""


@pytest.mark.slow
def test_what_was_acknowledged_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    path = tmp_path / LEDGER
    admit(path, tiny_release("c1", drop=(2,)), config=FREE)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(5):
            writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        told = 5 + len([line for line in writer.stdout if line.endswith("\n")])
    names = [r.recipients[0] for r in read_ledger(path)]
    assert names[: 1 + told] == ["c1", *(f"r{k}" for k in range(told))]
    assert len(names) <= 2 + told


def shown(kind: str, share: float, chosen: str = "", values: bytes | None = None) -> Shown:
    return Shown(
        tensor=Digest.of(b"t"),
        numbers=1000,
        kind=kind,  # pyright: ignore[reportArgumentType]  # drawn from the kinds below
        share=share,
        chosen=chosen,
        of=10,
        values=None if values is None else Digest.of(values),
    )


PARTS = [
    shown("hidden", 0.0),
    shown("channels", 0.4, "0-3"),
    shown("channels", 0.3, "2-4"),
    shown("components", 0.5, "0-2"),
    shown("components", 0.2, "0"),
    shown("components", 0.3, "2-5"),
    shown("blurred", 0.3, values=b"a"),
    shown("blurred", 0.2, values=b"b"),
    shown("near", 1.0),
]


@pytest.mark.slow
@given(st.lists(st.sampled_from(PARTS), max_size=5))
def test_a_union_is_between_its_largest_part_and_the_whole_whatever_order_parts_come_in(parts: list[Shown]) -> None:
    union = united(parts)
    assert max((p.share for p in parts), default=0.0) <= union <= min(1.0, sum(p.share for p in parts)) + 1e-12
    assert united([*reversed(parts), *parts]) == union


def test_neurons_are_united_components_that_hold_others_count_once_and_other_values_add_up() -> None:
    assert united(PARTS[1:3]) == 0.5
    assert united(PARTS[3:5]) == 0.5
    assert united(PARTS[3:6]) == 0.8
    assert united([PARTS[6], PARTS[6]]) == 0.3
    assert united(PARTS[6:8]) == 0.5
    assert united(PARTS) == 1.0


def test_the_union_of_components_is_no_less_than_what_they_explain_together() -> None:
    source = tiny_source()
    name = "model.layers.2.self_attn.q_proj.weight"
    chosen = [(0, 1, 2), (1, 2, 9), (0, 9), tuple(sorted({0, 1, 2, 9}))]
    cuts = [tiny_release("c1", change=(Compress(index=2, ranks={"self_attn.q_proj": c}),), source=source) for c in chosen]
    parts = [cut.coverage.tensors[name] for cut in cuts]
    assert united(parts[:3]) >= parts[3].share
    assert united(parts) == pytest.approx(parts[3].share)


def test_a_bundle_s_release_names_its_plan_and_its_recipients_once(tmp_path: Path) -> None:
    bundle = read_bundle(tiny_bundle(tmp_path, 2))
    found = release_of(bundle, base=tiny_source().weights, recipients=["c2", "c1", "c2"], date="2026-01-01")
    assert (found.plan, found.recipients) == (bundle.plan.digest, ("c1", "c2"))
    assert together([found], "c1").share == together([tiny_release("c1", drop=(2,))], "c1").share
    for recipients in ([], ["C 1"]):
        with pytest.raises(ValueError, match="recipient"):
            release_of(bundle, base=tiny_source().weights, recipients=recipients, date="")


def test_the_command_shows_everybody_alone_and_those_asked_for_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for who, drop in (("c1", (2,)), ("c2", (3,))):
        admit(tmp_path / LEDGER, tiny_release(who, drop=drop), config=FREE)
    assert main(["owner", "exposure", "--state", str(tmp_path), "--together", "c1,c2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["who"], row["releases"]) for row in rows] == [(["c1"], 1), (["c2"], 1), (["c1", "c2"], 2)]
    assert rows[0]["share"] == rows[1]["share"] < rows[2]["share"] == 1.0
    assert main(["owner", "exposure", "--state", str(tmp_path)]) == 0
    assert "c1" in capsys.readouterr().out


def test_the_command_names_what_it_cannot_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["owner", "exposure", "--state", str(tmp_path / "no")]) == ConfigError.exit_code
    assert main(["owner", "exposure", "--state", str(tmp_path), "--together", "c7"]) == ConfigError.exit_code
    assert "c7" in capsys.readouterr().err
    assert main(["owner", "exposure", "--state", str(tmp_path)]) == 0
    assert "nothing was released" in capsys.readouterr().out
