"""What proves who we are to a broker, read from the files that the settings name."""

import ssl
from datetime import UTC, datetime
from urllib.parse import urlsplit

from shared.config_base import BrokerSettings
from shared.errors import ConfigError


def tls_context(settings: BrokerSettings) -> ssl.SSLContext | None:
    """None for mqtt://. The broker has to prove that it is the host of the url, with TLS 1.2 or newer.

    ConfigError when a certificate cannot be read, or the key is not its own.
    """
    if not settings.url.startswith("mqtts:"):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except OSError as error:
        files = ", ".join(str(f) for f in (settings.ca_file, settings.cert_file, settings.key_file) if f)
        raise ConfigError(f"cannot use the certificates {files}: {error}") from error
    return context


NOT_YET_VALID, EXPIRED, WRONG_HOST, WRONG_ADDRESS = 9, 10, 62, 64
PASSING = frozenset({NOT_YET_VALID, EXPIRED})
"""What OpenSSL may have against a broker's certificate that gets better by itself: a clock is set, it is renewed."""


def untrusted(settings: BrokerSettings, error: ssl.SSLCertVerificationError) -> str:
    """Why the broker's certificate is not believed, and what to do about it."""
    if error.verify_code == NOT_YET_VALID:
        reason = f"it is not yet valid: the clock of this machine says {_clock()}; wait until it is set, or set it"
    elif error.verify_code == EXPIRED:
        reason = (
            f"it has expired, as the clock of this machine says {_clock()}; set the clock if that is wrong, else "
            "renew it: talaria-coordinator enrol --renew broker"
        )
    elif error.verify_code in (WRONG_HOST, WRONG_ADDRESS):
        reason = (
            f"it was not made for {urlsplit(settings.url).hostname!r}: use a name in broker.url that it was made for, "
            "or make another with talaria-coordinator enrol --host"
        )
    else:
        authority = settings.ca_file or "what this machine knows"
        reason = f"{authority} does not vouch for it ({error.verify_message}); check broker.ca_file"
    return f"the certificate of {settings.url} cannot be trusted: {reason}"


def unwelcome(settings: BrokerSettings, said: str) -> str | None:
    """What a broker's TLS alert against our certificate means; None where `said` is no such alert.

    An alert may get lost when the broker hangs up right after it: who is told None has to try again, and hears it then.
    """
    bare = settings.cert_file is None
    if "_ALERT_" not in said or not ("CERTIFICATE" in said or "UNKNOWN_CA" in said or bare):
        return None
    if "CERTIFICATE_REVOKED" in said:
        reason = "it was revoked: talaria-coordinator enrol --renew makes another"
    elif "CERTIFICATE_EXPIRED" in said:
        reason = "it has expired: talaria-coordinator enrol --renew makes another"
    elif "CERTIFICATE_REQUIRED" in said or bare:
        reason = "it wants one: set broker.cert_file and broker.key_file"
    elif "UNKNOWN_CA" in said:
        reason = "it was signed by another authority than the broker's"
    else:
        reason = f"its clock, ours ({_clock()}) or what it is for does not fit"
    return f"{settings.url} does not take our certificate (broker.cert_file {settings.cert_file}): {reason} [{said}]"


def _clock() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def password(settings: BrokerSettings) -> str | None:
    """First line of the password file; ConfigError if it cannot be read."""
    if settings.password_file is None:
        return None
    try:
        with settings.password_file.open(encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read broker.password_file {str(settings.password_file)!r}: {error}") from error
