"""The judged archs of an evolution as trials of an Optuna study, in a journal: a search that was interrupted goes on
from them."""

import time
from collections.abc import Mapping
from pathlib import Path

import optuna
from optuna.distributions import IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState, create_trial

GRACE = 3
"""Seconds after which the lock of a process that was killed is taken from it."""
SECONDS = "seconds"
"""The attribute of a trial that says how long the search waited for it."""


class Journal:
    """A study in a file. Only judged archs are its trials: each takes a write that waits for the disk, and most archs
    that are bred are over the limits or judged already."""

    def __init__(self, path: Path, name: str, choices: Mapping[str, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut(path)
        backend = JournalFileBackend(str(path), JournalFileOpenLock(str(path), GRACE))
        self.study = optuna.create_study(
            storage=JournalStorage(backend), study_name=name, directions=["maximize", "minimize"], load_if_exists=True
        )
        self.distributions = {site: IntDistribution(0, number - 1) for site, number in choices.items()}
        self.since = time.monotonic()

    def trials(self) -> list[tuple[dict[str, int], float]]:
        """Numbers of the choices, and accuracy, of each arch that was judged."""
        return [(dict(each.params), each.values[0]) for each in self._complete()]

    @property
    def seconds(self) -> float:
        """Seconds that the search waited for all of them."""
        return sum(float(each.user_attrs[SECONDS]) for each in self._complete())

    def _complete(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def add(self, params: Mapping[str, int], accuracy: float | None, ratio: float) -> None:
        """Write a trial that has ended now; one without an accuracy has failed."""
        now = time.monotonic()
        self.study.add_trial(create_trial(
            state=TrialState.FAIL if accuracy is None else TrialState.COMPLETE,
            values=None if accuracy is None else [accuracy, ratio],
            params=dict(params), distributions=dict(self.distributions), user_attrs={SECONDS: now - self.since},
        ))  # fmt: skip
        self.since = now


def _cut(path: Path) -> None:
    """Take away the last line where a process was killed as it wrote it."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            path.write_bytes(content[: content.rfind(b"\n") + 1])
