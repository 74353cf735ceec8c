"""Energy that the processors of this machine use, where they count it (RAPL of Intel and AMD, by Linux's powercap)."""

import threading
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
PERIOD_S = 30.0  # between readings; a counter starts again after minutes at full power at the earliest


class EnergyMeter:
    """Counts the energy that the processors use inside a `with` block, other programs of the machine included.

    joules: None where there is no counter, or none that this user may read.
    """

    def __init__(self, folder: Path = POWERCAP):
        self._packages = sorted(folder.glob("intel-rapl:?"))  # the parts of a package have a second number
        self._last = self._read()
        self._used_uj, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def joules(self) -> float | None:
        return None if self._last is None else self._used_uj / 1e6

    def __enter__(self) -> "EnergyMeter":
        if self._last is not None:
            self._last = self._read()
            self._thread.start()
        return self

    def __exit__(self, *raised) -> None:
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()

    def _watch(self) -> None:
        ended = False
        while not ended and self._last is not None:
            ended = self._ended.wait(PERIOD_S)
            now = self._read()
            if now is not None:
                self._used_uj += sum((value - self._last[at][0]) % (most + 1) for at, (value, most) in enumerate(now))
            self._last = now

    def _read(self) -> list[tuple[int, int]] | None:
        """The counter of each package and its largest value, in microjoules."""
        try:
            values = [
                tuple(int((own / name).read_text()) for name in ("energy_uj", "max_energy_range_uj")) for own in self._packages
            ]
        except (OSError, ValueError):
            return None
        return values or None
