"""When a request to a model is sent again, and when not. Pure: no clock, no randomness of its own.

    retry = Retry(attempts=3)
    retry.allows(error)                   # whether a second time is safe
    retry.pause(1, random.random())       # seconds before it
    budget = Budget(); budget.spend()     # whether there is anything left for it

A prediction may cost money, or write something, so it is asked again only where the model cannot have seen it: the connection
was never made, the service was throttling, or the model server refused it before the model ran (429, 503). Whoever knows that
asking twice does no harm says ``Retry(idempotent=True)``.

A server that says when it will have room (Retry-After, RFC 9110, 10.2.3) is asked again no sooner; if that is past the
deadline or longer than `Retry.longest_asked_seconds`, not at all. SageMaker hands no header of a model server's on, but its
words: Windlass's own ends them with "Retry after 3 s."

Retries make an overload worse, so a budget bounds them: each request earns a tenth of a retry, and an endpoint that fails
altogether meets a tenth more requests, not three times as many ("The Site Reliability Workbook", chapter 22, "Retries").
"""

from __future__ import annotations

import email.utils
import math
import re
import threading
from dataclasses import dataclass
from datetime import UTC

from windlass.errors import InvalidInput, ModelFailed, ServiceError, Throttled, Unreachable


@dataclass(frozen=True)
class Retry:
    """How often, how soon, and after what.

    Attributes:
        attempts: in all, the first one included; 1 never retries.
        first_pause_seconds: the most before the second attempt; it doubles with each.
        longest_pause_seconds: where the doubling ends.
        longest_asked_seconds: a server that asks for more patience than this is not asked again.
        statuses: HTTP statuses, of the model server or of SageMaker, after which it is safe. 500 would be a model that raised.
        idempotent: asking twice does no harm: retry also after a connection that broke while the model may have been at work,
            and after any status from 500.
    """

    attempts: int = 3
    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 2.0
    longest_asked_seconds: float = 20.0
    statuses: frozenset[int] = frozenset({429, 503})
    idempotent: bool = False

    def __post_init__(self) -> None:
        for name in ("attempts", "first_pause_seconds", "longest_pause_seconds", "longest_asked_seconds"):
            value = getattr(self, name)
            if not value >= (1 if name == "attempts" else 0):
                raise InvalidInput(
                    f"{name}={value!r} is too small", where="Reading retry", hint="Retry(attempts=1): none."
                )

    def allows(self, error: Exception) -> bool:
        """Whether the same request may be sent again after this error."""
        if isinstance(error, Throttled):
            return True
        if isinstance(error, Unreachable):
            return self.idempotent or not error.sent
        if not isinstance(error, ServiceError):
            return False
        return error.status in self.statuses or (self.idempotent and error.status >= 500)

    def pause(self, attempt: int, chance: float, asked: float = 0.0) -> float:
        """Seconds to wait after the attempt of this number, from 1; infinite: more than it has patience for.

        Args:
            chance: from 0 to 1. Callers that failed together come back at different times ("full jitter", AWS Architecture
                Blog, 2015), also those that were told the same time.
            asked: seconds that the server asked for, see `asked_seconds`.
        """
        if asked > self.longest_asked_seconds:
            return math.inf
        return asked + chance * min(self.longest_pause_seconds, self.first_pause_seconds * 2.0 ** min(attempt - 1, 60))


NEVER = Retry(attempts=1)

_WORDS = re.compile(r"Retry after (\d{1,9}) s\.\s*\Z", re.ASCII)


def asked_seconds(error: ServiceError, now: float) -> float:
    """How long the server asked to wait, by its header (seconds or a date) or its words; 0 if it did not, or unreadably.

    Args:
        now: seconds since the epoch, which a date is compared with.
    """
    header = error.retry_after.strip()
    if header.isascii() and header.isdigit():
        return float(header)  # of too many digits: infinite
    if header:
        try:
            date = email.utils.parsedate_to_datetime(header)
            # A date without a zone is none of HTTP's, whose dates are all of UTC; it is read as such.
            return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
        except (ValueError, OverflowError):
            return 0.0
    said = _WORDS.search(error.what) if isinstance(error, ModelFailed) and error.status in (429, 503) else None
    return float(said[1]) if said else 0.0


class Budget:
    """What retries may cost, shared by all threads that ask one endpoint.

    Args:
        share: retries that each request earns.
        most: retries that can be saved up, and with which it begins.
    """

    def __init__(self, share: float = 0.1, most: float = 10.0) -> None:
        self._share, self._most = share, most
        self._left = most
        self._lock = threading.Lock()

    def earn(self) -> None:
        """A request was sent for the first time."""
        with self._lock:
            self._left = min(self._most, self._left + self._share)

    def spend(self) -> bool:
        """Take one retry, if there is one."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True
