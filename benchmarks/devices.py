"""Is another machine measured as this one is? Surveys, networks, round trips, the agent itself and its kills.

    python benchmarks/devices.py OUT [--host exec:PYTHON] [--parts surveys,networks,trips,agent,kills,two]
        [--surveys 3] [--kills 50] [--seconds 0]

`--host` is this machine by another way, so that the readings can be compared: exec: with a Python that has onnxruntime
(the default: the one that runs this), or ssh://USER@localhost; for `kills` also the device of the tests whose readings
never differ, "exec:python tests/timing/remote/fakes.py steady". Local and remote steps alternate. Every survey is a
process of its own with a folder in OUT; one that is finished is not done again. Run it with nothing else.
`two` pins each of two agents to a core of its own, and surveys both by one command.
"""

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from htas.timing.remote.device import Device

HERE = f"exec:{shlex.quote(sys.executable)}"
CONFIG = '[family]\nname = "cifar_resnet"\ndepth = 20\n[target]\nruntime = "onnxruntime"\n'
NETWORKS = [f"cifar_resnet:{depth}" for depth in (8, 14, 20, 32)]
OPEN = 64
"""Layers that are open while memory is looked at."""
TRIPS = 1000
EACH_KILL = 2.0
"""Seconds of a survey for each kill."""


@dataclass(frozen=True)
class Figure:
    """A figure, and what it should be."""

    what: str
    aim: str
    reached: str

    def row(self) -> str:
        """A line of Markdown."""
        return f"| {self.what} | {self.aim} | {self.reached} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--host", default=HERE)
    parser.add_argument("--parts", default="surveys,networks,trips,agent,kills,two")
    parser.add_argument("--surveys", type=int, default=3)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0.0, help="of a survey; 0 is the default")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    for part in arguments.parts.split(","):
        print(f"{part} ...", file=sys.stderr, flush=True)
        figures += PARTS[part](arguments)
    print("| what | aim | reached |\n|---|---|---|")
    print("\n".join(figure.row() for figure in figures))


def survey(
    arguments: argparse.Namespace, name: str, host: str = "", kills: int = 0, options: tuple[str, ...] = ()
) -> dict[str, Any]:
    """One survey in a folder of its own: its choices, how sure they are, and its seconds."""
    folder = arguments.out / name
    if not (folder / "design.json").exists():
        config = arguments.out / "devices.toml"
        config.write_text(CONFIG)
        command = [sys.executable, "-m", "htas", "survey", str(config), "--out", str(folder), "--survey.store=none"]
        command += ["--survey.undecided=1", *([f"--target.host={host}"] if host else []), *options]
        command += [f"--survey.seconds={arguments.seconds}"] if arguments.seconds else []
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            killer = threading.Thread(target=kill, args=(process.pid, kills))
            killer.start()
            if process.wait():
                sys.exit(f"{shlex.join(command)} failed")
            killer.join()
        subprocess.run([sys.executable, "-m", "htas", "design", str(folder)], stdout=subprocess.DEVNULL, check=True)
    record, space = (json.loads((folder / file).read_text()) for file in ("survey.json", "design.json"))
    return {**{name: record[name] for name in ("took", "context", "layers")}, "curves": space["curves"]}


def kill(pid: int, count: int) -> None:
    """Kill the agents of a survey at random moments, while it lives."""
    rng = random.Random(0)
    while count and psutil.pid_exists(pid):
        time.sleep(rng.uniform(0.5, 2.0))
        try:
            below = psutil.Process(pid).children(recursive=True)
            agents = [child for child in below if "htas-agent" in " ".join(child.cmdline())]
        except psutil.Error:
            continue
        for agent in rng.sample(agents, min(1, len(agents))):  # or what connects to it
            agent.kill()
            count -= 1
    if count:
        print(f"{count} kills are left: the survey was over", file=sys.stderr)


def same(one: dict[str, Any], other: dict[str, Any]) -> tuple[int, int]:
    """Groups with the same choice, of those that both decided."""
    from htas.spaces.design import DECIDED

    equal = count = 0
    for mine, yours in zip(one["curves"], other["curves"], strict=True):
        assert mine["sites"] == yours["sites"]
        pairs = zip(mine["groups"], mine["certain"], yours["certain"], strict=True)
        decided = [group for group, sure, too in pairs if min(sure, too) >= DECIDED]
        for first, last in decided:
            both = (curve["choices"]["hardware"] for curve in (mine, yours))
            one_choice, other_choice = ([each for each in widths if first <= each <= last] for widths in both)
            equal += one_choice == other_choice
            count += 1
    return equal, count


def surveys(arguments: argparse.Namespace) -> list[Figure]:
    """Local surveys and remote ones in turn."""
    here, there = [], []
    for number in range(arguments.surveys):
        here.append(survey(arguments, f"here-{number}"))
        there.append(survey(arguments, f"there-{number}", arguments.host))
    pairs = [same(one, other) for one in here for other in there]
    own = [same(one, other) for place, one in enumerate(here) for other in here[place + 1 :]]
    took = [statistics.median(each["took"] for each in side) for side in (here, there)]
    return [
        Figure("same choices as a local survey", "98 % of the decided groups", share(pairs)),
        Figure("... of local surveys among each other", "", share(own)),
        Figure("time of a survey", "at most 1.2 times", f"{took[1] / took[0]:.2f} times {took[0]:.1f} s"),
    ]


def share(pairs: list[tuple[int, int]]) -> str:
    equal, count = (sum(each) for each in zip(*pairs, strict=True)) if pairs else (0, 0)
    return f"{equal} of {count} ({equal / count:.1%})" if count else "none decided"


def networks(arguments: argparse.Namespace) -> list[Figure]:
    """Whole networks here and there in turn, four times; the medians of each."""
    from htas.metrics.latency import Latency
    from htas.run.networks import build
    from htas.timing.target import Target

    ratios = []
    modules = [build(name, 10) for name in NETWORKS]
    readings: dict[str, list[list[float]]] = {"": [], arguments.host: []}
    for _, host in ((number, host) for number in range(4) for host in readings):
        target = Target(runtime="onnxruntime", host=host)
        readings[host].append([each.estimate for each in Latency(target, rounds=200).measure(modules)])
    for here, there in zip(*(zip(*side, strict=True) for side in readings.values()), strict=True):
        ratios.append(statistics.median(there) / statistics.median(here) - 1)
    words = ", ".join(f"{name} {ratio:+.1%}" for name, ratio in zip(NETWORKS, ratios, strict=True))
    return [Figure("whole networks against local readings", "within 2 %", words)]


def connected(host: str) -> "Device":
    from htas.timing.remote.address import address
    from htas.timing.remote.device import Device

    device = Device(address(host))
    device.hold()
    return device


def trips(arguments: argparse.Namespace) -> list[Figure]:
    """Requests that do nothing."""
    device, seconds = connected(arguments.host), []
    for _ in range(TRIPS):
        began = time.perf_counter()
        device.disturb([], [])
        seconds.append(time.perf_counter() - began)
    device.close()
    median, slow = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
    aim = "under 3 ms" if arguments.host.startswith("ssh://") else "under 1 ms"
    return [Figure("round trip", aim, f"{1e3 * median:.2f} ms (95th percentile {1e3 * slow:.2f} ms)")]


def agent(arguments: argparse.Namespace) -> list[Figure]:
    """Its size, its start and its memory with layers open; memory where it runs on this machine."""
    from htas.formats.onnx import layer_graph
    from htas.graph.layer import Layer
    from htas.timing.remote.device import Graph, Settings
    from htas.timing.remote.pipe import source

    began = time.perf_counter()
    device = connected(arguments.host)
    started = time.perf_counter() - began
    programs = []
    for width in range(1, OPEN + 1):
        layer = Layer("conv", width, width, (16, 16), (3, 3), padding=(1, 1), norm=True, activation="relu")
        programs.append(device.open(Graph(layer_graph(layer, layer.build(), 1)), Settings(1, 50, 1e-4, 0.01), None))
    device.read([(program, program.loops) for program in programs], 1e-4, 3)
    memory = psutil.Process(device.facts.pid).memory_info().rss if psutil.pid_exists(device.facts.pid) else 0
    device.close()
    return [
        Figure("size of the agent", "at most 30 kB", f"{len(source()) / 1e3:.1f} kB"),
        Figure("start of the agent", "2 s", f"{started:.2f} s"),
        Figure(f"resident with {OPEN} layers open, batch 1", "at most 70 MB", f"{memory / 1e6:.0f} MB"),
    ]


def kills(arguments: argparse.Namespace) -> list[Figure]:
    """A survey whose agent is killed at random moments, against one that is left alone."""
    long = (f"--survey.seconds={arguments.seconds or EACH_KILL * arguments.kills}",)
    calm = survey(arguments, "calm", arguments.host, options=long)
    killed = survey(arguments, "killed", arguments.host, arguments.kills, options=long)
    restarts = killed["context"].get("restarts of the agent", "0")
    equal = sum(calm["layers"][key]["estimate"] == table["estimate"] for key, table in killed["layers"].items())
    return [
        Figure(f"same choices with {arguments.kills} kills", "all", share([same(calm, killed)])),
        Figure("layers with the same latencies", "all, of a steady device", f"{equal} of {len(calm['layers'])}"),
        Figure("agents started again", str(arguments.kills), restarts),
        Figure("time with kills", "", f"{killed['took']:.0f} s against {calm['took']:.0f} s"),
    ]


def two(arguments: argparse.Namespace) -> list[Figure]:
    """Two agents with a core each, surveyed by one command, against one of them alone."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        return [Figure("two devices at once", "at most 1.2 times", "one core here")]
    hosts = [
        f"exec:env HTAS_LOCK={arguments.out / f'lock-{core}'} taskset -c {core} {shlex.quote(sys.executable)}"
        for core in cores
    ]
    alone, both = timed_survey(arguments, "alone", hosts[0]), timed_survey(arguments, "both", ",".join(hosts))
    return [
        Figure(
            "two devices at once, time for as many readings", "at most 1.2 times",
            f"{both.each / alone.each:.2f} times {1e3 * alone.each:.2f} ms",
        ),
        Figure("... until the choices are sure", "", f"{both.seconds / alone.seconds:.2f} times {alone.seconds:.0f} s"),
        Figure("... with start and page", "", f"{both.command / alone.command:.2f} times {alone.command:.0f} s"),
    ]  # fmt: skip


@dataclass(frozen=True)
class Times:
    """Seconds of a command that surveys devices."""

    each: float
    """For a reading, on the slowest device."""
    seconds: float
    """Of the longest survey, which ends where its choices are sure: sooner where readings are steady."""
    command: float
    """Of all of it."""


def timed_survey(arguments: argparse.Namespace, name: str, host: str) -> Times:
    """A survey of all hosts; once it is finished, what it took then."""
    folder, config = arguments.out / name, arguments.out / "devices.toml"
    clock = arguments.out / f"{name}-seconds.json"
    if not clock.exists():
        config.write_text(CONFIG)
        command = [sys.executable, "-m", "htas", "survey", str(config), "--out", str(folder), "--survey.store=none"]
        command += ["--survey.undecided=1", f"--target.host={host}", "--target.threads=1"]
        command += [f"--survey.seconds={arguments.seconds}"] if arguments.seconds else []
        began = time.monotonic()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        clock.write_text(json.dumps(time.monotonic() - began))
    paths = [path for path in (folder / "survey.json", *folder.glob("*/survey.json")) if path.exists()]
    found = [json.loads(path.read_text()) for path in paths]
    each = [survey["took"] / sum(sum(table["readings"]) for table in survey["layers"].values()) for survey in found]
    return Times(max(each), max(survey["took"] for survey in found), json.loads(clock.read_text()))


PARTS = {"surveys": surveys, "networks": networks, "trips": trips, "agent": agent, "kills": kills, "two": two}


if __name__ == "__main__":
    main()
