#!/usr/bin/env python3
"""Builds the tests of the workspace and runs all of them; says how long each program took.

    deploy/tests.py [WORD...]     only programs whose name holds one of the words

The names of those that failed are in target/tests/failed; none hangs for ever.

Tests of the control plane wait for processes most of the time: they run beside the suite on a real cluster, and mutants
come last of them. What pushes packets comes after, two at a time; what measures has the machine to itself. Output goes
to target/tests/, and to the terminal when a program ends.
"""
import json
import os
import signal
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOGS = os.path.join(ROOT, "target/tests")
FAILED = os.path.join(LOGS, "failed")
CLUSTER = "deploy/e2e/cluster"
# What goes before the cluster, so that both lanes are of one length.
BEFORE_CLUSTER = ("multinet/kube/conformance", "memif/loom")
# Half of an API server's time is the collection of garbage: these have room.
GO = {"GOGC": "400", "GOMEMLIMIT": "1GiB"}
# Three times what the longest takes on a slow machine.
LONGEST_SECONDS = 1800
# Folders whose tests push packets.
PACKETS = ("dataplane", "memif", "bench", "deploy/demo")
# Of these the longest, beside which all others run.
LONG = "dataplane/e2e"
# Tests of it that count microseconds, or the machine's huge pages, and programs that do.
MEASURED = ("attacks::", "churn::", "faults::huge_pages", "idle::", "rewriting::", "stall::")
ALONE = (LONG + ".measured", "bench", "memif/interop", "memif/hostile_memory")
# A test of these waits for a server of its own: more of them than cores at a time.
WAITING = {"controller/controller": "6", "agent/kubernetes": "6"}


def programs():
    """Every test program: its name, its path, the folder that it runs in."""
    command = ["cargo", "test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]
    build = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if build.returncode != 0:
        sys.exit("bowline: the tests do not build")
    found = {}
    for line in build.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["profile"]["test"]:
            folder = os.path.dirname(message["manifest_path"])
            name = f"{os.path.relpath(folder, ROOT)}/{message['target']['name']}"
            kind = message["target"]["kind"][0]
            if kind != "test":
                # A library and a program of tests may have one name.
                name += f".{kind}"
            if name in found:
                sys.exit(f"bowline: two test programs are called {name}")
            found[name] = ([message["executable"]], folder)
    return found


class Runner:
    def __init__(self):
        self.terminal = threading.Lock()
        self.took = []
        self.failed = []
        self.running = set()

    def run(self, name, command, folder):
        log = os.path.join(LOGS, name.replace("/", "-") + ".log")
        env = dict(os.environ, **GO)
        if name in WAITING:
            env["RUST_TEST_THREADS"] = WAITING[name]
        begun = time.monotonic()
        with open(log, "w+b") as output:
            program = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output,
                                       stderr=subprocess.STDOUT, start_new_session=True)
            self.running.add(program)
            try:
                code = program.wait(LONGEST_SECONDS)
            except subprocess.TimeoutExpired:
                output.write(f"bowline: not ended after {LONGEST_SECONDS} s, killed\n".encode())
                os.killpg(program.pid, signal.SIGKILL)
                code = program.wait()
            self.running.remove(program)
            took = time.monotonic() - begun
            output.seek(0)
            said = output.read().decode(errors="replace")
        with self.terminal:
            self.took.append((took, name))
            if code != 0:
                self.failed.append(name)
            verdict = "ok" if code == 0 else f"FAILED (exit code {code})"
            print(f"==== {name}\n{said.strip()}\n==== {name}: {verdict}, {took:.1f} s\n", flush=True)

    def lane(self, jobs):
        for name, (command, folder) in jobs:
            self.run(name, command, folder)

    def side_by_side(self, *lanes):
        threads = [threading.Thread(target=self.lane, args=(jobs,), daemon=True) for jobs in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self):
        for program in list(self.running):
            os.killpg(program.pid, signal.SIGTERM)


def main(words):
    os.makedirs(LOGS, exist_ok=True)
    if os.path.exists(FAILED):
        os.remove(FAILED)
    begun = time.monotonic()
    found = programs()
    found["doctests"] = (["cargo", "test", "--workspace", "--doc", "--quiet"], ROOT)
    found["mutants"] = ([os.path.join(ROOT, "deploy/mutants/run")], ROOT)
    (program, folder) = found[LONG]
    found[LONG + ".measured"] = (program + list(MEASURED), folder)
    found[LONG] = (program + [word for name in MEASURED for word in ("--skip", name)], folder)
    jobs = [(name, job) for name, job in found.items() if not words or any(w in name for w in words)]
    if not jobs:
        sys.exit(f"bowline: no test program's name holds {' or '.join(words)}: {' '.join(sorted(found))}")
    print(f"built in {time.monotonic() - begun:.0f} s", flush=True)
    cluster = [job for name in (*BEFORE_CLUSTER, CLUSTER) for job in jobs if job[0] == name]
    packets = [job for job in jobs if job[0].startswith(PACKETS) and job not in cluster]
    alone = [job for job in packets if job[0].startswith(ALONE)]
    long = [job for job in packets if job[0] == LONG]
    runner = Runner()
    try:
        # Mutants put their programs where those of the tests are: they come last.
        runner.side_by_side(cluster, [job for job in jobs if job not in packets and job not in cluster])
        runner.side_by_side(long, [job for job in packets if job not in alone and job not in long])
        runner.side_by_side(alone)
    except KeyboardInterrupt:
        runner.stop()
        sys.exit("bowline: interrupted")
    print("slowest: " + ", ".join(f"{name} {took:.0f} s" for took, name in sorted(runner.took, reverse=True)[:12]))
    print(f"{len(runner.took)} programs in {time.monotonic() - begun:.0f} s")
    if runner.failed:
        with open(FAILED, "w") as names:
            names.write(" ".join(runner.failed))
        sys.exit(f"FAILED: {', '.join(runner.failed)}; their output is above, and in {LOGS}")


main(sys.argv[1:])
