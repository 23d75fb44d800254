"""Do values survive the wire, and are all others refused by the name of their field?"""

from collections.abc import Callable
from contextlib import suppress
from math import inf, nan
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_common import messages as ours
from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import BLOCKS_MAX
from hushtune_common.units import Decibel, Second
from hushtune_common.wire import convert
from hushtune_common.wire.v1 import coordinator_pb2

CALLER = ours.Caller(role=ours.Role.CLIENT, name="c1")

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
texts = st.text(max_size=50)
numbers = st.floats(allow_nan=False, allow_infinity=False)
positives = st.floats(min_value=0.0, exclude_min=True, allow_infinity=False)
negatives = st.floats(max_value=0.0, exclude_max=True, allow_infinity=False)
not_negatives = st.floats(min_value=0.0, allow_infinity=False)
levels = st.floats(allow_nan=False).filter(lambda level: level != inf)
counts = st.integers(0, 2**31 - 1)
ordinals = st.integers(1, 2**31 - 1)
bigs = st.integers(1, 2**63 - 1)
digests = st.binary(min_size=32, max_size=32).map(ours.Digest)
indices = st.lists(st.integers(0, BLOCKS_MAX - 1), unique=True, max_size=20).map(lambda values: tuple(sorted(values)))

keys = st.builds(ours.UpdateKey, run=names, round_id=ordinals, client=names, attempt=ordinals)
own_keys = st.builds(ours.UpdateKey, run=names, round_id=ordinals, client=st.just("c1"), attempt=ordinals)


@st.composite
def designs(draw: st.DrawFn, *, secret: bool | None = None) -> ours.SecrecyDesign:
    info = draw(st.integers(1, 100)) * 8
    codewords = draw(st.integers(64, 80))
    hides = draw(st.booleans()) if secret is None else secret
    message = 8 * draw(st.integers(8, info * codewords // 8 - 1)) if hides else info * codewords
    tap_model = draw(st.sampled_from(ours.TapModel))
    return ours.SecrecyDesign(
        modulation=draw(st.sampled_from(["qpsk", "qam16", "qam64"])),
        code_bits=info + 8 * draw(st.integers(1, 100)),
        info_bits=info,
        codewords=codewords,
        message_bits=message,
        random_bits=info * codewords - message,
        snr_tap_design_db=Decibel(draw(numbers)),
        log2_delta=draw(negatives if hides else not_negatives),
        rho=draw(numbers),
        rate=draw(not_negatives),
        tap_model=tap_model,
        subbands=draw(st.integers(0 if tap_model is ours.TapModel.FIXED else 1, 2**31 - 1)),
    )


gates = st.builds(
    ours.Gate,
    decision=st.sampled_from(ours.GateDecision),
    reason=texts,
    snr_main_db=levels,
    snr_tap_bound_db=levels,
    block_error_rate=st.floats(0.0, 1.0),
    rate_coded=numbers,
    rate_gaussian=numbers,
)


quantities = st.floats(1e-60, 1e60)
channels = st.builds(ours.Channel, at=st.floats(0.0, 1e60), gain_main=quantities, gain_tap=st.just(0.0) | quantities)


@st.composite
def assignments(draw: st.DrawFn) -> ours.Assignment:
    gate = draw(gates)
    protection = draw(st.sampled_from(ours.Protection)) if gate.decision is ours.GateDecision.GRANTED else None
    return draw(
        st.builds(
            ours.Assignment,
            client=names,
            round_id=ordinals,
            gate=st.just(gate),
            adapter_share=st.floats(0.0, 1.0, exclude_min=True),
            budget_bytes=st.integers(1, 2**60),
            bandwidth=not_negatives,
            power=not_negatives,
            clock=not_negatives,
            secrecy_rate_bps=not_negatives,
            deadline=not_negatives,
            protection=st.just(protection),
            design=st.none() if protection in {None, ours.Protection.CRYPTO_ONLY} else designs(secret=True),
            carrier=st.none() if protection in {None, ours.Protection.PAYLOAD} else designs(secret=False),
            channel=st.none() | channels,
        )
    )


@st.composite
def transmissions_(draw: st.DrawFn) -> ours.Transmission:
    design = draw(designs())
    one, other = draw(st.binary(min_size=2, max_size=2))
    seed = ours.LinkSeed(
        toeplitz=bytes([one]) * design.toeplitz_bytes,
        dither=bytes([other]) * design.coded_bytes,
        tag=draw(st.binary(min_size=32, max_size=32)),
    )
    return draw(
        st.builds(
            ours.Transmission,
            key=keys,
            part=st.sampled_from(ours.Part),
            frame=digests,
            frame_bytes=bigs,
            design=st.just(design),
            seed=st.just(seed),
            power=positives,
            bandwidth=positives,
        )
    )


transmissions = transmissions_()
receipts = st.builds(ours.Receipt, key=keys, missing=indices)
specs = st.builds(
    ours.TensorSpec,
    name=st.text(min_size=1, max_size=50),
    shape=st.lists(bigs, min_size=1, max_size=8).map(tuple),
    dtype=st.sampled_from(["F32", "F16", "BF16"]),
    block=counts,
)
manifests = st.builds(
    ours.EmulatorManifest,
    emulator=digests,
    size_bytes=bigs,
    base=digests,
    plan=digests,
    tokenizer=digests,
    adapter=st.lists(specs, min_size=1, max_size=3).map(tuple),
    sealing_key=st.binary(min_size=1, max_size=2000),
    codec=st.text(min_size=1, max_size=50),
)
verdicts = st.builds(
    ours.Verdict, key=own_keys, accepted=st.booleans(), kept=st.booleans(), reason=texts, score=st.none() | numbers
)


@st.composite
def curves(draw: st.DrawFn) -> ours.UtilityCurve:
    shares = sorted(draw(st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=8, unique=True)))
    weight, numbers_ = draw(st.floats(1e-6, 1e3)), st.floats(-1e6, 1e6)
    intervals = [sorted(draw(st.tuples(numbers_, numbers_, numbers_))) for _ in shares]
    return ours.UtilityCurve(
        offset=weight + draw(st.floats(1e-3, 1e3)),
        weight=weight,
        shape=draw(st.floats(1e-3, 8.0)),
        share_min=draw(st.floats(1e-3, 0.99)),
        points=tuple(ours.CurvePoint(s, mean, low, high) for s, (low, mean, high) in zip(shares, intervals, strict=True)),
    )


reports = st.builds(
    ours.ClientReport,
    client=st.just("c1"),
    round_id=ordinals,
    gain_main=quantities,
    gain_tap=st.just(0.0) | quantities,
    power_max=quantities,
    clock_max=quantities,
    energy_max=quantities,
    sample_count=bigs,
    update_bits=bigs,
    train_flops=st.floats(1e-6, 1e30),
    energy_w_per_flops3=st.floats(1e-50, 1e10),
    sounded_at=st.floats(0.0, 1e60),
)
completions = st.builds(
    ours.Completion,
    key=own_keys,
    uploaded=st.booleans(),
    reason=texts,
    bytes_raw=st.integers(0, 2**63 - 1),
    bytes_uploaded=st.integers(0, 2**63 - 1),
    airtime=not_negatives,
    train_seconds=not_negatives,
    energy=not_negatives,
)
notices = st.builds(
    ours.ReceptionNotice,
    seq=bigs,
    listener=st.sampled_from(ours.Listener),
    transmission=transmissions,
    blocks=ordinals,
    update_bytes=bigs,
    fidelity=st.text(min_size=1, max_size=20),
    airtime=not_negatives,
    acknowledged=st.booleans(),
)
directives = st.builds(
    ours.Directive,
    seq=bigs,
    kind=st.sampled_from([k for k in ours.DirectiveKind if k not in {ours.DirectiveKind.ASSIGNED, ours.DirectiveKind.SUM}]),
    round_id=counts,
    accepted=st.lists(names, max_size=3).map(tuple),
    failed_reason=texts,
    last=st.booleans(),
) | st.builds(ours.Directive, seq=bigs, kind=st.just(ours.DirectiveKind.ASSIGNED), round_id=counts, assignment=assignments())
beats = st.builds(ours.Beat, last_seen_seq=st.integers(0, 2**63 - 1), phase=texts, progress=st.integers(0, 2**63 - 1))
settlements = st.builds(ours.Settlement, key=keys, accepted=st.booleans())


def of_caller(decode: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda pb: decode(pb, caller=CALLER)


def verdict_from_wire(pb: Any) -> ours.Verdict:
    return convert.verdict_from_wire(pb, client=ours.ClientId("c1"))


KINDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Message], Callable[[Any], Any]]] = {
    "manifest": (manifests, convert.manifest_to_wire, convert.manifest_from_wire),
    "verdict": (verdicts, convert.verdict_to_wire, verdict_from_wire),
    "report": (reports, convert.report_to_wire, of_caller(convert.report_from_wire)),
    "curve": (curves(), convert.curve_to_wire, convert.curve_from_wire),
    "channel": (
        st.tuples(ordinals, channels),
        lambda word: convert.new_channel_to_wire(word[1], round_id=word[0]),
        convert.new_channel_from_wire,
    ),
    "design": (designs(), convert.design_to_wire, convert.design_from_wire),
    "gate": (gates, convert.gate_to_wire, convert.gate_from_wire),
    "assignment": (assignments(), convert.assignment_to_wire, convert.assignment_from_wire),
    "directive": (directives, convert.directive_to_wire, convert.directive_from_wire),
    "beat": (beats, convert.beat_to_wire, convert.beat_from_wire),
    "completion": (completions, convert.completion_to_wire, of_caller(convert.completion_from_wire)),
    "settlement": (settlements, convert.settlement_to_wire, convert.settlement_from_wire),
    "transmission": (transmissions, convert.transmission_to_wire, convert.transmission_from_wire),
    "notice": (notices, convert.notice_to_wire, convert.notice_from_wire),
    "receive": (
        st.tuples(keys, counts),
        lambda wish: convert.receive_to_wire(wish[0], first_chunk=wish[1]),
        convert.receive_from_wire,
    ),
    "receipt": (receipts, convert.receipt_to_ack, convert.receipt_from_ack),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_every_value_survives_the_wire(kind: str, data: st.DataObject):
    values, encode, decode = KINDS[kind]
    value = data.draw(values)
    message = encode(value)
    assert decode(type(message).FromString(message.SerializeToString())) == value


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_damaged_messages_are_malformed_or_valid_and_nothing_else(kind: str, data: st.DataObject):
    values, encode, decode = KINDS[kind]
    message = encode(data.draw(values))
    leaf, field = data.draw(st.sampled_from(leaves(message)))
    if field.is_repeated:
        leaf.ClearField(field.name)
    elif field.cpp_type == field.CPPTYPE_DOUBLE:
        setattr(leaf, field.name, data.draw(st.sampled_from([nan, inf, -inf, -1.0])))
    elif field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_ENUM):
        setattr(leaf, field.name, data.draw(st.sampled_from([-1, 0, 77, 2**31 - 1])))
    elif field.type == field.TYPE_STRING:
        setattr(leaf, field.name, data.draw(st.sampled_from(["", "../x", "A", "x" * 2000])))
    else:
        leaf.ClearField(field.name)
    with suppress(MalformedUpdate):
        decode(message)


def leaves(message: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    for field in message.DESCRIPTOR.fields:
        found.append((message, field))
        if field.message_type is not None and not field.is_repeated and message.HasField(field.name):
            found.extend(leaves(getattr(message, field.name)))
    return found


def good(kind: str) -> Any:
    values, encode, _ = KINDS[kind]
    return encode(minimal(values))


def minimal(values: st.SearchStrategy[Any]) -> Any:
    drawn: list[Any] = []

    @settings(max_examples=1)
    @given(values)
    def draw(value: Any) -> None:
        drawn.append(value)

    draw()
    return drawn[0]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("manifest", "emulator_digest", b"short"),
        ("manifest", "size_bytes", 0),
        ("manifest", "sealing_key", b""),
        ("manifest", "sealing_key", bytes(10_000)),
        ("manifest", "codec", ""),
        ("verdict", "score", nan),
        ("verdict", "attempt", 0),
        ("verdict", "reason", "x" * 1001),
        ("report", "gain_main", nan),
        ("report", "gain_main", 0.0),
        ("report", "gain_tap", -1.0),
        ("report", "gain_tap", 1e308),
        ("report", "gain_main", 1e-320),
        ("report", "power_max_w", inf),
        ("report", "sample_count", 0),
        ("report", "sounded_at_s", -1.0),
        ("report", "sounded_at_s", nan),
        ("channel", "round_id", 0),
        ("design", "modulation", "qam1024"),
        ("design", "codewords", 0),
        ("design", "codewords", 10**6),
        ("design", "message_bits", 63),
        ("design", "rate", nan),
        ("design", "code_bits", 12345),
        ("design", "random_bits", -8),
        ("design", "tap_model", coordinator_pb2.TAP_MODEL_UNSPECIFIED),
        ("design", "tap_model", 9),
        ("design", "subbands", -1),
        ("gate", "decision", coordinator_pb2.GATE_DECISION_UNSPECIFIED),
        ("gate", "decision", 99),
        ("gate", "snr_main_db", nan),
        ("gate", "block_error_rate", 1.5),
        ("assignment", "client", "../c1"),
        ("assignment", "round_id", 0),
        ("assignment", "adapter_share", 1.5),
        ("assignment", "budget_bytes", 0),
        ("assignment", "budget_bytes", -1),
        ("assignment", "budget_bytes", 2**62),
        ("curve", "weight", -1.0),
        ("curve", "weight", 0.0),
        ("curve", "shape", nan),
        ("curve", "shape", -1.0),
        ("curve", "offset", inf),
        ("curve", "offset", -1.0),
        ("curve", "share_min", 0.0),
        ("assignment", "power_w", -1.0),
        ("assignment", "protection", 9),
        ("directive", "kind", 0),
        ("directive", "seq", 0),
        ("beat", "progress", -1),
        ("beat", "phase", "x" * 1001),
        ("completion", "run", ""),
        ("completion", "airtime_s", inf),
        ("completion", "bytes_raw", -1),
        ("settlement", "client", "C1"),
        ("transmission", "frame_digest", b""),
        ("transmission", "power_w", nan),
        ("transmission", "bandwidth_hz", 0.0),
        ("transmission", "part", 0),
        ("transmission", "part", 9),
        ("notice", "listener", 0),
        ("notice", "blocks", 0),
        ("notice", "update_bytes", 0),
        ("notice", "fidelity", ""),
        ("receive", "attempt", 0),
        ("receive", "client", ""),
        ("receive", "first_chunk", -1),
        ("receipt", "attempt", -1),
    ],
)
def test_bad_values_are_refused(kind: str, field: str, value: Any):
    message = good(kind)
    setattr(message, field, value)
    with pytest.raises(MalformedUpdate, match=": "):
        KINDS[kind][2](message)


@pytest.mark.parametrize("missing", [[3, 3], [2, 1], [-1], [BLOCKS_MAX], list(range(BLOCKS_MAX + 1))])
def test_missing_blocks_are_increasing_and_bounded(missing: list[int]):
    message = good("receipt")
    message.missing[:] = missing
    with pytest.raises(MalformedUpdate, match="missing"):
        convert.receipt_from_ack(message)


def test_an_assignment_comes_with_its_directive_and_no_other():
    message = good("directive")
    message.kind = coordinator_pb2.DIRECTIVE_KIND_ASSIGNED
    message.ClearField("assignment")
    with pytest.raises(MalformedUpdate, match="assignment: is absent"):
        convert.directive_from_wire(message)
    message.kind = coordinator_pb2.DIRECTIVE_KIND_DRAIN
    message.assignment.client = "c1"
    with pytest.raises(MalformedUpdate, match="assignment: is present"):
        convert.directive_from_wire(message)


def test_a_word_on_a_sum_comes_with_its_directive_and_no_other():
    message = good("directive")
    message.kind = coordinator_pb2.DIRECTIVE_KIND_SUM
    message.ClearField("sum")
    with pytest.raises(MalformedUpdate, match="sum: is absent"):
        convert.directive_from_wire(message)
    message.kind = coordinator_pb2.DIRECTIVE_KIND_DRAIN
    message.sum.survivors.view = bytes(32)
    with pytest.raises(MalformedUpdate, match="sum: is present"):
        convert.directive_from_wire(message)


def test_an_assignment_says_what_protects_it_and_brings_its_designs():
    granted = minimal(assignments().filter(lambda a: a.protection is ours.Protection.KEY))
    for change in ("protection", "design", "carrier"):
        message = convert.assignment_to_wire(granted)
        message.ClearField(change)
        with pytest.raises(MalformedUpdate, match="assignment"):
            convert.assignment_from_wire(message)


@pytest.mark.parametrize(
    ("field", "size"), [("toeplitz", -1), ("dither", 1), ("tag", -1), ("toeplitz", 2**20), ("dither", 2**21)]
)
def test_public_randomness_has_the_lengths_of_its_design(field: str, size: int):
    message = good("transmission")
    value: bytes = getattr(message.seed, field)
    setattr(message.seed, field, value + bytes(size) if size > 0 else value[1:] or b"x")
    with pytest.raises(MalformedUpdate):
        convert.transmission_from_wire(message)


@given(receipts)
def test_a_receipt_reaches_the_client_with_the_last_message_only(receipt: ours.Receipt):
    pending = convert.receipt_to_transmit(None, airtime=Second(1.5))
    assert convert.receipt_from_transmit(pending, key=receipt.key) is None
    final = convert.receipt_to_transmit(receipt, airtime=Second(1.5))
    assert final.airtime_s == 1.5
    assert convert.receipt_from_transmit(final, key=receipt.key) == receipt


def test_the_client_of_a_report_is_the_caller():
    message = good("report")
    other = ours.Caller(role=ours.Role.CLIENT, name="c2")
    assert convert.report_from_wire(message, caller=other).client == "c2"


@pytest.mark.parametrize("wrong", [{"run": "../.."}, {"run": ""}, {"idle_s": -1.0}, {"idle_s": float("nan")}, {"round_s": 0.0}])
def test_a_welcome_whose_run_is_no_folder_name_or_whose_times_are_none_is_refused(wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {"run": "run-1", "protocol_minor": convert.PROTOCOL_MINOR}
    right |= {"connect_s": 1.0, "idle_s": 2.0, "round_s": 3.0}
    assert convert.welcome_from_wire(coordinator_pb2.JoinResponse(**right))[0] == "run-1"
    with pytest.raises(MalformedUpdate, match=next(iter(wrong))):
        convert.welcome_from_wire(coordinator_pb2.JoinResponse(**{**right, **wrong}))
