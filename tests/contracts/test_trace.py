"""One adapter is followed by any of its digests, and what both ends call it is compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from hushtune_common.errors import ConfigError
from hushtune_server import cli

SEALED, FRAME, STORED, OTHER, EMULATOR, MEAN = (f"{n:x}" * 64 for n in (10, 11, 12, 13, 14, 15))


def lines_of(received: str = SEALED, *, refused: str = "") -> dict[str, list[dict[str, object]]]:
    c1: dict[str, object] = {"client": "c1", "round_id": 1}
    judged = {"event": "update_refused", "reason": refused} if refused else {"event": "update_accepted", "digest": SEALED}
    return {
        "c1": [
            {"at": 1, "event": "training_finished", **c1, "role": "client", "train_s": 31.0, "steps": 6},
            {"at": 2, "event": "update_sealed", **c1, "role": "client", "digest": SEALED, "bytes_sealed": 1000},
            {"at": 3, "event": "transfer_finished", "client": "c1", "role": "client", "kind": "frame", "bytes_total": 1300},
            {"at": 5, "event": "frame_transmitted", **c1, "role": "client", "attempt": 1, "digest_frame": FRAME, "missing": 0},
            {"at": 15, "event": "verdict_received", **c1, "role": "client", "accepted": True, "kept": True, "score": 90.0},
        ],
        "c2": [{"at": 2, "event": "update_sealed", "client": "c2", "round_id": 1, "role": "client", "digest": OTHER}],
        "air": [{"at": 4, "event": "frame_carried", **c1, "role": "air", "attempt": 1, "digest_frame": FRAME, "airtime_s": 3.0}],
        "eavesdropper": [
            {
                "at": 9,
                "event": "reception_attacked",
                **c1,
                "role": "eavesdropper",
                "attempt": 1,
                "digest_frame": FRAME,
                "crc_passes": 0,
            }
        ],
        "owner": [
            {"at": 0, "event": "emulator_published", "role": "owner", "round_id": 1, "digest": EMULATOR},
            {"at": 6, "event": "update_received", **c1, "role": "owner", "digest": received, "attempts": 1},
            {"at": 7, "event": "adapter_stored", **c1, "role": "owner", "digest_sealed": SEALED, "digest_adapter": STORED},
            {"at": 8, **c1, "role": "owner", **judged},
            {"at": 10, "event": "adapters_averaged", "role": "owner", "round_id": 1, "clients": ["c1"], "digest_adapter": MEAN},
            *([] if refused else [{"at": 11, "event": "plugin_kept", "role": "owner", "round_id": 1, "clients": ["c1"]}]),
        ],
    }


def write(folder: Path, processes: dict[str, list[dict[str, object]]]) -> str:
    folder.mkdir(exist_ok=True)
    for name, written in processes.items():
        rows = [
            json.dumps({"time": f"2026-11-22T09:41:{record.pop('at'):02}+00:00", "name": name, **record}) for record in written
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(folder)


def story_of(capsys: pytest.CaptureFixture[str], digest: str, run: str) -> dict[str, Any]:
    assert cli.main(["trace", digest, "--run", run, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("digest", [SEALED[:8], FRAME[:4], STORED, SEALED[:8].upper(), f"run.1.c1.{STORED[:12]}"])
def test_any_digest_of_an_adapter_leads_to_the_same_story(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], digest: str
) -> None:
    story = story_of(capsys, digest, write(tmp_path / "x", lines_of()))
    steps = story["steps"]
    assert (story["client"], story["round_id"]) == ("c1", 1)
    way = ["c1", "c1", "c1", "air", "c1", "owner", "owner", "owner", "eavesdropper", "owner", "owner", "c1"]
    assert [step["process"] for step in steps] == way
    assert str(story["verdict"]).startswith("accepted and kept")


def test_digests_that_agree_are_told_from_those_that_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = story_of(capsys, SEALED, write(tmp_path / "x", lines_of()))
    other = story_of(capsys, SEALED, write(tmp_path / "y", lines_of(received=MEAN)))
    assert [(a["what"], a["holds"]) for a in same["agreements"]] == [("sealed update", True), ("frame, attempt 1", True)]
    assert [a["holds"] for a in other["agreements"]] == [False, True]


def test_a_refusal_is_the_verdict_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "x", lines_of(refused="MALFORMED_UPDATE: not finite\x1b[2J"))
    assert cli.main(["trace", SEALED, "--run", run]) == 0
    shown = capsys.readouterr().out
    assert "Verdict: refused by the owner: MALFORMED_UPDATE: not finite" in shown
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize(
    ("digest", "told"),
    [
        ("0123456", "c1, round 1"),
        ("xyz", "0-9 and a-f"),
        ("ab", "at least 4"),
        (EMULATOR[:6], "is the emulator"),
        (MEAN[:6], "is the mean"),
    ],
)
def test_what_names_no_adapter_is_said_with_those_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], digest: str, told: str
) -> None:
    assert cli.main(["trace", digest, "--run", write(tmp_path / "x", lines_of())]) == ConfigError.exit_code
    assert told in capsys.readouterr().err


def test_a_beginning_of_two_digests_asks_for_more_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processes = lines_of()
    processes["c2"][0]["digest"] = SEALED[:10] + OTHER[10:]
    assert cli.main(["trace", SEALED[:8], "--run", write(tmp_path / "x", processes)]) == ConfigError.exit_code
    assert "give more of it" in capsys.readouterr().err


def test_an_adapter_on_its_way_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = story_of(capsys, OTHER, write(tmp_path / "x", lines_of()))
    assert "still on its way" in str(story["verdict"])
