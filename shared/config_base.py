"""What all settings are made of, and the way to the broker, which both programs have."""

import ipaddress
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from shared.errors import ConfigError
from shared.profiles import load_profile
from shared.topics import check_name


def _topic_name(name: str) -> str:
    try:
        return check_name("name", name)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _known_profile(name: str) -> str:
    try:
        load_profile(name)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return name


TopicName = Annotated[str, AfterValidator(_topic_name)]
ProfileName = Annotated[str, AfterValidator(_known_profile)]
FilePath = Annotated[Path, AfterValidator(Path.expanduser)]
"""Relative to the working directory, wherever the configuration file lies; `~` is the home directory."""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BrokerSettings(Settings):
    """The way to the broker."""

    url: str = Field(
        "embedded",
        description="`embedded` starts a Mosquitto as a child process; otherwise mqtt://host[:port] or mqtts://host[:port]",
    )
    username: str | None = Field(None, description="user name, where the broker asks for one", examples=["talaria"])
    password_file: FilePath | None = Field(
        None,
        description="file whose first line is the password; never the password itself",
        examples=["/etc/talaria/password"],
    )
    ca_file: FilePath | None = Field(
        None,
        description="PEM file of the authority that signed the broker's certificate",
        examples=["/etc/talaria/ca.pem"],
    )
    cert_file: FilePath | None = Field(
        None, description="PEM file of our own certificate", examples=["/etc/talaria/client.pem"]
    )
    key_file: FilePath | None = Field(
        None, description="PEM file of our own private key", examples=["/etc/talaria/client.key"]
    )
    plaintext: bool = Field(
        False,
        description="allow mqtt:// to another machine: whoever is on the way reads, and can change, everything",
    )
    keepalive_s: int = Field(60, ge=5, le=3600, description="seconds of silence after which the connection is probed")

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if url == "embedded":
            return url
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ValueError(f"{url!r} is neither 'embedded' nor mqtt://host[:port] nor mqtts://host[:port]")
        if parts.username or parts.password:
            raise ValueError("user and password do not belong into the URL; use username and password_file")
        return url

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together: give both or neither")
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file needs username")
        if not self.url.startswith("mqtts:") and (self.ca_file or self.cert_file):
            raise ValueError("certificates need an mqtts:// url")
        if self.url.startswith("mqtt:") and not self.plaintext and not loopback(served_host(self.url)):
            raise ValueError(
                f"{self.url!r} leaves this machine in the clear: use mqtts:// (`talaria-coordinator enrol` makes what "
                "it needs), or set broker.plaintext = true where you trust everybody on the way"
            )
        return self


def served_host(url: str) -> str:
    """The host of a broker's url; empty where it has none."""
    return urlsplit(url).hostname or ""


def loopback(host: str) -> bool:
    """Whether a connection to this host cannot leave the machine; by its name alone, nothing is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
