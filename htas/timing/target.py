"""Where a network must be fast: device, runtime, precision, batch, threads, shapes of its inputs."""

import os
import platform
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from math import prod
from operator import index
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from htas.errors import UserError
from htas.files import digest
from htas.plugins.options import Options
from htas.plugins.values import REFUSED, Values, allowed, check
from htas.text import no_such
from htas.timing.quota import cpuinfo, free_memory, quota

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
COPIES = 3
"""Times that memory must hold the inputs of a batch, at least."""
CROWD = 8
"""Threads for each core of this machine, at most."""
Value = bool | int | float | str
"""Types of a runtime's options."""


@dataclass(frozen=True)
class Target:
    """The machine and the way of running that latency is measured for."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network runs."""
    host: str = ""
    """The machine that it runs on, ssh://user@board or exec:COMMAND that starts its Python; empty for this one. Several
    with commas between are for htas run, survey and measure."""
    runtime: str = "eager"
    """What runs it: a file of htas/runtimes, or your own class as 'package.module:Class'."""
    precision: Precision = "fp32"
    """Number format of weights and activations; a runtime may have fewer. int8 is quantized after training."""
    batch: int = 0
    """Images per call; 0 means the paper's: 4 on CPU, 1024 on CUDA."""
    threads: int = 0
    """CPU threads; 0 means every core that may be used there."""
    shapes: tuple[tuple[int, ...], ...] = ((3, 32, 32),)
    """Shape of each input, without the batch: channels, height and width of an image. A data set's shapes replace
    these."""
    options: dict[str, Value] = field(default_factory=dict, hash=False)
    """Options of the runtime, the fields of its class: in a file options = { spin = 10 }, on the command line
    --target.options='{"spin": 10}'."""

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            object.__setattr__(self, name, _typed(name, getattr(self, name), hint))
        if self.batch < 0:
            raise UserError(f"target.batch must be 0 (the default) or more, got {self.batch}")
        if self.threads < 0:
            raise UserError(f"target.threads must be 0 (all cores) or more, got {self.threads}")
        if self.batch == 0:
            object.__setattr__(self, "batch", 4 if self.device == "cpu" else 1024)
        if self.host:
            from htas.timing.remote.address import address

            for host in self.hosts:
                address(host)  # raises for what is none
            if twice := [host for number, host in enumerate(self.hosts) if host in self.hosts[:number]]:
                raise UserError(f"target.host names {twice[0]} twice; name each device once")
            if self.device != "cpu":
                raise UserError(
                    f"target.host measures on a processor, got target.device {self.device!r}; use 'cpu', or run htas "
                    "there"
                )
        elif self.threads == 0:
            object.__setattr__(self, "threads", usable_cores())

    @property
    def hosts(self) -> tuple[str, ...]:
        """Each host by itself; none for this machine. Only a target of one host can be measured."""
        from htas.timing.remote.address import separated

        return separated(self.host)

    @property
    def title(self) -> str:
        """For the title of a page: `cpu, onnxruntime` here, `board, onnxruntime, int8` on a host."""
        from htas.timing.remote.address import short_names

        precision = "" if self.precision == "fp32" else f", {self.precision}"
        return f"{' and '.join(short_names(self.hosts)) or self.device}, {self.runtime}{precision}"

    @property
    def dtype(self) -> "torch.dtype":
        """PyTorch's name for the precision of inputs and outputs, which are fp32 around int8."""
        import torch

        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision, torch.float32)

    def example(self) -> "tuple[Tensor, ...]":
        """Random inputs, [batch, *shape] for each of `shapes`, fp32 on the CPU.

        Raises UserError where this machine's memory cannot have them twice with as many outputs of a layer.
        """
        import torch

        self.check_memory(free_memory(), "this machine")
        return tuple(torch.randn(self.batch, *shape) for shape in self.shapes)

    def check_memory(self, available: int, whose: str) -> None:
        """Raise UserError where so many bytes are too few for a batch: its inputs, their copy for a runtime, and what a
        first layer makes of them. 0 bytes are those of a machine that does not say."""
        needed = 4 * self.batch * sum(map(prod, self.shapes))
        if 0 < available < COPIES * needed:
            raise UserError(
                f"the inputs of a batch of {self.batch} are {needed / 1e9:.3g} GB, and {whose} has "
                f"{available / 1e9:.3g} GB of memory left, which must hold them, a copy and what layers make of them; "
                "lower target.batch"
            )

    def facts(self) -> dict[str, str]:
        """Every field in words."""
        shapes = " and ".join("x".join(map(str, shape)) for shape in self.shapes)  # 3x32x32, 3x32x32 and 8
        values = {name: str(value) for name, value in asdict(self).items() if name != "host" or value}
        return {**values, "shapes": shapes}

    def check(self) -> None:
        """Raise UserError where this machine is not the target's kind, or has far too few cores; its files can be read
        anywhere."""
        if self.host:
            from htas.timing.remote.device import device

            _ = device(self.host).facts
            return
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "target.device is 'cuda', but this PyTorch finds no CUDA device; use 'cpu', or install a CUDA build"
            )
        if self.threads > (most := CROWD * (os.cpu_count() or 1)):
            raise UserError(
                f"target.threads must be at most {most} here, {CROWD} for each core of this machine, got "
                f"{self.threads}; use 0 for all cores"
            )

    def fingerprint(self) -> str:
        """Equal only for targets whose latencies may be compared: machine, versions and every field."""
        fields = asdict(self.resolved())
        del fields["host"]  # one device may have several addresses
        return digest(fields, self.machine())

    def resolved(self) -> "Target":
        """The target with the number of threads that 0 means on its host."""
        if self.threads or not self.host:
            return self
        from htas.timing.remote.device import device

        return replace(self, threads=device(self.host).facts.cores)

    def machine(self) -> dict[str, str | int]:
        """What the machine is that networks run on; raises UserError where it cannot be reached."""
        if not self.host:
            return machine()
        from htas.timing.remote.device import device

        return dict(device(self.host).facts.machine)

    def instructions(self) -> frozenset[str]:
        """What the processor can, in the kernel's words, or what every one of its kind can where it does not say."""
        if not self.host:
            return instructions()
        from htas.timing.remote.device import device

        facts = device(self.host).facts
        return frozenset(facts.flags) or least_instructions(facts.architecture)

    def affinity(self) -> list[int]:
        """The cores that networks may run on, by number; empty where the system does not say."""
        if not self.host:
            return affinity()
        from htas.timing.remote.device import device

        return list(device(self.host).facts.affinity)


@cache
def _hints() -> Values:
    """The type of each field of a target."""
    hints = get_type_hints(Target)
    return {each.name: hints[each.name] for each in fields(Target)}


def _typed(name: str, value: object, hint: Any) -> Any:
    """A value of the field `name`, with plain whole numbers for numpy's; raises UserError for one of another type."""
    try:
        typed = check(_plain(value), hint)
        if name != "shapes" or all(size > 0 for shape in typed for size in shape):
            return typed
    except REFUSED:
        pass
    kind = "sizes above 0 for each input, such as ((3, 32, 32),)" if name == "shapes" else allowed(hint)
    raise UserError(f"target.{name} must be {kind}, got {shortened(value)}")


def _plain(value: object) -> object:
    """A value with Python's whole numbers in place of those of numpy."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value if isinstance(value, bool) or not hasattr(value, "__index__") else index(value)


def runtime_options(target: Target, options: Options) -> Values:
    """The target's options as a runtime has them, whose fields are `options`; raises UserError where they differ."""
    allowed_options = {name: option for name, option in options.items() if name != "target"}
    values = {}
    for name, value in target.options.items():
        if not allowed_options:
            raise UserError(f"target.options: {target.runtime!r} has no options, got {name!r}; leave them out")
        if name not in allowed_options:
            raise UserError(f"target.options: {no_such(f'option of {target.runtime!r}', name, allowed_options)}")
        try:
            values[name] = check(value, allowed_options[name].hint)
        except REFUSED as error:
            hint = allowed(allowed_options[name].hint)
            raise UserError(f"target.options: {name} must be {hint}, got {value!r}") from error
    return values


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(affinity()) or os.cpu_count() or 1


def affinity() -> list[int]:
    """The cores that this process may run on, by number; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def instructions() -> frozenset[str]:
    """What this machine's processor can, in the kernel's words, or what every one of its kind can where it does not
    say."""
    info = cpuinfo()
    words = (info.get("flags") or info.get("Features") or "").split()
    return frozenset(words) or least_instructions(platform.machine())


def least_instructions(architecture: str) -> frozenset[str]:
    """What every processor of this architecture can: x86 of 64 bits has SSE2, which macOS and Windows do not say."""
    return frozenset({"sse2"} if architecture.lower() in ("x86_64", "amd64") else ())


@cache
def machine() -> dict[str, str | int]:
    """What this machine is: processor, cores, memory, GPU, system and versions."""
    import torch

    return {
        "processor": cpuinfo().get("model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "quota": "none" if (cores := quota()) is None else f"{cores:g} cores",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
