"""The name of this machine, beside figures that were measured on it."""

import platform

import onnxruntime

from ee_export.runtime.threads import available_threads


def machine_name() -> str:
    """Name the processor, the number of processors available to this process, and onnxruntime's version."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {available_threads()} processors, onnxruntime {onnxruntime.__version__}, {platform.system()}"
