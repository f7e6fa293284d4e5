"""Three ways to run a chain of segments on a GPU with the same results, see :mod:`ee_export.runtime.gpu.executors.choose`."""
