"""What Mosquitto is told, by the embedded broker and by `talaria-coordinator enrol`: one place for each fact."""

from pathlib import Path

LIMITS = """\
autosave_interval 30
max_queued_messages 20000
max_queued_bytes 268435456
max_inflight_messages 32
max_packet_size 1310720
persistent_client_expiration 14d
set_tcp_nodelay true
"""
"""max_queued_messages is never 0: 2.0.x misreads it. max_inflight_messages is two pages of chunks."""

EMBEDDED = (
    """\
listener {port} {host}
allow_anonymous true
persistence true
persistence_location {directory}/
"""
    + LIMITS
    + """\
log_dest stdout
log_type error
log_type warning
"""
)

SECURED = (
    """\
# Mosquitto 2 for fleet {fleet}, made by `talaria-coordinator enrol`, which writes it anew: all that Mosquitto needs.
# SIGHUP makes it read crl.pem, acl and its certificate again; nobody is disconnected by that.
listener {port}
cafile {folder}/ca.pem
certfile {folder}/broker.pem
keyfile {folder}/broker.key
crlfile {folder}/crl.pem
tls_version tlsv1.2

# Who has no certificate of this authority does not get in; its common name is user and client id, whatever it says.
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {folder}/acl

persistence true
persistence_location {folder}/data/
"""
    + LIMITS
    + """\
log_dest stderr
log_type error
log_type warning
log_type notice
"""
)


def secured(fleet: str, port: int, folder: Path) -> str:
    """mosquitto.conf of a broker that keeps its files in `folder`; `tls_version` is the least that it takes."""
    return SECURED.format(fleet=fleet, port=port, folder=folder)
