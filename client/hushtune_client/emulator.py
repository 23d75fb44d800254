"""Is this emulator the one that the owner's manifest promises? Checked before the download, and again after it."""

from dataclasses import dataclass
from pathlib import Path

from hushtune_client.telemetry import PathSize
from hushtune_common.config import Scenario
from hushtune_common.errors import DigestMismatch, LimitExceeded, MalformedUpdate, ScenarioMismatch
from hushtune_common.messages import Digest, EmulatorManifest
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.secagg.layout import payload_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """A downloaded and checked emulator."""

    manifest: EmulatorManifest
    path: Path
    bundle: Bundle

    @property
    def path_size(self) -> PathSize:
        """How many parameters a token passes, and how many of them are trained."""
        return PathSize(matmul=self.bundle.parameters_per_token, adapter=sum(spec.count for spec in self.manifest.adapter))


def require_acceptable(manifest: EmulatorManifest, *, scenario: Scenario, round_id: int) -> None:
    """Refuse a manifest before anything is downloaded.

    Raises `MalformedUpdate` for the emulator of another round, `LimitExceeded` for a bundle larger than
    ``limits.emulator_bytes_max``, `ScenarioMismatch` for another codec.
    """
    if manifest.round_id != round_id:
        raise MalformedUpdate(f"asked for the emulator of round {round_id}, the owner sent that of round {manifest.round_id}")
    size_max = scenario.limits.emulator_bytes_max
    if manifest.size_bytes > size_max:
        raise LimitExceeded(
            f"the emulator has {manifest.size_bytes} bytes, limits.emulator_bytes_max is {size_max}; nothing was downloaded"
        )
    ours = payload_id(scenario, manifest.adapter)
    if manifest.codec != ours:
        raise ScenarioMismatch(f"the owner decodes {manifest.codec}, this scenario encodes {ours}; use the same scenario file")


def open_emulator(path: Path, *, manifest: EmulatorManifest) -> Emulator:
    """Read the bundle at ``path`` and hold it against its manifest.

    Raises `DigestMismatch` naming whichever of tokenizer, base model and plan differs, `MalformedUpdate` when the bundle is not
    readable or announces other adapter tensors.
    """
    bundle = read_bundle(path)
    _require_equal("tokenizer", promised=manifest.tokenizer, found=bundle.tokens.digest)
    _require_equal("base model", promised=manifest.base, found=bundle.base_digest)
    _require_equal("plan", promised=manifest.plan, found=bundle.plan.digest)
    if bundle.schema != manifest.adapter:
        raise MalformedUpdate("the manifest announces other adapter tensors than the emulator holds")
    return Emulator(manifest=manifest, path=path, bundle=bundle)


def _require_equal(what: str, *, promised: Digest, found: Digest) -> None:
    if promised != found:
        raise DigestMismatch(
            f"wrong {what}: the manifest promises {promised.short}, the emulator holds {found.short}; "
            "the owner must publish manifest and emulator again"
        )
