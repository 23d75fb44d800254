"""Is every event that a process logs in the catalogue, everything in the catalogue logged, and the page about it up to date?"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from hushtune_common import logs
from hushtune_common.aggregation import SecureConfig, resolved
from hushtune_common.events.catalogue import EVENTS, objection
from hushtune_common.messages import Gate
from hushtune_server.owner.reception import Decoding
from hushtune_server.testbed.logbook.document import document
from tests.event_calls import Call, calls

ROOT = Path(__file__).resolve().parents[2]
CALLS = calls()

GIVEN_AS_A_WHOLE: Mapping[str, frozenset[str]] = {
    "aggregation_resolved": frozenset(resolved(SecureConfig(), clients=3)),
    "gate_decided": frozenset(f.name for f in dataclasses.fields(Gate)),
    "reception_decoded": frozenset(f.name for f in dataclasses.fields(Decoding)),
    "adapter_imported": frozenset({"matrices", "ranks", "whole_tensors", "indices"}),
}
"""Fields that a call passes on as one mapping, which its text does not name."""

ROLE_OF_FOLDER = {
    "client/hushtune_client": "client",
    **{f"server/hushtune_server/{role}": role for role in ("owner", "coordinator", "air", "eavesdropper")},
}


def fields_of(call: Call, event: str) -> set[str]:
    return {*call.fields} | ({*GIVEN_AS_A_WHOLE[event]} if call.more else set())


@pytest.mark.parametrize("call", CALLS, ids=lambda c: c.where)
def test_what_a_call_logs_is_in_the_catalogue(call: Call) -> None:
    assert call.events, f"{call.where}: write the event's name out, so that it can be read off"
    assert not call.more or call.events <= {*GIVEN_AS_A_WHOLE}, f"{call.where}: write the fields out, or name them in this test"
    assert [wrong for event in call.events if (wrong := objection(event, fields_of(call, event)))] == []


def test_all_of_the_catalogue_is_logged_somewhere() -> None:
    logged: dict[str, set[str]] = {}
    for call in CALLS:
        for event in call.events:
            logged.setdefault(event, set()).update(fields_of(call, event))
    assert sorted({*EVENTS} - {*logged}) == []
    unused = {name: sorted({*entry.fields} - logged[name]) for name, entry in EVENTS.items()}
    assert {name: fields for name, fields in unused.items() if fields} == {}


def test_an_event_is_logged_by_the_roles_that_the_catalogue_names() -> None:
    wrong = [
        f"{call.where}: {event} is by {EVENTS[event].by}"
        for call in CALLS
        for folder, role in ROLE_OF_FOLDER.items()
        if call.where.startswith(f"{folder}/")
        for event in call.events
        if role not in EVENTS[event].by
    ]
    assert wrong == []


def test_the_page_about_events_is_up_to_date() -> None:
    written = (ROOT / "docs/EVENTS.md").read_text(encoding="utf-8")
    assert written == document(), "run: hushtune logs catalogue --document docs/EVENTS.md"


def test_while_we_test_an_unknown_event_or_field_is_refused_with_the_likely_name() -> None:
    logger = logging.getLogger("hushtune.test_events")
    with pytest.raises(logs.UncataloguedEvent, match="update_sealed"):
        logs.log_event(logger, "update_seeled")
    with pytest.raises(logs.UncataloguedEvent, match="no field plaintext; it has"):
        logs.log_event(logger, "update_sealed", plaintext=1)


def test_where_nobody_asked_for_it_an_unknown_event_is_logged_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    logs.refuse_uncatalogued(False)
    try:
        with caplog.at_level(logging.INFO):
            logs.log_event(logging.getLogger("hushtune.test_events"), "never_heard_of")
    finally:
        logs.refuse_uncatalogued(True)
    assert caplog.messages == ["never_heard_of"]


def test_no_event_has_a_field_named_after_a_secret() -> None:
    secrets = {"private", "secret", "key", "link_key", "text", "texts", "toeplitz", "dither"}
    assert [name for name, entry in EVENTS.items() if secrets & {*entry.fields}] == []
