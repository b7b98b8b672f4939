"""References: what is read, what is refused, and that nothing else ever happens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config import default_image_name
from exporter.errors import ImageError
from exporter.image import Digest, Reference, ReferenceKind, parse_reference

HEX = "9f" * 32
PIN = f"@sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("disk", "docker.io/library/disk:latest"),
        ("disk:1", "docker.io/library/disk:1"),
        ("me/disk", "docker.io/me/disk:latest"),
        ("docker.io/disk", "docker.io/library/disk:latest"),
        ("index.docker.io/me/disk", "docker.io/me/disk:latest"),
        ("registry-1.docker.io/disk", "docker.io/library/disk:latest"),
        ("localhost/disk", "localhost/disk:latest"),
        ("localhost:5000/a/b/c:V1.2_x-y", "localhost:5000/a/b/c:V1.2_x-y"),
        ("127.0.0.1:5000/disk", "127.0.0.1:5000/disk:latest"),
        ("[::1]:5000/disk", "[::1]:5000/disk:latest"),
        ("Registry.Example/bpf/disk:1.4", "registry.example/bpf/disk:1.4"),
        ("registry.example/bpf/disk" + PIN, "registry.example/bpf/disk" + PIN),
        ("registry.example/bpf/disk:1.4" + PIN, "registry.example/bpf/disk:1.4" + PIN),
        ("registry.example/a__b/c-d/e.f--g:" + "t" * 128, "registry.example/a__b/c-d/e.f--g:" + "t" * 128),
        ("disk:80/a", "disk:80/a:latest"),
    ],
)
def test_registry_reference_is_normalised_as_docker_does(text: str, canonical: str) -> None:
    """Docker Hub's short names, hosts in any case, the default tag; a tag is kept beside a digest."""
    reference = parse_reference(text)
    assert reference.kind is ReferenceKind.REGISTRY
    assert str(reference) == canonical
    assert parse_reference(canonical) == reference


def test_docker_hub_is_asked_at_its_api_host() -> None:
    """The name in the reference does not serve the API."""
    assert parse_reference("disk").api_host == "registry-1.docker.io"
    assert parse_reference("registry.example/disk").api_host == "registry.example"


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("localhost/a", True),
        ("localhost:5000/a", True),
        ("registry.localhost:5000/a", True),
        ("127.0.0.1:5000/a", True),
        ("127.9.9.9/a", True),
        ("[::1]:5000/a", True),
        ("[0000:0000:0000:0000:0000:0000:0000:0001]/a", True),
        ("registry.example/a", False),
        ("localhost.example/a", False),
        ("127.0.0.1.example/a", False),
        ("10.0.0.1:5000/a", False),
        ("[::2]:5000/a", False),
        ("disk", False),
    ],
)
def test_only_this_machine_counts_as_loopback(text: str, loopback: bool) -> None:
    """Plain HTTP is allowed there without a word of configuration, so nowhere else may look like it."""
    assert parse_reference(text).loopback is loopback


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("catalog:block-latency", Reference(ReferenceKind.CATALOG, name="block-latency")),
        ("./disk.bpf.o", Reference(ReferenceKind.FILE, path="./disk.bpf.o")),
        ("disk.o", Reference(ReferenceKind.FILE, path="disk.o")),
        ("/srv/my objects/disk:1.o", Reference(ReferenceKind.FILE, path="/srv/my objects/disk:1.o")),
        ("/srv/layout", Reference(ReferenceKind.LAYOUT, path="/srv/layout")),
        (".", Reference(ReferenceKind.LAYOUT, path=".")),
        ("oci:layout", Reference(ReferenceKind.LAYOUT, path="layout")),
        (
            "oci:/srv/l:registry.example/a:1",
            Reference(ReferenceKind.LAYOUT, path="/srv/l", name="registry.example/a:1"),
        ),
        ("oci:l" + PIN, Reference(ReferenceKind.LAYOUT, path="l", digest=Digest(HEX))),
        ("oci:l:a:1" + PIN, Reference(ReferenceKind.LAYOUT, path="l", name="a:1", digest=Digest(HEX))),
        # Docker Hub's me/layout, whatever the current directory holds.
        ("me/layout", Reference(ReferenceKind.REGISTRY, registry="docker.io", repository="me/layout", tag="latest")),
    ],
)
def test_local_reference_is_told_by_its_form_alone(text: str, expected: Reference) -> None:
    """Where the process was started never changes what a reference means."""
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("registry.example/a//b", "part of its path is empty"),
        ("registry.example/", "part of its path is empty"),
        ("/a:b", "path cannot hold"),
        ("registry.example/a b", "space"),
        (" disk", "space"),
        ("disk\n", "control character"),
        ("disk\x00", "control character"),
        ("me/Disk", "upper case"),
        ("Me/disk", "upper case"),
        ("registry.example/a/../b", "'..' is not a path part"),
        ("registry.example/a/./b", "'.' is not a path part"),
        ("registry.example/-a", "a-z 0-9"),
        ("registry.example/a___b", "a-z 0-9"),
        ("registry.example/a?x=1", "a-z 0-9"),
        ("registry.example/a:", "tag is empty"),
        ("registry.example/a:.x", "tag"),
        ("registry.example/a:" + "t" * 129, "tag"),
        ("registry.example/a:1:2", "tag"),
        ("https://registry.example/a", "URL"),
        ("registry.example:0/a", "port"),
        ("registry.example:65536/a", "port"),
        ("registry.example:x/a", "port"),
        ("reg_istry.example/a", "host"),
        ("[::1/a", "host"),
        ("registry..example/a", "host"),
        ("régistry.example/a", "ASCII"),
        ("a" * 64, "image id"),
        ("registry.example/" + "a" * 300, "longer than 255"),
        ("a" * 5000, "limit"),
        ("catalog:", "catalog:"),
        ("catalog:../x", "catalog:"),
        ("oci:", "directory"),
        ("oci:d:", "name"),
    ],
)
def test_malformed_reference_says_why(text: str, reason: str) -> None:
    """One line with the reason and the forms there are."""
    with pytest.raises(ImageError, match="malformed") as caught:
        parse_reference(text)
    assert caught.value.code == "img.ref_syntax"
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["prog.bpf.c", "./prog.c", "/srv/prog.c", "src/prog.bpf.c"])
def test_source_where_an_object_is_wanted_is_told_how_to_become_one(text: str) -> None:
    """And no registry is asked for an image of that name."""
    with pytest.raises(ImageError) as caught:
        parse_reference(text)
    assert str(caught.value).endswith(f"skep build {text} --output {text.removesuffix('.c')}.o")


@pytest.mark.parametrize("text", ["registry.example/me/prog.c", "me/prog.c:1", "localhost/prog.c"])
def test_image_may_be_called_like_a_source(text: str) -> None:
    """Where a host or a tag says that it is one."""
    assert parse_reference(text).kind is ReferenceKind.REGISTRY


@pytest.mark.parametrize(
    "digest",
    [
        "", "sha256:", "sha256:" + "9f" * 31, "sha256:" + "9F" * 32, "sha256:" + "9f" * 33, "md5:" + "9f" * 16,
        "sha512:" + "9f" * 64, "sha256:..%2f..", "9f" * 32,
    ],
)  # fmt: skip
def test_digest_of_another_form_is_refused(digest: str) -> None:
    """A digest becomes a path and a URL, so it has one spelling."""
    with pytest.raises(ImageError, match="must be 'sha256:'") as caught:
        parse_reference("registry.example/a@" + digest)
    assert caught.value.code == "img.digest_syntax"


def test_digest_with_a_path_in_it_is_refused() -> None:
    """What would leave the blobs' directory never gets near it."""
    with pytest.raises(ImageError):
        parse_reference("registry.example/a@sha256:../../../etc/passwd")


@pytest.mark.parametrize("text", ["bee:hunter2@registry.example/a", "https://bee:hunter2@registry.example/a"])
def test_password_in_a_reference_is_refused_and_not_repeated(text: str) -> None:
    """The error lands in logs."""
    with pytest.raises(ImageError) as caught:
        parse_reference(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("registry.example:5000/bpf/disk-latency:1.4" + PIN, "disk-latency"),
        ("catalog:block-latency", "block-latency"),
        ("/srv/disk.bpf.o", "disk"),
        ("disk.o", "disk"),
    ],
)
def test_default_name_is_the_last_part(text: str, name: str) -> None:
    """Two modules derive it, each from what it has; they must agree."""
    assert parse_reference(text).default_name == name
    assert default_image_name(text) == name


def test_default_name_of_a_layout_is_its_image_or_directory() -> None:
    """The image's own name when one is given."""
    assert parse_reference("oci:/srv/l:registry.example/a/disk:1").default_name == "disk"
    assert parse_reference("/srv/probes").default_name == "probes"


def test_pinning_keeps_the_tag_for_people() -> None:
    """``pull`` and ``push`` print this."""
    assert str(parse_reference("disk:1").pinned(Digest(HEX))) == f"docker.io/library/disk:1{PIN}"


_PIECES = st.sampled_from(
    ["a", "B", "disk", "registry.example", ":5000", "/", "//", ":", "@", "sha256:", HEX, ".", "..", "[", "::1", "]",
     " ", "catalog:", "oci:", "~/", ".o", "\x00", "é", "-", "_", "localhost", "://", "%2f", "?", "#"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(_PIECES, max_size=12).map("".join)))
def test_any_text_is_a_reference_or_an_image_error(text: str) -> None:
    """Whatever the text, ``parse_reference`` gives a stable Reference or raises ImageError, nothing else."""
    try:
        reference = parse_reference(text)
    except ImageError as error:
        assert error.code in ("img.ref_syntax", "img.digest_syntax")
        assert "\n" not in str(error)
        return
    assert parse_reference(str(reference)) == reference
    assert reference.default_name
