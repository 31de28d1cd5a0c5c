"""The text of every file that a consortium needs for a deployment; `federation_init` writes them."""

from __future__ import annotations

CONNECTION = "consortium"

APP_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "federation-app"
version = "1.0.0"
description = "Federated training with medfedpure; federation.toml says what is trained"
license = "Apache-2.0"
# Flower would install these at every run; the switches in each `environment` file keep it from that.
dependencies = ["medfedpure[federated]"]

[tool.hatch.build.targets.wheel]
packages = ["federation_app"]

[tool.flwr.app]
publisher = "consortium"

[tool.flwr.app.components]
serverapp = "federation_app.server_app:app"
clientapp = "federation_app.client_app:app"

[tool.flwr.app.config]
"""

ENTRY_POINT = '''\
"""Flower's entry point of the {side}."""

from pathlib import Path

from medfedpure.consortium.deployment import {side}_app

app = {side}_app(Path(__file__).with_name("federation.toml"))
'''

ENVIRONMENT = """\
# Read by start.sh. Flower starts its workers by name, so PATH must begin with the folder of `flwr`.
PATH="{bin}:$PATH"
# What Flower and Ray would send or fetch by themselves:
FLWR_TELEMETRY_ENABLED=0
FLWR_DISABLE_UPDATE_CHECK=1
FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
RAY_USAGE_STATS_ENABLED=0
# Flower's own files; each daemon on one machine needs a folder of its own.
FLWR_HOME="$PWD/flower"
"""

SERVER_ENVIRONMENT = """\
# Checkpoint and results.
MEDFEDPURE_SERVER_OUT="$PWD/out"
"""

SERVER_START = """\
#!/bin/sh
# The SuperLink, on loopback only: sites reach it through the path filter.
set -eu
cd "$(dirname "$0")"
set -a; . ./environment; set +a
umask 077
mkdir -p out
exec flower-superlink --host 127.0.0.1 --port {port} \\
  --ssl-ca-certfile certificates/ca.crt --ssl-certfile certificates/server.pem \\
  --ssl-keyfile certificates/server.key \\
  --enable-supernode-auth --disable-runtime-dependency-installation --database superlink.db
"""

FILTER_START = """\
#!/bin/sh
# The path filter: an nginx of its own, as the user who starts it. One that runs already includes the .conf instead.
set -eu
cd "$(dirname "$0")"
PATH="$PATH:/usr/sbin:/usr/local/sbin"
umask 077
mkdir -p filter
exec nginx -e stderr -p "$PWD/filter" -c "$PWD/filter.nginx.conf"
"""

FILTER_SETTINGS = """\
# For filter.sh: in the foreground, and all that nginx writes is in filter/.
daemon off;
pid nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include path-filter.nginx.conf;
}
"""

REGISTER = """\
#!/bin/sh
# Let the sites' public keys in; once, before their SuperNodes start.
set -eu
cd "$(dirname "$0")"
set -a; . ./environment; set +a
{lines}
"""

SITE_START = """\
#!/bin/sh
# The SuperNode of {client}. Where it fails it is started again: after a kill the server refuses it for about 45 s.
set -eu
cd "$(dirname "$0")"
set -a; . ./environment; set +a
umask 077
mkdir -p private out
node=
trap 'test -z "$node" || kill "$node" 2>/dev/null; wait; exit 143' INT TERM
while true; do
  flower-supernode --superlink {address} --root-certificates ca.crt \\
    --auth-supernode-private-key node_key --port {port} \\
    --node-config "site=\\"$PWD/site.toml\\"" &
  node=$! status=0
  wait "$node" || status=$?
  test "$status" = 1 || exit "$status"
  echo "the SuperNode of {client} ended: it is started again in 5 s, Ctrl-C ends it" >&2
  sleep 5 &
  node=$!
  wait "$node"
done
"""

UNIT = """\
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/bin/sh "{folder}/start.sh"
WorkingDirectory={folder}
User=medfedpure
# A daemon that dies must come back: a site that is away is left out of the round.
Restart=always
RestartSec=10
# Workers of the daemon end with it.
KillMode=control-group
NoNewPrivileges=true
ProtectSystem=strict
ReadWritePaths="{folder}"
PrivateTmp=true

[Install]
WantedBy=multi-user.target
"""

FLOWER_CONNECTION = """\
[superlink]
default = "{name}"

[superlink.{name}]
address = "127.0.0.1:{port}"
root-certificates = "{certificate}"
"""

FEDERATION_NOTES = {
    "clients": "the sites that may take part, as each site.toml calls itself",
    "[images]": "What the images of every site are like; a site with others is refused. The last class is the finding.",
    "[classifier]": "Trained first, across all sites.",
    "[classifier.strategy]": "What travels and what stays at the site: `medfedpure plugins personalization`.",
    "[purifier]": "Trained next. Without [purifier] and [defence] the classifier is trained alone.",
    "[defence]": "At its end each site makes its own defence of the two, on its own images: `out`/defence.\n"
    "recipe: paper, robust or fast (without [purifier]); [defence.detector] names another detector than the recipe's.",
    "[federation]": "A round counts when this share of the sites replied.",
}
"""Comments on federation.toml, by section or key."""

SITE_NOTES = {
    "validation": "shares of the images, by group: only looked at,",
    "calibration": "for the threshold of the defence,",
    "check": "to try it on; the rest is trained on",
    "tell_check": "true lets the server learn the counts of that trial",
    "state_dir": "private tensors; keep them",
    "out": "the site's classifier, purifier and defence",
    "[data]": "Where the images are; relative paths begin at this file. For DICOM files, one folder per class:\n"
    'plugin = "dicom_folder", and below [data.config] root, image_size and classes, as the federation has them.',
}
"""Comments on site.toml, by section or key."""

PATH_FILTER = """\
# nginx in front of the SuperLink. Node authentication guards /v1/fleet/ alone: on the same port, Control starts
# runs (it executes code at every site) and Runtime answers, both without a login. They must stay on loopback.
server {{
    listen {public_port} ssl;
    server_name {host};
    ssl_certificate     "{folder}/certificates/filter.pem";
    ssl_certificate_key "{folder}/certificates/filter.key";
    ssl_protocols TLSv1.2 TLSv1.3;
    client_max_body_size 0;
    proxy_read_timeout 300s;
    proxy_request_buffering off;
    proxy_buffering off;

    location /v1/fleet/ {{
        proxy_pass https://127.0.0.1:{port};
        proxy_ssl_trusted_certificate "{folder}/certificates/ca.crt";
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
    }}
    location = /health {{
        proxy_pass https://127.0.0.1:{port};
        proxy_ssl_trusted_certificate "{folder}/certificates/ca.crt";
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
    }}
    location / {{
        return 404;
    }}
}}
"""

README = """\
# A federation of {count} sites

Written by `medfedpure federation init`. The guide is docs/how-to/real-federation.md of medfedpure.

| folder | for | holds |
|---|---|---|
| `app/` | all | the Flower app, sent to every site; `federation_app/federation.toml` says what is trained |
| `server/` | the coordinator alone | SuperLink, certificates, path filter, checkpoint and results |
| `sites/NAME/` | that hospital alone | SuperNode, key, `site.toml`, private tensors, the personal parts, the defence |

The certificates and keys are for trying it out. For patients' data, every site makes its own key
(`ssh-keygen -t ecdsa -b 384 -N "" -f node_key`) and sends only `node_key.pub`, which is put into `sites/NAME/` here;
`server/certificates/filter.pem` and `filter.key` come from your own authority, whose certificate is each site's
`ca.crt`.

1. Edit `app/federation_app/federation.toml` and each `sites/NAME/site.toml`; set PATH in each `environment` file.
2. Try it without a network: `medfedpure federation rehearse . --out rehearsal`
3. Start the server: `sh server/start.sh`
4. Start the path filter: `sh server/filter.sh`, or include `server/path-filter.nginx.conf` in your nginx
   (sites connect to {address})
5. Register the sites: `sh server/register.sh`
6. Start each site: {starts}
7. Run: `medfedpure federation run .` - it ends with an error when the run fails; given again, it resumes.
8. At each site: `medfedpure predict out/defence SCANS --out verdicts.csv`, or `medfedpure serve out/defence`

For good: install `server/medfedpure-server.service` and each `sites/NAME/medfedpure-site.service` with systemd; in a
site's unit and `environment` stand paths of the machine on which they were written.
"""
