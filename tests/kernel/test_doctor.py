"""``skep doctor`` says of this kernel what loading real programs on it says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.errors import KernelError
from exporter.kernel import LoadRequest, ProgramRequest, Verdict, findings, load
from tests.support.clang import compile_bpf

ROOT = Path(__file__).parents[2]
SKEP = (sys.executable, "-m", "exporter")
HOOKS = {
    "raw_tp": "raw_tp/sched_process_exec",
    "tp_btf": "tp_btf/sched_process_exec",
    "tracepoint": "tracepoint/sched/sched_process_exec",
    "kprobe": "kprobe/bpf_fentry_test1",
    "kprobe.multi": "kprobe.multi/bpf_fentry_test?",  # a single function does without the multi link
    "fentry": "fentry/bpf_fentry_test1",
    "fexit": "fexit/bpf_fentry_test1",
    "fmod_ret": "fmod_ret/bpf_modify_return_test",
}


@pytest.mark.parametrize(("name", "section"), HOOKS.items())
def test_verdict_on_a_hook_is_what_a_real_program_meets(name: str, section: str) -> None:
    """Loaded and attached by the loader that images go through."""
    text = f'SEC("{section}") int one(void *ctx) {{ return 0; }}\nchar LICENSE[] SEC("license") = "GPL";\n'
    content = compile_bpf("", program=text)
    request = LoadRequest(name="doctor", object=content, programs=(ProgramRequest(name="one", section=section),))
    try:
        collection = load(request)
    except KernelError as error:
        attached, why = False, str(error)
    else:
        attached, why = collection.programs[0].attached, collection.programs[0].error
        collection.close()
    [found] = [one for one in findings() if one.group == "hook" and one.name == name]
    assert (found.verdict is Verdict.YES) == attached, (found, why)


def test_nothing_that_was_tried_stays_loaded() -> None:
    """Neither a program nor a descriptor."""
    bpftool = shutil.which("bpftool") or "/usr/sbin/bpftool"
    before = len(list(Path("/proc/self/fd").iterdir()))
    findings()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    listed = subprocess.run([bpftool, "prog", "show"], capture_output=True, text=True, check=True).stdout
    assert "skep_doctor" not in listed


def test_page_and_document_agree_and_the_status_tells() -> None:
    """For a person and for a script."""
    page = subprocess.run([*SKEP, "doctor"], cwd=ROOT, capture_output=True, text=True, check=False)
    document = subprocess.run([*SKEP, "doctor", "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads(document.stdout)
    assert page.returncode == document.returncode == (0 if found["good"] else 3)
    assert {"host", "hook", "map", "helper"} == {one["group"] for one in found["findings"]}
    for one in found["findings"]:
        assert one["verdict"] in ("yes", "no", "unknown")
        assert f"{one['verdict']:8}{one['name']}" in page.stdout
        assert one["verdict"] == "yes" or one["found"]
    assert page.stderr == ""


def test_what_skep_makes_no_use_of_is_said_so() -> None:
    """That the kernel has it does not promise a number."""
    done = subprocess.run([*SKEP, "doctor", "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    told = {
        one["name"]: (one["found"], one["remedy"])
        for one in json.loads(done.stdout)["findings"]
        if one["group"] in ("hook", "map") and one["verdict"] == "yes"
    }
    found, remedy = told["sk_msg"]
    assert found == "skep attaches none" and "'sockops' or 'cgroup_skb' program" in remedy
    found, remedy = told["prog_array"]
    assert (found, remedy) == ("gives no rows", "holds programs to jump to")
    for name in ("raw_tp", "hash", "percpu_array"):
        assert told[name] == ("", "")
    assert told.get("ringbuf", ("", "")) == ("", "")


def test_names_are_what_must_be_there() -> None:
    """``skep doctor NAME`` is a condition for a script."""
    verdicts = {one.name: one.verdict for one in findings()}
    wanted = ["hash", "raw_tp"]
    done = subprocess.run([*SKEP, "doctor", *wanted], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if all(verdicts[name] is Verdict.YES for name in wanted) else 3)
    assert "kernel BTF" not in done.stdout
    done = subprocess.run([*SKEP, "doctor", "nothing*"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("skep: 'nothing*' is nothing")


def test_user_without_privilege_is_told_what_cannot_be_tried() -> None:
    """Status 3 and no traceback; settings are shown all the same."""
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")
    done = subprocess.run([*nobody, *SKEP, "doctor", "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["capabilities"]["verdict"] == "no" and found["capabilities"]["remedy"]
    assert found["raw_tp"]["verdict"] == "unknown" and "CAP_BPF" in found["raw_tp"]["found"]
    assert found["kernel"]["verdict"] == "yes"
