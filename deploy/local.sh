#!/usr/bin/env bash
# A deployment on this machine: a SuperLink, a client for each of the first N speakers of a corpus, and the server, each a
# process of its own; ends with the server's table. Ctrl-C stops all of them.
#
#   deploy/local.sh -c 3 --root DIR [--dataset emodb] [--insecure] [--port PORT] [--home FOLDER] [overrides…]
#   deploy/local.sh -c 3 --root DIR rounds=10 model.width=4 attack=pgd logger=none
#
# A client sees a folder with links to its own speaker's clips and nothing else; one that is killed is started again. The
# same command goes on with an interrupted run. --insecure: without TLS and node keys. FOLDER: ~/.cache/fedser/local.
set -euo pipefail
set -m  # every process is the leader of a group: Ctrl-C reaches this script alone, which ends them in their order

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
clients="" root="" dataset=emodb secure=yes port="" home=${FEDSER_CACHE:-$HOME/.cache/fedser}/local overrides=()

refuse() { echo "local.sh: $1" >&2; exit 2; }

while [ $# -gt 0 ]; do
    case $1 in
        -c | --root | --dataset | --port | --home)
            [ $# -ge 2 ] || refuse "$1 needs a value."
            case $1 in
                -c) clients=$2 ;;
                --root) root=$2 ;;
                --dataset) dataset=$2 ;;
                --port) port=$2 ;;
                --home) home=$2 ;;
            esac
            shift
            ;;
        --insecure) secure="" ;;
        -h | --help)
            sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit
            ;;
        *=*) overrides+=("$1") ;;
        *) refuse "$1 is no option of this script, and no override." ;;
    esac
    shift
done
case $clients in "" | *[!0-9]* | 0*) refuse "-c N: how many clients, e.g. -c 3." ;; esac
case $port in *[!0-9]*) refuse "--port $port is no number." ;; esac
[ -d "$root" ] || refuse "--root DIR: the corpus' folder${root:+; there is none at $root}."
for command in fedser fedser-client flower-superlink flwr; do
    command -v "$command" >/dev/null || refuse "there is no command $command: install fedser, and activate its environment."
done
root=$(cd "$root" && pwd)
mkdir -p "$home"
home=$(cd "$home" && pwd)
run=$home/run-$$  # what is of this run alone
mkdir -p "$run"

# --- processes ------------------------------------------------------------------------------------------------------

superlink="" server="" names=() pids=()

lives() { kill -0 "$1" 2>/dev/null; }

reap() { # the exit code of a process that has ended, in `code`
    code=0
    wait "$1" 2>/dev/null || code=$?
}

stop() { # these processes
    local pid
    for pid in "$@"; do kill -INT "$pid" 2>/dev/null || true; done
    for pid in "$@"; do
        for _ in $(seq 200); do
            lives "$pid" || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
}

end() { # the server first, which takes leave; then its clients; then what they were connected by
    trap '' INT TERM HUP
    stop ${server:+"$server"}
    stop ${pids[@]+"${pids[@]}"}
    stop ${superlink:+"$superlink"}
    server="" superlink="" pids=()
}
trap end EXIT
trap 'exit 130' INT TERM HUP

start_client() { # its number
    local name=${names[$1]} own=$home/clients/${names[$1]} secured=()
    [ -z "$secure" ] || secured=(--ca "$home/keys/ca.pem" --key "$home/keys/$name")
    mkdir -p "$run/$name"
    FLWR_HOME=$run/$name FEDSER_CACHE=$own/cache fedser-client --dataset "$dataset" --root "$own/clips" \
        --speaker "$name" --superlink "localhost:$port" ${secured[@]+"${secured[@]}"} >>"$run/$name.log" 2>&1 &
    pids[$1]=$!
}

watch_clients() { # starts again who was killed; who was refused would be so again
    local number
    for number in "${!names[@]}"; do
        lives "${pids[number]}" && continue
        reap "${pids[number]}"
        [ "$code" != 2 ] || fail "${names[number]}"
        echo "client '${names[number]}' ended with $code and is started again" >&2
        start_client "$number"
    done
}

fail() { # whose log says why
    echo "local.sh: $1 failed:" >&2
    tail -n 5 "$run/$1.log" >&2
    exit 1
}

# --- what they need -------------------------------------------------------------------------------------------------

links() { # a folder with links for each of the first speakers → their names
    python3 - "$dataset" "$root" "$clients" "$home/clients" <<'PYTHON'
import shutil, sys
from pathlib import Path

from fedser.config.compose import compose
from fedser.config.validation import validate
from fedser.data import corpora
from fedser.errors import FedserError

dataset, root, clients, home = sys.argv[1:]
try:
    table = corpora.load(validate(compose([f"dataset={dataset}", f"dataset.root={root}", "logger=none"])).dataset).table
    whose = table["client"].dropna().astype(str)
    names = sorted(whose.unique())[: int(clients)]
    if len(names) < int(clients):
        sys.exit(f"local.sh: -c {clients}: the corpus has {len(names)} speakers.")
    for name in names:
        shutil.rmtree(Path(home, name, "clips"), ignore_errors=True)
        for clip in table["path"][whose.index[whose == name]]:
            link = Path(home, name, "clips", Path(clip).relative_to(root))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(clip)
    print(*names, sep="\n")
except FedserError as error:
    sys.exit(f"local.sh: {error}")
PYTHON
}

start_superlink() {
    local secured=(--insecure)
    if [ -n "$secure" ]; then
        "$here/keys.sh" -o "$home/keys" certificates localhost 127.0.0.1
        secured=(--ssl-certfile "$home/keys/superlink.pem" --ssl-keyfile "$home/keys/superlink.key"
            --ssl-ca-certfile "$home/keys/ca.pem" --enable-supernode-auth
            --superexec-auth-secret-file "$home/keys/secret")
    fi
    FLWR_HOME=$run/superlink flower-superlink --host 127.0.0.1 --port "$port" --isolation process \
        --disable-runtime-dependency-installation "${secured[@]}" >"$run/SuperLink.log" 2>&1 &
    superlink=$!
}

answers() { (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }

register() { # the clients' keys
    local number started=()
    mkdir -p "$run/operator"
    printf '%s\n' "[superlink]" 'default = "local"' "[superlink.local]" "address = \"localhost:$port\"" \
        "root-certificates = \"$home/keys/ca.pem\"" >"$run/operator/config.toml"
    for number in "${!names[@]}"; do
        FLWR_HOME=$run/operator flwr supernode register "$home/keys/${names[number]}.pub" local \
            >"$run/${names[number]}.log" 2>&1 &
        started[number]=$!
    done
    for number in "${!names[@]}"; do wait "${started[number]}" || fail "${names[number]}"; done
}

# --- one after the other --------------------------------------------------------------------------------------------

[ -n "$port" ] || port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
start_superlink
found=$(links) || exit 2
while read -r name; do names+=("$name"); done <<<"$found"
until answers; do
    lives "$superlink" || fail SuperLink
    sleep 0.2
done

secured=()
[ -z "$secure" ] || secured=("simulation.ca=$home/keys/ca.pem" "simulation.secret=$home/keys/secret")
fedser simulation=deploy "simulation.superlink=localhost:$port" "simulation.clients=$clients" ${secured[@]+"${secured[@]}"} \
    "dataset=$dataset" "dataset.root=$root" ${overrides[@]+"${overrides[@]}"} &
server=$!
if [ -n "$secure" ]; then
    "$here/keys.sh" -o "$home/keys" node "${names[@]}"
    register
fi
for number in "${!names[@]}"; do start_client "$number"; done
while lives "$server"; do
    lives "$superlink" || fail SuperLink
    watch_clients
    sleep 1
done
reap "$server"
server=""
end
if [ "$code" = 0 ]; then rm -rf "$run"; else echo "local.sh: the logs are in $run" >&2; fi
exit "$code"
