"""``hushtune link …``: the wiretap link alone, for people who study it: designs, error rates, speed, attacks."""

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from hushtune_common.clock import SystemClock
from hushtune_common.errors import ConfigError, SecrecyUnavailable
from hushtune_common.messages import TapModel
from hushtune_common.units import Decibel

Point = Annotated[str | None, Parameter(help="Coding point, for example qpsk-0.825; all of them unless given.")]
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object instead of a table.")]
Seed = Annotated[int, Parameter(help="Seed of noise and data; secrets come from the operating system all the same.")]
_COUNT = Number(gte=1)
_LEVEL_DB = Number(gte=-100, lte=100)
"""No link operates outside, and neither infinity nor a missing number gets through."""
_LOG2_DELTA = Number(gte=-512, lte=-1)
_ROWS = Number(gte=16)
"""Rates of fewer codewords make no table that the mapping of fading could be held against."""
_MOST_BLOCKS = 1_000_000
Threads = Annotated[int, Parameter(help="Threads to code and decode on.", validator=_COUNT)]
Codewords = Annotated[int, Parameter(help="Codewords per hash block (L_c).", validator=Number(gte=1, lte=16))]
if TYPE_CHECKING:
    from hushtune_common.link.mcs import CodingPoint

_logger = logging.getLogger(__name__)
_CORES = os.cpu_count() or 1
TAP_KINDS = {"fixed": TapModel.FIXED, "outage": TapModel.OUTAGE, "interleaved": TapModel.INTERLEAVED}


def register(app: App) -> None:
    """Add the ``link`` commands to the command line."""
    link = App(name="link", help="The wiretap link alone: designs, block error rates, speed, attacks.")
    link.command(design)
    link.command(bler)
    link.command(bench)
    link.command(attack)
    link.command(prepare)
    app.command(link)


def design(
    *,
    point: Point = None,
    main_db: Annotated[float, Parameter(name="--main-db", help="The owner's symbol SNR in dB.", validator=_LEVEL_DB)] = 6.0,
    tap_db: Annotated[
        float,
        Parameter(
            name="--tap-db",
            help="The tap's assumed symbol SNR in dB: its bound, or its mean if interleaved.",
            validator=_LEVEL_DB,
        ),
    ] = -5.0,
    codewords: Codewords = 4,
    log2_delta: Annotated[
        float, Parameter(help="Leakage bound of one hash block, log2 of total variation.", validator=_LOG2_DELTA)
    ] = -64.0,
    tap_model: Annotated[
        Literal["fixed", "outage", "interleaved"], Parameter(help="What is assumed of the tap's channel.")
    ] = "fixed",
    subbands: Annotated[
        int, Parameter(help="Coherence blocks of a codeword, with a fading tap.", validator=Number(gte=1, lte=256))
    ] = 16,
    block_error_max: Annotated[
        float, Parameter(help="Share of hash blocks that the owner may lose, as the gate takes it.", validator=Number(gt=0, lt=1))
    ] = 1e-2,
    megabytes: Annotated[
        float, Parameter(help="Size of an upload, for airtime and the total bound.", validator=Number(gt=0, lte=1e6))
    ] = 10.0,
    bandwidth_mhz: Annotated[float, Parameter(help="Bandwidth of the upload.", validator=Number(gte=1e-6, lte=1e6))] = 1.0,
    json_: Json = False,
) -> int:
    """Design the wiretap code for assumed SNRs: message and random bits, secret rate, leakage bound of an upload.

    The bound holds for a passive tap no better than assumed, with random bits from the operating system. It is derived along
    published lines, not peer reviewed, and checked against exact enumeration of a short code.

    Example: hushtune link design --point qpsk-0.825 --main-db 6 --tap-db -5
    """
    from hushtune_server.testbed.link.designs import Request, compare, nearest

    asked = Request(
        snr_main_db=Decibel(main_db),
        snr_tap_db=Decibel(tap_db),
        codewords=codewords,
        log2_delta=log2_delta,
        tap_model=TAP_KINDS[tap_model],
        subbands=0 if tap_model == "fixed" else subbands,
        block_error_max=block_error_max,
        upload_bytes=max(1, round(megabytes * 1e6)),
        bandwidth_hz=bandwidth_mhz * 1e6,
    )
    rows = compare(_points(point), asked)
    if json_:
        print(json.dumps({"request": asked.to_json(), "designs": rows}, indent=1))
    else:
        _print_designs(rows, asked.title)
    if all(row["problem"] for row in rows):
        raise SecrecyUnavailable(f"{asked.title}: {nearest(rows)}")
    return 0


def bler(
    *,
    point: Point = None,
    blocks: Annotated[int, Parameter(help="Codewords per SNR where errors are rare.", validator=_ROWS)] = 10_000,
    iterations: Annotated[
        int | None,
        Parameter(help="Decoder iterations at most; the coding point's own unless given.", validator=Number(gte=1, lte=1000)),
    ] = None,
    out: Annotated[Path | None, Parameter(help="Write the tables to this file, in the form that the link reads.")] = None,
    seed: Seed = 1,
    threads: Threads = _CORES,
    json_: Json = False,
) -> int:
    """Measure block error rates of the bit-exact link over white noise: every bit encoded, modulated, disturbed and decoded.

    Example: hushtune link bler --point qpsk-0.825 --blocks 20000
    """
    from hushtune_server.testbed.link import bler as tables

    points = _points(point)
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):  # known now, not after a long measurement
        raise ConfigError("--out", f"cannot write {out}: give a file in a folder that exists")
    options = tables.BlerOptions(blocks=blocks, iterations=iterations, seed=seed, threads=threads)

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    measured = tables.measure_all(points, options=options, progress=tell)
    document = tables.to_json(measured, options=options)
    if out is not None:
        tables.write(out, document)
        tell(f"tables of {len(points)} coding points written to {out}")
    if json_:
        print(json.dumps(document, indent=1))
    elif out is None:
        _print_tables(document)
    return 0


def bench(
    *,
    point: Point = None,
    blocks: Annotated[int, Parameter(help="Hash blocks per repetition.", validator=_COUNT)] = 256,
    repetitions: Annotated[int, Parameter(help="Repetitions; the best counts.", validator=_COUNT)] = 5,
    threads: Threads = 1,
    peer: Annotated[
        bool,
        Parameter(
            negative="--no-peer",
            help="Also Sionna's LDPC code at qpsk-0.825 on the same core, when it is installed; with one thread only.",
        ),
    ] = True,
    json_: Json = False,
) -> int:
    """Measure the speed of every stage of the link and of the whole of it, secret bytes to secret bytes; one core unless told.

    Example: hushtune link bench --json
    """
    from hushtune_common.link.mcs import point_named
    from hushtune_common.seeding import SeedTree
    from hushtune_server.testbed.link import bench as benchmark
    from hushtune_server.testbed.link import peer as sionna

    clock, seeds = SystemClock(), SeedTree(1).child("bench")
    points = _points(point)
    results: list[dict[str, Any]] = []
    for setting in benchmark.default_settings():
        if setting.point in points:
            print(f"measuring {setting.name} …", file=sys.stderr, flush=True)
            found = benchmark.measure(setting, blocks=blocks, repetitions=repetitions, threads=threads, clock=clock, seeds=seeds)
            results.append(found.to_json())
    if not results:
        names = ", ".join(sorted({s.point.name for s in benchmark.default_settings()}))
        raise ConfigError("--point", f"no benchmark uses it; choose one of {names}")
    document: dict[str, Any] = {"machine": _machine(), "settings": results, "peer": None}
    missing = sionna.left_out({p.name for p in points}, threads=threads)
    if peer and missing:
        print(f"the peer is left out: {missing}", file=sys.stderr, flush=True)
    elif peer:
        print("measuring the peer …", file=sys.stderr, flush=True)
        rates = sionna.measure(point_named(sionna.POINT), snr_db=sionna.SNR_DB, clock=clock, seeds=seeds.child("peer"))
        ours = results[0]["mbit_per_s"]
        ratios = {name: ours["ldpc encode" if name == "encoder" else "ldpc decode"] / rate for name, rate in rates.items()}
        document["peer"] = {"name": "Sionna", "mbit_per_s": rates, "times_faster": ratios}
    if json_:
        print(json.dumps(document, indent=1))
    else:
        _print_bench(document)
    return 0


def attack(
    *,
    point: Annotated[str, Parameter(help="Coding point.")] = "qpsk-0.825",
    tap_db: Annotated[
        float, Parameter(name="--tap-db", help="The tap's SNR in dB, which the design assumes as well.", validator=_LEVEL_DB)
    ] = -5.0,
    codewords: Codewords = 1,
    log2_delta: Annotated[float, Parameter(help="Leakage bound of the design.", validator=_LOG2_DELTA)] = -64.0,
    train: Annotated[int, Parameter(help="Hash blocks to learn from.", validator=Number(gte=4, lte=_MOST_BLOCKS))] = 12_000,
    test: Annotated[int, Parameter(help="Hash blocks to be judged on.", validator=Number(gte=1, lte=_MOST_BLOCKS))] = 6_000,
    neural: Annotated[bool, Parameter(negative="--no-neural", help="Also train a neural network (minutes).")] = True,
    seed: Seed = 1,
    threads: Threads = _CORES,
    json_: Json = False,
) -> int:
    """Try to tell two chosen messages apart from what the tap hears, with every attack next to its positive control.

    Without a hash, and with far too few random bits, the attacks must succeed, or the run says nothing. Against the designed code
    they should do no better than guessing, which is a sanity check and not evidence of secrecy; the bound is. Exit code 1 says
    that a control failed.

    Example: hushtune link attack --train 4000 --test 2000 --no-neural
    """
    from hushtune_common.link.wiretap import design as make_design
    from hushtune_common.seeding import SeedTree
    from hushtune_server.eavesdropper import distinguish

    made = make_design(_points(point)[0], codewords=codewords, snr_tap_db=tap_db, log2_delta=log2_delta)
    methods: tuple[distinguish.Method, ...] = ("linear", "likelihood", "mlp") if neural else ("linear", "likelihood")
    seeds = SeedTree(seed).child("attack")
    results: list[distinguish.DistinguishResult] = []
    soft, room = made.codewords * made.code_bits, distinguish.MLP_BYTES_MOST
    if neural and train * soft > room:
        held = f"the neural network holds {room}, so at most {room // soft} blocks"
        raise ConfigError("--train", f"{train} blocks are {train * soft} soft values, and {held}; give fewer, or --no-neural")
    for trial in distinguish.trials(made, snr_db=tap_db, seeds=seeds, train=train, test=test, methods=methods, threads=threads):
        print(f"{trial.name} …", file=sys.stderr, flush=True)
        results.append(trial.run())
    valid = distinguish.valid(results)
    rows = [result.to_json() for result in results]
    if json_:
        about = {
            "point": point,
            "log2_delta": made.log2_delta,
            "random_bits": made.random_bits,
            "message_bits": made.message_bits,
        }
        print(json.dumps({"design": about, "valid": valid, "results": rows}, indent=1))
    else:
        _print_attack(rows, valid=valid)
    return 0 if valid else 1


def prepare() -> None:
    """Compile the link's machine code and keep it on disk; `hushtune testbed run` does so by itself.

    Example: hushtune link prepare
    """
    from hushtune_common import logs
    from hushtune_common.logs import log_event
    from hushtune_server.testbed.link.prepare import prepare as compile_all

    logs.configure(clock=SystemClock(), json_lines=None, role="prepare", name="prepare")
    log_event(_logger, "phase_changed", phase="compiling the link's machine code (once per machine)")
    compile_all()


def _points(name: str | None) -> "Sequence[CodingPoint]":
    from hushtune_common.link.mcs import CODING_POINTS, point_named

    if name is None:
        return CODING_POINTS
    try:
        return (point_named(name),)
    except ValueError as error:
        raise ConfigError("--point", f"no such coding point; choose one of {', '.join(p.name for p in CODING_POINTS)}") from error


def _machine() -> dict[str, object]:
    import platform

    return {"processor": platform.processor() or platform.machine(), "python": platform.python_version(), "cores": os.cpu_count()}


def _print_designs(rows: Sequence[dict[str, Any]], title: str) -> None:
    table = Table(title=f"\n{title}", title_justify="left")
    table.add_column("point", no_wrap=True)
    for heading in ("lost blocks", "message bits", "random bits", "bit per symbol", "airtime s", "log2 bound"):
        table.add_column(heading, justify="right")
    for row in rows:
        shown = [row["point"], f"{row['block_error_rate']:.1e}"]
        if row["problem"]:  # a rate that the owner cannot decode, or that hides nothing, is none
            table.add_row(*shown, *["-"] * 5, style="dim")
            continue
        shown += [str(row["message_bits"]), str(row["random_bits"]), f"{row['secret_bits_per_symbol']:.3f}"]
        table.add_row(*shown, f"{row['upload_airtime_s']:.1f}", f"{row['upload_log2_delta']:.1f}")
    console = Console()
    console.print(table)
    for row in rows:
        if row["problem"]:
            console.print(f"  {row['point']}: {row['problem']}", markup=False)
    gaussian = rows[0]["rate_gaussian"]
    console.print(
        f"Airtime and log2 bound are those of the whole upload, lost blocks sent again. The difference of Gaussian capacities "
        f"at these SNRs would be {gaussian:.2f} bit/symbol; no code of finite length delivers that.",
        style="dim",
    )


def _print_tables(document: dict[str, Any]) -> None:
    table = Table(title="\nBlock error rate of one codeword, white noise, bit by bit", title_justify="left")
    for heading in ("coding point", "SNR dB", "error rate", "codewords"):
        table.add_column(heading, justify="left" if heading == "coding point" else "right")
    for name, entry in document["points"].items():
        for index, (snr_db, rate, count) in enumerate(entry["rows"]):
            table.add_row(name if index == 0 else "", f"{snr_db:.2f}", f"{rate:.2e}" if rate else "0", str(count))
    Console().print(table)


def _print_bench(document: dict[str, Any]) -> None:
    console = Console()
    for entry in document["settings"]:
        table = Table(
            title=f"\n{entry['setting']}: {entry['secret_bits_per_symbol']:.3f} secret bit/symbol", title_justify="left"
        )
        table.add_column("stage")
        table.add_column("Mbit/s", justify="right")
        table.add_column("of")
        for stage, rate in entry["mbit_per_s"].items():
            what = "information bits" if stage.startswith("ldpc") else "secret payload"
            table.add_row(stage, f"{rate:.1f}", what, style="bold" if stage == "bob total" else "")
        console.print(table)
        console.print(
            f"  {entry['iterations_mean']} decoder iterations; {entry['block_errors']} of {entry['blocks']} blocks lost"
        )
    if document["peer"]:
        for name, ratio in document["peer"]["times_faster"].items():
            console.print(f"  {ratio:.0f} times Sionna ({name}, {document['peer']['mbit_per_s'][name]:.2f} Mbit/s, same core)")


def _print_attack(rows: Sequence[dict[str, Any]], *, valid: bool) -> None:
    table = Table(title="\nTelling two messages apart", title_justify="left")
    for heading in ("attack", "role", "accuracy", "95 % interval", "trials", "verdict"):
        table.add_column(heading)
    for row in rows:
        low, high = row["interval_95"]
        role = "positive control" if row["control"] else "the design"
        shown = (f"{row['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", str(row["trials"]), row["verdict"])
        table.add_row(row["name"], role, *shown)
    console = Console()
    console.print(table)
    if valid:
        console.print("A failed attack is no evidence of secrecy: the leakage bound is. The controls show that the attacks work.")
    else:
        console.print("INVALID: a positive control did not succeed, so the other rows say nothing", style="bold red")
