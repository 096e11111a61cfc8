#!/usr/bin/env bash
# UNTESTED: never run on a Mac. Everything for a user who has only GIMP 3: Python through
# Homebrew where Homebrew is there, environment, command and plug-in.
#
#   installer/install-macos.sh                      install, or bring up to date
#   installer/install-macos.sh --uninstall          remove it all; the downloaded models stay
#   installer/install-macos.sh --uninstall --purge  the models as well
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=installer/common.sh
. "$here/common.sh"

if ! find_python; then
  if ! command -v brew >/dev/null; then
    say "Python 3.11 or newer is needed (the system's own is older)."
    say "Install it from python.org/downloads/macos, then run this again."
    exit 2
  fi
  say "installing Python 3.13 with Homebrew"
  brew install python@3.13
  find_python || { say "Homebrew's Python was not found"; exit 2; }
fi
if [ "${1:-}" = --uninstall ]; then
  shift
  uninstall_all "$@"
else
  install_all "$@"
  exit "$status"
fi
