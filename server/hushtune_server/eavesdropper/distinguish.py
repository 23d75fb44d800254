"""Can the eavesdropper tell two messages apart? She plays both herself, next to controls that she must tell apart.

Everything but the sender's random bits is public, so she can make as many blocks of two messages of her choice as she likes: with
the hash seed and dither of the transmission, with random bits and noise of her own, and learn from them. How often she then names
the message of a fresh block bounds the leakage from below (accuracy = 1/2 + total variation / 2 for the best attack of all);
chance is what these attacks reach when they find nothing, and that says nothing about better ones.

Controls keep her honest: the same attack on the same code without its hash, where the same number of random bits travels beside
the message, and on a hash with so few random bits that all of them can be tried. When she fails on those, the rest is void.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from scipy.special import bdtrc, logsumexp

from hushtune_common.link.modular import draw_public
from hushtune_common.link.randomness import SeededRandomness
from hushtune_common.messages import SecrecyDesign
from hushtune_common.seeding import SeedTree
from hushtune_server.eavesdropper.bench import Bench, Labels, Subject, ranges
from hushtune_server.eavesdropper.proportion import Proportion
from hushtune_server.words import extra

Method = Literal["linear", "likelihood", "mlp"]

CONTROL_ACCURACY_LEAST: Final = 0.98
"""Below this share of right answers a control has failed."""
FALSE_ALARM: Final = 1e-4
"""Chance at which mere guessing is mistaken for telling apart."""
LIKELIHOOD_BITS_MOST: Final = 12
"""Random bits up to which all their values are tried."""
MLP_WEAK_HASH_BLOCKS: Final = 10_000
"""Having learnt from so many blocks, the network has to break the hash with few random bits as well."""
MLP_BYTES_MOST: Final = 2**29
"""Most soft values (one byte each) that the network learns from."""

_FEW_BITS: Final = 8
_LAYERS: Final = (128, 32)
_EPOCHS: Final = 8
_BATCH: Final = 200
_FLOAT_CHUNK: Final = 2**24
_ROUNDING: Final = 1.0 / 12.0  # variance of a value that was rounded to an integer
_NO_CLAIM: Final = -1e-9  # a design with random bits has to state some bound; this one is void


@dataclass(frozen=True, slots=True, kw_only=True)
class DistinguishResult:
    """How often one attack named the right one of two messages, in ``trials`` blocks that it had not seen."""

    name: str
    method: Method
    control: bool
    snr_db: float
    codewords: int
    random_bits: int
    hashed: bool
    right: int
    trials: int

    @property
    def accuracy(self) -> float:
        """Share of right answers; 0.5 is guessing."""
        return self.right / self.trials

    @property
    def interval_95(self) -> tuple[float, float]:
        """Its 95 % interval (Wilson)."""
        return Proportion(count=self.right, of=self.trials).interval

    @property
    def p_value(self) -> float:
        """Chance that guessing is right at least that often."""
        return float(bdtrc(self.right - 1, self.trials, 0.5)) if self.right else 1.0

    @property
    def told_apart(self) -> bool:
        """For a control whether it worked, otherwise whether guessing can be ruled out (a false alarm in 10 000 is accepted)."""
        return self.accuracy >= CONTROL_ACCURACY_LEAST if self.control else self.p_value < FALSE_ALARM

    @property
    def verdict(self) -> str:
        """The outcome in a word or two."""
        if self.told_apart:
            return "told apart"
        return "CONTROL FAILED" if self.control else "not told apart"

    def to_json(self) -> dict[str, object]:
        """Return plain values for a JSON file."""
        return {
            "name": self.name,
            "method": self.method,
            "control": self.control,
            "snr_db": round(self.snr_db, 4),
            "codewords": self.codewords,
            "random_bits": self.random_bits,
            "hashed": self.hashed,
            "accuracy": self.accuracy,
            "interval_95": list(self.interval_95),
            "trials": self.trials,
            "verdict": self.verdict,
        }


def valid(results: Sequence[DistinguishResult]) -> bool:
    """Return whether the attacks count: there is a control, and none failed."""
    controls = [r.told_apart for r in results if r.control]
    return bool(controls) and all(controls)


def distinguish(
    design: SecrecyDesign,
    *,
    snr_db: float,
    seeds: SeedTree,
    train: int,
    test: int,
    methods: Sequence[Method] = ("linear", "likelihood"),
    public: tuple[bytes, bytes] | None = None,
    threads: int = 1,
) -> tuple[DistinguishResult, ...]:
    """Return what the attacks of ``methods`` achieve on a design in white noise at ``snr_db``, each after its controls.

    ``linear``: linear discriminant with a diagonal covariance. ``likelihood``: the exact likelihood ratio over all random bits,
    for hashes of at most ``LIKELIHOOD_BITS_MOST`` of them, so as a rule for its control only. ``mlp``: a small neural network
    (needs scikit-learn), with a second control from ``MLP_WEAK_HASH_BLOCKS`` on. Each learns from ``train`` blocks, if it learns
    at all, and is judged on ``test`` others; half of them carry either message. ``public`` is the hash seed and dither under
    attack, otherwise they are drawn from ``seeds`` like noise and random bits. Equal arguments give equal results.

    Raises:
        ValueError: an open design, too few blocks, or more than the network can hold.
        MissingPackage: no scikit-learn.
    """
    planned = trials(design, snr_db=snr_db, seeds=seeds, train=train, test=test, methods=methods, public=public, threads=threads)
    return tuple(trial.run() for trial in planned)


def trials(
    design: SecrecyDesign,
    *,
    snr_db: float,
    seeds: SeedTree,
    train: int,
    test: int,
    methods: Sequence[Method] = ("linear", "likelihood"),
    public: tuple[bytes, bytes] | None = None,
    threads: int = 1,
) -> "tuple[Trial, ...]":
    """Return the attacks of ``distinguish`` before they are run, for a caller that wants to do something between them."""
    if not design.secret:
        raise ValueError("an open block hides nothing, so there is nothing to tell apart")
    if train < 4 or test < 1:
        raise ValueError(f"needs at least 4 blocks to learn from and 1 to test, got {train} and {test}")
    soft_bytes = train * design.codewords * design.code_bits
    if "mlp" in methods and soft_bytes > MLP_BYTES_MOST:
        raise ValueError(f"{train} blocks are {soft_bytes} soft values, at most {MLP_BYTES_MOST} fit: fewer blocks or codewords")
    toeplitz, dither = public or draw_public(design, randomness=SeededRandomness(seeds.child("public")))
    subjects = {
        "no hash": Subject(design=design, hashed=False, toeplitz=bytes(len(toeplitz)), dither=dither, snr_db=snr_db),
        f"hash with {_FEW_BITS} random bits": Subject(
            design=_with_few_bits(design), hashed=True, toeplitz=toeplitz, dither=dither, snr_db=snr_db
        ),
        "the design": Subject(design=design, hashed=True, toeplitz=toeplitz, dither=dither, snr_db=snr_db),
    }
    return tuple(
        Trial(
            name=f"{name}, {method}",
            method=method,
            control=name != "the design",
            subject=subject,
            seeds=seeds.child(method, name),
            train=train,
            test=test,
            threads=threads,
        )
        for method in methods
        for name, subject in subjects.items()
        if _makes_sense(method, subject, control=name != "the design", train=train)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One attack on one code, ready to be run."""

    name: str
    method: Method
    control: bool
    subject: Subject
    seeds: SeedTree
    train: int
    test: int
    threads: int

    def run(self) -> DistinguishResult:
        """Learn, and name the message of blocks not seen before. Blocks for the computation."""
        bench = Bench(self.subject, seeds=self.seeds, threads=self.threads)
        match self.method:
            case "linear":
                right = _linear(bench, train=self.train, test=self.test)
            case "likelihood":
                right = _likelihood(bench, test=self.test)
            case "mlp":
                right = _mlp(bench, train=self.train, test=self.test, seed=self.seeds.child("network").integer() % 2**32)
        design = self.subject.design
        return DistinguishResult(
            name=self.name,
            method=self.method,
            control=self.control,
            snr_db=self.subject.snr_db,
            codewords=design.codewords,
            random_bits=design.random_bits,
            hashed=self.subject.hashed,
            right=right,
            trials=self.test,
        )


def _linear(bench: Bench, *, train: int, test: int) -> int:
    """Return the right answers of linear discriminant analysis with a diagonal covariance."""
    sums, squares, counts = np.zeros((2, bench.dimensions)), np.zeros(bench.dimensions), np.zeros(2)
    for labels, soft in bench.soft(train):
        values = soft.astype(np.float32)
        members = np.stack((~labels, labels)).astype(np.float32)  # (2, c)
        sums += members @ values
        squares += np.einsum("cd,cd->d", values, values)
        counts += members.sum(axis=1)
    means = sums / counts[:, None]
    variance = (squares - (counts[:, None] * means**2).sum(axis=0)) / (train - 2)
    weights = (means[1] - means[0]) / np.maximum(variance, _ROUNDING)
    middle = float(weights @ means.mean(axis=0))
    single = weights.astype(np.float32)
    return sum(_agreeing(soft.astype(np.float32) @ single > middle, labels) for labels, soft in bench.soft(test))


def _likelihood(bench: Bench, *, test: int) -> int:
    """Return the right answers of the likelihood ratio test, which no other test beats: every possible block is compared.

    It works on received points before they are rounded to soft values, so it sees more than the tap does.
    """
    labels, coded = bench.sent(test)
    which, candidates = bench.candidates()
    scores = np.zeros((test, which.size))  # log likelihood over snr, up to what all candidates share
    for word in range(bench.design.codewords):
        possible = bench.points(candidates, word=word, first=None)
        norms = 0.5 * np.einsum("cd,cd->c", possible, possible)
        for size, start in ranges(test, step=_BATCH):
            heard = bench.points(coded[start : start + size], word=word, first=word * test + start)
            scores[start : start + size] += heard @ possible.T - norms
    each = [logsumexp(bench.snr * scores[:, which == label], axis=1) for label in (False, True)]
    return _agreeing(each[1] > each[0], labels)


def _mlp(bench: Bench, *, train: int, test: int, seed: int) -> int:
    """Return the right answers of a small neural network after a fixed number of passes over its training blocks."""
    with extra("eavesdropper"):
        from sklearn.neural_network import MLPClassifier
    labels, soft = np.empty(train, dtype=np.bool_), np.empty((train, bench.dimensions), dtype=np.int8)
    filled = 0
    for some, values in bench.soft(train):
        labels[filled : filled + some.size], soft[filled : filled + some.size] = some, values
        filled += some.size
    scale = np.float32(1.0 / max(float(soft[0].std()), _ROUNDING))
    network: Any = MLPClassifier(hidden_layer_sizes=_LAYERS, random_state=seed)
    rows = max(_BATCH, _FLOAT_CHUNK // bench.dimensions // _BATCH * _BATCH)
    for _ in range(_EPOCHS):
        for size, start in ranges(train, step=rows):
            chosen = slice(start, start + size)
            network.partial_fit(soft[chosen] * scale, labels[chosen], classes=[False, True])
    return sum(_agreeing(network.predict(values * scale), some) for some, values in bench.soft(test))


def _makes_sense(method: Method, subject: Subject, *, control: bool, train: int) -> bool:
    if method == "likelihood":
        return subject.hashed and subject.design.random_bits <= LIKELIHOOD_BITS_MOST
    weak = control and subject.hashed
    return not weak or (method == "mlp" and train >= MLP_WEAK_HASH_BLOCKS)


def _with_few_bits(design: SecrecyDesign) -> SecrecyDesign:
    message = design.codewords * design.info_bits - _FEW_BITS
    rate = message / design.symbols
    return replace(design, message_bits=message, random_bits=_FEW_BITS, log2_delta=_NO_CLAIM, rho=1.0, rate=rate)


def _agreeing(answers: Labels, labels: Labels) -> int:
    return int(np.count_nonzero(np.asarray(answers) == labels))
