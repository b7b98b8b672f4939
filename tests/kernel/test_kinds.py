"""Every kind of BTF type as label and value: what a program wrote on this kernel is what is shown.

After a change that is meant: ``python -m tests.kernel.test_kinds`` writes the
golden file anew; read the difference before it is committed.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path

from exporter.agent.program import load, plan_bundle
from exporter.config import ImageConfig
from exporter.image import Bundle, Digest, parse_reference

from .conftest import FLAGS, PROGRAMS, Compile, make_calls

GOLDEN = Path(__file__).parents[1] / "golden" / "kinds.txt"


def shown(object: bytes) -> str:
    """Every series of every map, one a line, with types and values as Python has them."""
    digest = Digest("0" * 64)
    bundle = Bundle(parse_reference("./kinds.o"), digest, digest, digest, "file", object)
    config = ImageConfig("kinds", "./kinds.o", globals={"tgid": os.getpid()})
    plan = plan_bundle(bundle, config)
    program = load(bundle, plan, config, resolve=lambda decoder, value: f"{decoder} {value}")
    try:
        make_calls(1)
        program.read(time.monotonic())
        assert not program.last_read.error
        lines = []
        for table, frame in program.tables():
            names = [metric.instrument.name for metric in table.metrics]
            for labels, values in frame.rows():
                lines += [f"{table.map}", *(f"    {name} = {value!r}" for name, value in labels.items())]
                lines += [f"  {name}: {value!r}" for name, value in zip(names, values, strict=True)]
        return "\n".join([*lines, *(f"note: {note}" for note in plan.notes), ""])
    finally:
        program.close()


def test_every_kind_of_type_is_shown_as_it_was_written(compile_object: Compile) -> None:
    """Places are the compiler's, the numbers the kernel's, the text ours."""
    assert sorted(shown(compile_object("kinds")).split("\n")) == sorted(GOLDEN.read_text().split("\n"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "kinds.o"
        subprocess.run(["clang", *FLAGS, "-c", PROGRAMS / "kinds.bpf.c", "-o", target], check=True)
        GOLDEN.write_text(shown(target.read_bytes()))
