"""One connection to a broker, from CONNECT to its end. Only it and shared.mqtt_client know paho.

A new paho client per connection, so that paho never carries state over: what is not acknowledged is the link's to
remember. Everything but the blocking connect runs on the event loop's thread, and paho's callbacks only hand over:
paho swallows what they raise.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Literal
from urllib.parse import urlsplit

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from shared.config_base import BrokerSettings
from shared.credentials import password, tls_context, unwelcome
from shared.errors import LinkError
from shared.link import Will
from shared.mqtt_answers import NO_ANSWER, Ended, Greeting, Owner, Refused
from shared.mqtt_client import LeanClient, connect_properties

Version = Literal[4, 5]
"""Protocol level: 4 is MQTT 3.1.1."""

CONNECT_S = 10.0
GOODBYE_S = 2.0
REFUSAL = 0x80
"""The first of MQTT 5's reason codes that is one."""
PACKETS_PER_TURN = 16
"""Packets read before other tasks of the loop get their turn."""


class Connection:
    """Use once: `open`, then publish and subscribe until `ended` is done."""

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        will: Will | None,
        version: Version,
        owner: "Owner[Connection]",
        lasting: bool,
    ) -> None:
        """`lasting`: whether the broker keeps the session, and what comes for it, beyond the connection."""
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._owner = owner
        self._version = version
        self._lasting = lasting
        self._handled = 0
        self._flush_planned = False
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._said = ""
        self.ended: asyncio.Future[Ended] = self._loop.create_future()
        self._client = client = LeanClient(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if version == 5 else not lasting,
            protocol=paho.MQTTv5 if version == 5 else paho.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.suppress_exceptions = True
        client.connect_timeout = CONNECT_S
        if settings.username is not None:
            client.username_pw_set(settings.username, password(settings))
        if (context := tls_context(settings)) is not None:
            client.tls_set_context(context)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=True)
        client.on_log = self._on_log
        client.on_connect = self._on_connect
        client.deliver = self._deliver
        client.acknowledge = self._acknowledge
        client.on_subscribe = self._on_answer
        client.on_unsubscribe = self._on_answer

    async def open(self, patience_s: float = CONNECT_S) -> None:
        """Connect and be greeted within `patience_s`. OSError (ssl.SSLError is one) when nobody is there, Refused when
        the broker does not want us, LinkError when no attempt can succeed."""
        attempt = self._loop.run_in_executor(None, self._connect)
        try:
            await asyncio.shield(attempt)
        except asyncio.CancelledError:
            attempt.add_done_callback(self._too_late)
            raise
        except ssl.SSLError as error:
            # Up to TLS 1.2 our certificate is judged here, from 1.3 on when we were not greeted.
            if alert := unwelcome(self._settings, str(error)):
                raise LinkError(alert) from error
            raise
        sock = self._client.socket()
        if sock is None:
            raise self._refusal("at once")
        assert isinstance(sock, socket.socket)
        # Without it a page's few small packets wait for each other's TCP acknowledgements, 40 ms each.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client.on_disconnect = self._on_disconnect
        self._client.on_socket_close = self._on_socket_close
        self._client.on_socket_register_write = self._on_register_write
        self._client.on_socket_unregister_write = self._on_unregister_write
        self._loop.add_reader(sock, self._readable, sock)
        self._flush()
        try:
            async with asyncio.timeout(patience_s):
                await self._greeted
        except TimeoutError:
            self.abort("never greeted")
            raise Refused(NO_ANSWER, f"no answer to CONNECT within {patience_s:g} s") from None
        except BaseException:
            self.abort("never greeted")
            raise

    def _connect(self) -> None:
        """Blocking; runs in a thread. TCP, TLS and the CONNECT packet."""
        url = urlsplit(self._settings.url)
        assert url.hostname is not None
        self._client.connect(
            url.hostname,
            url.port or (8883 if url.scheme == "mqtts" else 1883),
            self._settings.keepalive_s,
            clean_start=not self._lasting if self._version == 5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            properties=connect_properties(lasting=self._lasting) if self._version == 5 else None,
        )

    # --- what the link asks for: each returns the packet's number ----------------------------------------------------

    def publish(self, topic: str, payload: bytes, retain: bool) -> int:
        return self._client.send(topic, payload, retain)

    def subscribe(self, filters: list[str]) -> int:
        if self._version == 5:
            options = SubscribeOptions(qos=1)
            return self._client.subscribe([(f, options) for f in filters])[1] or 0
        return self._client.subscribe([(f, 1) for f in filters])[1] or 0

    def unsubscribe(self, filters: list[str]) -> int:
        return self._client.unsubscribe(filters)[1] or 0

    def ack(self, number: int) -> None:
        if number and not self.ended.done():
            self._client.ack(number, 1)

    def tick(self) -> None:
        """Send a ping when it is time, hang up when the last had no answer; call it a few times per keepalive."""
        self._client.loop_misc()

    def abort(self, reason: str) -> None:
        """Hang up without a goodbye: the broker publishes the will."""
        self._hang_up()
        self._end(Ended(reason))

    async def goodbye(self) -> None:
        """DISCONNECT, which discards the will, and wait until it is written, a bounded time."""
        if not self.ended.done():
            self._client.disconnect()
        try:
            async with asyncio.timeout(GOODBYE_S):
                await asyncio.shield(self.ended)
        except TimeoutError:
            self.abort("no goodbye within its time")

    # --- the socket --------------------------------------------------------------------------------------------------

    def _readable(self, sock: socket.socket) -> None:
        """Read packets until there is none, or until it is the others' turn. paho reads one per call."""
        for _ in range(PACKETS_PER_TURN):
            before = self._handled
            if not self._survives(self._client.loop_read):
                return
            if self._handled == before:
                break
        if isinstance(sock, ssl.SSLSocket) and sock.pending():  # decrypted already: select does not see it
            self._loop.call_soon(self._readable, sock)

    def _flush(self) -> None:
        """Write what paho has queued; what the socket does not take now waits for the loop to call again."""
        self._flush_planned = False
        if self._survives(self._client.loop_write) and self._client.want_write():
            self._loop.add_writer(self._client.socket(), self._flush)  # type: ignore[arg-type]

    def _survives(self, step: Callable[[], int]) -> bool:
        """Take one of paho's steps. What a hostile broker sends may raise anything in its parser."""
        if self.ended.done():
            return False
        try:
            step()
        except Exception as error:
            self.abort(f"the broker sent what cannot be read: {error!r}")
        return not self.ended.done()

    def _hang_up(self) -> None:
        """Close the socket behind paho's back: its own way out is a DISCONNECT."""
        client = self._client
        client.on_socket_close = client.on_socket_register_write = client.on_socket_unregister_write = None
        client.on_disconnect = None
        sock = client.socket()
        if sock is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()

    def _too_late(self, attempt: asyncio.Future[None]) -> None:
        if attempt.exception() is None:
            self._hang_up()

    def _end(self, ended: Ended) -> None:
        if not self._greeted.done():
            self._greeted.set_exception(self._refusal(ended.reason))
            self._greeted.exception()  # nobody may be waiting any more
        if not self.ended.done():
            self.ended.set_result(ended)

    def _refusal(self, reason: str) -> LinkError | Refused:
        """Why we were not greeted: what TLS had against us, else the reason."""
        alert = unwelcome(self._settings, self._said)
        return LinkError(alert) if alert else Refused(NO_ANSWER, f"it hung up: {self._said or reason}")

    # --- paho's callbacks --------------------------------------------------------------------------------------------

    def _on_register_write(self, client: paho.Client, data: object, sock: "paho.SocketLike") -> None:
        if not self._flush_planned:  # once per turn of the loop, not per packet
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _on_unregister_write(self, client: paho.Client, data: object, sock: "paho.SocketLike") -> None:
        self._loop.remove_writer(sock.fileno())

    def _on_socket_close(self, client: paho.Client, data: object, sock: "paho.SocketLike") -> None:
        self._loop.remove_reader(sock.fileno())
        self._loop.remove_writer(sock.fileno())

    def _on_log(self, client: paho.Client, data: object, level: int, text: str) -> None:
        """Until CONNACK: the only place where paho tells what TLS had against us."""
        if level == paho.MQTT_LOG_ERR:
            self._said = text

    def _on_connect(
        self,
        client: paho.Client,
        data: object,
        flags: paho.ConnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._handled += 1
        client.on_log = None
        if self._greeted.done():
            return
        stated = vars(properties) if properties is not None else {}
        if code.is_failure:
            self._greeted.set_exception(Refused(code.value, str(code)))
        elif stated.get("RetainAvailable", 1) == 0 or stated.get("MaximumQoS", 1) == 0:
            self._greeted.set_exception(
                LinkError(f"{self._settings.url} offers no retained messages or no QoS 1: the protocol needs both")
            )
        else:
            self._greeted.set_result(None)
            limits = stated.get("MaximumPacketSize"), stated.get("ReceiveMaximum", 65_535)
            self._owner.on_greeting(self, Greeting(flags.session_present, *limits))

    def _on_disconnect(
        self, client: paho.Client, data: object, flags: paho.DisconnectFlags, code: ReasonCode, properties: object
    ) -> None:
        told = flags.is_disconnect_packet_from_server
        reason = f"the broker hung up: {code}" if told else f"the connection was lost ({code})"
        self._end(Ended(reason, code.value if told else NO_ANSWER))

    def _deliver(self, topic: bytes, payload: bytes, retained: bool, number: int) -> None:
        self._handled += 1
        try:
            text = topic.decode()
        except UnicodeDecodeError:
            self.ack(number)
        else:
            self._owner.on_message(self, text, payload, retained, number)

    def _acknowledge(self, number: int, code: int) -> None:
        self._handled += 1
        error = None
        if code >= REFUSAL:
            error = LinkError(
                f"the broker refuses a publish: {ReasonCode(PacketTypes.PUBACK, identifier=code)} (0x{code:02x})"
            )
        self._owner.on_acknowledged(number, error)

    def _on_answer(
        self, client: paho.Client, data: object, number: int, codes: list[ReasonCode], properties: Properties | None
    ) -> None:
        self._handled += 1
        self._owner.on_answered(number, [str(code) if code.is_failure else None for code in codes])
