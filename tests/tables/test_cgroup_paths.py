"""What real cgroup paths say: unit, slice, container and pod."""

from __future__ import annotations

import pytest

from exporter.kernel.lookup import cgroup2_mount, container_of, pod_of, slice_of, unit_of

C = "3f4e0ab6b4ae9a3dd8b1c5d9e7f0a1b2c3d4e5f60718293a4b5c6d7e8f901234"
D = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
POD = "6a1c4bd0-9f3e-4c1a-8d57-0b2f1e3d4c5b"
POD_ = POD.replace("-", "_")
STATIC = "1e5b8f0a9c7d4e3f2a1b0c9d8e7f6a5b"

# path: unit, slice, container, pod
PATHS = {
    "/": ("", "", "", ""),
    "/init.scope": ("init.scope", "", "", ""),
    "/system.slice": ("", "system.slice", "", ""),
    "/system.slice/nginx.service": ("nginx.service", "system.slice", "", ""),
    "/system.slice/nginx.service/worker": ("nginx.service", "system.slice", "", ""),
    "/system.slice/system-getty.slice/getty@tty1.service": ("getty@tty1.service", "system-getty.slice", "", ""),
    "/system.slice/dbus.socket": ("dbus.socket", "system.slice", "", ""),
    "/system.slice/dev-hugepages.mount": ("dev-hugepages.mount", "system.slice", "", ""),
    "/system.slice/_cgroup.procs.service": ("cgroup.procs.service", "system.slice", "", ""),
    "/user.slice/user-1000.slice/session-2.scope": ("session-2.scope", "user-1000.slice", "", ""),
    "/user.slice/user-1000.slice/user@1000.service/init.scope": ("init.scope", "user-1000.slice", "", ""),
    "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-firefox-4242.scope": (
        "app-gnome-firefox-4242.scope", "app.slice", "", "",
    ),
    "/machine.slice/systemd-nspawn@deb.service/payload": ("systemd-nspawn@deb.service", "machine.slice", "deb", ""),
    r"/machine.slice/systemd-nspawn@my\x2ddeb.service/supervisor": (
        r"systemd-nspawn@my\x2ddeb.service", "machine.slice", "my-deb", "",
    ),
    # Docker, systemd driver and cgroupfs driver
    f"/system.slice/docker-{C}.scope": (f"docker-{C}.scope", "system.slice", C, ""),
    f"/docker/{C}": ("", "", C, ""),
    f"/docker/{C}/docker/{D}": ("", "", D, ""),
    f"/system.slice/docker-{C}.scope/system.slice/nginx.service": ("nginx.service", "system.slice", C, ""),
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{C}.scope": (
        f"docker-{C}.scope", "user.slice", C, "",
    ),
    # Podman
    f"/machine.slice/libpod-{C}.scope": (f"libpod-{C}.scope", "machine.slice", C, ""),
    f"/machine.slice/libpod-{C}.scope/container": (f"libpod-{C}.scope", "machine.slice", C, ""),
    f"/machine.slice/libpod-conmon-{C}.scope": (f"libpod-conmon-{C}.scope", "machine.slice", "", ""),
    f"/libpod_parent/libpod-{C}": ("", "", C, ""),
    f"/machine.slice/machine-libpod_pod_{D}.slice/libpod-{C}.scope/container": (
        f"libpod-{C}.scope", f"machine-libpod_pod_{D}.slice", C, "",
    ),
    f"/machine.slice/machine-libpod_pod_{D}.slice": ("", f"machine-libpod_pod_{D}.slice", "", ""),
    # Kubernetes, systemd driver
    f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD_}.slice/cri-containerd-{C}.scope": (
        f"cri-containerd-{C}.scope", f"kubepods-burstable-pod{POD_}.slice", C, POD,
    ),
    f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{POD_}.slice/crio-{C}.scope": (
        f"crio-{C}.scope", f"kubepods-besteffort-pod{POD_}.slice", C, POD,
    ),
    f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{POD_}.slice/crio-{C}.scope/container": (
        f"crio-{C}.scope", f"kubepods-besteffort-pod{POD_}.slice", C, POD,
    ),
    f"/kubepods.slice/kubepods-pod{POD_}.slice/crio-conmon-{C}.scope": (
        f"crio-conmon-{C}.scope", f"kubepods-pod{POD_}.slice", "", POD,
    ),
    f"/kubepods.slice/kubepods-pod{POD_}.slice": ("", f"kubepods-pod{POD_}.slice", "", POD),
    f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/cri-containerd-{C}.scope": (
        f"cri-containerd-{C}.scope", f"kubepods-burstable-pod{STATIC}.slice", C, STATIC,
    ),
    # kind: a node that is a container itself
    f"/system.slice/docker-{D}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
    f"kubelet-kubepods-besteffort-pod{POD_}.slice/cri-containerd-{C}.scope": (
        f"cri-containerd-{C}.scope", f"kubelet-kubepods-besteffort-pod{POD_}.slice", C, POD,
    ),
    # containerd told to use cgroupfs under a kubelet told to use systemd
    f"/system.slice/containerd.service/kubepods-burstable-pod{POD_}.slice:cri-containerd:{C}": (
        "containerd.service", "system.slice", C, POD,
    ),
    # Kubernetes, cgroupfs driver
    f"/kubepods/burstable/pod{POD}/{C}": ("", "", C, POD),
    f"/kubepods/pod{POD}/{C}": ("", "", C, POD),
    f"/kubepods/besteffort/pod{STATIC}/{C}": ("", "", C, STATIC),
    f"/kubepods/besteffort/pod{POD}": ("", "", "", POD),
    # k3s, ECS, LXC, Kata
    f"/k8s.io/{C}": ("", "", C, ""),
    f"/ecs/9781c248-0edd-4cdb-9a93-f63cb662a5d3/{C}": ("", "", C, ""),
    "/lxc.payload.web": ("", "", "web", ""),
    "/lxc.payload.web/system.slice/nginx.service": ("nginx.service", "system.slice", "web", ""),
    "/lxc.monitor.web": ("", "", "", ""),
    f"/kata_overhead/{C}": ("", "", C, ""),
    # things that only look like it
    f"/docker/{C[:-1]}": ("", "", "", ""),
    f"/docker/{C}0": ("", "", "", ""),
    f"/docker/{C.upper()}": ("", "", "", ""),
    f"/system.slice/podman-{POD}.service": (f"podman-{POD}.service", "system.slice", "", ""),
    "/system.slice/notaservice": ("", "system.slice", "", ""),
    "/kubepods/burstable/podinfo": ("", "", "", ""),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_path_says_unit_slice_container_and_pod(path: str) -> None:
    """Each part by itself; what a path does not say is empty."""
    assert (unit_of(path), slice_of(path), container_of(path), pod_of(path)) == PATHS[path]


MOUNTS = {
    "": "",
    "24 30 0:22 / /proc rw,nosuid - proc proc rw": "",
    "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate": "/sys/fs/cgroup",
    # hybrid: the old controllers around it
    "31 24 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
    "32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n"
    "33 31 0:29 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,name=systemd\n"
    "36 31 0:32 / /sys/fs/cgroup/memory rw shared:15 - cgroup cgroup rw,memory": "/sys/fs/cgroup/unified",
    # a container: no optional fields, the host's hierarchy bound beside its own part
    "1 2 0:26 /../../docker/x /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
    "3 2 0:26 / /host/sys/fs/cgroup ro - cgroup2 cgroup rw": "/host/sys/fs/cgroup",
    "35 24 0:30 / /mnt/my\\040groups\\134x rw - cgroup2 cgroup2 rw": "/mnt/my groups\\x",
    "35 24 0:30 / /sys/fs/cgroup rw - cgroup2": "",
    "garbage\n\n- cgroup2 x": "",
}


@pytest.mark.parametrize("mountinfo", MOUNTS)
def test_cgroup2_mount_is_found(mountinfo: str) -> None:
    """In every layout there is, and in none where there is none."""
    assert cgroup2_mount(mountinfo) == MOUNTS[mountinfo]
