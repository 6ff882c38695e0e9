"""What is fuzzed: each target takes any bytes, and raises only where a promise of ours is broken.

Decoders get the bytes as they are. State machines read them as a script of events (`script.events`), so that a fuzzer
which changes events reorders, repeats and forges what a broker, a device or a coordinator might say. Nothing here needs
the fuzzer itself: the ordinary tests replay what it found.
"""

from collections.abc import Callable

from believed import chunks, seals
from device import session
from fleet_traffic import buffered, coordinator
from wire import DECODERS, infer, messages, payloads, template

__all__ = ["DECODERS", "SCRIPTED", "TARGETS"]

DECODING = (messages, payloads, template, infer)
SCRIPTED: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (seals, chunks, session, coordinator, buffered)
}
TARGETS: dict[str, Callable[[bytes], None]] = {target.__name__: target for target in DECODING} | SCRIPTED
