# shellcheck shell=bash
# What install-linux.sh and install-macos.sh share; sourced by them. Expects $here.

say() { printf '[face-restore] %s\n' "$*"; }

# Sets $python to the command of a Python that is new enough; fails when there is none.
find_python() {
  for python in python3 python3.13 python3.12 python3.11 python3.14 \
    /opt/homebrew/bin/python3 /usr/local/bin/python3; do
    if command -v "$python" >/dev/null 2>&1 &&
      "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      return 0
    fi
  done
  python=
  return 1
}

# Where the user's own command is put by bootstrap.py.
launcher=$HOME/.local/bin/face-restore

# Sets $status to that of `face-restore gimp install`: what follows is done all the same.
install_all() {
  say "Python: $("$python" -c 'import platform; print(platform.python_version())')"
  # Status 3: something could be better or is missing; doctor has said what.
  "$python" "$here/bootstrap.py" install "$@" || [ $? -eq 3 ]
  status=0
  "$launcher" gimp install || status=$?
}

uninstall_all() {
  if [ -x "$launcher" ]; then
    "$launcher" gimp uninstall || say "the plug-in could not be removed everywhere (see above)"
  else
    say "no command $launcher: the plug-in, if there is one, stays in GIMP's profile"
  fi
  "$python" "$here/bootstrap.py" uninstall "$@"
}
