"""What is kept in the owner's model? Adapter blocks to which neither the owner's prompts nor the public text object."""

from collections.abc import Sequence
from dataclasses import replace

from hushtune_common.adapter import AdapterState
from hushtune_server.owner.gatekeeper.canary import Canaries, Loss
from hushtune_server.owner.gatekeeper.finding import Finding, told
from hushtune_server.owner.plugin import Plugin, Trial


class WatchedSeat:
    """The seat for adapter blocks, under the owner's prompts.

    Laws: those of `Plugin`; what a prompt objects to is never kept, whatever the public text says.
    """

    def __init__(self, plugin: Plugin, *, canaries: Canaries, loss: Loss) -> None:
        """Take the seat, and the ``loss`` of the model as it is when asked."""
        self._plugin = plugin
        self._canaries = canaries
        self._loss = loss

    def findings(self, state: AdapterState) -> Sequence[Finding]:
        """Return what the owner's prompts say about the model with ``state`` in it; then it is as it was."""
        return self._plugin.ask(state, lambda: self._canaries.findings(loss=self._loss))

    def keep(self, state: AdapterState) -> Trial:
        """Evaluate ``state`` and leave it in the seat unless a prompt, or the decision on public text, is against it."""
        findings = self.findings(state)
        return self.refused(state, findings) if findings else self._plugin.keep(state)

    def refused(self, state: AdapterState, findings: Sequence[Finding]) -> Trial:
        """Return what public text says about ``state``, which is not kept because of ``findings``."""
        return replace(self._plugin.try_in(state), kept=False, reason=told(findings))
