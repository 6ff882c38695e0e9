"""One device of the round benchmark: the agent as it is, whose work is to send back what it got, scaled. No torch.

python -m benchmarks.echo_agent URL DEVICE STATE_DIR
"""

import asyncio
import signal
import sys
from pathlib import Path

from edge_agent.agent import Agent
from edge_agent.health import Reading
from edge_agent.job import UPDATE, Job, Outcome
from edge_agent.run_command import KEPT_BYTES
from shared.codec import open_payload, write_payload
from shared.config import AgentConfig
from shared.config_base import BrokerSettings
from shared.link import Link, Will
from shared.memory import keep_freed_memory
from shared.mqtt import MqttLink
from shared.tensors import Subnet

FLEET = "bench"
SCALE = 0.5
EXAMPLES = 10


async def echo(job: Job) -> Outcome:
    """A Work: the shared tensors times SCALE. There is nothing to personalize."""
    if job.task.action == "personalize":
        return Outcome(code="nothing_to_do")
    await asyncio.to_thread(_write_back, job)
    return Outcome(examples=EXAMPLES)


def _write_back(job: Job) -> None:
    with open_payload(job.payload, limit=job.task.payload.size) as payload, (job.out / UPDATE).open("wb") as file:
        tensors = {
            name: array * array.dtype.type(SCALE) if array.dtype.kind == "f" else array
            for name, array in payload.subnet.tensors.items()
        }
        write_payload(
            file, Subnet(tensors), run=job.task.run, round=job.task.round, examples=EXAMPLES, weight=float(EXAMPLES)
        )


async def serve(url: str, device: str, state_dir: Path) -> None:
    config = AgentConfig(device=device, fleet=FLEET, state_dir=state_dir, broker=BrokerSettings(url=url))

    def open_link(client_id: str, will: Will | None) -> Link:
        return MqttLink(config.broker, client_id, will)

    agent = Agent(config, open_link, echo, look=Reading)  # other people's load is no reason to refuse
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, agent.stop)
    await agent.run()


if __name__ == "__main__":
    keep_freed_memory(KEPT_BYTES)
    asyncio.run(serve(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
