"""What can coordinator, owner and colluding members read, whatever they do? And does whoever looks find a planted leak?"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

from hushtune_common.errors import Equivocation, MalformedUpdate, QuorumMissed
from hushtune_common.messages import ClientId, Digest
from hushtune_common.secagg.admission import colluders_max
from hushtune_common.secagg.grid import Words
from hushtune_common.secagg.masks import Mask
from hushtune_common.secagg.member import Member, MemberState
from hushtune_common.secagg.messages import Opening, Survivors, Terms, Vow, Vows, by_name
from tests.secagg import OWNER, Rehearsal, Witness, named, reached, signer, terms_for, verify, witness_of

C1, C2, C3, C4, C5 = named(5)


# --- whatever coordinator and owner do --------------------------------------------------------------------------------


class Plot:
    """Coordinator, owner and colluders play the honest members off against each other, as far as those let them.

    Everybody has dealt and sent. The plotters then tell each honest member a set of survivors of their choice, vow for all sets,
    and open whatever any member can be brought to open.
    """

    def __init__(
        self, terms: Terms, *, count: int, colluders: int, rng: np.random.Generator, make: type[Member] = Member
    ) -> None:
        self.round = reached("upload", Rehearsal(count, terms=terms, make=make))
        chosen = rng.permutation(count)
        self.colluding = frozenset(self.round.names[k] for k in chosen[:colluders])
        self.honest = [self.round.names[k] for k in chosen[colluders:]]
        for name in self.round.names:
            self.round.uploads[name] = self.round.mask(name)
        self.rng = rng

    def told(self) -> dict[ClientId, Survivors]:
        """Draw one or two sets of survivors; each honest member is told one of those that it is in."""
        names, view = self.round.names, self.round.delivery(OWNER).view
        least = self.round.terms.threshold(len(names))
        victim = self.honest[0]
        sets: list[frozenset[ClientId]] = []
        for with_victim in (True, False):
            others = [n for n in self.rng.permutation(list(names)) if n != victim]
            size = int(self.rng.integers(least, len(names) + (1 if with_victim else 0)))
            chosen = ([victim] if with_victim else []) + sorted(others, key=lambda n: n not in self.colluding)
            sets.append(frozenset(ClientId(str(n)) for n in chosen[:size]))
        told: dict[ClientId, Survivors] = {}
        for name in self.honest:
            own = [s for s in sets if name in s]
            if own:
                told[name] = Survivors(view=view, members=tuple(sorted(own[int(self.rng.integers(len(own)))])))
        return told

    def run(self) -> Witness:
        told = self.told()
        witness = witness_of(self.round)
        witness.colluders = {n: (self.round.members[n], self.round.states[n]) for n in self.colluding}
        for name in self.colluding:
            self._tell_all(name, witness)
        # First what each was told, then to everybody what others were told: whoever stands to two sets opens twice.
        for survivors in sorted(set(told.values()), key=lambda s: s.members):
            self._bring_to_open(survivors, [n for n in told if told[n] == survivors], witness)
        for survivors in sorted(set(told.values()), key=lambda s: s.members):
            self._bring_to_open(survivors, [n for n in told if told[n] != survivors and n in survivors.members], witness)
        return witness

    def _bring_to_open(self, survivors: Survivors, asked: Sequence[ClientId], witness: Witness) -> None:
        vows = [Vow(member=n, proof=signer(n)(survivors.statement)) for n in self.colluding if n in survivors.members]
        standing: list[ClientId] = []
        for name in asked:
            with suppress(Equivocation, QuorumMissed):
                state = self.round.members[name].stand(self.round.states[name], survivors)
                assert state.vow is not None
                self.round.states[name] = state
                vows.append(state.vow)
                standing.append(name)
        bundle = Vows(survivors=survivors, vows=tuple(sorted(vows, key=lambda v: v.member)))
        for name in standing:
            with suppress(QuorumMissed):
                state = self.round.members[name].confirm(self.round.states[name], bundle)
                witness.saw_opening(self.round.members[name].opening(state))

    def _tell_all(self, name: ClientId, witness: Witness) -> None:
        """A colluder gives away every share that it holds, of both kinds: what its openings for two sets of survivors have."""
        member, state = self.round.members[name], self.round.states[name]
        view = self.round.delivery(OWNER).view
        for members in (self.round.names, (name,)):
            standing = replace(state, survivors=Survivors(view=view, members=members), confirmed=True)
            witness.saw_opening(member.opening(standing))


def plotted(terms: Terms, *, count: int, colluders: int, seed: int, make: type[Member] = Member) -> list[frozenset[ClientId]]:
    """Return what a drawn plot reads beyond one sum of at least two honest members' payloads."""
    plot = Plot(terms, count=count, colluders=colluders, rng=np.random.default_rng([seed, count, colluders]), make=make)
    groups = plot.run().readable()
    return groups if len(groups) > 1 or any(len(g) < 2 for g in groups) else []


PARTIES = [
    (3, 0, 0.5, 0),
    (4, 1, 0.5, 0),
    (5, 1, 0.6, 0),
    (6, 1, 0.5, 0),
    (7, 2, 2 / 3, 0),
    (10, 3, 2 / 3, 0),
    (11, 1, 0.6, 8),
    (11, 2, 0.75, 6),
    (12, 0, 0.5, 4),
]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "colluders", "share", "degree"), PARTIES)
def test_as_many_colluders_as_are_tolerated_read_sums_only(count: int, colluders: int, share: float, degree: int):
    terms = terms_for(share=share, degree=degree, colluders=colluders)
    assert colluders_max(terms, members=count) >= colluders
    for seed in range(12):
        assert plotted(terms, count=count, colluders=colluders, seed=seed) == []


def test_more_colluders_than_are_tolerated_are_found_to_succeed():
    # The positive control: the same plots, one colluder too many.
    terms = terms_for()
    assert colluders_max(terms, members=5) == 0
    assert any(plotted(terms, count=5, colluders=2, seed=seed) for seed in range(40))


class Fickle(Member):
    """Stands to whatever it is told, again and again."""

    def stand(self, state: MemberState, survivors: Survivors) -> MemberState:
        return super().stand(replace(state, survivors=None, confirmed=False), survivors)


@pytest.mark.parametrize(("make", "succeeds"), [(Member, False), (Fickle, True)])
def test_members_that_stand_to_two_sets_of_survivors_are_found_out(make: type[Member], succeeds: bool):
    found = [plotted(terms_for(), count=4, colluders=1, seed=seed, make=make) for seed in range(12)]
    assert any(found) == succeeds


# --- what the owner sees is noise -------------------------------------------------------------------------------------


def seen_of(payload: Words, *, colluder: bool) -> Words:
    """Return what is left of a payload when everything that the owner may learn is taken off: an honest pair's mask alone."""
    rehearsal = Rehearsal(3, terms=terms_for(words=payload.size))
    rehearsal.plain[C1] = payload
    rehearsal.whole()
    witness = witness_of(rehearsal)
    if colluder:
        witness.colluders = {C3: (rehearsal.members[C3], rehearsal.states[C3])}
    return witness.read([C1])


@pytest.mark.parametrize("colluder", [False, True], ids=["alone", "with a member"])
@pytest.mark.parametrize("value", [0, 2**64 - 1, 12345])
def test_a_payload_without_all_that_can_be_taken_off_it_is_uniform(value: int, colluder: bool):
    words = seen_of(np.full(8192, value, dtype=np.uint64), colluder=colluder)
    counts = np.bincount(words.view(np.uint8), minlength=256)
    # Chi-square with 255 degrees of freedom is nearly normal; six deviations happen once in 10^9 tests.
    excess = float(np.square(counts - words.size / 32).sum() / (words.size / 32)) - 255
    assert abs(excess) < 6 * sqrt(2 * 255)
    # Not a constant added to something known, either: neighbours have nothing in common.
    bits = np.unpackbits(words.view(np.uint8)).astype(np.float64) - 0.5
    assert abs(float((bits[:-1] * bits[1:]).sum())) < 6 * sqrt(bits.size) / 4


def test_each_bit_of_a_masked_payload_is_a_fair_coin_over_many_rounds():
    rounds = 200
    heads = np.zeros(64 * 2)
    for _ in range(rounds):
        heads += np.unpackbits(seen_of(np.array([5, 2**63], dtype=np.uint64), colluder=True).view(np.uint8))
    assert np.abs(heads - rounds / 2).max() < 6 * sqrt(rounds) / 2


# --- planted leaks are found ------------------------------------------------------------------------------------------


class WithoutOwnMask(Member):
    """Forgets the mask of its own."""

    def masks(self, state: MemberState) -> list[Mask]:
        return super().masks(state)[1:]


class OpensBoth(Member):
    """Opens keys of survivors, too."""

    def opening(self, state: MemberState) -> Opening:
        own = super().opening(state)
        absent = super().opening(replace(state, survivors=Survivors(view=_view(state), members=(self.name,))))
        object.__setattr__(own, "keys", by_name({**dict(own.keys), **dict(absent.keys)}))
        return own


class SameMaskEachRound(Member):
    """Derives its masks from its secrets alone, whatever the round."""

    def masks(self, state: MemberState) -> list[Mask]:
        return [
            Mask(key=bytes(32), negative=False),
            *(Mask(key=bytes([1]) * 32, negative=m.negative) for m in super().masks(state)[1:]),
        ]


def _view(state: MemberState) -> Digest:
    assert state.delivery is not None
    return state.delivery.view


def after_a_late_payload(make: type[Member]) -> tuple[Witness, Mapping[ClientId, Words]]:
    rehearsal = reached("upload", Rehearsal(5, make=make))
    rehearsal.upload(late=(C2,))
    rehearsal.vow()
    witness = witness_of(rehearsal)
    for name in rehearsal.here(()):
        witness.saw_opening(rehearsal.opening(name))
    return witness, rehearsal.plain


def test_a_member_without_a_mask_of_its_own_is_found_out_when_it_is_late():
    witness, plain = after_a_late_payload(Member)
    assert witness.found_out(plain) == set()
    witness, plain = after_a_late_payload(WithoutOwnMask)
    assert witness.found_out(plain) == {C2}


def test_members_that_open_both_secrets_are_found_out():
    assert after_a_late_payload(Member)[0].both_open() == set()
    witness, plain = after_a_late_payload(OpensBoth)
    assert witness.both_open() == {C1, C3, C4, C5}
    assert witness.found_out(plain) == {C1, C3, C4, C5}


def test_the_aggregator_refuses_what_opens_both():
    rehearsal = reached("open", Rehearsal(5, make=OpensBoth))
    opening = rehearsal.opening(C1)
    assert set(dict(opening.keys)) & set(dict(opening.seeds))
    with pytest.raises(MalformedUpdate, match="keys that it has nothing to do with"):
        rehearsal.aggregator.open(rehearsal.aggregate, opening)


@pytest.mark.parametrize(("make", "leaks"), [(Member, False), (SameMaskEachRound, True)])
def test_masks_that_are_used_in_two_rounds_are_found_out(make: type[Member], leaks: bool):
    one, two = (reached("upload", Rehearsal(3, terms=terms_for(words=50, round_id=k), make=make)) for k in (1, 2))
    seen = [np.frombuffer(r.mask(C1).words, dtype="<u8") for r in (one, two)]
    difference = one.plain[C1] - two.plain[C1]
    assert ((seen[0] - seen[1]) == difference).all() == leaks


def test_the_stand_in_identities_tell_names_apart():
    assert verify(C1, b"word", signer(C1)(b"word"))
    assert not verify(C2, b"word", signer(C1)(b"word"))
