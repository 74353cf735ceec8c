"""The Hub's API, and its files by repository, revision and path."""

import base64
import hashlib
import json
from urllib.parse import parse_qs

from hub_answers import Handler
from hub_repositories import KINDS, HubError, Repository, StoredFile, is_large

DATE = "2026-01-01T00:00:00.000Z"


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
