"""What proves who we are to a broker, read from the files that the settings name."""

import ssl

from shared.config_base import BrokerSettings
from shared.errors import ConfigError


def tls_context(settings: BrokerSettings) -> ssl.SSLContext | None:
    """None for mqtt://. ConfigError when a certificate cannot be read."""
    if not settings.url.startswith("mqtts:"):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except OSError as error:
        files = ", ".join(str(f) for f in (settings.ca_file, settings.cert_file, settings.key_file) if f)
        raise ConfigError(f"cannot use the certificates {files}: {error}") from error
    return context


def password(settings: BrokerSettings) -> str | None:
    """First line of the password file; ConfigError if it cannot be read."""
    if settings.password_file is None:
        return None
    try:
        with settings.password_file.open(encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read broker.password_file {str(settings.password_file)!r}: {error}") from error
