//! The health of a service as JSON.

use postrider_core::ConnectionState;
use serde_json::{Value, json};

use crate::service::{PartHealth, PartState, ServiceHealth, ServicePhase};

pub(super) fn json(service: &str, health: &ServiceHealth) -> Value {
    json!({
        "service": service,
        "phase": phase(health.phase),
        "live": health.is_live(),
        "ready": health.is_ready(),
        "connection": connection(health.connection),
        "parts": health.parts.iter().map(part).collect::<Vec<_>>(),
    })
}

fn part(part: &PartHealth) -> Value {
    let (state, error) = match &part.state {
        PartState::Consuming => ("consuming", None),
        PartState::Held => ("held", None),
        PartState::Stalled => ("stalled", None),
        PartState::Ended(error) => ("ended", error.as_ref().map(ToString::to_string)),
    };
    let stats = part.stats;
    json!({
        "part": part.part,
        "queue": part.queue,
        "state": state,
        "error": error,
        "in_hand": part.in_hand,
        "completed": stats.acked,
        "retried": stats.retried,
        "dead_lettered": stats.dead_lettered,
        "released": stats.released,
        "expired": stats.expired,
        "replies_dropped": stats.replies_dropped,
        "cancelled": stats.cancelled,
        "replayed": stats.replayed,
        "duplicates": stats.duplicates,
        "ignored": stats.ignored,
    })
}

const fn phase(phase: ServicePhase) -> &'static str {
    match phase {
        ServicePhase::Running => "running",
        ServicePhase::Draining => "draining",
        ServicePhase::Stopped => "stopped",
    }
}

const fn connection(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::Connected => "connected",
        ConnectionState::Blocked => "blocked",
        ConnectionState::Reconnecting => "reconnecting",
        ConnectionState::Closed => "closed",
        _ => "unknown",
    }
}
