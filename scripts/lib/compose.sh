# shellcheck shell=bash disable=SC2154
# RabbitMQ in containers, by compose.yaml.

compose_works() {
    command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1 &&
        docker compose version >/dev/null 2>&1
}

service_of() { echo "rabbitmq-$1"; }

compose() {
    RABBITMQ_AMQP_PORT=$amqp_port RABBITMQ_AMQPS_PORT=$amqps_port \
        RABBITMQ_MANAGEMENT_PORT=$management_port \
        docker compose --file "$project/compose.yaml" "$@" 9>&-
}

compose_is_running() {
    [[ -n $(compose ps --status running --quiet "$(service_of "$1")" 2>/dev/null) ]]
}

compose_install() {
    compose_works || fail "no Docker engine with its compose plugin answers"
    docker image inspect "rabbitmq:$1-management" >/dev/null 2>&1 ||
        compose pull --quiet "$(service_of "$1")" >&2 ||
        fail "the image rabbitmq:$1-management cannot be pulled; POSTRIDER_BROKERS=packages" \
            "uses Debian packages instead"
}

compose_start() {
    say "starting RabbitMQ $1"
    compose up --detach --no-recreate "$(service_of "$1")" >&2
}

# The certificates are made in the container when it starts.
compose_certificates() {
    local folder=$state_folder/rabbitmq-$1.certificates
    mkdir -p "$folder"
    compose cp "$(service_of "$1"):/etc/rabbitmq/tls/." "$folder" >&2
    echo "$folder"
}

compose_stop() { compose stop --timeout 60 "$(service_of "$1")" >&2; }
compose_kill() { compose kill --signal SIGKILL "$(service_of "$1")" >&2; }

compose_clear() {
    compose rm --stop --force --volumes "$(service_of "$1")" >&2
    rm -rf "$state_folder/rabbitmq-$1.certificates"
}

compose_purge() { docker image rm "rabbitmq:$1-management" >&2 || true; }
compose_log() { compose logs --no-log-prefix "$(service_of "$1")"; }

compose_ctl() {
    local version=$1
    shift
    compose exec -T --user rabbitmq "$(service_of "$version")" rabbitmqctl "$@"
}
