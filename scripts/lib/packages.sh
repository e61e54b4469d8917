# shellcheck shell=bash disable=SC2154
# RabbitMQ from Debian's packages: a minimal Debian in a folder for each version, and the broker in
# a chroot there. Nothing is installed on the machine itself but debootstrap.
#
# Mounts are made in a mount namespace of the process that needs them and vanish with it.

# RabbitMQ's minor version and the Debian suite that has it.
declare -A suite_of=([4.3]=forky [4.0]=trixie)

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

packages_work() {
    [[ $EUID == 0 ]] && command -v apt-get >/dev/null && command -v dpkg >/dev/null
}

root_of() { echo "$state_folder/rabbitmq-$1"; }
log_of() { echo "$state_folder/rabbitmq-$1.log"; }

# Every process that runs inside the chroot; only those are ever signalled.
processes_inside() {
    local folder
    for folder in /proc/[0-9]*; do
        if [[ $folder/root -ef $1 ]]; then echo "${folder#/proc/}"; fi
    done
}

packages_is_running() {
    [[ -n $process && /proc/$process/root -ef $(root_of "$1") ]]
}

# --- Installing

# The lines `ORIGIN|LABEL|SITE` of apt's sources; empty without package lists.
apt_sources() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(SITE)' 'Created-By: Packages'
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq "$@" >&2; }

apt_install() {
    apt update
    apt install -y --no-install-recommends "$@"
}

debian_mirror() {
    local mirror=${POSTRIDER_DEBIAN_MIRROR:-}
    if [[ -z $mirror ]]; then
        mirror=$(apt_sources | awk -F'|' '!n && $1 == "Debian" && $2 == "Debian" { print $3; n = 1 }')
    fi
    if [[ $mirror == mirror+file:* ]]; then
        mirror=$(awk '!n && /^[a-z]+:/ { print $1; n = 1 }' "${mirror#mirror+file:}")
    fi
    [[ $mirror =~ ^(https?|file): ]] || fail "apt on this machine names no Debian mirror" \
        "(found: '$mirror'); set POSTRIDER_DEBIAN_MIRROR to the URL of one"
    echo "${mirror%/}"
}

packages_install() {
    local version=$1 root suite mirror release
    local building log
    root=$(root_of "$version")
    suite=${suite_of[$version]}
    building=$root.building
    log=$root.install.log
    packages_work || fail "RabbitMQ $version from packages needs root on Debian"
    if [[ -e $root ]]; then return; fi

    if ! command -v debootstrap >/dev/null || [[ ! -e $keyring ]]; then
        say "installing debootstrap"
        apt_install debootstrap debian-archive-keyring || fail "apt-get cannot install debootstrap"
    elif [[ -z $(apt_sources) ]]; then
        apt update
    fi
    mirror=$(debian_mirror)
    say "installing RabbitMQ $version from Debian $suite; this takes about a minute"
    if ! bootstrap "$suite" "$building" "$mirror" >"$log" 2>&1; then
        # A keyring older than the suite: apt gets a newer one, which it verifies itself.
        if grep -qE 'unknown key|Invalid Release signature' "$log"; then
            say "this machine's Debian keyring does not know the keys of $suite; updating it"
            apt_install debian-archive-keyring
            bootstrap "$suite" "$building" "$mirror" >>"$log" 2>&1 || true
        fi
    fi
    if [[ ! -e $building/usr/sbin/rabbitmq-server || -e $building/debootstrap ]]; then
        tail -n 15 "$log" | sed 's/^/    /' >&2
        fail "installing RabbitMQ $version from Debian $suite failed; the end of $log is above"
    fi
    # shellcheck disable=SC2016
    release=$(chroot "$building" dpkg-query --show --showformat '${Version}' rabbitmq-server)
    [[ $release == "$version".* ]] || fail "Debian $suite has RabbitMQ $release now, not $version;" \
        "name another suite in scripts/lib/packages.sh"

    rm -rf "$building"/var/cache/apt/*.bin "$building"/var/cache/apt/archives/*.deb \
        "$building"/var/lib/apt/lists/* "$building"/usr/share/{doc,man,locale}
    # Only a whole installation ever has its final name.
    mv "$building" "$root"
    say "installed RabbitMQ $release ($(du -sh "$root" | cut -f1))"
}

bootstrap() {
    local suite=$1 folder=$2 mirror=$3 script
    # One script builds all of Debian's suites; a debootstrap older than the suite has it only
    # under the names it knew.
    script=/usr/share/debootstrap/scripts/$suite
    [[ -e $script ]] || script=/usr/share/debootstrap/scripts/sid
    remove_folder "$folder"
    unshare --mount debootstrap --variant=minbase --include=rabbitmq-server --keyring="$keyring" \
        "$suite" "$folder" "$mirror" "$script"
}

# Never reaches into another file system, whatever may be mounted below the folder.
remove_folder() {
    local process
    for process in $(processes_inside "$1"); do kill -KILL "$process" 2>/dev/null || true; done
    rm -rf --one-file-system "$1"
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

packages_purge() {
    local root
    root=$(root_of "$1")
    [[ -e $root || -e $root.building ]] || return 0
    say "removing RabbitMQ $1 from $root"
    remove_folder "$root"
    remove_folder "$root.building"
    rm -f "$root.install.log"
}
