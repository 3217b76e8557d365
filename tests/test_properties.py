"""Any sequence of steps, resets, saves and restores: both worlds do what one row should by hand."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeSuccess, fake_pool, imagined
from tests.worlds import WORLDS, assert_same, ladder
from wm_gym.contract import WorldVectorEnv
from wm_gym.noise import row_choice

POOL = 5  # starts s = 0..4, whose pictures have the level 100 + s


@dataclass(frozen=True)
class Rules:
    """How a world is made; a push of 1, 0 or -1 moves the level by `gain`, `goal` is a success."""

    num_envs: int
    chunk: int
    horizon: int
    autoreset_mode: str
    ignore_terminations: bool
    output: str
    gain: int
    goal: int

    def make(self) -> WorldVectorEnv:
        """Build the real world of ladders (gain 1) or the imagined one of fakes (gain 10)."""
        names = ("chunk", "horizon", "autoreset_mode", "ignore_terminations", "output")
        options = {name: getattr(self, name) for name in names} | {"starts": fake_pool(POOL)}
        if self.gain == 1:
            return ladder(self.num_envs, **options)
        success = FakeSuccess(threshold=(self.goal - 0.5) / 255)
        return imagined(self.num_envs, success=success, **options)

    def actions(self, pushes: list[list[int]]) -> np.ndarray:
        """Turn pushes (n, K) into actions."""
        actions = np.zeros((self.num_envs, self.chunk, 7), np.float32)
        actions[..., 0] = np.array(pushes) * (1 if self.gain == 1 else 10 / 12.75)
        return actions


RULES = st.builds(
    lambda world, **rules: Rules(**rules, gain=world[0], goal=world[1]),
    world=st.sampled_from([(1, 103), (10, 115)]),
    num_envs=st.integers(1, 3),
    chunk=st.integers(1, 8),
    horizon=st.integers(1, 9),
    autoreset_mode=st.sampled_from(["NextStep", "SameStep", "Disabled"]),
    ignore_terminations=st.booleans(),
    output=st.sampled_from(["numpy", "torch"]),
)


@dataclass
class Row:
    """One row by the book."""

    rules: Rules
    seed: int = 0
    episode: int = -1
    start: int = 0
    level: int = 0
    elapsed: int = 0
    success: bool = False
    over: bool = False
    paid: int = 0  # rewards of the episode

    def reset(self, seed: int | None = None, start: int | None = None) -> None:
        """Begin the next episode."""
        if seed is not None:
            self.seed, self.episode = seed, -1
        self.episode += 1
        if start is None:
            start = int(row_choice(np.array([self.seed]), np.array([self.episode]), POOL)[0])
        self.start, self.level = start, 100 + start
        self.elapsed, self.success, self.over, self.paid = 0, False, False, 0

    def step(self, pushes: list[int]) -> dict[str, Any]:
        """Play a chunk; return what the world says about it."""
        said = dict(reward=0, terminated=False, truncated=False, active=not self.over, played=0)
        if self.over:
            if self.rules.autoreset_mode == "NextStep":
                self.reset()
            return said | self.look()
        for push in pushes[: self.rules.horizon - self.elapsed]:
            self.level += push * self.rules.gain
            self.elapsed += 1
            said["played"] += 1
            if self.level >= self.rules.goal:
                said["reward"] += not self.success
                self.success = True
                if not self.rules.ignore_terminations:
                    break
        self.paid += said["reward"]
        said["terminated"] = bool(said["reward"]) and not self.rules.ignore_terminations
        said["truncated"] = self.elapsed == self.rules.horizon and not said["terminated"]
        self.over = said["terminated"] or said["truncated"]
        if self.over and self.rules.autoreset_mode == "SameStep":
            self.reset()
            said["played"] = 0
        return said | self.look()

    def look(self) -> dict[str, Any]:
        """Return what the world shows of the row."""
        names = ("success", "start")
        shown = {name: getattr(self, name) for name in names}
        return shown | {"elapsed_steps": self.elapsed, "level": self.level}


def seen(obs: dict, info: dict, reward: Any, terminated: Any, truncated: Any) -> list[dict]:
    """Turn what the world returned into one dictionary a row, as `Row.step` gives them."""
    names = ("active", "played", "success", "start", "elapsed_steps")
    columns = {name: info[name] for name in names} | {"level": obs["image"][:, 0, 0, 0]}
    columns |= {"reward": reward, "terminated": terminated, "truncated": truncated}
    lists = [column.tolist() for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


class Session:
    """A world, its rows by the book, and the states that were saved with what they stood for."""

    def __init__(self, rules: Rules, draw: Any) -> None:
        self.rules, self.draw = rules, draw
        self.env = rules.make()
        self.rows = [Row(rules) for _ in range(rules.num_envs)]
        self.saved: list[tuple[Any, list[Row]]] = []
        self.reset(everyone=True)

    def some_rows(self) -> list[int]:
        """Draw distinct rows, in any order."""
        n = self.rules.num_envs
        return self.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))

    def step(self) -> None:
        """Play any pushes."""
        k = self.rules.chunk
        row = st.lists(st.integers(-1, 1), min_size=k, max_size=k)
        pushes = [self.draw(row) for _ in self.rows]
        obs, *came, info = self.env.step(self.rules.actions(pushes))
        expected = [row.step(push) for row, push in zip(self.rows, pushes, strict=True)]
        assert seen(obs, info, *came) == expected

    def reset(self, everyone: bool = False) -> None:
        """Begin anew in any rows, with or without seeds and starts."""
        n = self.rules.num_envs
        rows = list(range(n)) if everyone else self.some_rows()
        mask = np.isin(np.arange(n), rows)
        some = st.integers(0, 9) if everyone else st.none() | st.integers(0, 9)
        seeds = self.draw(st.lists(some, min_size=n, max_size=n))
        starts = self.draw(st.none() | st.lists(st.integers(0, POOL - 1), min_size=n, max_size=n))
        options = {"reset_mask": mask, "start": starts}
        obs, info = self.env.reset(seed=seeds, options=options)
        for row in rows:
            self.rows[row].reset(seeds[row], None if starts is None else starts[row])
        self.compare(obs, info)

    def save(self) -> None:
        """Keep the state of any rows."""
        rows = self.some_rows()
        self.saved.append((self.env.get_state(rows), copy.deepcopy([self.rows[r] for r in rows])))

    def restore(self) -> None:
        """Put any saved state into any rows."""
        if not self.saved:
            return
        state, meant = self.draw(st.sampled_from(self.saved))
        rows = self.draw(st.permutations(range(self.rules.num_envs)))[: len(meant)]
        obs, info = self.env.set_state(state, rows)
        for row, book in zip(rows, copy.deepcopy(meant), strict=True):
            self.rows[row] = book
        self.compare(obs, info)

    def fork(self) -> None:
        """Put one row in the place of all."""
        row = self.draw(st.integers(0, self.rules.num_envs - 1))
        obs, info = self.env.set_state(self.env.fork(row, self.rules.num_envs))
        self.rows = [copy.deepcopy(self.rows[row]) for _ in self.rows]
        self.compare(obs, info)

    def break_a_rule(self) -> None:
        """Make a call that must raise and change nothing."""
        n, k = self.rules.num_envs, self.rules.chunk
        call = self.draw(st.sampled_from(sorted(BAD_CALLS)))
        before = self.env.get_state()
        with pytest.raises(ValueError):
            BAD_CALLS[call](self.env, n, k)
        assert_same(self.env.get_state(), before)

    def compare(self, obs: dict, info: dict) -> None:
        """Check what a reset or a restore returned."""
        none = np.zeros(self.rules.num_envs)
        still = dict(reward=0, terminated=False, truncated=False, played=0)
        expected = [still | {"active": not row.over} | row.look() for row in self.rows]
        assert seen(obs, info, none, none > 0, none > 0) == expected

    def check(self) -> None:
        """Check what must hold at any time, and the clock behind it."""
        state = self.env.get_state()
        for name in ("episode", "elapsed", "start", "success", "over"):
            assert getattr(state, name).tolist() == [getattr(row, name) for row in self.rows]
        assert state.seeds.tolist() == [row.seed for row in self.rows]
        assert (state.elapsed <= self.rules.horizon).all()
        assert all(row.paid == row.success for row in self.rows)  # once an episode at most
        ended = state.elapsed == self.rules.horizon
        if not self.rules.ignore_terminations:
            ended = ended | state.success
        assert (state.over == ended).all()
        assert not (self.rules.autoreset_mode == "SameStep" and state.over.any())


BAD_CALLS = {
    "another shape": lambda env, n, k: env.step(np.zeros((n, k, 6))),
    "one action more": lambda env, n, k: env.step(np.zeros((n, k + 1, 7))),
    "no numbers": lambda env, n, k: env.step(np.full((n, k, 7), np.nan)),
    "an empty mask": lambda env, n, k: env.reset(seed=3, options={"reset_mask": np.zeros(n, bool)}),
    "a long mask": lambda env, n, k: env.reset(
        seed=3, options={"reset_mask": np.ones(n + 1, bool)}
    ),
    "no such start": lambda env, n, k: env.reset(seed=3, options={"start": [POOL] * n}),
    "a start too many": lambda env, n, k: env.reset(seed=3, options={"start": [0] * (n + 1)}),
    "an unknown option": lambda env, n, k: env.reset(seed=3, options={"begin": 1}),
    "small pictures": lambda env, n, k: env.reset(
        seed=3, options={"frames": np.zeros((n, 1, 4, 4, 3), np.uint8)}
    ),
    "a seed too many": lambda env, n, k: env.reset(seed=[3] * (n + 1)),
    "a negative seed": lambda env, n, k: env.reset(seed=-1),
    "a state of fewer rows": lambda env, n, k: env.set_state(env.fork(0, n + 1)),
    "a row twice": lambda env, n, k: env.set_state(env.fork(0, 2), [0, 0]),
    "no such row": lambda env, n, k: env.get_state([n]),
    "another world's state": lambda env, n, k: env.set_state(elsewhere(env, n)),
}


def elsewhere(env: WorldVectorEnv, n: int) -> Any:
    """Save a state of a world with a longer horizon."""
    other = ladder(n, horizon=99, chunk=env.chunk)
    other.reset(seed=0)
    return other.get_state()


MOVES = [
    *[Session.step] * 4,
    Session.reset,
    Session.save,
    Session.restore,
    Session.fork,
    Session.break_a_rule,
]


@settings(max_examples=80, deadline=None)
@given(rules=RULES, data=st.data())
def test_both_worlds_go_by_the_book_whatever_is_done_to_them(rules, data):
    session = Session(rules, data.draw)
    session.check()
    for move in data.draw(st.lists(st.sampled_from(MOVES), max_size=12)):
        move(session)
        session.check()


@pytest.mark.parametrize("call", BAD_CALLS)
@pytest.mark.parametrize("world", WORLDS)
def test_an_invalid_call_raises_and_changes_nothing(world, call):
    env = WORLDS[world](2, chunk=3, horizon=4, autoreset_mode="Disabled")
    env.reset(seed=5)
    env.step(np.zeros((2, 3, 7)))
    before = env.get_state()
    with pytest.raises(ValueError):
        BAD_CALLS[call](env, 2, 3)
    assert_same(env.get_state(), before)
