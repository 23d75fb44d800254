"""Is a mean of updates that nobody has seen screened, tried and remembered like any other, and is no single one looked at?"""

from pathlib import Path

import numpy as np

from hushtune_common.adapter import AdapterState
from hushtune_common.aggregation import SecureConfig
from hushtune_common.messages import ClientId, UpdateKey
from hushtune_common.secagg.terms import terms_of
from tests.bench import NAMES, NOTHING_BUT_PUBLIC_TEXT, RUN, Owner, equal, owner, seated
from tests.secagg import Rehearsal

CLIENTS = tuple(ClientId(name) for name in NAMES)
SECURE = {"kind": "secure", "bits": 12}


class Senders:
    """The members of a round, whose sealed payloads the bench is given; ``moved`` is what each changed every weight by."""

    def __init__(self, at: Owner, *, moved: tuple[float, float, float]) -> None:
        assert at.sums is not None
        self.at, self.table = at, at.sums
        options = at.scenario.owner.aggregation
        assert isinstance(options, SecureConfig)
        terms = terms_of(options, members_max=3, run=RUN, round_id=1, layout=self.table.layout)
        self.rehearsal = Rehearsal(terms=terms, names=CLIENTS)
        self.step = max(self.table.grid.step(t) for t in self.table.grid.tensors)
        changes = {c: by for c, by in zip(CLIENTS, moved, strict=True)}
        self.rehearsal.plain = {c: self.table.grid.encode(self.state(by), shipped=at.shipped).words for c, by in changes.items()}

    def state(self, by: float) -> AdapterState:
        return AdapterState({n: (t + np.float32(by)).astype(np.float32) for n, t in self.at.shipped.tensors.items()})

    def send(self) -> None:
        rehearsal = self.rehearsal
        rehearsal.advertise()
        rehearsal.deal()
        for word in (rehearsal.roster, rehearsal.delivery(ClientId("owner"))):
            self.table.hear(1, word)
        for client in CLIENTS:
            key = UpdateKey(run=RUN, round_id=1, client=client, attempt=1)
            rehearsal.uploads[client] = rehearsal.mask(client)
            judgement = self.at.judge(rehearsal.uploads[client].to_bytes(), key=key)
            assert (judgement.accepted, judgement.kept, judgement.perplexity_after) == (True, True, None), judgement
        rehearsal.relayed = rehearsal.relay.announce(rehearsal.relayed, self.table.close(1, among=CLIENTS))
        rehearsal.vow()
        for client in CLIENTS:
            self.table.open(1, rehearsal.opening(client))


def test_the_mean_of_three_is_kept_and_no_adapter_of_one_is_anywhere(tmp_path: Path) -> None:
    at = owner(tmp_path, aggregation=SECURE)
    senders = Senders(at, moved=(1e-4, 2e-4, 6e-4))
    senders.send()
    merged = at.bench.merge(CLIENTS)
    assert (merged.kept, merged.clients) == (True, CLIENTS)
    wanted = senders.state(3e-4)
    for name, tensor in seated(at).tensors.items():
        assert np.abs(tensor - wanted.tensors[name]).max() <= senders.step / 2 + 1e-7
    assert [p.name for p in (tmp_path / "adapters").iterdir()] == ["aggregate.safetensors"]
    assert at.bench.merge(CLIENTS) == merged, "done again, as after a restart, it gives the same answer"


def test_a_mean_that_breaks_a_limit_is_named_and_rolled_back(tmp_path: Path) -> None:
    at = owner(tmp_path, aggregation=SECURE, gate={**NOTHING_BUT_PUBLIC_TEXT, "norm_max": 1e-6})
    before = seated(at)
    Senders(at, moved=(1e-4, 2e-4, 6e-4)).send()
    merged = at.bench.merge(CLIENTS)
    assert not merged.kept
    assert "owner.gate.norm_max" in merged.reason
    assert equal(seated(at), before)
    assert not at.bench.merge(CLIENTS).kept


def test_what_is_no_masked_payload_is_refused_for_its_form(tmp_path: Path) -> None:
    at = owner(tmp_path, aggregation=SECURE)
    key = UpdateKey(run=RUN, round_id=1, client=CLIENTS[0], attempt=1)
    judgement = at.judge(b"an adapter in the clear", key=key)
    assert (judgement.accepted, "MALFORMED: not a masked payload" in judgement.reason) == (False, True)
