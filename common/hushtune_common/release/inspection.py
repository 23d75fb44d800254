"""What is in this bundle? The same facts as pairs of words for people, and as JSON for programs."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from hushtune_common.crypto.signing import checkable
from hushtune_common.release.container import Container
from hushtune_common.release.statement import Private, ReleaseStatement, ReturnStatement, Statement
from hushtune_common.release.trust import Verified, signatures_hold

SEALED: Final = (
    "crypto_only: sealed to the owner's key (X25519 and ML-KEM-768 together); no wiretap code, nothing went over the air"
)
"""What protects a return."""
OPEN: Final = "none: whoever holds the file holds the emulator; the signature says whose it is"
"""What protects a release."""


def facts(container: Container) -> dict[str, Any]:
    """Return everything that a bundle says, ready for JSON; nothing of it is checked but its form and its own signatures."""
    return {
        "file": str(container.path),
        "statement": msgspec.to_builtins(container.statement),
        "statement_digest": container.digest.hex,
        "key_fingerprint": container.statement.signer.key.fingerprint.hex,
        "signatures_hold": _held(container),
        "checkable_here": list(checkable()),
        "trusted": None,
    }


def pairs(container: Container) -> dict[str, str]:
    """Return the same for people."""
    statement = container.statement
    return {
        "kind": "release of an emulator" if isinstance(statement, ReleaseStatement) else "return of an adapter",
        **_signed(container),
        "created": statement.created,
        "run, round": f"{statement.run}, {statement.round_id}",
        **{name: getattr(statement.lineage, name) for name in ("base", "tokenizer", "plan", "schema", "emulator")},
        "payload": f"{statement.payload.size:,} bytes, {statement.payload.digest} (not read here)",
        "codec": statement.codec,
        **_particular(statement),
        "licence": statement.licence or "not stated",
        "model": statement.provenance.model,
        "data sets": ", ".join(statement.provenance.datasets) or "not stated",
        "software": ", ".join(f"{name} {version}" for name, version in sorted(statement.provenance.software.items())),
    }


def believed(verified: Verified) -> dict[str, str]:
    """Return what a check against an anchor established, for people."""
    name = "the authority's certificate (P-256, which a quantum computer breaks)" if verified.by == "authority" else "pinned keys"
    return {
        "signer": verified.signer.uri,
        "known by": name,
        "algorithms": ", ".join(verified.algorithms),
        "post-quantum": "yes" if verified.post_quantum else "no",
        "payload": f"{verified.statement.payload.size:,} bytes, as signed",
    }


def established(verified: Verified) -> dict[str, Any]:
    """Return the same, ready for JSON."""
    return {
        "signer": verified.signer.uri,
        "by": verified.by,
        "algorithms": list(verified.algorithms),
        "post_quantum": verified.post_quantum,
        "payload_holds": True,
    }


def _held(container: Container) -> bool | None:
    """Return whether the file's own signatures hold; nothing where this machine cannot check one of them."""
    return signatures_hold(container) if {*container.statement.signer.algorithms} <= {*checkable()} else None


def _signed(container: Container) -> Mapping[str, str]:
    signer = container.statement.signer
    said = {True: "hold for the keys in the file", False: "DO NOT HOLD", None: "cannot all be checked here"}
    return {
        "says it is of": signer.identity,
        "algorithms": ", ".join(signer.algorithms),
        "key": signer.key.fingerprint.hex,
        "signatures": f"{said[_held(container)]}; whose keys they are, only 'bundle verify' says",
        "checkable here": ", ".join(checkable()),
    }


def _particular(statement: Statement) -> Mapping[str, str]:
    match statement:
        case ReleaseStatement(terms=terms):
            windows = f"{terms.train_windows} windows of {terms.window_tokens} tokens"
            return {
                "for": ", ".join(terms.recipients),
                "training": f"{terms.training.epochs} epochs, at most {windows}",
                "protection": OPEN,
            }
        case ReturnStatement(training=did):
            return {
                "client": statement.client,
                "answers release": statement.release,
                "training": "done elsewhere; nothing is said of it"
                if did is None
                else f"{did.epochs} epochs, {did.steps} steps, {did.windows} windows, {did.tokens:,} tokens",
                "privacy": "no bound" if did is None or did.privacy is None else _bound(did.privacy),
                "protection": SEALED,
            }


def _bound(private: Private) -> str:
    return f"epsilon {private.epsilon:.3g}, delta {private.delta:.1e}, per {private.unit} of tokens"
