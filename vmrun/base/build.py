"""Building a guest base from Debian packages.

No maintainer script runs and nothing here needs root: packages are only unpacked, and owners are
given by mkfs. The same recipe, packages and compiler give the same bytes.
"""

from __future__ import annotations

import os
import shlex
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmrun.base import debs, manifest, store
from vmrun.base.assemble import RootTree, assemble_root
from vmrun.base.initrd import make_initrd, module_list
from vmrun.base.kernel_modules import ModuleTree
from vmrun.base.recipe import Recipe, load_recipe, recipe_directory
from vmrun.base.tools import require_tools, run_tool
from vmrun.base.verity import append_hash_tree
from vmrun.model.base import Base, BaseFile, Flavour
from vmrun.model.errors import BaseError

ARCHITECTURE = "x86_64"
_FETCH_DEADLINE = 1800.0
_COMPILE_DEADLINE = 300.0
_IMAGE_DEADLINE = 600.0
_EROFS_TIME = "0"

Progress = Callable[[str, float], None]


def build_base(
    flavour: Flavour,
    bases: Path,
    cache: Path,
    *,
    mirror: str | None = None,
    on_step: Progress = lambda name, fraction: None,
) -> Base:
    """Build a base and make it the current one of its flavour in ``bases``.

    Downloaded packages are kept in ``cache``. ``mirror`` replaces mmdebstrap's default one.
    ``on_step`` is told what begins, and the fraction of the work that is done.
    """
    recipe = load_recipe(recipe_directory(), flavour)
    require_tools()
    with store.building(bases) as workspace:
        on_step("fetch and unpack the packages", 0.0)
        unpacked = _fetch_packages(recipe, workspace, cache, mirror)
        on_step("compile the init and the guest tool", 0.6)
        binaries = _compile(recipe, workspace)
        on_step("assemble the root", 0.7)
        kernel = _find_kernel(unpacked)
        initrd_modules = kernel.modules.load_order(recipe.initrd_modules)
        root_modules = kernel.modules.load_order(recipe.root_modules, loaded=initrd_modules)
        tree = RootTree(workspace / "root", unpacked)
        assemble_root(tree, recipe, binaries, root_modules, module_list(root_modules))
        packages = _packages_used(unpacked, recipe, tree, kernel)
        on_step("write the initrd and the root image", 0.75)
        finished = workspace / "base"
        finished.mkdir()
        (finished / "vmlinuz").write_bytes(kernel.image.read_bytes())
        initrd = make_initrd((binaries / "stage1").read_bytes(), initrd_modules)
        (finished / "initrd.img").write_bytes(initrd)
        _make_root_image(workspace / "root", finished / "root.img")
        on_step("hash the root", 0.9)
        verity = append_hash_tree(finished / "root.img")
        base = Base(
            digest=recipe.digest,  # the manifest's own digest follows from its bytes
            flavour=recipe.flavour,
            architecture=ARCHITECTURE,
            kernel_release=kernel.release,
            contract=manifest.CONTRACT,
            verity=verity,
            files={name: _describe(finished / name) for name in manifest.FILES},
            packages=packages,
            directory=finished,
            recipe=recipe.digest,
        )
        (finished / store.MANIFEST).write_bytes(manifest.serialise(base))
        on_step("install", 0.95)
        installed = store.install(finished, bases)
    on_step("done", 1.0)
    return installed


@dataclass(frozen=True, slots=True)
class _Kernel:
    """The kernel among the unpacked packages."""

    release: str
    image: Path
    modules: ModuleTree
    image_path: str


def _fetch_packages(recipe: Recipe, workspace: Path, cache: Path, mirror: str | None) -> Path:
    """Let mmdebstrap download and unpack the packages, through the cache."""
    archives = cache / "packages"
    try:
        archives.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BaseError(f"cannot create {archives}: {error.strerror}") from error
    unpacked = workspace / "unpacked"
    kept = shlex.quote(str(archives))
    selection = shlex.quote(str(workspace / "selection"))
    inside = '"$1"/var/cache/apt/archives'
    wanted = " ".join(map(shlex.quote, recipe.packages))
    run_tool(
        [
            "mmdebstrap",
            # Unpacks and runs nothing; in this mode also without root.
            "--variant=extract",
            "--mode=chrootless",
            "--format=directory",
            f"--include={','.join(recipe.packages)}",
            f"--setup-hook=mkdir -p {inside} && cp {kept}/*.deb {inside} 2>/dev/null || true",
            # What apt would install is what it has downloaded, by name and version.
            f'--extract-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" '
            f"apt-get --simulate --quiet install {wanted} >{selection}",
            f"--extract-hook=cp -u {inside}/*.deb {kept}",
            "--skip=cleanup/apt/cache",
            recipe.suite,
            str(unpacked),
            *([mirror] if mirror is not None else []),
        ],
        deadline=_FETCH_DEADLINE,
        hint="check the network and apt's mirror, or name one with --mirror",
        environment={**os.environ, "TMPDIR": str(workspace), "LC_ALL": "C.UTF-8"},
    )
    return unpacked


def _compile(recipe: Recipe, workspace: Path) -> Path:
    """Compile in a copy of the sources, by relative paths: make cannot handle spaces in names."""
    sources = workspace / "src"
    shutil.copytree(recipe.sources, sources)
    run_tool(
        ["make", "--silent", "OUT=build"],
        directory=sources,
        deadline=_COMPILE_DEADLINE,
        hint="apt-get install gcc musl-tools linux-libc-dev",
        environment={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
    )
    return sources / "build"


def _find_kernel(unpacked: Path) -> _Kernel:
    images = sorted((unpacked / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise BaseError(f"expected one kernel in the packages, found {len(images)}")
    release = images[0].name.removeprefix("vmlinuz-")
    directory = unpacked / "usr/lib/modules" / release
    return _Kernel(release, images[0], ModuleTree(directory), f"/boot/{images[0].name}")


def _packages_used(
    unpacked: Path, recipe: Recipe, tree: RootTree, kernel: _Kernel
) -> Mapping[str, str]:
    """The packages that something in the base comes from, with their versions."""
    selection = (unpacked.parent / "selection").read_text(encoding="utf-8")
    owner = debs.owners(unpacked / "var/cache/apt/archives", debs.parse_selection(selection))
    used = {}
    for path in sorted({*tree.used, kernel.image_path}):
        if path not in owner:
            raise BaseError(f"no package of {recipe.suite} owns {path}")
        used[owner[path].name] = owner[path].version
    return dict(sorted(used.items()))


def _make_root_image(root: Path, image: Path) -> None:
    """An erofs image of ``root``, everything owned by root, all times the epoch's."""
    run_tool(
        [
            "mkfs.erofs",
            f"-T{_EROFS_TIME}",
            # The file system's own identity says nothing: dm-verity's root hash is what counts.
            f"-U{uuid.UUID(int=0)}",
            "-x-1",
            "--all-root",
            "--quiet",
            str(image),
            str(root),
        ],
        deadline=_IMAGE_DEADLINE,
        hint="apt-get install erofs-utils",
    )


def _describe(path: Path) -> BaseFile:
    size, digest = store.hash_file(path)
    return BaseFile(path.name, digest, size)
