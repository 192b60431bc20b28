"""Settings: every fault at once, nothing secret shown, a replaced credential is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncd.config import Environment, Settings, encrypt_key_in, load_settings, parse_bytes
from syncd.errors import SettingsError
from syncd.keys import new_key


def load(tmp_path: Path, **environ: str) -> Settings:
    return load_settings(Environment(environ, tmp_path / ".env"))


def test_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings == Settings()
    assert not settings.copies


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError) as caught:
        load(
            tmp_path,
            CLOUD_PROVIDER="s4",
            CHECKPOINT_DIR=str(tmp_path / "file"),
            SYNCD_BWLIMIT="fast",
            SYNCD_SETTLE="soon",
            SYNCD_CONCURRENCY="many",
            SYNCD_KEEP_LAST="0",
            SYNCD_KEEP_EVERY="0",
            SYNCD_HTTP="8377",
            SYNCD_HTTP_TOKEN="short",
            SYNCD_MAX_LAG="0",
            SYNCD_HOOK="notify 'me",
            RESUME_FROM="oldest",
            CLOUD_PREFIX="../x",
            CLOUD_MIRROR="ftp://host/dir",
        )
    names = [fault.split(":")[0] for fault in caught.value.faults]
    assert names == [
        "CHECKPOINT_DIR",
        "CLOUD_MIRROR",
        "CLOUD_PREFIX",
        "CLOUD_PROVIDER",
        "RESUME_FROM",
        "SYNCD_BWLIMIT",
        "SYNCD_CONCURRENCY",
        "SYNCD_HOOK",
        "SYNCD_HTTP",
        "SYNCD_HTTP_TOKEN",
        "SYNCD_KEEP_EVERY",
        "SYNCD_KEEP_LAST",
        "SYNCD_MAX_LAG",
        "SYNCD_SETTLE",
    ]


def test_milestones_need_a_number_of_the_newest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="without SYNCD_KEEP_LAST"):
        load(tmp_path, SYNCD_KEEP_EVERY="100")
    assert load(tmp_path, SYNCD_KEEP_EVERY="100", SYNCD_KEEP_LAST="3").keep_every == 100


@pytest.mark.parametrize("provider", ["s3", "gcs", "azure"])
def test_cloud_needs_a_bucket(tmp_path: Path, provider: str) -> None:
    with pytest.raises(SettingsError, match="CLOUD_BUCKET"):
        load(tmp_path, CLOUD_PROVIDER=provider)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket/some/prefix/", ("s3", "bucket", "some/prefix")),
        ("gs://bucket", ("gcs", "bucket", "eigen2")),
        ("azure://container/p", ("azure", "container", "p")),
        ("file:///mnt/back%20up", ("local", "/mnt/back up", "eigen2")),
    ],
)
def test_mirror_is_named_by_one_address(
    tmp_path: Path, url: str, place: tuple[str, str, str]
) -> None:
    mirror = load(tmp_path, CLOUD_BUCKET=str(tmp_path), CLOUD_MIRROR=url).mirror
    assert mirror
    assert (mirror.cloud_provider, mirror.cloud_bucket, mirror.cloud_prefix) == place
    assert mirror.state_dir == Path(".syncd/mirror")
    assert mirror.mirror is None


def test_mirror_has_its_own_keys_where_they_are_given(tmp_path: Path) -> None:
    first = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_SESSION_TOKEN": "of-a",
        "AWS_ENDPOINT_URL": "https://one",
        "AWS_REGION": "eu",
    }
    cloud = {"CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": "b", "CLOUD_MIRROR": "s3://b/eigen2"}
    with pytest.raises(SettingsError, match="very place"):
        load(tmp_path, **first, **cloud)
    second = {
        "CLOUD_MIRROR_AWS_ACCESS_KEY_ID": "b",
        "CLOUD_MIRROR_AWS_SECRET_ACCESS_KEY": "hunter3",
        "CLOUD_MIRROR_AWS_ENDPOINT_URL": "",
    }
    settings = load(tmp_path, **first, **cloud, **second)
    assert settings.mirror
    environ = settings.mirror.environ
    assert (environ["AWS_ACCESS_KEY_ID"], environ["AWS_REGION"]) == ("b", "eu")
    assert "AWS_SESSION_TOKEN" not in environ, "a token is of one key"
    assert "AWS_ENDPOINT_URL" not in environ, "set to nothing: Amazon's own"
    assert settings.environ["AWS_ENDPOINT_URL"] == "https://one"
    assert "hunter" not in repr(settings) + repr(settings.mirror)


def test_mirror_of_nothing_and_keys_in_its_address_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no CLOUD_BUCKET"):
        load(tmp_path, CLOUD_MIRROR="s3://bucket")
    with pytest.raises(SettingsError, match="more than a place") as caught:
        load(tmp_path, CLOUD_BUCKET="b", CLOUD_MIRROR="s3://key:hunter2@bucket")
    assert "hunter2" not in str(caught.value)


def test_rank_and_world_go_together(tmp_path: Path) -> None:
    settings = load(tmp_path, SYNCD_RANK="0", SYNCD_WORLD="2")
    assert (settings.rank, settings.world) == (0, 2)
    for environ in ({"SYNCD_RANK": "0"}, {"SYNCD_WORLD": "2"}):
        with pytest.raises(SettingsError, match="it goes with SYNCD_WORLD"):
            load(tmp_path, **environ)
    with pytest.raises(SettingsError, match="counted from 0"):
        load(tmp_path, SYNCD_RANK="2", SYNCD_WORLD="2")
    with pytest.raises(SettingsError, match="2 or more"):
        load(tmp_path, SYNCD_RANK="0", SYNCD_WORLD="1")


def test_empty_means_unset(tmp_path: Path) -> None:
    assert load(tmp_path, SYNCD_BWLIMIT="", CLOUD_PROVIDER=" ") == Settings()


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CLOUD_PREFIX=file\nSYNCD_SETTLE=5\n")
    settings = load(tmp_path, CLOUD_PREFIX="environment")
    assert (settings.cloud_prefix, settings.settle) == ("environment", 5.0)


def test_value_replaced_in_the_file_wins_over_the_exported_old_one(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("AWS_SECRET_ACCESS_KEY=old\n")
    environment = Environment({"AWS_SECRET_ACCESS_KEY": "old"}, file)
    assert environment.read()["AWS_SECRET_ACCESS_KEY"] == "old"
    file.write_text("AWS_SECRET_ACCESS_KEY=new\n")
    assert environment.read()["AWS_SECRET_ACCESS_KEY"] == "new"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_file_of_an_editor_that_marks_it_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / ".env").write_text("CLOUD_BUCKET=é\r\nSYNCD_SETTLE=5\r\n", encoding=encoding)
    settings = load(tmp_path)
    assert (settings.cloud_bucket, settings.settle) == ("é", 5.0)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_file_in_another_encoding_is_refused_at_the_start(tmp_path: Path, encoding: str) -> None:
    words = "CLOUD_BUCKET=b" if encoding == "utf-16-le" else "CLOUD_BUCKET=b # für mich"
    (tmp_path / ".env").write_text(words, encoding=encoding)
    with pytest.raises(SettingsError, match=r"\.env: it is not UTF-8 text; save it as UTF-8"):
        load(tmp_path)


def test_file_that_cannot_be_read_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / ".env").symlink_to(".env")
    with pytest.raises(SettingsError, match=r"\.env: it cannot be read: .*; give this user"):
        load(tmp_path)


def test_folder_of_that_name_is_no_file_of_settings(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert load(tmp_path) == Settings()


def test_file_that_becomes_unreadable_keeps_what_it_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / ".env"
    file.write_text("CLOUD_BUCKET=b\n")
    environment = Environment({}, file)
    file.write_text("CLOUD_BUCKET=ü\n", encoding="latin-1")
    for _ in range(2):
        assert environment.read()["CLOUD_BUCKET"] == "b"
    assert caplog.text.count("not UTF-8 text") == 1
    file.write_text("CLOUD_BUCKET=ü\n", encoding="utf-8")
    assert environment.read()["CLOUD_BUCKET"] == "ü"


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    settings = load(tmp_path, AWS_SECRET_ACCESS_KEY="hunter2")
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "count"),
    [("50M", 50 * 2**20), ("1g", 2**30), ("2.5MB/s", 2621440), ("512", 512), ("10 KiB", 10240)],
)
def test_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


def test_http_off_and_address(tmp_path: Path) -> None:
    assert load(tmp_path, SYNCD_HTTP="off").http is None
    assert load(tmp_path, SYNCD_HTTP="[::1]:9000").http == ("::1", 9000)


@pytest.mark.parametrize("address", ["0.0.0.0:9000", "[::]:9000", "10.1.2.3:80", "host.name:80"])
def test_page_that_others_can_reach_needs_a_token(tmp_path: Path, address: str) -> None:
    with pytest.raises(SettingsError, match="set SYNCD_HTTP_TOKEN"):
        load(tmp_path, SYNCD_HTTP=address)
    settings = load(tmp_path, SYNCD_HTTP=address, SYNCD_HTTP_TOKEN="a-token-of-some-length")
    assert settings.http
    assert "a-token" not in repr(settings)


def test_token_that_can_be_guessed_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="16 characters") as caught:
        load(tmp_path, SYNCD_HTTP_TOKEN="hunter2")
    assert "hunter2" not in str(caught.value)


def test_bound_of_the_lag(tmp_path: Path) -> None:
    assert load(tmp_path).max_lag is None
    assert load(tmp_path, SYNCD_MAX_LAG="90").max_lag == 90
    assert load(tmp_path, SYNCD_MAX_LAG="off").max_lag == float("inf")


def test_example_explains_every_setting() -> None:
    from syncd.config import _Schema

    text = (Path(__file__).parents[2] / ".env.example").read_text()
    missing = [name for name in _Schema().fields if f"{name}=" not in text]
    assert missing == []


def test_key_is_given_in_one_way(tmp_path: Path) -> None:
    new_key(tmp_path / "key")
    words = (tmp_path / "key").read_text()
    by_file = load(tmp_path, SYNCD_ENCRYPT_KEY_FILE=str(tmp_path / "key"))
    assert by_file.encrypt_key == load(tmp_path, SYNCD_ENCRYPT_KEY=words).encrypt_key
    assert by_file.encrypt_key == encrypt_key_in({"SYNCD_ENCRYPT_KEY": words})
    assert encrypt_key_in({}) == b""
    with pytest.raises(SettingsError, match="one of the two"):
        load(tmp_path, SYNCD_ENCRYPT_KEY=words, SYNCD_ENCRYPT_KEY_FILE=str(tmp_path / "key"))
    assert words.strip() not in repr(load(tmp_path, SYNCD_ENCRYPT_KEY=words))
    assert repr(by_file.encrypt_key) not in repr(by_file)
