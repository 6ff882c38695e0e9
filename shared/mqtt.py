"""A Link over MQTT: version 5 where the broker has it, 3.1.1 where not, with the same promises on both.

This module remembers what must outlive a connection: subscriptions, publications without an acknowledgement, the
packet limit. shared.mqtt_connection is one connection and its paho client.
"""

import asyncio
import logging
import ssl
from collections import deque
from dataclasses import dataclass

from shared.config_base import BrokerSettings
from shared.credentials import PASSING, untrusted
from shared.errors import ConfigError, LinkClosed, LinkError
from shared.link import DEFAULT_MAX_PACKET, Connected, Disconnected, LinkEvent, Received, Will
from shared.mqtt_answers import FATAL, NO_ANSWER, PACKET_TOO_LARGE, TAKEN_OVER, UNSUPPORTED_VERSION, Greeting, Refused
from shared.mqtt_connection import CONNECT_S, Connection, Version
from shared.mqtt_outbox import Outbox, Publication, too_large
from shared.mqtt_patience import Patience

IN_FLIGHT = 20
"""Publications on their way at most; fewer where the broker says so."""
SMALLEST_PACKET = 2048
"""The poison guard lowers the limit no further."""
UNKNOWN_VERSION_S = 3.0
"""How long MQTT 5 is tried on a broker that may not know it."""
FILTERS_PER_PACKET = 8
"""Of one SUBSCRIBE: AWS IoT Core takes no more."""
EVENTS_PER_TURN = 4
"""Events received in a row before the rest of the loop gets its turn."""
UNREAD = 1024
"""Events that may wait before QoS 0 messages are dropped: nothing else bounds those."""

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Request:
    """A SUBSCRIBE or UNSUBSCRIBE, repeated on each connection until it is answered."""

    subscribe: bool
    filters: list[str]
    done: asyncio.Future[None]


class MqttLink:
    """One client of one broker; shared.link.Link says what the methods promise.

    A received message is acknowledged when the next event is asked for: what a crash interrupts is delivered again,
    and a slow reader slows the broker down instead of filling our memory.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        will: Will | None = None,
        *,
        versions: tuple[Version, ...] = (5, 4),
        lasting: bool = True,
    ) -> None:
        """versions: protocol levels, the preferred first; lasting: the broker keeps our session while we are away."""
        self._lasting = lasting
        self._settings = settings
        self._client_id = client_id
        self._will = will
        self._versions = deque(versions)
        self._agreed = False
        self._largest = DEFAULT_MAX_PACKET
        self._max_packet = DEFAULT_MAX_PACKET
        self._outbox = Outbox()
        self._filters: dict[str, None] = {}
        self._requests: list[_Request] = []
        self._asked: dict[int, _Request] = {}
        self._events: deque[tuple[LinkEvent, Connection | None, int]] = deque()
        self._arrived = asyncio.Event()
        self._turn = 0
        self._in_hand: tuple[Connection, int] | None = None
        self._online: tuple[Connection, Greeting] | None = None
        self._over: LinkError | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def max_packet(self) -> int:
        return self._max_packet

    async def open(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"mqtt {self._client_id}")

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._check_open()
        publication = Publication(topic, payload, retain, asyncio.get_running_loop().create_future())
        if publication.packet > self._max_packet:
            raise too_large(publication, self._max_packet)
        self._outbox.add(publication)
        self._send_due()
        await publication.done

    async def subscribe(self, *filters: str) -> None:
        self._check_open()
        self._filters |= dict.fromkeys(filters)
        await self._request(True, filters)

    async def unsubscribe(self, *filters: str) -> None:
        self._check_open()
        for each in filters:
            self._filters.pop(each, None)
        await self._request(False, filters)

    async def receive(self) -> LinkEvent:
        if self._in_hand is not None:
            connection, number = self._in_hand
            self._in_hand = None
            connection.ack(number)
        self._turn = (self._turn + 1) % EVENTS_PER_TURN
        if self._turn == 0:
            await asyncio.sleep(0)  # acknowledgements and publications must get out between full queues
        while not self._events:
            self._check_open()
            self._arrived.clear()
            await self._arrived.wait()
        event, source, number = self._events.popleft()
        if source is not None:
            self._in_hand = source, number
        return event

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._online is not None:
            await self._online[0].goodbye()
            self._online = None
        self._events.clear()
        self._finish(LinkClosed(f"the link of client {self._client_id!r} was closed"))

    def _check_open(self) -> None:
        if self._over is not None:
            raise self._over

    def _finish(self, error: LinkError) -> None:
        """Whatever waits, and whoever comes later, gets this error."""
        self._over = error
        self._outbox.fail_all(error)
        for request in self._requests:
            if not request.done.done():
                request.done.set_exception(error)
        self._requests.clear()
        self._arrived.set()

    # --- one connection after the other ------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._keep_connected()
        except (LinkError, ConfigError) as error:
            self._finish(LinkError(str(error)))
        except Exception as error:
            log.exception("the link of client %r broke", self._client_id)
            self._finish(LinkError(f"the link of client {self._client_id!r} broke: {error!r}"))

    async def _keep_connected(self) -> None:
        """Connect for ever; LinkError when it is pointless."""
        patience, clock, told = Patience(), asyncio.get_running_loop().time, False
        while True:
            started = clock()
            reason = await self._connect_once()
            ended = self._online[0].ended.result() if self._online is not None else None
            lasted = None if ended is None else clock() - started
            delay = patience.delay(lasted, taken_over=ended is not None and ended.code == TAKEN_OVER)
            reason += patience.suspicion
            if ended is not None:
                self._lost(reason)
            elif not told:
                self._tell(Disconnected(reason))
            told = True
            log.log(logging.WARNING if patience.suspicion else logging.INFO, "client %r: %s", self._client_id, reason)
            await asyncio.sleep(delay)

    async def _connect_once(self) -> str:
        """Why there is no connection, or no longer."""
        url = self._settings.url
        connection = Connection(self._settings, self._client_id, self._will, self._versions[0], self, self._lasting)
        try:
            await connection.open(CONNECT_S if self._agreed or self._versions[0] == 4 else UNKNOWN_VERSION_S)
            return await self._watch(connection)
        except Refused as refusal:
            if refusal.code in FATAL:
                raise LinkError(
                    f"{url} refuses client {self._client_id!r} as user {self._settings.username!r}: {refusal} "
                    f"(0x{refusal.code:02x}); check broker.username, broker.password_file and broker.cert_file"
                ) from refusal
            # Some brokers answer a version that they do not know by hanging up or by silence; so does one in trouble.
            if refusal.code == UNSUPPORTED_VERSION or (refusal.code == NO_ANSWER and not self._agreed):
                self._versions.rotate(-1)
            return f"{url} refused the connection: {refusal}"
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in PASSING:
                return untrusted(self._settings, error)
            raise LinkError(untrusted(self._settings, error)) from error
        except OSError as error:
            return f"{url} cannot be reached: {str(error) or type(error).__name__}"

    async def _watch(self, connection: Connection) -> str:
        """Keep a greeted connection alive; why it ended."""
        keepalive = self._settings.keepalive_s
        while not (await asyncio.wait({connection.ended}, timeout=keepalive / 4))[0]:
            connection.tick()
            oldest = self._outbox.oldest
            if oldest is not None and asyncio.get_running_loop().time() - oldest.sent_at > 2 * keepalive:
                connection.abort(f"no acknowledgement within {2 * keepalive} s")
        return connection.ended.result().reason

    def on_greeting(self, connection: Connection, greeting: Greeting) -> None:
        self._online = connection, greeting
        self._agreed = True
        self._max_packet = min(self._largest, greeting.max_packet or self._largest)
        self._tell(Connected(greeting.session_present, self._max_packet))
        if not greeting.session_present:
            asked = {each for request in self._requests if request.subscribe for each in request.filters}
            self._new_requests(True, [each for each in self._filters if each not in asked])
        for request in self._requests:
            self._ask(request)
        self._send_due()

    def _lost(self, reason: str) -> None:
        assert self._online is not None
        connection, greeting = self._online
        self._online = None
        self._asked.clear()
        victim = self._outbox.lost(too_big=connection.ended.result().code == PACKET_TOO_LARGE)
        if victim is not None:
            if greeting.max_packet is None:
                self._largest = max(SMALLEST_PACKET, min(self._largest, victim.packet) // 2)
                self._max_packet = min(self._max_packet, self._largest)
            victim.fail(too_large(victim, self._max_packet))
        self._tell(Disconnected(reason))

    # --- subscriptions -----------------------------------------------------------------------------------------------

    def _new_requests(self, subscribe: bool, filters: list[str]) -> list[asyncio.Future[None]]:
        loop = asyncio.get_running_loop()
        new = [
            _Request(subscribe, filters[start : start + FILTERS_PER_PACKET], loop.create_future())
            for start in range(0, len(filters), FILTERS_PER_PACKET)
        ]
        self._requests += new
        return [request.done for request in new]

    async def _request(self, subscribe: bool, filters: tuple[str, ...]) -> None:
        before = len(self._requests)
        answers = self._new_requests(subscribe, list(filters))
        for request in self._requests[before:]:
            self._ask(request)
        await asyncio.gather(*answers)

    def _ask(self, request: _Request) -> None:
        if self._online is not None:
            connection, _ = self._online
            ask = connection.subscribe if request.subscribe else connection.unsubscribe
            self._asked[ask(request.filters)] = request

    def on_answered(self, number: int, refused: list[str | None]) -> None:
        request = self._asked.pop(number, None)
        if request is None:
            return
        self._requests.remove(request)
        reasons = [f"{each!r}: {why}" for each, why in zip(request.filters, refused, strict=False) if why is not None]
        if request.done.done():
            return
        if reasons and request.subscribe:
            request.done.set_exception(LinkError(f"the broker refuses subscriptions: {'; '.join(reasons)}"))
        else:
            request.done.set_result(None)

    # --- messages ----------------------------------------------------------------------------------------------------

    def _send_due(self) -> None:
        if self._online is None:
            return
        connection, greeting = self._online
        for publication in self._outbox.due(min(IN_FLIGHT, greeting.receive_maximum), self._max_packet):
            number = connection.publish(publication.topic, publication.payload, publication.retain)
            self._outbox.sent(number, publication, asyncio.get_running_loop().time())

    def on_acknowledged(self, number: int, error: LinkError | None) -> None:
        self._outbox.acknowledged(number, error)
        self._send_due()

    def on_message(self, connection: Connection, topic: str, payload: bytes, retained: bool, number: int) -> None:
        if number:
            self._tell(Received(topic, payload, retained), connection, number)
        elif len(self._events) < UNREAD:
            self._tell(Received(topic, payload, retained))

    def _tell(self, event: LinkEvent, source: Connection | None = None, number: int = 0) -> None:
        self._events.append((event, source, number))
        self._arrived.set()
