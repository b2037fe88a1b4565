"""Who may come in: by one-time links that become cookies, or from this machine alone."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from vla_inference.serving.network import is_loopback

VIEWER, OPERATOR = "viewer", "operator"
ROLES = (VIEWER, OPERATOR)
LINK_SECONDS = 3600.0
SESSION_SECONDS = 12 * 3600.0
MOST = 64  # links, and sessions, at once; the oldest are forgotten


@dataclass(frozen=True)
class _Grant:
    digest: bytes
    role: str
    until: float


class Access:
    """Links and sessions, by their hashes: what is given is compared in constant time.

    token: what scripts make links by; empty: no log-in, every page may operate.
    clock: seconds, monotonic.
    """

    def __init__(self, token: str, clock: Callable[[], float]):
        self._token, self._clock = token, clock
        self._links: list[_Grant] = []
        self._sessions: list[_Grant] = []

    @property
    def open(self) -> bool:
        """Whether nobody has to log in."""
        return not self._token

    def is_token(self, given: str) -> bool:
        return bool(self._token) and hmac.compare_digest(_digest(given), _digest(self._token))

    def make_link(self, role: str) -> str:
        """A code that lets one browser in, once, within the hour."""
        return self._grant(self._links, role, LINK_SECONDS)

    def enter(self, code: str) -> str | None:
        """The cookie that a link's code is good for; the link is used up."""
        link = self._find(self._links, code)
        if link is None:
            return None
        self._links.remove(link)
        return self._grant(self._sessions, link.role, SESSION_SECONDS)

    def role_of(self, cookie: str) -> str | None:
        """What the browser with this cookie may be; None: it may not come in."""
        if self.open:
            return OPERATOR
        session = self._find(self._sessions, cookie)
        return session.role if session else None

    def _grant(self, grants: list[_Grant], role: str, seconds: float) -> str:
        secret = secrets.token_urlsafe(32)
        grants.append(_Grant(_digest(secret), role, self._clock() + seconds))
        del grants[:-MOST]
        return secret

    def _find(self, grants: list[_Grant], secret: str) -> _Grant | None:
        grants[:] = [grant for grant in grants if grant.until > self._clock()]
        given, found = _digest(secret), None
        for grant in grants:  # all of them, so that the time taken tells nothing
            if hmac.compare_digest(grant.digest, given):
                found = grant
        return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def is_own_page(origin: str, host: str, scheme: str) -> bool:
    """Whether an Origin header names the page that this server itself sent."""
    return bool(host) and hmac.compare_digest(
        origin.encode("utf-8", "surrogateescape"),
        f"{scheme}://{host}".encode("utf-8", "surrogateescape"),
    )


def is_local_name(host: str) -> bool:
    """Whether a Host header is a name of this machine for itself, and no other site's."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
