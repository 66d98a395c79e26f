#!/bin/sh
# What some tests need beside Python packages: Debian's PostgreSQL server, which has the TLS that the embedded one lacks,
# PgBouncer, a real pooler, and Chromium, which the page is shown in. Installs them where that is allowed (root with
# apt-get); elsewhere says what an administrator runs, and fails.
set -eu

have_postgres() {
    for binary in /usr/lib/postgresql/*/bin/postgres; do
        if [ -x "$binary" ]; then return 0; fi
    done
    return 1
}

have_pgbouncer() {
    [ -x /usr/sbin/pgbouncer ] || command -v pgbouncer >/dev/null
}

have_chromium() {
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null
}

have_all() {
    have_postgres && have_pgbouncer && have_chromium
}

if have_all; then exit 0; fi

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "system packages: installing PostgreSQL (TLS tests), PgBouncer (pooler tests) and Chromium (tests of the page) …"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends postgresql pgbouncer chromium fonts-liberation >/dev/null
    if have_all; then exit 0; fi
fi

cat >&2 <<'MESSAGE'
system packages: the TLS tests need Debian's PostgreSQL server (/usr/lib/postgresql/*/bin/postgres), the pooler tests PgBouncer,
system packages: those of the page Chromium; not all of them are installed. An administrator installs them once with:

    sudo apt-get install --no-install-recommends postgresql pgbouncer chromium fonts-liberation

system packages: the tests that do without them, until then:

    make setup && .venv/bin/python -m pytest --ignore tests/integration/test_connect_tls.py --ignore tests/integration/test_listener_pooler.py --ignore tests/browser
MESSAGE
exit 1
