"""What happened to a device during a measurement, from the state that it sends with every round."""

from collections.abc import Mapping, Sequence

from htas.text import listing, plural, significant
from htas.timing.contention import Usage, Watch, clock_remarks, remarks
from htas.timing.remote.device import Device
from htas.timing.remote.facts import Facts, State


class RemoteWatch(Watch):
    """Collects the states of a device, from its creation."""

    def __init__(self, device: Device) -> None:
        self.remote, self.restarts, self.reboots = device, device.restarts, device.reboots
        self.states = [device.look()]
        device.on_state = self.states.append

    def look(self) -> None:
        """Every round has brought a state."""

    def remarks(self) -> tuple[str, ...]:
        """What may mislead, and what to do."""
        self.states.append(self.remote.look())
        sentences = state_remarks(self.remote.facts, self.states)
        if reboots := self.remote.reboots - self.reboots:
            sentences += (f"the device was restarted {plural(reboots, 'time')} meanwhile; see why, and measure again",)
        return sentences

    def context(self) -> Mapping[str, str]:
        """Clock and temperature meanwhile, where the device has sensors, and how often its agent was started again."""
        words = {
            "clock": _range([each.hertz / 1e9 for each in self.states if each.hertz], "GHz"),
            "temperature": _range([each.celsius for each in self.states if each.celsius], "degrees C"),
            "throttling": listing(_slowed(self.states)),
            "restarts of the agent": str(self.remote.restarts - self.restarts or ""),
        }
        return {name: value for name, value in words.items() if value}


def state_remarks(facts: Facts, states: Sequence[State]) -> tuple[str, ...]:
    """Remarks on a device from its states in order of time."""
    first, last = states[0], states[-1]
    sentences: tuple[str, ...] = ()
    if last.agent >= first.agent:  # else the agent was started again, and the counts do not fit together
        sentences = remarks(usage(facts, first), usage(facts, last))
    if facts.emulated:
        sentences += ("the device's processor is emulated, so that its times are no real one's; measure on a real one",)
    sentences += clock_remarks([each.hertz or 0.0 for each in states], "cpu")
    if reasons := _slowed(states):
        sentences += (f"the device slowed itself down meanwhile ({listing(reasons)}); cool it, or see to its power",)
    elif last.throttled > first.throttled:
        sentences += ("the device slowed itself down against heat meanwhile; cool it, and measure again",)
    return sentences


def usage(facts: Facts, state: State) -> Usage:
    """A state as the processor seconds up to that moment; other programs on cores that are not ours do not count."""
    cores = facts.logical or facts.cores
    others = state.busy - state.agent if facts.cores == cores else 0.0
    return Usage(state.seconds, cores, others, state.stolen)


def _slowed(states: Sequence[State]) -> list[str]:
    """What slowed the device down at some moment, each once."""
    return list(dict.fromkeys(words for each in states for words in each.throttling))


def _range(values: Sequence[float], unit: str) -> str:
    """`1.2 to 1.5 GHz`; nothing of nothing."""
    if not values:
        return ""
    low, high = significant(min(values)), significant(max(values))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
