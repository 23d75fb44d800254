"""How information words become codewords and soft bits become words again: the 5G NR LDPC code, base graph 1, lifting 384.

3GPP TS 38.212, section 5.3.2 (code) and 5.4.2.1 (what is sent): 8448 information bits without filler, redundancy version 0, so
the codeword without its first 768 bits, cut after ``code_bits``. Packed arrays hold bit i as bit ``i % 8`` of byte ``i // 8``.

The decoder is layered normalised min-sum on signed bytes. One layer is one row of the base graph: all its 384 checks at once,
row after row in the graph's order. With ``L`` the posteriors (at first what was received, clipped to -41..41, and 0 where nothing
was) and ``R`` the messages, at first 0::

    T[e] = clip(L[e] - R[e])         e runs over the columns of the row, L[e] turned by the entry's shift
    R[e] = +-min(m - (m >> 2), 42)   m least abs(T) of the others, sign the product of the others' signs; 0 counts as positive
    L[e] = clip(T[e] + R[e])         clip to -127..127

where an entry whose ``abs(T)`` equals the least takes the second least as m. After the last row the word is done if the signs of
all posteriors pass all checks and none is 0, else the next iteration starts. A 0 has no sign: were it taken for a bit, words of
zeros would be found a little sooner than others. As it is, exchanging 0 and 1 in what was sent changes nothing but the signs:
whether a word fails, and when it is found, depends on the noise alone, never on the word.

A column is kept turned as the row that touched it last needs it, and twice in a row, so that the next row finds its own turn as
one run of 384 bytes. Where each entry reads is then the same in every iteration: ``_Plan`` has it.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link.base_graph import CORE_ROWS, INFO_COLUMNS, LIFTING, PUNCTURED_COLUMNS, ROWS, checks, rows_for
from hushtune_common.link.kernels import kernel, spread
from hushtune_common.link.lanes import (
    WIDTH,
    Index,
    Lanes,
    add,
    any_negative,
    any_zero,
    exclusive_or,
    greatest,
    largest,
    least,
    load,
    magnitude,
    store,
    store_signs,
    subtract,
    third,
    three_quarters,
    where_equal,
    with_sign,
    within_third,
    zero,
)

Bytes = NDArray[np.uint8]
SoftBits = NDArray[np.int8]
Limbs = NDArray[np.uint64]
Places = NDArray[np.int64]
Starts = NDArray[np.uint64]
Counts = NDArray[np.int16]
Scalar = TypeVar("Scalar", bound=np.generic)

INFO_BITS: Final = INFO_COLUMNS * LIFTING
INFO_BYTES: Final = INFO_BITS // 8
CODE_BITS_MAX: Final = (INFO_COLUMNS + ROWS - PUNCTURED_COLUMNS) * LIFTING
"""Code bits of the lowest rate, 1/3."""
ITERATIONS_MAX: Final = 1000

_LIMBS: Final = LIFTING // 64
"""64-bit words per column."""
_LIMBS_TWICE: Final = 2 * _LIMBS
_TWICE: Final = 2 * LIFTING
"""Bytes per column of posteriors: the column and its copy."""
_HELD: Final = INFO_COLUMNS + CORE_ROWS
"""Columns that a later check may read while encoding."""
_EXTRINSICS: Final = 3 * LIFTING
"""Where ``T`` begins in a row's own memory, behind the least, the second least and the signs of its checks."""
_CACHE_LINE: Final = 64


def encode(words: Bytes, *, code_bits: int, threads: int = 1) -> Bytes:
    """Return the codewords (N, code_bits / 8), packed, of information words (N, 1056), packed.

    Raises:
        ValueError: words of another shape or type, or ``code_bits`` not a multiple of 8 from 8448 to 25344.
    """
    _check_code_bits(code_bits)
    _check_array(words, dtype=np.uint8, width=INFO_BYTES, name="words")
    graph = checks(rows_for(code_bits))
    packed = _own(np.ascontiguousarray(words).view(np.uint64))
    out = np.empty((len(words), code_bits // 8), dtype=np.uint8)

    def work(first: int, last: int) -> None:
        _encode_words(packed[first:last], out[first:last], graph.start, graph.column, graph.shift)

    spread(work, count=len(words), threads=threads)
    return out


def decode(soft: SoftBits, *, code_bits: int, iterations: int, threads: int = 1) -> tuple[Bytes, Counts]:
    """Return the information words (N, 1056), packed, and the iterations each took, negative if checks still failed at the end.

    ``soft`` (N, code_bits): log likelihood ratios in any unit, positive where 0 is likelier; -128 counts as -127.

    Raises:
        ValueError: soft bits of another shape or type, ``code_bits`` not a multiple of 8 from 8448 to 25344, or not 1 to 1000
            iterations.
    """
    _check_code_bits(code_bits)
    _check_array(soft, dtype=np.int8, width=code_bits, name="soft bits")
    if not 1 <= iterations <= ITERATIONS_MAX:
        raise ValueError(f"a word is decoded in 1 to {ITERATIONS_MAX} iterations, not {iterations}")
    plan = _plan(rows_for(code_bits))
    held = _own(soft)
    words = np.empty((len(soft), INFO_BYTES), dtype=np.uint8)
    used = np.empty(len(soft), dtype=np.int16)

    def work(first: int, last: int) -> None:
        places = plan.start, plan.read, plan.write, plan.seen, plan.turn
        _decode_words(held[first:last], words[first:last], used[first:last], iterations, places, plan.scratch())

    spread(work, count=len(soft), threads=threads)
    return words, used


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """Where the decoder finds what: indices into the posteriors, one per entry of the base graph unless said otherwise."""

    start: Starts
    """(rows + 1), as in the graph; unsigned, so that what counts from it needs no check for counting from an array's end."""
    read: Places
    """The entry's 384 posteriors, turned for it."""
    write: Places
    """The column's first byte."""
    seen: Places
    """The entry's 384 posteriors between two iterations."""
    turn: Places
    """(columns): by how much each column is turned between two iterations."""

    def scratch(self) -> tuple[SoftBits, SoftBits, SoftBits]:
        """Return the memory for one word: posteriors, messages (384 zeros first) and what one row keeps to itself."""
        widest = int(np.diff(self.start).max())
        sizes = self.turn.size * _TWICE, LIFTING + self.read.size * LIFTING, _EXTRINSICS + widest * LIFTING
        return _aligned(sizes[0]), _aligned(sizes[1]), _aligned(sizes[2])


@cache
def _plan(rows: int) -> _Plan:
    graph = checks(rows)
    turn = np.zeros(graph.columns, dtype=np.int64)
    turn[graph.column] = graph.shift  # the last entry of each column stays
    now, read = turn.copy(), np.empty_like(graph.shift)
    for e, (column, shift) in enumerate(zip(graph.column, graph.shift, strict=True)):
        read[e] = column * _TWICE + (shift - now[column]) % LIFTING
        now[column] = shift
    seen = graph.column * _TWICE + (graph.shift - turn[graph.column]) % LIFTING
    return _Plan(start=graph.start.astype(np.uint64), read=read, write=graph.column * _TWICE, seen=seen, turn=turn)


def _check_code_bits(code_bits: int) -> None:
    if code_bits % 8 or not INFO_BITS <= code_bits <= CODE_BITS_MAX:
        raise ValueError(f"code bits are a multiple of 8 from {INFO_BITS} to {CODE_BITS_MAX}, not {code_bits}")


def _check_array(array: NDArray[np.generic], *, dtype: type[np.generic], width: int, name: str) -> None:
    if array.dtype != dtype or array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f"{name} are {np.dtype(dtype)} of shape (N, {width}), not {array.dtype} of shape {array.shape}")


def _own(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """Return the array as kernels want it, copied only if it is not: one memory layout means one compilation."""
    return np.require(array, requirements=["C", "A", "W"])


def _aligned(size: int) -> SoftBits:
    """Return so many bytes that begin with a cache line; stores that straddle two lines cost twice."""
    room = np.zeros(size + _CACHE_LINE, dtype=np.int8)
    skip = -room.ctypes.data % _CACHE_LINE
    return room[skip : skip + size]


@kernel
def _turned(held: Limbs, column: int, shift: int, limb: int) -> int:
    """Return 64 bits of a column that is held twice in a row, turned by ``shift``."""
    at = np.uint64(_LIMBS_TWICE * column + limb + (shift >> 6))
    low = np.uint64(shift & 63)
    return (held[at] >> low) | ((held[at + np.uint64(1)] << np.uint64(1)) << (np.uint64(63) - low))


@kernel
def _hold(held: Limbs, column: int, limb: int, bits: int) -> None:
    """Write 64 bits of a column, here and in its copy."""
    held[_LIMBS_TWICE * column + limb] = bits
    held[_LIMBS_TWICE * column + limb + _LIMBS] = bits


@kernel
def _encode_words(words: Limbs, out: Bytes, start: Places, column: Places, shift: Places) -> None:
    """Encode word after word: what is sent of the information as it is, then the parity columns, cut to the codeword's length."""
    rows = start.size - 1
    held = np.empty(_LIMBS_TWICE * _HELD, dtype=np.uint64)
    parity = np.empty((rows, _LIMBS), dtype=np.uint64)
    parity_bytes = parity.reshape(rows * _LIMBS).view(np.uint8)
    for word in range(words.shape[0]):
        for c in range(INFO_COLUMNS):
            for k in range(_LIMBS):
                _hold(held, c, k, words[word, c * _LIMBS + k])
        _core(held, parity, start, column, shift)
        for row in range(CORE_ROWS, rows):
            _sum(held, parity[row], column, shift, start[row], start[row + 1] - 1)
        systematic = words[word, PUNCTURED_COLUMNS * _LIMBS :].view(np.uint8)
        sent = min(out.shape[1], systematic.size)
        for i in range(sent):
            out[word, i] = systematic[i]
        for i in range(out.shape[1] - sent):
            out[word, sent + i] = parity_bytes[i]


@kernel
def _sum(held: Limbs, total: Limbs, column: Places, shift: Places, first: int, last: int) -> None:
    """Set ``total`` to the sum of the columns of some entries, each turned as its entry says."""
    for k in range(_LIMBS):
        total[k] = np.uint64(0)
    for e in range(first, last):
        for k in range(_LIMBS):
            total[k] ^= _turned(held, column[e], shift[e], k)


@kernel
def _core(held: Limbs, parity: Limbs, start: Places, column: Places, shift: Places) -> None:
    """Solve the first four checks: their sum leaves the first parity column alone, the others follow one by one."""
    for row in range(CORE_ROWS):
        entries = start[row]
        while column[entries] < INFO_COLUMNS:
            entries += 1
        _sum(held, parity[row], column, shift, start[row], entries)
    for k in range(_LIMBS):
        _hold(held, INFO_COLUMNS, k, parity[0, k] ^ parity[1, k] ^ parity[2, k] ^ parity[3, k])
    for k in range(_LIMBS):
        once = _turned(held, INFO_COLUMNS, 1, k)
        second, fourth = parity[0, k] ^ once, parity[3, k] ^ once
        _hold(held, INFO_COLUMNS + 1, k, second)
        _hold(held, INFO_COLUMNS + 2, k, parity[2, k] ^ fourth)
        _hold(held, INFO_COLUMNS + 3, k, fourth)
    for row in range(CORE_ROWS):
        for k in range(_LIMBS):
            parity[row, k] = held[_LIMBS_TWICE * (INFO_COLUMNS + row) + k]


@kernel
def _decode_words(
    soft: SoftBits,
    words: Bytes,
    used: Counts,
    iterations: int,
    places: tuple[Starts, Places, Places, Places, Places],
    scratch: tuple[SoftBits, SoftBits, SoftBits],
) -> None:
    """Decode word after word; ``places`` and ``scratch`` are those of a plan."""
    start, read, write, seen, turn = places
    posteriors, messages, room = scratch
    for word in range(soft.shape[0]):
        _receive(soft[word], posteriors, room, turn)
        count = 0
        failed = True
        while failed and count < iterations:
            _iterate(posteriors, messages, room, start, read, write, count == 0)
            failed = _is_odd(posteriors, start, seen) or _is_open(posteriors)
            count += 1
        used[word] = -count if failed else count
        _harden(posteriors, turn, words[word])


@kernel
def _receive(soft: SoftBits, posteriors: SoftBits, room: SoftBits, turn: Places) -> None:
    """Set the posteriors to what was received, turned as the first iteration wants it; 0 where nothing was sent."""
    posteriors[: PUNCTURED_COLUMNS * _TWICE] = 0
    for column in range(PUNCTURED_COLUMNS, turn.size):
        sent = (column - PUNCTURED_COLUMNS) * LIFTING
        here = max(0, min(LIFTING, soft.size - sent))
        if here < LIFTING:
            room[:LIFTING] = 0
            room[:here] = soft[sent : sent + here]
            for z in range(0, LIFTING, WIDTH):
                _twice(room, z, within_third(load(room, z)))
        else:
            for z in range(0, LIFTING, WIDTH):
                _twice(room, z, within_third(load(soft, sent + z)))
        for z in range(0, LIFTING, WIDTH):
            _twice(posteriors, column * _TWICE + z, load(room, turn[column] + z))


@kernel
def _twice(column: SoftBits, at: Index, value: Lanes) -> None:
    """Write some of a column's bytes, here and in its copy."""
    store(column, at, value)
    store(column, at + LIFTING, value)


@kernel
def _iterate(
    posteriors: SoftBits, messages: SoftBits, room: SoftBits, start: Starts, read: Places, write: Places, fresh: bool
) -> None:
    """Update every row once, in order; the first time (``fresh``) all messages are the zeros before the first row's."""
    row_messages = LIFTING
    for row in range(start.size - 1):
        first, last = start[row], start[row + 1]
        for z in range(0, LIFTING, WIDTH):
            first_least = second_least = largest()
            sign = zero()
            at = _EXTRINSICS + z
            old = z if fresh else row_messages + z
            for e in range(first, last):
                extrinsic = subtract(load(posteriors, read[e] + z), load(messages, old))
                store(room, at, extrinsic)
                at += LIFTING
                old += 0 if fresh else LIFTING
                size = magnitude(extrinsic)
                second_least = least(second_least, greatest(first_least, size))
                first_least = least(first_least, size)
                sign = exclusive_or(sign, extrinsic)
            store(room, z, first_least)
            store(room, LIFTING + z, second_least)
            store(room, 2 * LIFTING + z, sign)
        for z in range(0, LIFTING, WIDTH):
            first_least = load(room, z)
            if_not = least(three_quarters(first_least), third())
            if_least = least(three_quarters(load(room, LIFTING + z)), third())
            sign = load(room, 2 * LIFTING + z)
            at = _EXTRINSICS + z
            new = row_messages + z
            for e in range(first, last):
                extrinsic = load(room, at)
                size = where_equal(magnitude(extrinsic), first_least, if_least, if_not)
                message = with_sign(size, exclusive_or(sign, extrinsic))
                store(messages, new, message)
                at += LIFTING
                new += LIFTING
                _twice(posteriors, write[e] + z, add(extrinsic, message))
        row_messages += LIFTING * np.int64(last - first)


@kernel
def _is_odd(posteriors: SoftBits, start: Starts, seen: Places) -> bool:
    """Say whether some check fails on the signs of the posteriors; most often the first one looked at does."""
    for row in range(start.size - 1):
        for z in range(0, LIFTING, WIDTH):
            sign = zero()
            for e in range(start[row], start[row + 1]):
                sign = exclusive_or(sign, load(posteriors, seen[e] + z))
            if any_negative(sign):
                return True
    return False


@kernel
def _is_open(posteriors: SoftBits) -> bool:
    """Say whether some posterior is 0."""
    weakest = largest()
    for column in range(0, posteriors.size, _TWICE):
        for z in range(0, LIFTING, WIDTH):
            weakest = least(weakest, magnitude(load(posteriors, column + z)))
    return any_zero(weakest)


@kernel
def _harden(posteriors: SoftBits, turn: Places, word: Bytes) -> None:
    """Write the signs of the information columns as packed bits."""
    for column in range(INFO_COLUMNS):
        home = column * _TWICE + (LIFTING - turn[column]) % LIFTING
        for z in range(0, LIFTING, WIDTH):
            store_signs(word, (column * LIFTING + z) // 8, load(posteriors, home + z))
