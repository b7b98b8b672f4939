"""An image's life: what state it is in and why, what it tells, and when it is tried again.

::

    pulling ──▶ loading ──▶ running     every program attached, every map readable
       │           │    └─▶ degraded    some programs could not attach
       └───────────┴──▶ failed         tried again forever, after a random wait whose bound doubles

    stale: it runs, but what it shows may not be the newest: the registry did not answer
           (with pull: always), or its maps cannot be read

Knows no thread: whoever calls :meth:`Image.bring_up` and :meth:`Image.stop` does so one
at a time; the rest may be read from anywhere.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from exporter.config import ImageConfig, RegistryConfig, RetryConfig
from exporter.errors import ImageError, KernelError, PlanError, Problems, SkepError
from exporter.hooks import hook_of
from exporter.image import Bundle, Store, fetch, parse_reference
from exporter.plan import Plan

from . import log, tracing
from .events import EventReader
from .fdstore import DescriptorStore, Identity
from .program import Program, Resolve, load, plan_bundle, plan_identity
from .status import ImageDocument, Rates
from .telemetry import ImageStatus, StreamCounts, Upgrades

_FLOOR_S = 0.05
_EXCLUSIVE = ("xdp", "flow_dissector")
"""Hooks that take one program: a newer version can only attach when the older is gone."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What images of one agent share.

    Attributes:
        loading: Bounds how many loader processes run at a time.
        claim: Takes a plan's metric names for an image, or raises ``PlanError`` naming who has one.
        prune: Drops versions from the store that are too old.
        kept: Where descriptors outlive this process.
        changed: Called after each change of an image's state.
    """

    store: Store
    registries: Mapping[str, RegistryConfig]
    retry: RetryConfig
    resolve: Resolve
    reader: EventReader
    loading: threading.Semaphore
    claim: Callable[[str, Plan], None]
    prune: Callable[[], None]
    changed: Callable[[], None]
    stop: threading.Event
    kept: DescriptorStore


class Image:
    """One entry of ``images``, from configuration to numbers."""

    def __init__(self, config: ImageConfig, around: Surroundings) -> None:
        self.config = config
        self.name = config.name
        self.program: Program | None = None
        self.due_s = 0.0
        self.tried = False
        self.since_s = time.time()
        self._wanted = config
        self._around = around
        self._state = "pulling"
        self._reason = ""
        self._bundle: Bundle | None = None
        self._attempts = 0
        self._pull_failures: dict[str, int] = {}
        self._repeats = log.Repeats()
        self._read_error = ""
        self._displaced: PlanError | None = None
        self._upgrades = 0
        self._overlap_s = 0.0
        self._gap_s = 0.0

    @property
    def state(self) -> str:
        """One of ``telemetry.STATES``."""
        return "stale" if self._read_error and self.program is not None else self._state

    @property
    def reason(self) -> str:
        """Why it is not simply running; one line, may be empty."""
        return self._read_error if self.state == "stale" and self._read_error else self._reason

    @property
    def digest(self) -> str:
        """What its reference resolved to; empty before the first pull."""
        return str(self._bundle.digest) if self._bundle is not None else ""

    def bring_up(self) -> None:
        """Get it, load it, run it; whatever goes wrong is told here and tried again at :attr:`due_s`."""
        self.due_s = float("inf")
        self.config = self._wanted
        displaced, self._displaced = self._displaced, None
        if displaced is not None:
            self.stop()
            self._fail(displaced)
            return
        try:
            with tracing.span("image.bring_up", image=self.name, ref=self.config.ref) as note:
                bundle, pull_error = self._pull()
                note.set(digest=str(bundle.digest), runs_already=self._runs(bundle))
                if not self._runs(bundle):
                    self._replace(bundle)
        except SkepError as error:
            self._fail(error)
        except Exception as error:  # a bug of ours is this image's failure, not the agent's
            self._tell(log.bug, "bringing up an image failed")
            self._fail(SkepError(f"internal error: {error!r}; please report it with the traceback in the log"))
        else:
            self._settle(pull_error)
        finally:
            self.tried = True

    def reconfigure(self, config: ImageConfig, around: Surroundings) -> None:
        """Have another configuration take effect; what runs goes on until that is up."""
        self._around = around
        if _essence(config) == _essence(self._wanted):
            return
        self._wanted = config
        self._attempts = 0
        self.due_s = 0.0

    def _pull(self) -> tuple[Bundle, ImageError | None]:
        """Get the bundle; with ``pull: always`` a stored one will do, and the registry's error is given with it."""
        around, config = self._around, self.config
        self._progress("pulling")
        reference = parse_reference(config.ref)
        began_s = time.monotonic()
        stages: list[str] = []

        def stage(name: str) -> AbstractContextManager[object]:
            stages.append(name)
            return _stage(name)

        def get(pull: str) -> Bundle:
            stages.clear()
            bundle = fetch(
                reference, store=around.store, registries=around.registries, pull=pull, stop=around.stop, stage=stage
            )
            if "pull" in stages:  # and not only found in the store
                took_s = round(time.monotonic() - began_s, 3)
                self._tell(log.info, "image pulled", bundle, version=bundle.version, took_s=took_s)
            return bundle

        try:
            return get(config.pull), None
        except ImageError as error:
            self._pull_failures[error.code] = self._pull_failures.get(error.code, 0) + 1
            if config.pull != "always":
                raise
            try:
                return get("never"), error
            except ImageError:
                raise error from None

    def _runs(self, bundle: Bundle) -> bool:
        """Whether just this runs already."""
        program = self.program
        if program is None or program.bundle.digest != bundle.digest:
            return False
        return _essence(program.config) == _essence(self.config)

    def _replace(self, bundle: Bundle) -> None:
        """Run this bundle instead of whatever ran before, which goes on until the new one is attached."""
        self._bundle = bundle
        old = self.program
        self._progress("loading")
        with _stage("plan"):
            plan = plan_bundle(bundle, self.config)
        identity = Identity(self.name, str(bundle.object_digest), plan_identity(plan))
        if old is not None and (str(old.bundle.object_digest), old.identity) == (identity.object, identity.plan):
            # Another digest of the same object, or a change of what does not concern the kernel.
            old.bundle, old.config = bundle, self.config
            return
        try:
            self._around.claim(self.name, plan)
            program = self._taken_back(bundle, plan, identity) if old is None else None
            if program is None:
                program = self._loaded(bundle, plan, old)
                self._keep(program, identity)
        except BaseException:
            self._reclaim()
            raise
        for note in plan.notes:
            log.debug("note on the plan", image=self.name, note=note)
        for name, reason in program.passed_over.items():
            self._tell(log.info, "alternative not taken", program=name, reason=reason)
        if not plan.tables and not plan.streams:
            self._tell(log.warn, "image exports nothing", reason="; ".join(plan.notes))
        self._read_error = ""
        if old is None:
            self.program = program
        else:
            self._switch(old, program)
        self._around.prune()

    def _taken_back(self, bundle: Bundle, plan: Plan, identity: Identity) -> Program | None:
        """What went on counting since an agent before this one ended, if it is the same."""
        kept = self._around.kept.take(identity)
        if kept is None:
            return None
        key, collection, start_ns = kept
        try:
            program = Program(bundle, plan, self.config, collection, self._around.resolve, start_ns=start_ns)
            program.key = key
        except BaseException:
            collection.close()
            self._around.kept.drop(key)
            raise
        try:
            self._read_rings(program)
        except BaseException:
            self._close(program)
            raise
        self._tell(log.info, "programs went on while the agent was away", for_s=time.time() - start_ns / 1e9)
        return program

    def _loaded(self, bundle: Bundle, plan: Plan, old: Program | None) -> Program:
        """Load it beside what runs; or, on a hook that takes one program only, instead of it."""
        instead = old is not None and any(_is_exclusive(program.section) for program in old.plan.programs)
        if old is not None and instead:
            self._around.kept.drop(old.key)
            old.key = ""
            old.detach()
        try:
            program = self._load(bundle, plan, self.config, before=old)
        except SkepError:
            if old is not None and instead:
                self._load_again(old)
            raise
        try:
            self._read_rings(program)
        except BaseException:
            program.close()
            raise
        return program

    def _load(self, bundle: Bundle, plan: Plan, config: ImageConfig, *, before: Program | None) -> Program:
        with _stage("loader"):
            with self._around.loading:
                program = load(bundle, plan, config, resolve=self._around.resolve, before=before)
            for name, (began_s, ended_s) in program.collection.stages.items():
                tracing.past(f"image.{name}", began_s, ended_s)
        return program

    def _load_again(self, old: Program) -> None:
        """The newer version could not attach where the older one had to make room."""
        try:
            again = self._load(old.bundle, old.plan, old.config, before=old)
            self._read_rings(again)
        except SkepError as error:
            self._tell(log.error, "the version from before cannot be loaded again", old.bundle, reason=one_line(error))
            self.stop()
        else:
            self._keep(again, Identity(self.name, str(old.bundle.object_digest), old.identity))
            self._switch(old, again)

    def _keep(self, program: Program, identity: Identity) -> None:
        """Store its descriptors where they outlive this process, if there is such a place."""
        try:
            program.key = self._around.kept.put(identity, program.collection, program.start_ns)
        except SkepError as error:
            self._tell(log.warn, "programs will not outlive a restart of the agent", reason=one_line(error))

    def _read_rings(self, program: Program) -> None:
        added = []
        try:
            for stream in program.streams:
                self._around.reader.add(stream)
                added.append(stream)
        except BaseException:
            for stream in added:
                self._around.reader.remove(stream)
            raise

    def _switch(self, old: Program, program: Program) -> None:
        """Detach the old version, now that the new one is attached, and let the new one carry its counts on."""
        self._around.kept.drop(old.key)
        old.detach()
        # Both were attached, or neither was: on a hook that takes one program the old one went first.
        overlap_s = max(0.0, old.detached_s - program.attaching_s)
        gap_s = max(0.0, program.loaded_s - old.detached_s) if not overlap_s else 0.0
        self._upgrades += 1
        self._overlap_s += overlap_s
        self._gap_s += gap_s
        carried = 0
        with old.lock, program.lock:
            try:
                carried = program.succeed(old)
            except Exception:  # a bug must not leave an image without a program; its series begin anew
                self._tell(log.bug, "carrying counts over failed")
            self.program = program
        for stream in old.streams:
            self._around.reader.remove(stream)
        old.close()
        log.info(
            "image switched to another version",
            image=self.name,
            ref=program.bundle.reference,
            from_digest=old.bundle.digest,
            to_digest=program.bundle.digest,
            tables_carried=carried,
            tables_new=len(program.plan.tables) - carried,
            overlap_ms=round(overlap_s * 1000, 3),
            gap_ms=round(gap_s * 1000, 3) or None,
        )

    def _reclaim(self) -> None:
        """Metric names are claimed for what runs, since what was to run does not."""
        if self.program is not None:
            try:
                self._around.claim(self.name, self.program.plan)
            except PlanError as error:
                self.displace(error)

    def _settle(self, pull_error: ImageError | None) -> None:
        assert self.program is not None
        bundle, failures = self.program.bundle, self._attempts
        reason = self.program.not_attached
        state = "degraded" if reason else "running"
        if pull_error is not None:
            state, reason = "stale", f"{pull_error}; runs the stored version"
            self._retry()
        else:
            self._attempts = 0
        self._enter(state, reason)
        count = self._repeats.count(state, reason) if reason else 1
        if count:
            self._tell(
                log.warn if reason else log.info,
                f"image {state}",
                version=bundle.version,
                programs=sum(self.program.attached.values()),
                reason=reason,
                times=count if count > 1 else None,
                after_failures=failures if failures and pull_error is None else None,
            )
        if not reason:
            self._repeats.clear(state)
            self._repeats.clear("failed")

    def _fail(self, error: SkepError) -> None:
        if self._around.stop.is_set():
            return
        wait_s = self._retry()
        reason = one_line(error)
        if self.program is not None:
            # The version that runs goes on; only the newer one failed.
            self._enter("stale", f"{reason}; runs the version from before")
        else:
            self._enter("failed", reason)
        # A transport's message may differ from attempt to attempt; its code does not.
        count = self._repeats.count("failed", error.code if isinstance(error, ImageError) else reason)
        if count:
            self._tell(
                log.error,
                f"image {self.state}",
                self._bundle,
                reason=reason,
                code=error.code,
                times=count if count > 1 else None,
                retry_in_s=round(wait_s, 1),
            )
            if isinstance(error, KernelError) and error.log:
                self._tell(log.info, "last lines of the kernel's log", self._bundle, log=error.log)

    def _retry(self) -> float:
        """Plan the next attempt: full jitter, so that a fleet does not knock at once."""
        retry = self._around.retry
        bound_s = min(retry.max_s, retry.first_s * 2.0 ** min(self._attempts, 40))
        self._attempts += 1
        wait_s = max(_FLOOR_S, random.uniform(0.0, bound_s))  # noqa: S311 - spreads load, guards nothing
        if self.due_s > 0:  # unless something else is wanted meanwhile, which is due now
            self.due_s = time.monotonic() + wait_s
        return wait_s

    def displace(self, error: PlanError) -> None:
        """Have it stopped, because an image before it in the configuration has one of its metric names.

        It is shown no more from here on, and stops when it is due, which is now.
        """
        self._displaced = error
        self.due_s = 0.0

    def shows(self, program: Program) -> bool:
        """Whether this program is still the one to show; the caller holds its lock."""
        return self.program is program and self._displaced is None

    def read(self, program: Program, arrived_s: float, deadline_s: float = math.inf) -> bool:
        """Read its maps into its frames; the caller holds the program's lock. A failure is told and makes it stale.

        Returns:
            Whether there was time for all of it before ``deadline_s``; what there was no time for says nothing of
            the image.
        """
        in_time = True
        try:
            in_time = program.read(arrived_s, deadline_s)
            error = program.last_read.error
        except Exception as unexpected:  # a bug in one image's decoding must not end the scrape
            error = f"internal error: {unexpected!r}"
            program.give_up_read(arrived_s, error)
            if self._repeats.count("read", error):
                self._tell(log.bug, "reading an image's maps failed")
        if not in_time and not error:
            return False
        if error and self._repeats.count("unreadable", error):
            self._tell(log.error, "maps cannot be read", reason=error)
        elif not error and self._repeats.clear("unreadable"):
            self._tell(log.info, "maps can be read again")
        if error != self._read_error:
            self._read_error = error
            self._around.changed()
        return in_time

    def follow_cpus(self, online: Sequence[int]) -> None:
        """Sample the CPUs that are online now; the caller keeps this image from being brought up meanwhile."""
        program = self.program
        if program is None:
            return
        try:
            changed = program.collection.follow_cpus(online)
        except KernelError as error:
            changed = True
            if self._repeats.count("cpus", str(error)):
                self._tell(log.error, "a CPU that came online is not sampled", reason=error)
        if changed:
            self._tell(log.info, "sampling follows the CPUs", cpus=len(online))
            self._around.kept.drop(program.key)
            program.key = ""
            self._keep(program, Identity(self.name, str(program.bundle.object_digest), program.identity))

    def _tell(self, tell: Callable[..., None], message: str, bundle: Bundle | None = None, **fields: object) -> None:
        """Log something of its life, with what it is: of ``bundle``; or of what runs, or was to run last."""
        program = self.program
        bundle = bundle or (program.bundle if program is not None else self._bundle)
        digest = bundle.digest if bundle is not None else None
        tell(message, image=self.name, ref=self.config.ref, digest=digest, **fields)

    def retire(self) -> None:
        """Stop it for good, as it is no longer configured."""
        bundle = self.program.bundle if self.program is not None else None
        self.stop()
        self._tell(log.info, "image stopped, it is no longer configured", bundle)

    def stop(self, *, leave: bool = False) -> None:
        """Detach it; with ``leave`` what systemd holds stays attached and goes on counting."""
        program, self.program = self.program, None
        if program is not None:
            self._close(program, leave=leave)

    def _close(self, program: Program, *, leave: bool = False) -> None:
        for stream in program.streams:
            self._around.reader.remove(stream)
        if not leave:
            self._around.kept.drop(program.key)
        program.close()

    def _progress(self, state: str) -> None:
        """Enter a state on the way up; one that failed stays failed until it runs, so that an alert on it holds."""
        if self.program is None and not self._attempts:
            self._enter(state, "")

    def _enter(self, state: str, reason: str) -> None:
        if (state, reason) != (self._state, self._reason):
            if state != self._state:
                self.since_s = time.time()
            self._state, self._reason = state, reason
            self._around.changed()

    def document(self, counts: Sequence[StreamCounts], rates: Rates, *, measured: bool) -> ImageDocument:
        """What ``skep status`` shows of it; with what its programs use, if the kernel measures that."""
        program, status = self.program, self.status()
        wait_s = self.due_s - time.monotonic()
        streams = program.streams if program is not None else ()
        enabled = {stream.name: stream.plan.enabled or stream.plan.metrics for stream in streams}
        use = {
            name: rates.of_program((self.name, name), used) if measured else (None, None)
            for name, used in status.usage.items()
        }
        return {
            "name": self.name,
            "ref": self.config.ref,
            "digest": status.digest,
            "version": status.version,
            "format": status.format,
            "state": status.state,
            "reason": self.reason,
            "since": self.since_s,
            "counting_since": program.start_ns / 1e9 if program is not None else 0.0,
            "retry_in_s": max(0.0, wait_s) if wait_s != float("inf") else None,
            "required": self.config.required,
            "series": status.series,
            "series_limit": self.config.limits.series,
            "kept_over_restart": program is not None and bool(program.key),
            "programs": [
                {
                    "name": one.name,
                    "id": one.id,
                    "attached": one.attached,
                    "error": one.error,
                    "passed_over": one.passed_over,
                    "runs_per_s": use.get(one.name, (None, None))[0],
                    "cpu_ratio": use.get(one.name, (None, None))[1],
                }
                for one in (program.collection.programs if program is not None else ())
            ],
            "streams": [
                {
                    "name": one.stream,
                    "enabled": enabled.get(one.stream, False),
                    "received": one.received,
                    "exported": one.exported,
                    "failed": one.failed,
                    "queued": one.queued,
                    "dropped": dict(one.dropped),
                    "received_per_s": rates.rate(one),
                    "ring_lost": status.lost.get(one.stream),
                    "ring_fill_max": status.ring_fill.get(one.stream, 0.0),
                }
                for one in counts
                if one.image == self.name
            ],
            "maps": [
                {"name": name, "entries": entries, "max_entries": most}
                for name, (entries, most) in status.map_entries.items()
            ],
        }

    def status(self) -> ImageStatus:
        """What there is to tell."""
        program, bundle = self.program, self._bundle
        upgrades = Upgrades(self._upgrades, self._overlap_s, self._gap_s)
        if program is None:
            return ImageStatus(
                self.name,
                self.config.ref,
                self.state,
                self.digest,
                pull_failures=dict(self._pull_failures),
                upgrades=upgrades,
            )
        assert bundle is not None
        last = program.last_read
        return ImageStatus(
            name=self.name,
            ref=self.config.ref,
            state=self.state,
            digest=str(program.bundle.digest),
            version=program.bundle.version,
            format=program.bundle.format,
            pull_failures=dict(self._pull_failures),
            upgrades=upgrades,
            attached=program.attached,
            usage=program.usage,
            series=program.series,
            folded=program.folded,
            map_entries=dict(program.map_entries),
            streams={stream.name: bool(stream.plan.lost_map) for stream in program.streams},
            lost=dict(program.lost),
            ring_fill={stream.name: stream.fill_ratio_max for stream in program.streams},
            scrape_s=last.took_s,
            scrape_ok=last.took_s is not None and not last.error,
        )


def _stage(name: str) -> AbstractContextManager[object]:
    return tracing.span(f"image.{name}")


def _essence(config: ImageConfig) -> ImageConfig:
    """All of it but where it stands."""
    return replace(config, file="", line=0)


def _is_exclusive(section: str) -> bool:
    hook = hook_of(section)
    return hook is not None and hook.name in _EXCLUSIVE


def one_line(error: SkepError) -> str:
    """A message for a state or a log field: several problems in one line."""
    problems = error.problems if isinstance(error, Problems) else (error,)
    return "; ".join(str(problem) for problem in problems)
