"""Manifests from strangers: one meaning or an error; and what ours look like."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import ImageError
from exporter.image.bundle import assemble
from exporter.image.formats import (
    BEE_CONFIG,
    BEE_PROGRAM,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MANIFEST_LIMIT,
    OCI_INDEX,
    OCI_MANIFEST,
    TITLE,
    Descriptor,
    Index,
    Manifest,
    build_artifact,
    host_architecture,
    is_bpf_elf,
    normalise_architecture,
    parse_config,
    parse_manifest,
    recognise,
    select,
)
from exporter.image.reference import Digest, parse_reference
from tests.support.images import bee_manifest, bpf_elf, descriptor, digest_of, index_of

ELF = bpf_elf()
AMD64, ARM64 = {"os": "linux", "architecture": "amd64"}, {"os": "linux", "architecture": "arm64"}


def manifest(**changes: object) -> bytes:
    """A good manifest with some members replaced; ``...`` removes one."""
    body = json.loads(bee_manifest(ELF)) | changes
    return json.dumps({key: value for key, value in body.items() if value is not ...}).encode()


def layers(*kinds: str, **more: object) -> list[dict[str, Any]]:
    """One layer of each media type."""
    return [descriptor(ELF + bytes([number]), kind, **more) for number, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    "raw",
    [
        bee_manifest(ELF),
        manifest(mediaType=OCI_MANIFEST, artifactType=BEE_CONFIG),
        manifest(mediaType=DOCKER_MANIFEST),
        manifest(annotations=None),
        manifest(annotations={}),
        manifest(unknown=[1, {"deep": None}]),
        manifest(layers=[descriptor(ELF, BEE_PROGRAM)]),
    ],
)
def test_odd_but_valid_manifest_is_read(raw: bytes) -> None:
    """Peers leave out media types, titles and annotations, and add members."""
    document = parse_manifest(raw, subject="image 'a'")
    assert isinstance(document, Manifest)
    assert str(document.digest) == digest_of(raw)
    assert recognise(document, subject="image 'a'").layer.digest == Digest.of(ELF)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "img.manifest_json"),
        (b"<!doctype html><title>Log in</title>", "img.manifest_json"),
        (b"not json", "img.manifest_json"),
        (b"\xff\xfe{}", "img.manifest_json"),
        (b"[]", "img.manifest_json"),
        (b"null", "img.manifest_json"),
        (b"[" * 200_000, "img.manifest_json"),
        (b'{"schemaVersion":2,"a":' * 50_000, "img.manifest_json"),
        (b'{"schemaVersion":' + b"9" * 5000 + b"}", "img.manifest_json"),
        (bee_manifest(ELF)[:-1] + b',"x":NaN}', "img.manifest_json"),
        (bee_manifest(ELF)[:-1] + b',"x":-Infinity}', "img.manifest_json"),
        (bee_manifest(ELF)[:-1] + b',"schemaVersion":2}', "img.manifest_json"),
        (bee_manifest(ELF)[:-1] + b',"x":"\\ud800"}', "img.manifest_json"),
        (b" " * (MANIFEST_LIMIT + 1), "img.manifest_too_large"),
        (manifest(schemaVersion=1), "img.manifest_type"),
        (manifest(schemaVersion=True), "img.manifest_type"),
        (manifest(schemaVersion=...), "img.manifest_type"),
        (manifest(mediaType="application/vnd.oci.artifact.manifest.v1+json"), "img.manifest_type"),
        (manifest(mediaType=OCI_INDEX), "img.manifest_type"),
        (manifest(mediaType=7), "img.manifest_json"),
        (manifest(manifests=[]), "img.manifest_type"),
        (b'{"schemaVersion":2}', "img.manifest_type"),
        (manifest(layers=None), "img.no_layers"),
        (manifest(layers=...), "img.no_layers"),
        (manifest(layers=[]), "img.no_layers"),
        (manifest(layers={}), "img.manifest_json"),
        (manifest(layers=[7]), "img.manifest_json"),
        (manifest(config=...), "img.manifest_json"),
        (manifest(config={"digest": "sha256:../../../x", "size": 2}), "img.digest_syntax"),
        (manifest(config={"size": 2}), "img.digest_syntax"),
        (manifest(config={"digest": digest_of(b""), "size": -1}), "img.manifest_json"),
        (manifest(config={"digest": digest_of(b""), "size": True}), "img.manifest_json"),
        (manifest(config={"digest": digest_of(b""), "size": 1e30}), "img.manifest_json"),
        (manifest(config={"digest": digest_of(b""), "size": 1 << 70}), "img.manifest_json"),
        (manifest(annotations={"a": 1}), "img.manifest_json"),
        (manifest(layers=layers(BEE_PROGRAM, annotations={TITLE: "a\nb"})), "img.manifest_json"),
        (manifest(layers=layers("a\x1b[2J")), "img.manifest_json"),
    ],
)
def test_bad_manifest_is_refused_with_its_code(raw: bytes, code: str) -> None:
    """One line each, and never a Python error."""
    with pytest.raises(ImageError, match="image 'a'") as caught:
        parse_manifest(raw, subject="image 'a'")
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_manifest_served_as_an_index_is_refused() -> None:
    """One document must not mean two things to two readers."""
    with pytest.raises(ImageError) as caught:
        parse_manifest(bee_manifest(ELF), subject="image 'a'", media_type=OCI_INDEX)
    assert caught.value.code == "img.manifest_type"


def test_repeated_key_is_found_quickly_among_many() -> None:
    """A 4 MiB object of distinct keys and one repeated is linear work."""
    raw = b"{" + b",".join(b'"%d":0' % number for number in range(200_000)) + b',"199999":0}'
    with pytest.raises(ImageError, match="'199999' appears twice"):
        parse_manifest(raw, subject="image 'a'")


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        ((BEE_PROGRAM, BEE_PROGRAM), "img.ambiguous_payload"),
        (("application/x", "application/y"), "img.unknown_format"),
        (("application/vnd.oci.image.layer.v1.tar+gzip",), "img.unknown_format"),
        (("application/vnd.oci.image.layer.v1.tar+zstd",), "img.layer_encoding"),
        (("application/vnd.oci.image.layer.v1.tar+encrypted",), "img.layer_encoding"),
        (("application/vnd.oci.image.layer.nondistributable.v1.tar",), "img.layer_encoding"),
    ],
)
def test_image_without_one_raw_program_is_refused_before_download(kinds: tuple[str, ...], code: str) -> None:
    """The types decide; the message names them."""
    document = parse_manifest(manifest(layers=layers(*kinds), config=descriptor(b"{}", "x/y")), subject="image 'a'")
    assert isinstance(document, Manifest)
    with pytest.raises(ImageError) as caught:
        recognise(document, subject="image 'a'")
    assert caught.value.code == code


def test_layer_kept_elsewhere_is_refused() -> None:
    """A descriptor with ``urls`` sends us to hosts nobody configured."""
    raw = manifest(layers=layers(BEE_PROGRAM, urls=["https://elsewhere.example/x"]))
    document = parse_manifest(raw, subject="image 'a'")
    assert isinstance(document, Manifest)
    with pytest.raises(ImageError) as caught:
        recognise(document, subject="image 'a'")
    assert caught.value.code == "img.layer_encoding"


def test_program_is_found_by_bumblebees_title_beside_other_layers() -> None:
    """Its reader selects by title, so its images may have other types."""
    raw = manifest(layers=[descriptor(b"x", "a/b"), descriptor(ELF, "c/d", annotations={TITLE: "program.o"})])
    document = parse_manifest(raw, subject="image 'a'")
    assert isinstance(document, Manifest)
    assert recognise(document, subject="image 'a'").layer.digest == Digest.of(ELF)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("x86_64", "amd64"), ("AMD64", "amd64"), ("aarch64", "arm64"), ("i686", "386"), ("riscv64", "riscv64")],
)
def test_architecture_has_one_spelling(written: str, meant: str) -> None:
    """BumbleBee writes what uname says."""
    assert normalise_architecture(written) == meant


def children_for(architecture: str, *children: tuple[bytes, dict[str, str] | None]) -> list[Descriptor]:
    """What :func:`select` makes of an index of these."""
    document = parse_manifest(index_of(*children), subject="image 'a'")
    assert isinstance(document, Index)
    return select(document, architecture)


def test_index_child_is_chosen_by_architecture_and_baseline_variant() -> None:
    """Any spelling, ``Linux`` too; a child for newer CPUs only comes after the one for all."""
    one, two, three = (bee_manifest(bpf_elf(name)) for name in (b"1", b"2", b"3"))
    chosen = children_for(
        "x86_64",
        (one, {**AMD64, "variant": "v3"}),
        (two, {"os": "Linux", "architecture": "x86_64"}),
        (three, {"os": "windows", "architecture": "amd64"}),
        (three, ARM64),
    )
    assert [child.digest for child in chosen] == [Digest.of(two), Digest.of(one)]


def test_attestation_unknown_and_platformless_children_are_skipped() -> None:
    """Image builders add them to every index."""
    good, other = bee_manifest(ELF), bee_manifest(bpf_elf(b"other"))
    assert children_for("amd64", (other, None), (other, {"os": "unknown", "architecture": "unknown"})) == []
    assert len(children_for("amd64", (other, None), (good, AMD64))) == 1


def read_from(*blobs: bytes) -> Callable[[Descriptor], bytes]:
    """A reader of blobs kept in memory."""
    table = {Digest.of(blob): blob for blob in blobs}
    return lambda entry: table[entry.digest]


def root_of(raw: bytes, media_type: str) -> Descriptor:
    """The descriptor of a root document."""
    return Descriptor(media_type, Digest.of(raw), len(raw))


def test_nested_index_is_followed_once_and_no_deeper() -> None:
    """Index in index is legal; a third level is nobody's honest image."""
    image = bee_manifest(ELF)
    inner = index_of((image, AMD64))
    middle, outer = index_of((inner, None)), b""
    outer = index_of((middle, None))
    read = read_from(image, inner, middle, outer, ELF, b"{}")
    reference = parse_reference("registry.example/a")
    assert assemble(reference, root_of(middle, OCI_INDEX), read, architecture="amd64").object == ELF
    with pytest.raises(ImageError) as caught:
        assemble(reference, root_of(outer, OCI_INDEX), read, architecture="amd64")
    assert caught.value.code == "img.index_depth"


def test_cyclic_index_ends_even_without_hashing() -> None:
    """Digests forbid cycles; a reader that does not hash would run for ever."""
    one, two = Digest("1" * 64), Digest("2" * 64)

    def pointing_at(target: Digest) -> bytes:
        entry = {"mediaType": OCI_INDEX, "digest": str(target), "size": 1}
        return json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()

    table = {one: pointing_at(two), two: pointing_at(one)}
    with pytest.raises(ImageError) as caught:
        assemble(
            parse_reference("registry.example/a"),
            Descriptor(OCI_INDEX, one, 1),
            lambda entry: table[entry.digest],
            architecture="amd64",
        )
    assert caught.value.code == "img.index_depth"


def test_index_without_this_architecture_lists_what_it_has() -> None:
    """The reader sees at once what to build."""
    image = bee_manifest(ELF)
    index = index_of((image, ARM64), (image, {"os": "linux", "architecture": "riscv64"}))
    with pytest.raises(ImageError, match="linux/amd64, it has linux/arm64, linux/riscv64") as caught:
        assemble(
            parse_reference("registry.example/a"),
            root_of(index, OCI_INDEX),
            read_from(index, image),
            architecture="amd64",
        )
    assert caught.value.code == "img.no_platform"


def test_docker_list_over_oci_manifests_is_read() -> None:
    """A mixture that is in other projects' own documentation."""
    image = manifest(mediaType=OCI_MANIFEST)
    index = index_of((image, AMD64), media_type=DOCKER_LIST)
    bundle = assemble(
        parse_reference("registry.example/a"),
        root_of(index, DOCKER_LIST),
        read_from(index, image, ELF, b"{}"),
        architecture="amd64",
    )
    assert (bundle.object, bundle.digest, bundle.manifest_digest) == (ELF, Digest.of(index), Digest.of(image))


def test_generic_single_layer_must_begin_as_a_bpf_object() -> None:
    """Any media type will do for an object, and nothing else will."""
    for content, machine_fits in ((ELF, True), (bpf_elf(machine=62), False), (b"", False), (b"\x7fELF", False)):
        raw = manifest(
            config=descriptor(b"{}", "application/vnd.oci.empty.v1+json"), layers=[descriptor(content, "a/b")]
        )
        read = read_from(raw, content, b"{}")
        reference = parse_reference("registry.example/a")
        if machine_fits:
            assert assemble(reference, root_of(raw, OCI_MANIFEST), read).format == "generic"
            continue
        with pytest.raises(ImageError) as caught:
            assemble(reference, root_of(raw, OCI_MANIFEST), read)
        assert caught.value.code == "img.unknown_format"


@pytest.mark.parametrize("raw", [b"[]", b"x", b'{"skep":[]}', b'{"skep":{},"skep":{}}'])
def test_bad_config_is_refused(raw: bytes) -> None:
    """Metadata decides what is measured: no guessing."""
    with pytest.raises(ImageError) as caught:
        parse_config(raw, subject="image 'a'")
    assert caught.value.code == "img.config"


def test_our_image_is_one_bumblebee_reads() -> None:
    """Its media types, both titles, one layer; plus what the specification wants today."""
    artifact = build_artifact({"x86_64": ELF}, {"version": 1}, {"org.opencontainers.image.version": "1.4"})
    blobs = {entry.digest: content for entry, content in artifact.blobs}
    body = json.loads(blobs[artifact.root.digest])
    assert body["mediaType"] == OCI_MANIFEST
    assert body["artifactType"] == body["config"]["mediaType"] == BEE_CONFIG
    assert body["config"]["annotations"] == {TITLE: "config.json"}
    assert [(layer["mediaType"], layer["annotations"]) for layer in body["layers"]] == [
        (BEE_PROGRAM, {TITLE: "program.o"})
    ]
    assert body["annotations"] == {"org.opencontainers.image.version": "1.4"}
    config = json.loads(blobs[Digest.parse(body["config"]["digest"])])
    assert config == {"architecture": "amd64", "os": "linux", "skep": {"version": 1}}


def test_several_architectures_make_an_index_and_equal_input_equal_bytes() -> None:
    """A rebuild of the same source is the same image, whatever the order of its parts."""
    objects = {"amd64": ELF, "arm64": bpf_elf(b"arm")}
    artifact = build_artifact(objects, {}, {})
    assert artifact.root.media_type == OCI_INDEX
    assert artifact == build_artifact(dict(reversed(objects.items())), {}, {})
    body = json.loads({entry.digest: content for entry, content in artifact.blobs}[artifact.root.digest])
    assert [child["platform"] for child in body["manifests"]] == [AMD64, ARM64]


def test_single_image_for_another_architecture_is_refused() -> None:
    """Without an index the config says what the object was compiled for."""
    other = "arm64" if host_architecture() == "amd64" else "amd64"
    artifact = build_artifact({other: ELF}, {}, {})
    read = read_from(*(content for _, content in artifact.blobs))
    with pytest.raises(ImageError) as caught:
        assemble(parse_reference("registry.example/a"), artifact.root, read)
    assert caught.value.code == "img.no_platform"


def test_elf_header_is_judged_by_class_machine_and_byte_order() -> None:
    """``e_machine`` 247 in the object's own byte order."""
    big = bytearray(bpf_elf())
    big[5], big[18:20] = 2, (247).to_bytes(2, "big")
    assert is_bpf_elf(bpf_elf())
    assert is_bpf_elf(bytes(big))
    assert not is_bpf_elf(bpf_elf(machine=62))


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)
_DESCRIPTOR = st.fixed_dictionaries(
    {},
    optional={
        "mediaType": st.one_of(st.sampled_from([OCI_MANIFEST, OCI_INDEX, BEE_PROGRAM, BEE_CONFIG]), _JSON),
        "digest": st.one_of(st.just(digest_of(ELF)), _JSON),
        "size": st.one_of(st.just(len(ELF)), _JSON),
        "annotations": st.one_of(st.just({TITLE: "program.o"}), _JSON),
        "platform": st.one_of(st.just(AMD64), _JSON),
        "urls": _JSON,
    },
)
_MANIFEST = st.fixed_dictionaries(
    {},
    optional={
        "schemaVersion": st.one_of(st.just(2), _JSON),
        "mediaType": st.one_of(st.sampled_from([OCI_MANIFEST, OCI_INDEX, DOCKER_LIST]), _JSON),
        "config": st.one_of(_DESCRIPTOR, _JSON),
        "layers": st.one_of(st.lists(_DESCRIPTOR, max_size=3), _JSON),
        "manifests": st.one_of(st.lists(_DESCRIPTOR, max_size=3), _JSON),
        "annotations": _JSON,
    },
)


@given(
    st.one_of(
        st.binary(max_size=80), _MANIFEST.map(lambda body: json.dumps(body).encode()), _JSON.map(repr).map(str.encode)
    ),
    st.sampled_from(["", OCI_MANIFEST, OCI_INDEX, "text/html; charset=utf-8"]),
)
def test_any_bytes_are_a_manifest_or_an_image_error(raw: bytes, media_type: str) -> None:
    """Whatever the bytes, ``parse_manifest`` and ``recognise`` return or raise ImageError, and nothing else."""
    try:
        document = parse_manifest(raw, subject="image 'a'", media_type=media_type)
        if isinstance(document, Manifest):
            recognise(document, subject="image 'a'")
        else:
            select(document, "amd64")
    except ImageError as error:
        assert error.code.startswith("img.")
        assert "\n" not in str(error)
