#!/bin/sh
# Makes the Python environment that the Makefile's targets run in, from the lock file. Does nothing when nothing changed.
#
#   sh scripts/setup.sh                   .venv, with the newest SQLAlchemy
#   sh scripts/setup.sh sqlalchemy20      .venv-sqlalchemy20, with the newest SQLAlchemy 2.0
#
# Needs Python >= 3.11 with its venv module, and the network the first time. No uv: that comes into .tools/.
set -eu
cd "$(dirname "$0")/.."

group=${1:-sqlalchemy21}
case $group in
    sqlalchemy21) venv=.venv ;;
    sqlalchemy20) venv=.venv-sqlalchemy20 ;;
    *) echo "setup: unknown environment '$group' (sqlalchemy20 is the other one)" >&2; exit 2 ;;
esac

# What the environment was made from, and where: a changed lock file or a moved directory makes a new one.
inputs="uv.lock pyproject.toml packages/*/pyproject.toml scripts/setup.sh scripts/uv-requirements.txt"
# shellcheck disable=SC2086
fingerprint="$(cat $inputs | cksum) $(pwd)"
stamp=$venv/.made-from
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$fingerprint" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exec sh scripts/pack_page.sh "$venv"
fi

find_python() {
    for candidate in "${PYTHON:-python3}" python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    echo "setup: no Python 3.11 or newer found (looked for python3, python3.14 … python3.11, python, and \$PYTHON)." >&2
    echo "setup: install one, or say where it is: make setup PYTHON=/path/to/python3.12" >&2
    exit 1
}

# A mirror, environment or switch that belongs to another project must not decide what is installed here.
# Certificates and proxies stay as they are: they belong to the machine.
for name in $(env | sed -n 's/^\(UV_[A-Z0-9_]*\)=.*/\1/p'); do
    case $name in
        UV_CACHE_DIR | UV_HTTP_TIMEOUT | UV_CONCURRENT_*) ;;
        *) unset "$name" ;;
    esac
done
unset VIRTUAL_ENV PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIRE_VIRTUALENV PIP_NO_BINARY PIP_CONSTRAINT PIP_NO_INDEX

version=$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' scripts/uv-requirements.txt)
uv=.tools/uv-$version
if [ ! -x "$uv" ]; then
    python=$(find_python)
    echo "setup: fetching uv $version with $python …"
    mkdir -p .tools
    scratch=$(mktemp -d .tools/new.XXXXXX)
    trap 'rm -rf "$scratch"' EXIT INT TERM
    if ! "$python" -m venv "$scratch/venv" >"$scratch/log" 2>&1; then
        cat "$scratch/log" >&2
        echo "setup: $python cannot make a virtual environment." >&2
        echo "setup: on Debian and Ubuntu its venv module is a package of its own: apt-get install python3-venv" >&2
        exit 1
    fi
    "$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
        --no-deps --require-hashes -r scripts/uv-requirements.txt
    # Renamed at the end, so that two set-ups at once cannot meet a half-written file.
    cp "$scratch/venv/bin/uv" "$scratch/uv"
    mv "$scratch/uv" "$uv"
    rm -rf "$scratch"
    trap - EXIT INT TERM
fi

# The machine's certificates, where it has any: a company's proxy is known there and not among uv's own.
certificates=
for store in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do
    if [ -s "$store" ]; then certificates=--system-certs; fi
done

# An environment keeps the interpreter that it was made with, as long as that one works.
if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$venv/bin/python
else
    python=${python:-$(find_python)}
fi

echo "setup: making $venv from uv.lock …"
rm -f "$stamp"
# shellcheck disable=SC2086
UV_PROJECT_ENVIRONMENT=$venv UV_PYTHON_DOWNLOADS=never "$uv" sync --frozen --all-packages \
    --no-default-groups --group dev --group docs --group "$group" --python "$python" $certificates
printf '%s\n' "$fingerprint" >"$stamp"
exec sh scripts/pack_page.sh "$venv"
