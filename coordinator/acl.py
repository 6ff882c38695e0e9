"""Who may do what at the broker, as Mosquitto's ACL file. Pure text, from the topics of shared.topics.

A user is the common name of a certificate: the device's name, `coordinator`, or a name and a role, `kitchen.client`,
which no device can be called. Devices are covered by patterns with `%u`, so a new one needs no new file. Never `%c`:
a client chooses its own id, and with `%c` it can be whoever it wants to be.
"""

from collections.abc import Iterable
from enum import StrEnum

from shared.topics import Topics, check_name

COORDINATOR = "coordinator"


class Role(StrEnum):
    """What a certificate is for, beside those of broker and coordinator.

    DEVICE    a `talaria-agent run`
    LISTENER  a `talaria-agent infer --listen` of the device of that name, which may run beside its agent
    CLIENT    asks devices for inference, and reads all answers
    OBSERVER  reads everything, writes nothing
    """

    DEVICE = "device"
    LISTENER = "listener"
    CLIENT = "client"
    OBSERVER = "observer"

    def user(self, name: str) -> str:
        """The common name of the one of this name; ConfigError if it could not be one level of a topic."""
        check_name(self, name)
        return name if self is Role.DEVICE else f"{name}.{self}"


def acl(fleet: str, users: Iterable[tuple[Role, str]], barred: Iterable[str]) -> str:
    """The file. users: role and name of everybody enrolled; barred: common names that may do nothing any more.

    A broker reads it again on SIGHUP and obeys it for clients that are connected, too: so it also cuts off those whose
    certificate was revoked after they had connected.
    """
    topics = Topics(fleet)
    lines = [f"# Who may do what in fleet {fleet}, made by `talaria-coordinator enrol`. SIGHUP has it read again."]
    for user in sorted(barred):
        lines += ["", f"user {user}", "topic deny #"]
    lines += _section(
        COORDINATOR,
        read=[topics.all_presence, topics.all_vitals, topics.all_up],
        write=[topics.coordinator, topics.task("+"), topics.down("+"), topics.all_blobs],
    )
    for role, name in sorted(users):
        match role:
            case Role.LISTENER:
                lines += _section(role.user(name), read=[topics.infer(name)], write=[topics.inferred(name)])
            case Role.CLIENT:
                lines += _section(role.user(name), read=[topics.inferred("+")], write=[topics.infer("+")])
            case Role.OBSERVER:
                lines += _section(role.user(name), read=[topics.everything], write=[])
    lines += ["", "# every certificate of this authority; %u is its common name"]
    read = [topics.coordinator, topics.task("%u"), topics.down("%u"), topics.all_blobs, topics.infer("%u")]
    up = topics.all_up.removesuffix("+") + "%u"
    write = [topics.presence("%u"), topics.vitals("%u"), up, topics.inferred("%u")]
    lines += [f"pattern read {each}" for each in read] + [f"pattern write {each}" for each in write]
    return "\n".join(lines) + "\n"


def _section(user: str, *, read: list[str], write: list[str]) -> list[str]:
    return ["", f"user {user}", *(f"topic read {each}" for each in read), *(f"topic write {each}" for each in write)]
