"""How is each command of the round carried out? Over the ports, the trainer and the state; knows no transport."""

import logging
from collections.abc import Callable, Sequence

from hushtune_client import telemetry, uplink
from hushtune_client.consent import require_granted, require_protected, require_sum_granted
from hushtune_client.emulator import Emulator
from hushtune_client.material import Aside, Material, Supply
from hushtune_client.own_training import OwnTraining, write_result
from hushtune_client.phases import (
    AskVerdict,
    Assigned,
    Conclude,
    Event,
    Measure,
    Retune,
    Send,
    Train,
    Training,
    TrainingStarted,
    UpdateSealed,
    VerdictReached,
    Watch,
)
from hushtune_client.ports import Ports
from hushtune_client.progress import Status
from hushtune_client.sealing import Sealer
from hushtune_client.sending import Sender
from hushtune_client.sounding import Sounder
from hushtune_client.state import ClientState, RoundFiles
from hushtune_client.sums import Sums
from hushtune_client.trainer import Order, StepReport, Trained, Trainer
from hushtune_common.clock import Clock
from hushtune_common.codec.pipeline import budget_bytes
from hushtune_common.config import ClientConfig, Scenario
from hushtune_common.errors import TrainerFailed
from hushtune_common.logs import log_event
from hushtune_common.messages import Assignment, Completion
from hushtune_common.secagg.layout import grid_for, layout_of
from hushtune_common.secagg.messages import Advertisement, upload_bytes
from hushtune_common.seeding import SeedTree
from hushtune_common.units import FlopPerSecond, Joule, Second

_logger = logging.getLogger(__name__)


class Duties:
    """Carries out commands; each returns the event that it brought about, or nothing."""

    def __init__(
        self,
        *,
        scenario: Scenario,
        device: ClientConfig,
        records: Sequence[str],
        ports: Ports,
        trainer: Trainer,
        state: ClientState,
        status: Status,
        clock: Clock,
        seeds: SeedTree,
        aside: Aside,
        sounder: Sounder,
        emit: Callable[[Event], None],
        own: OwnTraining | None = None,
        sums: Sums | None = None,
    ) -> None:
        """Take everything; ``emit`` receives events that happen in the middle of a command.

        With ``own`` nothing is trained here: a round returns what the client trained elsewhere. With ``sums`` what it returns is
        only added to the others' updates.
        """
        self._sums = sums
        self._own = own
        self._scenario = scenario
        self._device = device
        self._ports = ports
        self._trainer = trainer
        self._state = state
        self._status = status
        self._clock = clock
        self._seeds = seeds
        self._aside = aside
        self._sounder = sounder
        self._emit = emit
        framer = uplink.Framer.of(scenario, seeds=seeds)
        self._sealer = Sealer(
            scenario=scenario, state=state, status=status, clock=clock, aside=aside, randomness=framer.randomness, sums=sums
        )
        self._sender = Sender(
            scenario=scenario, ports=ports, state=state, status=status, clock=clock, aside=aside, sounder=sounder, framer=framer
        )
        self._supply = Supply(
            scenario=scenario, records=records, ports=ports, state=state, status=status, clock=clock, aside=aside, own=own
        )
        self._clock_kept = FlopPerSecond(device.clock_max_flops)

    async def perform(self, command: Measure | Train | Watch | Retune | Send | Conclude | AskVerdict) -> Event | None:
        """Carry out ``command``. Raises the typed error of whatever went wrong."""
        match command:
            case Measure():
                await self._measure(command.round_id)
                return None
            case Train():
                return await self._train(command.assignment)
            case Watch():
                await self._sounder.watch(command.round_id)
                return None
            case Retune():
                await self._retune(command.assignment)
                return None
            case Send():
                return await self._sender.send(command)
            case Conclude():
                await self._conclude(command.completion)
                return None
            case AskVerdict():
                return await self._ask_verdict(command.round_id)

    async def _measure(self, round_id: int) -> None:
        if self._own is None:
            self._trainer.start()  # torch is imported while the emulator arrives
        material = await self._supply.fresh(round_id)
        self._status.enter("reporting")
        channel = await self._sounder.measure(round_id)
        advertisement = await self._advertisement(material.emulator)
        report = telemetry.device_report(
            self._device,
            round_id=round_id,
            gain_main=channel.gain_main,
            gain_tap=channel.gain_tap,
            sample_count=material.window_count,
            expected_bits=telemetry.sealed_bits(self._payload_bytes(material.emulator)),
            train_flops=telemetry.training_flops(material.emulator.path_size, tokens=self._tokens(material)),
        )
        report = report.on(channel)
        await self._ports.coordinator.report(report, advertisement=advertisement)
        log_event(
            _logger,
            "device_reported",
            round_id=round_id,
            gain_main=report.gain_main,
            gain_tap_bound=report.gain_tap,
            sample_count=report.sample_count,
            update_bits=report.update_bits,
            flops=report.train_flops,
        )
        self._status.enter("waiting for an assignment")

    async def _advertisement(self, emulator: Emulator) -> Advertisement | None:
        """Return the keys for the sum of a round, written down; none where updates are judged one by one."""
        sums, manifest = self._sums, emulator.manifest
        if sums is None:
            return None
        layout = layout_of(grid_for(self._scenario, manifest.adapter))
        return await self._aside(lambda: sums.begin(manifest.round_id, layout))

    def _payload_bytes(self, emulator: Emulator) -> int:
        """Return the most bytes of what is sealed; all of it has as many where updates are only added."""
        manifest = emulator.manifest
        if self._sums is None:
            return budget_bytes(manifest.adapter, config=self._scenario.codec)
        return upload_bytes(self._sums.terms(manifest.round_id, layout_of(grid_for(self._scenario, manifest.adapter))))

    def _tokens(self, material: Material) -> int:
        """Return how many tokens one round's training passes through the emulator."""
        return material.window_count * self._scenario.data.window_tokens * self._scenario.training.epochs

    async def _train(self, assignment: Assignment) -> UpdateSealed:
        round_id = assignment.round_id
        # After a restart the report was made in an earlier life, and nothing is at hand yet.
        material = await self._supply.at_hand(round_id)
        await self._hear_verdicts(before=round_id)
        emulator = material.emulator
        await self._require_consent(assignment, emulator)
        files = self._state.files(round_id)
        assignment = self._newest(assignment)
        self._clock_kept = assignment.clock
        if self._own is None:
            wall, energy = await self._train_here(material, files, assignment)
        else:
            await self._bring(self._own, emulator, files, round_id)
            wall, energy = Second(0.0), Joule(0.0)  # of this round; nobody here knows what the training took
        if self._sums is not None:
            await self._sums.delivered(round_id)
        # From here on the assignment is fixed: what is sealed has to be sent as it was sealed.
        assignment = await self._sounder.settled(self._newest(assignment))
        await self._require_consent(assignment, emulator)
        sealed, residual = await self._sealer.seal(material, files, assignment=assignment)
        await self._state.keep_sealed(round_id, sealed.data, secret=sealed.secret, links=sealed.links, residual=residual)
        return UpdateSealed(
            round_id=round_id, bytes_raw=sealed.bytes_raw, train_seconds=wall, energy=energy, assignment=assignment
        )

    async def _bring(self, own: OwnTraining, emulator: Emulator, files: RoundFiles, round_id: int) -> None:
        """Put what the client trained elsewhere where a training would have left it."""
        self._status.enter("importing the client's own training")
        self._emit(TrainingStarted(round_id=round_id))
        imported = await self._aside(lambda: write_result(own, bundle=emulator.path, result=files.adapter, round_id=round_id))
        log_event(_logger, "adapter_imported", round_id=round_id, **imported.facts)

    async def _train_here(self, material: Material, files: RoundFiles, assignment: Assignment) -> tuple[Second, Joule]:
        """Train in the child process; return how long it took and what it cost."""
        emulator, round_id = material.emulator, assignment.round_id
        telemetry.require_affordable(self._device, emulator.path_size, clock=assignment.clock, tokens=self._tokens(material))
        self._status.enter("warming up the trainer")
        order = Order(
            round_id=round_id,
            bundle=emulator.path,
            windows=files.windows,
            result=files.adapter,
            config=self._scenario.training,
            compute=self._scenario.compute,
            clock_share=self._clock_share(assignment),
            seeds=self._seeds.child(f"round-{round_id}", self._device.id, "training"),
            deadline=assignment.deadline,
            rounds=self._scenario.coordinator.rounds,
        )
        meter = telemetry.WorkMeter(self._device, emulator.path_size)

        def on_step(step: StepReport) -> None:
            meter.reached(step.tokens, clock=self._clock_kept)
            self._status.advance(1)

        trained = await self._trainer.train(order, started=lambda: self._on_started(round_id), report=on_step)
        # Now: whoever waits for another assignment has been through with training, at this clock.
        _log_trained(trained, round_id=round_id, meter=meter, clock_share=self._clock_kept / self._device.clock_max_flops)
        return trained.wall, meter.energy

    async def _require_consent(self, assignment: Assignment, emulator: Emulator) -> None:
        """Refuse what cannot be sent, or is not protected or sized as the scenario says; what comes later in a round as well."""
        uplink.require_sendable(assignment)
        if self._sums is None:
            require_granted(assignment, schema=emulator.manifest.adapter, codec=self._scenario.codec)
        else:
            require_sum_granted(assignment, size=self._payload_bytes(emulator))
        await self._require_protected(assignment)

    async def _require_protected(self, assignment: Assignment) -> None:
        device = self._sounder.device(assignment)
        await self._aside(lambda: require_protected(assignment, scenario=self._scenario, device=device))

    def _newest(self, assignment: Assignment) -> Assignment:
        """Return what is assigned now, which may be newer than the ``assignment`` that the work began with."""
        state = self._state.current
        if isinstance(state, Assigned | Training) and state.round_id == assignment.round_id:
            return state.assignment
        return assignment

    def _clock_share(self, assignment: Assignment) -> float:
        return min(1.0, assignment.clock / self._device.clock_max_flops)

    async def _retune(self, assignment: Assignment) -> None:
        self._sounder.assigned_anew()
        try:
            await self._trainer.retune(self._clock_share(assignment))
        except TrainerFailed:
            return  # whoever waits for the training hears of it
        self._clock_kept = assignment.clock
        log_event(_logger, "clock_changed", round_id=assignment.round_id, clock_flops=assignment.clock)

    def _on_started(self, round_id: int) -> None:
        self._status.enter("training")
        self._emit(TrainingStarted(round_id=round_id))

    async def _hear_verdicts(self, *, before: int) -> None:
        """Learn what became of updates of which that is not known: what the next one has to make up for depends on it."""
        for round_id in self._state.unanswered(before=before):
            await self._state.keep_verdict(await self._ports.owner.verdict(self._state.terms.run, round_id))

    async def _conclude(self, completion: Completion) -> None:
        # Nothing of this round will be sent again.
        self._state.forget_private(completion.key.round_id)
        await self._ports.coordinator.complete(completion)
        log_event(
            _logger,
            "round_completed",
            round_id=completion.key.round_id,
            uploaded=completion.uploaded,
            reason=completion.reason,
            bytes_raw=completion.bytes_raw,
            bytes_uploaded=completion.bytes_uploaded,
            airtime_s=completion.airtime,
            train_s=completion.train_seconds,
            energy_j=completion.energy,
            energy_kind=telemetry.ENERGY_LABEL,
        )
        self._status.enter("waiting for the round to close")

    async def _ask_verdict(self, round_id: int) -> VerdictReached:
        self._status.enter("waiting for the verdict")
        verdict = await self._ports.owner.verdict(self._state.terms.run, round_id)
        await self._state.keep_verdict(verdict)
        log_event(
            _logger,
            "verdict_received",
            round_id=round_id,
            accepted=verdict.accepted,
            kept=verdict.kept,
            reason=verdict.reason,
            score=verdict.score,
        )
        return VerdictReached(round_id=round_id)


def _log_trained(trained: Trained, *, round_id: int, meter: telemetry.WorkMeter, clock_share: float) -> None:
    log_event(
        _logger,
        "training_finished",
        round_id=round_id,
        steps=trained.steps,
        tokens=trained.tokens,
        loss_first=round(trained.loss_first, 4),
        loss_last=round(trained.loss_last, 4),
        train_s=round(trained.wall, 3),
        train_modelled_s=meter.seconds,
        cpu_s=round(trained.cpu, 3),
        energy_j=meter.energy,
        energy_kind=telemetry.ENERGY_LABEL,
        flops=meter.flops,
        clock_share=clock_share,
        governor=trained.governor,
    )
