"""Who is who: a tiny certificate authority, one kit of files per process, and the list of what was withdrawn.

An identity is a URI in the certificate, ``hushtune://ROLE/NAME``.
"""

from hushtune_server.pki.authority import LIST, LIST_DAYS, REASONS, SKEW, init
from hushtune_server.pki.certificates import AUTHORITY_DAYS
from hushtune_server.pki.issuing import LEAF_DAYS, LOOPBACK, issue, renew, show
from hushtune_server.pki.revoking import Published, Row, publish, revoke, table

__all__ = [
    "AUTHORITY_DAYS",
    "LEAF_DAYS",
    "LIST",
    "LIST_DAYS",
    "LOOPBACK",
    "REASONS",
    "SKEW",
    "Published",
    "Row",
    "init",
    "issue",
    "publish",
    "renew",
    "revoke",
    "show",
    "table",
]
