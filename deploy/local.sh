#!/usr/bin/env bash
# The deployed system on one machine: an LLM server, two edge servers, Flower's SuperLink and four
# SuperNodes, each a process of its own, over TLS on loopback; every device has a token and a key
# pair of its own. Runs three rounds, checks that the LLM answered every device and no token was lost,
# and stops everything.
#
#   deploy/local.sh            in a temporary folder, which is removed
#   deploy/local.sh FOLDER     in this one, which must not be there yet and is kept
#
# Exit status: 0 when all went well.
set -euo pipefail

DEVICES=4
EDGES=2
ROUNDS=3
PATIENCE=900 # seconds until a process must be ready, or the run finished
HERE=$(cd "$(dirname "$0")/.." && pwd)
MARK=local-$$-$RANDOM
KEEP=$# # a folder that is named is kept

if [ $# -gt 1 ] || [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0"
  exit $(($# > 1 ? 2 : 0))
fi
for program in fedhlm flwr flower-superlink; do
  command -v "$program" >/dev/null || { echo "$program is not there: pip install ." >&2; exit 1; }
done
if [ $# = 1 ]; then
  mkdir -m 700 "$1"
  FOLDER=$(cd "$1" && pwd)
else
  FOLDER=$(mktemp -d)
fi

stop() {
  status=$?
  trap - EXIT
  # Flower starts processes in sessions of their own; all carry the mark.
  python3 -c 'import sys; from fedhlm_app.launch.processes import end_all; end_all(sys.argv[1])' "$MARK"
  if [ $status != 0 ]; then
    for log in "$FOLDER"/*.log; do
      [ -e "$log" ] && { echo "--- $log"; tail -n 15 "$log"; } >&2
    done
  fi
  if [ $KEEP = 1 ]; then echo "logs, keys and runs are in $FOLDER"; else rm -rf "$FOLDER"; fi
  exit $status
}
trap stop EXIT
trap 'exit 130' INT TERM
trap '' HUP

cd "$FOLDER"
export FLWR_HOME=$FOLDER/flwr FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
export NO_PROXY=127.0.0.1,localhost OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
mkdir "$FLWR_HOME"

# Below 32,768: higher ones systems give to whoever connects to something, before they are used here.
free_port() {
  python3 - <<'PYTHON'
import random, socket
while True:
    try:
        print(socket.create_server(("127.0.0.1", random.randrange(20_000, 32_768))).getsockname()[1])
        break
    except OSError:
        continue
PYTHON
}

# start NAME DEVICE COMMAND...: a process with the token of a device, which writes NAME.log
start() {
  local name=$1 device=$2
  shift 2
  FEDHLM_LAUNCH=$MARK FEDHLM_LLM_TOKEN_FILE=${device:+$FOLDER/keys/devices/$device/token} \
    "$@" >"$name.log" 2>&1 &
  disown # that it was stopped is no news
}

# await WHAT COMMAND...: until the command succeeds
await() {
  local what=$1 until=$((SECONDS + PATIENCE))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || { echo "$what: not ready after $PATIENCE s" >&2; exit 1; }
    sleep 2
  done
  echo "$what: ready"
}

# answers URL [TOKEN FILE]: whether a server that the authority vouches for answers with 200
answers() {
  python3 - "$@" <<'PYTHON'
import ssl, sys, urllib.request
headers = {"authorization": "Bearer " + open(sys.argv[2]).read().strip()} if sys.argv[2:] else {}
request = urllib.request.Request(sys.argv[1], headers=headers)
urllib.request.urlopen(request, timeout=5, context=ssl.create_default_context(cafile="keys/ca.pem"))
PYTHON
}

echo "keys"
fedhlm keys create keys >keys.log
# The SuperLink's machine gives orders to edge servers: it is called cloud.
for name in cloud $(seq -f 'device-%g' 0 $((DEVICES - 1))); do
  fedhlm keys issue "$name" -f keys >>keys.log
done

LLM=https://127.0.0.1:$(free_port)
SERVED=(--tls-cert keys/server.pem --tls-key keys/server.key --token-file keys/devices.json)
start llm "" fedhlm serve llm --port "${LLM##*:}" "${SERVED[@]}" --json-log
ADDRESSES=
for ((i = 0; i < EDGES; i++)); do
  EDGE=https://127.0.0.1:$(free_port)
  ADDRESSES=${ADDRESSES:+$ADDRESSES,}$EDGE
  start "edge-$i" "" fedhlm serve edge --port "${EDGE##*:}" --upstream "$LLM" \
    --upstream-ca keys/ca.pem "${SERVED[@]}" --json-log
done
PORT=$(free_port)
start superlink cloud flower-superlink --host 127.0.0.1 --port "$PORT" \
  --ssl-ca-certfile keys/ca.pem --ssl-certfile keys/server.pem --ssl-keyfile keys/server.key \
  --enable-supernode-auth --database superlink.db --disable-runtime-dependency-installation
cat >"$FLWR_HOME/config.toml" <<TOML
[superlink]
default = "local"

[superlink.local]
address = "127.0.0.1:$PORT"
root-certificates = "$FOLDER/keys/ca.pem"
TOML
await "LLM server" answers "$LLM/readyz"
for EDGE in ${ADDRESSES//,/ }; do await "edge server" answers "$EDGE/readyz"; done
await "SuperLink" answers "https://127.0.0.1:$PORT/health"
if answers "$LLM/v1/stats" 2>/dev/null; then
  echo "the LLM server answers without a token" >&2
  exit 1
fi

for ((i = 0; i < DEVICES; i++)); do
  own=keys/devices/device-$i
  flwr supernode register "$own/node.pub" local --name "device-$i" >>keys.log
  start "device-$i" "device-$i" fedhlm serve supernode --superlink "127.0.0.1:$PORT" \
    --root-certificates "$own/ca.pem" --auth-supernode-private-key "$own/node.key" \
    --node-config "partition-id=$i num-partitions=$DEVICES"
done

# Most tokens are asked about, and peers answer some.
SETTINGS=('preset="certified"' "clients=$DEVICES" "min-clients=$DEVICES" "clusters=$EDGES" "rounds=$ROUNDS"
  tokens-per-round=24 tokens-per-prompt=12 evaluate-every=0 'learning="balanced"' 'escalation="token"'
  initial-threshold=0.3 'peer-mode="context"' opportunistic=false context-gate=0.9 reuse-gate=0.9)
echo "run: $DEVICES devices, $EDGES edge servers, $ROUNDS rounds"
flwr run "$HERE" local --stream --run-config "${SETTINGS[*]} run-dir=\"$FOLDER/runs\" llm-address=\"$LLM\" \
edge-addresses=\"$ADDRESSES\" llm-ca-file=\"$FOLDER/keys/ca.pem\"" >run.log 2>&1

# `flwr run` ends with 0 whatever happened: Flower's list and the run's summary know.
finished() { flwr list local --format json >list.log 2>&1 && grep -q '"finished:' list.log; }
await "run" finished
grep -q '"finished:completed"' list.log || { echo "the run has not completed" >&2; exit 1; }
answers "$LLM/metrics" keys/devices/device-0/token
python3 - "$ROUNDS" "$DEVICES" <<'PYTHON'
import json, sys
from pathlib import Path

(file,) = Path("runs").glob("*/summary.json")
told = json.loads(file.read_text())
rounds = [json.loads(line) for line in file.with_name("metrics.jsonl").open()]
asked = told["resolution"]["llm_accepted"] + told["resolution"]["llm_resampled"]
lost = told["resolution"]["unresolved"]
events = [json.loads(line) for line in open("llm.log") if line.startswith("{")]
served = {one["device"] for one in events if one.get("device") and one["path"].endswith("/exchange")}
print(f"rounds {told['rounds']}, tokens {told['tokens']}, decided by the LLM {asked}, lost {lost}")
print(f"thresholds of the rounds {[one['threshold'] for one in rounds]}")
print(f"the LLM server answered {', '.join(sorted(served))}")
wanted = {f"device-{number}" for number in range(int(sys.argv[2]))}
if told["rounds"] != int(sys.argv[1]) or not asked or lost or not wanted <= served:
    sys.exit("this is not what was expected")
PYTHON
echo "all went well"
