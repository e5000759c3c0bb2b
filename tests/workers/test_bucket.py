"""What lies in a bucket is whole or as good as absent, whoever sent it and whatever cut that off; and nobody waits for it."""

import json
import threading

import fsspec
import pytest

from budgetlm.errors import BucketAway, ConfigError
from budgetlm.workers import bucket as buckets
from budgetlm.workers.bucket import KEEP, MANIFEST, Bucket, check_shared
from budgetlm.workers.courier import Courier, Errand, beside


@pytest.fixture
def waits():
    return []


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """A server that speaks S3, on this machine, with one bucket."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    files = pytest.importorskip("s3fs")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        files.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def bucket(request, tmp_path, waits):
    addresses = {
        "memory": lambda: f"memory://{tmp_path.name}",
        "file": (tmp_path / "bucket").as_uri,
        "s3": lambda: f"{request.getfixturevalue('s3')}/{tmp_path.name}",
    }
    return Bucket(addresses[request.param](), "s", waits.append)


@pytest.fixture
def folder(tmp_path):
    """What is sent."""
    folder = tmp_path / "sent"
    folder.mkdir()
    (folder / "a.bin").write_bytes(bytes(range(256)) * 99)
    (folder / "b.json").write_text("{}")
    return folder


@pytest.fixture
def fetched(bucket, tmp_path):
    """What arrives of a key: the number of the parcel, and its files."""

    def fetch(key="runs/r", beyond=-1):
        there = bucket.fetch(key, lambda number: tmp_path / f"fetched {number}", beyond)
        return there and (int(there.name.split()[1]), {path.name: path.read_bytes() for path in there.iterdir()})

    return fetch


def files_of(bucket):
    files, path = fsspec.core.url_to_fs(bucket.address)
    return files, sorted(files.find(f"{path}/s"))


def test_a_folder_arrives_as_it_was_sent(bucket, folder, fetched):
    assert fetched() is None
    bucket.send_folder("runs/r", 7, folder)
    assert fetched() == (7, {path.name: path.read_bytes() for path in folder.iterdir()})
    assert fetched(beyond=7) is None
    assert bucket.newest("runs/r") == 7
    assert bucket.names("runs") == {"r"}
    bucket.forget("runs/r")
    assert fetched() is None
    assert bucket.names("runs") == set()
    bucket.forget("runs/r")  # as often as one likes


def test_of_several_the_newest_is_fetched_and_the_oldest_are_gone(bucket, folder, fetched):
    for number in (3, 20, 100):
        (folder / "b.json").write_text(str(number))
        bucket.send_folder("runs/r", number, folder)
    assert fetched()[0] == 100
    assert fetched()[1]["b.json"] == b"100"
    places = {path.split("/")[-2] for path in files_of(bucket)[1]}
    assert sorted(int(place.split("-")[0]) for place in places) == [20, 100]
    assert len(places) == KEEP


def spoil_half(files, place, path):
    files.pipe_file(path, files.cat_file(path)[: 2**12])


def spoil_bit(files, place, path):
    files.pipe_file(path, b"\xff" + files.cat_file(path)[1:])


def spoil_away(files, place, path):
    files.rm(path)


def spoil_unfinished(files, place, path):
    files.rm(f"{place}/{MANIFEST}")


def spoil_manifest(files, place, path):
    files.pipe_file(f"{place}/{MANIFEST}", files.cat_file(f"{place}/{MANIFEST}")[:-9])


def spoil_escape(files, place, path):
    manifest = json.loads(files.cat_file(f"{place}/{MANIFEST}"))
    manifest["../../escaped"] = manifest.pop("a.bin")
    files.pipe_file(f"{place}/{MANIFEST}", json.dumps(manifest).encode())


def spoil_list(files, place, path):
    files.pipe_file(f"{place}/{MANIFEST}", b"[1, 2]")


@pytest.mark.parametrize(
    "spoil",
    [spoil_half, spoil_bit, spoil_away, spoil_unfinished, spoil_manifest, spoil_escape, spoil_list],
    ids=lambda spoil: spoil.__name__,
)
def test_one_that_is_torn_or_changed_is_passed_over_for_the_one_before(bucket, folder, fetched, waits, spoil):
    bucket.send_folder("runs/r", 1, folder)
    bucket.send_folder("runs/r", 2, folder)
    files, paths = files_of(bucket)
    path = next(p for p in paths if "/00000002-" in p and p.endswith("a.bin"))
    spoil(files, path.rpartition("/")[0], path)
    assert fetched()[0] == 1
    assert not waits


def test_what_was_cut_off_is_removed_once_a_newer_one_is_whole_but_not_one_that_is_newer_still(bucket, folder, fetched):
    with (folder / "a.bin").open("rb") as a, (folder / "b.json").open("rb") as b:
        for number in (1, 3):
            goes_on = iter([True, False, False])
            bucket.send("runs/r", number, {"a.bin": b, "b.json": a}, lambda goes_on=goes_on: next(goes_on))
    assert fetched() is None
    assert bucket.newest("runs/r") == -1
    bucket.send_folder("runs/r", 2, folder)
    assert fetched()[0] == 2
    assert {path.split("/")[-2][:8] for path in files_of(bucket)[1]} == {"00000002", "00000003"}


def test_two_who_send_the_same_step_do_not_write_into_each_others_files(bucket, folder, fetched):
    bucket.send_folder("runs/r", 5, folder)
    with (folder / "a.bin").open("rb") as a:  # taken for dead, it sends on
        bucket.send("runs/r", 5, {"a.bin": a}, iter([True, False, False]).__next__)
    assert fetched()[0] == 5


def test_files_are_sent_whole_that_are_gone_from_the_disk_by_then(bucket, folder, fetched):
    content = (folder / "a.bin").read_bytes()
    with (folder / "a.bin").open("rb") as a:
        (folder / "a.bin").unlink()
        bucket.send("runs/r", 1, {"a.bin": a})
    assert fetched() == (1, {"a.bin": content})


@pytest.fixture
def flaky(bucket, monkeypatch):
    """Have the file system fail so many times."""
    files = fsspec.core.url_to_fs(bucket.address)[0]
    find, left = type(files).find, []

    def fails(self, *arguments, **options):
        if left:
            raise left.pop()
        return find(self, *arguments, **options)

    monkeypatch.setattr(type(files), "find", fails)
    return left


def test_a_network_that_fails_is_asked_again_and_then_it_is_said(bucket, folder, fetched, flaky, waits):
    bucket.send_folder("runs/r", 1, folder)
    flaky[:] = [ConnectionError("reset"), TimeoutError("late")]
    assert fetched()[0] == 1
    assert waits == [1.0, 2.0]
    flaky[:] = [RuntimeError("no route to host\nand so on")] * 3
    with pytest.raises(BucketAway, match=r"://.* cannot be used: no route to host\. Check"):
        bucket.newest("runs/r")
    flaky[:], waits[:] = [PermissionError("Forbidden")], []
    with pytest.raises(BucketAway, match="Forbidden"):
        bucket.names("runs")
    assert not waits


def test_an_error_while_reading_is_the_buckets_and_not_that_of_the_disk_here(bucket, folder, fetched, monkeypatch, tmp_path):
    bucket.send_folder("runs/r", 1, folder)

    def refuse(self, path):
        yield b"a beginning"
        raise buckets._AwayError(PermissionError(13, "Forbidden"))

    read = Bucket._read
    monkeypatch.setattr(Bucket, "_read", lambda self, path: (read if path.endswith(MANIFEST) else refuse)(self, path))
    with pytest.raises(BucketAway, match="Forbidden"):
        fetched()
    assert not list(tmp_path.glob("*fetched*"))


@pytest.mark.parametrize("key", ["runs/../r", "runs//r", "../r", "runs/.r", ""])
def test_keys_cannot_lead_out_of_the_bucket(bucket, folder, key):
    with pytest.raises(ConfigError, match="cannot name"):
        bucket.send_folder(key, 1, folder)
    with pytest.raises(ConfigError, match="cannot name"):
        bucket.forget(key)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("my-bucket", "no address that several"),
        ("/mnt/shared", "no address that several"),
        ("file://here/there", "no address that several"),
        ("memory://a", "no address that several"),
        ("https://host/a", "no address that several"),
        ("simplecache::s3://a", "no address that several"),
        ("s3://", "no address that several"),
        ("sftp://me:secret@host/a", "holds a password"),
        ("nonsense://a", "Protocol not known: nonsense"),
    ],
)
def test_an_address_that_cannot_serve_is_refused_with_the_reason(address, why):
    with pytest.raises(ConfigError, match=why):
        check_shared(address)


def test_an_address_whose_library_is_missing_says_which(monkeypatch):
    def lacking(kind):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", lacking)
    with pytest.raises(ConfigError, match=r"'s3://a', but Install s3fs to access S3\. E\.g\."):
        check_shared("s3://a")


def test_addresses_that_can_serve_are_taken(tmp_path):
    for address in ("", tmp_path.as_uri(), "sftp://me@host/a" if _has("paramiko") else ""):
        check_shared(address)


def _has(package):
    from importlib.util import find_spec

    return find_spec(package) is not None


class Gate:
    """An errand that waits until it is let through."""

    def __init__(self, done, name):
        self.open, self.begun = threading.Event(), threading.Event()
        self.dropped = 0
        self._done, self._name = done, name

    def errand(self):
        return Errand(self._do, self._drop)

    def _do(self):
        self.begun.set()
        assert self.open.wait(10)
        self._done.append(self._name)

    def _drop(self):
        self.dropped += 1


def test_a_courier_does_of_what_waits_only_the_last_of_a_name_and_drops_everything_once():
    done, told = [], []
    gates = [Gate(done, number) for number in range(4)]
    courier = Courier(told.append, iter(range(100)).__next__)
    courier.give("a", gates[0].errand())
    assert gates[0].begun.wait(10)
    courier.give("a", gates[1].errand())
    courier.give("b", gates[2].errand())
    courier.give("a", gates[3].errand())
    assert not courier.finish(0.0)
    for gate in gates:
        gate.open.set()
    assert courier.finish(10.0)
    courier.close()
    assert done == [0, 2, 3]
    assert [gate.dropped for gate in gates] == [1, 1, 1, 1]
    assert courier.seconds == 1
    assert not told


def test_a_courier_that_fails_says_so_once_until_it_succeeds_again():
    def fail():
        raise BucketAway("away")

    told = []
    courier = Courier(told.append)
    for errand, well in ((fail, False), (fail, False), (lambda: None, True), (fail, False)):
        courier.give("a", Errand(errand))
        assert courier.finish(10.0) is well
    courier.close()
    assert told == ["away", "away"]


def test_a_courier_that_is_closed_drops_what_waits_and_leaves_what_it_is_at():
    done = []
    first, second = Gate(done, 1), Gate(done, 2)
    courier = Courier(done.append)
    courier.give("a", first.errand())
    assert first.begun.wait(10)
    courier.give("a", second.errand())
    assert courier.goes_on()
    courier.close()
    assert not courier.goes_on()
    first.open.set()
    assert courier.finish(10.0)
    assert done == [1]
    assert (first.dropped, second.dropped) == (1, 1)


def test_time_is_seen_to_pass_while_something_is_waited_for():
    ticks, enough = [], threading.Event()

    def tick():
        ticks.append(threading.current_thread())
        if len(ticks) == 2:
            enough.set()

    assert beside(tick, lambda: enough.wait(10)) is True
    assert ticks == [threading.current_thread()] * 2
    with pytest.raises(BucketAway):
        beside(tick, _away)


def _away():
    raise BucketAway("away")
