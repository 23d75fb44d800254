"""Is a mark small, where it may be and nowhere else; is its bearer found, and nobody else more often than is promised?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, log, sqrt
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from scipy.stats import binom, kstest

from hushtune_common.adapter import Float32
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.model.bundle import read_bundle, write_bundle
from hushtune_common.model.naming import block_of, moved
from hushtune_common.model.plan import Plan
from hushtune_common.model.quantise import dequantised, quantised
from hushtune_common.model.slots import Compress, Harmonize, Keep, Quant
from hushtune_common.model.weights import TensorFile, write_tensors
from hushtune_common.seeding import SeedTree
from hushtune_server.cli import main
from hushtune_server.owner.fingerprint.detect import Report, detect
from hushtune_server.owner.fingerprint.key import MarkKey
from hushtune_server.owner.fingerprint.marking import carries, packed, unpacked
from hushtune_server.owner.fingerprint.register import Copy, Reference, Register
from tests.models import ADAPTER, tiny_source

KEY = MarkKey(bytes(range(32)))
STRENGTH = 0.02
EIGHT, FOUR = Quant(bits=8, block=16), Quant(bits=4, block=16)
SLOTS = (Keep(0), Keep(1), Compress(index=2, quant=EIGHT), Compress(index=3, quant=FOUR), Harmonize(index=4, rank=8), Keep(5))
"""Two blocks of integers and a small network between adapter blocks."""

Weights = Mapping[str, Float32]


def bundle(folder: Path) -> Path:
    source = tiny_source()
    file = folder / "bundle.safetensors"
    write_bundle(file, source=source, plan=Plan(base=source.base_digest, adapter=ADAPTER, slots=SLOTS, method="by_hand"))
    return file


def register(folder: Path) -> Register:
    """Return a register whose key is known."""
    (folder / "fingerprint").mkdir(exist_ok=True)
    KEY.save(folder / "fingerprint" / "key")
    return Register(folder / "fingerprint")


def copied(folder: Path, recipient: str, *, strength: float = STRENGTH) -> Path:
    target = folder / f"{recipient}.safetensors"
    register(folder).write_copy(target, bundle=bundle(folder), recipient=recipient, strength=strength)
    return target


def plain(file: Path) -> Weights:
    """Return an emulator's matrices as numbers, as somebody would write them out who has it."""
    about = read_bundle(file)
    quants = {s.index: s.quant for s in about.plan.slots if isinstance(s, Compress)}
    found: dict[str, Float32] = {}
    for name in about.file.names():
        tensor, quant = about.file.tensor(name), quants.get(block_of(name) or 0)
        if name.endswith(".codes") and quant is not None:
            scales = about.file.tensor(name.replace(".codes", ".scales"))
            columns = tensor.shape[1] * (8 // quant.bits)
            found[name.replace(".codes", ".weight")] = dequantised(tensor.astype(np.int16), scales, columns=columns, quant=quant)
        elif not name.endswith(".scales"):
            found[name] = tensor
    return found


def written(file: Path, weights: Weights) -> Path:
    write_tensors(file, shapes={n: t.shape for n, t in weights.items()}, tensor=weights.__getitem__, metadata={})
    return file


def accused(folder: Path, weights: Weights) -> Report:
    known = register(folder)
    return detect(written(folder / "leaked.safetensors", weights), references=known.references, key=known.key)


def test_signs_are_those_of_aes_in_counter_mode_under_a_key_of_the_recipient() -> None:
    parts = [b"signs", b"c1", b"layers.0.w"]
    info = b"hushtune/fingerprint/1" + b"".join(len(p).to_bytes(4, "big") + p for p in parts)
    key = HKDF(SHA256(), 32, salt=None, info=info).derive(bytes(range(32)))
    block = Cipher(AES(key), ECB()).encryptor()
    stream = b"".join(block.update(counter.to_bytes(16, "big")) for counter in range(4))
    expected = [byte >> (7 - bit) & 1 for byte in stream for bit in range(8)]
    (bits,) = KEY.signs("c1", "layers.0.w", count=500)
    assert bits.tolist() == expected[:500]


def test_a_key_is_masked_kept_for_its_user_alone_and_refused_when_damaged(tmp_path: Path) -> None:
    KEY.save(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    assert repr(KEY) == "<MarkKey, masked>"
    (tmp_path / "key").write_bytes(bytes(31))
    with pytest.raises(ConfigError, match="31"):
        MarkKey.load(tmp_path / "key")


def test_only_frozen_matrices_are_marked_and_the_rest_stays_bit_for_bit(tmp_path: Path) -> None:
    marked, about = TensorFile.open(copied(tmp_path, "c1")), read_bundle(bundle(tmp_path))
    changed = {n for n in marked.names() if not np.array_equal(marked.tensor(n), about.file.tensor(n))}
    assert changed
    assert all(block_of(n) not in ADAPTER and not n.endswith((".scales", "norm.weight", ".bias")) for n in changed)
    candidates = {n for n in marked.names() if carries(n, marked.shape(n), adapter=ADAPTER)}
    assert candidates - changed == {"model.layers.4.up.weight"}  # zero throughout, so that no share of it is anything
    assert dict(marked.metadata) == dict(about.file.metadata)


@pytest.mark.slow
def test_a_copy_is_an_emulator_that_runs_and_the_same_again_gives_equal_bytes(tmp_path: Path) -> None:
    first = copied(tmp_path, "c1").read_bytes()
    assert copied(tmp_path, "c1").read_bytes() == first != copied(tmp_path, "c2").read_bytes()
    read_bundle(tmp_path / "c1.safetensors").load()
    assert len(register(tmp_path).references) == 1
    assert {copy.recipient for copy in register(tmp_path).references[0].copies} == {"c1", "c2"}


@pytest.mark.parametrize("strength", [0.005, 0.02, 0.1])
def test_a_mark_has_the_size_that_was_asked_for(tmp_path: Path, strength: float) -> None:
    before = TensorFile.open(bundle(tmp_path))
    after = TensorFile.open(copied(tmp_path, "c1", strength=strength))
    shares: list[float] = []
    for name in before.names():
        if not carries(name, before.shape(name), adapter=ADAPTER) or not before.tensor(name).any():
            continue
        a, b = before.tensor(name), after.tensor(name)
        a, b = (unpacked(a), unpacked(b)) if before.dtype(name) == "U8" else (a, b)
        share = float(np.linalg.norm(b - a) / np.linalg.norm(a))
        # Of integers some are pushed, drawn at random; those at the end of their range stay half of the time.
        pushed = int(np.count_nonzero(a != b))
        slack = 1e-3 if before.dtype(name) == "F32" else 0.06 + 4 / sqrt(max(pushed, 1))
        assert abs(share / strength - 1.0) <= slack
        shares.append(share)
    assert len(shares) > 10


def test_four_bit_codes_are_taken_apart_and_put_together_again() -> None:
    codes = SeedTree(1).generator().integers(-7, 8, (5, 12)).astype(np.float32)
    stored, _ = quantised(codes, quant=Quant(bits=4, block=16))
    assert np.array_equal(packed(unpacked(stored.astype(np.float32))), stored.astype(np.float32))
    assert np.array_equal(unpacked(packed(codes)), codes)


@pytest.mark.slow
def test_no_one_is_accused_more_often_than_promised_whatever_the_file_holds(tmp_path: Path) -> None:
    copied(tmp_path, "c1")
    (known,) = register(tmp_path).references
    strangers = tuple(Copy(recipient=f"s{n}", strength=STRENGTH) for n in range(200))
    reference = replace(known, copies=strangers)
    noisy = {n: t + np.float32(0.1) * np.abs(t) for n, t in plain(tmp_path / "c1.safetensors").items()}
    leaked = written(tmp_path / "leaked.safetensors", noisy)
    scores = [s.score for s in detect(leaked, references=[reference], key=KEY).suspicions]
    for chance in (0.3, 0.1, 0.02):
        accusations = sum(exp(-0.5 * s * s) <= chance for s in scores if s > 0)
        # The bound is not tight; more than the bound's quantile would be luck of one in 10^6.
        assert accusations <= binom.ppf(1 - 1e-6, len(scores), chance)
    assert kstest(scores, "norm").pvalue > 1e-4


def attacked(weights: Weights, how: str, others: Sequence[Weights]) -> Weights:
    rng = SeedTree(3).child(how).generator()
    noise = {n: rng.standard_normal(t.shape).astype(np.float32) for n, t in weights.items()}
    match how:
        case "training":
            return {n: (t + 0.05 * t.std() * noise[n]).astype(np.float32) for n, t in weights.items()}
        case "integers":
            eight = Quant(bits=8, block=64)
            two = {n: t for n, t in weights.items() if t.ndim == 2}
            return {n: dequantised(*quantised(t, quant=eight), columns=t.shape[1], quant=eight) for n, t in two.items()}
        case "one matrix":
            return {"model.embed_tokens.weight": weights["model.embed_tokens.weight"]}
        case "counted anew":
            return {n if block_of(n) is None else moved(n, to=(block_of(n) or 0) + 7): t for n, t in weights.items()}
        case "a factor":
            return {n: np.float32(1.3) * t for n, t in weights.items()}
        case "pruning":
            return {n: np.where(np.abs(t) > np.median(np.abs(t)), t, 0).astype(np.float32) for n, t in weights.items()}
        case "vandals":
            return {n: np.where(np.abs(noise[n]) > 3, np.float32(1e6), t).astype(np.float32) for n, t in weights.items()}
        case _:
            return {n: np.mean([t, *(o[n] for o in others)], axis=0).astype(np.float32) for n, t in weights.items()}


ATTACKS = ["training", "integers", "one matrix", "counted anew", "a factor", "pruning", "vandals"]


@pytest.mark.parametrize("how", ATTACKS)
def test_the_bearer_is_found_and_nobody_else_after(tmp_path: Path, how: str) -> None:
    files = {name: copied(tmp_path, name) for name in ("c1", "c2", "c3")}
    report = accused(tmp_path, attacked(plain(files["c2"]), how, []))
    assert [s.recipient for s in report.carried(false_alarm_max=1e-6)] == ["c2"]


def test_of_two_who_average_their_copies_both_are_found_with_half_a_mark_each(tmp_path: Path) -> None:
    c1, c2, _ = (plain(copied(tmp_path, name)) for name in ("c1", "c2", "c3"))
    report = accused(tmp_path, attacked(c1, "average", [c2]))
    carried = {s.recipient: s.left for s in report.carried(false_alarm_max=1e-6)}
    assert {*carried} == {"c1", "c2"}
    assert all(left == pytest.approx(0.5, abs=0.1) for left in carried.values())


def test_the_score_of_an_untouched_mark_is_the_root_of_the_number_of_marked_weights(tmp_path: Path) -> None:
    file = copied(tmp_path, "c1")
    embedding = {"model.embed_tokens.weight": plain(file)["model.embed_tokens.weight"]}
    (found,) = accused(tmp_path, embedding).suspicions
    assert found.score == pytest.approx(sqrt(embedding["model.embed_tokens.weight"].size), rel=0.02)
    assert found.left == pytest.approx(1.0, abs=0.02)
    assert found.chance == pytest.approx(exp(-0.5 * found.score**2))


def test_a_file_without_marks_accuses_nobody_and_one_that_is_no_emulator_says_so(tmp_path: Path) -> None:
    for name in ("c1", "c2"):
        copied(tmp_path, name)
    assert not accused(tmp_path, plain(tmp_path / "bundle.safetensors")).carried(false_alarm_max=1e-2)
    rng = SeedTree(5).generator()
    other = {n: rng.standard_normal(t.shape).astype(np.float32) for n, t in plain(tmp_path / "bundle.safetensors").items()}
    with pytest.raises(MalformedUpdate, match="none of its tensors resembles"):
        accused(tmp_path, other)


def test_everything_that_was_tried_counts_towards_the_chance(tmp_path: Path) -> None:
    file = copied(tmp_path, "c1", strength=0.005)
    weak = attacked({"model.layers.4.down.weight": plain(file)["model.layers.4.down.weight"]}, "training", [])
    (known,) = register(tmp_path).references
    leaked = written(tmp_path / "leaked.safetensors", weak)
    others = tuple(Copy(recipient=f"s{k}", strength=0.005) for k in range(9))
    alone = detect(leaked, references=[replace(known, copies=known.copies)], key=KEY).suspicions[0]
    many = detect(leaked, references=[replace(known, copies=(*known.copies, *others))], key=KEY).suspicions
    again = next(s for s in many if s.recipient == "c1")
    assert log(again.chance) == pytest.approx(log(alone.chance) + log(10)) or again.chance == 1.0


def test_a_copy_is_made_and_its_bearer_named_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, state = str(bundle(tmp_path)), str(tmp_path)
    for name in ("c1", "c2"):
        arguments = [source, "--recipient", name, "--out", str(tmp_path / f"{name}.safetensors"), "--state", state]
        assert main(["owner", "fingerprint", "mark", *arguments, "--strength", "0.02"]) == 0
    detecting = ["owner", "fingerprint", "detect", str(tmp_path / "c2.safetensors"), "--state", state]
    assert main(detecting) == 0
    assert "c2" in next(line for line in capsys.readouterr().out.splitlines() if "carries this mark" in line)
    assert main([*detecting, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["recipients"]
    assert {row["recipient"]: row["carried"] for row in rows} == {"c1": False, "c2": True}
    assert main(["owner", "fingerprint", "detect", source, "--state", state]) == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["detect", "gone.safetensors", "--state", "{state}"], "nothing was marked here"),
        (["mark", "gone.safetensors", "--recipient", "c1", "--out", "x", "--state", "{state}"], "gone.safetensors"),
        (["mark", "{bundle}", "--recipient", "C 1", "--out", "x", "--state", "{state}"], "--recipient"),
        (["mark", "{bundle}", "--recipient", "c1", "--out", "x", "--state", "{state}", "--strength", "0"], "--strength"),
    ],
)
def test_what_cannot_be_marked_or_traced_is_a_wrong_setting(
    tmp_path: Path, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"state": str(tmp_path), "bundle": str(bundle(tmp_path))}
    filled = [a.format(**places) for a in arguments]
    assert main(["owner", "fingerprint", *filled]) == ConfigError.exit_code
    assert problem in capsys.readouterr().err


def test_a_reference_that_is_damaged_is_named(tmp_path: Path) -> None:
    copied(tmp_path, "c1")
    (record,) = (tmp_path / "fingerprint").glob("*.json")
    record.write_text("{}")
    with pytest.raises(ConfigError, match=f"{record}: is damaged"):
        _: Sequence[Reference] = register(tmp_path).references
