"""The configuration's reading: what each key accepts, how files combine, what messages say and where they point."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter import config
from exporter.errors import ConfigError, ImageError, Problems, SkepError

BAD = sorted((Path(__file__).parents[1] / "tables" / "config" / "bad").glob("*.yaml"))
ENVIRONMENT = {"HOME": "/root", "WORD": "three", "DIGIT": "2"}


def parse(text: str, **environment: str) -> config.AgentConfig:
    """Read an indented text with exactly this environment."""
    return config.parse(dedent(text), "/etc/skep/agent.yaml", environment=environment)


def messages(error: SkepError) -> list[str]:
    """Split what was raised into its problems."""
    return [str(problem) for problem in error.problems] if isinstance(error, Problems) else [str(error)]


def write(directory: Path, **files: str) -> list[Path]:
    """Write NAME.yaml files."""
    paths = []
    for name, text in files.items():
        path = directory / f"{name}.yaml"
        path.write_text(dedent(text))
        paths.append(path)
    return paths


def test_table_of_bad_configurations_is_there() -> None:
    """A wrong path must not turn the table below into no tests at all."""
    assert len(BAD) > 70


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_configuration_gets_exactly_these_messages(path: Path) -> None:
    """Every mistake is told at once, each with file, line, column, what was found and what to do."""
    text = path.read_text()
    expected = [f"{path.name}:{line}" for line in re.findall(r"^# expect (.*)$", text, re.MULTILINE)]
    with pytest.raises(SkepError) as caught:
        config.parse(text, path.name, environment=ENVIRONMENT)
    assert messages(caught.value) == expected


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "{}\n", "images:\n", "images: []\ndefaults:\n", "\ufeffimages: []\n"]
)
def test_nothing_means_every_default(text: str) -> None:
    """A file with all of it commented out is a configuration."""
    assert config.parse(text.removeprefix("\ufeff"), "a.yaml") == config.AgentConfig()


def test_whole_shape_is_read() -> None:
    """Each key of the documented shape arrives in its field."""
    read = parse(
        """
        images:
          - ref: catalog:runqueue-latency
          - ref: catalog:block-latency
            labels: {tier: db}
            metrics: {ebpf_block_request_duration_seconds: {drop_labels: [device], rename: b, help: h, enabled: false}}
            events: {ebpf.x: {enabled: true}}
          - name: dns
            ref: registry.example:5000/bpf/dns-latency:1.4@sha256:00
            pull: always
            required: true
            partial: refuse
            enabled: false
            globals: {by_cgroup: true, low: -5, high: 0xffffffffffffffff, share: 0.5, name: "1", word: on, octal: 0777,
                      ports: [80, 80, "80"], ranges: [{low: 1, names: [lo]}, {}]}
            attach: {on_packet: {interfaces: [eth0, eth1]}, f: {binary: /bin/true, pid: 1, target: x, period: 9}}
            limits: {series: 2000, map_memory: 32MiB}
            expire_after: 1d
        defaults: {limits: {series: 5, events_per_s: 7, map_memory: 1GB}, expire_after: 1h30m, retry: {first: 1s,
                   max: 2m}}
        registries: {"registry.example:5000": {ca_file: /ca.pem, auth_file: "${DIR}/registry.json", plain_http: true}}
        resource: {attributes: {deployment.environment.name: production}}
        otlp:
          endpoint: "https://collector.example:4318"
          protocol: http/protobuf
          headers: {X-Scope: a}
          timeout: 500ms
          compression: none
          ca_file: /o.pem
          cert_file: /c.pem
          key_file: /k.pem
          metrics: {interval: 30s, enabled: false}
          logs: {enabled: false}
        store: {path: /var/lib/skep/store, keep: 5}
        """,
        DIR="/run/credentials",
    )
    defaults = config.Limits(series=5, events_per_s=7, map_memory=10**9)
    first, second, dns = read.images
    assert (first.name, first.limits, first.expire_after_s) == ("runqueue-latency", defaults, 5400.0)
    assert (first.file, first.line) == ("/etc/skep/agent.yaml", 3)
    assert second.labels == {"tier": "db"}
    assert second.metrics == {"ebpf_block_request_duration_seconds": config.MetricConfig(False, "b", "h", ("device",))}
    assert second.events == {"ebpf.x": config.EventConfig(True)}
    assert dns == config.ImageConfig(
        name="dns",
        ref="registry.example:5000/bpf/dns-latency:1.4@sha256:00",
        pull="always",
        required=True,
        partial="refuse",
        enabled=False,
        globals={
            "by_cgroup": True, "low": -5, "high": 2**64 - 1, "share": 0.5, "name": "1", "word": "on", "octal": "0777",
            "ports": [80, 80, "80"], "ranges": [{"low": 1, "names": ["lo"]}, {}],
        },
        attach={
            "on_packet": config.AttachConfig(interfaces=("eth0", "eth1")),
            "f": config.AttachConfig(binary="/bin/true", pid=1, target="x", period=9),
        },
        limits=config.Limits(series=2000, events_per_s=7, map_memory=32 << 20),
        expire_after_s=86400.0,
        file="/etc/skep/agent.yaml",
        line=9,
    )  # fmt: skip
    assert read.retry == config.RetryConfig(1.0, 120.0)
    assert read.registries == {
        "registry.example:5000": config.RegistryConfig("/ca.pem", "", "", "/run/credentials/registry.json", True)
    }
    assert read.resource_attributes == {"deployment.environment.name": "production"}
    assert read.otlp == config.OtlpConfig(
        endpoint="https://collector.example:4318",
        headers={"X-Scope": "a"},
        timeout_s=0.5,
        compression="none",
        ca_file="/o.pem",
        cert_file="/c.pem",
        key_file="/k.pem",
        metrics_enabled=False,
        metrics_interval_s=30.0,
        logs_enabled=False,
    )
    assert read.store == config.StoreConfig("/var/lib/skep/store", 5)


@pytest.mark.parametrize(
    "text", ["on", "yes", "~", "null", "0777", "1e3", "1:30", "2026-11-21", "=", ".inf", "0b1", "True"]
)
def test_text_stays_as_it_is_written(text: str) -> None:
    """None of what YAML 1.1 would make a boolean, number, null or date changes as a label."""
    assert parse(f"images: [{{ref: a, labels: {{x: {text}}}}}]").images[0].labels == {"x": text}


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("10s", 10),
        ("1h30m", 5400),
        ("2w", 1209600),
        ("1w2d3h4m5s6ms", 788645.006),
        ("0s", 0),
        ("90m", 5400),
    ],
)
def test_duration_adds_its_parts(written: str, seconds: float) -> None:
    """Each unit counts what it says."""
    assert config.parse_duration(written) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize("written", ["", "s", "10", "1s1h", "1.5s", "-1s", "1 s", "1S", "1s1s", "1us", "9999999h"])
def test_what_is_no_duration_is_refused(written: str) -> None:
    """A number without unit, fractions, wrong order and foreign units are not guessed at."""
    with pytest.raises(ValueError, match="must be a duration"):
        config.parse_duration(written)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${A}", "one"),
        ("x${A}y", "xoney"),
        ("${A}${B}", "onetwo"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("$A", "$A"),
        ("$${A}${B}", "${A}two"),
        ("${EMPTY}x", "x"),
        ("${NESTED}", "${A}"),
    ],
)
def test_variables_are_substituted_once(written: str, value: str) -> None:
    """What a variable holds is not looked into again, and $${ is a literal ${."""
    text = f"resource: {{attributes: {{x: '{written}'}}}}"
    read = parse(text, A="one", B="two", EMPTY="", NESTED="${A}")
    assert read.resource_attributes == {"x": value}


def test_variable_may_give_a_number_boolean_or_size() -> None:
    """Flow style forces quotes around ${…}; it is typed by its key all the same."""
    read = parse(
        "images: [{ref: a, required: '${YES}', limits: {series: '${N}', map_memory: '${S}'}}]",
        N="5",
        S="1MiB",
        YES="true",
    )
    assert read.images[0].limits == config.Limits(series=5, map_memory=1 << 20)
    assert read.images[0].required


def test_file_substitution_drops_one_last_newline(tmp_path: Path) -> None:
    """A token written by an editor is the token."""
    token = tmp_path / "token"
    token.write_text("s3cret\n\n")
    read = parse(f"resource: {{attributes: {{x: 'Bearer ${{file:{token}}}'}}}}")
    assert read.resource_attributes == {"x": "Bearer s3cret\n"}


def test_secret_is_not_shown_in_a_message(tmp_path: Path) -> None:
    """A message shows what the configuration says, not what a file or variable holds."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    with pytest.raises(ConfigError) as caught:
        parse(f"store: {{keep: '${{file:{secret}}}'}}")
    assert "hunter2" not in str(caught.value)
    assert str(secret) in str(caught.value)


@pytest.mark.parametrize(("size", "works"), [(64 << 10, True), ((64 << 10) + 1, False)])
def test_substituted_file_is_bounded(tmp_path: Path, size: int, works: bool) -> None:
    """A device or a log named by mistake does not fill the memory."""
    big = tmp_path / "big"
    big.write_text("x" * size)
    text = f"resource: {{attributes: {{x: '${{file:{big}}}'}}}}"
    if works:
        assert len(parse(text).resource_attributes["x"]) == size
    else:
        with pytest.raises(ConfigError, match="is larger than 64 KiB"):
            parse(text)


def test_relative_paths_start_from_the_file_that_has_them(tmp_path: Path) -> None:
    """The same file means the same wherever the agent was started."""
    nested = tmp_path / "agent.d"
    nested.mkdir()
    [main] = write(tmp_path, agent="store: {path: store}\nimages: [{ref: ./a.bpf.o}]\n")
    [other] = write(
        nested,
        b="images: [{ref: ../b.o}, {ref: plain/name}, {ref: 'oci:./layout:1'}]\nregistries: {r: {ca_file: ca.pem}}\n",
    )
    read = config.load([main, other])
    assert read.store.path == str(tmp_path / "store")
    assert [image.ref for image in read.images] == [
        str(tmp_path / "a.bpf.o"),
        str(tmp_path / "b.o"),
        "plain/name",
        f"oci:{nested}/layout:1",
    ]
    assert read.registries["r"].ca_file == str(nested / "ca.pem")


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("catalog:block-latency", "block-latency"),
        ("registry.example/bpf/dns-latency:1.4@sha256:00", "dns-latency"),
        ("localhost:5000/a", "a"),
        ("a:1", "a"),
        ("/opt/x/dns.bpf.o", "dns"),
        ("/opt/x/dns.o", "dns"),
        ("oci:/srv/layouts/dns:1", "dns"),
        ("oci:dns", "dns"),
    ],
)
def test_default_name_is_the_last_part_of_the_reference(ref: str, name: str) -> None:
    """Without tag, digest or suffix."""
    assert parse(f"images: [{{ref: '{ref}'}}]").images[0].name == name


def test_bad_reference_is_told_at_its_position() -> None:
    """Whoever knows references judges them; the position is the configuration's."""

    def name_of(ref: str) -> str:
        if ref == "Bad":
            raise ImageError("reference 'Bad': must be lower case", code="img.ref_syntax")
        return ref

    with pytest.raises(ConfigError) as caught:
        config.parse("images:\n  - ref: good\n  - ref: Bad\n", "a.yaml", name_of=name_of)
    assert str(caught.value) == "a.yaml:3:10: images[1].ref: reference 'Bad': must be lower case"


def test_images_of_one_name_merge_over_files(tmp_path: Path) -> None:
    """A drop-in adds to an image that another file declares; each keeps its own keys and its place."""
    files = write(
        tmp_path,
        agent="images: [{ref: catalog:a, labels: {x: y}, limits: {series: 5}}, {ref: catalog:b}]",
        one="images: [{name: a, labels: {z: w}, limits: {events_per_s: 6}, required: true}, {ref: catalog:c}]",
        two="images: [{name: c, globals: {g: 1}}]\nstore: {keep: 9}",
    )
    read = config.load(files)
    assert [image.name for image in read.images] == ["a", "b", "c"]
    assert read.images[0].labels == {"x": "y", "z": "w"}
    assert read.images[0].limits == config.Limits(series=5, events_per_s=6)
    assert read.images[0].required
    assert read.images[2].globals == {"g": 1}
    assert read.store.keep == 9


def test_key_in_two_files_is_an_error_that_names_both(tmp_path: Path) -> None:
    """Nobody has to know which file wins, since none does."""
    one, two, three = write(
        tmp_path,
        one="store: {keep: 1}\nimages:\n  - ref: catalog:a\n    labels: {x: y}\n",
        two="store: {path: /x}\nimages:\n  - name: a\n    labels: {x: z}\n    ref: catalog:a\n",
        three="images:\n  - {name: a, limits: {series: many}}\n",
    )
    with pytest.raises(Problems) as caught:
        config.load([one, two, three])
    assert messages(caught.value) == [
        f"{two}:1:1: store is also in {one}:1; keep one of the two",
        f"{two}:4:14: images[a].labels.x is also in {one}:4; keep one of the two",
        f"{two}:5:5: images[a].ref is also in {one}:3; keep one of the two",
        f"{three}:2:32: images[a].limits.series is 'many'; must be a plain decimal integer",
    ]


def test_mistakes_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    """A file that is not YAML, one that is not there and one that is wrong, in one run."""
    broken, wrong = write(tmp_path, broken="images: [", wrong="stor: {}")
    missing = tmp_path / "missing.yaml"
    with pytest.raises(Problems) as caught:
        config.load([broken, missing, wrong])
    assert sorted(messages(caught.value)) == sorted(
        [
            f"{missing}: cannot be read: No such file or directory",
            f"{broken}:2:1: not YAML: did not find expected node content, while parsing a flow node",
            f"{wrong}:1:1: stor is not a key; did you mean 'store'?",
        ]
    )


def test_bytes_that_are_not_utf8_are_told_with_their_place(tmp_path: Path) -> None:
    """Latin-1 in a comment is found where it stands."""
    path = tmp_path / "a.yaml"
    path.write_bytes(b"images: []\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"a.yaml:2:6: byte 0xe9 is not UTF-8"):
        config.load([path])


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    """Some editors write one."""
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfstore: {keep: 9}\n")
    assert config.load([path]).store.keep == 9


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    """A device or a core file named by mistake ends quickly."""
    path = tmp_path / "a.yaml"
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="is larger than 1 MiB"):
        config.load([path])


def test_anchors_and_merge_keys_mean_what_yaml_says() -> None:
    """An alias repeats, a merge key fills in, what is written beside it wins."""
    read = parse(
        """
        images:
          - ref: a
            limits: &small {series: 5, events_per_s: 6}
            labels: &one {x: "1"}
          - {ref: b, limits: *small, labels: &two {y: "2"}}
          - {ref: c, limits: {<<: *small, series: 7}, labels: {<<: [*one, *two], y: "3"}}
        """
    )
    assert read.images[1].limits == read.images[0].limits
    assert read.images[2].limits == config.Limits(series=7, events_per_s=6)
    assert read.images[2].labels == {"x": "1", "y": "3"}


def test_config_files_are_the_file_and_its_drop_ins_by_name(tmp_path: Path) -> None:
    """agent.d stands beside the file; hidden files, backups and other endings are not read."""
    main = tmp_path / "agent.yaml"
    assert config.config_files(main) == [main]
    drop_ins = tmp_path / "agent.d"
    drop_ins.mkdir()
    for name in ("20-b.yaml", "10-a.yaml", ".hidden.yaml", "old.yaml~", "README"):
        (drop_ins / name).touch()
    assert config.config_files(main) == [main, drop_ins / "10-a.yaml", drop_ins / "20-b.yaml"]
    assert config.config_files(tmp_path / "x" / "y.yaml", drop_ins)[1:] == [
        drop_ins / "10-a.yaml",
        drop_ins / "20-b.yaml",
    ]
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        config.config_files(main, tmp_path / "nowhere")


@settings(max_examples=300)
@given(st.text(alphabet="abimges:[]{}-,&*<!|>'\"$\n \t#~0159.", max_size=60) | st.text(max_size=30))
def test_whatever_the_text_it_is_a_configuration_or_an_error_with_a_position(text: str) -> None:
    """Whatever the text, parse returns an AgentConfig or raises SkepError with positions, and nothing else."""
    try:
        config.parse(text, "a.yaml", environment={})
    except SkepError as error:
        for problem in messages(error):
            assert re.match(r"a\.yaml:\d+:\d+: .", problem), problem


@settings(max_examples=200)
@given(st.data())
def test_damaged_shipped_configuration_is_refused_or_read(data: st.DataObject) -> None:
    """Cutting, repeating and replacing parts of a real file never escapes as another exception."""
    text = (
        (Path(__file__).parents[2] / "configs" / "agent.yaml")
        .read_text()
        .replace("\n#", "\n")
        .replace("\n  #-", "\n  -")
    )
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    damaged = (
        text[:start]
        + data.draw(st.sampled_from(["", ":", "- ", "\n", "{", "&a ", "*a", "<<: ", text[start:end] * 2]))
        + text[end:]
    )
    try:
        config.parse(damaged, "a.yaml", environment={})
    except SkepError as error:
        assert all(message.startswith("a.yaml:") for message in messages(error))
