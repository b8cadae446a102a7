"""Serve weights as the Hugging Face hub does, as far as its client asks.

    python tests/hub_server.py FOLDER FILE

FOLDER/OWNER/REPOSITORY holds the files; into FILE comes the address once it answers. Large files
are redirected, as the hub does with LFS. Tests say in `moods` how a repository misbehaves.
"""

import hashlib
import json
import re
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + 34 * "0"  # of every repository; branches: main and side/branch
LARGE = 2000  # bytes from which a file is in LFS


class Mood(NamedTuple):
    """How a repository behaves."""

    licence: str | list[str] | None = "apache-2.0"
    gated: int = 0  # status with which its files are refused
    # The first answer ends at its half ("cut"), stands still ("stall"), or goes on byte by byte
    # ("trickle").
    breaks: str = ""
    is_damaged: bool = False  # a byte arrives wrong
    status: int = 0  # with which everything is refused


class HubServer(ThreadingHTTPServer):
    """The server of a folder, in a thread."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.moods: dict[str, Mood] = {}
        self.asked: list[str] = []  # methods and paths
        self.broken: set[str] = set()  # files whose first answer broke off
        self.stalled, self.go_on = threading.Event(), threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repository: str, files: dict[str, bytes], **mood: object) -> str:
        """Add a repository; return its address."""
        behaves = Mood(**mood)
        for name, content in {"README.md": _card(behaves.licence), **files}.items():
            path = self.folder / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.moods[repository] = behaves
        return f"hf:{repository}"


def _card(licence: str | list[str] | None) -> bytes:
    """Return a repository's page, which states its licence in front."""
    front = f"---\nlicense: {json.dumps(licence)}\n---\n" if licence else ""
    return f"{front}# Weights\n".encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def answer(self, status: int, content: bytes = b"", **headers: object) -> None:
        self.send_response(status)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": len(content), **names}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        start = {"api": 2, "cdn": 1}.get(parts[0], 0)
        repository, rest = "/".join(parts[start : start + 2]), parts[start + 2 :]
        mood, folder = self.server.moods.get(repository, Mood()), self.server.folder / repository
        if mood.status:
            self.answer(mood.status)
        elif not folder.is_dir():
            self.answer(401, X_Error_Code="RepoNotFound")
        elif len(rest) > 1 and rest[1] not in ("main", "side/branch", COMMIT):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif parts[0] == "api":
            self.list_files(repository, folder)
        elif mood.gated:
            self.answer(mood.gated, X_Error_Code="GatedRepo")
        else:
            self.send_file(folder / "/".join(rest[2:]), path, mood, parts[0] == "cdn")

    do_HEAD = do_GET

    def list_files(self, repository: str, folder: Path) -> None:
        siblings = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = path.read_bytes()
            sibling = {"rfilename": path.relative_to(folder).as_posix(), "size": len(content)}
            if len(content) >= LARGE:
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        listing = {"id": repository, "sha": COMMIT, "siblings": siblings}
        self.answer(200, json.dumps(listing).encode(), Content_Type="application/json")

    def send_file(self, path: Path, url: str, mood: Mood, is_cdn: bool) -> None:
        if not path.is_file():
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if len(content) >= LARGE and not is_cdn:
            linked = {"X_Linked_Etag": f'"{sha256}"', "X_Linked_Size": len(content)}
            where = f"http://localhost:{self.server.server_port}/cdn{url}"  # on another host
            self.answer(302, X_Repo_Commit=COMMIT, Location=where, **linked)
            return
        facts = {"X_Repo_Commit": COMMIT, "ETag": f'"{sha256[:40]}"'}
        if mood.is_damaged and is_cdn:
            content = content[:-1] + bytes([content[-1] ^ 1])
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            facts["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            status, content = 206, content[start:]
        if is_cdn and mood.breaks and self.command == "GET" and url not in self.server.broken:
            self.server.broken.add(url)
            half = content[: len(content) // 2]
            self.answer(status, half, **{**facts, "Content_Length": len(content)})
            self.wfile.flush()
            if mood.breaks == "stall":
                self.server.stalled.set()
                self.server.go_on.wait()
            elif mood.breaks == "trickle":
                self.trickle(content[len(half) :])
            self.close_connection = True
            return
        self.answer(status, content, **facts)

    def trickle(self, content: bytes) -> None:
        """Send byte by byte, until nobody listens any more."""
        with suppress(OSError):
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.server.go_on.wait(0.01)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(HubServer(Path(sys.argv[1])).url, encoding="utf-8")
    threading.Event().wait()
