"""What the texts of settings may be: checks that name the form that is wanted. What may hold a
password is never shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import AfterValidator


def is_place(netloc: str) -> bool:
    """Whether this is `host` or `host:port`. Never raises: its errors would show secrets."""
    try:
        parts = urlsplit(f"//{netloc}")
        return bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", netloc)
    except ValueError:
        return False


def netloc_of(text: str) -> tuple[str, str]:
    """Scheme and `host[:port][,…]` of a URL, without user and password; empty if it is none."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return "", ""
    return parts.scheme, parts.netloc.rpartition("@")[2]


def url_with(*schemes: str) -> AfterValidator:
    """A URL with one of these schemes, without a slash at its end."""

    def check(text: str) -> str:
        scheme, place = netloc_of(text)
        if scheme not in schemes or not is_place(place):
            raise ValueError(f"is no URL of the form {schemes[0]}://host[:port]")
        return text.rstrip("/")

    return AfterValidator(check)


def redis_seeds(text: str) -> str:
    """One Redis server, or the seed list of a cluster."""
    scheme, places = netloc_of(text)
    if scheme not in ("redis", "rediss") or not all(map(is_place, places.split(","))):
        raise ValueError("is no redis://host:port[/db] and no list redis://host:port,host:port")
    return text


_DATABASES: Final = {
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "sqlite": "sqlite",
    "mssql+pyodbc": "mssql+pyodbc",
}
"""Schemes that we take, and SQLAlchemy's names of dialect and driver for them."""


def database_url(text: str) -> str:
    """A database that we know, with the driver's name."""
    scheme, _, rest = text.partition("://")
    name = _DATABASES.get(scheme)
    is_file = scheme == "sqlite"
    # SQLite's place is a path: `sqlite:///relative` or `sqlite:////absolute`.
    if name is None or (not rest.startswith("/") if is_file else not is_place(netloc_of(text)[1])):
        raise ValueError(
            "is no postgresql://user:password@host:port/name, sqlite:///path or mssql+pyodbc://…"
        )
    if is_file and len(rest) < 2:
        raise ValueError("names no file: a record in memory would be gone with the process")
    return f"{name}://{rest}"


def web_origins(text: str) -> str:
    """Origins of pages, with commas between them."""
    for origin in filter(None, map(str.strip, text.split(","))):
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query:
            raise ValueError(f"{origin[:80]!r} is no origin of the form https://host[:port]")
    return text


def has_pem(place: str) -> bool:
    """Whether a certificate or key can be read there; librdkafka also takes a folder of them, and
    the word `probe` for the system's own."""
    path = Path(place)
    if place == "probe" or path.is_dir():
        return True
    try:
        return b"-----BEGIN " in path.read_bytes()
    except OSError:
        return False
