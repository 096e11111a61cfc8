"""`face-restore gimp`: into every profile, tried in GIMP, and away without a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_gimp
import pytest
from cli_process import ROOT, Home
from face_restore_shared.version import __version__
from face_restore_worker.gimp import check, install, profiles, programs
from face_restore_worker.gimp.profiles import Profile
from face_restore_worker.gimp.surroundings import GimpError, Surroundings

posix = pytest.mark.skipif(os.name != "posix", reason="the stand-in for GIMP is a script with #!")


class User:
    """A user with a home folder of their own and nothing in the PATH but what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "user"
        self.bin = folder / "bin"
        self.gimp = self.folder / ".config" / "GIMP"
        for path in (self.folder, self.bin, folder / "kept"):
            path.mkdir()
        self.home = Home(folder / "kept")
        kept = {k: v for k, v in self.home.env.items() if not k.startswith(("XDG_", "GIMP"))}
        self.home.env = kept | {"HOME": str(self.folder), "PATH": str(self.bin)}

    def profile(self, series: str, root: Path | None = None) -> Path:
        """A profile as a GIMP leaves it, with another plug-in."""
        folder = (root or self.gimp) / series
        (folder / "plug-ins" / "other").mkdir(parents=True)
        (folder / "plug-ins" / "other" / "other.py").write_text("# not ours\n")
        (folder / "plug-in-settings").mkdir()
        (folder / "plug-in-settings" / "plug-in-other.last").write_text("x")
        return folder

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        done = self.home.run("gimp", *arguments)
        assert "Traceback" not in done.stderr, done.stderr
        return done


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"folder"
        for p in folder.rglob("*")
        if "__pycache__" not in p.parts
    }


@posix
def test_all_profiles_get_it_and_it_works_in_gimp(user: User) -> None:
    found = [user.profile("3.0"), user.profile("3.2")]
    found.append(user.profile("3.0", user.folder / ".var/app/org.gimp.GIMP/config/GIMP"))
    old = user.profile("2.10")
    fake_gimp.put(user.bin, "3.0.4")
    done = user.run("install")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "installed and working in GIMP 3.0.4" in done.stdout
    assert "no GIMP 3.2 was found to start" in done.stdout
    for profile in found:
        script = profile / "plug-ins" / "face_restore" / "face_restore.py"
        assert os.access(script, os.X_OK)
        assert (profile / "plug-ins" / "other" / "other.py").exists()
    assert not (old / "plug-ins" / "face_restore").exists()
    assert not list(found[0].glob("face-restore*"))

    first = files_below(found[0])
    assert user.run("install", "--no-test").returncode == 0
    assert files_below(found[0]) == first
    assert user.run("check").returncode == 0


@posix
def test_uninstall_leaves_nothing(user: User) -> None:
    profile = user.profile("3.0")
    before = files_below(profile)
    assert user.run("install", "--no-test").returncode == 0
    (profile / "plug-ins" / ".face_restore.new-4711").mkdir()
    for name in ("plug-in-face-restore.last", "plug-in-face-restore-status.default"):
        (profile / "plug-in-settings" / name).write_text("x")
    assert user.run("check", "--no-test").returncode == 0
    done = user.run("uninstall")
    assert done.returncode == 0 and "removed" in done.stdout
    assert files_below(profile) == before
    assert user.run("check", "--no-test").returncode == 3
    assert "nothing" in user.run("uninstall").stdout


def test_an_older_one_is_replaced_whole(user: User) -> None:
    profile = user.profile("3.0")
    old = profile / "plug-ins" / "face_restore"
    (old / "face_restore_shared").mkdir(parents=True)
    (old / "face_restore.py").write_text("# of long ago\n")
    (old / "stale.py").write_text("# gone since\n")
    (old / "face_restore_shared" / "version.py").write_text('__version__ = "0.0.1"\n')
    (profile / "plug-ins" / ".face_restore.old-99").mkdir()
    checked = user.run("check", "--no-test")
    assert checked.returncode == 3 and "0.0.1" in checked.stderr
    done = user.run("install", "--no-test")
    assert done.returncode == 0 and f"{__version__} is installed, in place of 0.0.1" in done.stdout
    assert not (old / "stale.py").exists()
    assert sorted(p.name for p in old.parent.iterdir()) == ["face_restore", "other"]


@posix
def test_gimp_makes_the_profile_it_never_made(user: User) -> None:
    user.profile("2.10")
    fake_gimp.put(user.bin, "3.0.4")
    done = user.run("install")
    assert done.returncode == 0, done.stderr
    assert (user.gimp / "3.0" / "gimprc").read_text() == "# made by GIMP\n"
    assert "installed and working in GIMP 3.0.4" in done.stdout


@posix
def test_a_profile_is_made_only_where_no_settings_would_be_lost(user: User) -> None:
    fake_gimp.put(user.bin, "3.2.0", "no-profile")
    assert user.run("install", "--no-test").returncode == 0
    assert (user.gimp / "3.2" / "plug-ins" / "face_restore").is_dir()
    assert user.run("uninstall").returncode == 0
    assert not (user.gimp / "3.2").exists()
    user.profile("3.0")
    done = user.run("install", "--no-test")
    assert done.returncode == 1  # 3.0 was done
    assert "Start it once" in done.stderr
    assert not (user.gimp / "3.2").exists()


@posix
def test_gimp3_directory_is_the_only_profile(user: User) -> None:
    user.profile("3.0")
    fake_gimp.put(user.bin)
    user.home.env["GIMP3_DIRECTORY"] = "my-gimp"
    done = user.run("install")
    assert done.returncode == 0 and "installed and working" in done.stdout, done.stderr
    assert (user.folder / "my-gimp" / "plug-ins" / "face_restore").is_dir()
    assert not (user.gimp / "3.0" / "plug-ins" / "face_restore").exists()


@posix
def test_flatpak(user: User) -> None:
    fake_gimp.put_flatpak(user.bin, user.folder / "hidden", "3.0.6")
    done = user.run("install")
    assert done.returncode == 0, done.stderr
    assert "installed and working in GIMP 3.0.6 (Flatpak)" in done.stdout
    assert "face-restore worker start" in done.stdout


@posix
def test_appimage(user: User) -> None:
    fake_gimp.put(user.folder / "Downloads", "3.0.4", name="GIMP-3.0.4-x86_64.AppImage")
    done = user.run("install")
    assert done.returncode == 0, done.stderr
    assert "installed and working in GIMP 3.0.4 (AppImage)" in done.stdout


@posix
@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("hang", "did not end within 2 s"),
        ("no-python", "has no Python"),
        ("other-profile", "Does it use another profile?"),
        ("blind", "does not know plug-in-face-restore"),
        ("broken-worker", "The token does not fit."),
    ],
)
def test_what_goes_wrong_in_gimp_is_said(user: User, behaviour: str, words: str) -> None:
    profile = user.profile("3.0")
    program = fake_gimp.put(user.bin, "3.0.4", behaviour)
    seconds = 2 if behaviour == "hang" else 180
    done = user.run("install", "--gimp", program, "--timeout", seconds)
    assert done.returncode == 3
    assert words in done.stderr
    assert "working in" not in done.stdout
    assert not list(profile.glob("face-restore*"))


@posix
def test_only_gimp_2_only_snap_or_nothing(user: User) -> None:
    done = user.run("install")
    assert done.returncode == 3 and "No GIMP 3" in done.stderr
    assert user.run("uninstall").returncode == 0
    fake_gimp.put(user.bin, "2.10.34", name="gimp")
    done = user.run("install")
    assert done.returncode == 3
    assert "2.10.34" in done.stderr and "GIMP 3 is on gimp.org" in done.stderr
    (user.folder / "snap" / "gimp").mkdir(parents=True)
    done = user.run("check")
    assert done.returncode == 3 and "Snap cannot take the plug-in" in done.stderr
    done = user.run("install", "--gimp", user.bin / "gimp")
    assert done.returncode == 3 and "needs GIMP 3" in done.stderr


def test_what_is_not_ours_is_left_alone(user: User) -> None:
    folder = user.profile("3.0") / "plug-ins" / "face_restore"
    folder.mkdir()
    (folder / "mine.py").write_text("# somebody's\n")
    for action in (("install", "--no-test"), ("uninstall",)):
        done = user.run(*action)
        assert done.returncode == 3 and "holds something else" in done.stderr
    assert (folder / "mine.py").exists()


# --- in this process: files, commands, other platforms -----------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    profile = tmp_path / "3.0"
    target = install.Target(Profile(profile, "3.0"), is_named=True)
    install.install(Surroundings.here(), target)
    assert check.find_problems(profile) == []
    return profile


def _break_command(folder: Path) -> None:
    (folder / "face_restore_paths.json").write_text(
        json.dumps({"worker_command": ["/nowhere/python", "-m", "x"]})
    )


def _fail_command(folder: Path) -> None:
    code = "import no_such_module_here"
    (folder / "face_restore_paths.json").write_text(
        json.dumps({"worker_command": [sys.executable, "-c", code]})
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "restore_faces" / "worker.py").unlink(), "missing: restore_faces/worker"),
        (lambda f: (f / "restore_faces" / "job.py").write_text("x"), "changed: restore_faces/job"),
        (lambda f: (f / "old.py").write_text("x"), "not ours: old.py"),
        (lambda f: (f / "vendor" / "msgpack" / "fallback.py").unlink(), "missing: vendor/msgpack"),
        (lambda f: (f / "face_restore_paths.json").write_text("["), "cannot be read"),
        (_break_command, "does not exist any more"),
        (_fail_command, "no_such_module_here"),
        pytest.param(lambda f: (f / "face_restore.py").chmod(0o644), "not executable", marks=posix),
    ],
)
def test_check_names_each_damage(
    installed: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(check.plugin_folder(installed))
    problems = check.find_problems(installed)
    assert len(problems) == 1 and words in problems[0], problems


@posix
def test_a_link_to_a_checkout_is_replaced_not_followed(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "face_restore.py").write_text("# being worked on\n")
    link = tmp_path / "3.0" / "plug-ins" / "face_restore"
    link.parent.mkdir(parents=True)
    link.symlink_to(checkout)
    target = install.Target(Profile(tmp_path / "3.0", "3.0"), is_named=True)
    install.install(Surroundings.here(), target)
    assert not link.is_symlink() and link.is_dir()
    assert [p.name for p in link.parent.iterdir()] == ["face_restore"]
    assert (checkout / "face_restore.py").read_text() == "# being worked on\n"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "3.0").mkdir()
    (tmp_path / "3.0" / "plug-ins").write_text("a file, which stops root as well")
    target = install.Target(Profile(tmp_path / "3.0", "3.0"), is_named=True)
    with pytest.raises(GimpError, match="cannot be changed"):
        install.install(Surroundings.here(), target)


def test_the_worker_command_carries_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """GIMP's menu entry sets no FACE_RESTORE_HOME; the command must work without it."""
    monkeypatch.setenv("FACE_RESTORE_HOME", "/some/where")
    command = check.worker_command()
    assert command[:3] == [sys.executable, "-P", "-c"]
    probe = command[3].replace("sys.exit(main())", "print(os.environ['FACE_RESTORE_HOME'])")
    assert probe != command[3]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FACE_RESTORE"))}
    done = subprocess.run(
        [*command[:3], probe], env=env, cwd="/", capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == Path("/some/where").absolute()
    assert check.state_dir() == Path("/some/where/state").absolute()


def test_profiles_of_windows_and_macos(tmp_path: Path) -> None:
    roaming, local = tmp_path / "AppData" / "Roaming", tmp_path / "AppData" / "Local"
    store = local / "Packages" / "GIMP.GIMP_x" / "LocalCache" / "Roaming" / "GIMP"
    mac = tmp_path / "Library" / "Application Support" / "GIMP"
    for root in (roaming / "GIMP", store, mac):
        for name in ("2.10", "3.0", "3.10", "3.2", "3.0-backup"):
            (root / name).mkdir(parents=True)
    env = {"APPDATA": str(roaming), "LOCALAPPDATA": str(local)}
    windows = Surroundings("win32", tmp_path, env)
    found = profiles.find_profiles(windows)
    expected = [
        root / name for root in (roaming / "GIMP", store) for name in ("3.0", "3.2", "3.10")
    ]
    assert [p.folder for p in found] == expected
    assert {p.sandbox for p in found} == {"", "Microsoft Store"}
    found = profiles.find_profiles(Surroundings("darwin", tmp_path, {}))
    assert [p.folder for p in found] == [mac / name for name in ("3.0", "3.2", "3.10")]


@posix
def test_programs_of_windows_and_macos(tmp_path: Path) -> None:
    fake_gimp.put(tmp_path / "PF" / "GIMP 3" / "bin", "3.0.4", name="gimp-console-3.0.exe")
    fake_gimp.put(tmp_path / "Applications/GIMP.app/Contents/MacOS", "3.0.6", name="gimp-console")
    windows = Surroundings("win32", tmp_path / "nobody", {"ProgramFiles": str(tmp_path / "PF")})
    assert [p.version for p in programs.find_programs(windows)] == ["3.0.4"]
    mac = Surroundings("darwin", tmp_path, {}, system_root=tmp_path / "root")
    assert [p.version for p in programs.find_programs(mac)] == ["3.0.6"]


@pytest.mark.slow
@posix
def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    import psutil

    for seconds in (0.5, 5.0, 60.0):  # a busy machine needs a while even to start it
        done = programs.run_bounded(["/bin/sh", "-c", "sleep 600 & echo $!; wait"], seconds)
        assert done.status is None
        if done.output:
            break
    child = int(done.output)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


@posix
def test_gimp_gets_no_python_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    own = str(Path(sys.prefix) / "bin")
    env = {"PATH": f"{own}:/usr/bin", "PYTHONPATH": "x", "VIRTUAL_ENV": "y", "LANG": "de_DE"}
    monkeypatch.setattr(sys, "base_prefix", "/somewhere/else")
    clean = programs.gimp_environment(env, Path("/p"))
    assert clean == {"PATH": "/usr/bin", "LANG": "de_DE", "GIMP3_DIRECTORY": "/p"}


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the first time a whole system is built
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="chroot needs root")
def test_in_the_real_gimp(tmp_path: Path) -> None:
    """Install, check, a plug-in that breaks, uninstall: in Debian's GIMP 3.0."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "installer" / "gimp_root.py"), "3.0"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    root = Path(done.stdout.splitlines()[-1])
    inside = f"/tmp/face-restore-test-{os.getpid()}"
    profile = Path(f"{root}{inside}")
    gimp = f"chroot {root} env GIMP3_DIRECTORY={inside} gimp-console-3.0"
    options = ("--profile", profile, "--gimp", gimp)
    home = Home(tmp_path)
    try:
        for action in ("install", "check"):
            done = home.run("gimp", action, *options, "--timeout", 400, timeout=600)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "installed and working in GIMP 3.0." in done.stdout
        assert not list(profile.glob("face-restore*"))
        done = home.run("gimp", "uninstall", *options)
        assert done.returncode == 0
        left = [p for p in profile.rglob("*") if "face" in p.name.lower()]
        assert left == []
    finally:
        subprocess.run(["rm", "-rf", str(profile)], check=False)
