"""The first part of the agent: what the device's system says of itself. `pipe.source` puts engines.py and agent.py
below it.

In the syntax of Python 3.8, without annotations; it runs on the device.
"""

import glob
import importlib.util
import os
import platform
import sys
import time

ROOT = "/"
"""Where proc and sys lie."""
PACKAGES = tuple((name.replace("-", "_"), name) for name in (
    "numpy", "onnxruntime", "ncnn", "ai-edge-litert", "executorch", "torch",
))  # fmt: skip
"""Modules and their packages."""


def text(*parts):
    """The text of a file under ROOT; empty where it cannot be read."""
    try:
        with open(os.path.join(ROOT, *parts), "rb") as file:
            return file.read(1 << 16).replace(b"\0", b"").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def files(pattern):
    """The files under ROOT that fit a pattern, by name."""
    return sorted(glob.glob(os.path.join(ROOT, pattern)))


def number(words):
    """A number; None for anything else."""
    try:
        return float(words)
    except ValueError:
        return None


def numbers(paths):
    """The numbers in files, of those that have one."""
    return [value for value in (number(text(path)) for path in paths) if value is not None]


X86 = ("x86_64", "i686", "i386")
QEMU = ("0x00", "0x051")
"""Implementer and part of the ARM processor that QEMU makes up; older ones show the processor below."""


def cpuinfo():
    """What the kernel says of the first processor, by name; and whether it emulates this one."""
    lines = [line.partition(":") for line in text("proc/cpuinfo").splitlines()]
    info = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    kind = platform.machine()
    if info and ("flags" in info) != (kind in X86):
        return {"model name": "%s, emulated on %s" % (kind, info.get("model name") or "another processor")}, True
    if (info.get("CPU implementer"), info.get("CPU part")) == QEMU:
        return dict(info, **{"model name": "%s, emulated" % kind}), True
    return info, False


def affinity():
    """The cores that this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def quota():
    """Cores that the tightest control group above this process grants; None without a limit."""
    limits = []
    for line in text("proc/self/cgroup").splitlines():
        group, controllers, path = [*line.split(":", 2), "", ""][:3]
        if group != "0" and "cpu" not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part]
        for count in range(len(parts), -1, -1):
            folder = os.path.join("sys/fs/cgroup", controllers, *parts[:count])
            both = text(folder, "cpu.max").split()
            if len(both) != 2:
                both = [text(folder, "cpu.cfs_%s_us" % name) for name in ("quota", "period")]
            granted, every = number(both[0]), number(both[1])
            if granted and granted > 0 and every:
                limits.append(granted / every)
    return min(limits) if limits else None


def memory():
    """Bytes of memory: all of it, and what programs could take now."""
    lines = [line.replace(":", " ").split() for line in text("proc/meminfo").splitlines()]
    sizes = {line[0]: 1024 * int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
    return sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)


def versions():
    """The versions of numpy and of the runtimes that are installed, by the names of folders; nothing is imported."""
    installed = {package: "" for module, package in PACKAGES if importlib.util.find_spec(module) is not None}
    for folder in reversed(sys.path):
        for path in glob.glob(os.path.join(glob.escape(folder), "*-info")):
            name, version = [*os.path.splitext(os.path.basename(path))[0].split("-"), ""][:2]
            package = name.lower().replace("_", "-").replace("-gpu", "")
            if package in installed:
                installed[package] = version
    return installed


def digest(content):
    """SHA-256 in hexadecimal digits. hashlib would load OpenSSL, which takes 4 MB."""
    try:
        module = __import__("_sha2" if sys.version_info >= (3, 12) else "_sha256")
    except ImportError:
        module = __import__("hashlib")
    return module.sha256(content).hexdigest()


def identity():
    """A hash of what only this device has: the numbers of its board and its system, and its name."""
    marks = [text("sys/firmware/devicetree/base/serial-number"), text("etc/machine-id"), platform.node()]
    return digest("\n".join(marks).encode())[:12]


def describe():
    """All that this device says of itself."""
    (info, emulated), (total, available) = cpuinfo(), memory()
    folder = "sys/devices/system/cpu"
    cores = affinity()
    siblings = [text(folder, "cpu%d" % core, "topology/thread_siblings_list") for core in cores]
    governors = {text(folder, "cpu%d" % core, "cpufreq/scaling_governor") for core in cores}
    most = numbers("%s/cpu%d/cpufreq/cpuinfo_max_freq" % (folder, core) for core in cores)
    board = text("sys/firmware/devicetree/base/model")
    flags = info.get("flags") or info.get("Features") or ""
    off, boost = (text(folder, name) for name in ("intel_pstate/no_turbo", "cpufreq/boost"))
    return {
        "processor": info.get("model name") or board or info.get("Hardware") or platform.machine(),
        "emulated": emulated,
        "board": board,
        "architecture": platform.machine(),
        "affinity": cores,
        "cores": len(cores),
        "logical": os.cpu_count(),
        "physical": None if "" in siblings else len(set(siblings)),
        "flags": sorted(flags.split()),
        "governor": ", ".join(sorted(name for name in governors if name)),
        "hertz_most": 1e3 * max(most) if most else None,
        "turbo": off == "0" if off else boost == "1" if boost else None,
        "quota": quota(),
        "memory": total,
        "available": available,
        "virtual": "hypervisor" in flags.split() if info.get("flags") else None,
        "container": any(os.path.exists(os.path.join(ROOT, name)) for name in (".dockerenv", "run/.containerenv")),
        "system": "%s %s" % (platform.system(), platform.release()),
        "python": platform.python_version(),
        "executable": sys.executable or "python3",
        "managed": sys.prefix == sys.base_prefix
        and os.path.exists(os.path.join(os.path.dirname(os.__file__), "EXTERNALLY-MANAGED")),
        "versions": versions(),
        "name": platform.node(),
        "identity": identity(),
        "boot": text("proc/sys/kernel/random/boot_id"),
        "pid": os.getpid(),
        "meter": meter()[0],
        "locked": unread(),
        "state": state(),
    }


def state():
    """The device at this moment: seconds used, clocks, temperatures and whether it says that it slows itself down."""
    clocks = numbers("sys/devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq" % core for core in affinity())
    used = text("proc/stat").partition("\n")[0].split()[1:]
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    times = [int(each) / ticks for each in used if each.isdigit()] + [0.0] * 8
    times_of_agent = os.times()
    flags, now, count = throttling()
    return {
        "seconds": time.monotonic(),
        "busy": sum(times[:3]) + times[5] + times[6],
        "stolen": times[7],
        "agent": sum(times_of_agent[:4]),
        "average": list(os.getloadavg()) if hasattr(os, "getloadavg") else [],
        "hertz": 1e3 * max(clocks) if clocks else None,
        "celsius": celsius(),
        "throttling": flags,
        "hot": now,
        "throttled": count,
    }


def celsius():
    """The temperature of the hottest sensor of the processor; None where there is none."""
    zones = numbers(files("sys/class/thermal/thermal_zone*/temp"))
    for folder in files("sys/class/hwmon/hwmon*"):
        if text(folder, "name") in ("coretemp", "k10temp", "zenpower", "cpu_thermal"):
            zones += numbers(files(os.path.join(folder, "temp*_input")))
    degrees = [zone / 1e3 for zone in zones if 0 < zone < 200e3]
    return max(degrees) if degrees else None


PI = {0: "too little voltage", 1: "a capped clock", 2: "a throttled clock", 3: "the soft limit of temperature"}
"""The bits of a Raspberry Pi's get_throttled that hold at this moment."""


def throttling():
    """In words what slows this device down now; whether that is heat; a count of times that only goes up."""
    words, hot = [], False
    for path in files("sys/devices/platform/soc/soc:firmware/get_throttled"):
        try:
            bits = int(text(path), 16)
        except ValueError:
            continue
        words += [name for bit, name in sorted(PI.items()) if bits >> bit & 1]
        hot = bool(bits & 0b1100)
    for folder in files("sys/class/thermal/cooling_device*"):
        if "cpufreq" in text(folder, "type") and (number(text(folder, "cur_state")) or 0) > 0:
            words.append("a clock lowered against heat (%s)" % text(folder, "type"))
            hot = True
    counts = numbers(files("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"))
    return words, hot, sum(counts)


TOTALS = ("VDD_IN", "POM_5V_IN")
"""What a Jetson calls the power of the whole board; where none is called so, its rails add up to the module's."""


def zones():
    """The counters of the processor's packages and of their memory (RAPL), by name."""
    meters = [(text(zone, "name"), zone) for zone in files("sys/class/powercap/intel-rapl:*")]
    return [(name, zone) for name, zone in meters if name.startswith("package") or name == "dram"]


def unread():
    """A counter that this user may not read; empty where there is none."""
    paths = [os.path.join(zone, "energy_uj") for _, zone in zones()]
    return next((path for path in paths if number(text(path)) is None), "")


def rails():
    """The power sensors (INA) of a board, by name: files whose product is the power, and its watts of one."""
    meters = []
    for folder in files("sys/class/hwmon/hwmon*"):
        kind = text(folder, "name")
        if not kind.startswith("ina"):
            continue
        meters += [(kind, [path], 1e-6) for path in files(os.path.join(folder, "power1_input"))]
        for path in files(os.path.join(folder, "in*_label")):
            paths = [path[:-5] + "input", os.path.join(folder, "curr%s_input" % os.path.basename(path)[2:-6])]
            if text(path) != "NC" and all(map(text, paths)):
                meters.append((text(path), paths, 1e-6))
    for folder in files("sys/bus/i2c/drivers/ina3221x/*/iio:device*"):
        for path in files(os.path.join(folder, "in_power*_input")):
            name = text(folder, "rail_name_" + os.path.basename(path)[8:-6])
            meters.append((name, [path], 1e-3))
    return [rail for rail in meters if rail[0] in TOTALS] or meters


def meter():
    """What tells the energy here: its name, how to read it, and of counters where each begins again; they count
    microjoules, and without them it tells watts."""
    counters = [] if unread() else zones()
    if counters:
        names = ", ".join(name for name, _ in counters)
        ranges = numbers(os.path.join(zone, "max_energy_range_uj") for _, zone in counters)
        paths = [os.path.join(zone, "energy_uj") for _, zone in counters]
        return "RAPL (%s)" % names, lambda: numbers(paths), ranges
    sensors = rails()
    if not sensors:
        return "", list, []
    return "power of %s" % ", ".join(name for name, _, _ in sensors), lambda: [watts(*rail) for rail in sensors], []


def watts(name, paths, unit):
    """The power of a rail now."""
    product = unit
    for path in paths:
        product *= number(text(path)) or 0.0
    return product
