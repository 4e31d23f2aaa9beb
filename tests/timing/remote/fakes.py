"""Devices that misbehave: `python fakes.py WHAT` takes the agent from the pipe, as Python would, and spoils it."""

import json
import os
import struct
import sys
import time

WHAT = sys.argv[1]
MAGIC = b"HTAS"


STEADY = """
BEGIN = OnnxRuntime.__init__
def begin(self, graph, *others):
    BEGIN(self, graph, *others)
    self.seconds = (20000 + 4 * len(graph)) * 2.0**-30
OnnxRuntime.__init__ = begin
def timed(run, loops):
    lasts, start = loops * run.__self__.seconds, time.perf_counter()
    run()
    while time.perf_counter() - start < lasts:
        pass
    return lasts
if __name__ == "__main__":"""
"""A call takes longer the more bytes its graph has; sums and quotients of these seconds are exact."""
METER = """
WATTS, CLOCK, OLD = 30.0, [0.0], text
def timed(run, loops):
    run()
    CLOCK[0] += 1e-4 * loops
    return 1e-4 * loops
def text(*parts):
    if parts[-1].endswith("energy_uj") and OLD(*parts) == "0":
        most = int(OLD(os.path.dirname(os.path.join(*parts)), "max_energy_range_uj"))
        return str(int(1e6 * WATTS * CLOCK[0]) % most)
    return OLD(*parts)
if __name__ == "__main__":"""


def changed(source: str) -> str:
    """The agent, spoilt."""
    changes = {
        "no numpy": ("    return installed\n", "    del installed['numpy']\n    return installed\n"),
        "old runtime": ("return ort.__version__,", "return '1.12.1',"),
        "broken runtime": (
            "    def load():\n        import onnxruntime",
            "    def load():\n        import no_such_part",
        ),
        "updated": ("return ort.__version__,", "return '9.' + str(os.getpid()),"),
        "clock jump": ("    return clock() - start", "    return clock() - start + 3600"),
        "negative": ("        lasted.append(seconds)", "        lasted.append(-seconds)"),
        "disk full": ("    def open(self):\n", "    def open(self):\n        raise Refused('full', 'no space')\n"),
        "hot": ("    flags, now, count = throttling()", "    flags, now, count = ['a throttled clock'], False, 3"),
        "heat": (
            "    flags, now, count = throttling()",
            "    global LOOKS\n    LOOKS = globals().get('LOOKS', 0) + 1\n"
            "    flags, now, count = [], 2 <= LOOKS <= 4, 0",
        ),
        "warm": ("    zones = numbers(", "    return 61.5\n    zones = numbers("),
        "dies": ("        lasted, counts = [], []\n        gc", "        os._exit(1)\n        gc"),
        "silent": ("        lasted, counts = [], []\n        gc", "        time.sleep(1000)\n        gc"),
        "endless": ('"seconds": seconds}', '"seconds": float("inf")}'),
        "no number": ('"stolen": times[7]', '"stolen": float("nan")'),
        "many calls": ("        counts.append(loops)", "        counts.append(10 ** 30)"),
        "escapes": ('"board": board', '"board": "\\x1b[2Jboard\\r\\n"'),
        "objects": ('"dtype": str(output.dtype)', '"dtype": "object"'),
        "too few": ("output.tobytes()", "output.tobytes()[1:]"),
        "twice": ("self.sink.write(body)", "self.sink.write(body + b'x')"),
    }
    if WHAT.startswith("dies once "):  # a file that the first one leaves
        place = WHAT[len("dies once ") :]
        test = f"        if not os.path.exists({place!r}):"
        new = f"{test}\n            open({place!r}, 'w').close()\n            os._exit(1)\n"
        return source.replace("        gc.disable()\n", f"{new}        gc.disable()\n", 1)
    if WHAT.startswith("reboots "):  # it is another start of the system once the file is there
        new = f"os.path.exists({WHAT[len('reboots ') :]!r}) and 'second' or 'first'"
        return source.replace('"boot": text("proc/sys/kernel/random/boot_id")', f'"boot": {new}', 1)
    if WHAT.startswith("dies while "):  # this file exists
        place = WHAT[len("dies while ") :]
        new = f"        if os.path.exists({place!r}):\n            os._exit(1)\n"
        return source.replace("        gc.disable()\n", f"{new}        gc.disable()\n", 1)
    if WHAT.startswith("other "):
        place = WHAT[len("other ") :]
        new = f"os.path.exists({place!r}) and 'b' or (open({place!r}, 'w').close() or 'a')"
        source = source.replace('"identity": identity()', f'"identity": {new}')
        return source.replace("        lasted, counts = [], []\n        gc", "        os._exit(1)\n        gc")
    if WHAT == "steady":
        return source.replace('if __name__ == "__main__":', STEADY, 1)
    if WHAT.startswith("meter "):  # proc and sys lie there, and a call takes 0.1 ms of a clock that moves counters
        place = WHAT[len("meter ") :]
        source = source.replace('ROOT = "/"', f"ROOT = {place!r}", 1)
        return source.replace('if __name__ == "__main__":', METER, 1)
    if WHAT in changes:
        old, new = changes[WHAT]
        assert old in source, f"the agent has no {old!r}"
        return source.replace(old, new, 1)
    return source


def frame(header: object, body: int = 0, size: int | None = None) -> bytes:
    words = json.dumps(header).encode()
    return struct.pack(">4sII", MAGIC, len(words) if size is None else size, body) + words


if __name__ == "__main__":
    out = sys.stdout.buffer
    if WHAT == "noise":
        print("Welcome to board!\nlast login: never", flush=True)
    if WHAT == "much noise":
        out.write(b"no end " * 50000)
        out.flush()
        time.sleep(1000)
    if WHAT == "flood":
        while True:
            out.write(b"no end " * 5000)
    if WHAT == "old python":
        sys.exit("htas needs Python 3.8 there, this is 3.6.9")
    if WHAT == "nologin":
        sys.exit("This account is currently not available.")
    if WHAT == "never":
        time.sleep(1000)
    word = sys.stdin.buffer.readline().strip()
    source = sys.stdin.buffer.read(int(sys.stdin.buffer.readline())).decode()
    if WHAT in ("garbage", "too much", "no object", "another", "list", "mute", "drip", "digits", "flood later"):
        out.write(b"\nhtas-agent 1 " + word + b"\n")
        answers = {
            "garbage": os.urandom(4096),
            "too much": frame({}, size=1 << 30),
            "no object": frame([1, 2]),
            "another": frame({"number": -5}),
            "list": struct.pack(">4sII", MAGIC, 9, 0) + b"[" * 9,
            "mute": b"",
            "digits": frame(None, size=9000) + b"9" * 8996,
            "drip": b"",
            "flood later": b"",
        }
        out.write(answers[WHAT])
        out.flush()
        while WHAT == "drip":
            out.write(b"H")
            out.flush()
            time.sleep(0.1)
        while WHAT == "flood later":
            out.write(MAGIC * 5000)
        time.sleep(1000)
    exec(compile(changed(source), "agent", "exec"), {"__name__": "__main__", "WORD": word})
