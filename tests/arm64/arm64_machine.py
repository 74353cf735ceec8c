"""An AArch64 machine in a folder: Debian's Python and the wheels of ExecuTorch, run by QEMU's user-mode emulator.

It needs no root and changes nothing outside the folder: apt has its own state there, and packages are only unpacked.
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from swin_hf.output_folders import check_free, new_folder

DEBIAN_PACKAGES = ("python3:arm64", "libgomp1:arm64", "libstdc++6:arm64")
EMULATOR_PACKAGE = "qemu-user-static"
EMULATOR = "qemu-aarch64-static"
WHEELS = ("executorch", "torch", "numpy", "pillow", "typing_extensions")  # for `edge.device`, in the versions used here
WHEEL_PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)] + ["manylinux2014_aarch64"]  # glibc of Debian 12
NUM_CORES = 1  # more cores would only wait for each other
STAMP = "built.json"


class NoMachineError(Exception):
    """The emulated machine cannot be built here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A processor to emulate.

    model: its name and features as an argument of QEMU.
    part: its number in Arm's identification register, by which libraries choose their kernels.
    has_float16: whether it computes in half precision; if not, the runtime refuses programs that do.
    """

    name: str
    model: str
    part: int
    has_float16: bool = True

    @property
    def midr(self) -> int:
        """The identification register: implementer (0x41 is Arm), variant, architecture, part, revision."""
        return 0x41 << 24 | 0xF << 16 | self.part << 4

    @property
    def cpuinfo(self) -> str:
        """/proc/cpuinfo as Linux would show it on this processor."""
        lines = "CPU implementer : 0x41\nCPU architecture: 8\nCPU variant : 0x0\n"
        core = f"{lines}CPU part : {self.part:#05x}\nCPU revision : 0\n"
        return "\n".join(f"processor : {number}\n{core}" for number in range(NUM_CORES))


PROCESSORS = {
    processor.name: processor
    for processor in (
        Processor(name="cortex-a53", model="cortex-a53", part=0xD03, has_float16=False),  # Armv8.0
        Processor(name="cortex-a76", model="cortex-a76", part=0xD0B),  # Armv8.2: also int8 dot products and fp16
        # QEMU 7.2 has no named Armv9 core, so this is all features but matrix tiles, with the part number of a Cortex-A710.
        Processor(name="armv9", model="max,sme=off", part=0xD47),  # also int8 matrix products
    )
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An emulated machine that `prepare_machine` has built in a folder."""

    folder: Path
    emulator: Path

    @property
    def version(self) -> str:
        """First line of the emulator's --version."""
        said = subprocess.run([self.emulator, "--version"], capture_output=True, text=True, check=True).stdout
        return said.splitlines()[0]

    def run(self, processor: Processor, script: Path, *arguments: str | Path) -> None:
        """Run a Python script on a processor; its first argument is the folder of installed packages.

        Raises:
            RuntimeError: it failed; the message has the end of what it wrote to stderr.
        """
        prefix = self.folder / "processors" / processor.name
        python = [prefix / "usr" / "bin" / "python3", "-I", "-X", "utf8", script, self.folder / "site", *arguments]
        command = [self.emulator, "-cpu", processor.model, "-L", prefix, *python]
        done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.defpath})
        if done.returncode:
            raise RuntimeError(f"{script.name} on {processor.name} ended with {done.returncode}: {done.stderr[-2000:]}")


def prepare_machine(folder: Path) -> Machine:
    """The emulated machine in `folder`, built first if it is missing or has other versions.

    Raises:
        NoMachineError: this is not Linux on another processor, or the parts of the machine cannot be downloaded.
    """
    if platform.system() != "Linux" or platform.machine() in ("aarch64", "arm64"):
        raise NoMachineError(f"emulation is for Linux on other processors, this is {platform.system()} {platform.machine()}")
    wheels = [f"{name}=={_version_here(name)}" for name in WHEELS]
    contents = json.dumps({"wheels": wheels, "processors": [p.model + p.cpuinfo for p in PROCESSORS.values()]})
    emulator = Path(shutil.which(EMULATOR) or folder / EMULATOR)
    stamp = folder / STAMP
    if emulator.is_file() and stamp.is_file() and stamp.read_text() == contents:
        return Machine(folder=folder, emulator=emulator)

    print(f"== Building an AArch64 machine in {folder}: a download of some 600 MB, once")
    with new_folder(folder, _check_replaceable) as work_dir:
        _unpack_debian(work_dir, with_emulator=shutil.which(EMULATOR) is None)
        _install_wheels(work_dir, wheels)
        here = Machine(folder=work_dir, emulator=Path(shutil.which(EMULATOR) or work_dir / EMULATOR))
        _complete_torch(here)
        for processor in PROCESSORS.values():
            _write_identity(work_dir, processor)
        (work_dir / STAMP).write_text(contents)
    return Machine(folder=folder, emulator=emulator)


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace what is not a machine that was built here."""
    if not (folder / STAMP).is_file():
        check_free(folder, "the folder of the machine")


def _version_here(name: str) -> str:
    return importlib.metadata.version(name).split("+")[0]  # without the name of a build, such as +cpu


def _unpack_debian(work_dir: Path, with_emulator: bool) -> None:
    """Unpack Python for AArch64 and its dependencies to `root`, and the emulator beside it."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise NoMachineError(f"{tool}, which fetches Debian's packages for AArch64, is not on this machine")
    here = _check(["dpkg", "--print-architecture"], "dpkg")
    apt_dir = work_dir / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt_dir / name).mkdir(parents=True)
    (apt_dir / "status").touch()  # nothing is installed, so that apt fetches all dependencies
    (apt_dir / "apt.conf").write_text(
        f"""Dir::State "{apt_dir}/state"; Dir::State::status "{apt_dir}/status"; Dir::Cache "{apt_dir}/cache";
APT::Architecture "arm64"; APT::Architectures {{ "arm64"; "{here}"; }};
Acquire::Languages "none"; APT::Sandbox::User ""; Debug::NoLocking "true";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
"""  # in container images these hooks would empty the real machine's caches
    )
    apt = ["apt-get", "-qq", "-c", str(apt_dir / "apt.conf")]
    packages = [*DEBIAN_PACKAGES, *([f"{EMULATOR_PACKAGE}:{here}"] if with_emulator else [])]
    updated = subprocess.run([*apt, "update"], capture_output=True, text=True)  # a failing source may not matter
    remarks = f"apt-get update said {updated.stderr.splitlines()[0]!r}, and then apt-get" if updated.stderr else "apt-get"
    _check([*apt, "install", "--download-only", "--no-install-recommends", "--yes", *packages], remarks)
    for package in sorted((apt_dir / "cache" / "archives").glob("*.deb")):
        to = apt_dir / "emulators" if package.name.startswith(EMULATOR_PACKAGE) else work_dir / "root"
        _check(["dpkg", "-x", str(package), str(to)], "dpkg")
    if with_emulator:
        shutil.copy2(apt_dir / "emulators" / "usr" / "bin" / EMULATOR, work_dir)
    shutil.rmtree(apt_dir)


def _install_wheels(work_dir: Path, wheels: list[str], *options: str) -> None:
    """Install wheels for the machine's Python to `site`, by default without dependencies: those of torch include CUDA."""
    python = (work_dir / "root" / "usr" / "bin" / "python3").readlink().name.removeprefix("python")
    platforms = [argument for name in WHEEL_PLATFORMS for argument in ("--platform", name)]
    target = ["--target", str(work_dir / "site"), "--implementation", "cp", "--python-version", python, *platforms]
    options = options or ("--no-deps",)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    _check([*pip, "--only-binary=:all:", *target, *options, *wheels], "pip")


def _complete_torch(machine: Machine) -> None:
    """Make a build of torch with CUDA loadable without most of CUDA; a build without CUDA is not changed.

    Of several gigabytes of libraries it uses two while loading. For each of the others, a link from its name to a library that
    is loaded anyway satisfies the linker; a CPU never calls them.
    """
    if not missing_libraries(_trace(machine)):
        return
    (torch,) = importlib.metadata.distributions(name="torch", path=[str(machine.folder / "site")])
    toolkit = next(requirement for requirement in torch.requires if requirement.startswith("cuda-toolkit"))
    version = re.search(r"==([\d.]+)", toolkit)[1]
    _install_wheels(machine.folder, [f"cuda-toolkit[cudart,cupti]=={version}"], "--upgrade")
    for name in missing_libraries(_trace(machine)):
        (machine.folder / "site" / "torch" / "lib" / name).symlink_to("libc10.so")


def _trace(machine: Machine) -> str:
    """The libraries that the dynamic linker finds for torch, as `ldd` prints them."""
    root = machine.folder / "root"
    linker, library = root / "lib" / "ld-linux-aarch64.so.1", machine.folder / "site" / "torch" / "lib" / "libtorch_python.so"
    command = [machine.emulator, "-L", root, "-E", "LD_TRACE_LOADED_OBJECTS=1", linker, library]
    return _check([str(part) for part in command], "the emulator")


def missing_libraries(trace: str) -> set[str]:
    """Names of libraries that the dynamic linker did not find, from its trace."""
    return set(re.findall(r"(\S+) => not found", trace))


def _write_identity(work_dir: Path, processor: Processor) -> None:
    """Make the root folder of a processor: links to the machine's files, and the files in which Linux describes a processor.

    Libraries read these files to detect the processor; with those of the real machine they would misbehave or crash.
    """
    prefix = work_dir / "processors" / processor.name
    cpus = prefix / "sys" / "devices" / "system" / "cpu"
    for number in range(NUM_CORES):
        identification = cpus / f"cpu{number}" / "regs" / "identification"
        identification.mkdir(parents=True)
        (identification / "midr_el1").write_text(f"{processor.midr:#018x}\n")
    for name in ("possible", "present"):
        (cpus / name).write_text(f"0-{NUM_CORES - 1}\n")
    (prefix / "proc").mkdir()
    (prefix / "proc" / "cpuinfo").write_text(processor.cpuinfo)
    for path in (work_dir / "root").iterdir():
        (prefix / path.name).symlink_to(Path("../../root") / path.name)


def _check(command: list[str], what: str) -> str:
    """Standard output of a command.

    Raises:
        NoMachineError: it failed; the message ends with the last line of its output.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"it ended with {done.returncode}"]
        raise NoMachineError(f"{what} failed: {said[-1]}")
    return done.stdout.strip()
