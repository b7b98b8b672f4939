"""Dashboards and alerts: generated, complete, and kept to the rules that Grafana's own linter has."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from exporter.cli import main
from exporter.dashboard import Board, image_board, image_summary, render
from exporter.dashboard.image import uid
from exporter.image import Store
from tests.support.catalog import built_catalog
from tests.support.clang import compile_bpf
from tests.support.dashboards import (
    DIRECTORY,
    FILES,
    PROMETHEUS_OWN,
    ROOT,
    all_targets,
    families,
    findings,
    read,
    substituted,
    targets,
)
from tests.support.generators import load_generator
from tests.support.plans import instruments, plan_of
from tests.support.promql import Selector, selectors

CATALOG = sorted(path.parent.name for path in (ROOT / "configs" / "catalog").glob("*/*.bpf.c"))
ALERTS = DIRECTORY / "alerts.yaml"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The program that writes the files."""
    return load_generator("dashboards")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The catalog, built from its sources."""
    return built_catalog(tmp_path_factory.mktemp("catalog"))


def panels_of(board: Board) -> dict[str, list[str]]:
    """Queries by panel title, those of the image's state aside."""
    return {panel.title: [query.expr for query in panel.queries] for row in board.rows[1:] for panel in row.panels}


# -- the committed files ---------------------------------------------------------------------


@pytest.mark.slow
def test_committed_dashboards_are_what_the_generator_writes(generator: ModuleType, catalog: Store) -> None:
    """After a change of an image or a rule: python packaging/generate/dashboards.py."""
    made = generator.generate(catalog)
    assert sorted(made) == [path.name for path in FILES], "run packaging/generate/dashboards.py"
    differing = [path.name for path in FILES if path.read_text(encoding="utf-8") != made[path.name]]
    assert not differing, "run packaging/generate/dashboards.py"


def test_there_is_a_dashboard_for_each_image_and_three_for_all() -> None:
    """One per image of the catalog; the fleet, a host, and what the agent costs."""
    assert {path.stem for path in FILES} == {*CATALOG, "fleet", "host", "cost"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dashboard_keeps_the_linter_s_rules(path: Path) -> None:
    """Templated source, job and instance everywhere, rates over the rate interval, units, titles, descriptions."""
    assert findings(read(path)) == []


def test_dashboards_have_uids_and_titles_of_their_own() -> None:
    """Links hang on the uid; Grafana refuses two provisioned dashboards with one title in a folder."""
    boards = [read(path) for path in FILES]
    for key in ("uid", "title"):
        assert len({board[key] for board in boards}) == len(boards)


def test_every_metric_of_the_catalog_is_on_a_dashboard_and_no_other_is(generator: ModuleType, catalog: Store) -> None:
    """A metric nobody sees is a metric nobody needs; a panel of a metric that does not exist is empty for ever."""
    exported = {name for plan in generator.catalog_plans(catalog) for name in instruments(plan)}
    shown = {selector.metric for target in all_targets() for selector in target.selectors}
    assert families(exported, shown) == set()
    foreign = {name for name in shown if not name.startswith(("skep_", "process_"))} - PROMETHEUS_OWN
    assert {name for name in foreign if families({name}, exported)} == set()


@needs_promtool
def test_every_query_is_promql(tmp_path: Path) -> None:
    """Promtool parses each, with Grafana's variables at "All"."""
    rules = [
        {"record": f"panel:{number}", "expr": substituted(target.expr)} for number, target in enumerate(all_targets())
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


# -- the linter finds what it is there to find -------------------------------------------------


def first_target(dashboard: dict[str, Any]) -> dict[str, Any]:
    """Some query of it."""
    panel = next(panel for panel in dashboard["panels"] if panel["type"] == "timeseries")
    target = panel["targets"][0]
    assert isinstance(target, dict)
    return target


def replace_in_query(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    """Damage one query."""

    def damage(dashboard: dict[str, Any]) -> None:
        target = first_target(dashboard)
        assert old in target["expr"]
        target["expr"] = target["expr"].replace(old, new)

    return damage


def set_in_panel(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Damage one panel."""

    def damage(dashboard: dict[str, Any]) -> None:
        panel = next(panel for panel in dashboard["panels"] if panel["type"] == "timeseries")
        panel[key] = value

    return damage


def set_in_variable(name: str, key: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Damage one variable."""

    def damage(dashboard: dict[str, Any]) -> None:
        next(variable for variable in dashboard["templating"]["list"] if variable["name"] == name)[key] = value

    return damage


@pytest.mark.parametrize(
    ("rule", "damage"),
    [
        ("template-datasource-rule", set_in_variable("datasource", "name", "source")),
        ("template-job-rule", set_in_variable("job", "multi", False)),
        ("template-instance-rule", set_in_variable("instance", "allValue", ".*")),
        ("template-on-time-change-reload-rule", set_in_variable("job", "refresh", 1)),
        ("template-label-promql-rule", set_in_variable("job", "query", {"query": "label_values(job)"})),
        ("template-unused-rule", replace_in_query("$syscall", ".*")),
        ("template-unknown", replace_in_query("$syscall", "$call")),
        ("panel-title-description-rule", set_in_panel("description", "")),
        ("panel-datasource-rule", set_in_panel("datasource", {"type": "prometheus", "uid": "P1"})),
        ("panel-units-rule", set_in_panel("fieldConfig", {"defaults": {"unit": "requests"}})),
        ("panel-no-targets-rule", set_in_panel("targets", [])),
        ("target-job-rule", replace_in_query('job=~"$job", ', "")),
        ("target-instance-rule", replace_in_query('instance=~"$instance"', 'instance="a"')),
        ("target-rate-interval-rule", replace_in_query("$__rate_interval", "5m")),
        ("target-counter-agg-rule", replace_in_query("rate(", "deriv(")),
        ("target-histogram-rule", replace_in_query("ebpf_syscall_calls_total", "ebpf_latency_seconds_bucket")),
        ("uneditable-dashboard", lambda dashboard: dashboard.update(editable=True)),
        ("uid", lambda dashboard: dashboard.update(uid="skep-" + "x" * 36)),
        ("ids", set_in_panel("id", 1)),
        ("layout", set_in_panel("gridPos", {"x": 0, "y": 0, "w": 24, "h": 8})),
    ],
)
def test_linter_reports_a_dashboard_that_breaks_the_rule(rule: str, damage: Callable[[dict[str, Any]], None]) -> None:
    """A rule that nothing can break holds nothing."""
    dashboard = copy.deepcopy(dict(read(DIRECTORY / "syscalls.json")))
    # The variable must be used only where it is damaged.
    dashboard["panels"] = [panel for panel in dashboard["panels"] if "errno" not in json.dumps(panel)]
    dashboard["panels"] = [panel for panel in dashboard["panels"] if "by host" not in panel["title"]]
    dashboard["templating"]["list"] = [v for v in dashboard["templating"]["list"] if v["name"] != "errno"]
    assert findings(dashboard) == []
    damage(dashboard)
    assert rule in {finding.split(":")[0] for finding in findings(dashboard)}


def test_selectors_are_found_with_their_range_and_what_is_around_them() -> None:
    """The linter stands on this."""
    expr = (
        'topk(10, sum by (le, a) (rate(x_total{job=~"$job", a!="}"}[5m])) / on (a) group_left (b) y) and z > 1 or bool'
    )
    assert selectors(expr) == [
        Selector("x_total", (("job", "=~", "$job"), ("a", "!=", "}")), "5m", ("topk", "sum", "rate")),
        Selector("y", (), "", ("topk",)),
        Selector("z", (), "", ()),
    ]


# -- the rules for any image -------------------------------------------------------------------


def test_gauge_is_shown_as_it_is_and_a_counter_as_its_rate() -> None:
    """By label and by host; no rate of a gauge."""
    plan = plan_of(
        """
        struct key { u32 place; };
        MAP(gauge_held, HASH, 8, struct key, u64) TAG("unit=By");
        MAP(counter_moved, HASH, 8, struct key, u64) TAG("unit=By");
        """
    )
    board = image_board(plan)
    shown = panels_of(board)
    assert shown["Held by place"] == ['topk(10, sum by (place) (ebpf_held_bytes{job=~"$job", instance=~"$instance"}))']
    assert shown["Moved by place"] == [
        'topk(10, sum by (place) (rate(ebpf_moved_bytes_total{job=~"$job", instance=~"$instance"}[$__rate_interval])))'
    ]
    units = {panel.title: panel.unit for row in board.rows for panel in row.panels}
    assert (units["Held by place"], units["Moved by place"]) == ("bytes", "binBps")


def test_label_that_every_target_has_is_asked_for_under_the_name_prometheus_gives_it() -> None:
    """A label "instance" of an image arrives as exported_instance."""
    plan = plan_of("struct key { u32 instance; u32 zone; };\nMAP(counter_seen, HASH, 8, struct key, u64);")
    (expr,) = panels_of(image_board(plan))["Seen by exported_instance and zone"]
    assert "sum by (exported_instance, zone)" in expr


def test_image_of_one_number_and_image_of_events_alone_have_a_dashboard() -> None:
    """There is always something to show, also in the row of the host's dashboard."""
    one = plan_of("MAP(counter_seen, ARRAY, 1, u32, u64);")
    assert findings(json.loads(render(image_board(one)))) == []
    assert image_summary(one).panels
    events = plan_of("struct record { u32 a; };\nRING(print_seen, struct record);")
    assert list(panels_of(image_board(events))) == ["Event ebpf.seen"]
    assert findings(json.loads(render(image_board(events)))) == []
    assert image_summary(events).panels


def test_ring_that_is_only_counted_has_panels_for_its_metrics_and_its_losses() -> None:
    """Like a table's, from the records' labels; there is no event to speak of."""
    source = (
        'struct r { u32 value; u32 op TAG("decode=errno"); }; RING(hist_size, struct r); RING(counter_calls, struct r);'
    )
    panels = panels_of(image_board(plan_of(source)))
    assert {title for title in panels if title.startswith(("Ring", "Event"))} == {
        "Ring hist_size",
        "Ring counter_calls",
    }
    assert any("skep_ring_lost_total" in query and 'stream="hist_size"' in query for query in panels["Ring hist_size"])
    queries = [query for some in panels.values() for query in some]
    assert any("ebpf_calls_total" in query for query in queries)
    assert any("ebpf_size_bucket" in query and "op" in query for query in queries)


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("dns", "skep-dns"),
        ("a" * 35, "skep-" + "a" * 35),
        ("a" * 36, "skep-" + "a" * 26 + "-"),
        ("dns.v2", "skep-dns-v2-"),
    ],
)
def test_uid_is_made_of_the_name_and_fits(name: str, beginning: str) -> None:
    """Grafana takes 40 characters; names that differ have uids that differ, whatever was cut or replaced."""
    assert uid(name).startswith(beginning)
    assert len(uid(name)) <= 40
    others = {name + "x", name.replace(".", "-"), name.replace("a", "b")} - {name}
    assert uid(name) not in {uid(other) for other in others}


# -- skep dashboard ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CATALOG)
def test_verb_prints_the_committed_dashboard_of_a_shipped_image(
    name: str, catalog: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One mechanism, not two."""
    monkeypatch.setattr("exporter.resources.catalog_dir", lambda: catalog.path)
    assert main(["dashboard", f"catalog:{name}"]) == 0
    assert capsys.readouterr().out == (DIRECTORY / f"{name}.json").read_text(encoding="utf-8")


SOURCE = """
struct key { char comm[16]; u32 zone; };
MAP(counter_opens, HASH, 8, struct key, u64);
"""


def test_verb_makes_a_dashboard_of_a_stranger_s_object_as_configured(tmp_path: Path) -> None:
    """The names are those the agent exports under this configuration."""
    (tmp_path / "opens.o").write_bytes(compile_bpf(SOURCE))
    config = tmp_path / "agent.yaml"
    config.write_text(
        f"images: [{{name: files, ref: {tmp_path}/opens.o, "
        "metrics: {ebpf_opens_total: {rename: files_opened_total, drop_labels: [zone]}}}]"
    )
    output = tmp_path / "board.json"
    assert main(["dashboard", f"--config={config}", "--image=files", f"--output={output}"]) == 0
    board = read(output)
    assert (board["uid"], board["title"]) == ("skep-files", "skep / files")
    assert findings(board) == []
    shown = {selector.metric for target in targets(board) for selector in target.selectors}
    assert shown == {"files_opened_total", "skep_image_state", "skep_image_info", "skep_metric_series"}
    assert "zone" not in output.read_text().replace("timezone", "")
    assert 'image=\\"files\\"' in output.read_text()


def test_verb_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image that exports nothing; a file that cannot be written."""
    (tmp_path / "private.o").write_bytes(compile_bpf("MAP(inner, HASH, 8, u32, u64);"))
    (tmp_path / "opens.o").write_bytes(compile_bpf(SOURCE))
    assert main(["dashboard", str(tmp_path / "private.o")]) == 1
    assert main(["dashboard", str(tmp_path / "opens.o"), f"--output={tmp_path}/none/x.json"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "image 'private' exports nothing" in first
    assert second.startswith("skep: cannot write") and "No such file or directory" in second


def test_without_the_extra_the_verb_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The package that writes Grafana's form is not needed to run an agent."""
    (tmp_path / "opens.o").write_bytes(compile_bpf(SOURCE))
    monkeypatch.delitem(sys.modules, "exporter.dashboard.grafana", raising=False)
    for name in [name for name in sys.modules if name.startswith("grafana_foundation_sdk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grafana_foundation_sdk", None)
    assert main(["dashboard", str(tmp_path / "opens.o")]) == 1
    assert "pip install 'skep[dashboards]'" in capsys.readouterr().err


@pytest.mark.slow
def test_other_verbs_do_not_import_the_extra() -> None:
    """Nor does the module of the verb itself before it runs."""
    code = (
        "import sys, exporter.cli, importlib\n"
        "for family in exporter.cli.FAMILIES: importlib.import_module(f'exporter.cli.{family}')\n"
        "import exporter.agent.agent\n"
        "sys.exit(any(name.startswith('grafana') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_extra_is_pinned_to_one_version_in_both_places() -> None:
    """Another version writes other JSON; unpinned, pip takes a version of an older line."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (extra,) = project["project"]["optional-dependencies"]["dashboards"]
    assert extra in project["dependency-groups"]["dev"]
    assert extra.startswith("grafana-foundation-sdk==0.0.")


# -- alerts ------------------------------------------------------------------------------------


def alert_rules() -> list[dict[str, Any]]:
    """Every alert."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_every_alert_says_how_bad_what_and_what_to_do() -> None:
    """For, severity, summary, description, and a hint where to begin."""
    for rule in alert_rules():
        assert "for" in rule
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert f"### {rule['alert']}\n" in (ROOT / "docs" / "dashboards.md").read_text()


def test_every_alert_is_tested_with_and_without_cause() -> None:
    """Each appears in dashboards/tests with an alert expected and with none, or another series that gives none."""
    expected: dict[str, list[int]] = {}
    for path in (DIRECTORY / "tests").glob("*.yaml"):
        for case in yaml.safe_load(path.read_text())["tests"]:
            for rule in case["alert_rule_test"]:
                expected.setdefault(rule["alertname"], []).append(len(rule["exp_alerts"]))
    assert set(expected) == {rule["alert"] for rule in alert_rules()}
    for name, counts in expected.items():
        assert any(counts), name


@needs_promtool
def test_rules_are_valid_and_alert_when_they_should() -> None:
    """Promtool's own checks, and its unit tests in dashboards/tests."""
    checked = subprocess.run(["promtool", "check", "rules", ALERTS], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    files = sorted((DIRECTORY / "tests").glob("*.yaml"))
    assert files
    tested = subprocess.run(["promtool", "test", "rules", *files], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_alerts_on_images_ask_for_metrics_that_the_catalog_has(generator: ModuleType, catalog: Store) -> None:
    """A renamed metric would silence its alert."""
    exported = {name for plan in generator.catalog_plans(catalog) for name in instruments(plan)}
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    asked = {selector.metric for rule in rules for selector in selectors(rule["expr"])}
    assert {name for name in asked if name.startswith("ebpf_") and families({name}, exported)} == set()
    assert {name for name in asked if ":" in name} == recorded, "each record is used, each use is recorded"
