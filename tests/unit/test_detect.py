"""Completeness: each writer by its own last act, and nobody before it."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from syncd.detect import Detector, Verdict, writer_at
from syncd.profiles import Unit, units
from syncd.scan import scan
from tests.clocks import FakeClock


class Desk:
    """A root with a detector whose clock does not run by itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = FakeClock(now=root.stat().st_ctime)
        self.detector = Detector(root, 2.0, self.clock)

    def write(self, path: str, content: bytes | str = b"\x80x.") -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    def units(self) -> dict[str, Unit]:
        tree = scan(self.root)
        assert tree
        return {unit.path: unit for unit in units(tree)}

    def judge(self, path: str) -> Verdict:
        return self.detector.judge(self.units()[path])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def whole_zip(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    data = path.read_bytes()
    path.unlink()
    return data


def test_renamed_directory_is_complete_at_once(desk: Desk) -> None:
    desk.write("run/.tmp-gen-000005-77/state.json", "{}")
    assert desk.units() == {}
    desk.write("run/.tmp-gen-000005-77/replay.bin")
    (desk.root / "run/.tmp-gen-000005-77").rename(desk.root / "run/gen-000005")
    verdict = desk.judge("run/gen-000005")
    assert (verdict.complete, verdict.profile) == (True, "trainer")


def test_lone_file_needs_quiet(desk: Desk) -> None:
    desk.write("weights.bin", b"nothing here says where it ends")
    verdict = desk.judge("weights.bin")
    assert not verdict.complete
    assert verdict.again == pytest.approx(2.0, abs=0.2)
    desk.clock.sleep(2.1)
    assert desk.judge("weights.bin").complete
    desk.write("weights.bin", b"nothing here says where it ends!")
    assert not desk.judge("weights.bin").complete


def test_lone_file_that_proves_its_end_is_complete_once_it_is_closed(desk: Desk) -> None:
    whole = whole_zip(desk.root / "z")
    desk.write("last.pt", whole)
    assert not desk.judge("last.pt").complete
    desk.clock.sleep(0.2)
    assert desk.judge("last.pt").complete
    with (desk.root / "last.pt").open("r+b"):
        desk.clock.sleep(0.2)
        assert not desk.judge("last.pt").complete
    desk.write("last.pt", whole[:-5])
    desk.clock.sleep(60)
    assert not desk.judge("last.pt").complete


def test_cut_file_is_never_complete(desk: Desk) -> None:
    desk.write("last.pt", whole_zip(desk.root / "z")[:-5])
    desk.judge("last.pt")
    desk.clock.sleep(3600)
    verdict = desk.judge("last.pt")
    assert not verdict.complete
    assert "cut off" in verdict.reason


def test_file_that_shrank_to_nothing_is_never_complete(desk: Desk) -> None:
    desk.write("last.pt", b"")
    desk.judge("last.pt")
    desk.clock.sleep(3600)
    assert desk.judge("last.pt").reason == "last.pt is empty"


def test_open_file_is_not_complete(desk: Desk) -> None:
    path = desk.write("weights.bin")
    with path.open("ab") as file:
        file.write(b"more")
        if writer_at(path) is None:
            pytest.skip("this file system has no leases")
        desk.judge("weights.bin")
        desk.clock.sleep(3600)
        assert "open for writing" in desk.judge("weights.bin").reason
    assert writer_at(path) is False


def test_hf_waits_for_its_state_file(desk: Desk) -> None:
    desk.write("out/checkpoint-500/model.bin")
    desk.write("out/checkpoint-500/optimizer.bin")
    desk.clock.sleep(3600)
    assert "trainer_state.json" in desk.judge("out/checkpoint-500").reason
    desk.write("out/checkpoint-500/trainer_state.json", '{"global_step": 500')
    assert "not whole JSON" in desk.judge("out/checkpoint-500").reason
    desk.write("out/checkpoint-500/trainer_state.json", '{"global_step": 500}')
    verdict = desk.judge("out/checkpoint-500")
    assert (verdict.complete, verdict.profile) == (True, "hf")


def test_hf_still_saving_is_not_complete(desk: Desk) -> None:
    desk.write("out/checkpoint-500/trainer_state.json", "{}")
    desk.write("out/checkpoint-500/checkpoint-is-incomplete.txt", "")
    desk.clock.sleep(3600)
    assert "still being saved" in desk.judge("out/checkpoint-500").reason


def test_old_marker_in_a_reused_directory_does_not_count(desk: Desk) -> None:
    desk.write("dcp/.metadata", "x")
    stat = (desk.root / "dcp/.metadata").stat()
    shard = desk.write("dcp/__0_0.distcp")
    os.utime(shard, ns=(stat.st_mtime_ns + 10**9, stat.st_mtime_ns + 10**9))
    assert not desk.judge("dcp").complete
    desk.clock.sleep(3)
    assert not desk.judge("dcp").complete
    desk.clock.sleep(10)
    assert desk.judge("dcp").complete


def test_deepspeed_by_its_tracker_or_flagged(desk: Desk) -> None:
    desk.write("ds/global_step20/shard.bin")
    assert not desk.judge("ds/global_step20").complete
    desk.write("ds/latest", "global_step20")
    assert desk.judge("ds/global_step20").profile == "deepspeed"
    desk.write("ds/global_step30/shard.bin")
    assert not desk.judge("ds/global_step30").complete
    desk.clock.sleep(10)
    assert desk.judge("ds/global_step30").profile == "deepspeed, marker absent"
    assert "ds/latest" not in desk.units()


def test_lerobot_by_its_link(desk: Desk) -> None:
    desk.write("ck/000500/pretrained_model/model.bin")
    desk.write("ck/000500/training_state/step.json", "{}")
    assert not desk.judge("ck/000500").complete
    (desk.root / "ck/last").symlink_to("000500")
    assert desk.judge("ck/000500").profile == "lerobot"


def test_lightning_files_are_checkpoints_each(desk: Desk) -> None:
    desk.write("lightning/epoch=1-step=10.ckpt")
    desk.write("lightning/epoch=2-step=20.ckpt")
    (desk.root / "lightning/last.ckpt").symlink_to("epoch=2-step=20.ckpt")
    found = desk.units()
    assert set(found) == {
        "lightning/epoch=1-step=10.ckpt",
        "lightning/epoch=2-step=20.ckpt",
        "lightning/last.ckpt",
    }
    assert found["lightning/last.ckpt"].companion


def test_unknown_directory_of_different_files_is_one_set(desk: Desk) -> None:
    desk.write("mine/model.bin")
    desk.write("mine/optimizer.bin")
    desk.write("mine/sub/config.json", "{}")
    (unit,) = desk.units().values()
    assert unit.path == "mine"
    assert [path for path, _ in unit.files] == ["model.bin", "optimizer.bin", "sub/config.json"]


def test_small_text_beside_checkpoints_only_accompanies_them(desk: Desk) -> None:
    desk.write("run/gen-000005/state.json", "{}")
    desk.write("run/config.yaml", "a: 1")
    found = desk.units()
    assert found["run/config.yaml"].companion
    assert not found["run/gen-000005"].companion


@pytest.mark.parametrize(
    "path",
    ["x.tmp", "x.partial", "x.dirty", "x.part", "x.__lock", ".hidden/x.pt", "tmp-checkpoint-5/x.pt",
     "5.orbax-checkpoint-tmp-9/x"],
)  # fmt: skip
def test_names_that_mean_not_yet(desk: Desk, path: str) -> None:
    desk.write(path)
    assert desk.units() == {}


def test_excluded_globs_are_globs(desk: Desk) -> None:
    desk.write("run/replay_buffer.pkl")
    desk.write("run/model.bin")
    tree = scan(desk.root, ("replay_buffer*",))
    assert tree
    (unit,) = units(tree)
    assert [path for path, _ in unit.files] == ["model.bin"]
    tree = scan(desk.root, ("buffer",))
    assert tree
    assert sum(len(unit.files) for unit in units(tree)) == 2


def test_fifo_and_socket_are_no_members(desk: Desk) -> None:
    desk.write("model.bin")
    os.mkfifo(desk.root / "pipe")
    assert set(desk.units()) == {"model.bin"}


def test_json_marker_of_eigen2(desk: Desk) -> None:
    desk.write("eigen/population/agent_0.pth", whole_zip(desk.root / "z"))
    desk.write("eigen/best_agent.pth", whole_zip(desk.root / "z"))
    assert not desk.judge("eigen").complete
    desk.write("eigen/trainer_state.json", json.dumps({"generation": 3}))
    assert desk.judge("eigen").profile == "eigen2"
