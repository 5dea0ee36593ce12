"""The forms single values must have. None of these messages repeats what may be a secret."""

from __future__ import annotations

import ipaddress
import json
import re
import string
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

if TYPE_CHECKING:
    from pydantic import ValidationInfo

EMBEDDED = "embedded"

_DSN = re.compile(r"postgres(ql)?://", re.IGNORECASE)
_USERINFO = re.compile(r"(://[^:@/\s]*):[^\s]*@")
_PASSWORD = re.compile(r"(password=)[^&\s]*", re.IGNORECASE)


def mask_dsn(url: str) -> str:
    """*url* as it may be shown: without its passwords."""
    return _PASSWORD.sub(r"\1***", _USERINFO.sub(r"\1:***@", url))


def quoted(value: object, longest: int = 60) -> str:
    """*value* as it stands in a configuration, cut at *longest* characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= longest else f'{text[:longest]}…"'


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach *host*."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _database_url(url: str) -> str:
    if url != EMBEDDED and not _DSN.match(url):
        raise ValueError('expected "embedded" or an address that begins with postgresql://')
    return url


def _direct_url(url: str) -> str:
    if not _DSN.match(url):
        raise ValueError("expected an address that begins with postgresql://")
    return url


def _web_url(url: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or password")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{quoted(url)}: expected an address such as https://sms.example.com, without ? and #")
    return url.rstrip("/")


def _sid(prefix: str, value: str) -> str:
    # Not shown: the likeliest mistake is a token pasted into the wrong line.
    if not re.fullmatch(prefix + "[0-9a-fA-F]{32}", value):
        raise ValueError(f"expected {prefix} and 32 hexadecimal digits")
    return value


def _region(value: str) -> str:
    if not re.fullmatch("[A-Z]{2}", value):
        raise ValueError(f'{quoted(value)}: expected two capital letters (ISO 3166), such as "US"')
    return value


def _template(text: str) -> str:
    try:
        slots = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"its braces do not pair ({error}); write {{{{ and }}}} for the signs themselves") from None
    for _, slot, layout, conversion in slots:
        if slot is not None and (not slot.isidentifier() or layout or conversion):
            raise ValueError(f"{quoted(slot)} is no slot: expected a plain name such as {{code}}")
    return text


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder = info.context.get("folder") if isinstance(info.context, dict) else None
    return Path(folder) / path if folder is not None else path


def _account_sid(value: str) -> str:
    return _sid("AC", value)


def _api_key_sid(value: str) -> str:
    return _sid("SK", value)


DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
DirectUrl = Annotated[str, AfterValidator(_direct_url)]
WebUrl = Annotated[str, AfterValidator(_web_url)]
AccountSid = Annotated[str, AfterValidator(_account_sid)]
ApiKeySid = Annotated[str, AfterValidator(_api_key_sid)]
Region = Annotated[str, AfterValidator(_region)]
Template = Annotated[str, AfterValidator(_template)]
# Relative ones begin at the configuration's folder.
LocalPath = Annotated[Path, Field(strict=False), AfterValidator(_beside_the_file)]
