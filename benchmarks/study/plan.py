"""What there is to do, what is done, and how long the rest takes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from benchmarks.study.units import Study, Unit, catalog


@dataclass(frozen=True)
class Forecast:
    """Seconds of one unit, and where they come from."""

    seconds: float
    source: str


@dataclass(frozen=True)
class Plan:
    """All units, with the seconds that whole ones of the same name took on a machine of the size's kind."""

    study: Study
    units: Mapping[str, Unit]
    measured: Mapping[str, list[float]]
    adopted: frozenset[str]

    @classmethod
    def of(cls, study: Study) -> Plan:
        """As the results stand."""
        units = {unit.key: unit for unit in catalog(study.how)}
        measured, adopted = defaultdict(list), set()
        for unit in units.values():
            path = unit.path(study.results, study.how)
            if path.exists():
                found = json.loads(path.read_text(encoding="utf-8"))
                if "adopted" in found:
                    adopted.add(unit.key)
                elif found["whole"] and found["device"].startswith(study.how.machine):
                    measured[unit.name].append(found["seconds"])
        return cls(study, units, dict(measured), frozenset(adopted))

    def ready(self, unit: Unit) -> bool:
        """Whether all that it needs is done."""
        return all(self.study.done(self.units[f"{unit.place}/{name}"]) for name in unit.needs)

    def forecast(self, unit: Unit) -> Forecast:
        """Measured of the same name where there is one, else the stated estimate with most words of the name."""
        if unit.name in self.measured:
            return Forecast(median(self.measured[unit.name]), "measured")
        words, guesses = set(unit.name.split("_")), self.study.how.seconds
        fitting = [name for name in guesses if not name or set(name.split("_")) <= words]
        best = max(fitting, key=lambda name: (len(name.split("_")) if name else 0, len(name)), default=None)
        return Forecast(600.0 if best is None else guesses[best], "estimate")

    def table(self) -> str:
        """One line a unit, and the sum of what is left."""
        lines, left = [], 0.0
        for unit in self.units.values():
            forecast = self.forecast(unit)
            done = self.study.done(unit)
            left += 0 if done else forecast.seconds
            state = (
                "adopted" if unit.key in self.adopted else "done" if done else "ready" if self.ready(unit) else "waits"
            )
            lines.append(f"{unit.key:<45} {state:<8} {forecast.seconds:6.0f} s  {forecast.source}")
        count = sum(self.study.done(unit) for unit in self.units.values())
        return "\n".join([*lines, f"{count} of {len(self.units)} are done; {left / 3600:.1f} h of one core are left"])
