"""What happens in a trial: drawn from its seed alone, so that the same seed does it again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.faults.writers import Writer


@dataclass(frozen=True)
class Plan:
    """Times are seconds; those of a machine count from its start."""

    seed: int
    scale: int
    """Bytes of a save, about."""

    pause: tuple[float, float]
    """Between two saves."""

    kills: tuple[float, ...]
    """When the daemon alone is killed; it starts again at once."""

    writer_dies: float | None
    """When the writer is killed in the midst of what it does, the daemon living on."""

    writer_again: float | None
    """When another writer goes on where that one was."""

    lost: float
    """When the machine is lost: writer and daemon at once."""

    second: float | None
    """How long a second machine, restored from the store, trains while the first lives on."""

    storm: int | None
    """Seed of the faults on the line; None: it is slow, and that is all."""

    keep: int | None
    """SYNCD_KEEP_LAST."""

    restores_killed: tuple[float, ...]
    """After how long each try to restore is killed; the one after them may finish."""

    @classmethod
    def draw(cls, seed: int, writer: Writer) -> Plan:
        """All of it from one seed."""
        rng = random.Random(f"plan {seed}")
        long = rng.random() < 0.2 or writer.restless
        lost = rng.uniform(8.0, 14.0) if long else rng.uniform(1.5, 6.5)
        pause = rng.choice(((0.2, 3.0), (0.2, 3.0), (0.9, 3.0) if writer.quiet else (0.2, 0.5)))
        scale = 200_000 * 40 ** rng.random()
        if writer.restless:
            scale = rng.uniform(5e6, 7.5e6)  # a transfer takes two to three seconds
        kills = sorted(rng.uniform(0.05, lost) for _ in range(rng.choice((0, 0, 1, 1, 2))))
        dies = again = None
        if writer.proven and rng.random() < 0.3:
            dies = rng.uniform(0.2, 0.8) * lost
            again = dies + rng.choice((0.0, 0.5, 1.5, 3.0, 99.0)) * rng.uniform(0.8, 1.2)
        return cls(
            seed=seed,
            scale=int(scale),
            pause=pause,
            kills=tuple(kills),
            writer_dies=dies,
            writer_again=again if again and again < lost else None,
            lost=lost,
            second=rng.uniform(2.0, 6.0) if rng.random() < 0.2 else None,
            storm=rng.randrange(1 << 30) if rng.random() < 0.3 else None,
            keep=rng.choice((None, None, None, 1, 2, 3)),
            restores_killed=tuple(
                0.01 * 60 ** rng.random() for _ in range(rng.choice((0, 0, 0, 0, 1, 2)))
            ),
        )

    def words(self) -> str:
        """For a person who looks into a failure."""
        said = [f"{self.scale / 1e6:.1f} MB every {self.pause[0]}-{self.pause[1]} s"]
        said += [f"daemon killed at {at:.2f}" for at in self.kills]
        if self.writer_dies is not None:
            said.append(f"writer killed at {self.writer_dies:.2f}")
        if self.writer_again is not None:
            said.append(f"another at {self.writer_again:.2f}")
        said.append(f"lost at {self.lost:.2f}")
        if self.second:
            said.append(f"second machine for {self.second:.2f}")
        said += ["storm"] if self.storm is not None else []
        said += [f"keeps {self.keep}"] if self.keep else []
        said += [f"restore killed after {after:.2f}" for after in self.restores_killed]
        return ", ".join(said)
