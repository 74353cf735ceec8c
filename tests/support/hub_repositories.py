"""What a Hub in memory knows: users, repositories with their commits, large files, and faults that are to happen."""

import fnmatch
import hashlib
import re
import threading
from dataclasses import dataclass, field

LARGE_FILES = ("*.safetensors", "*.pte", "*.bpte", "*.parquet", "*.png", "*.jpg")
KINDS = {"models": "", "datasets": "datasets/"}  # of repositories, and what their addresses begin with


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


class Hub:
    """Everything that is on the Hub, and what its clients asked for.

    requests: "GET /path" of each, in order, with the range where a part was asked for.
    leaked_tokens: number of tokens that were sent to the store of large files.
    faults: what is to go wrong, once each.
    url, store_url: the addresses of the Hub and of its store of large files, while it is served.
    """

    def __init__(self, users: dict[str, User]):
        self.users = users
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.contents: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.leaked_tokens = 0
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.url = self.store_url = ""

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
