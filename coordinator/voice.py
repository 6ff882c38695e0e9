"""What is said to devices, as bytes: signed where the run has a key."""

from pathlib import Path

from shared.codec import encode_message
from shared.messages import CoordinatorState, Message
from shared.seal import Signer


class Voice:
    """Encodes every message of one start of the coordinator. Whole chunks need none: a signed digest vouches for them.

    All statements about the coordinator itself share one number. Its last will is made before anything else is said,
    and the broker tells it after everything: no order of numbers would fit that. An earlier start's are still replays.
    """

    def __init__(self, key_file: Path | None) -> None:
        """Without a key it signs nothing. ConfigError if the key cannot be used."""
        self._signer = None if key_file is None else Signer(key_file)
        self._start = None if self._signer is None else self._signer.number()

    def __call__(self, topic: str, message: Message) -> bytes:
        """The message as it goes to this topic. Later ones replace earlier ones: call it in the order of sending."""
        body = encode_message(message)
        if self._signer is None:
            return body
        return self._signer.seal(topic, body, self._start if isinstance(message, CoordinatorState) else None)


PLAIN = Voice(None)
"""Signs nothing."""
