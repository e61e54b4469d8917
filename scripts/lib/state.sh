# shellcheck shell=bash disable=SC2034
# What is known of each broker between two runs: how it is run, its ports, its process.

known_versions=(4.3 4.0)
# Brokers of other kinds, over AMQP 1.0: an old RabbitMQ by its plugin, and Qpid Proton's example.
foreign_versions=(3.10 proton)
state_folder=${XDG_CACHE_HOME:-$HOME/.cache}/postrider/brokers

# What a broker is called, by its version; Proton's has none.
name_of() { if [[ $1 == proton ]]; then echo "Qpid Proton"; else echo "RabbitMQ $1"; fi; }

# The folder of its packages, and the beginning of the names of its files.
root_of() {
    if [[ $1 == proton ]]; then echo "$state_folder/proton"; else echo "$state_folder/rabbitmq-$1"; fi
}

state_file() { echo "$(root_of "$1").state"; }
log_of() { echo "$(root_of "$1").log"; }

# Sets `way`, the ports and `process`; false when this version was not started.
load_state() {
    way='' amqp_port='' amqps_port='' management_port='' distribution_port='' epmd_port='' process=''
    [[ -e $(state_file "$1") ]] || return 1
    # shellcheck disable=SC1090
    source "$(state_file "$1")"
}

save_state() {
    local file name
    file=$(state_file "$1")
    for name in way amqp_port amqps_port management_port distribution_port epmd_port \
        process; do
        printf '%s=%q\n' "$name" "${!name:-}"
    done >"$file.new"
    mv "$file.new" "$file"
}

# One command at a time changes what runs. Released when the process ends; what it starts in the
# background must close descriptor 9.
lock_state() {
    command -v flock >/dev/null || fail "flock is missing; it is part of util-linux"
    mkdir -p "$state_folder"
    exec 9>"$state_folder/lock"
    if ! flock --nonblock 9; then
        say "another scripts/brokers is at work; waiting for it"
        flock --timeout 900 9 || fail "waited 15 minutes for another scripts/brokers; giving up"
    fi
}

port_is_free() { ! (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

ports_are_free() {
    local port
    for port; do port_is_free "$port" || return 1; done
}

# The last digit of a broker's ports.
declare -A digit_of=([4.3]=3 [4.0]=0 [3.10]=1 [proton]=2)

# Ports away from RabbitMQ's own. Their last digits differ, and a taken port moves all of them by
# ten, so that two brokers never want the same one.
choose_ports() {
    local offset digit=${digit_of[$1]}
    for offset in {0..200..10}; do
        amqp_port=$((5690 + digit + offset))
        amqps_port=$((7690 + digit + offset))
        management_port=$((15690 + digit + offset))
        distribution_port=$((25690 + digit + offset))
        epmd_port=$((4690 + digit + offset))
        if ports_are_free "$amqp_port" "$amqps_port" "$management_port" "$distribution_port" \
            "$epmd_port"; then
            return
        fi
    done
    fail "no free ports for $(name_of "$1") from 5690 to 5890"
}
