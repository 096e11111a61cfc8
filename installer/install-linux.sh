#!/usr/bin/env bash
# Everything for a user who has only GIMP 3: environment, command, plug-in, and the worker's
# systemd unit where the user's systemd runs. Nothing is written outside the home folder.
#
#   installer/install-linux.sh                      install, or bring up to date
#   installer/install-linux.sh --torch cpu          options of `bootstrap.py install`
#   installer/install-linux.sh --uninstall          remove it all; the downloaded models stay
#   installer/install-linux.sh --uninstall --purge  the models as well
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=installer/common.sh
. "$here/common.sh"

units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
names=(face-restore-worker.service face-restore-worker.path)

explain_python() {
  say "Python 3.11 or newer is needed and was not found. Install it and run this again:"
  if command -v apt-get >/dev/null; then
    say "  sudo apt install python3 python3-venv    (Debian 12, Ubuntu 24.04 or newer)"
  elif command -v dnf >/dev/null; then
    say "  sudo dnf install python3.12"
  elif command -v zypper >/dev/null; then
    say "  sudo zypper install python312"
  elif command -v pacman >/dev/null; then
    say "  sudo pacman -S python"
  else
    say "  python3 from your distribution, or from python.org"
  fi
}

# The folder of the connection file, as face_restore_shared/paths.py has it.
state_dir() {
  if [ -n "${FACE_RESTORE_HOME:-}" ]; then
    printf '%s/state' "$FACE_RESTORE_HOME"
  else
    printf '%s/gimp-face-restore' "${XDG_STATE_HOME:-$HOME/.local/state}"
  fi
}

has_user_systemd() {
  command -v systemctl >/dev/null && systemctl --user show-environment >/dev/null 2>&1
}

install_units() {
  if ! has_user_systemd; then
    say "no systemd for this user: the plug-in and the command start the worker themselves"
    return
  fi
  mkdir -p "$units" "$(state_dir)"
  local name
  for name in "${names[@]}"; do
    sed -e "s|%h/.local/state/gimp-face-restore|$(state_dir)|" \
      -e "s|%h/.local/bin/face-restore|$launcher|" "$here/$name" >"$units/$name"
  done
  systemctl --user daemon-reload
  systemctl --user enable --now face-restore-worker.path
  say "the worker starts on demand: touch $(state_dir)/start-request"
}

remove_units() {
  local name
  for name in "${names[@]}"; do
    [ -e "$units/$name" ] || continue
    if has_user_systemd; then
      systemctl --user disable --now "$name" || true
    fi
    rm -f "$units/$name"
    say "removed $units/$name"
  done
  if has_user_systemd; then
    systemctl --user daemon-reload
  fi
  rm -f "$(state_dir)/start-request"
}

if ! find_python; then
  explain_python
  exit 2
fi
if [ "${1:-}" = --uninstall ]; then
  shift
  remove_units
  uninstall_all "$@"
else
  install_all "$@"
  install_units
  exit "$status"
fi
