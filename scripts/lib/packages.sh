# shellcheck shell=bash disable=SC2154
# RabbitMQ from Debian's packages: a minimal Debian in a folder for each version, and the broker in
# a chroot there.

# RabbitMQ's minor version and the Debian suite that has it.
declare -A suite_of=([4.3]=forky [4.0]=trixie [3.10]=bookworm)

packages_is_running() {
    [[ -n $process && /proc/$process/root -ef $(root_of "$1") ]]
}

# --- Installing

packages_install() {
    local suite=${suite_of[$1]}
    install_debian "$1" "$suite" rabbitmq-server usr/sbin/rabbitmq-server packages_check_release
}

packages_check_release() {
    local version=$1 release
    # shellcheck disable=SC2016
    release=$(chroot "$2" dpkg-query --show --showformat '${Version}' rabbitmq-server)
    [[ $release == "$version".* ]] || fail "Debian ${suite_of[$version]} has RabbitMQ $release now," \
        "not $version; name another suite in scripts/lib/packages.sh"
}

# --- Running

distribution_on_loopback='-kernel inet_dist_use_interface {127,0,0,1}'

# Runs a command in the chroot as user rabbitmq, replacing this shell.
enter_chroot() {
    local version=$1 root
    root=$(root_of "$version")
    shift
    # shellcheck disable=SC2016
    exec unshare --mount bash -euc '
        root=$1; shift
        for folder in proc dev sys; do mount --bind "/$folder" "$root/$folder"; done
        exec chroot --userspec=rabbitmq:rabbitmq "$root" "$@"
    ' enter_chroot "$root" env --chdir=/var/lib/rabbitmq --ignore-environment \
        PATH=/usr/lib/rabbitmq/bin:/usr/bin:/bin \
        HOME=/var/lib/rabbitmq \
        LC_ALL=C.UTF-8 \
        RABBITMQ_NODENAME="pr${version/./}@localhost" \
        RABBITMQ_NODE_PORT="$amqp_port" \
        RABBITMQ_DIST_PORT="$distribution_port" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="$distribution_on_loopback" \
        RABBITMQ_CTL_ERL_ARGS="$distribution_on_loopback" \
        ERL_CRASH_DUMP_SECONDS=0 \
        ERL_EPMD_PORT="$epmd_port" \
        ERL_EPMD_ADDRESS=127.0.0.1 \
        RUNNING_UNDER_SYSTEMD=true \
        "$@"
}

packages_start() {
    local version=$1 root
    root=$(root_of "$version")
    packages_work || fail "RabbitMQ $version from packages needs root on Debian"
    ports_are_free "$amqp_port" "$amqps_port" "$management_port" "$distribution_port" ||
        fail "RabbitMQ $version cannot start: another process has one of its ports" \
            "($amqp_port, $amqps_port, $management_port, $distribution_port)"
    echo "127.0.0.1 localhost $HOSTNAME" >"$root/etc/hosts"
    chroot "$root" bash -s /etc/rabbitmq/tls <"$project/scripts/lib/certificates" ||
        fail "openssl cannot make the certificates of RabbitMQ $version"
    cp "$project/scripts/lib/enabled_plugins" "$root/etc/rabbitmq/enabled_plugins"
    if [[ $version == 3.* ]]; then
        # Before 4.0 AMQP 1.0 was a plugin.
        sed -i 's/^\[/[rabbitmq_amqp1_0,/' "$root/etc/rabbitmq/enabled_plugins"
    fi
    {
        cat "$project/scripts/lib/rabbitmq.conf"
        echo "listeners.tcp.1 = 127.0.0.1:$amqp_port"
        # A version of this script that knew no such port may have started it.
        [[ -z $amqps_port ]] || echo "listeners.ssl.1 = 127.0.0.1:$amqps_port"
        echo "management.tcp.ip = 127.0.0.1"
        echo "management.tcp.port = $management_port"
    } >"$root/etc/rabbitmq/rabbitmq.conf"

    say "starting RabbitMQ $version"
    # RUNNING_UNDER_SYSTEMD makes RabbitMQ's script become the broker instead of waiting for it, so
    # that this is the broker's own process.
    (
        ulimit -n 65536 2>/dev/null || true
        enter_chroot "$version" setsid rabbitmq-server
    ) </dev/null >>"$(log_of "$version")" 2>&1 9>&- &
    process=$!
    save_state "$version"
    # Until it is in the chroot it does not count as running.
    local tries=50
    while ((tries-- > 0)) && ! packages_is_running "$version" && [[ -e /proc/$process ]]; do
        sleep 0.1
    done
}

packages_certificates() { echo "$(root_of "$1")/etc/rabbitmq/tls"; }

packages_stop() {
    local version=$1 deadline=$((SECONDS + 60))
    packages_is_running "$version" || return 0
    kill -TERM "$process"
    while packages_is_running "$version"; do
        if ((SECONDS >= deadline)); then
            say "RabbitMQ $version did not shut down within 60 s; killing it"
            packages_kill "$version"
        fi
        sleep 0.1
    done
}

packages_kill() {
    kill -KILL "$process" || true
    while packages_is_running "$1"; do sleep 0.05; done
    # A process that was killed still has its ports for a moment after it counts as gone.
    local tries=100
    while ((tries-- > 0)) && ! ports_are_free "$amqp_port" "$amqps_port" "$management_port" \
        "$distribution_port"; do
        sleep 0.05
    done
}

packages_ctl() {
    local version=$1
    shift
    enter_chroot "$version" rabbitmqctl "$@"
}

packages_log() { cat "$(log_of "$1")"; }

# Ends what is left in the chroot and removes the broker's data.
packages_clear() {
    local root process
    root=$(root_of "$1")
    for process in $(processes_inside "$root"); do kill -KILL "$process" 2>/dev/null || true; done
    rm -rf --one-file-system "${root:?}"/var/lib/rabbitmq/* "${root:?}"/var/log/rabbitmq/* \
        "${root:?}"/etc/rabbitmq/tls
    rm -f "$(log_of "$1")"
}
