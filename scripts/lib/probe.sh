# shellcheck shell=bash disable=SC2154
# Does a broker answer? Asked with nothing but bash, so that no client needs to be installed.

seconds_to_answer=120

# It answers AMQP 0.9.1's protocol header with a frame of type 1, whichever way it is run: the
# port of a container accepts connections long before the broker in it does.
amqp_answers() (
    exec 3<>"/dev/tcp/127.0.0.1/$amqp_port" || exit 1
    printf 'AMQP\x00\x00\x09\x01' >&3
    IFS= read -r -n 1 -t 5 first <&3 && [[ $first == $'\x01' ]]
) 2>/dev/null

management_overview() (
    exec 3<>"/dev/tcp/127.0.0.1/$management_port" || exit 1
    printf 'GET /api/overview HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Basic %s\r\n\r\n' \
        "$(printf guest:guest | base64)" >&3
    timeout 5 cat <&3
) 2>/dev/null

broker_answers() {
    if [[ $way == proton ]]; then
        proton_answers
        return
    fi
    [[ $(management_overview) == HTTP/*\ 200\ * ]] && amqp_answers
}

running_release() {
    local overview
    if [[ $way == proton ]]; then
        # shellcheck disable=SC2016
        chroot "$(root_of proton)" dpkg-query --show --showformat '${source:Upstream-Version}' \
            libqpid-proton11
        return
    fi
    overview=$(management_overview) || true
    [[ $overview =~ \"rabbitmq_version\":\"([^\"]*)\" ]] || return 0
    echo "${BASH_REMATCH[1]}"
}

wait_until_it_answers() {
    local version=$1 deadline=$((SECONDS + seconds_to_answer)) name
    name=$(name_of "$version")
    until broker_answers; do
        if ! "${way}_is_running" "$version"; then
            show_log "$version"
            fail "$name ended while it started; the end of its log is above"
        elif ((SECONDS >= deadline)); then
            show_log "$version"
            fail "$name did not answer within $seconds_to_answer s on port $amqp_port or that of" \
                "its management; the end of its log is above." \
                "Start afresh with: scripts/brokers down --version $version"
        fi
        sleep 0.3
    done
    if [[ $way == proton ]]; then
        say "$name answers on port $amqp_port"
    else
        say "$name answers on port $amqp_port, management on port $management_port"
    fi
}

show_log() { "${way}_log" "$1" | tail -n 60 | sed 's/^/    /' >&2; }
