"""Services of a compose file: each key, both forms, and every error with its line and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.compose.project import project, refused, service, service_refused
from vmrun.compose import unsupported
from vmrun.compose.model import Condition, Dependency, ProjectVolume, Service, ServiceLimits
from vmrun.compose.service import KEYS
from vmrun.compose.toplevel import TOP_LEVEL
from vmrun.image.reference import parse_reference
from vmrun.model.network import Allow, Publish
from vmrun.model.service import HealthCheck, RestartPolicy, RestartWhen
from vmrun.model.storage import HostDirectory, NamedVolume, Secret
from vmrun.model.workload import ProfileName, TmpfsMount

LOCAL = "127.0.0.1"
TOP = """volumes:
  data:
  shared: {name: common}
  old: {external: true}
secrets:
  key: {file: ./key.pem}
  token: {environment: TOKEN}
"""


def shell(text: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", text)


# --- what is read ------------------------------------------------------------------------------


def test_a_service_that_says_nothing_has_the_defaults() -> None:
    assert service() == Service("web", parse_reference("registry.example.com/web:1"))


ACCEPTED: list[tuple[str, str, object]] = [
    ("command: sleep 10", "command", ("sleep", "10")),
    ("command: sh -c 'echo \"a b\"; exit'", "command", ("sh", "-c", 'echo "a b"; exit')),
    ("command: a # comment", "command", ("a",)),
    ("command: 'a #b'", "command", ("a", "#b")),
    ("command: [sleep, 10, '']", "command", ("sleep", "10", "")),
    ("command: true", "command", ("true",)),
    ("command:", "command", None),
    ("entrypoint: /bin/app --x", "entrypoint", ("/bin/app", "--x")),
    ("entrypoint: [/bin/app, a b]", "entrypoint", ("/bin/app", "a b")),
    ("environment: {A: 1, B: yes, C: 0400, D: '', E: 1.10}", "environment",
     (("A", "1"), ("B", "yes"), ("C", "0400"), ("D", ""), ("E", "1.10"))),
    ("environment: [A=1, B=, C=x=y, D]", "environment", (("A", "1"), ("B", ""), ("C", "x=y"))),
    ("environment: {x-A: 1}", "environment", (("x-A", "1"),)),
    ("labels: {a.b: 1, c: }", "labels", (("a.b", "1"), ("c", ""))),
    ("labels: [a=1, b]", "labels", (("a", "1"), ("b", ""))),
    ("ports: [80]", "ports", (Publish(LOCAL, 0, 80),)),
    ("ports: ['8080:80']", "ports", (Publish(LOCAL, 8080, 80),)),
    ("ports: [22:22]", "ports", (Publish(LOCAL, 22, 22),)),
    ("ports: ['8080:80/tcp']", "ports", (Publish(LOCAL, 8080, 80),)),
    ("ports: ['0.0.0.0:8080:80']", "ports", (Publish("0.0.0.0", 8080, 80),)),
    ("ports: ['127.0.0.2::80']", "ports", (Publish("127.0.0.2", 0, 80),)),
    ("ports: ['::1:6000:6001']", "ports", (Publish("::1", 6000, 6001),)),
    ("ports: ['[::1]:6000:6001']", "ports", (Publish("::1", 6000, 6001),)),
    ("ports: ['[0:0::1]:6000:6001']", "ports", (Publish("::1", 6000, 6001),)),
    ("ports: [3000-3001]", "ports", (Publish(LOCAL, 0, 3000), Publish(LOCAL, 0, 3001))),
    ("ports: ['90-91:80-81']", "ports", (Publish(LOCAL, 90, 80), Publish(LOCAL, 91, 81))),
    ("ports: [{target: 80}]", "ports", (Publish(LOCAL, 0, 80),)),
    ("ports: [{target: 80, published: 8080, host_ip: 10.0.0.1, protocol: tcp, mode: host}]",
     "ports", (Publish("10.0.0.1", 8080, 80),)),
    ("ports: [{target: '80', published: '8080', name: web, app_protocol: http}]", "ports",
     (Publish(LOCAL, 8080, 80),)),
    ("expose: [3000, '8000-8001', 53/tcp]", "expose", (3000, 8000, 8001, 53)),
    ("x-vmrun: {allow: ['api.example.com:443', '*.example.org:443,8443']}", "allow",
     (Allow("api.example.com", (443,)), Allow("*.example.org", (443, 8443)))),
    ("volumes: [data:/data]", "volumes", (NamedVolume("shop_data", "/data"),)),
    ("volumes: [shared:/a:rw, old:/b:ro]", "volumes",
     (NamedVolume("common", "/a"), NamedVolume("old", "/b", read_only=True))),
    ("volumes: ['data:/data:rw,exec']", "volumes",
     (NamedVolume("shop_data", "/data", executable=True),)),
    ("volumes: [{type: volume, source: data, target: /d/, read_only: true, volume: {}}]",
     "volumes", (NamedVolume("shop_data", "/d", read_only=True),)),
    ("volumes: [./conf:/conf:ro]", "directories",
     (HostDirectory(Path("/srv/shop/conf"), "/conf"),)),
    ("volumes: ['.:/app:ro,exec']", "directories",
     (HostDirectory(Path("/srv/shop"), "/app", executable=True),)),
    ("volumes: [/srv/shop/a/../b:/b:rw]", "directories",
     (HostDirectory(Path("/srv/shop/a/../b"), "/b", read_only=False),)),
    ("volumes: [{type: bind, source: x, target: /x, read_only: false}]", "directories",
     (HostDirectory(Path("/srv/shop/x"), "/x", read_only=False),)),
    ("volumes: [{type: bind, source: x, target: /x, read_only: true, "
     "bind: {create_host_path: false}}]", "directories",
     (HostDirectory(Path("/srv/shop/x"), "/x"),)),
    ("volumes: [{type: tmpfs, target: /t, tmpfs: {size: 16m, mode: 01777}}]", "tmpfs",
     (TmpfsMount("/t", 16 << 20),)),
    ("tmpfs: /run", "tmpfs", (TmpfsMount("/run"),)),
    ("tmpfs: ['/a:size=1m,exec', '/b:rw,noexec,nosuid,nodev,mode=1777']", "tmpfs",
     (TmpfsMount("/a", 1 << 20, executable=True), TmpfsMount("/b"))),
    ("shm_size: 128m", "tmpfs", (TmpfsMount("/dev/shm", 128 << 20),)),
    ("secrets: [key, token]", "secrets",
     (Secret("key", source=Path("/srv/shop/key.pem")), Secret("token", variable="TOKEN"))),
    ("secrets: [{source: key, target: tls.key}]", "secrets",
     (Secret("tls.key", source=Path("/srv/shop/key.pem")),)),
    ("mem_limit: 64m", "limits", ServiceLimits(memory=64 << 20)),
    ("mem_limit: 67108864", "limits", ServiceLimits(memory=64 << 20)),
    ("mem_limit: 1gb", "limits", ServiceLimits(memory=1 << 30)),
    ("cpus: 1.5", "limits", ServiceLimits(cpus=1.5)),
    ("pids_limit: 64", "limits", ServiceLimits(pids=64)),
    ("ulimits: {nofile: 2048}", "limits", ServiceLimits(files=2048)),
    ("ulimits: {nofile: {soft: 9, hard: 9}}", "limits", ServiceLimits(files=9)),
    ("deploy: {mode: replicated, replicas: 1, resources: {limits: {cpus: '0.50', memory: 50M, "
     "pids: 5}}}", "limits", ServiceLimits(memory=50 << 20, cpus=0.5, pids=5)),
    ("healthcheck: {test: curl -f x || exit 1}", "healthcheck",
     HealthCheck(shell("curl -f x || exit 1"))),
    ("healthcheck: {test: [CMD, curl, -f, ''], interval: 1m30s, timeout: 10s, retries: 5, "
     "start_period: 1h5m30s20ms}", "healthcheck",
     HealthCheck(("curl", "-f", ""), 90.0, 10.0, 5, 3930.02)),
    ("healthcheck: {test: [CMD-SHELL, a && b], start_period: 0s}", "healthcheck",
     HealthCheck(shell("a && b"))),
    ("healthcheck: {test: [NONE]}", "healthcheck", None),
    ("healthcheck: {disable: true}", "healthcheck", None),
    ("healthcheck: {disable: no, test: a}", "healthcheck", HealthCheck(shell("a"))),
    ("restart: no", "restart", RestartPolicy()),
    ('restart: "no"', "restart", RestartPolicy()),
    ("restart: always", "restart", RestartPolicy(RestartWhen.ALWAYS)),
    ("restart: unless-stopped", "restart", RestartPolicy(RestartWhen.UNLESS_STOPPED)),
    ("restart: on-failure", "restart", RestartPolicy(RestartWhen.ON_FAILURE)),
    ("restart: on-failure:3", "restart", RestartPolicy(RestartWhen.ON_FAILURE, 3)),
    ("stop_signal: SIGINT", "stop_signal", "SIGINT"),
    ("stop_signal: usr1", "stop_signal", "SIGUSR1"),
    ("stop_signal: 15", "stop_signal", "SIGTERM"),
    ("stop_signal: SIGRTMIN+3", "stop_signal", "SIGRTMIN+3"),
    ("stop_grace_period: 1m30s", "stop_timeout", 90.0),
    ("stop_grace_period: 0s", "stop_timeout", 0.0),
    ("user: 1000", "user", "1000"),
    ("user: 1000:1000", "user", "1000:1000"),
    ("user: app", "user", "app"),
    ("working_dir: /srv//app/", "working_dir", "/srv/app"),
    ("working_dir: /", "working_dir", "/"),
    ("hostname: web-1", "hostname", "web-1"),
    ("read_only: true", "read_only", True),
    ("read_only: 'false'", "read_only", False),
    ("cap_add: [NET_BIND_SERVICE, cap_chown, chown]", "cap_add",
     ("CAP_NET_BIND_SERVICE", "CAP_CHOWN")),
    ("cap_drop: [ALL]", "cap_add", ()),
    ("cap_drop: [net_raw]", "cap_add", ()),
    ("security_opt: ['no-new-privileges:true']", "name", "web"),
    ("tty: false", "name", "web"),
    ("stdin_open: false", "name", "web"),
    ("platform: linux/amd64", "name", "web"),
    ("x-anything: {at: [all]}", "name", "web"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "field", "value"), ACCEPTED)
def test_keys(line: str, field: str, value: object) -> None:
    assert getattr(service(line, top=f"name: shop\n{TOP}"), field) == value


@pytest.mark.parametrize(("image", "expected"), [
    ("registry.example.com:5000/a/b", "registry.example.com:5000/a/b:latest"),
    ("oci:build/app:demo", "oci:/srv/shop/build/app:demo"),
    ("oci:../app", "oci:/srv/app"),
    ("oci-archive:/srv/app.tar", "oci-archive:/srv/app.tar"),
    ("docker-daemon:app:1", "docker-daemon:app:1"),
])  # fmt: skip
def test_images(image: str, expected: str) -> None:
    found = project(f"services: {{web: {{image: '{image}'}}}}").services[0]
    assert str(found.image) == expected


def test_dependencies_in_both_forms() -> None:
    text = """
services:
  a: {image: r.example.com/a, depends_on: [b]}
  b:
    image: r.example.com/a
    depends_on:
      c: {condition: service_healthy, restart: false, required: true}
      d: {condition: service_completed_successfully}
  c: {image: r.example.com/a, healthcheck: {test: a}}
  d: {image: r.example.com/a, restart: on-failure}
"""
    a, b, *_ = project(text).services
    assert a.depends_on == (Dependency("b", Condition.STARTED),)
    assert b.depends_on == (
        Dependency("c", Condition.HEALTHY),
        Dependency("d", Condition.COMPLETED),
    )


def test_files_of_variables_come_before_the_environment() -> None:
    found = service(
        "env_file: [a.env, {path: b.env, format: raw}, {path: none.env, required: false}]",
        "environment: [C=own, HOST, UNSET]",
        files={
            "/srv/shop/a.env": b"A=1\nB=1\nHOST=file\nUNSET=file\n",
            "/srv/shop/b.env": b"B='$2'\nC=2\n",
        },
        environment={"HOST": "host"},
    )
    assert dict(found.environment) == {"A": "1", "B": "'$2'", "C": "own", "HOST": "host"}


def test_one_file_of_variables() -> None:
    found = service("env_file: ./a.env", files={"/srv/shop/a.env": b"A=1\n"})
    assert found.environment == (("A", "1"),)


def test_anchors_and_merges_as_people_use_them() -> None:
    text = """
x-common: &common
  restart: always
  environment: &env {A: 1, B: 2}
services:
  one: {<<: *common, image: r.example.com/a}
  two:
    <<: *common
    image: r.example.com/a
    environment: {<<: *env, B: 3}
    restart: "no"
"""
    one, two = project(text).services
    assert (one.environment, one.restart.when) == ((("A", "1"), ("B", "2")), "always")
    assert (sorted(two.environment), two.restart.when) == ([("A", "1"), ("B", "3")], "no")


# --- the project -------------------------------------------------------------------------------

ONE = "services: {web: {image: r.example.com/a}}\n"


@pytest.mark.parametrize(("text", "options", "expected"), [
    (ONE, {}, "shop"),
    (f"name: other\n{ONE}", {}, "other"),
    (f"name: $N\n{ONE}", {"environment": {"N": "of-variable"}}, "of-variable"),
    (f"name: other\n{ONE}", {"environment": {"COMPOSE_PROJECT_NAME": "env"}}, "env"),
    (ONE, {"files": {"/srv/shop/.env": b"COMPOSE_PROJECT_NAME=file\n"}}, "file"),
    (f"name: other\n{ONE}", {"environment": {"COMPOSE_PROJECT_NAME": "env"}, "name": "cli"}, "cli"),
])  # fmt: skip
def test_the_name(text: str, options: dict[str, object], expected: str) -> None:
    assert project(text, **options).name == expected  # type: ignore[arg-type]


def test_the_name_is_a_variable() -> None:
    found = project(
        "name: shop2\nservices: {web: {image: r.example.com/a, hostname: '$COMPOSE_PROJECT_NAME'}}"
    )
    assert found.services[0].hostname == "shop2"


def test_the_project_s_own_keys() -> None:
    found = project(f"version: '3.8'\nx-vmrun: {{tenant: acme, profile: healthcare}}\n{ONE}{TOP}")
    assert (found.tenant, found.profile) == ("acme", ProfileName.HEALTHCARE)
    assert found.folder == Path("/srv/shop")
    assert found.volumes == (
        ProjectVolume("data", "shop_data"),
        ProjectVolume("shared", "common"),
        ProjectVolume("old", "old", external=True),
    )
    assert [secret.name for secret in found.secrets] == ["key", "token"]
    assert found.notes == ()


def test_paths_outside_the_folder_are_noted() -> None:
    found = project(
        """services:
  web:
    image: r.example.com/a
    env_file: [{path: /etc/web.env, required: false}]
    volumes:
      - ../other:/other:ro
      - ./link:/link:ro
      - ./inside:/inside:ro
secrets:
  key: {file: /etc/key}
""",
        links={"/srv/shop/link": "/etc"},
    )
    assert [note.replace("/srv/shop/", "") for note in found.notes] == [
        "compose.yaml:10: secrets.key.file: /etc/key is outside the project's folder",
        "compose.yaml:6: services.web.volumes[0]: /srv/other is outside the project's folder",
        "compose.yaml:7: services.web.volumes[1]: link is outside the project's folder",
        "compose.yaml:4: services.web.env_file[0].path: /etc/web.env is outside the project's "
        "folder",
    ]


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "message"), [
    ("prots: ['80']", "prots: unknown key 'prots'; did you mean 'ports'?"),
    ("x-vmrn: 1", ""),
    ("x-vmrun: {alow: []}", "x-vmrun.alow: unknown key 'alow'; did you mean 'allow'?"),
    ("x-vmrun: {x-a: 1}", "x-vmrun.x-a: unknown key 'x-a'"),
    ("x-vmrun2: {}", "x-vmrun2: unknown key 'x-vmrun2'; did you mean 'x-vmrun'?"),
    ("x-vmrun: {allow: ['10.0.0.0/8']}", "x-vmrun.allow[0]: "),
    ("x-vmrun: {allow: ['http://a.example.com']}", "x-vmrun.allow[0]: "),
    ("image2: a", "image2: unknown key 'image2'; did you mean 'image'?"),
    ("command: []", "command: empty"),
    ("command: ''", "command: empty"),
    ("command: {a: b}", "command: must be a text"),
    ("command: [[a]]", "command[0]: must be a text"),
    ("command: [a, ~]", "command[1]: must be a text"),
    ("command: \"echo 'a\"", "command: cannot be split into words"),
    ("entrypoint: []", "entrypoint: empty, and no command"),
    ("environment: text", "environment: must be a list"),
    ("environment: [A=1, A=2]", "environment[1]: 'A' stands there twice"),
    ("environment: {A: [1]}", "environment.A: must be a text"),
    ("environment: [=x]", "environment[0]: not the name of a variable: ''"),
    ("environment: {'A=B': x}", "environment.A=B: not the name of a variable: 'A=B'"),
    ("env_file: a.env", "env_file: no such file: a.env"),
    ("env_file: [{required: false}]", "env_file[0]: has no 'path'"),
    ("env_file: [{path: a, format: xml}]", "env_file[0].format: 'xml' must be one of raw"),
    ("env_file: ~/a.env", "env_file: '~/a.env' begins with ~"),
    ("labels: ['']", "labels[0]: must not be empty"),
    ("labels: {vmrun.compose.project: other}",
     "labels.vmrun.compose.project: 'vmrun.compose.project' is a label of vmrun's own"),
    ("labels: ['=x']", "labels[0]: not a label"),
    ("ports: 80", "ports: must be a list"),
    ("ports: ['6060:6060/udp']", "ports[0]: UDP is not supported"),
    ("ports: [{target: 53, protocol: udp}]", "ports[0].protocol: UDP is not supported"),
    ("ports: ['80/sctp']", "ports[0]: protocol 'sctp' is not supported"),
    ("ports: ['0:80']", "ports[0]: not a port: '0'"),
    ("ports: ['65536:80']", "ports[0]: not a port: '65536'"),
    ("ports: ['a:80']", "ports[0]: not a port: 'a'"),
    ("ports: [':80']", "ports[0]: not a port: ':80'"),
    ("ports: ['80:']", "ports[0]: not a port: ''"),
    ("ports: ['127.0.0.1:80']", "ports[0]: not a port: '127.0.0.1'"),
    ("ports: ['localhost:80:80']", "ports[0]: not an IP address: 'localhost'"),
    ("ports: ['127.1:80:80']", "ports[0]: not an IP address: '127.1'"),
    ("ports: ['fe80::1%eth0:80:80']", "ports[0]: an address with a zone"),
    ("ports: ['8000-9000:80']", "ports[0]: more than 256 ports: '8000-9000'"),
    ("ports: ['80-82:80-81']", "ports[0]: 3 ports of the host for 2 of the container"),
    ("ports: ['81-80:81-80']", "ports[0]: a range that ends before it begins: '81-80'"),
    ("ports: ['٣:80']", "ports[0]: not a port: '٣'"),
    ("ports: [{published: 80}]", "ports[0]: has no 'target'"),
    ("ports: [{target: 80, publish: 80}]", "ports[0].publish: unknown key 'publish'"),
    ("ports: [{target: 0}]", "ports[0].target: '0' must be a whole number from 1 to 65535"),
    ("ports: [{target: 0120}]", "ports[0].target: '0120' must be a decimal number, without"),
    ("ports: [{target: 80, mode: nat}]", "ports[0].mode: 'nat' must be one of ingress, host"),
    ("ports: ['80:80', '80:81']", "ports: port 80 of 127.0.0.1 stands there twice"),
    ("ports: ['80:80', '0.0.0.0:80:81']", "ports: port 80 of 0.0.0.0 stands there twice"),
    ("expose: [a]", "expose[0]: not a port: 'a'"),
    ("expose: [53/udp]", "expose[0]: UDP is not supported"),
    ("volumes: [/data]", "volumes[0]: an anonymous volume: '/data'"),
    ("volumes: [data]", "volumes[0]: an anonymous volume: 'data'"),
    ("volumes: [nodata:/data]", "volumes[0]: there is no volume 'nodata'"),
    ("volumes: [./a:/a]", "volumes[0]: does not say whether it may be written"),
    ("volumes: [./a:/a:exec]", "volumes[0]: does not say whether it may be written"),
    ("volumes: [./a:/a:z]", "volumes[0]: access mode 'z' is not supported"),
    ("volumes: ['./a:/a:ro,rw']", "volumes[0]: access mode 'ro,rw' is not supported"),
    ("volumes: ['./a:/a:ro:x']", "volumes[0]: not SOURCE:TARGET[:ro|rw]"),
    ("volumes: ['~/a:/a:ro']", "volumes[0]: '~/a' begins with ~"),
    ("volumes: ['./a:a:ro']", "volumes[0]: not a path in the container: 'a'"),
    ("volumes: ['./a:/a/../b:ro']", "volumes[0]: not a path in the container: '/a/../b'"),
    ("volumes: ['./a:/:ro']", "volumes[0]: nothing can be mounted at '/'"),
    ("volumes: ['./a:/proc/x:ro']", "volumes[0]: nothing can be mounted at '/proc/x'"),
    ("volumes: ['data:/a', './b:/a/:ro']",
     "volumes[1]: services.web.volumes[0] is mounted at /a as well"),
    ("volumes: [{type: npipe, target: /a}]", "volumes[0].type: 'npipe' must be one of bind"),
    ("volumes: [{type: bind, target: /a, source: a}]", "volumes[0]: does not say whether"),
    ("volumes: [{type: bind, target: /a, read_only: true}]", "volumes[0]: has no 'source'"),
    ("volumes: [{target: /a}]", "volumes[0]: has no 'type'"),
    ("volumes: [{type: bind, source: a, target: /a, read_only: true, bind: {propagation: "
     "shared}}]", "volumes[0].bind.propagation: not supported: the directory is copied"),
    ("volumes: [{type: bind, source: a, target: /a, read_only: true, bind: {create_host_path: "
     "true}}]", "volumes[0].bind.create_host_path: not supported: vmrun makes no directories"),
    ("volumes: [{type: volume, source: data, target: /a, bind: {}}]",
     "volumes[0].bind: options for another type than volume"),
    ("volumes: [{type: volume, source: data, target: /a, volume: {subpath: x}}]",
     "volumes[0].volume.subpath: not supported"),
    ("volumes: [{type: tmpfs, target: /a, source: x}]", "volumes[0].source: a tmpfs has none"),
    ("volumes: [{type: tmpfs, target: /a, tmpfs: {mode: 0755}}]",
     "volumes[0].tmpfs.mode: mode '0755' is not supported"),
    ("volumes: [{type: tmpfs, target: /a, tmpfs: {mode: 1777}}]",
     "volumes[0].tmpfs.mode: mode 'decimal 1777' is not supported"),
    ("tmpfs: ['/a:uid=1']", "tmpfs[0]: uid is not supported"),
    ("tmpfs: ['/a:size=0']", "tmpfs[0]: size=0 is no limit"),
    ("tmpfs: ['/a:size=x']", "tmpfs[0]: size: not a size: 'x'"),
    ("tmpfs: ['/a:huge']", "tmpfs[0]: unknown option 'huge'"),
    ("tmpfs: a", "tmpfs: not a path in the container: 'a'"),
    ("shm_size: 0", "shm_size: '0' must be a size above 0"),
    ("secrets: [other]", "secrets[0]: there is no secret 'other'"),
    ("secrets: [key, {source: token, target: key}]", "secrets[1]: /run/secrets/key stands there"),
    ("secrets: [{source: key, target: /etc/key}]", "secrets[0].target: not a file name"),
    ("secrets: [{source: key, target: ..}]", "secrets[0].target: not a file name: '..'"),
    ("secrets: [{source: key, mode: 0440}]", "secrets[0].mode: not supported: a secret belongs"),
    ("secrets: [{target: key}]", "secrets[0]: has no 'source'"),
    ("secrets: key", "secrets: must be a list"),
    ("mem_limit: lots", "mem_limit: 'lots' must be a size above 0"),
    ("mem_limit: -1", "mem_limit: '-1' must be a size above 0"),
    ("cpus: 0", "cpus: '0' must be a number above 0"),
    ("cpus: .inf", "cpus: '.inf' must be a number above 0"),
    ("cpus: nan", "cpus: 'nan' must be a number above 0"),
    ("pids_limit: -1", "pids_limit: '-1' must be a whole number from 1"),
    ("ulimits: {nproc: 5}", "ulimits.nproc: not supported"),
    ("ulimits: {nofile: {soft: 1, hard: 2}}", "ulimits.nofile: soft and hard differ"),
    ("deploy: {replicas: 2}", "deploy.replicas: not supported: a service is one container"),
    ("deploy: {restart_policy: {}}", "deploy.restart_policy: not supported: use 'restart'"),
    ("deploy: {resources: {reservations: {memory: 1m}}}",
     "deploy.resources.reservations: not supported"),
    ("deploy: {resources: {limits: {memory: 1m, gpus: 1}}}",
     "deploy.resources.limits.gpus: unknown key 'gpus'"),
    ("healthcheck: {interval: 1s}", "healthcheck: has no 'test'"),
    ("healthcheck: {test: []}", "healthcheck.test: not a check"),
    ("healthcheck: {test: [curl, x]}", "healthcheck.test: not a check"),
    ("healthcheck: {test: [CMD]}", "healthcheck.test: not a check"),
    ("healthcheck: {test: [CMD-SHELL, a, b]}", "healthcheck.test: not a check"),
    ("healthcheck: {test: [NONE], retries: 3}", "healthcheck.test: a check that is disabled"),
    ("healthcheck: {disable: true, test: a}", "healthcheck.disable: a check that is disabled"),
    ("healthcheck: {test: a, interval: 5}", "healthcheck.interval: '5' must be a duration"),
    ("healthcheck: {test: a, interval: 0s}", "healthcheck.interval: '0s' must be a duration above"),
    ("healthcheck: {test: a, interval: 5d}", "healthcheck.interval: '5d' must be a duration"),
    ("healthcheck: {test: a, timeout: -5s}", "healthcheck.timeout: '-5s' must be a duration"),
    ("healthcheck: {test: a, retries: 0}", "healthcheck.retries: '0' must be a whole number"),
    ("healthcheck: {test: a, start_interval: 1s}", "healthcheck.start_interval: not supported"),
    ("restart: never", "restart: 'never' must be one of"),
    ("restart: false", "restart: 'false' must be one of"),
    ("restart: on-failure:0", "restart: on-failure:0 restarts without end"),
    ("restart: on-failure:x", "restart: 'on-failure:x' must be one of"),
    ("stop_signal: SIGNONE", "stop_signal: 'SIGNONE' must be a signal"),
    ("stop_signal: 99", "stop_signal: '99' must be a signal"),
    ("stop_grace_period: soon", "stop_grace_period: 'soon' must be a duration"),
    ("user: a b", "user: 'a b' must be NAME"),
    ("user: ''", "user: must not be empty"),
    ("working_dir: app", "working_dir: not a path in the container: 'app'"),
    ("hostname: a.b", "hostname: 'a.b' must be a host name"),
    ("read_only: maybe", "read_only: 'maybe' must be true or false"),
    ("read_only: 1", "read_only: '1' must be true or false"),
    ("cap_add: [ALL]", "cap_add[0]: ALL is not supported"),
    ("cap_add: [SYS_ROOT]", "cap_add[0]: 'SYS_ROOT' must be a capability"),
    ("cap_drop: [SYS_ROOT]", "cap_drop[0]: 'SYS_ROOT' must be a capability"),
    ("security_opt: ['seccomp:unconfined']", "security_opt[0]: 'seccomp:unconfined' is not"),
    ("security_opt: ['no-new-privileges:false']", "security_opt[0]: 'no-new-privileges:false'"),
    ("tty: true", "tty: not supported: a service has no terminal"),
    ("stdin_open: true", "stdin_open: not supported: a service has no terminal"),
    ("platform: linux/arm64", "platform: 'linux/arm64' must be linux/amd64"),
    ("depends_on: {web: {}}", "depends_on.web: has no 'condition'"),
    ("depends_on: {web: {condition: ready}}", "depends_on.web.condition: 'ready' must be one of"),
    ("depends_on: {web: {condition: service_started, required: false}}",
     "depends_on.web.required: not supported"),
    ("depends_on: {web: {condition: service_started, restart: true}}",
     "depends_on.web.restart: not supported"),
    ("build: .", "build: not supported: build the image first: vmrun runs verified images only"),
    ("privileged: true", "privileged: not supported: a container never gets all privileges"),
    ("devices: [/dev/kvm]", "devices: not supported: no device of the host reaches a guest"),
    ("profiles: [debug]", "profiles: not supported: write a file for each"),
    ("\"a\\nb\": 1", "'a\\nb': unknown key 'a\\nb'"),
])  # fmt: skip
def test_keys_that_are_refused(line: str, message: str) -> None:
    if not message:
        assert service(line).name == "web"
        return
    error = service_refused(line, top=TOP)
    assert error.message.startswith(f"compose.yaml:4: services.web.{message}")


def test_the_line_is_that_of_the_entry() -> None:
    error = service_refused("ports:", "  - '80'", "  # more", "  - target: 81", "    mode: x")
    assert error.message.startswith("compose.yaml:8: services.web.ports[1].mode: 'x'")


def test_two_places_that_say_different_things() -> None:
    lines = ("mem_limit: 1m", "deploy: {resources: {limits: {memory: 2m}}}")
    assert service_refused(*lines).message == (
        "compose.yaml:4: services.web.mem_limit: services.web.deploy.resources.limits.memory says "
        "something else"
    )
    same = ("mem_limit: 2048k", "deploy: {resources: {limits: {memory: 2m}}}")
    assert service(*same).limits.memory == 2 << 20


def test_an_entrypoint_that_is_set_aside_needs_a_command() -> None:
    found = service("entrypoint: []", "command: [a, b]")
    assert (found.entrypoint, found.command) == ((), ("a", "b"))
    found = service("entrypoint: [a]", "command: []")
    assert (found.entrypoint, found.command) == (("a",), ())


@pytest.mark.parametrize(("text", "message"), [
    ("a: 1\n", "compose.yaml:1: a: unknown key 'a'"),
    ("name: a\n", "compose.yaml: has no 'services'"),
    ("services:\n", "compose.yaml:1: services: must be a mapping"),
    ("services: {}\n", "compose.yaml:1: services: there is none"),
    ("services: [a]\n", "compose.yaml:1: services: must be a mapping"),
    ("service: {}\n", "compose.yaml:1: service: unknown key 'service'; did you mean 'services'?"),
    ("services:\n  web:\n", "compose.yaml:2: services.web: must be a mapping"),
    ("services:\n  web: {}\n", "compose.yaml:2: services.web: has no 'image'"),
    ("services:\n  a.b: {}\n", "compose.yaml:2: services.a.b: cannot name a service: 'a.b'"),
    ("services:\n  localhost: {}\n", "compose.yaml:2: services.localhost: cannot name a service"),
    ("services:\n  web: {image: busybox}\n",
     "compose.yaml:2: services.web.image: 'busybox' names no registry"),
    ("services:\n  web: {image: 'dir:x'}\n",
     "compose.yaml:2: services.web.image: transport 'dir' is not supported"),
    (f"name: A\n{ONE}", "compose.yaml:1: name: cannot name a project: 'A'"),
    (f"name: ''\n{ONE}", "compose.yaml:1: name: must not be empty"),
    (f"include: [a]\n{ONE}", "compose.yaml:1: include: not supported: vmrun reads one file"),
    (f"configs: {{}}\n{ONE}", "compose.yaml:1: configs: not supported"),
    (f"x-vmrun: {{tenat: a}}\n{ONE}", "compose.yaml:1: x-vmrun.tenat: unknown key 'tenat'; did"),
    (f"x-vmrun: {{tenant: a/b}}\n{ONE}", "compose.yaml:1: x-vmrun.tenant: not a name: 'a/b'"),
    (f"x-vmrun: {{profile: none}}\n{ONE}", "compose.yaml:1: x-vmrun.profile: 'none' must be one"),
    (f"volumes: {{a: {{driver: nfs}}}}\n{ONE}", "compose.yaml:1: volumes.a.driver: not supported"),
    (f"volumes: {{a: {{size: 1g}}}}\n{ONE}", "compose.yaml:1: volumes.a.size: unknown key 'size'"),
    (f"volumes: {{a: {{name: a/b}}}}\n{ONE}", "compose.yaml:1: volumes.a: not a name: 'a/b'"),
    (f"secrets: {{a: {{}}}}\n{ONE}", "compose.yaml:1: secrets.a: names no source, or two"),
    (f"secrets: {{a: {{file: x, environment: Y}}}}\n{ONE}", "compose.yaml:1: secrets.a: names no"),
    (f"secrets: {{a: {{environment: A-B}}}}\n{ONE}",
     "compose.yaml:1: secrets.a.environment: not the name of a variable: 'A-B'"),
    (f"secrets: {{a: {{external: true}}}}\n{ONE}", "compose.yaml:1: secrets.a.external: not"),
    (f"secrets: {{a/b: {{file: x}}}}\n{ONE}", "compose.yaml:1: secrets.a/b: not a name: 'a/b'"),
    (f"name: {'n' * 40}\nservices: {{{'s' * 23}: {{image: r.example.com/a}}}}\n",
     "compose.yaml:2: services.sssssssssssssssssssssss: nnnn"),
    ("services: {" + ", ".join(f"s{n}: {{image: r.example.com/a}}" for n in range(65)) + "}",
     "compose.yaml:1: services: has 65 entries, the limit is 64"),
])  # fmt: skip
def test_projects_that_are_refused(text: str, message: str) -> None:
    assert refused(text).message.startswith(message)


@pytest.mark.parametrize(("first", "second", "message"), [
    ("depends_on: {b: {condition: service_healthy}}", "",
     "compose.yaml:4: services.a.depends_on: 'b' has no healthcheck, so it never is healthy"),
    ("depends_on: {b: {condition: service_completed_successfully}}", "restart: always",
     "compose.yaml:4: services.a.depends_on: 'b' is restarted whenever it ends"),
    ("volumes: [./d:/a:rw]", "volumes: [./d/e:/b:rw]",
     "compose.yaml:7: services.b.volumes: d/e is copied back from 'a' as well"),
    ("volumes: [./d/e:/a:rw]", "volumes: [./d:/b:rw]",
     "compose.yaml:7: services.b.volumes: d is copied back from 'a' as well"),
    ("ports: ['80:80']", "ports: ['0.0.0.0:80:80']",
     "compose.yaml:7: services.b.ports: port 80 of 0.0.0.0 is published by 'a' as well"),
])  # fmt: skip
def test_services_that_do_not_fit_together(first: str, second: str, message: str) -> None:
    text = (
        f"services:\n  a:\n    image: r.example.com/a\n    {first}\n"
        f"  b:\n    image: r.example.com/a\n    {second}\n"
    )
    assert refused(text).message.startswith(message)


def test_what_is_added_and_dropped() -> None:
    error = service_refused("cap_add: [chown]", "cap_drop: [ALL, CAP_CHOWN]")
    assert error.message == (
        "compose.yaml:5: services.web.cap_drop[1]: CAP_CHOWN is in cap_add as well"
    )


def test_a_directory_that_one_service_writes_and_another_reads_is_fine() -> None:
    text = (
        "services:\n  a: {image: r.example.com/a, volumes: ['./d:/d:rw']}\n"
        "  b: {image: r.example.com/a, volumes: ['./d:/d:ro']}\n"
    )
    assert len(project(text).services) == 2


def test_the_same_port_of_two_addresses_is_fine() -> None:
    found = service("ports: ['127.0.0.1:80:80', '127.0.0.2:80:80']")
    assert len(found.ports) == 2


def test_a_value_that_may_be_a_password_is_in_no_message() -> None:
    for line in ('environment: {A: "hunter2\0"}', "environment: [A=hunter2$NONE]"):
        error = service_refused(line)
        assert "hunter2" not in f"{error.message} {error.hint}"


# --- every key of the format is known ------------------------------------------------------------

SPECIFICATION = frozenset(
    """
annotations attach blkio_config build cap_add cap_drop cgroup cgroup_parent command configs
container_name cpu_count cpu_percent cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares
cpus cpuset credential_spec depends_on deploy develop device_cgroup_rules devices dns dns_opt
dns_search domainname entrypoint env_file environment expose extends external_links extra_hosts
gpus group_add healthcheck hostname image init ipc isolation label_file labels links logging
mac_address mem_limit mem_reservation mem_swappiness memswap_limit models network_mode networks
oom_kill_disable oom_score_adj pid pids_limit platform ports post_start pre_start pre_stop
privileged profiles provider pull_policy read_only restart runtime scale secrets security_opt
shm_size stdin_open stop_grace_period stop_signal storage_opt sysctls tmpfs tty ulimits
use_api_socket user userns_mode uts volumes volumes_from working_dir
""".split()  # noqa: SIM905 - a table of words
)
"""Keys of a service in the specification's services chapter."""


def test_every_key_of_the_specification_is_supported_or_refused_with_a_reason() -> None:
    assert KEYS | set(unsupported.SERVICE) >= SPECIFICATION
    assert not KEYS & set(unsupported.SERVICE)
    assert {"configs", "include", "models"} == set(unsupported.TOP)
    assert not set(TOP_LEVEL) & set(unsupported.TOP)


@pytest.mark.parametrize("key", sorted(unsupported.SERVICE))
def test_keys_without_support_say_why(key: str) -> None:
    error = service_refused(f"{key}: {json.dumps('x')}")
    assert error.message == (
        f"compose.yaml:4: services.web.{key}: not supported: {unsupported.SERVICE[key]}"
    )


# --- and documented ------------------------------------------------------------------------------


def documented() -> dict[str, str]:
    """Keys in the first cells of the tables about services, with what is said of each."""
    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "compose.md"
    text = page.read_text().partition("\n## Services\n")[2].partition("\nOf the parts of")[0]
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            keys, said = line.strip("| ").split(" | ", 1)
            for key in keys.split(", "):
                assert key.strip("`") not in found, key
                found[key.strip("`")] = said.replace("`", "")
    return found


def test_every_key_is_documented() -> None:
    said = documented()
    assert set(said) == KEYS | set(unsupported.SERVICE)
    for key, why in unsupported.SERVICE.items():
        assert said[key] == why.replace("`", "")
