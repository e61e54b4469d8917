# shellcheck shell=bash disable=SC2154
# Qpid Proton's example broker, built from Debian's package of its source: queues in memory that are
# there when they are named, and nothing else of what a broker has.

proton_examples=usr/share/proton/examples/c

proton_install() {
    install_debian proton bookworm gcc,libc6-dev,libqpid-proton11-dev-examples,libsasl2-modules \
        "$proton_examples/broker.c" proton_build
}

# Debian has only the whole library's name for linking, without the part that listens.
proton_build() {
    chroot "$2" gcc -O1 -o /usr/local/bin/broker "/$proton_examples/broker.c" \
        -l:libqpid-proton-core.so.10 -l:libqpid-proton-proactor.so.1 -lpthread >&2 ||
        fail "Qpid Proton's example broker cannot be built"
}

proton_is_running() { packages_is_running proton; }

proton_start() {
    ports_are_free "$amqp_port" || fail "Qpid Proton cannot start: another process has port $amqp_port"
    say "starting Qpid Proton"
    # The folder has the certificates that it wants to find.
    (exec chroot --userspec=nobody:nogroup "$(root_of proton)" \
        setsid env --chdir="/$proton_examples" broker 127.0.0.1 "$amqp_port") \
        </dev/null >>"$(log_of proton)" 2>&1 9>&- &
    process=$!
    save_state proton
    local tries=50
    while ((tries-- > 0)) && ! proton_is_running && [[ -e /proc/$process ]]; do sleep 0.1; done
}

proton_stop() { proton_kill; }

proton_kill() {
    proton_is_running || return 0
    kill -KILL "$process" || true
    while proton_is_running; do sleep 0.05; done
}

proton_clear() { rm -f "$(log_of proton)"; }
proton_log() { cat "$(log_of proton)"; }
proton_ctl() { fail "Qpid Proton's example broker has no tool to control it"; }

# It answers the header of SASL with its own.
proton_answers() (
    exec 3<>"/dev/tcp/127.0.0.1/$amqp_port" || exit 1
    printf 'AMQP\x03\x01\x00\x00' >&3
    IFS= read -r -n 4 -t 5 first <&3 && [[ $first == AMQP ]]
) 2>/dev/null
