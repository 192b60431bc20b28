"""How trainers write, each as its own code does it; every file tells which save it belongs to.

``python -m tests.faults.writers PROFILE ROOT SEED`` saves for ever, until it is killed. On stdout
it tells, as JSON lines, what each save must leave before it begins, and when it has ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.disks import Content, Disk, RealDisk, Rehearsal

Units = list[list[str]]
"""The checkpoints that one save makes or replaces, each by the paths of its files."""


@dataclass(frozen=True)
class Writer:
    """One trainer's manner.

    ``proven``: a save that was cut short can be told from a whole one by what lies on the disk.
    Where it cannot, as in a set of raw files without a marker, no rig may kill the writer and
    then leave the daemon to look at it. ``quiet``: only quiet time tells that a save has ended,
    so that it must rest for longer than SYNCD_SETTLE. ``restless``: it overwrites one file for
    ever, every 0.2 seconds, whatever the trial says.
    """

    name: str
    save: Callable[[Disk, Content], Units]
    proven: bool = True
    quiet: bool = False
    restless: bool = False


WRITERS: dict[str, Writer] = {}


def _writer(
    proven: bool = True, quiet: bool = False, restless: bool = False
) -> Callable[[Callable[[Disk, Content], Units]], Callable[[Disk, Content], Units]]:
    def register(save: Callable[[Disk, Content], Units]) -> Callable[[Disk, Content], Units]:
        WRITERS[save.__name__] = Writer(save.__name__, save, proven, quiet, restless)
        return save

    return register


@_writer()
def lone_in_place(disk: Disk, content: Content) -> Units:
    disk.write("last.pt", *content.torch("last"))
    return [["last.pt"]]


@_writer(restless=True)
def never_quiet(disk: Disk, content: Content) -> Units:
    """The same, but it never rests and is always replaced before its transfer can end."""
    disk.write("last.pt", *content.torch("last"))
    return [["last.pt"]]


@_writer()
def eigen2(disk: Disk, content: Content) -> Units:
    """A population in place, its elite carried on, the state file last."""
    paths = [f"eigen/population/agent_{number}.pth" for number in range(4)]
    disk.write(paths[0], *content.of(content.save - 1).torch("best", 0.2))
    for path in paths[1:]:
        disk.write(path, *content.torch(path, 0.2))
    disk.write("eigen/best_agent.pth", *content.torch("best", 0.2))
    disk.write("eigen/trainer_state.json", content.json())
    return [[*paths, "eigen/best_agent.pth", "eigen/trainer_state.json"]]


@_writer()
def hugging_face(disk: Disk, content: Content) -> Units:
    """The new one first, then the oldest of three is deleted."""
    folder = f"out/checkpoint-{content.save}"
    disk.write(f"{folder}/config.json", b'{"architectures": ["GPT2LMHeadModel"]}')
    disk.presized(f"{folder}/model.safetensors", content.safetensors("model", 0.4))
    disk.write(f"{folder}/optimizer.pt", *content.torch("optimizer", 0.55))
    disk.write(f"{folder}/rng_state.pth", *content.torch("rng", 0.05))
    disk.write(f"{folder}/trainer_state.json", content.json())
    disk.remove(f"out/checkpoint-{content.save - 3}")
    names = ("config.json", "model.safetensors", "optimizer.pt", "rng_state.pth")
    return [[f"{folder}/{name}" for name in (*names, "trainer_state.json")]]


@_writer(proven=False)
def accelerate(disk: Disk, content: Content) -> Units:
    """The oldest is deleted *before* the new one is written; no marker."""
    disk.remove(f"checkpoints/checkpoint_{content.save - 2}")
    folder = f"checkpoints/checkpoint_{content.save}"
    disk.presized(f"{folder}/model.safetensors", content.safetensors("model", 0.4))
    disk.write(f"{folder}/optimizer.bin", *content.torch("optimizer", 0.5))
    disk.write(f"{folder}/scheduler.bin", *content.torch("scheduler", 0.05))
    disk.write(f"{folder}/random_states_0.pkl", *content.torch("random", 0.05))
    names = ("model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl")
    return [[f"{folder}/{name}" for name in names]]


@_writer()
def our_own(disk: Disk, content: Content) -> Units:
    aside, final = f"run/.tmp-gen-{content.save:06}-1", f"run/gen-{content.save:06}"
    for number in range(3):
        disk.write(f"{aside}/agent-{number}.bin", content.body(f"agent-{number}", 0.33))
    disk.write(f"{aside}/state.json", content.json())
    disk.rename(aside, final)
    return [[*(f"{final}/agent-{number}.bin" for number in range(3)), f"{final}/state.json"]]


@_writer()
def orbax(disk: Disk, content: Content) -> Units:
    aside, final = f"ob/{content.save}.orbax-checkpoint-tmp", f"ob/{content.save}"
    for number in range(5):
        disk.write(f"{aside}/d/{number}", content.body(f"d/{number}", 0.2))
    disk.write(f"{aside}/_CHECKPOINT_METADATA", content.json())
    disk.rename(aside, final)
    return [[*(f"{final}/d/{number}" for number in range(5)), f"{final}/_CHECKPOINT_METADATA"]]


@_writer()
def dcp_reused(disk: Disk, content: Content) -> Units:
    """One directory again and again; the old marker stays until the end."""
    paths = [f"dcp/__{number}_0.distcp" for number in range(3)]
    for path in paths:
        disk.write(path, content.body(path, 0.33))
    disk.write("dcp/.metadata.tmp", content.json())
    disk.remove("dcp/.metadata")
    disk.rename("dcp/.metadata.tmp", "dcp/.metadata")
    return [[*paths, "dcp/.metadata"]]


@_writer()
def lightning(disk: Disk, content: Content) -> Units:
    aside = f"lightning/{content.save}.part"
    name = f"epoch={content.save}-step={content.save * 10}.ckpt"
    disk.write(aside, *content.torch("model"))
    disk.rename(aside, f"lightning/{name}")
    disk.link("lightning/last.ckpt", name)
    return [[f"lightning/{name}"]]


@_writer()
def deepspeed(disk: Disk, content: Content) -> Units:
    folder = f"ds/global_step{content.save}"
    paths = [f"{folder}/zero_{number}.pt" for number in range(3)]
    for path in paths:
        disk.write(path, *content.torch(path, 0.33))
    disk.write("ds/latest", folder.encode()[3:])
    return [paths]


@_writer()
def megatron(disk: Disk, content: Content) -> Units:
    folder = f"mg/iter_{content.save:07}/mp_rank_00"
    disk.write(f"{folder}/model_optim_rng.pt", *content.torch("model"))
    disk.write("mg/latest_checkpointed_iteration.txt", str(content.save).encode())
    return [[f"{folder}/model_optim_rng.pt"]]


@_writer()
def lerobot(disk: Disk, content: Content) -> Units:
    folder = f"ck/{content.save:06}"
    weights, state = f"{folder}/pretrained_model/model.safetensors", f"{folder}/training_state"
    disk.presized(weights, content.safetensors("model"))
    disk.write(f"{state}/step.json", content.json())
    disk.link("ck/last", folder[3:])
    return [[weights, f"{state}/step.json"]]


@_writer()
def ultralytics(disk: Disk, content: Content) -> Units:
    """Two files that are each a checkpoint."""
    paths = ["weights/last.pt", "weights/best.pt"]
    for path in paths:
        disk.write(path, *content.torch(path, 0.5))
    return [[path] for path in paths]


@_writer(proven=False, quiet=True)
def stable_baselines3(disk: Disk, content: Content) -> Units:
    """Three files of one step make one checkpoint; no marker; the oldest stay."""
    steps = f"{content.save * 100}_steps"
    paths = [
        f"sb3/rl_model_{steps}.zip",
        f"sb3/rl_model_replay_buffer_{steps}.pkl",
        f"sb3/rl_model_vecnormalize_{steps}.pkl",
    ]
    disk.write(paths[0], *content.torch("model", 0.3))
    disk.write(paths[1], content.pickle("buffer", 0.6))
    disk.write(paths[2], content.pickle("normalize", 0.1))
    return [paths]


@_writer(proven=False, quiet=True)
def set_in_place(disk: Disk, content: Content) -> Units:
    """No marker at all: two files that belong together, written at once after another."""
    paths = ["mine/model.bin", "mine/optimizer.bin"]
    for path in paths:
        disk.write(path, content.body(path, 0.5))
    return [paths]


@_writer(proven=False, quiet=True)
def numbered_sets(disk: Disk, content: Content) -> Units:
    """A directory of raw files for each step, without a marker; of the directories two are kept."""
    folder = f"exp/checkpoint_{content.save:06}"
    paths = [f"{folder}/weights.bin", f"{folder}/moments.bin"]
    for path in paths:
        disk.write(path, content.body(path, 0.5))
    disk.remove(f"exp/checkpoint_{content.save - 2:06}")
    return [paths]


@_writer(proven=False, quiet=True)
def run_folder(disk: Disk, content: Content) -> Units:
    """As RVC and so-vits-svc: pairs of a step beside what tells of the run, of which two stay."""
    step, oldest = content.save * 200, (content.save - 2) * 200
    paths = [f"logs/voice/{name}_{step}.pth" for name in "GD"]
    for path in paths:
        disk.write(path, *content.torch(path, 0.5))
        disk.remove(path.replace(f"_{step}.", f"_{oldest}."))
    if content.save == 2:  # from now on this is no folder of checkpoints only
        disk.write("logs/voice/config_voice.json", b"{}")
    return [paths]


@_writer(proven=False, quiet=True)
def state_folders(disk: Disk, content: Content) -> Units:
    """As kohya's LoRA scripts: the adapter, and Accelerate's state in a folder of another name."""
    lone, folder = f"lora-{content.save:06}.pt", f"lora-{content.save:06}-state"
    disk.write(lone, *content.torch(lone, 0.1))
    paths = [f"{folder}/{name}" for name in ("model.bin", "optimizer.bin", "random_states_0.pkl")]
    for path in paths[:2]:
        disk.write(path, content.body(path, 0.4))
    disk.write(paths[2], content.pickle("random", 0.1))
    disk.remove(f"lora-{content.save - 2:06}-state")
    return [[lone], paths]


@_writer(proven=False, quiet=True)
def files_in_place(disk: Disk, content: Content) -> Units:
    """What most loops written by hand do: a file of each, at the root, written over."""
    paths = ["model.pt", "optimizer.pt"]
    for path in paths:
        disk.write(path, *content.torch(path, 0.5))
    return [paths]


@_writer(proven=False, quiet=True)
def adversaries(disk: Disk, content: Content) -> Units:
    """Two networks of one epoch, at the root; the one that comes last is not the last by name."""
    paths = [f"net{name}_epoch_{content.save}.pth" for name in "GD"]
    for path in paths:
        disk.write(path, *content.torch(path[:4], 0.5))
    disk.remove(f"netG_epoch_{content.save - 3}.pth")
    disk.remove(f"netD_epoch_{content.save - 3}.pth")
    return [paths]


@_writer(quiet=True)
def marked_beside(disk: Disk, content: Content) -> Units:
    """As NeMo 2: an empty file beside a directory says that it is being saved, or removed."""
    name, old = (f"nemo/m--step={save * 10}-last" for save in (content.save, content.save - 2))
    disk.write(f"{name}-unfinished", b"")
    paths = [f"{name}/weights/__{number}_0.distcp" for number in range(2)]
    for path in paths:
        disk.write(path, content.body(path, 0.45))
    paths += [f"{name}/weights/.metadata", f"{name}/context/io.json"]
    for path in paths[2:]:
        disk.write(path, content.json())
    disk.remove(f"{name}-unfinished")
    disk.write(f"{old}-unfinished", b"")
    disk.remove(old)
    disk.remove(f"{old}-unfinished")
    return [paths]


@_writer(proven=False, quiet=True)
def told_by_endings(disk: Disk, content: Content) -> Units:
    """As PaddleOCR: one name, and each ending is a part; and as Marian: names that go on."""
    paddle = [f"latest.{ending}" for ending in ("pdopt", "pdparams", "states")]
    for path in paddle:
        disk.write(path, content.pickle(path, 0.3))
    marian = ["m.npz", "m.npz.optimizer.npz"]
    for path in marian:
        disk.write(path, *content.torch(path, 0.3))
    return [paddle, marian]


def write_for_ever(
    writer: Writer,
    root: Path,
    seed: int,
    first: int = 1,
    scale: int = 500_000,
    pause: tuple[float, float] = (0.2, 3.0),
    out: int = 1,
) -> None:
    """Save until killed; tell each save on a file descriptor, before it and after it."""
    root.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{seed} {first}")
    rehearsal, disk = Rehearsal(), RealDisk(root, rng)
    save = first
    while True:
        content = Content(seed, save, scale)
        units = writer.save(rehearsal, content)
        expected = [{path: rehearsal.files[path] for path in unit} for unit in units]
        _tell(out, {"begin": save, "at": time.monotonic(), "units": expected})
        disk.begin()
        writer.save(disk, content)
        _tell(out, {"done": save, "at": time.monotonic(), "gap": disk.longest_gap})
        time.sleep(0.2 if writer.restless else rng.uniform(*pause))
        save += 1


def _tell(out: int, line: dict[str, object]) -> None:
    os.write(out, json.dumps(line).encode() + b"\n")


def main() -> None:
    """Save for ever, by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("writer", choices=[*WRITERS])
    parser.add_argument("root", type=Path)
    parser.add_argument("seed", type=int)
    given = parser.parse_args()
    write_for_ever(WRITERS[given.writer], given.root, given.seed)


if __name__ == "__main__":
    main()
