"""How every SageMaker List operation filters, sorts and pages: the same members mean the same in all of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from windlass.local.faults import Fault

DEFAULT_PAGE = 100


def select(
    summaries: Iterable[dict[str, Any]], params: Mapping[str, Any], *, name: str, status: str | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """One page of summaries, and the NextToken of the one after it.

    Args:
        summaries: what the operation lists, with CreationTime and, where the operation filters by it, LastModifiedTime.
        params: the request: NameContains, StatusEquals, CreationTimeAfter, SortBy, SortOrder, MaxResults, NextToken, ...
        name: the member that SortBy=Name and NameContains mean, for example ``TrainingJobName``.
        status: the member that SortBy=Status and StatusEquals mean.
    """
    kept = [item for item in summaries if _matches(item, params, name, status)]
    asked = params.get("SortBy", "")
    column = {"Name": name, "Status": status, "CreationTime": None}.get(asked, asked)

    def position(item: Mapping[str, Any]) -> list[Any]:
        return [_plain(item[column or "CreationTime"]), _plain(item["CreationTime"]), str(item.get(name, ""))]

    descending = params.get("SortOrder") == "Descending"
    kept.sort(key=position, reverse=descending)
    if token := params.get("NextToken"):
        last = _position_of(token)
        kept = [item for item in kept if (position(item) < last if descending else position(item) > last)]
    size = int(params.get("MaxResults") or DEFAULT_PAGE)
    page, more = kept[:size], len(kept) > size
    return page, (_token_for(position(page[-1])) if more else None)


def _matches(item: Mapping[str, Any], params: Mapping[str, Any], name: str, status: str | None) -> bool:
    if (part := params.get("NameContains")) and part.lower() not in str(item.get(name, "")).lower():
        return False
    if status and (wanted := params.get("StatusEquals")) and item.get(status) != wanted:
        return False
    for member in ("CreationTime", "LastModifiedTime"):
        after, before = params.get(f"{member}After"), params.get(f"{member}Before")
        if after is not None and not _plain(item[member]) > _plain(after):
            return False
        if before is not None and not _plain(item[member]) < _plain(before):
            return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return value


def _token_for(position: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


def _position_of(token: str) -> list[Any]:
    try:
        position = json.loads(base64.urlsafe_b64decode(token))
    except ValueError:
        position = None
    if not isinstance(position, list):
        raise Fault("ValidationException", "The token in NextToken is invalid.")
    return position
