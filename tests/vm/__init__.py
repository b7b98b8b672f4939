"""The kernel matrix: boot Debian's kernels in virtual machines and run kernel tests inside.

::

    packages.py   Debian's mirror, through a private apt configuration
    kernels.py    one kernel: its files, its modules in load order, its initramfs
    disks.py      file system images: root, modules, the working tree
    machine.py    one boot of one guest, and the events it reports
    guest/        what runs inside: init scripts, the runner, a pytest plugin
    results.py    what the cases came to; the rule for skips; build/vm.json and docs/kernels.md
    cases/        tests that are only worth running on several kernels

``python -m tests.vm`` is the command. Everything it makes lies under
``build/vm`` and is keyed by content, so a second run boots at once.

QEMU emulates the processor (no KVM): any machine that builds skep can run the
matrix, a continuous integration container included. The price is speed and the
performance counters, which the guest does not have.
"""
