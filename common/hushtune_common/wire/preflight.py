"""Can this process talk to that one? The checks behind ``doctor`` and ``health``."""

from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from hushtune_common.config import TimingConfig
from hushtune_common.messages import Role
from hushtune_common.wire import faults
from hushtune_common.wire.endpoint import connect, ready
from hushtune_common.wire.kit import Kit, require_valid

__all__ = ["health", "require_valid"]


async def health(address: str, *, role: Role, kit: Kit, timing: TimingConfig) -> bool:
    """Return whether the server of ``role`` at ``address`` is serving; ``PeerLost`` when it cannot be reached."""
    channel = connect(address, role=role, kit=kit, timing=timing)
    try:
        await ready(channel, address=address, role=role, timing=timing, kit=kit)
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with faults.translated():
            answer: Any = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timing.connect_s)
        return answer.status == health_pb2.HealthCheckResponse.ServingStatus.SERVING
    finally:
        await channel.close()
