"""A Hub on this machine: enough of its HTTP protocol for the real `huggingface_hub` client to push and to load."""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories in memory: `commits[repo_id]` is a list of (commit id, {path: bytes}), the newest last."""

    def __init__(self):
        self.commits, self.large_files, self.requests = {}, {}, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            do_POST = do_PUT = do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        path = request.path.split("?")[0]
        self.requests.append((request.command, path))
        routes = [
            ("GET", r"/api/whoami-v2", self.whoami),
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", lambda body: {"errors": [], "warnings": []}),
            ("POST", r"/api/models/([^/]+/[^/]+)/preupload/.+", self.preupload),
            ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.lfs_batch),
            ("PUT", r"/lfs/(.+)", self.lfs_put),
            ("POST", r"/api/models/([^/]+/[^/]+)/commit/.+", self.commit),
            ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+).*", self.tree),
            ("GET", r"/api/models/([^/]+/[^/]+)/revision/(.+)", self.info),
            ("GET", r"/api/models/([^/]+/[^/]+)", self.info),
            ("HEAD|GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
        ]
        for method, pattern, handle in routes:
            match = re.fullmatch(pattern, path)
            if match and request.command in method.split("|"):
                return self.reply(request, handle(*match.groups(), body=body))
        return self.reply(request, (404, b"", {}))

    def reply(self, request, answer):
        if isinstance(answer, (dict, list)):
            answer = (200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
        status, content, headers = answer
        request.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    def whoami(self, body):
        return {"type": "user", "name": "me", "orgs": []}

    def create(self, body):
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo in self.commits:
            return (409, json.dumps({"url": f"{self.url}/{repo}"}).encode(), {"Content-Type": "application/json"})
        self.commits[repo] = [(self.new_id(repo), {})]
        return {"url": f"{self.url}/{repo}", "name": repo}

    def new_id(self, repo):
        return hashlib.sha1(f"{repo} {len(self.commits.get(repo, []))} {time.time()}".encode()).hexdigest()

    def preupload(self, repo, body):
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
             "shouldIgnore": False, "oid": None}
            for file in json.loads(body)["files"]
        ]  # fmt: skip
        return {"files": modes}

    def lfs_batch(self, repo, body):
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}},
            }
            for item in json.loads(body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid, body):
        self.large_files[oid] = body
        return (200, b"", {})

    def commit(self, repo, body):
        files = dict(self.commits[repo][-1][1])
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        commit = self.new_id(repo)
        self.commits[repo].append((commit, files))
        return {"commitUrl": f"{self.url}/{repo}/commit/{commit}", "commitOid": commit, "success": True}

    def at(self, repo, revision):
        """(commit id, files) of a revision, or None."""
        found = [commit for commit in self.commits.get(repo, []) if revision in ("main", commit[0])]
        return found[-1] if found else None

    def missing(self, repo, what="RepoNotFound"):
        return (404, b"{}", {"X-Error-Code": what, "Content-Type": "application/json"})

    def info(self, repo, revision="main", body=b""):
        if not self.at(repo, revision):
            return self.missing(repo)
        commit, files = self.at(repo, revision)
        siblings = [{"rfilename": path} for path in files]
        return {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "private": False, "tags": []}

    def tree(self, repo, revision, body):
        if not self.at(repo, revision):
            return self.missing(repo)
        _, files = self.at(repo, revision)
        return [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ]

    def resolve(self, repo, revision, path, body):
        if not self.at(repo, revision):
            return self.missing(repo)
        commit, files = self.at(repo, revision)
        if path not in files:
            return (404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = files[path]
        return (200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit})
