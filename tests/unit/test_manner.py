"""What is saved faster than an unknown checkpoint must rest is committed all the same."""

from __future__ import annotations

import gzip
import shutil
import time
from pathlib import Path

import pytest

from syncd.detect import Detector
from tests.unit.test_detect import Desk

SETTLE, LONG = 2, 10


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def save(desk: Desk, folder: str, step: int, *names: str) -> None:
    for name in names:
        desk.write(f"{folder}/{name}", b"\x80\x02K" + bytes([step]) + b".")


def test_next_directory_that_was_begun_says_that_this_one_is_finished(desk: Desk) -> None:
    """As Ray does: saves some time apart, of which two are kept."""
    desk.detector = Detector(desk.root, settle := 0.05, desk.clock)
    save(desk, "run/checkpoint_000000", 0, "model.bin", "optim.bin")
    assert not desk.judge_in(1.5 * settle, "run/checkpoint_000000").complete
    time.sleep(1.5 * settle)  # a ctime cannot be set
    save(desk, "run/checkpoint_000001", 1, "model.bin")
    assert desk.judge("run/checkpoint_000000").complete
    assert not desk.judge("run/checkpoint_000001").complete


def test_next_directory_says_nothing_while_this_one_is_still_written(desk: Desk) -> None:
    save(desk, "run/checkpoint_000000", 0, "model.bin")
    save(desk, "run/checkpoint_000001", 1, "model.bin")
    save(desk, "run/checkpoint_000000", 0, "optim.bin")
    assert not desk.judge_in(SETTLE + 1, "run/checkpoint_000000").complete
    assert desk.judge_in(LONG, "run/checkpoint_000000").complete


def test_next_directory_says_nothing_where_it_has_more(desk: Desk) -> None:
    save(desk, "run/checkpoint_000000", 0, "model.bin")
    save(desk, "run/checkpoint_000001", 1, "model.bin", "optim.bin")
    assert not desk.judge_in(SETTLE + 1, "run/checkpoint_000000").complete


def test_that_the_next_is_begun_is_looked_for_while_this_one_rests(desk: Desk) -> None:
    save(desk, "run/checkpoint_000000", 0, "model.bin", "optim.bin")
    for _ in range(4):
        again = desk.judge("run/checkpoint_000000").again
        assert again is not None
        assert again <= SETTLE
        desk.clock.sleep(again)


@pytest.mark.parametrize("epoch", [4, 8])
def test_set_that_is_written_anew_each_time_is_whole_when_it_rests(desk: Desk, epoch: int) -> None:
    """As Keras' BackupAndRestore does, with epochs shorter than the long wait."""
    verdicts = []
    for step in range(3):
        save(desk, "backup", step, "weights.bin", "state.bin")
        verdicts.append(desk.judge_in(0, "backup").complete)
        verdicts.append(desk.judge_in(SETTLE, "backup").complete)
        desk.clock.sleep(epoch - SETTLE)
    assert verdicts == [False] * 5 + [True]


def test_set_whose_writer_pauses_in_the_midst_of_a_save_is_not_taken_then(desk: Desk) -> None:
    for step in range(6):
        for name in ("model.bin", "optim.bin"):
            save(desk, "set", step, name, "log.csv")
            assert not desk.judge_in(SETTLE + 1, "set").complete, (step, name)
    assert desk.judge_in(LONG, "set").complete


def test_set_whose_last_file_never_came_before_is_not_taken_while_small_ones_move(
    desk: Desk,
) -> None:
    save(desk, "set", 0, "model.bin")
    for step in range(4):
        desk.write("set/progress.txt", str(step))
        assert not desk.judge_in(SETTLE + 1, "set").complete
    save(desk, "set", 0, "optim.bin")
    assert not desk.judge_in(SETTLE + 1, "set").complete


def test_set_that_has_another_file_each_time_is_not_taken(desk: Desk) -> None:
    for step in range(5):
        save(desk, "set", step, "model.bin", f"part-{step}.bin")
        assert not desk.judge_in(SETTLE + 1, "set").complete


def test_set_that_gets_the_next_step_and_a_state_that_is_written_over(desk: Desk) -> None:
    """PufferLib, every seven seconds: all steps stay."""
    verdicts = []
    for step in range(10, 60, 10):
        save(desk, "run_123", step, f"model_{step:06}.pt", "trainer_state.pt")
        verdicts.append(desk.judge_in(SETTLE + 1, "run_123").complete)
        desk.clock.sleep(4)
    assert verdicts == [False, False, True, True, True]
    save(desk, "run_123", 60, "model_000060.pt")
    assert not desk.judge_in(SETTLE + 1, "run_123").complete


@pytest.mark.parametrize("keep", [2, 99])
def test_set_that_gets_the_next_step_beside_the_last_is_whole_when_it_rests(
    desk: Desk, keep: int
) -> None:
    """What is no part by its name and no checkpoint by itself, ``config.json`` beside it."""
    desk.write("44k/config.json", "{}")
    verdicts = []
    for step in range(20, 140, 20):
        save(desk, "44k", step, f"left_{step}.bin", f"right_{step}.bin")
        for old in range(20, step - 20 * keep + 1, 20):
            for name in (f"left_{old}.bin", f"right_{old}.bin"):
                (desk.root / "44k" / name).unlink(missing_ok=True)
        verdicts.append(desk.judge_in(SETTLE + 1, "44k").complete)
        if verdicts[-1]:
            desk.commit("44k")
        desk.clock.sleep(4)
    first = verdicts.index(True)
    assert first in (2, 3), "it must be seen what each save changes"
    assert all(verdicts[first:])
    save(desk, "44k", 140, "left_140.bin")
    verdict = desk.judge_in(60, "44k")
    words = "there is no file like right_120.bin of the step that was begun"
    assert (verdict.complete, verdict.reason) == (False, words)
    save(desk, "44k", 140, "right_140.bin")
    assert desk.judge_in(SETTLE + 1, "44k").complete


def test_pairs_of_each_step_are_checkpoints_though_a_configuration_lies_beside_them(
    desk: Desk,
) -> None:
    """so-vits-svc, RVC: of the first pair alone nothing is told."""
    for text in ("config.json", "train.log", "githash", "events.out.tfevents.17.host.1.0"):
        desk.write(f"44k/{text}", "{}")
    save(desk, "44k", 1, "G_0.pth", "D_0.pth")
    assert "44k" in desk.units()
    save(desk, "44k", 2, "G_200.pth", "D_200.pth")
    desk.date("44k/G_200.pth", 1)
    assert desk.judge_in(LONG, "44k/G_200.pth").complete
    desk.commit("44k/G_200.pth")
    checkpoints = {path for path, unit in desk.units().items() if not unit.companion}
    assert checkpoints == {"44k/G_0.pth", "44k/G_200.pth"}
    save(desk, "44k", 3, "G_400.pth")
    assert not desk.judge_in(60, "44k/G_400.pth").complete
    save(desk, "44k", 3, "D_400.pth")
    assert desk.judge_in(SETTLE + 1, "44k/G_400.pth").complete


@pytest.mark.parametrize(
    "names",
    [
        ("actor_0.pth", "critic_0.pth", "actor_1.pth", "critic_1.pth"),
        ("G_20.pth", "D_20.pth", "G_40.pth", "D_40.pth", "replay.bin"),
        ("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"),
    ],
)
def test_agents_shards_and_what_has_more_beside_it_stay_one_set(
    desk: Desk, names: tuple[str, ...]
) -> None:
    desk.write("set/config.json", "{}")
    save(desk, "set", 1, *names)
    assert list(desk.units()) == ["set"]


def test_file_of_a_step_that_was_written_last_is_not_written_again_but_followed(desk: Desk) -> None:
    """One file written over, and then a numbered one: each save of a set is committed."""
    for epoch in range(1, 6):
        save(desk, "run", epoch, "state.bin", "config.yaml")
        verdict = desk.judge_in(LONG, "run")
        assert (verdict.complete, epoch > 1) in ((True, False), (False, True))
        save(desk, "run", epoch, f"weights_{epoch}.bin")
        assert desk.judge_in(LONG, "run").complete, epoch
        desk.commit("run")


def test_half_of_a_step_that_is_written_once_more_is_still_a_half(desk: Desk) -> None:
    save(desk, "run", 20, "left_20.bin", "right_20.bin")
    desk.write("run/config.json", "{}")
    assert desk.judge_in(LONG, "run").complete
    desk.commit("run")
    for content in (1, 2):
        save(desk, "run", content, "left_40.bin")
        assert not desk.judge_in(LONG, "run").complete


def test_half_of_a_step_is_no_save_however_long_it_rests(desk: Desk) -> None:
    """Its writer may have been killed: with the other half of the step before it is a mixture."""
    save(desk, "run", 20, "left_20.bin", "right_20.bin", "config.yaml")
    assert desk.judge_in(LONG, "run").complete
    desk.commit("run")
    save(desk, "run", 40, "left_40.bin")
    assert not desk.judge_in(36_000, "run").complete


def test_layers_with_gaps_that_are_saved_with_pauses_are_no_steps(desk: Desk) -> None:
    desk.write("net/config.json", "{}")
    for layer in range(1, 13, 2):
        save(desk, "net", layer, f"layer_{layer}.bin")
        assert not desk.judge_in(SETTLE + 1, "net").complete


def test_step_that_has_fewer_files_than_the_last_is_waited_for_once(desk: Desk) -> None:
    save(desk, "44k", 20, "left_20.bin", "right_20.bin", "best_20.bin")
    desk.write("44k/config.json", "{}")
    assert desk.judge_in(LONG, "44k").complete
    desk.commit("44k")
    save(desk, "44k", 40, "left_40.bin", "right_40.bin")
    assert not desk.judge_in(LONG, "44k").complete
    save(desk, "44k", 60, "left_60.bin", "right_60.bin")
    assert desk.judge_in(LONG, "44k").complete, "that is its manner"


@pytest.mark.parametrize("count", [1, 2])
def test_agents_that_are_saved_with_pauses_are_no_steps(desk: Desk, count: int) -> None:
    desk.write("population/config.json", "{}")
    names = ("actor", "critic")[:count]
    for agent in range(6):
        save(desk, "population", agent, *(f"{name}_{agent}.pth" for name in names))
        assert not desk.judge_in(SETTLE + 1, "population").complete
    assert desk.judge_in(LONG, "population").complete


def test_what_is_gone_is_forgotten(desk: Desk) -> None:
    save(desk, "set", 0, "model.bin", "optim.bin")
    for step in range(2):
        save(desk, "set", step, "model.bin", "optim.bin")
        desk.judge_in(SETTLE, "set")
    shutil.rmtree(desk.root / "set")
    desk.detector.forget_missing(set())
    save(desk, "set", 3, "model.bin", "optim.bin")
    assert not desk.judge_in(SETTLE, "set").complete


def test_name_of_a_framework_makes_nobody_wait_for_a_file_that_never_comes(desk: Desk) -> None:
    """`checkpoint_2/optimizer.bin` is Accelerate's, and of many who write their loop by hand."""
    save(desk, "run/checkpoint_1", 1, "model.bin", "optimizer.bin")
    verdict = desk.judge_in(LONG, "run/checkpoint_1")
    assert verdict.reason == "random_states_*.pkl is not there yet"
    save(desk, "run/checkpoint_2", 2, "model.bin")
    desk.clock.sleep(LONG)
    assert not desk.judge("run/checkpoint_1").complete
    save(desk, "run/checkpoint_2", 2, "optimizer.bin")
    for number in (1, 2):
        assert desk.judge_in(LONG, f"run/checkpoint_{number}").complete
        desk.commit(f"run/checkpoint_{number}")


def test_other_one_that_is_still_written_proves_nothing(desk: Desk) -> None:
    for number in (1, 2):
        save(desk, f"run/checkpoint_{number}", number, "model.bin", "optimizer.bin")
    assert not desk.judge_in(SETTLE / 2, "run/checkpoint_1").complete
    desk.clock.sleep(LONG)
    assert desk.judge("run/checkpoint_1").complete


def test_save_of_a_framework_that_was_cut_off_is_not_taken(desk: Desk) -> None:
    for number in (1, 2):
        save(desk, f"run/checkpoint_{number}", number, "model.bin", "optimizer.bin")
        save(desk, f"run/checkpoint_{number}", number, "random_states_0.pkl")
        assert desk.judge_in(LONG, f"run/checkpoint_{number}").complete
    save(desk, "run/checkpoint_3", 3, "model.bin", "optimizer.bin")
    assert not desk.judge_in(1000, "run/checkpoint_3").complete


def test_what_has_fewer_files_is_not_alike(desk: Desk) -> None:
    """Agents have numbers, which make them of one kind."""
    for number in range(4):
        desk.write(f"trial_1/checkpoint_0/agent_{number}.bin")
    desk.commit("trial_1/checkpoint_0")
    for number in range(3):
        desk.write(f"trial_2/checkpoint_0/agent_{number}.bin")
    assert not desk.judge_in(3, "trial_2/checkpoint_0").complete
    desk.write("trial_2/checkpoint_0/agent_3.bin")
    assert desk.judge_in(3, "trial_2/checkpoint_0").complete


def test_first_of_another_trial_is_alike(desk: Desk) -> None:
    """As in a sweep: a folder for each trial, in which one checkpoint is kept."""
    save(desk, "exp/f_561ac_00000/checkpoint_000002", 1, "model.bin", "optim.bin")
    desk.commit("exp/f_561ac_00000/checkpoint_000002")
    save(desk, "exp/f_561ac_00001/checkpoint_000000", 1, "model.bin")
    assert not desk.judge_in(SETTLE, "exp/f_561ac_00001/checkpoint_000000").complete
    save(desk, "exp/f_561ac_00001/checkpoint_000000", 1, "optim.bin")
    assert desk.judge_in(SETTLE, "exp/f_561ac_00001/checkpoint_000000").complete


def test_pause_in_the_midst_of_a_save_that_is_longer_than_that_between_two(desk: Desk) -> None:
    """Whatever looks are made: the same files each time, and never those of one save."""
    for step in range(1, 7):
        for name, pause in (("actor.bin", SETTLE + 2), ("critic.bin", 1)):
            save(desk, "run", step, name)
            when = desk.clock.now() - desk.root.stat().st_ctime
            desk.date(f"run/{name}", when)
            assert not desk.judge_in(pause, "run").complete, (step, name)


@pytest.mark.parametrize("name", ["agent", "rank", "fold", "layer"])
def test_what_is_written_side_by_side_are_no_steps(desk: Desk, name: str) -> None:
    for number in range(3):
        save(desk, f"run/{name}_{number}", 1, "policy.bin", "args.bin")
    for number in range(3):
        assert not desk.judge_in(SETTLE, f"run/{name}_{number}").complete


def test_step_that_was_begun_at_the_same_time_says_nothing(desk: Desk) -> None:
    for number in range(2):
        save(desk, f"run/step_{number}", 1, "policy.bin", "args.bin")
    assert not desk.judge_in(SETTLE, "run/step_0").complete


def test_set_of_which_the_best_is_written_now_and_then_is_whole_when_it_rests(desk: Desk) -> None:
    """Ultralytics, with epochs shorter than the long wait: last.pt each time, best.pt at times."""
    verdicts = []
    desk.write("train/args.yaml", "e: 9")
    for step in range(8):
        desk.write("train/results.csv", f"{step},0.1\n")
        names = ["last.pt", *(["best.pt"] if step in (0, 1, 4) else [])]
        names += [f"epoch{step}.pt"] if step % 3 == 0 else []
        save(desk, "train/weights", step, *names)
        verdicts.append(desk.judge_in(SETTLE, "train").complete)
        desk.clock.sleep(3)
    # what has a new file beside it is not taken yet
    assert verdicts == [False] * 4 + [True, True, False, True]


def test_set_whose_writer_pauses_is_not_taken_though_it_writes_another_file_now_and_then(
    desk: Desk,
) -> None:
    for step in range(8):
        for name in ("model.bin", "optim.bin"):
            more = ["best.bin"] if step % 3 == 0 else []
            save(desk, "set", step, name, *more)
            assert not desk.judge_in(SETTLE + 1, "set").complete, (step, name)


def test_set_in_which_each_step_takes_the_place_of_an_old_one_is_whole_when_it_rests(
    desk: Desk,
) -> None:
    """Dopamine: the steps follow one another without a gap, as agents do, and four are kept."""
    names = "$store$_action_ckpt.{}.gz", "add_count_ckpt.{}.gz", "ckpt.{}", "sentinel.{}"
    verdicts = []
    for step in range(9):
        for name in names:
            desk.write(f"checkpoints/{name.format(step)}", gzip.compress(b"%d" % step))
            (desk.root / "checkpoints" / name.format(step - 4)).unlink(missing_ok=True)
        verdicts.append(desk.judge_in(SETTLE, "checkpoints").complete)
        desk.clock.sleep(4)
    assert verdicts == [False] * 4 + [True] * 5


def test_agents_one_of_which_is_gone_are_no_steps_that_take_the_place_of_others(
    desk: Desk,
) -> None:
    for agent in range(9):
        save(desk, "run", agent, f"actor_{agent}.bin", f"critic_{agent}.bin")
        (desk.root / f"run/actor_{agent - 4}.bin").unlink(missing_ok=True)
        assert not desk.judge_in(SETTLE + 1, "run").complete


def test_set_in_which_one_file_takes_the_place_of_the_last_is_whole_when_it_rests(
    desk: Desk,
) -> None:
    """Lightning, with hparams.yaml above; Sample Factory's best one of each five seconds."""
    desk.write("version_0/hparams.yaml", "a: 1")
    verdicts = []
    for step in range(6):
        desk.write("version_0/metrics.csv", f"{step}\n")
        save(desk, "version_0/checkpoints", step, f"epoch=0-step={step}.ckpt", "last.ckpt")
        (desk.root / f"version_0/checkpoints/epoch=0-step={step - 1}.ckpt").unlink(missing_ok=True)
        verdicts.append(desk.judge_in(SETTLE, "version_0").complete)
        desk.clock.sleep(3)
    assert verdicts == [False] * 2 + [True] * 4


@pytest.mark.parametrize(("rest", "taken"), [(4, False), (6, True)])
def test_set_that_is_written_slowly_must_rest_four_times_its_pauses(
    desk: Desk, rest: int, taken: bool
) -> None:
    verdict = False
    for step in range(5):
        for number, name in enumerate(("model.bin", "optim.bin", "ema.bin")):
            save(desk, "last", step, name)
            desk.date(f"last/{name}", 1.4 * number - 10)
        for _ in range(rest // SETTLE):
            verdict = desk.judge_in(SETTLE, "last").complete
        desk.clock.sleep(1)
    assert verdict == taken


def test_part_of_a_state_is_not_taken_for_all_of_it_before_the_others_had_time(desk: Desk) -> None:
    save(desk, "last", 1, "model.pt")
    assert not desk.judge_in(SETTLE + 1, "last/model.pt").complete
    save(desk, "last", 1, "optimizer.pt")
    assert len(desk.units()["last/model.pt"].files) == 2
    assert not desk.judge_in(SETTLE + 1, "last/model.pt").complete
    assert desk.judge_in(LONG, "last/model.pt").complete


def test_part_of_a_state_that_is_saved_alone_is_taken_though_it_never_rests_long(
    desk: Desk,
) -> None:
    verdicts = []
    for step in range(5):
        save(desk, "last", step, "model.pt")
        verdicts.append(desk.judge_in(SETTLE, "last/model.pt").complete)
        desk.clock.sleep(1)
    assert verdicts == [False] * 3 + [True] * 2


def test_set_in_which_the_best_takes_the_place_of_the_last_best_is_whole_when_it_rests(
    desk: Desk,
) -> None:
    """Sample Factory looks for a better one each five seconds; its numbers end with a score."""
    desk.write("exp/config.json", "{}")
    verdicts = []
    last = desk.root / "none"
    for step in range(8):
        if step % 4 == 0:
            save(desk, "exp/checkpoint_p0", step, f"checkpoint_00000{step}_{128 * step}.pth")
        name = f"best_00000{step}_{128 * step}_reward_{step}.000.pth"
        save(desk, "exp/checkpoint_p0", step, name)
        last.unlink(missing_ok=True)
        last = desk.root / "exp/checkpoint_p0" / name
        verdicts.append(desk.judge_in(SETTLE, "exp").complete)
        desk.clock.sleep(3)
    assert verdicts == [False, False, True, True, False, False, True, True]
