"""Every error that Talaria raises on purpose, as one tree.

TalariaError                 anything below; `code` is stable and travels in messages
├── ConfigError              a setting is unknown, of the wrong type or impossible       (exit 2)
├── WireError                what came off the wire is not what the protocol allows
│   ├── MalformedMessage     not a message of this protocol version
│   │   ├── Unsigned         a coordinator's message without a signature, where only signed ones count
│   │   ├── Forged           signed by none of the known keys, or for another topic
│   │   └── Replayed         older than what was believed before
│   ├── MalformedPayload     header, size, dtype, shape, name or finiteness is wrong
│   └── DigestMismatch       the bytes are not those that were announced
├── RefusedUpdate            well-formed, but not acceptable in this round
├── LinkError                the broker cannot be used                                   (exit 3)
│   ├── LinkClosed           the link was closed while something waited on it
│   └── PacketTooLarge       one packet exceeds what the broker takes
├── BrokerError              the embedded broker cannot be started                       (exit 3)
├── ModelError               a model cannot be built, or its channels cannot be resolved
├── DataError                a device's data cannot be read
├── TrainingError            local work failed on the device
│   ├── OutOfTime            the round's deadline came before the work was done
│   └── OutOfMemory          the trainer exceeded its memory budget
├── StateError               what is on disk cannot be used
└── ExportError              an exported model was refused: the previous one stays in service
"""


class TalariaError(Exception):
    """Base of all. `code` names the reason to machines, str(error) to people: the value and the remedy."""

    code = "error"
    exit_code = 1


class ConfigError(TalariaError):
    code = "config"
    exit_code = 2


class WireError(TalariaError):
    code = "wire"


class MalformedMessage(WireError):
    code = "malformed_message"


class Unsigned(MalformedMessage):
    code = "unsigned"


class Forged(MalformedMessage):
    code = "forged"


class Replayed(MalformedMessage):
    code = "replayed"


class MalformedPayload(WireError):
    code = "malformed_payload"


class DigestMismatch(WireError):
    code = "digest_mismatch"


class RefusedUpdate(TalariaError):
    """An update that is not taken. `code` says why: stale, not_in_cohort, wrong_shape, not_finite, ..."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class LinkError(TalariaError):
    code = "link"
    exit_code = 3


class LinkClosed(LinkError):
    code = "link_closed"


class PacketTooLarge(LinkError):
    code = "packet_too_large"


class BrokerError(TalariaError):
    code = "broker"
    exit_code = 3


class ModelError(TalariaError):
    code = "model"


class DataError(TalariaError):
    code = "data"


class TrainingError(TalariaError):
    code = "training"


class OutOfTime(TrainingError):
    code = "out_of_time"


class OutOfMemory(TrainingError):
    code = "out_of_memory"


class StateError(TalariaError):
    code = "state"


class ExportError(TalariaError):
    code = "export"
