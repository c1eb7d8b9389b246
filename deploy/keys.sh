#!/usr/bin/env bash
# Certificates and keys of a deployment: docs/deployment.md says who may have which.
#
#   deploy/keys.sh [-o FOLDER] certificates HOST…   # an authority (ca.pem), and the SuperLink's certificate for these hosts
#   deploy/keys.sh [-o FOLDER] node NAME…           # a key for each client: NAME, and NAME.pub for the SuperLink
#
# What is there is kept, but for the SuperLink's certificate, which is made anew. FOLDER: keys.
set -euo pipefail
umask 077

refuse() { echo "keys.sh: $1" >&2; exit 2; }

folder=keys
if [ "${1-}" = -o ]; then
    [ $# -ge 2 ] || refuse "-o needs a folder."
    folder=$2
    shift 2
fi
[ $# -ge 2 ] || refuse "say what for: certificates HOST…, or node NAME…"
what=$1
shift

quietly() { "$@" >"$folder/log" 2>&1 || { cat "$folder/log" >&2; refuse "$1 failed."; }; rm -f "$folder/log"; }

certificates() {
    local host alternatives=""
    for host in "$@"; do
        case $host in
            *[!A-Za-z0-9.:-]*) refuse "$host is no host name." ;;
            *:* | [0-9]*.[0-9]*.[0-9]*.[0-9]*) alternatives+=",IP:$host" ;;
            *) alternatives+=",DNS:$host" ;;
        esac
    done
    mkdir -p "$folder"
    cd "$folder"
    folder=.
    if [ ! -e ca.key ]; then
        quietly openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -days 3650 -sha384 \
            -subj "/CN=fedser authority" -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.pem
    fi
    quietly openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -sha384 -subj "/CN=$1" \
        -keyout superlink.key -out superlink.csr
    # Clients look at subjectAltName alone; a name in CN is not enough.
    printf '%s\n' "subjectAltName=${alternatives#,}" basicConstraints=CA:FALSE extendedKeyUsage=serverAuth \
        "authorityKeyIdentifier=keyid" >superlink.ext
    quietly openssl x509 -req -in superlink.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 -sha384 \
        -extfile superlink.ext -out superlink.pem
    rm -f superlink.csr superlink.ext
    chmod 644 ca.pem superlink.pem
    [ -e secret ] || openssl rand -hex 32 | tr -d '\n' >secret
}

nodes() {
    local name
    for name in "$@"; do
        case $name in "" | -* | *[!A-Za-z0-9._-]*) refuse "'$name' is no name of a key: letters, digits, . _ -" ;; esac
    done
    mkdir -p "$folder"
    for name in "$@"; do
        [ -e "$folder/$name" ] || quietly ssh-keygen -q -t ecdsa -b 384 -N "" -C "$name" -f "$folder/$name"
    done
}

case $what in
    certificates) certificates "$@" ;;
    node) nodes "$@" ;;
    *) refuse "$what: say certificates HOST…, or node NAME…" ;;
esac
