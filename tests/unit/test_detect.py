"""Completeness: each writer by its own last act, and nobody before it."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from syncd.detect import Detector, Verdict, writer_at
from syncd.scan import scan
from syncd.units import Unit, units
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

    def judge_in(self, seconds: float, path: str) -> Verdict:
        """Look now, and again so many seconds later."""
        self.judge(path)
        self.clock.sleep(seconds)
        return self.judge(path)

    def commit(self, path: str) -> None:
        """It was complete, and has been committed."""
        self.detector.learn(self.units()[path])

    def date(self, path: str, seconds: float) -> None:
        """Modified so long after now; its ctime tells that it was not written like this."""
        target = self.root / path
        stat = target.stat()
        moment = stat.st_mtime_ns + int(seconds * 1e9)
        os.utime(target, ns=(moment, moment))


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
    desk.date("run/.tmp-gen-000005-77", -1)  # its last file was made a while before
    (desk.root / "run/.tmp-gen-000005-77").rename(desk.root / "run/gen-000005")
    verdict = desk.judge("run/gen-000005")
    assert (verdict.complete, verdict.profile) == (True, "trainer")


def test_lone_file_needs_quiet(desk: Desk) -> None:
    desk.write("last.bin", b"nothing here says where it ends")
    verdict = desk.judge("last.bin")
    assert not verdict.complete
    assert verdict.again == pytest.approx(2.0, abs=0.2)
    desk.clock.sleep(2.1)
    assert desk.judge("last.bin").complete
    desk.write("last.bin", b"nothing here says where it ends!")
    assert not desk.judge("last.bin").complete


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
    desk.write("out/checkpoint-500/training_args.bin")
    desk.clock.sleep(36000)
    assert "trainer_state.json" in desk.judge("out/checkpoint-500").reason
    desk.write("out/checkpoint-500/trainer_state.json", '{"global_step": 500')
    assert "not whole JSON" in desk.judge("out/checkpoint-500").reason
    desk.write("out/checkpoint-500/trainer_state.json", '{"global_step": 500}')
    verdict = desk.judge("out/checkpoint-500")
    assert (verdict.complete, verdict.profile) == (True, "hf")


def test_other_ranks_may_come_after_the_state_file_of_hf(desk: Desk) -> None:
    desk.write("out/checkpoint-500/model.bin")
    desk.write("out/checkpoint-500/trainer_state.json", '{"global_step": 500}')
    desk.commit("out/checkpoint-500")
    desk.write("out/checkpoint-500/rng_state_1.pth", whole_zip(desk.root / "z"))
    assert desk.judge("out/checkpoint-500").complete


def test_hf_still_saving_is_not_complete(desk: Desk) -> None:
    desk.write("out/checkpoint-500/trainer_state.json", "{}")
    desk.write("out/checkpoint-500/checkpoint-is-incomplete.txt", "")
    desk.clock.sleep(3600)
    assert "still being saved" in desk.judge("out/checkpoint-500").reason


@pytest.mark.parametrize(
    ("marker", "files"),
    [
        ("run/last-unfinished", ["run/last.ckpt"]),
        ("run/m=5.25-step=3-unfinished", ["run/m=5.25-step=3.ckpt"]),
        (
            "run/step=3-unfinished",
            ["run/step=3/weights/__0_0.distcp", "run/step=3/weights/.metadata"],
        ),
        ("run/x/step_3.incomplete", ["run/x/step_3/model.pt", "run/x/step_3/optimizer.pt"]),
        ("run/step_3/.incomplete", ["run/step_3/model.pt", "run/step_3/optimizer.pt"]),
        ("run/.unfinished", ["run/last.ckpt"]),
    ],
)
def test_what_a_file_beside_it_says_is_being_saved_is_not_complete(
    desk: Desk, marker: str, files: list[str]
) -> None:
    desk.write(marker, b"")
    for path in files:
        desk.write(path)
    (path,) = desk.units()
    verdict = desk.judge_in(1000, path)
    assert not verdict.complete
    assert f"{marker} says it is still being saved" in verdict.reason
    (desk.root / marker).unlink()
    assert list(desk.units()) == [path]
    assert desk.judge_in(1000, path).complete


def test_a_marker_within_a_set_is_of_the_file_that_it_names(desk: Desk) -> None:
    for path in ("run/config.yaml", "run/a.bin", "run/b.bin"):
        desk.write(path)
    desk.write("run/other-unfinished", b"")
    assert desk.judge_in(1000, "run").complete
    desk.write("run/a-unfinished", b"")
    assert "run/a-unfinished says" in desk.judge_in(1000, "run").reason


def test_a_folder_of_such_a_name_says_nothing(desk: Desk) -> None:
    desk.write("runs/one/last.ckpt")
    desk.write("runs/one-incomplete/last.ckpt", b"PK")
    assert desk.judge_in(1000, "runs/one/last.ckpt").complete


def test_a_mark_that_goes_last_is_no_loss(desk: Desk) -> None:
    for name in ("model.bin", "optimizer.bin", "SAVING"):
        desk.write(f"step_5/{name}")
    desk.commit("step_5")
    (desk.root / "step_5/SAVING").unlink()
    assert not desk.detector.only_lost(desk.units()["step_5"])


def test_steps_of_an_experiment_are_steps_of_their_own(desk: Desk) -> None:
    for epoch in (1, 2):
        for name in ("model.pt", "optim.pt"):
            desk.write(f"iteration_5/run/checkpoints/epoch_{epoch}/{name}")
    desk.write("step1/a/last.ckpt")
    desk.write("step1/b/last.ckpt")
    desk.write("epoch_4/tokenizer/tokenizer.json", "{}")
    assert not {"iteration_5", "step1", "epoch_4"} & set(desk.units())


def test_what_is_left_of_a_step_is_no_newer_one(desk: Desk) -> None:
    for name in ("data.pt", "actor/model.pt", "critic/model.pt", "train.log"):
        desk.write(f"global_step_20/{name}")
    assert desk.judge_in(1000, "global_step_20").complete
    desk.commit("global_step_20")
    (desk.root / "global_step_20/actor/model.pt").unlink()
    desk.write("global_step_20/train.log", "longer")
    assert desk.detector.only_lost(desk.units()["global_step_20"])
    for name in ("actor/model.pt", "critic/model.pt"):
        desk.write(f"global_step_20/{name}", b"\x80y.")
    assert not desk.detector.only_lost(desk.units()["global_step_20"])
    assert desk.judge_in(1000, "global_step_20").complete


def test_what_is_left_of_a_step_that_was_never_committed_is_none(desk: Desk) -> None:
    """A daemon that comes late sees the rest alone, and the next step begun."""
    desk.write("run/global_step_20/data.pt")
    desk.write("run/global_step_20/critic/model.pt")
    desk.write("run/global_step_30/actor/model.pt")
    assert "has folders that" in desk.judge_in(1000, "run/global_step_20").reason
    desk.write("run/global_step_20/actor/model.pt")
    assert desk.judge_in(1000, "run/global_step_20").complete


def test_a_step_that_has_folders_alone_is_not_whole_yet(desk: Desk) -> None:
    for step in (10, 20):
        for name in ("actor/model.pt", "critic/model.pt", "data.pt"):
            desk.write(f"run/global_step_{step}/{name}")
    desk.commit("run/global_step_20")
    desk.write("run/global_step_30/actor/model.pt")
    desk.write("run/epoch_3/tb/events.out.tfevents.1.host", b"x")
    wanted = {f"run/global_step_{step}" for step in (10, 20, 30)}
    assert set(desk.units()) == {*wanted, "run/epoch_3/tb/events.out.tfevents.1.host"}
    assert "no file like" in desk.judge_in(1000, "run/global_step_30").reason


def test_a_few_words_are_whole_under_the_name_of_a_checkpoint(desk: Desk) -> None:
    for name in ("model.ckpt", "optimizer.ckpt", "CKPT.yaml"):
        desk.write(f"save/CKPT+2026-01-01+10-05-00+00/{name}")
    desk.write("save/CKPT+2026-01-01+10-05-00+00/counter.ckpt", "5")
    desk.write("hyperparams.yaml", "a: 1")
    path = "save/CKPT+2026-01-01+10-05-00+00"
    assert desk.judge_in(1000, path).complete
    for torn in ("PK", "version https://git-lfs.github.com/spec/v1", "(dp0\nS'a'", "5 " * 512):
        desk.write(f"{path}/counter.ckpt", torn)
        assert "cut off" in desk.judge_in(1000, path).reason


def test_old_marker_in_a_reused_directory_never_counts(desk: Desk) -> None:
    desk.write("dcp/.metadata", "x")
    desk.write("dcp/__0_0.distcp")
    desk.date("dcp/__0_0.distcp", 1)
    assert "is being written again" in desk.judge_in(36000, "dcp").reason
    desk.date("dcp/.metadata", 2)
    assert desk.judge("dcp").complete


def test_file_that_comes_after_the_marker_is_a_new_revision(desk: Desk) -> None:
    desk.write("iter_0000100/mp_rank_00/model.pt", whole_zip(desk.root / "z"))
    desk.write("latest_checkpointed_iteration.txt", "100")
    assert desk.judge("iter_0000100").profile == "megatron"
    desk.commit("iter_0000100")
    desk.write("iter_0000100/assets.bin")
    desk.date("iter_0000100/assets.bin", 1)
    assert not desk.judge("iter_0000100").complete
    assert desk.judge_in(11, "iter_0000100").complete


def test_file_of_a_kind_that_no_save_has_does_not_make_the_marker_an_old_one(desk: Desk) -> None:
    """Another process adds it before the daemon has looked; a save would write its own again."""
    for name in ("run/dcp-1", "run/dcp-2"):
        desk.write(f"{name}/__0_0.distcp")
        desk.write(f"{name}/.metadata")
    desk.commit("run/dcp-1")
    desk.date("run/dcp-2/.metadata", -1)
    desk.date("run/dcp-2/__0_0.distcp", -2)
    desk.write("run/dcp-2/tokenizer.txt", "late")
    assert not desk.judge("run/dcp-2").complete
    assert desk.judge_in(11, "run/dcp-2").complete
    desk.write("run/dcp-2/__1_0.distcp")
    assert not desk.judge_in(3600, "run/dcp-2").complete, "that is one of a save"


def test_deepspeed_by_its_tracker_or_flagged(desk: Desk) -> None:
    desk.write("ds/global_step20/shard.bin")
    assert not desk.judge("ds/global_step20").complete
    desk.write("ds/latest", "global_step20")
    assert desk.judge("ds/global_step20").profile == "deepspeed"
    desk.commit("ds/global_step20")
    desk.write("ds/global_step30/shard.bin")
    assert "does not name it yet" in desk.judge("ds/global_step30").reason
    verdict = desk.judge_in(11, "ds/global_step30")
    assert (verdict.profile, verdict.flagged) == ("deepspeed, marker absent", True)
    assert "ds/latest" not in desk.units()


def test_first_one_whose_marker_never_comes_waits_for_long(desk: Desk) -> None:
    desk.write("ds/global_step20/shard.bin")
    assert not desk.judge_in(250, "ds/global_step20").complete
    assert desk.judge_in(60, "ds/global_step20").flagged


def test_tracker_that_names_a_later_one_vouches_for_nothing(desk: Desk) -> None:
    desk.write("ds/global_step20/zero_0.bin")
    desk.write("ds/global_step30/zero_0.bin")
    desk.write("ds/global_step30/zero_1.bin")
    desk.write("ds/latest", "global_step30")
    assert not desk.judge_in(20, "ds/global_step20").complete
    assert desk.judge("ds/global_step30").complete
    desk.commit("ds/global_step30")
    assert "zero_1.bin" in desk.judge_in(36000, "ds/global_step20").reason


def test_two_that_lack_the_same_show_a_new_manner(desk: Desk) -> None:
    for step in (1, 2):
        desk.write(f"mine/step_{step}/model.bin")
        desk.write(f"mine/step_{step}/buffer.bin")
    desk.commit("mine/step_2")
    desk.write("mine/step_3/model.bin")
    assert "buffer.bin" in desk.judge_in(36000, "mine/step_3").reason
    desk.write("mine/step_4/model.bin")
    assert desk.judge_in(36000, "mine/step_4").complete


def test_what_a_killed_writer_left_makes_no_manner_of_the_next_ones_half_save(desk: Desk) -> None:
    """As saved by one that was killed amid a save, and then by the one that resumed."""
    for step in (1, 2):
        desk.write(f"mine/step_{step}/model.bin")
        desk.write(f"mine/step_{step}/optim.bin")
    desk.commit("mine/step_2")
    desk.write("mine/step_3/model.bin")
    assert "optim.bin" in desk.judge_in(36000, "mine/step_3").reason
    desk.detector.watching = True
    desk.write("mine/step_4/model.bin")
    half = desk.judge_in(9, "mine/step_4")
    assert "optim.bin" in half.reason
    assert half.again == pytest.approx(1)
    desk.write("mine/step_4/optim.bin")
    assert desk.judge_in(3, "mine/step_4").complete
    desk.commit("mine/step_4")
    assert "optim.bin" in desk.judge_in(36000, "mine/step_3").reason
    desk.write("mine/step_5/model.bin")
    assert "optim.bin" in desk.judge_in(36000, "mine/step_5").reason
    assert "optim.bin" in desk.judge("mine/step_3").reason


def test_another_revision_of_a_step_is_no_second_save(desk: Desk) -> None:
    for name in ("meta.json", "model.bin", "optim.bin"):
        desk.write(f"mine/step_1/{name}", "{}")
    desk.commit("mine/step_1")
    for phase in ("1", "22"):
        desk.write("mine/step_2/meta.json", phase)
        assert "there is no file like" in desk.judge_in(36000, "mine/step_2").reason


def test_a_second_revision_is_the_manner_only_once_it_has_rested(desk: Desk) -> None:
    """The first is of a writer that was killed before it wrote the optimizer's state."""
    for moment, name in enumerate(("model.bin", "optim.bin"), -9):
        desk.write(f"mine/{name}", "{}")
        desk.date(f"mine/{name}", moment)
    desk.commit("mine")
    desk.detector.watching = True
    for content in ("1", "22"):
        desk.write("mine/model.bin", content)
        assert "optim.bin" in desk.judge_in(9, "mine").reason
    desk.clock.sleep(2)
    assert desk.judge("mine").complete


@pytest.mark.parametrize("what", ["left alone", "gone"])
def test_a_third_save_that_follows_fast_is_the_manner(desk: Desk, what: str) -> None:
    """Where an epoch takes four seconds, and the best one is written now and then only."""
    for moment, name in enumerate(("last.bin", "best.bin"), -9):
        desk.write(f"mine/{name}", "{}")
        desk.date(f"mine/{name}", moment)
    desk.commit("mine")
    desk.detector.watching = True
    if what == "gone":
        (desk.root / "mine/best.bin").unlink()
    verdicts = []
    for epoch in range(1, 5):
        desk.write("mine/last.bin", "x" * (epoch + 2))
        verdicts.append(desk.judge_in(4, "mine").complete)
    assert verdicts == [False, False, True, True]


def test_what_is_new_has_not_rested_though_the_file_servers_clock_is_behind(desk: Desk) -> None:
    desk.write("old/model.bin")
    desk.clock.sleep(30)
    assert desk.judge("old").complete
    desk.detector.watching = True
    desk.write("run/model.bin", b"abc")
    desk.write("weights.bin", b"half of it")
    assert not desk.judge("run").complete
    assert not desk.judge("weights.bin").complete
    desk.clock.sleep(10.1)
    assert desk.judge("run").complete
    assert desk.judge("weights.bin").complete


def test_set_in_place_is_a_mixture_until_its_last_file_is_written_again(desk: Desk) -> None:
    for moment, name in enumerate(("config.json", "model.bin", "optimizer.bin"), -9):
        desk.write(f"mine/{name}", "{}")
        desk.date(f"mine/{name}", moment)
    desk.commit("mine")
    desk.write("mine/model.bin", b"new")
    assert "optimizer.bin" in desk.judge_in(36000, "mine").reason
    desk.write("mine/optimizer.bin", b"new")
    assert desk.judge_in(3, "mine").complete


def test_marker_that_was_copied_in_is_no_proof(desk: Desk) -> None:
    desk.write("out/checkpoint-500/model.bin")
    desk.date("out/checkpoint-500/model.bin", -100)
    desk.write("out/checkpoint-500/trainer_state.json", "{}")
    desk.date("out/checkpoint-500/trainer_state.json", -90)
    assert not desk.judge("out/checkpoint-500").complete
    assert desk.judge_in(11, "out/checkpoint-500").complete


def test_copied_directory_is_complete_once_it_has_its_times(desk: Desk) -> None:
    desk.write("out/checkpoint-500/model.bin")
    desk.write("out/checkpoint-500/trainer_state.json", "{}")
    desk.date("out/checkpoint-500/trainer_state.json", 90)
    assert not desk.judge("out/checkpoint-500").complete
    desk.date("out/checkpoint-500", -90)
    assert desk.judge("out/checkpoint-500").complete


def test_directory_of_our_trainer_that_is_copied_in_is_not_complete_at_once(desk: Desk) -> None:
    desk.write("run/gen-000005/state.json", "{}")
    assert not desk.judge("run/gen-000005").complete
    assert desk.judge_in(3, "run/gen-000005").complete


def test_shards_that_are_named_must_be_there(desk: Desk) -> None:
    index = {"weight_map": {"a": "m-00001-of-00002.bin", "b": "m-00002-of-00002.bin"}}
    desk.write("mine/step_5/m.bin.index.json", json.dumps(index))
    desk.write("mine/step_5/m-00001-of-00002.bin")
    assert "m-00002-of-00002.bin" in desk.judge_in(36000, "mine/step_5").reason
    desk.write("mine/step_5/m-00002-of-00002.bin")
    assert desk.judge_in(36000, "mine/step_5").complete
    desk.write("mine/step_6/n-00002-of-00002.bin")
    assert "n-00001-of-00002.bin is not" in desk.judge_in(36000, "mine/step_6").reason


def test_file_of_no_known_format_that_ends_at_a_page_and_is_shorter_than_before(
    desk: Desk,
) -> None:
    desk.write("mine/step_5/replay.raw", bytes(range(256)) * 200)
    desk.commit("mine/step_5")
    desk.write("mine/step_6/replay.raw", bytes(range(256)) * 160)
    assert "shorter than before" in desk.judge_in(36000, "mine/step_6").reason
    desk.write("mine/step_6/replay.raw", bytes(range(255)) * 199)
    assert desk.judge_in(36000, "mine/step_6").complete


def test_model_without_the_replay_buffer_of_the_step_before(desk: Desk) -> None:
    for step in (500, 1000):
        desk.write(f"ppo/rl_model_{step}_steps.zip", whole_zip(desk.root / "z"))
    desk.write("ppo/rl_model_replay_buffer_500_steps.pkl")
    desk.commit("ppo/rl_model_500_steps.zip")
    assert "replay_buffer" in desk.judge_in(36000, "ppo/rl_model_1000_steps.zip").reason
    desk.write("ppo/rl_model_replay_buffer_1000_steps.pkl")
    assert desk.judge_in(3, "ppo/rl_model_1000_steps.zip").complete


def test_accelerate_waits_for_its_random_states(desk: Desk) -> None:
    desk.write("checkpoints/checkpoint_3/optimizer.bin")
    assert not desk.judge_in(36000, "checkpoints/checkpoint_3").complete
    desk.write("checkpoints/checkpoint_3/random_states_0.pkl")
    assert desk.judge_in(11, "checkpoints/checkpoint_3").profile == "accelerate"


def test_state_of_accelerate_under_any_name_is_complete_once_it_rests(desk: Desk) -> None:
    """kohya's ``NAME-000002-state``, saves seconds apart."""
    desk.write("lora-000002.pt")
    for name in ("model.bin", "optimizer.bin", "scheduler.bin"):
        desk.write(f"lora-000002-state/{name}")
    assert not desk.judge_in(3, "lora-000002-state").complete
    desk.write("lora-000002-state/random_states_0.pkl")
    desk.write("lora-000002-state/custom_checkpoint_0.pkl")
    assert not desk.judge_in(1, "lora-000002-state").complete
    verdict = desk.judge_in(1.5, "lora-000002-state")
    assert (verdict.complete, verdict.profile) == (True, "accelerate")


def test_state_of_accelerate_that_is_written_over_has_its_random_states_last(desk: Desk) -> None:
    for seconds, name in enumerate(("model.bin", "optimizer.bin", "random_states_0.pkl")):
        desk.write(f"my-state/{name}")
        desk.date(f"my-state/{name}", seconds)
    assert desk.judge_in(3, "my-state").complete
    for name, seconds in (
        ("random_states_1.pkl", 40),
        ("model.bin", 50),
    ):  # the other rank is early
        desk.write(f"my-state/{name}")
        desk.date(f"my-state/{name}", seconds)
        assert not desk.judge_in(3, "my-state").complete
    desk.write("my-state/random_states_0.pkl")
    desk.date("my-state/random_states_0.pkl", 51)
    assert desk.judge_in(10, "my-state").complete


def test_random_states_of_another_rank_alone_are_no_checkpoint(desk: Desk) -> None:
    desk.write("my-state/random_states_1.pkl")
    assert not desk.judge_in(3, "my-state").complete


def test_saved_model_under_a_name_of_hf_is_committed_flagged(desk: Desk) -> None:
    desk.write("out/checkpoint-7/model.bin")
    desk.write("out/checkpoint-7/config.json", "{}")
    assert not desk.judge_in(250, "out/checkpoint-7").complete
    assert desk.judge_in(60, "out/checkpoint-7").profile == "hf, marker absent"


def test_lerobot_by_its_link(desk: Desk) -> None:
    desk.write("ck/000500/pretrained_model/model.bin")
    assert "training_state" in desk.judge_in(36000, "ck/000500").reason
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


def test_a_directory_of_small_text_only_accompanies_checkpoints(desk: Desk) -> None:
    """Tokenizers, what MLflow and W&B keep: written after the checkpoint, and no one's state."""
    desk.write("out/unet/model.bin")
    desk.write("out/unet/config.json", "{}")
    for text in ("tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/sub/scheduler.json"):
        desk.write(f"out/{text}", "{}")
    desk.write("out/mlruns/0/meta.yaml", "id: 0")
    desk.write("out/mlruns/0/abc/metrics/loss", "1 2 3")
    desk.write("out/wandb/run-17/files/config.yaml", "a: 1")
    desk.write("out/mine/weights", "no word of what it is")
    desk.write("xgb/step-5/model.json", "{}")
    desk.write("rounds/notes.json", "{}")
    desk.write("rounds/7/model.json", "{}")
    found = desk.units()
    checkpoints = {path for path, unit in found.items() if not unit.companion}
    assert checkpoints == {"out/unet", "out/mine", "xgb/step-5", "rounds"}
    assert {"out/tokenizer", "out/mlruns/0", "out/wandb/run-17/files"} < set(found)
    assert not found["out/tokenizer"].lone


def test_settings_that_a_text_repeats_are_no_checkpoint(desk: Desk) -> None:
    """Ray writes ``params.pkl`` before a trial has begun; skorch has its weights in one."""
    desk.write("trial/params.json", "{}")
    desk.write("trial/checkpoint_000000/model.bin")
    for folder in ("trial", "skorch"):
        desk.write(f"{folder}/params.pkl")
    found = desk.units()
    assert found["trial/params.pkl"].companion
    assert not found["skorch"].companion


def test_code_and_pictures_are_no_checkpoints_whatever_their_size(desk: Desk) -> None:
    """DeepSpeed copies two programs beside its steps at each save, after the steps."""
    desk.write("run/global_step20/shard.bin")
    desk.write("run/latest", "global_step20")
    for script in ("zero_to_fp32.py", "zero_to_torch.py"):
        desk.write(f"run/{script}", "print()\n" * 5000)
    desk.write("run/plots/step_20/loss.png", b"\x89PNG" + bytes(2 << 20))
    found = desk.units()
    (whole,) = (path for path, unit in found.items() if not unit.companion)
    assert whole == "run/global_step20"
    assert len(found) == 4


def test_logs_among_checkpoints_are_no_checkpoints(desk: Desk) -> None:
    """As the Trainer of Hugging Face writes them, into `runs/` of its output directory."""
    desk.write("out/checkpoint-10/trainer_state.json", '{"global_step": 10}')
    desk.write("out/runs/Nov26_10-00-00_host/events.out.tfevents.17.host.1.0", b"x" * (2 << 20))
    desk.write("out/wandb/run-1/run-abc.wandb")
    desk.write("out/train.log")
    found = desk.units()
    (whole,) = (path for path, unit in found.items() if not unit.companion)
    assert whole == "out/checkpoint-10"
    assert len(found) == 4


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
