"""Files: reading, writing and changing what is not the session's own."""

from __future__ import annotations

from tests.sandbox.hostile.snippet import Snippet

UNREAD = "no byte of a host file is read"
UNCHANGED = "no host file is made, changed or removed"
APART = "no other session's file is seen or changed"
UNLOCKED = "no lock on a file is set or seen: another session could read it"
NO_NEIGHBOUR = "needs a second session"

FILES = [
    Snippet("read_file", UNREAD, "if open(SECRET).read(): harm()"),
    Snippet("read_accounts", UNREAD, "if open('/etc/passwd').read(): harm()"),
    Snippet("read_raw_call", UNREAD, "call('openat', -100, SECRET.encode(), 0, 0); harm()"),
    Snippet("read_above", UNREAD, "if open('../' * 30 + SECRET[1:]).read(): harm()"),
    Snippet("read_proc_root", UNREAD, "if open('/proc/self/root' + SECRET).read(): harm()"),
    Snippet("read_symlink", UNREAD, "os.symlink(SECRET, 'l')\nif open('l').read(): harm()"),
    Snippet("read_hard_link", UNREAD, "os.link(SECRET, 'h')\nif open('h').read(): harm()"),
    Snippet("list_folder", "no host folder is listed", "if os.listdir(HOST): harm()"),
    Snippet("list_devices", "no device is in sight", "if os.listdir('/dev'): harm()"),
    Snippet(
        "watch_folder",
        "no host file is watched",
        "call('inotify_init1', 0); harm()",
    ),
    Snippet("write_file", UNCHANGED, "open(VICTIM, 'w').write('x'); harm()"),
    Snippet("append_file", UNCHANGED, "open(VICTIM, 'a').write('x'); harm()"),
    Snippet("make_file", UNCHANGED, "open(HOST + '/new', 'w').write('x'); harm()"),
    Snippet("make_folder", UNCHANGED, "os.mkdir(HOST + '/folder'); harm()"),
    Snippet("remove_file", UNCHANGED, "os.remove(VICTIM); harm()"),
    Snippet("take_file", UNCHANGED, "os.rename(VICTIM, 'taken'); harm()"),
    Snippet("give_file", UNCHANGED, "open('f', 'w'); os.rename('f', HOST + '/given'); harm()"),
    Snippet("truncate_file", UNCHANGED, "os.truncate(VICTIM, 0); harm()"),
    Snippet("chmod_file", UNCHANGED, "os.chmod(VICTIM, 0o777); harm()"),
    Snippet("touch_file", UNCHANGED, "os.utime(VICTIM, (0, 0)); harm()"),
    Snippet("own_file", UNCHANGED, "os.chown(VICTIM, os.getuid(), os.getgid()); harm()"),
    Snippet("set_id_file", "no program with rights is made", "open('s', 'w')\n"
            "os.chmod('s', 0o6755); harm()"),
    Snippet("make_pipe", "nothing is made to make the host wait", "os.mkfifo('p'); harm()"),
    Snippet("make_device", "no device is made", "import stat\n"
            "os.mknod('d', 0o600 | stat.S_IFCHR, os.makedev(1, 3)); harm()",
            None, "needs a right that a user may not have"),
    Snippet(
        "zip_slip",
        UNCHANGED,
        "import io, os.path, zipfile\n"
        "data = io.BytesIO()\n"
        "name = os.path.relpath(HOST + '/slipped', os.getcwd())\n"
        "with zipfile.ZipFile(data, 'w') as archive: archive.writestr(name, 'x')\n"
        "with zipfile.ZipFile(data) as archive:\n"
        "    for entry in archive.namelist():\n"
        "        open(entry, 'wb').write(archive.read(entry))\n"
        "harm()",
    ),
    Snippet(
        "tar_slip",
        UNCHANGED,
        "import io, tarfile\n"
        "data = io.BytesIO()\n"
        "with tarfile.open(fileobj=data, mode='w') as archive:\n"
        "    link = tarfile.TarInfo('out'); link.type = tarfile.SYMTYPE; link.linkname = HOST\n"
        "    archive.addfile(link)\n"
        "    file = tarfile.TarInfo('out/tarred'); file.size = 1\n"
        "    archive.addfile(file, io.BytesIO(b'x'))\n"
        "data.seek(0)\n"
        "with tarfile.open(fileobj=data) as archive: archive.extractall(\n"
        "    **({'filter': 'fully_trusted'} if hasattr(tarfile, 'data_filter') else {}))\n"
        "open(HOST + '/tarred').read(); harm()",
    ),
    Snippet(
        "poison_package",
        "no package that other sessions import is changed",
        "import json\nopen(json.__file__, 'a'); harm()",
        None, "would open the real package for writing",
    ),
    Snippet(
        "poison_bytecode",
        "no package that other sessions import is changed",
        "import json\nopen(os.path.dirname(json.__file__) + '/evil.py', 'w'); harm()",
        None, "would write into the real package",
    ),
    Snippet(
        "host_packages",
        "the host's installed packages are not importable",
        "import pytest; harm()",
        None, "depends on what the host has",
    ),
    Snippet("environment", "no environment variable of the host is seen",
            "if 'AXPO_TEST_SECRET' in os.environ: harm()"),
    Snippet("process_environment", "no process of the host is read",
            "if b'AXPO_TEST_SECRET' in open(f'/proc/{PID}/environ', 'rb').read(): harm()"),
    Snippet("process_command", "no process of the host is read",
            "if open(f'/proc/{PID}/cmdline').read(): harm()"),
    Snippet("process_memory", "no process of the host is read",
            "open(f'/proc/{PID}/mem', 'rb'); harm()"),
    Snippet("own_memory", "no write around the rights of memory",
            "open('/proc/self/mem', 'r+b'); harm()"),
    Snippet("inherited_folders", "no open descriptor leads outside",
            "for fd in range(3, 64):\n"
            "    try: os.listdir(fd)\n"
            "    except OSError: continue\n"
            "    harm()"),
    Snippet("lock_own_file", UNLOCKED, "import fcntl\n"
            "fcntl.lockf(open('f', 'w'), fcntl.LOCK_EX); harm()"),
    Snippet("lock_shared_file", UNLOCKED, "import fcntl\n"
            "fcntl.lockf(open(os.__file__), fcntl.LOCK_SH, 42); harm()"),
    Snippet("lock_device", UNLOCKED, "import fcntl\n"
            "fcntl.lockf(open('/dev/null', 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB); harm()"),
    Snippet("lock_open_description", UNLOCKED, "import fcntl, struct\n"
            "wanted = struct.pack('hhqqi4x', fcntl.F_RDLCK, 0, 0, 42, 0)\n"
            "fcntl.fcntl(open(os.__file__), 37, wanted); harm()"),
    Snippet("ask_for_locks", UNLOCKED, "import fcntl, struct\n"
            "wanted = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)\n"
            "fcntl.fcntl(open(os.__file__), fcntl.F_GETLK, wanted); harm()"),
    Snippet("lock_raw_call", UNLOCKED, "wanted = (ctypes.c_int16 * 16)()\n"
            "call('fcntl', os.open(os.__file__, 0), 6, ctypes.byref(wanted)); harm()"),
    Snippet("list_sessions", APART, "if os.listdir(os.path.dirname(NEIGHBOUR)): harm()",
            None, NO_NEIGHBOUR),
    Snippet("read_neighbour", APART, "if open(NEIGHBOUR + '/note').read(): harm()",
            None, NO_NEIGHBOUR),
    Snippet("write_neighbour", APART, "open(NEIGHBOUR + '/note', 'w').write('x'); harm()",
            None, NO_NEIGHBOUR),
    Snippet("plant_in_neighbour", APART, "open(NEIGHBOUR + '/json.py', 'w').write('x'); harm()",
            None, NO_NEIGHBOUR),
]  # fmt: skip
