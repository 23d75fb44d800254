"""Which blocks of one client's update are still missing, and the sealed bytes once none is."""

from hushtune_common.errors import LimitExceeded, MalformedUpdate, NotYours
from hushtune_common.link.channel import Assembly, Reception
from hushtune_common.messages import ClientId, Listener, Receipt, Transmission


class UpdateReception:
    """Collects the receptions of one client's update in one round, over all its attempts.

    Laws: taking the same attempt twice gives the same receipt; receptions may come in any order; memory stays below
    ``update_bytes_max`` whatever arrives.
    """

    def __init__(self, *, client: ClientId, round_id: int, update_bytes_max: int, attempts_max: int) -> None:
        """Expect an update of ``client`` in ``round_id`` within these bounds."""
        self._client, self._round_id = client, round_id
        self._update_bytes_max, self._attempts_max = update_bytes_max, attempts_max
        self._assembly: Assembly | None = None
        self._receipts: dict[int, Receipt] = {}

    def take(self, blob: bytes, *, transmission: Transmission) -> Receipt:
        """Add what was heard of one transmission and return which blocks of the whole update are missing.

        Raises ``NotYours``, ``LimitExceeded`` or ``MalformedUpdate`` before anything is kept.
        """
        key = transmission.key
        if (key.client, key.round_id) != (self._client, self._round_id):
            raise NotYours(f"a transmission of {key.text} does not belong to {self._client} in round {self._round_id}")
        if key.attempt in self._receipts:
            return self._receipts[key.attempt]
        if key.attempt > self._attempts_max:
            raise LimitExceeded(f"attempt {key.attempt} of at most {self._attempts_max}")
        reception = Reception.from_bytes(blob)
        self._check(reception, transmission)
        if self._assembly is None:
            self._assembly = Assembly(reception.update_bytes, reception.block_bytes)
        self._assembly.add(reception)
        receipt = Receipt(key=key, missing=self._assembly.missing)
        self._receipts[key.attempt] = receipt
        return receipt

    @property
    def attempts(self) -> int:
        """How many attempts have arrived."""
        return len(self._receipts)

    @property
    def whole(self) -> bool:
        """Whether no block is missing."""
        return self._assembly is not None and bool(self._assembly.known.all())

    def data(self) -> bytes:
        """Return the sealed update; ``ValueError`` while it is not whole."""
        if self._assembly is None:
            raise ValueError("nothing has been received")
        return self._assembly.data()

    def _check(self, reception: Reception, transmission: Transmission) -> None:
        if reception.listener is not Listener.MAIN:
            raise MalformedUpdate("a reception of the other listener")
        if reception.update_bytes > self._update_bytes_max:
            raise LimitExceeded(f"an update of {reception.update_bytes} bytes, at most {self._update_bytes_max} are allowed")
        if reception.block_bytes != transmission.design.payload_bytes:
            raise MalformedUpdate(
                f"blocks of {reception.block_bytes} bytes, but the design carries {transmission.design.payload_bytes}"
            )
