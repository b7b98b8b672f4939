"""skep: eBPF programs that travel as OCI images, and what they count.

`docs/architecture.md` has the map of this house.
"""
