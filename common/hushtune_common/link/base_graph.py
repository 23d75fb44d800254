"""Which parity check touches which column by how much: base graph 1 of the 5G NR LDPC code, lifted to 384.

Columns 0..21 carry information, 22..25 the dual-diagonal core, every later column belongs to one row only. An entry
``column:shift`` of row r says that this check adds ``P**shift x[column]``, where ``(P**s x)[i] = x[(i + s) mod 384]``.

The entries are those of 3GPP TS 38.212, table 5.3.2-2, for set index 1, the set that lifting size 384 = 3 * 2**7 belongs to.
They were taken from the transcription of that table in Sionna 2.2.0 (``5G_bg1.csv``; Copyright (c) 2021-2026 NVIDIA CORPORATION
& AFFILIATES, licensed under the Apache License, Version 2.0), reduced to this one set and written as below.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

LIFTING: Final = 384
"""Bits per column, and checks per row."""
INFO_COLUMNS: Final = 22
PUNCTURED_COLUMNS: Final = 2
"""The first columns are never sent."""
CORE_ROWS: Final = 4
"""Rows of the dual-diagonal core, without which there is no code."""

_ROWS: Final = (
    "0:307 1:19 2:50 3:369 5:181 6:216 9:317 10:288 11:109 12:17 13:357 15:215 16:106 18:242 19:180 20:330 21:346 22:1 23:0",
    "0:76 2:76 3:73 4:288 5:144 7:331 8:331 9:178 11:295 12:342 14:217 15:99 16:354 17:114 19:331 21:112 22:0 23:0 24:0",
    "0:205 1:250 2:328 4:332 5:256 6:161 7:267 8:160 9:63 10:129 13:200 14:88 15:53 17:131 18:240 19:205 20:13 24:0 25:0",
    "0:276 1:87 3:0 4:275 6:199 7:153 8:56 10:132 11:305 12:231 13:341 14:212 16:304 17:300 18:271 20:39 21:357 22:1 25:0",
    "0:332 1:181 26:0",
    "0:195 1:14 3:115 12:166 16:241 21:51 22:157 27:0",
    "0:278 6:257 10:1 11:351 13:92 17:253 18:18 20:225 28:0",
    "0:9 1:62 4:316 7:333 8:290 14:114 29:0",
    "0:307 1:179 3:165 12:18 16:39 19:224 21:368 22:67 24:170 30:0",
    "0:366 1:232 10:321 11:133 13:57 17:303 18:63 20:82 31:0",
    "1:101 2:339 4:274 7:111 8:383 14:354 32:0",
    "0:48 1:102 12:8 16:47 21:188 22:334 23:115 33:0",
    "0:77 1:186 10:174 11:232 13:50 18:74 34:0",
    "0:313 3:177 7:266 20:115 23:370 35:0",
    "0:142 12:248 15:137 16:89 17:347 21:12 36:0",
    "0:241 1:2 10:210 13:318 18:55 25:269 37:0",
    "1:13 3:338 11:57 20:289 22:57 38:0",
    "0:260 14:303 16:81 17:358 21:375 39:0",
    "1:130 12:163 13:280 18:132 19:4 40:0",
    "0:145 1:213 7:344 8:242 10:197 41:0",
    "0:187 3:206 9:264 11:341 22:59 42:0",
    "1:205 5:102 16:328 20:213 21:97 43:0",
    "0:30 12:11 13:233 17:22 44:0",
    "1:24 2:89 10:61 18:27 45:0",
    "0:298 3:158 4:235 11:339 22:234 46:0",
    "1:72 6:17 7:383 14:312 47:0",
    "0:71 2:81 4:76 15:136 48:0",
    "1:194 6:194 8:101 49:0",
    "0:222 4:19 19:244 21:274 50:0",
    "1:252 14:5 18:147 25:78 51:0",
    "0:159 10:229 13:260 24:90 52:0",
    "1:100 7:215 22:258 25:256 53:0",
    "0:102 12:201 14:175 24:287 54:0",
    "1:323 2:8 11:361 21:105 55:0",
    "0:230 7:148 15:202 17:312 56:0",
    "1:320 6:335 12:2 22:266 57:0",
    "0:210 14:313 15:297 18:21 58:0",
    "1:269 13:82 23:115 59:0",
    "0:185 9:177 10:289 12:214 60:0",
    "1:258 3:93 7:346 19:297 61:0",
    "0:175 8:37 17:312 62:0",
    "1:52 3:314 9:139 18:288 63:0",
    "0:113 4:14 24:218 64:0",
    "1:113 16:132 18:114 25:168 65:0",
    "0:80 7:78 9:163 22:274 66:0",
    "1:135 6:149 10:15 67:0",
)
ROWS: Final = len(_ROWS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checks:
    """The first rows of the base graph, entries row after row: those of row r are ``start[r]:start[r + 1]``, by rising column."""

    start: NDArray[np.int64]
    """(rows + 1)"""
    column: NDArray[np.int64]
    """(entries)"""
    shift: NDArray[np.int64]
    """(entries), 0 <= shift < 384"""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.start.size - 1

    @property
    def columns(self) -> int:
        """Number of columns these rows touch, the punctured ones included."""
        return INFO_COLUMNS + self.rows


def rows_for(code_bits: int) -> int:
    """Return how many rows a code with so many transmitted bits needs: those whose columns are sent, the core at least."""
    columns = PUNCTURED_COLUMNS + -(-code_bits // LIFTING)
    return max(CORE_ROWS, columns - INFO_COLUMNS)


@cache
def checks(rows: int) -> Checks:
    """Return the first ``rows`` rows.

    Raises:
        ValueError: not 4 to 46 rows.
    """
    if not CORE_ROWS <= rows <= ROWS:
        raise ValueError(f"the base graph has {CORE_ROWS} to {ROWS} rows, not {rows}")
    entries = [[tuple(map(int, entry.split(":"))) for entry in row.split()] for row in _ROWS[:rows]]
    flat = np.array([entry for row in entries for entry in row], dtype=np.int64)
    start = np.cumsum([0, *map(len, entries)], dtype=np.int64)
    return Checks(start=start, column=flat[:, 0].copy(), shift=flat[:, 1].copy())
