"""Runs on the device: opens programs and reads the clock. It is sent over the pipe, below kernel.py and engines.py.

Standard library, numpy and the runtime's own package only, in the syntax of Python 3.8; nothing is installed there, and
nothing written but a lock. It runs no code but this file and reads no pickles. It ends when its pipe closes.

A frame is MAGIC, the lengths of header and body (4 bytes each, most significant first), a JSON object and raw bytes.
Every request gets one reply; readings are raw, all statistics are the host's.
"""

import ctypes
import gc
import json
import math
import os
import platform
import select
import signal
import struct
import sys
import time
from collections import OrderedDict

from htas.timing.remote.engines import ENGINES, Refused
from htas.timing.remote.kernel import describe, digest, memory, meter, state

MAGIC = b"HTAS"
LENGTHS = struct.Struct(">4sII")
MOST_HEADER = 1 << 24
MOST_BODY = (1 << 31) - 1
"""Bytes; an ONNX graph has no more."""
HELLO = b"htas-agent 1 "
STEADY, MOST_WARMUPS, MOST_LOOPS = 0.95, 20, 1000000
"""As in htas/timing/bench.py."""
KEPT_GRAPHS = 1 << 26, 5
"""Bytes of programs that are kept, so that opening one again needs no transfer: so many or, where there is much more
memory, what programs could take divided by two so many times."""
LOCKS = ("/dev/shm", "/run/lock", "/tmp", "/data/local/tmp")
"""Folders for the lock, the first of which exists and can be written."""
PATIENCE = 15
"""Tenths of a second in which another agent, which may be about to end, must give up the lock."""


# -- the lock ----------------------------------------------------------------------------------------------------------


class Lock:
    """A file that one agent of a device holds at a time; its content says who."""

    def __init__(self):
        self.file = None

    def take(self, token, who):
        """Hold the lock; raises Refused, which names the other. An agent of the same host's that was left behind by a
        broken connection is ended."""
        if self.file is not None:
            return
        import fcntl

        file = self.open()
        for attempt in range(PATIENCE + 1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                other = self.holder(file)
                if attempt == PATIENCE:
                    os.close(file)
                    when = time.strftime("%H:%M", time.localtime(other.get("since")))
                    raise Refused("busy", "%s, process %s, since %s" % (other.get("who"), other.get("pid"), when))
                if other.get("token") == token:
                    try:
                        os.kill(int(other["pid"]), signal.SIGKILL)
                    except (OSError, ValueError):
                        pass
                time.sleep(0.1)
        self.file = file
        content = json.dumps({"token": token, "who": who, "pid": os.getpid(), "since": time.time()}).encode()
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, content, 0)
        except OSError:  # it is another user's, or the disk is full: it is held all the same
            pass

    def holder(self, file):
        """What the file says of who holds it."""
        try:
            content = json.loads(os.pread(file, 4096, 0).decode("utf-8", "replace"))
            return content if isinstance(content, dict) else {}
        except (OSError, ValueError):
            return {}

    def open(self):
        """The descriptor of the file, made where it is missing."""
        named = os.environ.get("HTAS_LOCK")
        paths = [named] if named else [os.path.join(folder, "htas-agent.lock") for folder in LOCKS]
        why = OSError("no folder for it")
        for path in paths:
            for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDONLY):
                try:
                    file = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
                    try:
                        os.fchmod(file, 0o666)  # of whatever user the next reader is
                    except OSError:
                        pass
                    return file
                except OSError as error:
                    why = why if error.errno == 2 else error
        kind = "full" if why.errno == 28 else "lock"
        name = "HTAS_LOCK=%s" % named if named else paths[-1]
        raise Refused(kind, "%s: %s" % (name, why.strerror or why))


# -- programs ----------------------------------------------------------------------------------------------------------


def keep_memory():
    """Make the C library keep freed memory, as htas/timing/allocator.py does; returns whether it can."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool((library.mallopt(-3, 1 << 30) or library.mallopt(-3, 1 << 25)) and library.mallopt(-1, 1 << 30))


def trim_memory():
    """Give back what opening a program took for a while; what calls need, the warm-up asks for again."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def raise_priority():
    """Give this process priority over others, where the system allows; returns whether it does."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -15)
        return True
    except (OSError, AttributeError):
        return False


def inputs(kinds):
    """Arrays of these shapes and types: numbers between -1 and 1, or zeros. numpy.random would take 6 MB."""
    import numpy

    for shape, kind in kinds:
        values = numpy.sin(numpy.arange(numpy.prod(shape, dtype=int), dtype="float32")).reshape(shape)
        yield values.astype(kind) if kind.startswith("float") else numpy.zeros(shape, kind)


def timed(run, loops):
    """Seconds of this many calls in a row."""
    clock = time.perf_counter
    start = clock()
    for _ in range(loops):
        run()
    return clock() - start


def settle(run, reading, warmup):
    """Warm a call up; returns how many in a row last `reading` seconds, and the seconds of the fastest."""
    timed(run, 1)
    spent, loops, fastest = 0.0, 1, math.inf
    for _ in range(MOST_WARMUPS):
        seconds = timed(run, loops)
        spent += seconds
        steady = seconds / loops >= STEADY * fastest
        fastest = min(fastest, seconds / loops)
        needed = int(math.ceil(reading / fastest)) if fastest > 0 else MOST_LOOPS
        enough = loops >= needed
        loops = max(1, min(needed, 10 * loops, MOST_LOOPS))
        if enough and (steady or spent >= warmup):
            break
    return loops, fastest


def turn(run, loops, least, repeat):
    """Readings of one call in a row, after a call that is not timed: the seconds of each and its number of calls."""
    run()
    lasted, counts = [], []
    for _ in range(repeat):
        seconds = timed(run, loops)
        if 0 < seconds < least / 2 and loops < MOST_LOOPS:  # faster than it was when it was warmed up
            loops = min(int(math.ceil(loops * least / seconds)), 10 * loops, MOST_LOOPS)
            seconds = timed(run, loops)
        lasted.append(seconds)
        counts.append(loops)
    return lasted, counts


# -- the pipe ----------------------------------------------------------------------------------------------------------


class Agent:
    """Answers requests, one after the other."""

    def __init__(self, source, sink):
        self.source, self.sink = source, sink
        self.lock = Lock()
        self.programs = {}
        self.graphs = OrderedDict()
        self.bytes, self.openings = 0, 0
        self.most_kept = max(KEPT_GRAPHS[0], memory()[1] >> KEPT_GRAPHS[1])
        self.fillers = []
        self.hangup = select.poll()
        self.hangup.register(source.fileno(), 0)

    def serve(self):
        """Until the pipe closes."""
        while True:
            request, body = self.receive()
            for name in request.get("close", ()):
                self.programs.pop(name, None)
            began = time.perf_counter()
            try:
                reply, content = self.answer(request, body)
            except Refused as error:
                reply, content = {"error": error.kind, "words": error.words}, b""
            except MemoryError:
                reply, content = {"error": "memory", "words": "out of memory"}, b""
            except Exception as error:
                reply, content = {"error": "run", "words": in_words(error)}, b""
            reply.update(number=request.get("number"), took=time.perf_counter() - began)
            self.send(reply, content)

    def receive(self):
        """The next request: its header and its body."""
        magic, header, body = LENGTHS.unpack(self.read(LENGTHS.size))
        if magic != MAGIC or header > MOST_HEADER or body > MOST_BODY:
            sys.exit("htas-agent: the host sent no frame")
        return json.loads(self.read(header).decode("utf-8")), self.read(body)

    def read(self, count):
        """So many bytes; ends the process where the pipe closes before."""
        content = self.source.read(count) if count else b""
        if len(content) < count:
            os._exit(0)
        return content

    def send(self, header, body=b""):
        """A reply."""
        words = json.dumps(header).encode("utf-8")
        try:
            self.sink.write(LENGTHS.pack(MAGIC, len(words), len(body)) + words)
            self.sink.write(body)
            self.sink.flush()
        except OSError:
            os._exit(0)

    def answer(self, request, body):
        """The reply to a request."""
        what = request.get("do")
        answers = {
            "describe": self.describe, "lock": self.take, "load": self.load, "open": self.open, "read": self.rounds,
            "outputs": self.outputs, "disturb": self.disturb, "state": self.state, "draw": self.draw,
        }  # fmt: skip
        if what not in answers:
            raise Refused("request", "no such request: %r" % (what,))
        return answers[what](request, body)

    def describe(self, request, body):
        """What this device is."""
        return describe(), b""

    def state(self, request, body):
        """The device at this moment."""
        return {"state": state()}, b""

    def take(self, request, body):
        """Be the one reader of this device."""
        self.lock.take(request["token"], request["who"])
        keep_memory()
        return {"raised": raise_priority()}, b""

    def load(self, request, body):
        """Import a runtime: its version, and how its threads spin where it is not as asked."""
        if request["runtime"] not in ENGINES:
            raise Refused("request", "no such runtime")
        try:
            __import__("numpy")
            version, spinning = ENGINES[request["runtime"]].load()
        except Refused:
            raise
        except Exception as error:  # a broken installation may raise anything
            raise Refused("broken", in_words(error))
        return {"version": version, "spinning": spinning}, b""

    def open(self, request, body):
        """Open a program, known by its digest or sent, and warm it up."""
        if self.lock.file is None:
            raise Refused("request", "the lock comes first")
        name = request["graph"]
        if body:
            if digest(body) != name:
                raise Refused("damaged", "the graph arrived damaged")
            self.bytes += 0 if name in self.graphs else len(body)
            self.graphs[name] = body
        if name not in self.graphs:
            return {"known": False}, b""
        self.graphs.move_to_end(name)
        graph = self.graphs[name]
        while len(self.graphs) > 1 and self.bytes > self.most_kept:
            self.bytes -= len(self.graphs.popitem(last=False)[1])
        program = ENGINES[request["runtime"]](graph, request["threads"], request["spin"], request["half"])
        kinds = request.get("inputs")
        program.put(list(inputs(program.kinds() if kinds is None else kinds)))
        self.openings += 1
        if not self.openings & (self.openings - 1):  # whenever there are twice as many: it takes as long as opening one
            trim_memory()
        loops, seconds = settle(program.run, request["reading"], request["warmup"])
        self.programs[request["program"]] = program
        return {"known": True, "loops": loops, "seconds": seconds}, b""

    def rounds(self, request, body):
        """Read programs in the order asked."""
        lasted, counts = [], []
        gc.disable()
        try:
            for name, loops in request["turns"]:
                if self.hangup.poll(0):
                    os._exit(0)
                seconds, calls = turn(self.programs[name].run, loops, request["least"], request["repeat"])
                lasted.append(seconds)
                counts.append(calls)
        finally:
            gc.enable()
        return {"lasted": lasted, "loops": counts, "state": state()}, b""

    def draw(self, request, body):
        """Run a program without a pause, for some seconds between two moves of the meter; what that shows meanwhile."""
        run, loops, least = self.programs[request["program"]].run, request["loops"], request["seconds"]
        name, look, ranges = meter()
        if not name:
            raise Refused("run", "there is no meter any more")
        run()
        looks = []  # type: list[list[float]]
        calls, lasted, spent, last = 0, 0.0, 0.0, look()
        while spent < least + request["patience"] and (lasted < least or len(looks) < 2):
            if self.hangup.poll(0):
                os._exit(0)
            seconds = timed(run, loops)
            spent += seconds
            if looks:
                lasted, calls = lasted + seconds, calls + loops
            now = look()
            moved = now != last and (not looks or lasted >= least)  # when it moves, a counter tells its worth
            if moved if ranges else spent >= least / 4:  # a sensor of power is slow at first
                looks.append(now)
            last = now
        return {"looks": looks, "ranges": ranges, "calls": calls, "lasted": lasted}, b""

    def outputs(self, request, body):
        """The first output of a program for other inputs."""
        import numpy

        arrays, start = [], 0
        for shape, kind in request["arrays"]:
            count = int(numpy.prod(shape)) if shape else 1
            arrays.append(numpy.frombuffer(body, kind, count, start).reshape(shape))
            start += count * numpy.dtype(kind).itemsize
        output = numpy.ascontiguousarray(self.programs[request["program"]].outputs(arrays)[0])
        return {"shape": list(output.shape), "dtype": str(output.dtype)}, output.tobytes()

    def disturb(self, request, body):
        """Leave other holes in memory than before, as Bench does."""
        blocks = [bytearray(size) for size in request["sizes"]]
        self.fillers = [blocks[place] for place in request["kept"]]
        return {}, b""


def in_words(error):
    """An exception in one line."""
    return "%s: %s" % (type(error).__name__, " ".join(str(error).split())[:400])


def main(word):
    """Say hello with the host's word, and answer; whatever libraries print goes to stderr."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sink.write(b"\n" + HELLO + word + b"\n")
    sink.flush()
    Agent(sys.stdin.buffer, sink).serve()


if __name__ == "__main__":
    main(globals()["WORD"])  # the bootstrap sets it
