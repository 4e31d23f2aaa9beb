"""The agent of AMC: an actor and a critic (DDPG) by Stable-Baselines3, which this file needs."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.noise import ActionNoise

from htas.graph.arch import Arch
from htas.strategies._walk import FEATURES, Walk

QUIETEST = 0.05
"""Noise of the last episode, as a fraction of the first one's; it falls exponentially."""
HIDDEN, BATCH, REPLAY, FOLLOW = 300, 64, 2000, 0.01
"""Of the paper: units of the two hidden layers, transitions of a step, transitions that are remembered, and the speed
at which the target networks follow."""
Array = NDArray[np.float32]


def learn(
    walk: Walk, accuracy: Callable[[Arch], float], *, episodes: int, explore: int, noise: float, lr: float, seed: int
) -> None:
    """Let an agent learn by episodes, in each of which it walks to an arch and is rewarded by its accuracy.

    The first `explore` episodes take actions at random. `noise` is the standard deviation of the noise on actions,
    which lie in 0..1, in the episodes that follow.
    """
    course = _Noise(noise, explore, episodes, seed)
    agent = DDPG(
        "MlpPolicy", _Episodes(walk, accuracy, course), learning_rate=lr, buffer_size=REPLAY, batch_size=BATCH,
        learning_starts=explore * len(walk.sites), tau=FOLLOW, gamma=1.0, train_freq=(1, "episode"), gradient_steps=-1,
        action_noise=course, policy_kwargs={"net_arch": [HIDDEN, HIDDEN]}, seed=seed, device="cpu",
    )  # fmt: skip
    agent.learn(episodes * len(walk.sites), StopTrainingOnMaxEpisodes(episodes))


class _Noise(ActionNoise):  # type: ignore[misc]
    """Noise on the actions of an episode, which the agent scales to -1..1."""

    def __init__(self, first: float, explore: int, episodes: int, seed: int) -> None:
        super().__init__()
        self.first, self.explore, self.length = first, explore, max(1, episodes - explore)
        self.episode = 0
        self.rng = np.random.default_rng(seed)

    @property
    def sigma(self) -> float:
        """Standard deviation for actions in 0..1."""
        return self.first * float(QUIETEST ** (max(0, self.episode - self.explore) / self.length))

    def __call__(self) -> Array:
        return self.rng.normal(0.0, 2 * self.sigma, 1).astype(np.float32)


class _Episodes(gymnasium.Env):  # type: ignore[misc]
    """A step is a site, its action the share that is kept; the reward, which the last step has, is minus the error."""

    def __init__(self, walk: Walk, accuracy: Callable[[Arch], float], noise: _Noise) -> None:
        self.walk, self.accuracy, self.noise = walk, accuracy, noise
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (FEATURES,), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, Any]:
        """Begin at the first site."""
        super().reset(seed=seed)
        self.walk.begin()
        return self._state, {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, Any]:
        """Keep a share of a site."""
        self.walk.take(float(action[0]))
        if not self.walk.done:
            return self._state, 0.0, False, False, {}
        self.noise.episode += 1
        return self._state, self.accuracy(self.walk.arch) - 1.0, True, False, {}

    @property
    def _state(self) -> Array:
        return np.clip(np.array(self.walk.state, np.float32), 0.0, 1.0)
