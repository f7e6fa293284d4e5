"""Chains in processes that were forked after they were loaded: they answer or refuse, and the processes end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

COMMON = """
import gc, multiprocessing, os, signal, sys, threading, time
import ee_export
from PIL import Image
page = ee_export.Page(Image.new("L", (80, 100)), words=["a"] * 50, boxes=[[1, 1, 2, 2]] * 50)

def ends(child, seconds=60):
    "Exit status of a child, or minus the signal that ended it; None if it does not end."
    for _ in range(seconds * 20):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None

def fork(work):
    "Run something in a forked process, which then leaves as the interpreter does at its end."
    child = os.fork()
    if child:
        return ends(child)
    sys.exit(work())
"""


def outcome(script: str, package: Path) -> str:
    """Last line that a script prints. ``path`` is the package in it."""
    done = subprocess.run(
        [sys.executable, "-c", f"{COMMON}\npath = {str(package)!r}\n{script}"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("idle_s", [0, 0.5])
def test_a_forked_process_gives_the_same_answers_and_ends(sample: Path, threads: int, idle_s: float) -> None:
    script = f"""
chain = ee_export.load(path, operating_point="full", threads={threads})
label = chain.predict(page).probabilities
time.sleep({idle_s})
print(fork(lambda: 7 if chain.predict(page).probabilities == label else 8))
"""
    assert outcome(script, sample) == "7"


def test_a_forked_process_that_never_uses_the_chain_ends(sample: Path) -> None:
    assert (
        outcome("chain = ee_export.load(path, threads=2); chain.predict(page); print(fork(lambda: 7))", sample) == "7"
    )


def test_a_forked_process_that_drops_the_chain_ends(sample: Path) -> None:
    script = """
chain = ee_export.load(path, threads=2)
def work():
    global chain
    chain.predict(page)
    del chain
    gc.collect()
    return 7
print(fork(work))
"""
    assert outcome(script, sample) == "7"


def test_a_process_forked_during_predictions_answers(sample: Path) -> None:
    script = """
chain = ee_export.load(path, operating_point="full", threads=2)
stop = threading.Event()
def work():
    while not stop.is_set():
        chain.predict(page)
masters = [threading.Thread(target=work) for _ in range(2)]
for each in masters: each.start()
print({fork(lambda: 7 if chain.predict(page).label else 8) for _ in range(5)})
stop.set()
for each in masters: each.join()
"""
    assert outcome(script, sample) == "{7}"


def test_a_process_forked_while_a_chain_is_loaded_can_load_one(sample: Path) -> None:
    script = """
stop = threading.Event()
def work():
    while not stop.is_set():
        ee_export.load(path, threads=2)
master = threading.Thread(target=work)
master.start()
print({fork(lambda: 7 if ee_export.load(path, threads=2).predict(page).label else 8) for _ in range(5)})
stop.set()
master.join()
"""
    assert outcome(script, sample) == "{7}"


def test_a_process_forked_from_a_forked_one_answers(sample: Path) -> None:
    script = """
chain = ee_export.load(path, threads=2)
def child():
    chain.predict(page)
    return fork(lambda: 7 if chain.predict(page).label else 8)
print(fork(child))
"""
    assert outcome(script, sample) == "7"


def test_many_pages_and_several_threads_work_in_a_forked_process(sample: Path) -> None:
    script = """
chain = ee_export.load(path, threads=1)
def work():
    sizes = dict.fromkeys(chain.exits, 4)
    return sum(isinstance(each, ee_export.Answer) for each in chain.predict_many([page] * 20, batch=sizes, streams=2))
print(fork(work))
"""
    assert outcome(script, sample) == "20"


def test_the_parent_process_continues_after_the_fork(sample: Path) -> None:
    script = """
chain = ee_export.load(path, threads=2)
before = chain.predict(page).label
fork(lambda: 7)
print(chain.predict(page).label == before and ee_export.load(path, threads=2).predict(page).label == before)
"""
    assert outcome(script, sample) == "True"


def test_a_package_that_changed_before_the_fork_is_refused_in_the_child(sample: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sample, tmp_path / "copy.ee")
    script = """
chain = ee_export.load(path, operating_point="full", threads=2)
weights = os.path.join(path, "cpu-fp32", "weights.bin")
contents = bytearray(open(weights, "rb").read())
contents[len(contents) // 2] ^= 1
os.remove(weights)  # the chain goes on with the file that it has mapped
open(weights, "wb").write(contents)
def work():
    try:
        chain.predict(page)
    except ee_export.EeError as error:
        print(error, flush=True)
        return 7
print(fork(work), chain.predict(page).label in chain.labels)
"""
    assert outcome(script, copy) == "7 True"


@pytest.mark.parametrize("method", ["map", "terminate"])
def test_multiprocessing_workers_answer_and_end(sample: Path, method: str) -> None:
    script = f"""
chain = ee_export.load(path, threads=2)
pool = multiprocessing.get_context("fork").Pool(2)
def label(at): return chain.predict(page).label
pool = multiprocessing.get_context("fork").Pool(2)
labels = set(pool.map(label, range(6)))
pool.{"close" if method == "map" else "terminate"}()
pool.join()
print(labels == {{chain.predict(page).label}})
"""
    assert outcome(script, sample) == "True"


def test_a_worker_ends_at_sigterm(sample: Path) -> None:
    script = """
chain = ee_export.load(path, threads=2)
def work():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    chain.predict(page)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
print(fork(work))
"""
    assert outcome(script, sample) == "7"


@pytest.mark.parametrize(
    "again", ["chain.predict(page)", "ee_export.load(path)", "ee_export.load(path, one_pool=True)"]
)
def test_a_shared_pool_is_refused_in_a_forked_process_with_the_remedy(sample: Path, again: str) -> None:
    script = f"""
from ee_export.errors import ForkedError
chain = ee_export.load(path, threads=2, one_pool=True)
chain.predict(page)
def work():
    try:
        {again}
    except ForkedError as error:
        return 7 if "one_pool=False" in str(error) and "\\n" not in str(error) else 8
print(fork(work))
"""
    assert outcome(script, sample) == "7"


APP = """
import json, os
import ee_export
from PIL import Image

chain = ee_export.load(os.environ["PACKAGE"], threads=2)
page = ee_export.Page(Image.new("L", (80, 100)), words=["a"] * 50, boxes=[[1, 1, 2, 2]] * 50)
label = chain.predict(page).label

def app(environ, start_response):
    body = json.dumps({"same": chain.predict(page).label == label, "worker": os.getpid(), "master": os.getppid()})
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body.encode()]
"""
TASKS = """
import os
import ee_export
from celery import Celery
from PIL import Image

folder = os.environ["BROKER"]
celery = Celery("tasks", broker="filesystem://", backend=f"file://{folder}/results")
celery.conf.broker_transport_options = {name: f"{folder}/queue" for name in ("data_folder_in", "data_folder_out")} | {
    "control_folder": f"{folder}/control"
}
chain = ee_export.load(os.environ["PACKAGE"], threads=2)
page = ee_export.Page(Image.new("L", (80, 100)), words=["a"] * 50, boxes=[[1, 1, 2, 2]] * 50)
label = chain.predict(page).label

@celery.task
def classify():
    return [chain.predict(page).label == label, os.getpid(), os.getppid()]
"""


@contextmanager
def service(command: list[str], folder: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A running program with its output in a file. It and its child processes are ended afterwards."""
    root = Path(__file__).resolve().parents[2]
    given = {**os.environ, "PYTHONPATH": f"{root}:{folder}", **variables}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=given,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def retry(action, seconds: float = 90):
    """The result of an action, tried until it raises no exception."""
    for _ in range(int(seconds * 5)):
        try:
            return action()
        except Exception:
            time.sleep(0.2)
    return action()


def alive(processes: set[int]) -> set[int]:
    return {pid for pid in processes if Path(f"/proc/{pid}").exists()}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gunicorn") is None, reason="gunicorn is not installed")
def test_gunicorn_workers_of_a_preloaded_chain_answer_and_end_at_sigterm(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(APP)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["gunicorn", "--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}", "service:app"]

    def ask() -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as reply:
            return json.load(reply)

    with service(command, tmp_path, PACKAGE=str(sample)) as master:
        replies = [retry(ask)]
        for _ in range(200):
            replies.append(ask())
            if len({reply["worker"] for reply in replies}) == 2:
                break
        workers = {reply["worker"] for reply in replies}
        assert len(workers) == 2, (tmp_path / "log").read_text()
        assert all(reply["same"] and reply["master"] == master.pid for reply in replies)
        master.terminate()
        assert master.wait(60) == 0, (tmp_path / "log").read_text()
        assert alive(workers) == set()
        assert "SIGKILL" not in (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("celery") is None, reason="celery is not installed")
def test_celery_workers_of_a_chain_loaded_before_the_fork_answer_and_end_at_sigterm(
    sample: Path, tmp_path: Path
) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    variables = {"PACKAGE": str(sample), "BROKER": str(tmp_path)}
    command = ["celery", "-A", "tasks", "worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "INFO"]
    call = "import json, tasks; print(json.dumps([each.get(timeout=60) for each in [tasks.classify.delay() for _ in range(8)]]))"
    with service(command, tmp_path, **variables) as master:
        root = Path(__file__).resolve().parents[2]
        given = {**os.environ, "PYTHONPATH": f"{root}:{tmp_path}", **variables}
        done = subprocess.run(
            [sys.executable, "-c", call], capture_output=True, text=True, timeout=120, env=given, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
        replies = json.loads(done.stdout)
        assert all(same and parent == master.pid for same, _, parent in replies)
        master.terminate()
        assert master.wait(60) == 0, (tmp_path / "log").read_text()
        assert alive({worker for _, worker, _ in replies}) == set()
