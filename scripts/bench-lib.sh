# Shared by the benchmark scripts; sourced, not run. shellcheck shell=bash
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

# Another build can be measured: STATOR=/path/to/stator.
stator="${STATOR:-$root/target/release/stator}"
[ -x "$stator" ] || fail "build first: cargo build --release -p stator"
model="$("$root/scripts/model")"
results="$(mktemp -d)"
servers=()
trap 'clean_up' EXIT

clean_up() {
    local pid
    for pid in ${servers[@]+"${servers[@]}"}; do kill "$pid" 2>/dev/null || true; done
    for pid in ${servers[@]+"${servers[@]}"}; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$results"
}

# A fixed piece of work, to compare machines and moments: cores may be shared and their speed drifts.
probe() { { TIMEFORMAT=%U; time python3 -c 'sum(i * i for i in range(5_000_000))'; } 2>&1; }

# The model in a format of llama.cpp's own making; Q4_1 is the file as it ships.
in_format() {
    local llama="$1" format="$2" file="$cache/bench/$2.gguf"
    if [ "$format" = Q4_1 ]; then
        file="$model"
    elif [ ! -s "$file" ]; then
        mkdir -p "$cache/bench"
        "$llama/llama-quantize" --allow-requantize "$model" "$file" "$format" >/dev/null 2>&1 ||
            fail "llama-quantize cannot make $format"
    fi
    printf '%s\n' "$file"
}

# Runs a server in the background, its output in a log, until this script ends; returns when it is healthy on its port.
# Its pid is $server.
serve() {
    local port="$1" log="$results/$1.log"
    shift
    "$@" >"$log" 2>&1 &
    server=$!
    servers+=("$server")
    for _ in $(seq 300); do
        curl -sf "http://127.0.0.1:$port/health" >/dev/null 2>&1 && return
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 20 "$log" >&2
    fail "no healthy server: $*"
}

# A cluster of all services on a port: serve_stator PORT [FLAGS...]
serve_stator() {
    local port="$1"
    shift
    serve "$port" "$stator" up --nats-server "$("$root/scripts/nats-server")" --model "$model=smollm2" --port "$port" "$@"
}

# serve_llama LLAMA_BIN FORMAT PORT [FLAGS...]
serve_llama() {
    local llama="$1" file port="$3"
    file="$(in_format "$llama" "$2")"
    shift 3
    serve "$port" "$llama/llama-server" -m "$file" --host 127.0.0.1 --port "$port" "$@"
}

# Loads a server; prints figures of the report: load PORT FIELDS [FLAGS of `stator bench`...]. FIELDS are paths such as
# latency.ttft_ms.p50, separated by spaces.
load() {
    local port="$1" fields="$2"
    shift 2
    "$stator" bench --url "http://127.0.0.1:$port" --ignore-eos --json "$results/report.json" "$@" >"$results/table" ||
        { cat "$results/table" >&2; fail "the load on port $port failed"; }
    python3 - "$results/report.json" "$fields" <<'PYTHON'
import json, sys
report = json.load(open(sys.argv[1]))
assert not report["errors"], report["errors"]
def at(value, path):
    for name in path.split("."):
        value = value[name]
    return value
print(*(f"{at(report, path):.2f}" for path in sys.argv[2].split()))
PYTHON
}

# Flags of `stator bench` that watch a server's CPU time, that of its child processes included.
cpu_of() {
    local pid
    for pid in "$1" $(pgrep -P "$1"); do printf -- '--cpu-of server=%s ' "$pid"; done
}

# The middle one of the numbers given.
median() { printf '%s\n' "$@" | sort -g | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
# ratio A B: A ÷ B
ratio() { awk -v a="$1" -v b="$2" 'BEGIN {printf "%.2f\n", a / b}'; }
