"""Receivers that behave badly: each has its line in the log, and every event has its end in the account."""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.authority import Authority
from tests.support.otlp_receiver import Answer, GrpcReceiver, OtlpReceiver

from .harness import running_agent
from .objects import counting, make_calls, write

PID = os.getpid()
CALLS = 20
AWAY = "receiver is not available"
REFUSED = "receiver refused items"
OUTCOMES = ("accepted", "rejected", "failed")


def config(directory: Path, endpoint: str, **otlp: object) -> str:
    """One image whose events go to a receiver."""
    image = {"ref": str(write(directory, "calls", counting("calls"))), "globals": {"tgid": PID}}
    settings = {"endpoint": endpoint, "timeout": "500ms", "metrics": {"enabled": False}, **otlp}
    return f"images: {json.dumps([image])}\notlp: {json.dumps(settings)}"


FINAL = {
    "partial": (Answer(rejected=CALLS, message="too old"), "too old"),
    "redirect": (Answer(302, headers={"Location": "http://127.0.0.1:1/v1/logs"}), "redirects to"),
    "bad request": (Answer(400, message="no such tenant"), "no such tenant"),
    "too large": (Answer(413, message="large"), "413"),
    "internal error": (Answer(500, message="out of luck"), "500"),
}
PASSING = {
    "retry after": (Answer(429, headers={"Retry-After": "1"}), "429"),
    "unavailable": (Answer(503), "503"),
    "reset": (Answer(reset=True), ""),
    "silence": (Answer(silent=True), ""),
}


@pytest.mark.parametrize("case", FINAL)
def test_events_refused_for_good_are_failed_and_told(tmp_path: Path, case: str) -> None:
    """With what the receiver said, once; the next ones are offered as ever."""
    answer, said = FINAL[case]
    with OtlpReceiver([answer]) as receiver:
        text = config(tmp_path, receiver.endpoint)
        with running_agent(tmp_path, text) as agent:
            agent.wait_states(calls="running")
            make_calls(CALLS)
            page = agent.wait(lambda page: page.sum("skep_events_failed_total") == CALLS)
            assert page.sum("skep_otlp_items_total", signal="logs", outcome="rejected") == CALLS
            assert page.sum("skep_events_received_total") == CALLS
            [line] = agent.lines(REFUSED, signal="logs")
            assert said in str(line["reason"])
            assert line["items"] == CALLS
            receiver.answer(Answer())
            make_calls(5)
            agent.wait(lambda page: page.sum("skep_events_exported_total") == 5)


@pytest.mark.parametrize("case", PASSING)
def test_events_wait_for_a_receiver_that_is_away(tmp_path: Path, case: str) -> None:
    """Told once, counted as queued, and delivered whole when it is back."""
    answer, said = PASSING[case]
    with OtlpReceiver([answer]) as receiver:
        text = config(tmp_path, receiver.endpoint)
        with running_agent(tmp_path, text) as agent:
            agent.wait_states(calls="running")
            make_calls(CALLS)
            agent.wait(lambda _: agent.lines(AWAY, signal="logs"))
            page = agent.scrape()
            assert page.sum("skep_events_queued") == page.sum("skep_otlp_items_pending", signal="logs") == CALLS
            assert said in str(agent.lines(AWAY)[0]["reason"])
            receiver.answer(Answer())
            page = agent.wait(lambda page: page.sum("skep_events_exported_total") == CALLS)
            assert page.sum("skep_events_failed_total") == page.sum("skep_events_dropped_total") == 0
            agent.wait(lambda _: agent.lines("receiver takes data again", signal="logs"))


@pytest.mark.parametrize(("retry_info_s", "exported"), [(0.5, CALLS), (None, 0)])
def test_exhausted_receiver_is_asked_again_only_if_it_says_when(
    tmp_path: Path, retry_info_s: float | None, exported: int
) -> None:
    """RESOURCE_EXHAUSTED over gRPC: with RetryInfo it passes, without it is for good."""
    answer = Answer(code="RESOURCE_EXHAUSTED", message="quota", retry_info_s=retry_info_s)
    with GrpcReceiver([answer, Answer()]) as receiver:
        text = config(tmp_path, receiver.endpoint, protocol="grpc")
        with running_agent(tmp_path, text) as agent:
            agent.wait_states(calls="running")
            make_calls(CALLS)
            page = agent.wait(lambda page: page.sum("skep_events_queued") == 0 < page.sum("skep_events_received_total"))
            assert page.sum("skep_events_exported_total") == exported
            assert page.sum("skep_events_failed_total") == CALLS - exported
            [line] = agent.lines(AWAY if exported else REFUSED, signal="logs")
            assert "quota" in str(line["reason"])


def test_account_balances_in_every_scrape_while_much_happens(tmp_path: Path) -> None:
    """Three scrapers, a moody receiver, a limit and a sample; in the end each record is where its receiver has it."""
    moods = [Answer(), Answer(503, headers={"Retry-After": "0"}), Answer(rejected=3), Answer(400), Answer(reset=True)]
    image = {"ref": str(write(tmp_path, "calls", counting("calls"))), "globals": {"tgid": PID}}
    image |= {"events": {"ebpf.calls": {"sample_one_in": 7}}, "limits": {"events_per_s": 1000}}
    with OtlpReceiver(moods * 20) as receiver:
        otlp = {"endpoint": receiver.endpoint, "metrics": {"enabled": False}}
        text = f"images: {json.dumps([image])}\notlp: {json.dumps(otlp)}\nevents: {{json: {{path: e.jsonl}}}}"
        with running_agent(tmp_path, text) as agent, ThreadPoolExecutor(3) as scrapers:
            agent.wait_states(calls="running")
            done = threading.Event()

            def scrape() -> int:
                count = 0
                while not done.is_set():
                    agent.scrape()  # which asserts that it balances
                    count += 1
                return count

            scraping = [scrapers.submit(scrape) for _ in range(3)]
            try:
                for _ in range(15):
                    make_calls(10_000)
                    time.sleep(0.2)
                receiver.answer(Answer())
                page = agent.wait(lambda page: page.sum("skep_events_queued") == 0)
            finally:
                done.set()
            assert sum(one.result() for one in scraping) > 30
            assert page.sum("ebpf_calls_total") == 150_000
            for reason in ("sample", "rate"):
                assert page.sum("skep_events_dropped_total", reason=reason) > 0, reason
            exported, failed = (page.sum(f"skep_events_{end}_total") for end in ("exported", "failed"))
            items = {end: page.sum("skep_otlp_items_total", signal="logs", outcome=end) for end in OUTCOMES}
            assert items == {"accepted": exported, "rejected": failed, "failed": 0}
            assert failed > 0
            written = exported + failed
            agent.wait(lambda page: page.sum("skep_json_events_total", outcome="written") == written)
        assert len((tmp_path / "e.jsonl").read_text().splitlines()) == written


def test_expired_certificate_of_a_receiver_is_told_and_waited_out(tmp_path: Path) -> None:
    """Its events stay queued; nothing is sent to whom cannot be told who it is."""
    authority = Authority(tmp_path / "authority")
    late = authority.issue("late", expired=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(late.certificate, late.key)
    with OtlpReceiver(tls=context) as receiver:
        text = config(tmp_path, receiver.endpoint, ca_file=str(authority.certificate))
        with running_agent(tmp_path, text) as agent:
            agent.wait_states(calls="running")
            make_calls(CALLS)
            agent.wait(lambda _: agent.lines(AWAY, signal="logs"))
            assert "expired" in str(agent.lines(AWAY)[0]["reason"])
            page = agent.scrape()
            assert page.sum("skep_events_queued") == CALLS
            assert page.sum("skep_otlp_requests_total", signal="logs", cause="tls") > 0
            assert receiver.received == []
            good = authority.issue("good")
            context.load_cert_chain(good.certificate, good.key)
            agent.wait(lambda page: page.sum("skep_events_exported_total") == CALLS)
