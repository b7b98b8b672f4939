"""Write skep(1) from the verbs' own arguments: ``python packaging/generate/man.py FILE``.

The date is ``$SOURCE_DATE_EPOCH`` if that is set, so that two builds give one page.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from argparse_manpage.manpage import Manpage

from exporter.cli import parser as whole_parser
from exporter.resources import version

FILES = """.SH FILES
.TP
.I /etc/skep/agent.yaml
.TQ
.I /etc/skep/agent.d/*.yaml
What runs on this host, and where its numbers go; every key is in the file. \\fBskep check\\fR judges them.
.TP
.I /etc/default/skep
Flags of the agent that skep.service starts.
.TP
.I /var/lib/skep/store
The images, an OCI image layout.
.TP
.I /run/skep/agent.sock
Where \\fBskep status\\fR asks.
.TP
.I /usr/share/skep
Dashboards, alerts, and settings for images that need more of the service.
.SH EXIT STATUS
0 if all went well, 1 if not, 2 if the arguments are wrong. \\fBskep status\\fR and others name more in their help.
"""


def page() -> str:
    """The manual page, in the troff dialect of man(7)."""
    os.environ["COLUMNS"] = "72"  # what argparse wraps a usage to, inside the page's indentation
    parser = whole_parser()
    parser.man_short_description = "eBPF programs that travel as OCI images, and what they count"  # type: ignore[attr-defined]
    made = Manpage(
        parser,
        format="single-commands-section",
        _data={
            "project_name": "skep",
            "version": version(),
            "manual_title": "skep",
            "manual_section": "1",
        },
    )
    # A line of text that begins with a quote would be a request to troff.
    text = re.sub(r"^'", r"\\&'", str(made).rstrip(), flags=re.MULTILINE)
    return f"{text}\n{FILES}"


def main(arguments: list[str]) -> int:
    """Write the page."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python packaging/generate/man.py FILE\n")
        return 2
    Path(arguments[0]).write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
