"""A small Hugging Face Hub in memory, for unmodified clients: what they ask for when they push and pull.

It has the Hub's part of a conversation, written down from what huggingface_hub, transformers and datasets send. It shows
that our side of it works; it is no proof of the rules of huggingface.co itself.

Large files come from a second address, as they do from the real Hub's content delivery network, and a token that is sent
there is an error.

    with HubServer(users={"hf_alice": User("alice", organisations=("org",))}) as hub:
        hub.url  # for HF_ENDPOINT
"""

import base64
import fnmatch
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_FILES = ("*.safetensors", "*.pte", "*.bpte", "*.parquet", "*.png", "*.jpg")
KINDS = {"models": "", "datasets": "datasets/"}  # of repositories, and what their addresses begin with
DATE = "2026-01-01T00:00:00.000Z"


class HubError(Exception):
    """An answer other than success: its status, and the code by which clients know what is wrong."""

    def __init__(self, status: int, code: str = "", message: str = "", body: dict | None = None, commit: str = ""):
        self.status, self.body = status, body or {"error": message or code}
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}


@dataclass(frozen=True)
class User:
    name: str
    organisations: tuple[str, ...] = ()

    def may_write(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.organisations)


@dataclass(frozen=True)
class StoredFile:
    """oid: of the git object, which for a large file is a pointer. sha256: of a large file's content."""

    oid: str
    size: int
    sha256: str = ""

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass
class Fault:
    """What goes wrong with the next answer whose path fits: "drop" the connection after so many bytes, "cut" or "flip"."""

    path: str
    kind: str
    after: int = 0


@dataclass
class Repository:
    """Commits, each a tree of files, and the branches and tags that name some of them."""

    repo_id: str
    private: bool = False
    gated_for: set[str] | None = None  # None: for everybody
    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, StoredFile], title: str) -> str:
        sha = hashlib.sha1(f"{self.repo_id} {len(self.commits)} {title}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.titles.append(title)
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha


class HubServer:
    """The Hub and its store of large files, each at an address of its own, in threads of this process."""

    def __init__(self, users: dict[str, User]):
        self.users, self.repositories, self.contents = users, {}, {}
        self.requests: list[str] = []  # "GET /path", in order, with the range where a part was asked for
        self.leaked_tokens = 0
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (HubHandler, StoreHandler)]
        for server in self._servers:
            server.hub, server.daemon_threads = self, True
            threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url, self.store_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        return self

    def __exit__(self, *raised) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def create(self, kind: str, repo_id: str, private: bool = False) -> Repository:
        repository = self.repositories[kind, repo_id] = Repository(repo_id, private)
        rules = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE_FILES)
        repository.commit("main", {".gitattributes": self.store(rules.encode())}, "initial commit")
        return repository

    def add(self, kind: str, repo_id: str, files: dict[str, bytes], title: str = "more files") -> str:
        """Commit files to main from this side."""
        repository = self.repositories.get((kind, repo_id)) or self.create(kind, repo_id)
        tree = dict(repository.commits[repository.branches["main"]])
        for path, content in files.items():
            tree[path] = self.store_large(content) if is_large(path) else self.store(content)
        return repository.commit("main", tree, title)

    def store(self, content: bytes) -> StoredFile:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.contents[oid] = content
        return StoredFile(oid, len(content))

    def store_large(self, content: bytes) -> StoredFile:
        sha256 = hashlib.sha256(content).hexdigest()
        self.contents[sha256] = content
        return self.point_to(sha256, len(content))

    def point_to(self, sha256: str, size: int) -> StoredFile:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return StoredFile(self.store(pointer.encode()).oid, size, sha256)

    def fault_for(self, path: str) -> Fault | None:
        with self.lock:
            fault = next((fault for fault in self.faults if re.search(fault.path, path)), None)
            if fault:
                self.faults.remove(fault)
            return fault


def is_large(path: str) -> bool:
    return any(fnmatch.fnmatch(path.split("/")[-1], pattern) for pattern in LARGE_FILES)


class Handler(BaseHTTPRequestHandler):
    """What both addresses share: bodies, answers, files in parts, and faults."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def handle_request(self) -> None:
        address = urlsplit(self.path)
        self.parts, self.query = [unquote(part) for part in address.path.strip("/").split("/")], parse_qs(address.query)
        self.body = self._read_body()
        self.hub.requests.append(f"{self.command} {address.path} {self.headers.get('Range', '')}".rstrip())
        try:
            self.answer()
        except HubError as error:
            self.send_json(error.body, error.status, **error.headers)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send_json(self, content, status: int = 200, **headers: str) -> None:
        self.send_content(json.dumps(content).encode(), status, **headers)

    def send_content(self, content: bytes, status: int = 200, stop_after: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:stop_after])
            self.wfile.flush()

    def send_file(self, content: bytes, **headers: str) -> None:
        """A file or the part that `Range` asks for, with the fault that was ordered for it, if any."""
        status, fault = 200, self.hub.fault_for(self.path) if self.command == "GET" else None
        if fault and fault.kind == "flip":
            content = content[: fault.after] + bytes([content[fault.after] ^ 0x55]) + content[fault.after + 1 :]
        if fault and fault.kind == "cut":
            content = content[: fault.after]
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            status, headers["Content-Range"] = 206, f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        self.send_content(content, status, stop_after=fault.after if fault and fault.kind == "drop" else None, **headers)
        if fault and fault.kind == "drop":
            self.close_connection = True


class StoreHandler(Handler):
    """Large files by their sha256, up and down."""

    def answer(self) -> None:
        if self.headers.get("Authorization"):
            self.hub.leaked_tokens += 1
            raise HubError(400, message="the token must not be sent to the store")
        sha256 = self.parts[-1]
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != sha256:
                raise HubError(400, message="BadDigest")
            self.hub.contents[sha256] = self.body
            self.send_content(b"")
        elif sha256 in self.hub.contents:
            self.send_file(self.hub.contents[sha256], ETag=f'"{sha256}"')
        else:
            raise HubError(404)


class HubHandler(Handler):
    """The API, and files by repository, revision and path."""

    def answer(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.users:
            raise HubError(401, message="Invalid credentials in Authorization header")
        self.user = self.hub.users.get(token)
        with self.hub.lock:
            if self.parts[0] == "api":
                self.answer_api(*self.parts[1:])
            elif self.parts[-3:] == ["lfs", "objects", "batch"]:
                self.answer_batch()
            elif self.parts[0] == "lfs-verify":
                self.send_json({}, 200 if self.parts[1] in self.hub.contents else 404)
            else:
                kind = self.parts.pop(0) if self.parts[0] in KINDS else "models"
                owner, name, _, revision, *path = self.parts
                self.answer_file(self.repository(kind, f"{owner}/{name}", content=True), revision, "/".join(path))

    def repository(self, kind: str, repo_id: str, write: bool = False, content: bool = False) -> Repository:
        """The repository, if this user may see it, and do with it what they want."""
        repository = self.hub.repositories.get((kind, repo_id))
        owns = self.user is not None and self.user.may_write(repo_id)
        if repository is None or (repository.private and not owns):
            raise HubError(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if write and not owns:
            raise HubError(403 if self.user else 401, message="You don't have the rights to write to this repository")
        admitted = repository.gated_for is None or (self.user is not None and self.user.name in repository.gated_for)
        if content and not owns and not admitted:
            raise HubError(403 if self.user else 401, "GatedRepo", f"Access to {repo_id} is restricted")
        return repository

    def answer_file(self, repository: Repository, revision: str, path: str) -> None:
        sha = repository.resolve(revision)
        file = repository.commits[sha].get(path)
        if file is None:
            raise HubError(404, "EntryNotFound", "Entry not found", commit=sha)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.etag}"'}
        if not file.sha256:
            return self.send_file(self.hub.contents[file.oid], **headers)
        linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
        return self.send_content(b"", 302, **headers | linked, Location=f"{self.hub.store_url}/{file.sha256}")

    def answer_batch(self) -> None:
        """Where to put large files; nowhere, if they are there already."""
        kind = self.parts[0] if self.parts[0] in KINDS else "models"
        self.repository(kind, "/".join(self.parts[-6:-4]).removesuffix(".git"), write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.contents:
                upload, verify = f"{self.hub.store_url}/{wanted['oid']}", f"{self.hub.url}/lfs-verify/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(answer)
        self.send_json({"transfer": "basic", "objects": objects})

    def answer_api(self, topic: str, *rest: str) -> None:
        if topic == "validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if topic in KINDS and len(rest) >= 2:
            owner, name, *action = rest
            return self.answer_repository(topic, f"{owner}/{name}", *action)
        if topic in ("repos", "whoami-v2") and self.user is None:
            raise HubError(401, message="Invalid username or password.")
        if topic == "whoami-v2":
            organisations = [{"name": name} for name in self.user.organisations]
            return self.send_json({"type": "user", "name": self.user.name, "orgs": organisations})
        if topic == "repos" and rest == ("create",):
            return self.answer_create(json.loads(self.body))
        raise HubError(404, message=f"no such address: {self.command} {self.path}")

    def answer_create(self, wanted: dict) -> None:
        kind, repo_id = f"{wanted.get('type', 'model')}s", f"{wanted.get('organization') or self.user.name}/{wanted['name']}"
        if not self.user.may_write(repo_id):
            raise HubError(403, message="You don't have the rights to create a repository under this namespace")
        answer = {"url": f"{self.hub.url}/{KINDS[kind]}{repo_id}", "name": repo_id}
        if (kind, repo_id) in self.hub.repositories:
            raise HubError(409, body=answer | {"error": "You already created this repository"})
        self.hub.create(kind, repo_id, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self.send_json(answer)

    def answer_repository(self, kind: str, repo_id: str, action: str = "revision", revision: str = "main", *path: str) -> None:
        writes, reads = action in ("preupload", "commit", "branch", "tag"), action in ("tree", "paths-info")
        repository = self.repository(kind, repo_id, write=writes, content=reads)
        if action in ("branch", "tag"):
            return self.answer_name(repository, action, revision)
        sha = repository.resolve(revision)
        files = repository.commits[sha]
        if action == "revision":
            return self.send_json(self.described(repository, sha))
        if action == "tree":
            return self.send_json(listed(files, "/".join(path), self.query.get("recursive", [""])[0].lower() == "true"))
        if action == "paths-info":
            wanted = parse_qs(self.body.decode())["paths"]
            return self.send_json([entry for entry in listed(files, "", True) if entry["path"] in wanted])
        if action == "preupload":
            return self.send_json({"files": [upload_mode(file, files) for file in json.loads(self.body)["files"]]})
        if action == "commit":
            return self.answer_commit(kind, repository, revision, sha)
        raise HubError(404, message=f"no such address: {self.command} {self.path}")

    def described(self, repository: Repository, sha: str) -> dict:
        return {
            "id": repository.repo_id,
            "sha": sha,
            "lastModified": DATE,
            "createdAt": DATE,
            "private": repository.private,
            "gated": "manual" if repository.gated_for is not None else False,
            "disabled": False,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(repository.commits[sha])],
        }

    def answer_name(self, repository: Repository, action: str, revision: str) -> None:
        """A new branch `revision`, or a new tag on it."""
        wanted = json.loads(self.body or b"{}")
        names, name = (repository.branches, revision) if action == "branch" else (repository.tags, wanted["tag"])
        start = wanted.get("startingPoint") or "main" if action == "branch" else revision
        if name in names:
            raise HubError(409, message="Reference already exists")
        names[name] = repository.resolve(start)
        self.send_json({})

    def answer_commit(self, kind: str, repository: Repository, branch: str, parent: str) -> None:
        files, header = dict(repository.commits[parent]), {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                files[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.point_to(value["oid"], len(self.hub.contents[value["oid"]]))
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        if header.get("parentCommit", parent) != parent:
            raise HubError(412, message="A commit has happened since. Please refresh and try again.")
        sha = repository.commit(branch, files, header.get("summary", ""))
        self.send_json({"commitUrl": f"{self.hub.url}/{KINDS[kind]}{repository.repo_id}/commit/{sha}", "commitOid": sha})


def upload_mode(file: dict, files: dict[str, StoredFile]) -> dict:
    """How a client shall send a file, and what is there now, so that it leaves out what has not changed."""
    there = files.get(file["path"])
    mode = "lfs" if is_large(file["path"]) else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": there.etag if there else None}


def listed(files: dict[str, StoredFile], folder: str, recursive: bool) -> list[dict]:
    """Entries of a tree: files and the folders that they are in."""
    entries = {}
    for path, file in sorted(files.items()):
        if folder and not path.startswith(f"{folder}/"):
            continue
        inside = path.removeprefix(f"{folder}/" if folder else "").split("/")
        parents = ["/".join(filter(None, [folder, *inside[:depth]])) for depth in range(1, len(inside))]
        for parent in parents if recursive else parents[:1]:
            entries[parent] = {
                "type": "directory",
                "path": parent,
                "oid": hashlib.sha1(parent.encode()).hexdigest(),
                "size": 0,
            }
        if recursive or not parents:
            entries[path] = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
            if file.sha256:
                entries[path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
    if folder and not entries:
        raise HubError(404, "EntryNotFound", f"{folder} does not exist")
    return list(entries.values())
