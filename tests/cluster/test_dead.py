"""When a backend counts as dead: each case lists what an observer sees, second by
second."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from obox.cluster import Beat, DeadWatch, Observation

DEAD_AFTER = 15.0
END = 80


@dataclass
class Scene:
    """What an observer "me" at site "x" sees in the seconds 0 to END, and which
    backends it finds dead.

    beats: the second until which the beat of each other backend advances;
    reads: the seconds at which the directory answers;
    own: the second until which the observer's own beat arrived;
    answers: the backends that answer when they are greeted;
    sites: the sites of the other backends, "x" if it is not given.
    """

    beats: dict[str, int]
    reads: Iterable[int] = range(END)
    own: Callable[[int], int | None] = lambda second: second
    answers: frozenset[str] = frozenset()
    sites: dict[str, str] = field(default_factory=dict)
    gone: Callable[[int], set[str]] = lambda second: set()
    back: dict[str, int] = field(default_factory=dict)

    def play(self) -> dict[str, int]:
        """Return for each backend that is found dead the second at which that
        happens."""
        watch = DeadWatch("me", "x", DEAD_AFTER)
        found: dict[str, int] = {}
        for second in self.reads:
            beats = {name: Beat(min(second, last), "boot1") for name, last in self.beats.items()}
            beats |= {name: Beat(second, "boot2") for name, since in self.back.items() if second >= since}
            watched = {name: self.sites.get(name, "x") for name in self.beats}
            suspect = watch.observe(Observation(float(second), beats, self.own(second), watched, self.gone(second)))
            if suspect:
                watch.greeted(suspect, suspect in self.answers, float(second))
            for name in watch.dead:
                found.setdefault(name, second)
        self.left = set(watch.dead)
        return found


TABLE = {
    "nobody is silent": (Scene({"a": END, "b": END}), {}),
    "one stops, and is dead after 15 s": (Scene({"a": 10, "b": END}), {"a": 25}),
    "one never had a beat": (Scene({"a": -1}), {"a": 15}),
    "it greets": (Scene({"a": 10}, answers=frozenset("a")), {}),
    "we do not judge ourselves": (Scene({"me": 10}), {}),
    "another site": (Scene({"a": 10}, sites={"a": "y"}), {}),
    "a site that is not known": (Scene({"a": 10}, sites={"a": ""}), {}),
    "the directory takes no writes": (Scene({"a": 10, "b": 10}, own=lambda second: min(second, 10)), {}),
    "our last write arrives a little later than theirs": (Scene({"a": 10}, own=lambda second: min(second, 14)), {}),
    "our writes stop in the middle": (Scene({"a": 10}, own=lambda second: min(second, 17)), {}),
    "our beat is not there": (Scene({"a": 10}, own=lambda second: None), {}),
    "our writes begin again": (Scene({"a": 10}, own=lambda second: 5 if second < 40 else second), {"a": 44}),
    "the directory is away, and comes back": (Scene({"a": 10}, reads=[*range(15), *range(50, END)]), {"a": 65}),
    "it is away for a short time": (Scene({"a": 10}, reads=[*range(15), *range(20, END)]), {"a": 25}),
    "it stopped while the directory was away": (Scene({"a": 20}, reads=[*range(15), *range(30, END)]), {"a": 45}),
    "few reads": (Scene({"a": 10}, reads=range(0, END, 8)), {}),
    "reads that are just enough": (Scene({"a": 10}, reads=range(0, END, 5)), {"a": 35}),
    "two at once: one in an interval": (Scene({"a": 10, "b": 10}), {"a": 25, "b": 40}),
    "three at once": (Scene({"a": 10, "b": 10, "c": 10}), {"a": 25, "b": 40, "c": 55}),
    "a process that is gone is dead at once": (Scene({"a": 10}, gone=lambda s: {"a"} if s >= 11 else set()), {"a": 11}),
    "gone ones are not taken one by one": (
        Scene({"a": 10, "b": 10}, gone=lambda second: {"a", "b"} if second >= 11 else set()),
        {"a": 11, "b": 11},
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table(name: str) -> None:
    scene, expected = TABLE[name]
    assert scene.play() == expected


def test_who_comes_back_is_no_longer_dead() -> None:
    scene = Scene({"a": 10}, back={"a": 40})
    assert scene.play() == {"a": 25}
    assert scene.left == set()
    still = Scene({"a": 10})
    still.play()
    assert still.left == {"a"}


def test_the_dead_are_remembered_when_they_own_nothing_more() -> None:
    watch = DeadWatch("me", "x", DEAD_AFTER)
    for second in range(20):
        if watch.observe(Observation(second, {"a": Beat(1)}, second, {"a": "x"})):
            watch.greeted("a", False, second)
    assert watch.dead == {"a"}
    watch.observe(Observation(20, {"a": Beat(1)}, 20, {}))
    assert watch.dead == {"a"}
    watch.observe(Observation(21, {"a": Beat(2)}, 21, {}))
    assert not watch.dead


def test_who_greets_is_asked_again_only_after_another_silence() -> None:
    watch = DeadWatch("me", "x", DEAD_AFTER)
    asked = []
    for second in range(60):
        if watch.observe(Observation(second, {"a": Beat(1)}, second, {"a": "x"})):
            asked.append(second)
            assert not watch.greeted("a", True, second)
    assert asked == [15, 31, 47]


def test_a_greeting_that_comes_after_the_beat_changed_says_nothing() -> None:
    watch = DeadWatch("me", "x", DEAD_AFTER)
    for second in range(16):
        suspect = watch.observe(Observation(second, {"a": Beat(1)}, second, {"a": "x"}))
    assert suspect == "a"
    watch.observe(Observation(16, {"a": Beat(2)}, 16, {"a": "x"}))
    assert not watch.greeted("a", False, 16.5), "it beats again"
    assert not watch.dead


def test_it_depends_on_nothing_but_what_was_observed() -> None:
    chance = random.Random(5)
    seen = [
        Observation(
            float(second),
            {name: Beat(second // chance.randint(1, 3)) for name in "abc"},
            second if chance.random() < 0.8 else None,
            dict.fromkeys("abc", "x"),
        )
        for second in range(500)
    ]
    one, other = (DeadWatch("me", "x", DEAD_AFTER) for _ in range(2))
    assert [one.observe(each) for each in seen] == [other.observe(each) for each in seen]


def dead_watch(beats: dict[str, Beat]) -> tuple[DeadWatch, float]:
    """Return a watch that has found "a" dead, and the second at which it found that."""
    watch, second = DeadWatch("me", "x", DEAD_AFTER), 0
    while "a" not in watch.dead:
        if watch.observe(Observation(float(second), beats, second, {"a": "x"})):
            watch.greeted("a", False, float(second))
        second += 1
    return watch, float(second)


@pytest.mark.parametrize("pause", [1.0, DEAD_AFTER], ids=["at once", "after a time without reads"])
def test_a_backend_that_has_started_again_is_not_dead(pause: float) -> None:
    """Otherwise an observer that was suspended would fence the new boot, although that
    boot serves its users."""
    watch, now = dead_watch({"a": Beat(5, "boot1")})
    watch.observe(Observation(now + pause, {"a": Beat(1, "boot2")}, 100, {"a": "x"}))
    assert watch.dead == set()


def test_a_time_without_reads_makes_no_dead_backend_live() -> None:
    beats = {"a": Beat(5, "boot1")}
    watch, now = dead_watch(beats)
    watch.observe(Observation(now + DEAD_AFTER, beats, 100, {"a": "x"}))
    assert watch.dead == {"a"}
    assert watch.boots(beats) == {"a": "boot1"}


def test_a_boot_that_has_begun_since_is_not_named() -> None:
    """The member may have read the directory again between `observe` and the fence, and
    seen a new boot."""
    watch, _ = dead_watch({"a": Beat(5, "boot1")})
    assert watch.boots({"a": Beat(1, "boot2")}) == {}
    assert watch.boots({"a": Beat(5, "boot1")}) == {"a": "boot1"}
