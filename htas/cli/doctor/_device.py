"""Another machine as the doctor shows it, from what its agent says."""

from htas.cli.doctor._machine import Load, Machine
from htas.timing.remote.device import device
from htas.timing.remote.facts import State
from htas.timing.remote.watch import usage

INSTRUCTIONS = {
    **{name: name for name in ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16")},
    **{name: name for name in ("amx_int8", "amx_bf16", "amx_fp16", "neon", "asimd", "i8mm", "bf16", "sve", "sve2")},
    "fma": "fma3", "avx512f": "avx512_f", "asimddp": "dot", "asimdhp": "fp16_arith",
}  # fmt: skip
"""Instructions that convolutions use, by the kernel's names for them."""


def device_machine(host: str) -> Machine:
    """The machine of a host."""
    facts = device(host).facts
    hertz, most = facts.state.hertz, facts.hertz_most
    return Machine(
        processor=facts.processor if facts.board in ("", facts.processor) else f"{facts.processor}, {facts.board}",
        logical=facts.logical,
        physical=None,
        usable=facts.cores,
        cores=facts.physical,
        instructions=tuple(INSTRUCTIONS[flag] for flag in facts.flags if flag in INSTRUCTIONS),
        governor=facts.governor or None,
        megahertz=hertz / 1e6 if hertz else None,
        megahertz_most=most / 1e6 if most else None,
        turbo=facts.turbo,
        quota=facts.quota,
        memory=facts.memory,
        available=facts.available,
        virtual=facts.virtual,
        container=facts.container,
    )


def load_between(host: str, before: State, after: State) -> Load:
    """The load of a host between two moments."""
    old, new = (usage(device(host).facts, state) for state in (before, after))
    seconds = max(new.seconds - old.seconds, 1e-9)
    return Load(
        average=before.average,
        others=max(0.0, (new.others - old.others) / seconds),
        stolen=(new.stolen - old.stolen) / seconds / new.cores,
        throttled=0,
        busiest=(),
    )
