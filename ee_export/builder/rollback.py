"""Roll a package's operating point back to a former one."""

from collections.abc import Callable
from dataclasses import replace

from ee_export.package import history
from ee_export.package.atomic import staged_folder
from ee_export.package.origin import stamp
from ee_export.package.store import GOLDEN, Package, open_package
from ee_export.package.write import link_files, lock_package
from ee_export.verify import golden
from ee_export.verify.replay import seal_verified


def roll_back(
    package: Package, target_name: str, point_name: str, steps: int = 1, *, progress: Callable[[str, int, int], None]
) -> Package:
    """Restore a former operating point of this name atomically. A second call undoes it.

    ``steps``: number of the former point, 1 is the one that was replaced last. The golden file gets the new exits of
    the golden pages, which are replayed before the package is replaced. Concurrent changes of the package wait.

    Raises:
        BadRequest: there is no such target, or the operating point has no such history.
        BadPackage: a file differs from the manifest.
        NotEqual: the golden logits of this machine differ from the package's.
    """
    replaced = stamp("rollback")
    with lock_package(package.path, progress):
        package = open_package(package.path)  # another process may have replaced it meanwhile
        target = history.roll_back_target(package.target(target_name), point_name, replaced, steps)
        manifest = replace(package.manifest, targets={**package.manifest.targets, target_name: target})
        pages, _ = golden.read(package)
        linked = {name: entry for name, entry in package.manifest.files.items() if name != GOLDEN}
        with staged_folder(package.path.resolve(), overwrite=True) as staging:
            link_files(package, linked, staging)
            seal_verified(staging, manifest, pages, target_name, progress, linked)
    return open_package(package.path)
