"""What the Compose specification knows and vmrun does not do, and why."""

from __future__ import annotations

_DEVICES = "no device of the host reaches a guest"
_NAMESPACES = "a container has namespaces of its own"
_WHERE = "all services of a project are in one guest; limit them with deploy.resources.limits"
_CPU = "limit processor time with 'cpus'"
_DNS = "names are resolved on the host, for what x-vmrun.allow names only"
_MEMORY = "there is no swap; limit memory with deploy.resources.limits.memory"
_BUILD = "build the image first: vmrun runs verified images only; name it with 'image'"

SERVICE = {
    "annotations": "use 'labels'",
    "attach": "'up' does not follow the services' output; see vmrun compose logs",
    "blkio_config": _WHERE,
    "build": _BUILD,
    "cgroup": _NAMESPACES,
    "cgroup_parent": _NAMESPACES,
    "configs": "use a host directory below 'volumes', or 'secrets'",
    "container_name": "a container is found by its project and service; remove the key",
    "cpu_count": _CPU,
    "cpu_percent": _CPU,
    "cpu_period": _CPU,
    "cpu_quota": _CPU,
    "cpu_rt_period": _CPU,
    "cpu_rt_runtime": _CPU,
    "cpu_shares": _CPU,
    "cpuset": _CPU,
    "credential_spec": "it belongs to Windows",
    "develop": _BUILD,
    "device_cgroup_rules": _DEVICES,
    "devices": _DEVICES,
    "dns": _DNS,
    "dns_opt": _DNS,
    "dns_search": _DNS,
    "domainname": "use 'hostname', or an alias of the network",
    "extends": "write the service out, or use a YAML anchor and <<",
    "external_links": "a project's network is its own",
    "extra_hosts": _DNS,
    "gpus": _DEVICES,
    "group_add": "use 'user: UID:GID'",
    "init": "the container's own command is its first process; use an image with an init",
    "ipc": _NAMESPACES,
    "isolation": "it belongs to Windows",
    "label_file": "use 'labels'",
    "links": "services of one network find each other by name; for another name use an alias",
    "logging": "logs are kept by vmrun; see vmrun compose logs",
    "mac_address": "a guest has no network card",
    "mem_reservation": "a guest has the memory of its services' limits from the start",
    "mem_swappiness": _MEMORY,
    "memswap_limit": _MEMORY,
    "models": "run the model as a service",
    "net": "use 'networks'",
    "oom_kill_disable": "who exceeds a limit is ended",
    "oom_score_adj": "a guest's own daemons outlive its containers",
    "pid": _NAMESPACES,
    "post_start": "use a service that depends on this one",
    "pre_start": "use a service that this one depends on",
    "pre_stop": "handle 'stop_signal' in the workload",
    "privileged": "a container never gets all privileges; name what it needs with 'cap_add'",
    "profiles": "write a file for each, and name it with -f",
    "provider": "vmrun runs containers only",
    "pull_policy": "each 'up' resolves and verifies the image; remove the key",
    "runtime": "the engine is chosen by vmrun's settings",
    "scale": "a service is one container; write a service for each",
    "storage_opt": "use tmpfs or a named volume, which has a size",
    "sysctls": "the guest's kernel settings are part of its hardening",
    "use_api_socket": "no socket of an engine reaches a container",
    "userns_mode": _NAMESPACES,
    "uts": _NAMESPACES,
    "volume_driver": "volumes are encrypted disks of the tenant's",
    "volumes_from": "name the volumes in each service",
}

TOP = {
    "configs": "use a host directory below a service's 'volumes', or 'secrets'",
    "include": "vmrun reads one file; write the services into it",
    "models": "run the model as a service",
}

NETWORK = {
    "attachable": "a project's network is its own",
    "driver_opts": "vmrun's network has no options",
    "enable_ipv4": "networks within a guest are IPv4",
    "enable_ipv6": "networks within a guest are IPv4",
    "external": "a project's network is its own",
    "ipam": "vmrun chooses the addresses",
    "labels": "networks have no labels",
    "name": "a network is found by its project and its key",
}

SERVICE_NETWORK = {
    "driver_opts": "vmrun's network has no options",
    "gw_priority": "a service has one network",
    "interface_name": "the interface is eth0",
    "ipv4_address": "vmrun chooses the addresses; use the service's name",
    "ipv6_address": "networks within a guest are IPv4",
    "link_local_ips": "vmrun chooses the addresses; use the service's name",
    "mac_address": "vmrun chooses the addresses; use the service's name",
    "priority": "a service has one network",
}

VOLUME = {
    "driver": "volumes are encrypted disks of the tenant's; see vmrun volume create",
    "driver_opts": "volumes are encrypted disks of the tenant's; see vmrun volume create",
    "labels": "volumes have no labels",
}

SECRET = {
    "driver": "a secret comes from a file or the environment",
    "driver_opts": "a secret comes from a file or the environment",
    "external": "name a file or an environment variable",
    "labels": "secrets have no labels",
    "name": "a secret is found by its key",
    "template_driver": "a secret comes from a file or the environment",
}
