"""How trainers write, each as its own code does it; every file tells which save it belongs to.

``python -m tests.faults.writers PROFILE ROOT SEED`` saves for ever, until it is killed.
"""

from __future__ import annotations

import json
import os
import random
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

Save = Callable[[Path, int, random.Random], None]


def _body(generation: int, rng: random.Random) -> bytes:
    """Between 20 and 300 kB that name their save in every 64 bytes."""
    line = f"save {generation:08d} ".encode().ljust(64, b".")
    return line * rng.randint(300, 5000)


def _zip(path: Path, generation: int, rng: random.Random) -> None:
    """As torch.save: in place, the directory of the archive last, no fsync."""
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for number in range(3):
            archive.writestr(f"archive/data/{number}", _body(generation, rng))
            _dawdle(rng)


def _safetensors(path: Path, generation: int, rng: random.Random) -> None:
    """Made to its full size first, written after, renamed before it is closed."""
    body = _body(generation, rng)
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [len(body)], "data_offsets": [0, len(body)]}}
    )
    aside = path.with_suffix(".tmp")
    with aside.open("wb") as file:
        file.truncate(8 + len(header) + len(body))
        file.write(struct.pack("<Q", len(header)) + header.encode())
        _dawdle(rng)
        aside.rename(path)
        file.write(body)
        file.flush()
        _dawdle(rng)


def _json(path: Path, generation: int) -> None:
    path.write_text(json.dumps({"global_step": generation, "generation": generation}))


def _dawdle(rng: random.Random) -> None:
    if rng.random() < 0.3:
        time.sleep(rng.random() * 0.05)


def lone_in_place(root: Path, generation: int, rng: random.Random) -> None:
    _zip(root / "last.pt", generation, rng)


def eigen2(root: Path, generation: int, rng: random.Random) -> None:
    folder = root / "eigen/population"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        _zip(folder / f"agent_{number}.pth", generation, rng)
    _zip(folder.parent / "best_agent.pth", generation, rng)
    _json(folder.parent / "trainer_state.json", generation)


def hugging_face(root: Path, generation: int, rng: random.Random) -> None:
    folder = root / f"out/checkpoint-{generation}"
    folder.mkdir(parents=True)
    _safetensors(folder / "model.safetensors", generation, rng)
    _zip(folder / "optimizer.pt", generation, rng)
    _zip(folder / "rng_state.pth", generation, rng)
    _json(folder / "trainer_state.json", generation)


def our_own(root: Path, generation: int, rng: random.Random) -> None:
    aside = root / f"run/.tmp-gen-{generation:06}-1"
    aside.mkdir(parents=True)
    for number in range(3):
        (aside / f"agent-{number}.bin").write_bytes(_body(generation, rng))
        _dawdle(rng)
    _json(aside / "state.json", generation)
    aside.rename(root / f"run/gen-{generation:06}")


def orbax(root: Path, generation: int, rng: random.Random) -> None:
    aside = root / f"ob/{generation}.orbax-checkpoint-tmp"
    (aside / "d").mkdir(parents=True)
    for number in range(5):
        (aside / "d" / f"{number}").write_bytes(_body(generation, rng))
        _dawdle(rng)
    _json(aside / "_CHECKPOINT_METADATA", generation)
    aside.rename(root / f"ob/{generation}")


def dcp_reused(root: Path, generation: int, rng: random.Random) -> None:
    folder = root / "dcp"
    folder.mkdir(exist_ok=True)
    for number in range(3):
        (folder / f"__{number}_0.distcp").write_bytes(_body(generation, rng))
        _dawdle(rng)
    _json(folder / ".metadata.tmp", generation)
    (folder / ".metadata").unlink(missing_ok=True)
    (folder / ".metadata.tmp").rename(folder / ".metadata")


def lightning(root: Path, generation: int, rng: random.Random) -> None:
    folder = root / "lightning"
    folder.mkdir(exist_ok=True)
    aside = folder / f"{generation}.part"
    _zip(aside, generation, rng)
    final = folder / f"epoch={generation}-step={generation * 10}.ckpt"
    aside.rename(final)
    (folder / "last.ckpt").unlink(missing_ok=True)
    (folder / "last.ckpt").symlink_to(final.name)


def deepspeed(root: Path, generation: int, rng: random.Random) -> None:
    folder = root / f"ds/global_step{generation}"
    folder.mkdir(parents=True)
    for number in range(3):
        _zip(folder / f"zero_{number}.pt", generation, rng)
    (root / "ds/latest").write_text(folder.name)


def megatron(root: Path, generation: int, rng: random.Random) -> None:
    folder = root / f"mg/iter_{generation:07}/mp_rank_00"
    folder.mkdir(parents=True)
    _zip(folder / "model_optim_rng.pt", generation, rng)
    (root / "mg/latest_checkpointed_iteration.txt").write_text(str(generation))


def lerobot(root: Path, generation: int, rng: random.Random) -> None:
    folder = root / f"ck/{generation:06}"
    (folder / "pretrained_model").mkdir(parents=True)
    _safetensors(folder / "pretrained_model/model.safetensors", generation, rng)
    (folder / "training_state").mkdir()
    _json(folder / "training_state/step.json", generation)
    (root / "ck/last").unlink(missing_ok=True)
    (root / "ck/last").symlink_to(folder.name)


def ultralytics(root: Path, generation: int, rng: random.Random) -> None:
    folder = root / "weights"
    folder.mkdir(exist_ok=True)
    for name in ("last.pt", "best.pt"):
        _zip(folder / name, generation, rng)


def set_in_place(root: Path, generation: int, rng: random.Random) -> None:
    """No marker at all: two files that belong together, written at once after another."""
    folder = root / "mine"
    folder.mkdir(exist_ok=True)
    for name in ("model.bin", "optimizer.bin"):
        (folder / name).write_bytes(_body(generation, rng))


WRITERS: dict[str, Save] = {
    save.__name__: save
    for save in (
        lone_in_place, eigen2, hugging_face, our_own, orbax, dcp_reused, lightning, deepspeed,
        megatron, lerobot, ultralytics, set_in_place,
    )
}  # fmt: skip


def main() -> None:
    """Save for ever; tell each finished save on stdout."""
    name, root, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    generation = 0
    while True:
        generation += 1
        WRITERS[name](root, generation, rng)
        os.write(1, f"{generation}\n".encode())
        time.sleep(rng.uniform(0.2, 3.0))


if __name__ == "__main__":
    main()
