"""A bundle's app as a systemd service: a unit that may do little, and the script that installs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from apps.runtime.start import REFUSED
from targets.carried import App

PLACE = "/opt/mst-edge"


@dataclass(frozen=True)
class Needs:
    """What the inference itself takes on a device, beside what the app does.

    Attributes:
        memory_mb: limit for the process and all it starts.
        devices: as systemd's ``DeviceAllow`` names them.
        groups: who may open them.
    """

    memory_mb: int = 512
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


def unit_name(bundle: str) -> str:
    """Name of a bundle's unit, without suffix."""
    return "mst-edge-" + (re.sub(r"[^a-z0-9]+", "-", bundle.lower()).strip("-")[:60] or "bundle")


def guide(bundle: str, app: App) -> str:
    """Of the app and its service, for the bundle's page (Markdown): lines of the block with commands."""
    lines = [
        f"    python app.py {app.example:14}   # the app {app.name.replace('_', '-')}; --help says what else it takes"
    ]
    if app.service is not None:
        lines.append(f"    sudo sh service/install.sh     # the same as the systemd service {unit_name(bundle)}")
    return "\n".join(lines)


def service_files(bundle: str, app: App, needs: Needs) -> Mapping[str, str]:
    """By path in the bundle: units and script. Empty for an app that answers once and ends."""
    if app.service is None:
        return {}
    name = unit_name(bundle)
    files = {f"service/{name}.service": _unit(name, app, needs), "service/install.sh": _INSTALL % {"name": name}}
    if app.reads_lines:
        files[f"service/{name}.socket"] = _FIFO % {"name": name}
    return files


def _unit(name: str, app: App, needs: Needs) -> str:
    devices = sorted({*app.devices, *needs.devices})
    groups = sorted({*app.groups, *needs.groups})
    access = ["PrivateDevices=yes"]
    if devices:
        access = ["DevicePolicy=closed", *(f"DeviceAllow={device} rw" for device in devices)]
        access.append(f"SupplementaryGroups={' '.join(groups)}")
    return _SERVICE % {
        "name": name,
        "app": app.name.replace("_", "-"),
        "place": f"{PLACE}/{name}",
        "arguments": app.service,
        "memory": needs.memory_mb,
        "refused": REFUSED,
        "access": "\n".join(access),
        "unit": f"Requires={name}.socket\nAfter={name}.socket\n" if app.reads_lines else "",
        "input": "StandardInput=socket\nStandardOutput=journal\nStandardError=journal\n" if app.reads_lines else "",
    }


# Left out on purpose: MemoryDenyWriteExecute (inference runtimes write the code that they execute), ProcSubset=pid
# (they ask /proc/cpuinfo which instructions there are).
_SERVICE = """\
# Change nothing here: `systemctl edit %(name)s` keeps what you add. APP_ARGUMENTS are those of app.py.
[Unit]
Description=mst-edge app %(app)s, %(name)s
Documentation=file:%(place)s/README.md
StartLimitIntervalSec=300
StartLimitBurst=5
%(unit)s
[Service]
Type=exec
Environment="APP_ARGUMENTS=%(arguments)s"
# It proves the build first; with exit code %(refused)d it refuses to serve, and starting again would not help.
ExecStart=/usr/bin/python3 -B %(place)s/app.py $APP_ARGUMENTS
RestartPreventExitStatus=%(refused)d
Restart=on-failure
RestartSec=2
WorkingDirectory=%(place)s
StateDirectory=%(name)s
Environment=PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1
%(input)s
# A user that exists while it runs.
DynamicUser=yes
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
%(access)s
MemoryMax=%(memory)dM
MemorySwapMax=0
TasksMax=64
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateNetwork=yes
IPAddressDeny=any
RestrictAddressFamilies=AF_UNIX
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""
_FIFO = """\
# What is written to the pipe is the app's standard input: echo "a line" > /run/%(name)s
[Unit]
Description=Input of %(name)s

[Socket]
ListenFIFO=/run/%(name)s
SocketMode=0600
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""
_INSTALL = """\
#!/bin/sh
# Makes this bundle a service that starts with the system: sudo sh service/install.sh, away with it by --remove.
# PYTHON names another interpreter than /usr/bin/python3, one outside /home. With DESTDIR it writes there and starts
# nothing.
set -eu
name=%(name)s
root="${DESTDIR:-}"
python="${PYTHON:-/usr/bin/python3}"
bundle="$(cd "$(dirname "$0")/.." && pwd)"
place="$root/opt/mst-edge/$name"
units="$root/etc/systemd/system"
fail() { echo "error: $1" >&2; exit 2; }
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "writes to $units: sudo sh $0"
case "$#:${1:-}" in
0:) ;;
1:--remove)
  [ -n "$root" ] || systemctl disable --now "$name.service" || true
  [ -n "$root" ] || [ ! -e "$units/$name.socket" ] || systemctl disable --now "$name.socket" || true
  rm -rf "$place" "$units/$name.service" "$units/$name.socket"
  [ -n "$root" ] || systemctl daemon-reload
  echo "removed $name"
  exit 0 ;;
*) fail "usage: sh $0 [--remove]" ;;
esac
case "$python" in /*) ;; *) fail "PYTHON must be a whole path, received $python" ;; esac
"$python" -B "$bundle/run.py" --self-test || fail "not installed: this device does not compute what it should"
if [ "$bundle" != "$place" ]; then
  mkdir -p "$(dirname "$place")" "$units"
  rm -rf "$place.new"
  cp -R "$bundle" "$place.new"
  chmod -R u=rwX,go=rX "$place.new"
  [ "$(id -u)" != 0 ] || chown -R 0:0 "$place.new"
  rm -rf "$place"
  mv "$place.new" "$place"
fi
for unit in "$place/service/$name".*; do
  sed "s|^ExecStart=/usr/bin/python3 |ExecStart=$python |" "$unit" > "$units/$(basename "$unit")"
  chmod 644 "$units/$(basename "$unit")"
done
if [ -z "$root" ]; then
  systemctl daemon-reload
  [ ! -e "$units/$name.socket" ] || systemctl enable --now "$name.socket"
  systemctl enable "$name.service"
  systemctl restart "$name.service"
fi
echo "installed $place; journalctl -fu $name shows its answers"
"""
