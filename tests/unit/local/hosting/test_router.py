"""Who answers the next request, with fleets that only count."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from windlass.local.hosting.fleet import Fleet
from windlass.local.hosting.router import Router, Share


def fleet(config: str, **weights: float) -> Fleet:
    """A fleet whose instances are always there."""
    return cast(
        Fleet,
        SimpleNamespace(
            config=config,
            production=weights,
            acquire=lambda name, *_: SimpleNamespace(spec=SimpleNamespace(name=name)),
            prepare=lambda instance: None,
            release=lambda instance: None,
        ),
    )


def answers(router: Router, count: int = 1000, **more: Any) -> Counter[tuple[str, str]]:
    seen: Counter[tuple[str, str]] = Counter()
    for _ in range(count):
        with router.route(**more) as (chosen, instance):
            seen[chosen.config, instance.spec.name] += 1
    return seen


def test_shares_and_weights_hold_closely() -> None:
    router = Router()
    router.assign((fleet("old", a=3, b=1), 0.9), (fleet("new", a=3, b=1), 0.1))

    seen = answers(router)

    assert seen["new", "a"] + seen["new", "b"] == pytest.approx(100, abs=3)
    assert seen["old", "b"] + seen["new", "b"] == pytest.approx(250, abs=3)


def test_each_variant_may_have_its_own_share() -> None:
    router = Router()
    old: Share = {"a": 0.5, "b": 0.0}
    new: Share = {"a": 0.5, "b": 1.0}
    router.assign((fleet("old", a=1, b=1), old), (fleet("new", a=1, b=1), new))

    seen = answers(router)

    assert seen["old", "b"] == 0
    assert [seen["old", "a"], seen["new", "a"], seen["new", "b"]] == pytest.approx([250, 250, 500], abs=3)


def test_a_target_variant_overrides_the_weights_and_not_the_shares() -> None:
    router = Router()
    router.assign((fleet("old", a=1, b=0), 0.75), (fleet("new", a=1, b=0), 0.25))

    seen = answers(router, 100, variant="b")

    assert seen == {("old", "b"): 75, ("new", "b"): 25}
    with pytest.raises(LookupError), router.route("c"):
        pass


def test_without_fleets_there_is_nowhere_to_go() -> None:
    router = Router()
    router.assign((fleet("old", a=1), 1.0))
    assert router.serving

    router.assign()

    assert not router.serving
    with pytest.raises(LookupError), router.route():
        pass
