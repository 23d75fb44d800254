"""How fast does a client mask an update, how much longer does that make it, and how long does the owner take to unmask the sum?

    python benchmarks/secagg.py --millions 28.3 --bits 12 --owner

By number of members: MB/s of masking, of rounding to integers, and of both, by the processor time of one core. The payload is
what is masked: the adapter's change at the width that leaves each sender the bits asked for. "Raw" counts the same change as
float32. MB are 10^6 bytes; the best of the repeats counts. A member runs one stream per neighbour and one of its own, so speed
falls as one over their number: two of the lines have a ring of neighbours instead of all members. The peer masks with numpy's
fastest generator, which is not cryptographic. "Keys" is all that a member computes before it masks. The owner's part is timed
with one member in five dropped out after dealing.
"""

import argparse
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from hushtune_common.adapter import AdapterState
from hushtune_common.aggregation import digits_for
from hushtune_common.messages import ClientId, RunId, TensorSpec
from hushtune_common.secagg.aggregator import Aggregator, AggregatorState
from hushtune_common.secagg.grid import Grid, Words, grid_of
from hushtune_common.secagg.member import Member, MemberState
from hushtune_common.secagg.messages import Roster, Terms, Upload, upload_bytes
from hushtune_common.secagg.relay import Relay, RelayState

Result = TypeVar("Result")
SHAPE = (1536, 576)
CLIP = 0.0135


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    members: int
    neighbours: int
    bits: float
    round_s: float
    mask_s: float
    peer_s: float
    handshake_s: float
    owner_s: float
    upload_bytes: int


def best(repeats: int, call: Callable[[], Result]) -> tuple[float, Result]:
    """Return the shortest processor time of ``call`` (which has one thread) and its result."""
    seconds, result = timed(call)
    for _ in range(repeats - 1):
        seconds = min(seconds, timed(call)[0])
    return seconds, result


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Return the processor time of one call and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def signer(name: ClientId) -> Callable[[bytes], bytes]:
    return lambda message: hmac.digest(name.encode(), message, "sha256")


def verify(name: ClientId, message: bytes, proof: bytes) -> bool:
    return hmac.compare_digest(hmac.digest(name.encode(), message, "sha256"), proof)


def adapters(millions: float) -> tuple[AdapterState, AdapterState]:
    """Return a shipped adapter of about so many million numbers and a returned one, whose change is Gaussian."""
    rng = np.random.default_rng(1)
    count = max(1, round(millions * 1e6 / (SHAPE[0] * SHAPE[1])))
    shipped = {f"w{k}": rng.standard_normal(SHAPE, dtype=np.float32) for k in range(count)}
    returned = {n: (t + CLIP / 4 * rng.standard_normal(SHAPE)).astype(np.float32) for n, t in shipped.items()}
    return AdapterState(shipped), AdapterState(returned)


class Round:
    """A round up to the upload, with every member but one played as cheaply as the protocol allows."""

    def __init__(self, terms: Terms, *, members: int) -> None:
        self.terms = terms
        self.names = [ClientId(f"c{k:03}") for k in range(members)]
        self.members = {n: Member(terms, name=n, sign=signer(n), verify=verify) for n in self.names}
        self.states: dict[ClientId, MemberState] = {n: m.begin() for n, m in self.members.items()}
        self.relay, self.relayed = Relay(terms), RelayState()

    @property
    def roster(self) -> Roster:
        assert self.relayed.roster is not None
        return self.relayed.roster

    def prepare(self) -> None:
        """Advertise and deal."""
        for name in self.names:
            self.relayed = self.relay.advertise(self.relayed, self.states[name].advertisement)
        self.relayed = self.relay.close_advertisements(self.relayed, among=self.names)
        for name, member in self.members.items():
            self.states[name] = member.meet(self.states[name], self.roster)
            self.relayed = self.relay.deal(self.relayed, member.deal(self.states[name]))
        self.relayed = self.relay.close_deals(self.relayed)
        for name, member in self.members.items():
            self.states[name] = member.receive(self.states[name], self.relay.delivery(self.relayed, name))

    def handshake(self) -> None:
        """What one member computes before it uploads: keys, roster, parcels."""
        name = self.names[0]
        member = Member(self.terms, name=name, sign=signer(name), verify=verify)
        member.begin()
        state = member.meet(replace(self.states[name], roster=None), self.roster)
        member.deal(state)
        member.masks(state)

    def unmasked(self, words: Words) -> float:
        """Return the seconds that the owner takes to unmask a sum, one member in five having dropped out."""
        staying = self.names[: len(self.names) - len(self.names) // 5]
        aggregator, state = Aggregator(self.terms, verify=verify), AggregatorState()
        state = aggregator.receive(aggregator.meet(state, self.roster), self.relay.delivery(self.relayed, ClientId("owner")))
        # All send the same bytes: what is in them matters for neither time nor protocol, and memory stays small.
        sent, view = words.tobytes(), self.relay.delivery(self.relayed, staying[0]).view
        uploads = [Upload(member=n, view=view, words=sent) for n in staying]
        for upload in uploads:
            state = aggregator.take(state, upload)
        state = aggregator.close(state)
        assert state.survivors is not None
        relayed = self.relay.announce(self.relayed, state.survivors)
        for name in staying:
            self.states[name], _ = self.members[name].mask(self.states[name], np.zeros(self.terms.words, dtype="<u8"))
            self.states[name] = self.members[name].stand(self.states[name], state.survivors)
            vow = self.states[name].vow
            assert vow is not None
            relayed = self.relay.vow(relayed, vow)
        relayed = self.relay.close_vows(relayed)
        assert relayed.closed is not None
        for name in staying:
            confirmed = self.members[name].confirm(self.states[name], relayed.closed)
            state = aggregator.open(state, self.members[name].opening(confirmed))
        return best(1, lambda: aggregator.total(state, uploads))[0]


def weak(words: Words, *, streams: int) -> Words:
    """Mask by a generator that anybody can predict."""
    masked = words.copy()
    for stream in range(streams):
        rng = np.random.Generator(np.random.SFC64(stream))
        for start in range(0, masked.size, 1 << 14):
            part = masked[start : start + (1 << 14)]
            part += rng.integers(0, 2**64, part.size, dtype=np.uint64)
    return masked


def measure(
    members: int, *, degree: int, bits: int, shipped: AdapterState, returned: AdapterState, repeats: int, owner: bool
) -> Row:
    """Return one line."""
    schema = [TensorSpec(name=n, shape=t.shape, dtype="F32", block=0) for n, t in shipped.tensors.items()]
    digits = digits_for(bits, weight_max=members)
    grid: Grid = grid_of(schema, clips=dict.fromkeys(shipped.tensors, CLIP), digits=digits, weight_max=members)
    terms = Terms(
        run=RunId("run"),
        round_id=1,
        grid=grid.digest,
        words=grid.words,
        members_min=2,
        members_max=1024,
        share=0.6,
        degree=degree,
    )
    round_ = Round(terms, members=members)
    round_.prepare()
    round_s, encoded = best(repeats, lambda: grid.encode(returned, shipped=shipped))
    member, state = round_.members[round_.names[0]], round_.states[round_.names[0]]
    mask_s, (_, upload) = best(repeats, lambda: member.mask(state, encoded.words))
    streams = len(member.masks(state))
    assert len(upload.to_bytes()) == upload_bytes(terms)
    return Row(
        members=members,
        neighbours=streams - 1,
        bits=64 / digits,
        round_s=round_s,
        mask_s=mask_s,
        peer_s=best(1, lambda: weak(encoded.words, streams=streams))[0],
        handshake_s=best(repeats, round_.handshake)[0],
        owner_s=round_.unmasked(encoded.words) if owner else float("nan"),
        upload_bytes=upload_bytes(terms),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=28.3, help="numbers in the adapter")
    parser.add_argument("--bits", type=int, default=12, help="bits that each sender's numbers have, at least")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--owner", action="store_true", help="time the owner's part as well")
    options = parser.parse_args()
    shipped, returned = adapters(options.millions)
    print(
        f"{returned.count / 1e6:.1f} M numbers, {returned.bytes_raw / 1e6:.1f} MB raw (float32), {options.bits} bits per sender"
    )
    print(
        f"{'members':>7} {'streams':>7} {'bit/num':>7} {'payload':>8} {'mask':>9} {'round':>9} {'both':>9} {'both, raw':>9}"
        f" {'peer':>9} {'expand':>7} {'keys ms':>8} {'owner s':>8}"
    )
    for members, degree in ((3, 0), (10, 0), (20, 0), (50, 0), (50, 20), (100, 24)):
        row = measure(
            members,
            degree=degree,
            bits=options.bits,
            shipped=shipped,
            returned=returned,
            repeats=options.repeats,
            owner=options.owner,
        )
        payload, raw = returned.count * row.bits / 8e6, returned.bytes_raw / 1e6
        both_s = row.round_s + row.mask_s
        print(
            f"{row.members:>7} {row.neighbours + 1:>7} {row.bits:>7.2f} {payload:>5.1f} MB {payload / row.mask_s:>9.0f}"
            f" {payload / row.round_s:>9.0f} {payload / both_s:>9.0f} {raw / both_s:>9.0f} {payload / row.peer_s:>9.0f}"
            f" {row.upload_bytes / 1e6 / payload:>7.5f} {1e3 * row.handshake_s:>8.1f} {row.owner_s:>8.2f}"
        )


if __name__ == "__main__":
    main()
