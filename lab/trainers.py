"""The process that the trainers of a simulated fleet are forked from: `python -m lab.trainers DESCRIPTOR`.

Data and training library are read once and shared by all trainers, which live as long as their connection. A trainer
does what a device's trainer does with the same job (edge_agent.worker), and gets the data from here instead of the
source. lab.pool is the other end.

stdin        the fleet, as JSON: device -> its DataSettings
stdout       one line, once the data is there: {"classes", "counts": device -> training examples of each class}; or
             what went wrong: {"code", "text"} of a TalariaError
DESCRIPTOR   of a listening Unix socket. Every connection gets a trainer of its own, which says its process id, and
             then answers every Job, a line of JSON, with the CPU seconds that it took and the Outcome
"""

import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from functools import partial

import torch
from pydantic import TypeAdapter

from edge_agent.data import DeviceData
from edge_agent.fork_server import limit_memory
from edge_agent.job import Job
from edge_agent.worker import attempt
from lab.data import class_counts, fleet_data
from shared.children import die_with
from shared.config_data import DataSettings
from shared.errors import TalariaError

FLEET = TypeAdapter(dict[str, DataSettings])


def serve(listener: socket.socket, data: Mapping[str, DeviceData]) -> None:
    """Fork a trainer for every connection, for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a trainer ended: its connection ends with it
    server = os.getpid()
    gc.collect()
    gc.freeze()  # what the trainers share stays shared: a collection would touch all of it
    while True:
        connection, _ = listener.accept()
        with connection:
            if os.fork() == 0:
                try:
                    die_with(server)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a job may ask how its own child ended
                    listener.close()
                    train(connection, data)
                finally:
                    os._exit(0)


def train(connection: socket.socket, data: Mapping[str, DeviceData]) -> None:
    """Do one job after the other, until the connection ends."""
    with connection.makefile("r") as jobs, connection.makefile("w") as answers:
        print(os.getpid(), file=answers, flush=True)
        for line in jobs:
            job = Job.model_validate_json(line)
            limit_memory(job.profile.training.memory_mib)
            before = time.process_time()
            outcome = attempt(job, partial(_of_device, data[job.device]))
            print(time.process_time() - before, outcome.model_dump_json(), file=answers, flush=True)


def _of_device(data: DeviceData, settings: DataSettings) -> DeviceData:
    """In place of edge_agent.data.load."""
    return data


def main(listener: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the simulation, which ends us
    torch.set_num_threads(1)
    try:
        data = dict(fleet_data(FLEET.validate_json(sys.stdin.read())))
    except TalariaError as error:
        print(json.dumps({"code": error.code, "text": str(error)}))
        return
    counts = {device: class_counts(each) for device, each in data.items()}
    print(json.dumps({"classes": next(iter(data.values())).classes, "counts": counts}), flush=True)
    os.dup2(2, 1)  # what somebody's model or data prints is no answer
    serve(listener, data)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
