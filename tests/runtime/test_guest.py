"""A chain is a guest: the process, its other libraries and the machine are as before."""

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime
import pytest

import ee_export
from ee_export.errors import BadRequest, EeError
from ee_export.runtime.threads import MOST_THREADS, available_threads

TELEMETRY = "ORT_DISABLE_TELEMETRY"
has_telemetry = pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 29) or sys.platform != "linux",
    reason="this onnxruntime reports nothing on this system",
)
PREDICT = """
import ee_export
from PIL import Image
page = ee_export.Page(Image.new("L", (80, 100)), words=["a"] * 50, boxes=[[1, 1, 2, 2]] * 50)
"""


def run_python(
    script: str, variables: Mapping[str, str | None] | None = None, under: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, with some variables set or, if ``None``, not set."""
    given = {name: value for name, value in {**os.environ, **(variables or {})}.items() if value is not None}
    command = [*under, sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=given)


def answers(script: str, variables: Mapping[str, str | None] | None = None) -> str:
    """Output of a script that succeeds."""
    done = run_python(script, variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "enter",
    [
        "import ee_export",
        "import ee_export.runtime.ort",
        "from ee_export.verify.replay import verify_package",
        "import ee_export.cli.main",
        "import ee_export.bench.cli",
    ],
)
def test_every_way_in_switches_telemetry_off_before_onnxruntime_is_imported(enter: str) -> None:
    script = f"""
    import os, sys
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "onnxruntime":
                print(os.environ.get("{TELEMETRY}"))
    sys.meta_path.insert(0, Finder())
    {enter}
    """
    assert answers(script, {TELEMETRY: None}) == "1"


@pytest.mark.parametrize("own", ["0", "1", ""])
def test_the_users_choice_on_telemetry_is_kept(own: str) -> None:
    assert answers(f"import os, ee_export; print(os.environ['{TELEMETRY}'])", {TELEMETRY: own}) == own


def test_a_process_that_python_spawns_has_telemetry_off(tmp_path: Path) -> None:
    script = f"""
    import os, multiprocessing, ee_export
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(os.getenv, ["{TELEMETRY}"]))
    """
    assert answers(script, {TELEMETRY: None}) == "1"


def test_no_other_variable_of_the_process_changes(sample: Path) -> None:
    script = f"""
    import os
    before = dict(os.environ)
    {PREDICT.strip().replace(chr(10), chr(10) + "    ")}
    ee_export.load({str(sample)!r}).predict(page)
    print(sorted(name for name in {{*before, *os.environ}} if before.get(name) != os.environ.get(name)))
    """
    assert answers(script, {TELEMETRY: None}) == str([TELEMETRY])


@has_telemetry
def test_nothing_is_written_to_the_home_folder(sample: Path, tmp_path: Path) -> None:
    script = f"{PREDICT}\nee_export.load({str(sample)!r}).predict(page)"
    variables = {"HOME": str(tmp_path), "XDG_CACHE_HOME": None, "CI": None, TELEMETRY: None}
    answers(script, variables)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@has_telemetry
@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_chain_makes_no_name_lookup_while_it_works_and_idles(sample: Path, tmp_path: Path) -> None:
    # With telemetry on, onnxruntime 1.32 resolves its host nine seconds after its import.
    script = f"{PREDICT}\nimport time\nee_export.load({str(sample)!r}).predict(page)\ntime.sleep(14)"
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    strace = ("strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace))
    done = run_python(script, {"HOME": str(tmp_path), "CI": None, TELEMETRY: None}, strace)
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert [line for line in trace.read_text().splitlines() if "AF_INET" in line or "htons(53)" in line] == []


@pytest.mark.parametrize("order", ["before", "after", "between two chains"])
def test_another_librarys_sessions_work_with_default_options(sample: Path, order: str) -> None:
    script = f"""{PREDICT}
import onnxruntime
def load(): return ee_export.load({str(sample)!r})
def other(): return onnxruntime.InferenceSession({str(sample / "cpu-fp32" / "vision.onnx")!r})
made = [step() for step in {{"before": [other, load], "after": [load, other], "between two chains": [load, other, load]}}[{order!r}]]
for each in made:
    if isinstance(each, ee_export.Chain):
        print(each.predict(page).label in each.labels)
    else:
        import numpy
        print(each.run(None, {{"pixel_values": numpy.zeros([1, *each.get_inputs()[0].shape[1:]], numpy.float32)}})[0].ndim == 2)
"""
    assert set(answers(script).split()) == {"True"}


@pytest.mark.parametrize("host", ["session", "pool", "arena", "all"])
def test_a_chain_works_beside_the_hosts_use_of_onnxruntime(sample: Path, host: str) -> None:
    script = f"""{PREDICT}
import onnxruntime
if {host!r} in ("pool", "all"):
    onnxruntime.set_global_thread_pool_sizes(2, 1)
if {host!r} in ("arena", "all"):
    cpu = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(cpu, None)
options = onnxruntime.SessionOptions()
options.use_per_session_threads = {host!r} not in ("pool", "all")
session = onnxruntime.InferenceSession({str(sample / "cpu-fp32" / "vision.onnx")!r}, options)
print(len({{ee_export.load({str(sample)!r}, one_pool=one_pool).predict(page).label for one_pool in (False, True, False)}}))
"""
    assert answers(script) == "1"


def test_both_kinds_of_pool_give_the_same_answers(sample: Path) -> None:
    script = f"""{PREDICT}
for one_pool in (False, True):
    print(ee_export.load({str(sample)!r}, operating_point="full", one_pool=one_pool).predict(page).probabilities)
"""
    first, second = answers(script).splitlines()
    assert first == second


def test_threads_of_a_chain_sleep_between_its_runs(sample: Path) -> None:
    script = f"""{PREDICT}
import time
chain = ee_export.load({str(sample)!r}, threads=4)
chain.predict(page)
time.sleep(0.2)
before = time.process_time()
time.sleep(1)
print(time.process_time() - before < 0.05)
"""
    assert answers(script) == "True"


@pytest.mark.parametrize("threads", [0, -1, MOST_THREADS + 1, 100_000, True, 1.0, "2", "9" * 10_000])
def test_a_number_of_threads_out_of_range_is_refused_in_one_short_line(sample: Path, threads: object) -> None:
    with pytest.raises(BadRequest, match=rf"^threads is .*expected a whole number from 1 to {MOST_THREADS}") as refused:
        ee_export.load(sample, threads=threads)  # type: ignore[arg-type]
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("streams", [0, MOST_THREADS + 1, True, 1.5])
def test_a_number_of_streams_out_of_range_is_refused(sample: Path, streams: object) -> None:
    with pytest.raises(BadRequest, match=r"^streams is "):
        list(ee_export.load(sample).predict_many([], streams=streams))  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["ee-export predict", "ee-bench run", "ee-bench compare"])
def test_commands_refuse_a_hundred_thousand_threads(sample: Path, command: str) -> None:
    program, name = command.split()
    module = {"ee-export": "ee_export.cli.main", "ee-bench": "ee_export.bench.cli"}[program]
    done = run_python(
        f"import sys; sys.argv[1:] = [{name!r}, {str(sample)!r}, {str(sample)!r}, '--threads', '100000']; from {module} import main; main()"
    )
    assert done.returncode == 2
    assert "100000" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("group", "files", "most"),
    [
        ("0::/app", {"app/cpu.max": "150000 100000"}, 2),
        ("0::/app", {"app/cpu.max": "max 100000"}, None),
        ("0::/slice/app", {"slice/cpu.max": "100000 100000", "slice/app/cpu.max": "max 100000"}, 1),
        ("0::/docker/0123", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "20000 100000"}, 1),
        ("4:cpu,cpuacct:/app", {"cpu/app/cpu.cfs_quota_us": "100000", "cpu/app/cpu.cfs_period_us": "100000"}, 1),
        ("4:cpuacct,cpu:/", {"cpuacct,cpu/cpu.cfs_quota_us": "1000", "cpuacct,cpu/cpu.cfs_period_us": "100000"}, 1),
        ("4:cpu:/app", {"cpu/app/cpu.cfs_quota_us": "-1", "cpu/app/cpu.cfs_period_us": "100000"}, None),
        ("0::/app", {"app/cpu.max": "nonsense"}, None),
        ("0::/../../app", {"cpu.max": "50000 100000"}, 1),
        ("", {}, None),
    ],
)
def test_threads_by_default_are_no_more_than_the_control_groups_give_time_for(
    tmp_path: Path, group: str, files: dict[str, str], most: int | None
) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"9:name=systemd:/\n{group}\n" if group else "")
    for name, contents in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{contents}\n")
    allowed = len(os.sched_getaffinity(0))
    given = available_threads(tmp_path / "proc", tmp_path / "cgroup")
    assert given == (allowed if most is None else min(allowed, most))


def test_threads_by_default_respect_affinity() -> None:
    script = """
    import os
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from ee_export.runtime.threads import available_threads
    print(available_threads())
    """
    assert answers(script) == "1"


def test_a_package_loads_with_the_system_calls_of_windows(sample: Path) -> None:
    script = f"""
import os, sys
import numpy, onnxruntime, PIL.Image, tokenizers  # they ask for the system that they were built for
sys.modules["fcntl"] = None
for name in ("O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "O_CLOEXEC", "uname", "readv", "register_at_fork", "sched_getaffinity"):
    delattr(os, name)
os.supports_dir_fd = set()
{PREDICT}
print(ee_export.load({str(sample)!r}).predict(page).label in ee_export.load({str(sample)!r}).labels)
"""
    assert answers(script) == "True"


@pytest.mark.parametrize("command", ["verify", "inspect", "rollback"])
def test_commands_without_fcntl_read_packages_and_refuse_to_write_them_in_one_line(sample: Path, command: str) -> None:
    script = """
import sys
sys.modules["fcntl"] = None
from ee_export.cli.main import main
main()
"""
    arguments = [sys.executable, "-c", script, command, str(sample)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    if command == "rollback":
        assert done.returncode == 2
        assert "write packages on Linux or macOS" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    else:
        assert done.returncode == 0, done.stderr


def test_every_error_is_a_public_name() -> None:
    errors = {
        name for name, value in vars(ee_export.errors).items() if isinstance(value, type) and issubclass(value, EeError)
    }
    assert errors <= set(ee_export.__all__)
    assert all(getattr(ee_export, name) is getattr(ee_export.errors, name) for name in errors)
