"""The store: whole or absent, hashed on every read, shared by processes, readable by others' tools."""

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import oras.layout
import pytest

from exporter.errors import ImageError
from exporter.image import Digest, Store, default_store_path, host_architecture, parse_reference
from exporter.image.formats import (
    BEE_CONFIG,
    BEE_PROGRAM,
    KERNEL_TYPES,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    Manifest,
    parse_manifest,
    recognise,
)
from tests.support.images import bee_manifest, bpf_elf, descriptor

REFERENCE = parse_reference("registry.example/bpf/disk:1.4")
HOST = host_architecture()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def add(store: Store, content: bytes = b"one", text: str = str(REFERENCE)) -> Digest:
    """Build an image for this machine."""
    return store.add(parse_reference(text), {HOST: bpf_elf(content)}, {"version": 1})


def files(store: Store) -> set[str]:
    """Names of all blobs and of everything half written."""
    return {path.name for part in ("blobs/sha256", "ingest") for path in (store.path / part).iterdir()}


def test_image_comes_back_as_it_was_added(store: Store) -> None:
    """Object, metadata, version and digests."""
    digest = store.add(
        REFERENCE, {"amd64": bpf_elf(b"a"), "arm64": bpf_elf(b"b")}, {"version": 1},
        {"org.opencontainers.image.version": "1.4.2", "org.opencontainers.image.created": "2026-01-02T03:04:05Z"},
    )  # fmt: skip
    bundle = store.bundle(REFERENCE, "aarch64")
    assert (bundle.digest, bundle.object, bundle.metadata) == (digest, bpf_elf(b"b"), {"version": 1})
    assert (bundle.version, bundle.architecture, bundle.format) == ("1.4.2", "arm64", "bumblebee")
    assert bundle.object_digest == Digest.of(bpf_elf(b"b"))
    assert bundle.manifest_digest not in (bundle.digest, bundle.object_digest)
    (image,) = store.list()
    assert (image.reference, image.architectures, image.complete) == (str(REFERENCE), ("amd64", "arm64"), True)
    assert image.created == "2026-01-02T03:04:05Z"
    assert image.size == sum(path.stat().st_size for path in (store.path / "blobs/sha256").iterdir())


def test_empty_and_absent_stores_hold_nothing(store: Store) -> None:
    """Reading makes no directory."""
    assert store.list() == []
    assert store.resolve(REFERENCE) is None
    assert store.prune(1) == []
    with pytest.raises(ImageError, match="pull it first") as caught:
        store.bundle(REFERENCE)
    assert caught.value.code == "img.not_present"
    assert not store.path.exists()


def test_altered_blob_is_refused_and_discarded(store: Store) -> None:
    """One flipped bit in the object is an error, and the next pull finds a gap instead of damage."""
    add(store)
    path = store.blob_path(Digest.of(bpf_elf(b"one")))
    path.write_bytes(bpf_elf(b"0ne"))
    with pytest.raises(ImageError, match="now hashes to") as caught:
        store.bundle(REFERENCE)
    assert caught.value.code == "img.cache_corrupt"
    assert not path.exists()
    with pytest.raises(ImageError, match="missing") as caught:
        store.bundle(REFERENCE)
    assert caught.value.code == "img.not_present"


@pytest.mark.parametrize("which", ["manifest", "config", "truncated", "fifo"])
def test_every_kind_of_altered_blob_is_noticed(store: Store, which: str) -> None:
    """Not the object alone; and a pipe in a blob's place blocks nobody."""
    digest = add(store)
    body = json.loads(store.blob_path(digest).read_bytes())
    target = store.blob_path(Digest.parse(body["config"]["digest"]) if which == "config" else digest)
    if which == "fifo":
        target.unlink()
        os.mkfifo(target)
    else:
        target.write_bytes(b"" if which == "truncated" else target.read_bytes().replace(b"{", b"[", 1))
    with pytest.raises(ImageError) as caught:
        store.bundle(REFERENCE)
    assert caught.value.code == ("img.store_io" if which == "fifo" else "img.cache_corrupt")


def test_damaged_index_is_set_aside_by_the_next_write(store: Store) -> None:
    """What it named is lost to lookups, but not the chance to go on."""
    add(store)
    (store.path / "index.json").write_text('{"manifests": ')
    with pytest.raises(ImageError) as caught:
        store.resolve(REFERENCE)
    assert caught.value.code == "img.cache_corrupt"
    add(store)
    assert store.bundle(REFERENCE).object == bpf_elf(b"one")
    assert (store.path / "index.json.corrupt").exists()


def test_wrong_bytes_never_reach_a_blobs_name(store: Store) -> None:
    """Digest, length, or an error in the middle: nothing is left of it."""
    good = Descriptor("x/y", Digest.of(b"good"), 4)

    def failing() -> Iterator[bytes]:
        yield b"go"
        raise ImageError("the network broke", code="img.truncated")

    with store.writing():
        for pieces, code in (
            ((b"evil",), "img.blob_digest"),
            ((b"goo",), "img.blob_size"),
            (failing(), "img.truncated"),
        ):
            with pytest.raises(ImageError) as caught:
                store.write(good, pieces)
            assert caught.value.code == code
    assert files(store) == set()


def test_older_versions_stay_for_rollback_until_pruned(store: Store) -> None:
    """The name means the newest; a digest still finds the others, without a network."""
    digests = [add(store, content) for content in (b"1", b"2", b"3", b"4")]
    assert store.bundle(REFERENCE).digest == digests[3]
    assert store.bundle(REFERENCE.pinned(digests[0])).object == bpf_elf(b"1")
    assert [image.current for image in store.list()] == [True, False, False, False]
    assert {image.digest for image in store.prune(3)} == {digests[0]}
    assert store.resolve(REFERENCE.pinned(digests[0])) is None
    assert store.bundle(REFERENCE.pinned(digests[1])).object == bpf_elf(b"2")
    assert not store.blob_path(Digest.of(bpf_elf(b"1"))).exists()


def test_prune_spares_what_is_in_use_and_what_is_shared(store: Store) -> None:
    """A running version stays whatever its age; a blob two images name stays while one of them does."""
    first, second = add(store, b"1"), add(store, b"2")
    other = "registry.example/other:1"
    add(store, b"1", other)
    assert store.prune(1, in_use=[first]) == []
    assert [image.digest for image in store.prune(1)] == [first]
    assert store.bundle(REFERENCE).digest == second
    assert store.bundle(parse_reference(other)).object == bpf_elf(b"1")


def test_returning_to_an_older_version_makes_it_the_newest(store: Store) -> None:
    """Rolled back twice, an image is still listed once."""
    for content in (b"1", b"2", b"1"):
        add(store, content)
    assert store.list()[0].current
    assert store.list()[0].digest == add(store, b"1")
    assert len(store.list()) == 2


def test_pin_says_nothing_about_the_tag_beside_it(store: Store) -> None:
    """Pulling ``a:1@sha256:…`` must not change what plain ``a:1`` means."""
    digest = add(store, b"1")
    pinned = store.resolve(REFERENCE)
    assert pinned is not None
    add(store, b"2")
    store.record(REFERENCE.pinned(digest), pinned)
    assert store.bundle(REFERENCE).object == bpf_elf(b"2")
    assert store.bundle(REFERENCE.pinned(digest)).object == bpf_elf(b"1")


def test_layout_is_one_that_oras_reads(store: Store) -> None:
    """Other tools import it: marker file, one descriptor for each name, blobs by digest."""
    add(store, b"1")
    digest = add(store, b"2")
    layout = oras.layout.Layout(str(store.path), validate=True)
    ordered = layout.get_ordered_blobs(str(REFERENCE))
    assert ordered[-1] == str(digest)
    assert str(Digest.of(bpf_elf(b"2"))) in ordered
    assert str(Digest.of(bpf_elf(b"1"))) not in ordered
    named = [
        entry
        for entry in json.loads((store.path / "index.json").read_bytes())["manifests"]
        if entry.get("annotations", {}).get(REF_NAME) == str(REFERENCE)
    ]
    assert [entry["digest"] for entry in named] == [str(digest)]


def test_bumblebees_store_is_read_as_it_is(tmp_path: Path) -> None:
    """No media types, uname's architecture on the descriptor, its user's spelling of the reference."""
    program, config = bpf_elf(), b"{}"
    raw = bee_manifest(program)
    blobs = tmp_path / "blobs/sha256"
    blobs.mkdir(parents=True)
    for content in (program, config, raw):
        (blobs / Digest.of(content).hex).write_bytes(content)
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    entry = descriptor(
        raw, "application/vnd.oci.image.manifest.v1+json",
        annotations={REF_NAME: "me/probe"},
        platform={"architecture": {"amd64": "x86_64", "arm64": "aarch64"}[HOST], "os": "Linux", "os.version": "6.1"},
    )  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    bundle = Store(tmp_path).bundle(parse_reference("docker.io/me/probe:latest"))
    assert (bundle.object, bundle.metadata, bundle.architecture) == (program, {}, HOST)
    assert Store(tmp_path).bundle(parse_reference(f"oci:{tmp_path}")).object == program


def test_layout_of_several_images_wants_a_name(store: Store) -> None:
    """And the error lists them."""
    add(store, b"1", "registry.example/a:1")
    add(store, b"2", "registry.example/b:1")
    with pytest.raises(ImageError, match=r"registry\.example/a:1.*registry\.example/b:1") as caught:
        store.bundle(parse_reference(f"oci:{store.path}"))
    assert caught.value.code == "img.ambiguous_name"
    assert store.bundle(parse_reference(f"oci:{store.path}:registry.example/b:1")).object == bpf_elf(b"2")


def test_directory_that_is_no_layout_says_so(tmp_path: Path) -> None:
    """A wrong path is a user's most likely mistake."""
    with pytest.raises(ImageError, match="not an OCI layout"):
        Store(tmp_path).bundle(parse_reference(str(tmp_path)))


@pytest.mark.parametrize("text", ["./disk.o", "oci:dir"])
def test_only_a_name_can_be_added(store: Store, text: str) -> None:
    """A file's path is not what an image is called."""
    with pytest.raises(ImageError) as caught:
        store.add(parse_reference(text), {HOST: bpf_elf()})
    assert caught.value.code == "img.ref_syntax"


def test_threads_and_processes_add_without_losing_each_others_images(store: Store) -> None:
    """Eight writers of one index.json, half of them in another process, and a collector among them."""
    script = textwrap.dedent("""
        import sys
        from exporter.image import Store, parse_reference
        from tests.support.images import bpf_elf
        store = Store(sys.argv[1])
        for number in range(20):
            reference = parse_reference(f"registry.example/p{sys.argv[2]}:{number}")
            store.add(reference, {"amd64": bpf_elf(b"%d" % number)})
    """)
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(store.path), str(number)], cwd=Path(__file__).parents[2])
        for number in range(2)
    ]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                add(store, b"%d" % turn, f"registry.example/t{number}:{turn}")
                store.prune(3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert failures == []
    images = store.list()
    assert len(images) == 80
    assert all(image.complete for image in images)
    store.prune(3)
    assert (store.path / "ingest").exists()
    assert not list((store.path / "ingest").iterdir())


def test_garbage_is_not_collected_under_a_writers_hands(store: Store) -> None:
    """A blob that nothing names yet is being pulled, not abandoned."""
    add(store)
    stray = Descriptor("x/y", Digest.of(b"stray"), 5)
    with store.writing():
        store.write(stray, (b"stray",))
        store.prune(1)
        assert store.holds(stray)
    store.prune(1)
    assert not store.holds(stray)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to write anywhere; does nothing when there is none to lose."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_store_one_may_not_write_is_one_line_and_still_readable() -> None:
    """Directories without write permission, and a user without privilege."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        store = Store(Path(directory) / "store")
        add(store)
        locked = [store.path, store.path / "ingest", store.path / "blobs", store.path / "blobs/sha256"]
        for path in locked:
            path.chmod(0o555)
        for name in (".lock", ".blobs.lock"):
            (store.path / name).chmod(0o444)
        try:
            with as_nobody():
                assert store.bundle(REFERENCE).object == bpf_elf(b"one")
                assert len(store.list()) == 1
                with pytest.raises(ImageError, match="Permission denied; give this user write access") as caught:
                    add(store, b"two")
            assert caught.value.code == "img.store_io"
        finally:
            for path in locked:
                path.chmod(0o755)


def test_write_cut_short_by_the_kernel_leaves_nothing(store: Store) -> None:
    """A real short write and EFBIG, by the process's own file size limit."""
    add(store)
    before = files(store), store.list()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ImageError, match="File too large; raise the file size limit") as caught:
            add(store, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "img.store_io"
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert store.list() == before[1]
    assert not list((store.path / "ingest").iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "skep-test", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_full_disk_is_one_line_and_the_old_image_still_runs(small_disk: Path) -> None:
    """ENOSPC from a file system that is really full."""
    store = Store(small_disk / "store")
    add(store)
    with pytest.raises(ImageError, match="No space left on device; free space there") as caught:
        add(store, b"x" * 200_000)
    assert caught.value.code == "img.store_io"
    assert store.bundle(REFERENCE).object == bpf_elf(b"one")
    assert not list((store.path / "ingest").iterdir())


def test_read_only_disk_is_one_line_and_the_old_image_still_runs(small_disk: Path) -> None:
    """EROFS from a file system that is really mounted so; damage there is refused though it cannot be removed."""
    store = Store(small_disk / "store")
    add(store)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert store.bundle(REFERENCE).object == bpf_elf(b"one")
    with pytest.raises(ImageError, match="mounted read-only; choose another") as caught:
        add(store, b"two")
    assert caught.value.code == "img.store_io"


def test_default_path_is_roots_or_in_the_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative XDG paths are invalid and ignored."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_store_path() == Path("/var/lib/skep/store")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/bee")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_store_path() == Path("/data/skep/store")
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    assert default_store_path() == Path("/home/bee/.local/share/skep/store")


def test_default_path_of_the_services_user_is_the_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns /var/lib/skep is the service's user, and ``sudo -u skep skep list`` shows what the service runs."""
    monkeypatch.setattr("exporter.image.store._SYSTEM_STATE", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid)
    assert default_store_path() == tmp_path / "store"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who writes where another user's service reads")
def test_prepared_store_is_its_owners_whoever_pulls_into_it() -> None:
    """Root adds an image; the service's user can lock the store, add another and prune."""
    nobody = 65534
    # Pytest's own folder is closed to other users.
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, nobody, nobody)

        def as_nobody(work: Callable[[], object]) -> None:
            child = os.fork()
            if child == 0:
                with suppress(BaseException):
                    os.setresgid(nobody, nobody, nobody)
                    os.setresuid(nobody, nobody, nobody)
                    work()
                    os._exit(0)
                os._exit(1)
            assert os.waitpid(child, 0)[1] == 0

        store = Store(folder)
        as_nobody(store.prepare)
        add(store)
        as_nobody(lambda: (add(store, b"two"), add(store, b"three"), store.prune(1)))
        assert len(store.list()) == 1


def test_types_of_kernels_travel_beside_the_object(store: Store) -> None:
    """A layer of its own, in every architecture's manifest, read only by whoever asks."""
    objects = {"amd64": bpf_elf(b"a"), "arm64": bpf_elf(b"b")}
    store.add(REFERENCE, objects, types=b"types of kernels")
    for architecture, content in objects.items():
        bundle = store.bundle(REFERENCE, architecture)
        assert bundle.object == content
        assert bundle.types is not None and bundle.types() == b"types of kernels"
    add(store, text="registry.example/bpf/plain:1")
    assert store.bundle(parse_reference("registry.example/bpf/plain:1")).types is None


def test_image_with_two_layers_of_types_is_refused(store: Store) -> None:
    """Which of them is meant cannot be known."""
    layers = [descriptor(b"a", KERNEL_TYPES), descriptor(b"b", KERNEL_TYPES), descriptor(bpf_elf(b"o"), BEE_PROGRAM)]
    manifest = parse_manifest(json.dumps({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(b"{}", BEE_CONFIG), "layers": layers,
    }).encode(), subject="image 'x'")  # fmt: skip
    assert isinstance(manifest, Manifest)
    with pytest.raises(ImageError, match=r"2 layers are of type .*btf.*, must be 1 at most"):
        recognise(manifest, subject="image 'x'")


def test_types_beyond_the_limit_are_refused_before_anything_is_written(store: Store) -> None:
    """What could not be read back is not stored."""
    with pytest.raises(ImageError, match="types of kernels are 33554433 bytes"):
        store.add(REFERENCE, {HOST: bpf_elf(b"a")}, types=bytes((32 << 20) + 1))
