#!/bin/sh
# What some tests need beside Python packages: Debian's PostgreSQL server, which has the TLS that the embedded one lacks.
# Installs it where that is allowed (root with apt-get); elsewhere says what an administrator runs, and fails.
set -eu

have_postgres() {
    for binary in /usr/lib/postgresql/*/bin/postgres; do
        if [ -x "$binary" ]; then return 0; fi
    done
    return 1
}

if have_postgres; then exit 0; fi

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "system packages: installing PostgreSQL for the TLS tests …"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends postgresql >/dev/null
    if have_postgres; then exit 0; fi
fi

cat >&2 <<'MESSAGE'
system packages: the TLS tests need Debian's PostgreSQL server, which is not installed (no /usr/lib/postgresql/*/bin/postgres).
system packages: an administrator installs it once with:

    sudo apt-get install --no-install-recommends postgresql

system packages: the tests that do without it, until then:

    make setup && .venv/bin/python -m pytest --ignore tests/integration/test_connect_tls.py
MESSAGE
exit 1
