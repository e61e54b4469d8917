//! The figures of a service in the text format of Prometheus.

use std::fmt::{self, Write};

use crate::service::{PartHealth, PartState, ServiceHealth};

/// A figure of each part: name, kind, what it is, and how it is read.
type Figure = (&'static str, &'static str, &'static str, fn(&PartHealth) -> u64);

const FIGURES: [Figure; 12] = [
    ("messages_completed_total", "counter", "Messages done with.", |part| part.stats.acked),
    ("messages_retried_total", "counter", "Failed tries that are tried again.", |part| {
        part.stats.retried
    }),
    ("messages_dead_lettered_total", "counter", "Messages kept as dead letters.", |part| {
        part.stats.dead_lettered
    }),
    ("messages_released_total", "counter", "Messages given back to their queue.", |part| {
        part.stats.released
    }),
    ("messages_cancelled_total", "counter", "Requests and tasks that were called off.", |part| {
        part.stats.cancelled
    }),
    ("requests_expired_total", "counter", "Requests that came after their deadline.", |part| {
        part.stats.expired
    }),
    ("requests_replayed_total", "counter", "Requests answered from the inbox.", |part| {
        part.stats.replayed
    }),
    ("replies_dropped_total", "counter", "Replies and results that reached nobody.", |part| {
        part.stats.replies_dropped
    }),
    ("tasks_duplicate_total", "counter", "Tasks not run for their unique key.", |part| {
        part.stats.duplicates
    }),
    (
        "events_ignored_total",
        "counter",
        "Events that no handler takes, done with all the same.",
        |part| part.stats.ignored,
    ),
    ("messages_in_hand", "gauge", "Messages that handlers have at work.", |part| part.in_hand),
    ("part_up", "gauge", "Whether the part consumes: 1, or 0.", |part| {
        u64::from(matches!(part.state, PartState::Consuming))
    }),
];

pub(super) fn text(service: &str, health: &ServiceHealth) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _written = write(&mut text, service, health);
    text
}

fn write(text: &mut String, service: &str, health: &ServiceHealth) -> fmt::Result {
    let service = escaped(service);
    for (name, kind, help, read) in FIGURES {
        head(text, name, kind, help)?;
        for part in &health.parts {
            let (name_of_part, queue) = (escaped(&part.part), escaped(&part.queue));
            let labels = format!(r#"service="{service}",part="{name_of_part}",queue="{queue}""#);
            writeln!(text, "postrider_{name}{{{labels}}} {}", read(part))?;
        }
    }
    let states = [
        ("service_live", "Whether a restart is not needed: 1, or 0.", health.is_live()),
        ("service_ready", "Whether all parts consume and the broker is there.", health.is_ready()),
    ];
    for (name, help, holds) in states {
        head(text, name, "gauge", help)?;
        writeln!(text, r#"postrider_{name}{{service="{service}"}} {}"#, u8::from(holds))?;
    }
    Ok(())
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(text, "# HELP postrider_{name} {help}")?;
    writeln!(text, "# TYPE postrider_{name} {kind}")
}

/// The value of a label: backslash, quote and line feed are escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use postrider_core::ConnectionState;

    use super::*;
    use crate::{RunStats, service::ServicePhase};

    #[test]
    fn each_figure_has_its_head_and_a_line_for_each_part() {
        let stats = RunStats { acked: 7, ..RunStats::default() };
        let part = |name: &str, state| PartHealth {
            part: name.to_owned(),
            queue: "a\\b\"c\nd".to_owned(),
            state,
            stats,
            in_hand: 2,
        };
        let health = ServiceHealth {
            phase: ServicePhase::Running,
            connection: ConnectionState::Connected,
            parts: vec![part("worker a", PartState::Consuming), part("b", PartState::Stalled)],
        };
        let text = text("mail", &health);
        let labels = |part: &str| format!(r#"{{service="mail",part="{part}",queue="a\\b\"c\nd"}}"#);
        let counted = format!("postrider_messages_completed_total{} 7\n", labels("worker a"));
        assert!(text.contains(&counted), "{text}");
        assert!(text.contains(&format!("postrider_part_up{} 1\n", labels("worker a"))));
        assert!(text.contains(&format!("postrider_part_up{} 0\n", labels("b"))));
        assert!(text.contains("postrider_service_ready{service=\"mail\"} 0\n"));
        assert!(text.contains("# TYPE postrider_messages_completed_total counter\n"));
        let count = |what: &str| text.lines().filter(|line| line.starts_with(what)).count();
        assert_eq!((count("# HELP "), count("# TYPE ")), (14, 14));
        assert_eq!(count("postrider_"), 12 * 2 + 2);
    }
}
