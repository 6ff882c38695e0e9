"""What is fuzzed: each target takes any bytes, and raises only where a promise of ours is broken.

Decoders get the bytes as they are. State machines read them as a script of events (`Script`), so that a fuzzer which
flips bytes reorders, repeats and forges what a broker, a device or a coordinator might say. Nothing here needs the
fuzzer itself: the ordinary tests replay what it found.
"""

from collections.abc import Callable

from device import session
from fleet_traffic import coordinator
from wire import DECODERS, chunks, infer, messages, payloads, seals, template

__all__ = ["DECODERS", "TARGETS"]

TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (messages, payloads, template, infer, seals, chunks, session, coordinator)
}
